package device

import (
	"errors"
	"iter"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// A piece of a resync, at the target. A change of the primary's may come between the asking
// and the answer. Of what that touched the answer may be older, and is dropped: it stays
// marked, and is asked for again. Where the change is of all of a unit, that is as good as
// here as soon as the change has been made; a block that is changed more often than its
// source answers would never be in sync else.

// pull is what has happened to a piece since it was asked for. The device's mutex guards it.
type pull struct {
	overtaken units // a change came that the answer may lack
	covered   units // likewise, and it leaves nothing of what was there
	whole     *op   // of which this is a part
	parts     int   // of this one that are on their way to the disk
	taken     bool  // this one, or a part of it, is on the disk
}

// units is a set of a piece's units, by number.
type units [syncPiece / block.Unit / 64]uint64

func (u *units) add(from, to int64) {
	for i := from; i < to; i++ {
		u[i/64] |= 1 << (i % 64)
	}
}

func (u *units) join(v units) {
	for i := range u {
		u[i] |= v[i]
	}
}

func (u *units) drop(v units) {
	for i := range u {
		u[i] &^= v[i]
	}
}

func (u *units) has(i int64) bool { return u[i/64]&(1<<(i%64)) != 0 }

func (u *units) none() bool { return *u == units{} }

// touched is the units of a piece in which a change overlaps with it.
func touched(piece, e block.Extent) (u units) {
	if from, to := max(piece.Off, e.Off), min(piece.End(), e.End()); from < to {
		u.add((from-piece.Off)/block.Unit, (to-piece.Off+block.Unit-1)/block.Unit)
	}
	return u
}

// replaced is those of which a change leaves nothing.
func replaced(piece, e block.Extent) (u units) {
	from, to := max(piece.Off, e.Off), min(piece.End(), e.End())
	u.add((from-piece.Off+block.Unit-1)/block.Unit, (to-piece.Off)/block.Unit)
	return u
}

// askedLocked yields the pieces that others than a peer were asked for, with whom was.
func (d *Device) askedLocked(from *peer) iter.Seq2[*peer, *op] {
	return func(yield func(*peer, *op) bool) {
		for _, p := range d.peers {
			if p == nil || p == from || !p.sync.pulling {
				continue
			}
			for _, o := range p.sync.ops {
				if !yield(p, o) {
					return
				}
			}
		}
	}
}

// overtakePullsLocked: a change that does not come over the source's link has
// overtaken what the source may have read before it. Of pieces that have come, those
// are overtaken, too, that wait behind the change for their range.
func (d *Device) overtakePullsLocked(from *peer, e block.Extent, come bool) {
	if !d.pulls || mutate.Is(mutate.PullOvertaken) {
		return
	}
	for _, o := range d.askedLocked(from) {
		if come || !o.granted {
			o.pull.overtaken.join(touched(o.ext, e))
		}
	}
}

// coverPullsLocked: the change is going to be made here, behind those that came before it
// and before any piece that comes. From a source that is one of miss it differs by that,
// whatever both have made before.
func (d *Device) coverPullsLocked(from *peer, e block.Extent, miss replication.NodeSet) {
	if !d.pulls || mutate.Is(mutate.PullOvertaken) {
		return
	}
	for p, o := range d.askedLocked(from) {
		switch {
		case o.granted || !o.ext.Overlaps(e):
		case miss.Has(p.id):
			o.pull.covered.drop(touched(o.ext, e))
		default:
			o.pull.covered.join(replaced(o.ext, e))
		}
	}
}

// uncoverPullsLocked: a change was not made here after all.
func (d *Device) uncoverPullsLocked(e block.Extent) {
	if !d.pulls || mutate.Is(mutate.CoverFailed) {
		return
	}
	for _, o := range d.askedLocked(nil) {
		o.pull.covered.drop(touched(o.ext, e)) // and these are void, for they were overtaken
	}
}

// pendingLocked is the units of a piece to which a change of our own is about to be made:
// what a source read does not have it, and must not land behind it.
func (d *Device) pendingLocked(e block.Extent) (u units) {
	if d.role != replication.Primary {
		return u
	}
	for _, o := range d.ranges.ops {
		if o.kind == appChange && o.seq == 0 {
			u.join(touched(e, o.ext))
		}
	}
	return u
}

// syncDataLocked writes what is wanted of a piece that the source sent.
func (d *Device) syncDataLocked(p *peer, f *wire.Frame, b *block.Batch) {
	o := p.sync.ops[f.Arg[1]]
	if o == nil || o.granted {
		return
	}
	p.sync.came = time.Now()
	if bad := f.Flags&wire.FlagError != 0 || f.Flags&wire.FlagTrim == 0 && int64(len(f.Payload)) != o.ext.Len; bad || d.disk == nil {
		at := o.ext
		d.pieceOverLocked(o, b)
		if bad {
			d.log.Warn("the source could not read a piece", "peer", p.name, "at", f.Arg[0])
			d.sourceFailedLocked(p, at, b)
		}
		d.pumpLocked(p, b)
		return
	}
	void := o.pull.overtaken
	void.join(d.pendingLocked(o.ext))
	void.drop(o.pull.covered)
	if o.pull.covered.none() && void.none() {
		d.takePieceLocked(o, f, o.ext, b)
		return
	}
	d.takePartsLocked(o, f, void, b)
	d.pumpLocked(p, b)
}

// takePartsLocked takes of a piece what is not void, in parts: of each all is covered, or
// nothing.
func (d *Device) takePartsLocked(o *op, f *wire.Frame, void units, b *block.Batch) {
	covered := o.pull.covered
	o.granted = true // by its parts
	o.pull.parts = 1 // until all are under way
	for from, n := int64(0), o.ext.Len/block.Unit; from < n; {
		to := from + 1
		for to < n && covered.has(to) == covered.has(from) && void.has(to) == void.has(from) {
			to++
		}
		if !void.has(from) {
			part := d.newOpLocked()
			part.kind, part.from = syncPull, o.from
			part.ext = block.Extent{Off: o.ext.Off + from*block.Unit, Len: (to - from) * block.Unit}
			part.pull.whole = o
			if covered.has(from) {
				part.pull.covered.add(0, to-from)
				part.pull.overtaken = part.pull.covered
			}
			d.nextID++
			part.seq = d.nextID
			o.from.sync.ops[part.seq] = part
			o.pull.parts++
			d.takePieceLocked(part, f, o.ext, b)
		}
		from = to
	}
	d.partDoneLocked(o, b)
}

// takePieceLocked has a piece, or a part of one, wait for its range, with its share of what
// has come for the whole.
func (d *Device) takePieceLocked(o *op, f *wire.Frame, whole block.Extent, b *block.Batch) {
	o.what = block.Trim
	if f.Flags&wire.FlagTrim == 0 && o.pull.covered.none() {
		o.what = block.Write
		o.data, o.buf = f.Payload[o.ext.Off-whole.Off:o.ext.End()-whole.Off], f.Buf
		if o.buf != nil {
			o.buf.Retain()
		}
	}
	o.granted, o.disk = true, d.disk
	d.beginLocked(o, b)
}

// writePieceLocked: a piece has its range. The disk that it is for may have gone
// since it came, and what it waited for may have overtaken it.
func (d *Device) writePieceLocked(o *op, b *block.Batch) {
	void := o.pull.overtaken
	void.drop(o.pull.covered)
	switch {
	case d.disk == nil || o.disk != d.disk || !void.none():
		d.pieceWrittenLocked(o, errPieceVoid, b)
	case !o.pull.covered.none():
		d.pieceWrittenLocked(o, nil, b)
	default:
		d.carryOutLocked(o, b)
	}
}

var errPieceVoid = errors.New("what came since is not to be undone")

// pieceWrittenLocked: a piece is on the disk, not yet on stable storage.
func (d *Device) pieceWrittenLocked(o *op, err error, b *block.Batch) {
	p, whole := o.from, o.pull.whole
	if p.sync.ops[o.seq] == o {
		if err == nil {
			p.sync.fresh = append(p.sync.fresh, o.ext)
			p.sync.freshN += o.ext.Len
			p.sync.done += o.ext.Len
			o.pull.taken = true
		}
		if whole == nil {
			d.pieceAckLocked(o, b)
		} else {
			delete(p.sync.ops, o.seq)
			whole.pull.taken = whole.pull.taken || err == nil
		}
	}
	d.releaseLocked(o, b)
	if whole != nil {
		d.partDoneLocked(whole, b)
	}
	if p.sync.pulling && (err == nil || err == errPieceVoid) {
		d.pumpLocked(p, b)
	}
}

// partDoneLocked: one part less of a piece is on its way to the disk.
func (d *Device) partDoneLocked(o *op, b *block.Batch) {
	if o.pull.parts--; o.pull.parts == 0 {
		d.pieceOverLocked(o, b)
	}
}

// pieceOverLocked is the end of a piece that does not have its range itself.
func (d *Device) pieceOverLocked(o *op, b *block.Batch) {
	if o.from.sync.ops[o.seq] == o {
		d.pieceAckLocked(o, b)
	}
	d.freeOpLocked(o)
}

// pieceAckLocked tells the source that a piece is here, or that nothing of it is. Of what
// was dropped this disk has the mark.
func (d *Device) pieceAckLocked(o *op, b *block.Batch) {
	delete(o.from.sync.ops, o.seq)
	h := wire.Header{Type: wire.SyncAck, Arg: [3]uint64{uint64(o.ext.Off), o.seq, uint64(o.ext.Len)}}
	if !o.pull.taken {
		h.Flags = wire.FlagError
	}
	o.from.send(h, nil, nil, b)
}
