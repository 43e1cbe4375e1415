package device

import (
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

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
	if len(d.former) > 0 {
		st.Flags |= wire.DevFlagFormer
	}
	if d.met {
		st.Flags |= wire.DevFlagMet
	}
	if d.movedLocked() {
		st.Flags |= wire.DevFlagRegrouped
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
	if d.primary >= 0 && d.primary != d.cfg.Self && d.peers[d.primary] != nil {
		d.settleLocked(d.peers[d.primary], b) // its word may have come when this disk was not up to date yet
	}
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
	if d.movedOnLocked(p) {
		d.helloLocked(p, b)
		return
	}
	p.given, p.newcomer = st.Flags&wire.DevFlagVoteless != 0, st.Flags&wire.DevFlagNewcomer != 0
	p.former, p.met, p.regrouped = st.Flags&wire.DevFlagFormer != 0, st.Flags&wire.DevFlagMet != 0, st.Flags&wire.DevFlagRegrouped != 0
	d.peerRoleLocked(p, replication.Role(st.Role), b)
	if replication.DiskState(st.Disk) <= replication.Inconsistent && replication.Gen(st.Current).After(p.undo) {
		p.undo = replication.NoGen // its resync covers that
	}
	d.redeemedLocked(p)
	d.peerDiskLocked(p, d.creditLocked(p, replication.DiskState(st.Disk)), b)
	switch {
	case !p.syncingLocked():
		p.ending = false
	case !p.ending:
		p.inSync = false // complete it may be, but it changes
	}
	if p.sync.pulling && (p.disk < replication.Consistent && p.disk != replication.DUnknown || p.syncingLocked()) {
		// The source is being resynced itself; another, or later.
		d.giveUpLocked(p, b)
		d.setReplLocked(p, replication.PausedSyncT)
	}
	d.evaluateLocked(b)
	d.chooseSourceLocked(b)
	d.tagsReachedLocked(b) // it may follow nobody any more
}

func (d *Device) peerRoleLocked(p *peer, r replication.Role, b *block.Batch) {
	was := p.role
	p.role = r
	if r != replication.Primary && d.primary == p.id {
		d.primary = -1
		d.recent.reset()           // it demoted in order: everything is everywhere
		if d.floor >= d.received { // a resync of this disk may go on: that ends in sync, or not at all
			d.heals.ended = d.stream
		}
		d.rivalLeftLocked()
	}
	if r == was {
		return
	}
	d.eventLocked("role", p, "%s is now %v", p.name, r)
	d.touchLocked()
	if r == replication.Primary && (d.primary != p.id || p.state.Stream != d.stream) {
		d.followLocked(p, p.state.Stream)
		d.saveLocked(nil)
	}
}

// outdoneLocked reports whether somebody in contact knows of a generation in force
// that is after the one that a peer's disk is in; or, where those are no chain, whether
// that is another one than this primary serves.
func (d *Device) outdoneLocked(p *peer) bool {
	if !d.orderedLocked() {
		return d.apartLocked(p) && !mutate.Is(mutate.ServeApart)
	}
	in := p.bears()
	for _, q := range d.peers {
		if q != nil && q.agreed && !q.hs.mine.Foreign(&q.hs.theirs) && q.hs.theirs.Gens.Seen.After(in) {
			return true
		}
	}
	return false
}

// creditLocked is what a primary takes a peer's disk for. One that fails what is
// written to it again and again, and stays because there is no other, is a failed
// one for a while; see nakedLocked. One without a disk has
// no marks of its own by which a disk that missed a change would show when it is
// back: whatever it takes itself for, it is outdated until it is being resynced
// by another that has the change, and the generation that is asked for here tells
// it so. A resync does not end before its target gets what the primary sends.
// Likewise a disk that was left behind before this node became primary, and has not
// heard of it; also where this node has a disk again that is older than what it serves.
func (d *Device) creditLocked(p *peer, s replication.DiskState) replication.DiskState {
	if !s.HasData() {
		p.fails, p.failsUntil = 0, time.Time{} // another disk, or a mended one, comes after it
	} else if d.role == replication.Primary && time.Now().Before(p.failsUntil) {
		return replication.Failed
	}
	if d.disk != nil && !d.unguidedLocked() || d.role != replication.Primary || s <= replication.Outdated || p.state.Flags&wire.DevFlagSyncing != 0 {
		return s
	}
	if (d.disk != nil || !d.lacksOursLocked(p)) && !d.outdoneLocked(p) {
		return s
	}
	d.needGen = true
	d.genAgain = d.genAgain || d.genBusy
	d.genOwed = d.genOwed || !d.genBusy // at the next change may be never
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
			d.excludeLocked(p, "its disk is "+s.String(), b)
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
