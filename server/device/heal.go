package device

import (
	"errors"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
)

// A read error of the primary's disk is mended: the range is held against
// changes, read from a peer that has the data, written back to the disk, and
// only then the reader is answered. So one bad block costs one slow read and
// not the disk. A disk that cannot take the block back has failed.

// mendPiece is how much is mended at once.
const mendPiece = 64 << 10

// mending is one range on its way.
type mending struct {
	to    []byte // the part of the reader's memory
	skip  int64  // of the range, before that part
	group *group
}

// readFailedLocked is what a read error means that is not mended: under detach
// the disk has failed; under pass-on it stays, and who asked is told.
func (d *Device) readFailedLocked(disk store.Disk, err error) {
	if disk != d.disk {
		return
	}
	if !d.passesOnLocked(err) {
		d.diskFailedLocked(disk, "read", err)
		return
	}
	d.lastErr = "read: " + err.Error()
	d.eventLocked("io-error", nil, "disk failed on read, passed on: %v", err)
}

// readBadly answers a read that the disk has failed: part by part, from the
// disk or else from a peer.
func (d *Device) readBadly(r *block.Request, disk store.Disk, err error, b *block.Batch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.role != replication.Primary || disk != d.disk || errors.Is(err, errDiskTimeout) || !d.remoteDataLocked() {
		d.readFailedLocked(disk, err)
		if disk == d.disk && d.gate == gateOpen {
			finish(r, block.ErrIO, b) // there is nobody else to ask
			return
		}
		d.readLocked(r, b)
		return
	}
	d.lastErr = "read: " + err.Error()
	d.eventLocked("io-error", nil, "disk failed on read, mending it from a peer: %v", err)
	g := &group{req: r, left: int((r.Off+r.Len-1)/mendPiece - r.Off/mendPiece + 1)}
	for at := r.Off; at < r.Off+r.Len; {
		end := min((at/mendPiece+1)*mendPiece, r.Off+r.Len)
		d.mendLocked(g, block.Extent{Off: at, Len: end - at}, b)
		at = end
	}
}

func (d *Device) mendLocked(g *group, e block.Extent, b *block.Batch) {
	o := d.newOpLocked()
	o.kind, o.what = mend, block.Write
	o.ext = e.Units()
	o.data = make([]byte, o.ext.Len)
	o.mend = &mending{to: g.req.Data[e.Off-g.req.Off:][:e.Len], skip: e.Off - o.ext.Off, group: g}
	d.overtakePullsLocked(nil, o.ext)
	d.beginLocked(o, b)
}

// issueMendLocked: the range is held and logged. The disk may well read this
// part; only what it does not is asked for.
func (d *Device) issueMendLocked(o *op, b *block.Batch) {
	d.nextID++
	rr := &remoteRead{id: d.nextID, off: o.ext.Off, data: o.data, mend: o}
	d.askLocked(rr, b)
}

// mendReadLocked: a peer has, or none has, what is to be mended.
func (d *Device) mendReadLocked(o *op, err error, b *block.Batch) {
	if err != nil {
		d.mendedLocked(o, err, b)
		return
	}
	copy(o.mend.to, o.data[o.mend.skip:])
	if d.disk == nil || d.dstat != replication.UpToDate {
		d.mendedLocked(o, nil, b) // the data is good all the same
		return
	}
	o.local = true
	d.onDiskLocked(o)
	b.Defer(o)
}

// mendedLocked ends a mending; the reader is answered even where the disk did
// not take it.
func (d *Device) mendedLocked(o *op, err error, b *block.Batch) {
	g := o.mend.group
	if err != nil && g.err == nil {
		g.err = err
	}
	if g.left--; g.left == 0 && (g.err != nil || d.mayAnswerReadLocked(g.req, b)) {
		finish(g.req, g.err, b)
	}
	if o.localOK {
		d.stats.Mended++
		d.eventLocked("io-error", nil, "mended %d bytes at %d from a peer", o.ext.Len, o.ext.Off)
	}
	d.retireLocked(o, b)
}
