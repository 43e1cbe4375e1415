package device

import (
	"errors"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/wire"
)

// Who came upon a bad block waits for it to be healed, or does not: a client's
// read is answered with the peer's data; a resync's, a verify's and a peer's
// that asks the primary are made again, with the range let go meanwhile; a
// read that a replica serves is refused, since the primary asks another, and
// healed on the side.

// readBadly answers a read that the disk has failed.
func (d *Device) readBadly(r *block.Request, disk store.Disk, err error, b *block.Batch) {
	bad, again := probe(disk, r.Data, r.Off)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.stats.ReadErrors++
	if again == nil {
		d.healEventLocked("disk failed on read of %d bytes at %d, and not the second time: %v", r.Len, r.Off, err)
		if d.mayAnswerReadLocked(r, b) {
			finish(r, nil, b)
		}
		return
	}
	if d.role != replication.Primary || !d.mayHealLocked(disk, bad, again) || !d.remoteDataLocked() {
		d.unhealedLocked(r, disk, again, b)
		return
	}
	d.foundBadLocked(bad, again)
	g := &group{req: r, left: len(bad)}
	for _, e := range bad {
		d.healLocked(disk, e, &healWait{to: r.Data[e.Off-r.Off:][:e.Len], done: func(err error, _ bool, b *block.Batch) {
			d.healReaderLocked(g, err, b)
		}}, b)
	}
}

// unhealedLocked answers a read whose range is not healed.
func (d *Device) unhealedLocked(r *block.Request, disk store.Disk, err error, b *block.Batch) {
	d.readFailedLocked(disk, err)
	switch {
	case disk != d.disk || d.gate != gateOpen:
		d.readLocked(r, b)
	case d.remoteDataLocked():
		d.readRemotelyLocked(r, b)
	default:
		finish(r, block.ErrIO, b) // there is nobody else to ask
	}
}

// healReaderLocked: a part of a client's read has come.
func (d *Device) healReaderLocked(g *group, err error, b *block.Batch) {
	switch {
	case err == nil:
	case d.role != replication.Primary || d.closing:
		g.err = block.ErrDropped
	case errors.Is(err, errNoCopy) || errors.Is(err, errHealVoid) || d.gate == gateSuspend:
		g.again = true // the peer that was asked is lost, or the disk
	case g.err == nil:
		g.err = block.ErrIO
	}
	if g.left--; g.left == 0 {
		d.readEndsLocked(g, b)
	}
}

// readFor reads what an op is to read. bad is what the disk cannot.
func (d *Device) readFor(o *op, data []byte) (bad []block.Extent, err error) {
	_, first := o.disk.ReadAt(data, o.ext.Off)
	if first == nil {
		return nil, nil
	}
	bad, err = probe(o.disk, data, o.ext.Off)
	d.mu.Lock()
	d.stats.ReadErrors++
	if err == nil {
		d.healEventLocked("disk failed on read of %d bytes at %d, and not the second time: %v", o.ext.Len, o.ext.Off, first)
	}
	d.mu.Unlock()
	return bad, err
}

// unreadLocked goes on with an op of the bulk queue, which holds its range, after
// the disk has failed it.
func (d *Device) unreadLocked(o *op, bad []block.Extent, err error, b *block.Batch) {
	if o.tries > 0 || !d.mayHealLocked(o.disk, bad, err) {
		if o.disk == d.disk && o.tries > 0 && len(bad) > 0 {
			d.healEventLocked("disk does not keep what was written to %d bytes at %d", total(bad), bad[0].Off)
		}
		d.readFailedLocked(o.disk, err)
		d.unansweredLocked(o, false, b)
		d.releaseLocked(o, b)
		return
	}
	d.foundBadLocked(bad, err)
	if o.kind == readThere && d.role != replication.Primary {
		d.unansweredLocked(o, false, b)
		disk := o.disk
		d.releaseLocked(o, b)
		for _, e := range bad {
			d.healLocked(disk, e, nil, b)
		}
		return
	}
	again := d.newOpLocked()
	again.kind, again.what, again.from, again.seq, again.tag = o.kind, o.what, o.from, o.seq, o.tag
	again.ext, again.disk, again.session, again.era, again.tries = o.ext, o.disk, o.session, o.era, o.tries+1
	d.releaseLocked(o, b)
	left, ok := len(bad), true
	for _, e := range bad {
		d.healLocked(again.disk, e, &healWait{done: func(_ error, written bool, b *block.Batch) {
			ok = ok && written
			if left--; left == 0 {
				d.rereadLocked(again, ok, b)
			}
		}}, b)
	}
}

// rereadLocked: what an op could not read is healed, or is not.
func (d *Device) rereadLocked(o *op, ok bool, b *block.Batch) {
	switch {
	case !ok || o.disk != d.disk || o.kind == verifyThere:
	case o.kind == syncRead:
		d.beginReadLocked(o, b)
		return
	default:
		d.beginLocked(o, b)
		return
	}
	d.unansweredLocked(o, ok && o.disk == d.disk, b)
	d.freeOpLocked(o)
}

// unansweredLocked tells a peer that what it asked for cannot be read. healed:
// it could be by now, but no longer in the peer's order of things.
func (d *Device) unansweredLocked(o *op, healed bool, b *block.Batch) {
	if o.from.session != o.session || o.session == nil {
		return
	}
	h := wire.Header{Flags: wire.FlagError, Arg: [3]uint64{uint64(o.ext.Off), o.seq, uint64(o.ext.Len)}}
	switch o.kind {
	case readThere, readRelayed:
		h.Type = wire.ReadReply
	case syncRead:
		h.Type = wire.SyncData
	case verifyHere:
		d.verifySentLocked(o, nil, b)
		return
	case verifyThere:
		h.Type = wire.VerifyReply
		if healed {
			h.Flags |= wire.FlagAgain
		}
	}
	o.from.send(h, nil, nil, b)
}
