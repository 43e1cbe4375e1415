package device

import (
	"encoding/binary"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

func putLen(dst []byte, n int64) { binary.LittleEndian.PutUint64(dst, uint64(n)) }

// peerChangeLocked takes a change of the primary's on a replica.
func (d *Device) peerChangeLocked(p *peer, f *wire.Frame, b *block.Batch) {
	off, seq := int64(f.Arg[0]), f.Arg[1]
	length := int64(len(f.Payload))
	what := block.Write
	if f.Type == wire.Zero {
		if len(f.Payload) != 8 {
			return
		}
		length = int64(binary.LittleEndian.Uint64(f.Payload))
		what = block.WriteZeroes
		if f.Flags&wire.FlagTrim != 0 {
			what = block.Trim
		}
	}
	if off < 0 || length <= 0 || off > d.room || length > d.room-off || !d.followsLocked(p) {
		p.send(wire.Header{Type: wire.WriteNak, Arg: [3]uint64{seq}}, nil, nil, b)
		return
	}
	d.beyondLocked(off + length)
	o := d.newOpLocked()
	o.kind, o.what, o.from, o.session, o.seq, o.shift = peerChange, what, p, p.session, seq, d.shift
	o.ext = block.Extent{Off: off, Len: length}
	if f.Flags&wire.FlagNoHole != 0 {
		o.flags |= block.NoHole
	}
	if what == block.Write {
		o.data, o.buf = f.Payload, f.Buf
		if o.buf != nil {
			o.buf.Retain()
		}
	}
	d.verifyChangedLocked(o.ext)
	moved := seq > d.received
	d.received = max(d.received, seq)
	d.floorLocked(p, f.Arg[2])
	d.recent.add(seq, o.ext)
	// Marked when it arrives, not when it is applied: the order against
	// changes of the set of receivers is that of the link.
	o.given = d.givenLocked(seq, f.Arg[2])
	o.miss = d.missesLocked(p)
	d.missLocked(o.miss, o.ext)
	if f.Flags&wire.FlagRecvAck != 0 {
		p.send(wire.Header{Type: wire.RecvAck, Arg: [3]uint64{seq, 1}}, nil, nil, b)
	}
	if mutate.Is(mutate.AckEarly) {
		p.acks.addLocked(seq, b)
	}
	d.stats.PeerWrites++
	d.overtakePullsLocked(p, o.ext, false)
	d.coverPullsLocked(p, o.ext, o.miss)
	d.beginLocked(o, b)
	if moved {
		// Behind the change: who waits for it is to read what it wrote.
		d.tagsReachedLocked(b)
		d.verifyMovedLocked(b)
	}
}

// followsLocked reports whether changes from p are taken: it is, or is about
// to be known as, the primary, and we agreed on what our data is.
func (d *Device) followsLocked(p *peer) bool {
	return d.disk != nil && d.dstat.HasData() && d.role != replication.Primary && (p.agreed || p.hs.sent)
}

// logsLocked reports whether a primary has a disk that takes part, and so an
// activity log.
func (p *peer) logsLocked() bool { return replication.NodeSet(p.state.Receives).Has(p.id) }

// missesLocked is who, with a disk, does not receive what p sends as primary:
// p itself among them, where its own disk takes no part.
func (d *Device) missesLocked(p *peer) replication.NodeSet {
	return d.disks &^ replication.NodeSet(p.state.Receives) &^ replication.Of(d.cfg.Self)
}

// issuePeerLocked applies a primary's change here.
func (d *Device) issuePeerLocked(o *op, b *block.Batch) {
	if !d.takesLocked() {
		d.peerDoneLocked(o, block.ErrIO, b)
		return
	}
	if o.session != o.from.session {
		d.strayLocked(o)
	}
	d.lackedLocked(o)
	d.carryOutLocked(o, b)
}

// lackedLocked: a change of the primary's, which is about to be made here, is not sent to
// a source that this disk pulls from. Pieces that came before it have its marks taken off
// when they are stable, and say nothing of it: it stays marked, or is again.
func (d *Device) lackedLocked(o *op) {
	if !d.pulls || d.meta == nil {
		return
	}
	for id := range o.miss.All() {
		p := d.peers[id]
		if p == nil || !p.sync.pulling {
			continue
		}
		d.meta.Bitmap(id).Set(o.ext)
		p.sync.spoilLocked(o.ext)
	}
}

// peerDoneLocked answers a change of the primary's. On another session than the
// one that it came by its number may mean something else.
func (d *Device) peerDoneLocked(o *op, err error, b *block.Batch) {
	switch {
	case o.session != o.from.session:
	case err != nil:
		o.from.send(wire.Header{Type: wire.WriteNak, Arg: [3]uint64{o.seq}}, nil, nil, b)
	default:
		o.from.acks.addLocked(o.seq, b)
	}
	stray := o.stray
	d.retireLocked(o, b)
	d.flush.appliedLocked(d, b)
	if stray {
		d.strayLandedLocked(b)
	}
}

// strayLocked: the session by which a change came ended while the change is on
// its way to the disk. Until it has landed nothing is agreed with anybody: a
// peer that agrees counts on the disk to hold, durably, what arrived before.
func (d *Device) strayLocked(o *op) {
	if !o.stray {
		o.stray = true
		d.strays++
	}
}

// straysOfLocked looks for strays after a session's end.
func (d *Device) straysOfLocked(p *peer) {
	for _, o := range d.ranges.ops {
		if o.kind == peerChange && o.from == p && o.local {
			d.strayLocked(o)
		}
	}
}

func (d *Device) strayLandedLocked(b *block.Batch) {
	if d.strays--; d.strays == 0 {
		d.decideAllLocked(b)
	}
}

// forgetStraysLocked: they are on their way to a disk that counts no longer.
func (d *Device) forgetStraysLocked() {
	for _, o := range d.ranges.ops {
		o.stray = false
	}
	d.strays = 0
}

func (d *Device) decideAllLocked(b *block.Batch) {
	for _, p := range d.peers {
		if p != nil && p.session != nil {
			d.decideLocked(p, b)
		}
	}
}

// receiversLocked takes a peer's word on who gets its writes from here on, where it
// is the primary, and who is in sync with it.
func (d *Device) receiversLocked(p *peer, h *wire.Header, b *block.Batch) {
	p.state.Receives = uint32(h.Arg[0])
	p.state.InSync = uint32(h.Arg[1])
	p.roll = rollOf(h)
	if h.Arg[2] != 0 && h.Arg[2] != d.stream {
		d.followLocked(p, h.Arg[2])
	}
	if d.primary == p.id {
		d.roll = p.roll
	}
	d.endOverLocked()
	d.settleLocked(p, b)
	d.announceLocked(b)
	d.tagsReachedLocked(b) // it may follow nobody any more
	if p.repl == replication.PausedSyncT {
		d.chooseSourceLocked(b) // it may have met whom turnsLocked waits for
	}
}

// followLocked begins to follow a new stint of a primary.
func (d *Device) followLocked(p *peer, stream uint64) {
	if q := d.primary; q >= 0 && q != p.id && q != d.cfg.Self && d.peers[q] != nil && d.peers[q].role == replication.Primary {
		d.unconfirmedLocked() // it has not said that it is no longer primary
	}
	if stream != d.logStream {
		d.logStream = 0 // from now on this disk has what the one before has not
	}
	d.primary, d.leader = p.id, p.id
	d.stream, d.received, d.floor, d.roll = stream, 0, 0, roll{}
	clear(d.unmade)
	clear(d.given)
	d.recent.reset()
	d.newEpochLocked()
}

// newEpochLocked sets the numbering of the activity log's epochs above all
// that came before. What was logged under another primary is marked in the
// bitmaps, where it may matter; when those are on stable storage its extents
// may cool.
func (d *Device) newEpochLocked() {
	d.shift = d.epoch
	if d.stintEnds != nil {
		d.stintEnds() // what clients of the stint before wait with is over
	}
	old := d.epoch
	if d.account != nil {
		d.account.SetStable(old)
	}
	if d.meta != nil {
		d.noteMarksLocked(func(*block.Batch) { d.meta.AL().SetStable(old) })
	}
}

// epochLocked is a change's place in the order of the activity log. What is
// declared stable counts too, logged here or not: the next numbering begins
// above it.
func (d *Device) epochLocked(seq uint64) uint64 {
	d.epoch = max(d.epoch, d.shift+seq)
	return d.shift + seq
}

// epochOfLocked is the place of a change that ends. One of a stint that is over
// belongs to what came before the present one: by its number alone it would be
// ahead of that for a long time, and so would its extent be kept.
func (d *Device) epochOfLocked(o *op) uint64 {
	if o.shift != d.shift {
		return d.shift
	}
	return d.epochLocked(o.seq)
}

// settleLocked uses that being in sync is an equivalence: what is in sync with
// p, with which we are in sync, is in sync with us, so marks against it are
// void. Only the primary's word counts, because only it orders the word
// against writes.
func (d *Device) settleLocked(p *peer, b *block.Batch) {
	in := replication.NodeSet(p.state.InSync)
	if d.meta == nil || d.dstat != replication.UpToDate || !in.Has(d.cfg.Self) || !p.agreed || p.repl != replication.Established {
		return
	}
	if d.primary != p.id {
		return
	}
	changed := false
	for id := range in.All() {
		q := d.peers[id]
		if q == nil || q == p || q.diskless {
			continue
		}
		if marked := d.meta.Bitmap(id).Count() > 0; !marked && (q.inSync || d.gens.Bitmap[id] == replication.NoGen && !q.agreed) {
			continue
		}
		d.meta.Bitmap(id).ClearAll()
		d.remarkLocked(q)
		d.gens = d.gens.FinishSync(id)
		if q.agreed && q.repl != replication.SyncTarget {
			d.syncPartLocked(q)
			q.inSync = true
			d.setReplLocked(q, replication.Established)
		}
		changed = true
	}
	if changed {
		d.touchLocked() // who waits for everything to be in sync looks at the marks, too
		d.saveGensLater()
		d.evaluateLocked(b)
	}
}
