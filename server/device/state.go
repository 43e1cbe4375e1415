package device

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/wire"
)

// evaluateLocked draws the conclusions from the present state: quorum, what
// this disk's data is worth, who is sent changes, what is let in and what is
// answered; tells the peers; and goes on with what waited. It is called after
// every change of state and changes nothing when there is nothing to conclude.
func (d *Device) evaluateLocked(b *block.Batch) {
	d.mixLocked()
	d.censusLocked()
	d.upgradeLocked()
	d.censusLocked()
	d.acquaintLocked()
	d.receiversChangedLocked(b)
	d.weighLocked()
	if d.role == replication.Primary && !d.needGen {
		d.needGen = d.needsGenLocked()
		d.genAgain = d.genAgain || d.needGen && d.genBusy && d.committing
	}
	d.gateLocked()
	d.renewLeasesLocked()
	d.announceLocked(b)
	if (d.hold&holdGeneration != 0 || d.genOwed || d.genEagerLocked()) && !d.genBusy && d.quorum.Quorate && d.role == replication.Primary {
		d.startGenLocked()
	}
	d.landStrandedLocked(b)
	d.releaseHeldLocked(b)
	d.flush.settleLocked(d, b)
	d.endOverLocked()
	d.kickLocked(b)
	d.refreshLocked(b)
	d.regainLocked()
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
		if now := d.factsLocked(p); !sameFacts(&now, &p.hs.mine, d.primary >= 0) {
			d.helloLocked(p, b)
		}
	}
	d.refreshing = false
}

// censusLocked counts who is in reach and applies the quorum policy.
func (d *Device) censusLocked() {
	c := d.tallyLocked(^replication.NodeSet(0))
	v := d.cfg.Quorum.Quorum(c)
	d.tied = v.Quorate && d.tiedLocked(c)
	if v.Quorate != d.quorum.Quorate {
		d.since["quorum"] = time.Now()
		word := "lost"
		if v.Quorate {
			word = "gained"
		}
		d.eventLocked("quorum", nil, "quorum %s: %s", word, v.Why)
		d.touchLocked()
	}
	d.quorum = v
	if d.role == replication.Primary && !v.Quorate && (d.cfg.OnNoQuorum == SuspendIO || d.settlingLocked()) {
		d.hold |= holdNoQuorum
	} else {
		d.hold &^= holdNoQuorum
	}
	d.weighLocked()
}

// weighLocked holds answers while as many disks as quorum takes are not sent the
// changes, although they are in reach, or could be: when the disks that are sent
// them are gone for good, the rest would be a majority that lacks what was answered.
// DRBD counts a disk from when it is in reach, and so answers while it waits for its
// resync. Those that have given up their votes cannot go on by themselves.
func (d *Device) weighLocked() {
	lacking := 0
	for id := range (d.disks &^ d.sendReceivesLocked()).All() {
		if p := d.peers[id]; !d.votes.Given(id) && (p == nil || p.agreed || !p.fenced) {
			lacking++
		}
	}
	few := !mutate.Is(mutate.AnswerAlone) && d.role == replication.Primary && d.quorum.Quorate && d.cfg.Quorum.PassesOver(lacking, d.disks.Len())
	if few == (d.hold&holdFew != 0) {
		return
	}
	d.hold ^= holdFew
	d.touchLocked()
}

// settlingLocked reports whether a disk in reach has failed a moment ago: whether
// there is quorum without it is about to be known.
func (d *Device) settlingLocked() bool {
	if d.dstat == replication.Failed {
		return true
	}
	for _, p := range d.peers {
		if p != nil && p.agreed && p.disk == replication.Failed {
			return true
		}
	}
	return false
}

