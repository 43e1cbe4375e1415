package device

import (
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// evaluateLocked draws the conclusions from the present state: quorum, what
// this disk's data is worth, who is sent changes, what is let in and what is
// answered; tells the peers; and goes on with what waited. It is called after
// every change of state and changes nothing when there is nothing to conclude.
func (d *Device) evaluateLocked(b *block.Batch) {
	if d.stopped {
		return
	}
	d.mixLocked()
	d.regroupLocked()
	d.censusLocked()
	d.upgradeLocked()
	d.censusLocked()
	d.acquaintLocked()
	d.receiversChangedLocked(b)
	d.weighLocked()
	d.fencesLocked()
	if d.role == replication.Primary && !d.needGen {
		d.needGen = d.needsGenLocked()
		d.genAgain = d.genAgain || d.needGen && d.genBusy && d.committing
	}
	d.gateLocked()
	d.renewLeasesLocked()
	d.announceLocked(b)
	if (d.hold&holdGeneration != 0 || d.genOwed || d.genEagerLocked()) && !d.genBusy && d.leadsLocked() {
		d.startGenLocked()
	}
	d.landStrandedLocked(b)
	d.landHeldLocked(b)
	d.releaseHeldLocked(b)
	d.flush.settleLocked(d, b)
	d.endOverLocked()
	d.kickLocked(b)
	d.refreshLocked(b)
	d.regainLocked()
	d.relieveLocked(b) // what is stable depends on who takes part
	if d.frozen > 0 {
		d.touchLocked() // who freezes waits for it to become quiet
	}
}

// acquaintLocked: a disk that has the current data, where there is quorum, knows
// from then on what it takes part in.
func (d *Device) acquaintLocked() {
	if (d.newcomer || !d.member) && d.meta != nil && d.ctx != nil && d.dstat == replication.UpToDate && d.quorum.Quorate {
		d.newcomer, d.member = false, true
		d.saveLocked(nil)
	}
}

// refreshLocked sends new facts to those peers with which agreement is wanting
// and that were told something that is no longer so.
func (d *Device) refreshLocked(b *block.Batch) {
	if d.refreshing || d.closing {
		return
	}
	d.refreshing = true
	for _, p := range d.peers {
		if p == nil || p.agreed || p.hs.no == 0 || p.session == nil {
			continue
		}
		if !d.toldLocked(p) {
			d.helloLocked(p, b)
		}
	}
	d.refreshing = false
}

// upgradeLocked: a consistent disk is the current one when those who could
// know better are in reach and do not.
func (d *Device) upgradeLocked() {
	if d.pullingLocked() {
		return // the end of the resync tells
	}
	if d.dstat == replication.Outdated && d.nothingNewerLocked() {
		d.setDiskLocked(replication.Consistent, "what seemed newer did not come into force")
	}
	if d.dstat == replication.Outdated && d.everybodyBehindLocked() {
		d.best = true
		d.setDiskLocked(replication.Consistent, "every disk is in reach, and none has newer data")
	}
	if d.dstat < replication.Outdated || d.dstat == replication.UpToDate {
		return
	}
	if mutate.Is(mutate.OutdatedCurrent) {
		d.setDiskLocked(replication.UpToDate, "mutated")
		return
	}
	if d.passedLocked() && !d.best || d.outrunLocked() || d.leftLocked() {
		return // another that is in sync with this one may not have heard yet
	}
	late := d.outrunLatelyLocked()
	for _, p := range d.peers {
		if p == nil || !p.agreed || !p.inSync || !p.heard || p.state.Disk != uint8(replication.UpToDate) || !d.abreastLocked(p) {
			continue
		}
		if late && p.role != replication.Primary {
			continue
		}
		d.setDiskLocked(replication.UpToDate, "in sync with "+p.name)
		// Of many that come to it at once no two outdate each other again, where a
		// disk is outdated by a peer's word.
		d.best = d.best || !d.orderedLocked()
		d.saveLocked(nil)
		return
	}
	if d.dstat == replication.Outdated {
		return
	}
	d.censusLocked()
	if !d.quorum.Quorate {
		return
	}
	for _, p := range d.peers {
		if p != nil && p.shakingLocked() && (!p.diskless || d.halvableLocked()) {
			return // it is about to tell
		}
		if p == nil || p.diskless {
			continue
		}
		if p.agreed && p.repl == replication.PausedSyncT {
			return // it has told, and a resync comes first
		}
		if !p.agreed && d.cfg.Quorum.Kind == replication.QuorumOff {
			return // without quorum only everybody's word will do, or an administrator's
		}
	}
	d.setDiskLocked(replication.UpToDate, d.quorum.Why)
	d.saveLocked(nil)
}

// leftLocked reports whether this disk was left behind, where generations in force are no
// chain. Who is as far as it is and takes itself for current has not heard yet.
func (d *Device) leftLocked() bool {
	f := replication.Facts{Disk: d.dstat, Gens: d.gens}
	return !d.orderedLocked() && f.LeftBehind()
}

// outrunLocked reports whether a peer in contact has newer data than this disk, by what
// the two have told each other last. Where generations in force are a chain passedLocked
// tells that.
func (d *Device) outrunLocked() bool {
	if d.orderedLocked() {
		return false
	}
	for _, p := range d.peers {
		if p == nil || p.session == nil || p.agreed && p.repl == replication.Established {
			continue
		}
		if p.decision.Outrun() {
			return true
		}
	}
	return false
}

// outrunLatelyLocked reports whether that was so of a peer that is out of contact now.
// Another that is in sync with this disk may not have heard of it.
func (d *Device) outrunLatelyLocked() bool {
	if d.orderedLocked() || d.dstat != replication.Outdated {
		return false
	}
	for _, p := range d.peers {
		if p != nil && p.session == nil && p.decision.Outrun() {
			return true
		}
	}
	return false
}

// abreastLocked reports whether a peer is, by its last announcement, in the
// generation that this disk is in. A replica that is in sync with another is
// left behind without noticing where only the other is in contact with the
// primary that moves on.
func (d *Device) abreastLocked(p *peer) bool { return p.state.Current == uint64(d.gens.Current) }

// nothingNewerLocked reports whether an outdated disk has everything of the
// newest generation that it has heard of, and nobody in reach has more.
func (d *Device) nothingNewerLocked() bool {
	if !d.orderedLocked() || d.passedLocked() || d.primary >= 0 && d.primary != d.cfg.Self {
		return false
	}
	for _, p := range d.peers {
		if p != nil && p.agreed && (p.role == replication.Primary || p.repl == replication.PausedSyncT && !p.decision.Even) {
			return false
		}
	}
	return true
}

// everybodyBehindLocked reports whether every other disk is in reach and has
// nothing that this one lacks. One that was taken out since may have it.
func (d *Device) everybodyBehindLocked() bool {
	if len(d.former) > 0 {
		return false
	}
	for _, p := range d.peers {
		if p == nil || p.diskless {
			continue
		}
		if d.orderedLocked() && (p.former || p.newcomer || d.newcomer) {
			return false // a disk that it was among, or replaced, may have been the one
		}
		if p.agreed && p.disk == replication.Inconsistent {
			if g := &p.hs.theirs.Gens; g.Current == replication.NoGen && !d.gens.Seen.After(g.Noted) && !mutate.Is(mutate.PassOver) {
				return false // what it held before the device is about to be its data; see heralding
			}
			continue
		}
		if !p.agreed || p.disk > replication.Outdated || !(p.inSync || p.repl == replication.PausedSyncS || p.repl == replication.SyncSource) {
			return false
		}
	}
	return true
}

func (d *Device) setDiskLocked(s replication.DiskState, why string) {
	if d.dstat == s {
		return
	}
	old := d.dstat
	d.dstat = s
	d.rolls++
	d.best = d.best && s > replication.Outdated
	d.lags = d.lags && s != replication.UpToDate
	d.live = s == replication.UpToDate || d.live && s >= replication.Outdated
	d.since["disk"] = time.Now()
	d.eventLocked("disk", nil, "disk %v -> %v: %s", old, s, why)
	d.touchLocked()
}

// receiversChangedLocked adds those peers to the set that is sent changes that
// have come to belong to it. Leaving the set is excludeLocked's.
func (d *Device) receiversChangedLocked(b *block.Batch) {
	if d.role != replication.Primary {
		d.receives = 0
		return
	}
	for _, p := range d.peers {
		if p == nil || d.receives.Has(p.id) || !d.receivesLocked(p) {
			continue
		}
		d.receives = d.receives.With(p.id)
		p.fence.spared = p.fence.spared && p.repl == replication.SyncSource // which has it stay a mixture
		p.missed, p.lacks, p.outOf = false, replication.NoGen, replication.NoGen
		d.rolls++
		d.floorSent = 0 // it has not heard it
		p.stable = d.window.head
		p.told = false
		d.announceLocked(b) // who receives, before what is received
		d.resendLocked(p, b)
	}
}

func (d *Device) receivesLocked(p *peer) bool {
	if !p.agreed || p.diskless || !p.disk.HasData() {
		return false
	}
	switch p.repl {
	case replication.SyncSource:
		return true
	case replication.Established:
		return p.inSync || p.disk == replication.UpToDate || p.state.Flags&wire.DevFlagSyncing != 0
	case replication.SyncTarget, replication.PausedSyncT:
		return p.disk == replication.UpToDate && !d.asideLocked(p) // it has what this disk lacks
	}
	return false
}

// asideLocked reports whether a peer that has what this disk lacks is in another
// generation than the one that this disk is being given by a third: it would not follow
// what this primary begins with that one, but object, and be agreed with anew, for ever. It
// is told as one that is left behind, and is resynced.
func (d *Device) asideLocked(p *peer) bool {
	for _, q := range d.peers {
		if q != nil && q != p && q.sync.pulling && q.sync.adopted {
			return p.bears() != d.gens.Current && p.confirmed != d.genNew
		}
	}
	return false
}

// resendLocked sends a peer that came back what is held for want of quorum:
// what will be answered is then on more than one disk. And, of those under way,
// what is not on this primary's own disk: what the peer misses of them nothing here
// would mark. Such a disk may have been attached since they were made. What is on its way
// to that disk is known when it is there: see localDoneLocked.
func (d *Device) resendLocked(p *peer, b *block.Batch) {
	for o := range d.window.all {
		if o.miss.Has(p.id) && !o.answered && !o.local && !o.localOK && o.err == nil {
			d.sendMissedLocked(o, p, b)
		}
	}
	for _, o := range d.held {
		if o.err != nil || o.wait.Has(p.id) {
			continue // the application is told of the error; it was not made here
		}
		d.sendAgainLocked(o, p, b)
	}
}

// sendMissedLocked sends a peer that came back a change under way that it misses.
func (d *Device) sendMissedLocked(o *op, p *peer, b *block.Batch) {
	o.miss = o.miss.Without(p.id)
	d.sendAgainLocked(o, p, b)
}

// landHeldLocked makes what is on no disk to this node's own, if that is there
// again and is current.
func (d *Device) landHeldLocked(b *block.Batch) {
	if d.dstat != replication.UpToDate || d.disk == nil || len(d.held) == 0 {
		return
	}
	held := d.held
	d.held = nil
	for _, o := range held {
		if o.local || o.need != 0 || o.landed || !d.nowhereLocked(o) {
			d.held = append(d.held, o)
			continue
		}
		o.finished = false
		d.landHereLocked(o, b)
	}
}

// sendAgainLocked sends a peer that came back a change that was made before it
// did, and is not durable there as what it had by then is. Where this node's own
// disk lacks it, that gets it, too: the peer is taken for one that has what this
// disk has. Pieces of a resync that came before the peer had the change wait for
// its range, and are not to land behind it.
func (d *Device) sendAgainLocked(o *op, p *peer, b *block.Batch) {
	o.need, o.wait = o.need.With(p.id), o.wait.With(p.id)
	p.stable = min(p.stable, o.seq-1)
	d.sendChangeLocked(o, p.bit(), b)
	if !o.local && !o.localOK && d.takesLocked() {
		d.landHereLocked(o, b)
	}
}

// landHereLocked makes a change to this node's own disk that was not there, or
// failed it, when the change was sent to the others.
func (d *Device) landHereLocked(o *op, b *block.Batch) {
	d.overtakePullsLocked(nil, o.ext, true)
	d.carryOutLocked(o, b)
}

// gateLocked decides what becomes of requests.
func (d *Device) gateLocked() {
	data := d.dstat == replication.UpToDate && d.disk != nil || d.remoteDataLocked()
	g := gateOpen
	switch {
	case d.role != replication.Primary || d.closing:
		g = gateShut
	case d.frozen > 0 || d.genEagerLocked() && d.quorum.Quorate, d.hold&holdFence != 0:
		g = gateSuspend
	case d.quorum.Quorate && data:
	case d.cfg.OnNoQuorum == FailIO && !d.settlingLocked():
		g = gateFail
	default:
		g = gateSuspend
	}
	g = d.stallLocked(g)
	if g != d.gate {
		d.gate = g
		d.since["gate"] = time.Now()
		d.touchLocked()
	}
	d.setReadableLocked(g == gateOpen && (d.dstat == replication.UpToDate || mutate.Is(mutate.ReadStale)) && d.disk != nil)
}

func (d *Device) setReadableLocked(yes bool) {
	switch {
	case !yes:
		d.readable.Store(nil)
	case d.readable.Load() == nil:
		d.readable.Store(&diskRef{d.disk})
	}
}

// remoteDataLocked reports whether a peer can serve what this disk cannot.
func (d *Device) remoteDataLocked() bool {
	for _, p := range d.peers {
		if p != nil && d.servesLocked(p) {
			return true
		}
	}
	return false
}

// inSyncLocked is who, as far as this node knows, is in sync with it. Those that
// do not know whether they are current can be so, too: a third that is resynced
// from one of them need not be from the others.
func (d *Device) inSyncLocked() replication.NodeSet {
	if d.disk == nil && d.role == replication.Primary {
		return d.agreeingLocked()
	}
	var s replication.NodeSet
	least := replication.UpToDate
	if d.dstat == replication.Consistent {
		least = replication.Consistent
	}
	if d.dstat >= least {
		s = s.With(d.cfg.Self)
	}
	for _, p := range d.peers {
		if p != nil && p.agreed && p.inSync && !p.diskless && p.repl == replication.Established && p.disk >= least && !d.markedLocked(p.id) {
			s = s.With(p.id)
		}
	}
	return s
}

// markedLocked reports whether anything is marked as out of sync with a node.
func (d *Device) markedLocked(id int) bool {
	return d.meta != nil && d.meta.Bitmap(id).Count() > 0
}