// tallyLocked counts the disks as this node sees them, if of the others it
// sees those of the set seen.
func (d *Device) tallyLocked(seen replication.NodeSet) (c replication.Census) {
	c = replication.Census{Had: d.quorum.Quorate}
	switch {
	case d.peersHaveDisk(d.cfg.Self) && d.dstat >= replication.Consistent:
		c.UpToDate++
	case d.peersHaveDisk(d.cfg.Self) && d.dstat >= replication.Inconsistent:
		c.Present++
	case d.peersHaveDisk(d.cfg.Self) && !d.votes.Given(d.cfg.Self):
		c.Idle++
	case d.peersHaveDisk(d.cfg.Self):
		c.Outdated++
	}
	if mutate.Is(mutate.CountLeft) {
		defer func() { c.Voteless = 0 }()
	}
	if c.UpToDate+c.Present > 0 && d.votes.Given(d.cfg.Self) {
		c.Voteless++
	}
	if c.UpToDate+c.Present > 0 && d.newcomer {
		c.Newcomers++
	}
	if !d.peersHaveDisk(d.cfg.Self) {
		c.TiebreakersPresent++ // which it keeps as a witness, see witness.go
	}
	for _, p := range d.peers {
		if p != nil {
			d.countPeerLocked(p, seen.Has(p.id), &c)
		}
	}
	if mutate.Is(mutate.TrustNewcomers) {
		c.Newcomers = 0
	}
	return c
}

func (d *Device) peersHaveDisk(id int) bool { return d.disks.Has(id) }

func (d *Device) countDataLocked(p *peer, c *replication.Census) {
	current := p.disk == replication.UpToDate || p.disk == replication.Consistent && p.repl == replication.Established
	if current && !d.witnessedAgainstLocked(p) {
		c.UpToDate++
	} else {
		c.Present++
	}
}

func (d *Device) countPeerLocked(p *peer, seen bool, c *replication.Census) {
	switch {
	case p.diskless && p.steady && p.agreed && seen:
		c.TiebreakersPresent++
	case p.diskless:
		c.TiebreakersMissing++
	case p.fenced && !p.agreed || d.votes.Given(p.id) && (!p.agreed || !seen && p.given):
		c.Outdated++
	case !seen:
		c.Unknown++
	case p.agreed && p.disk.HasData():
		d.countDataLocked(p, c)
		if p.voteless() {
			c.Voteless++
		}
		if p.newcomer {
			c.Newcomers++
		}
	case p.agreed && d.votes.Given(p.id):
		c.Outdated++
	case p.agreed:
		c.Idle++
	case mutate.Is(mutate.CountAbsent):
		c.Present++
	default:
		c.Unknown++
	}
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
	if d.passedLocked() && !d.best {
		return // another that is in sync with this one may not have heard yet
	}
	for _, p := range d.peers {
		if p != nil && p.agreed && p.inSync && p.heard && p.state.Disk == uint8(replication.UpToDate) && d.abreastLocked(p) {
			d.setDiskLocked(replication.UpToDate, "in sync with "+p.name)
			d.saveLocked(nil)
			return
		}
	}
	if d.dstat == replication.Outdated {
		return
	}
	d.censusLocked()
	if !d.quorum.Quorate {
		return
	}
	for _, p := range d.peers {
		if p != nil && p.session != nil && !p.agreed && p.refused == "" && (!p.diskless || d.halvableLocked()) {
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

// abreastLocked reports whether a peer is, by its last announcement, in the
// generation that this disk is in. A replica that is in sync with another is
// left behind without noticing where only the other is in contact with the
// primary that moves on.
func (d *Device) abreastLocked(p *peer) bool { return p.state.Current == uint64(d.gens.Current) }

// nothingNewerLocked reports whether an outdated disk has everything of the
// newest generation that it has heard of, and nobody in reach has more.
func (d *Device) nothingNewerLocked() bool {
	if !d.orderedLocked() || d.passedLocked() || d.primary >= 0 {
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
// nothing that this one lacks.
func (d *Device) everybodyBehindLocked() bool {
	for _, p := range d.peers {
		if p == nil || p.diskless {
			continue
		}
		if p.newcomer || d.newcomer {
			return false // the disk that it replaced may have been the one
		}
		if p.agreed && p.disk == replication.Inconsistent {
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
		p.missed = false
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
		return p.disk == replication.UpToDate // it has what this disk lacks
	}
	return false
}

// resendLocked sends a peer that came back what is held for want of quorum:
// what will be answered is then on more than one disk. And, of those under way,
// what is not on this primary's own disk: what the peer misses of them nothing here
// would mark. Such a disk may have been attached since they were made.
func (d *Device) resendLocked(p *peer, b *block.Batch) {
	for o := range d.window.all {
		if o.miss.Has(p.id) && !o.answered && !o.local && !o.localOK && o.err == nil {
			o.miss = o.miss.Without(p.id)
			d.sendAgainLocked(o, p, b)
		}
	}
	for _, o := range d.held {
		if o.err != nil || o.wait.Has(p.id) {
			continue // the application is told of the error; it was not made here
		}
		d.sendAgainLocked(o, p, b)
	}
}

// sendAgainLocked sends a peer that came back a change that was made before it
// did, and is not durable there as what it had by then is.
func (d *Device) sendAgainLocked(o *op, p *peer, b *block.Batch) {
	o.need, o.wait = o.need.With(p.id), o.wait.With(p.id)
	p.stable = min(p.stable, o.seq-1)
	d.sendChangeLocked(o, p.bit(), b)
}

// gateLocked decides what becomes of requests.
func (d *Device) gateLocked() {
	data := d.dstat == replication.UpToDate && d.disk != nil || d.remoteDataLocked()
	g := gateOpen
	switch {
	case d.role != replication.Primary || d.closing:
		g = gateShut
	case d.frozen > 0 || d.genEagerLocked() && d.quorum.Quorate:
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

// announceLocked tells every peer of our state, where it has not heard it.
func (d *Device) announceLocked(b *block.Batch) {
	st := wire.DeviceState{
		Role: uint8(d.role), Disk: uint8(d.dstat), Current: uint64(d.gens.Current),
		Receives: uint32(d.sendReceivesLocked()), InSync: uint32(d.inSyncLocked()), Primary: wire.NoNode,
	}
	if d.role == replication.Primary {
		st.Stream = d.stream
		st.Primary = uint8(d.cfg.Self)
	} else if d.primary >= 0 {
		st.Primary = uint8(d.primary)
	}
	if d.quorum.Quorate {
		st.Flags |= wire.DevFlagQuorate
	}
	if d.votes.Given(d.cfg.Self) {
		st.Flags |= wire.DevFlagVoteless
	}
	if d.newcomer {
		st.Flags |= wire.DevFlagNewcomer
	}
	if d.pullingLocked() {
		st.Flags |= wire.DevFlagSyncing
	}
	for _, p := range d.peers {
		if p != nil && p.agreed {
			st.Sees |= uint32(p.bit())
		}
	}
	r := d.rollLocked()
	for _, p := range d.peers {
		if p == nil || !p.agreed || p.told && p.lastSt == st && p.lastRoll == r {
			continue
		}
		// On the data link first: it orders the set against the changes.
		if !p.told || p.lastSt.Receives != st.Receives || p.lastSt.InSync != st.InSync || p.lastSt.Stream != st.Stream || p.lastRoll != r {
			h := wire.Header{Type: wire.Receivers, Arg: [3]uint64{uint64(st.Receives), uint64(st.InSync), st.Stream}}
			r.put(&h)
			p.send(h, nil, nil, b)
		}
		p.lastSt, p.lastRoll, p.told = st, r, true
		p.send(wire.Header{Type: wire.DevState}, st.Append(nil), nil, b)
	}
}

// retell is how often a device that is not healthy says again how it is.
const retell = 5 * time.Second

// retellLocked draws the conclusions once more and tells every peer of our
// state, where something is wanting: what either side took from a state that
// has passed is put right by it.
func (d *Device) retellLocked(b *block.Batch) {
	healthy := d.dstat == replication.UpToDate || d.dstat == replication.Diskless
	for _, p := range d.peers {
		healthy = healthy && (p == nil || p.diskless || p.inSync)
	}
	if healthy {
		return
	}
	for _, p := range d.peers {
		if p != nil {
			p.told = false
		}
	}
	d.evaluateLocked(b)
	d.chooseSourceLocked(b)
}

// stateReceivedLocked takes a peer's announcement.
func (d *Device) stateReceivedLocked(p *peer, st wire.DeviceState, b *block.Batch) {
	if !p.agreed {
		return
	}
	// These two are ordered by the data link and come with it.
	st.Receives, st.InSync = p.state.Receives, p.state.InSync
	p.state, p.heard = st, true
	p.given, p.newcomer = st.Flags&wire.DevFlagVoteless != 0, st.Flags&wire.DevFlagNewcomer != 0
	d.peerRoleLocked(p, replication.Role(st.Role), b)
	d.peerDiskLocked(p, d.creditLocked(p, replication.DiskState(st.Disk)), b)
	p.inSync = p.inSync && !p.syncingLocked() // complete it may be, but it changes
	if p.sync.pulling && (p.disk < replication.Consistent && p.disk != replication.DUnknown || p.syncingLocked()) {
		// The source is being resynced itself; another, or later.
		d.giveUpLocked(p, b)
		d.setReplLocked(p, replication.PausedSyncT)
	}
	d.evaluateLocked(b)
	d.chooseSourceLocked(b)
}

func (d *Device) peerRoleLocked(p *peer, r replication.Role, b *block.Batch) {
	if r != replication.Primary && d.primary == p.id {
		d.primary = -1
		d.recent.reset()           // it demoted in order: everything is everywhere
		if d.floor >= d.received { // a resync of this disk may go on: that ends in sync, or not at all
			d.heals.ended = d.stream
		}
	}
	if r == p.role {
		return
	}
	p.role = r
	d.eventLocked("role", p, "%s is now %v", p.name, r)
	d.touchLocked()
	if r == replication.Primary && (d.primary != p.id || p.state.Stream != d.stream) {
		d.followLocked(p, p.state.Stream)
		d.saveLocked(nil)
	}
}

// creditLocked is what a primary takes a peer's disk for. One without a disk has
// no marks of its own by which a disk that missed a change would show when it is
// back: whatever it takes itself for, it is outdated until it is being resynced
// by another that has the change, and a generation tells it so. A resync does
// not end before its target gets what the primary sends.
func (d *Device) creditLocked(p *peer, s replication.DiskState) replication.DiskState {
	if d.disk != nil || d.role != replication.Primary || !p.missed || s <= replication.Outdated || p.state.Flags&wire.DevFlagSyncing != 0 {
		return s
	}
	d.needGen = true
	d.genAgain = d.genAgain || d.genBusy
	return replication.Outdated
}

func (d *Device) peerDiskLocked(p *peer, s replication.DiskState, b *block.Batch) {
	// What we concluded in the handshake may be ahead of what the peer has
	// said of itself so far.
	if s == replication.Consistent && p.disk == replication.UpToDate && p.repl == replication.Established {
		return
	}
	if s == p.disk {
		return
	}
	was := p.disk
	p.disk = s
	p.inSync = p.inSync && s >= replication.Outdated
	d.eventLocked("disk", p, "disk of %s: %v -> %v", p.name, was, s)
	d.touchLocked()
	if was.HasData() && !s.HasData() {
		d.syncPartLocked(p)
		d.setReplLocked(p, replication.Established)
		if d.receives.Has(p.id) {
			d.receives = d.receives.Without(p.id)
			d.excludeLocked(p, was == replication.UpToDate, "its disk is "+s.String(), b)
			d.flush.lostLocked(d, p, b)
		}
		if d.genBusy {
			d.work.do(d.settleGen) // it confirms nothing any more
		}
	}
	if s == replication.UpToDate && d.dstat == replication.Consistent && !d.pullingLocked() && p.repl == replication.Established && p.decision.Action == replication.InSync && d.abreastLocked(p) {
		d.setDiskLocked(replication.UpToDate, "in sync with "+p.name)
		d.saveLocked(nil)
	}
}

// saveLocked makes the present generations and flags durable, on the worker,
// then calls then with the mutex held.
func (d *Device) saveLocked(then func(error, *block.Batch)) {
	d.work.do(func() {
		b := &block.Batch{}
		err := d.save()
		d.mu.Lock()
		if then != nil {
			then(err, b)
		}
		d.mu.Unlock()
		b.Finish()
	})
}

func (d *Device) saveGensLater() { d.saveLocked(nil) }

// save writes the superblock as state is now.
func (d *Device) save() error {
	d.mu.Lock()
	meta := d.meta
	sb := d.superblockLocked()
	d.mu.Unlock()
	if meta == nil || mutate.Is(mutate.Unsaved) {
		return nil
	}
	if err := meta.Update(sb); err != nil {
		d.mu.Lock()
		d.metaFailedLocked(meta, "metadata write", err)
		d.mu.Unlock()
		return fmt.Errorf("device %s: cannot write metadata: %w", d.opts.Name, err)
	}
	return nil
}

// superblockLocked captures what is to be written.
func (d *Device) superblockLocked() func(*store.Superblock) {
	gens, dstat, role, crashed, stream, began, size := d.gens, d.dstat, d.role, d.crashed, d.stream, d.began, d.cfg.Size
	members, origin, votes, self, newcomer, member := uint32(d.disks), d.origin, d.votes, d.cfg.Self, d.newcomer, d.member
	return func(sb *store.Superblock) {
		sb.Ext = binary.LittleEndian.AppendUint64(nil, stream)
		putGens(sb, &gens)
		set := func(f store.Flags, on bool) {
			if on {
				sb.Flags |= f
			} else {
				sb.Flags &^= f
			}
		}
		if dstat.HasData() {
			set(store.Consistent, dstat != replication.Inconsistent)
			if dstat != replication.Consistent { // which is to know nothing new
				set(store.WasUpToDate, dstat == replication.UpToDate)
			}
		}
		set(store.PrimaryInd, role == replication.Primary)
		set(store.CrashedPrimary, crashed)
		set(store.Newcomer, newcomer)
		set(store.Member, member)
		set(store.JustCreated, gens.Current == replication.DayOne)
		sb.Members = members
		putOrigin(sb, origin)
		putVotes(sb, &votes, self)
		binary.LittleEndian.PutUint64(sb.Ext[extBegan:], uint64(began))
		binary.LittleEndian.PutUint64(sb.Ext[extSize:], uint64(size))
	}
}

func gensOf(sb *store.Superblock) replication.Gens {
	g := replication.Gens{Current: replication.Gen(sb.Current), Base: replication.Gen(sb.Current), Noted: replication.Gen(sb.Current)}
	if len(sb.Ext) >= extLen {
		g.Base = replication.Gen(binary.LittleEndian.Uint64(sb.Ext[extBase:]))
		g.Seen = replication.Gen(binary.LittleEndian.Uint64(sb.Ext[extSeen:]))
		g.Noted = replication.Gen(binary.LittleEndian.Uint64(sb.Ext[extNoted:]))
	}
	for i := range g.Bitmap {
		g.Bitmap[i] = replication.Gen(sb.Bitmap[i])
		g.History[i] = replication.Gen(sb.History[i])
	}
	return g
}

// Layout of the superblock's extension: the stream; Base, Seen and Noted of
// Gens; when this node last became primary; the size; and, not in the oldest,
// the origin and the votes.
const (
	extBase  = 8
	extSeen  = 16
	extNoted = 24
	extBegan = 32
	extSize  = 40
	extLen   = 48 // of the oldest

	extOrigin = 48
	extVotes  = 56
	extWhole  = extVotes + 4*replication.MaxNodes
)

// originOf is the origin that a superblock speaks of.
func originOf(sb *store.Superblock) uint64 {
	if len(sb.Ext) < extWhole {
		return replication.NoOrigin
	}
	return binary.LittleEndian.Uint64(sb.Ext[extOrigin:])
}

// putOrigin comes after putGens, which makes the room.
func putOrigin(sb *store.Superblock, origin uint64) {
	binary.LittleEndian.PutUint64(sb.Ext[extOrigin:], origin)
}

func votesOf(sb *store.Superblock) (v replication.Votes) {
	if len(sb.Ext) >= extWhole {
		for id := range v {
			v[id] = binary.LittleEndian.Uint32(sb.Ext[extVotes+4*id:])
		}
	}
	return v
}

// putVotes comes after putGens. The flags say the same, for people.
func putVotes(sb *store.Superblock, v *replication.Votes, self int) {
	sb.Flags &^= store.Left
	for id, n := range v {
		binary.LittleEndian.PutUint32(sb.Ext[extVotes+4*id:], n)
		sb.PeerFlags[id] &^= store.PeerLeft
		switch {
		case !v.Given(id):
		case id == self:
			sb.Flags |= store.Left
		default:
			sb.PeerFlags[id] |= store.PeerLeft
		}
	}
}

func putGens(sb *store.Superblock, g *replication.Gens) {
	sb.Current = uint64(g.Current)
	ext := make([]byte, extWhole)
	copy(ext, sb.Ext)
	binary.LittleEndian.PutUint64(ext[extBase:], uint64(g.Base))
	binary.LittleEndian.PutUint64(ext[extSeen:], uint64(g.Seen))
	binary.LittleEndian.PutUint64(ext[extNoted:], uint64(g.Noted))
	sb.Ext = ext
	for i := range g.Bitmap {
		sb.Bitmap[i] = uint64(g.Bitmap[i])
		sb.History[i] = uint64(g.History[i])
	}
}
