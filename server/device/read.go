package device

import (
	"context"
	"sync"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/wire"
)

// remoteRead is a read, or a part of one, that a peer answers.
type remoteRead struct {
	id    uint64
	req   *block.Request
	group *group
	off   int64
	data  []byte
	from  *peer
	mend  *op      // for which it is, in place of req:
	relay *op      // a peer's
	heal  *healing // this replica's
	tried replication.NodeSet
	lost  bool // one of those is gone without an answer
}

// read answers from the local disk where it holds the current data, else from
// a peer's.
func (d *Device) read(r *block.Request, b *block.Batch) {
	if ref := d.readable.Load(); ref != nil {
		if _, err := ref.disk.ReadAt(r.Data, r.Off); err == nil {
			d.reads.Add(1)
			d.readBytes.Add(uint64(r.Len))
			if d.mayAnswerRead(r, b) {
				finish(r, nil, b)
			}
			return
		} else {
			d.readBadly(r, ref.disk, err, b)
			return
		}
	}
	d.mu.Lock()
	d.readLocked(r, b)
	d.mu.Unlock()
}

// readLocked serves a read that the fast path could not.
func (d *Device) readLocked(r *block.Request, b *block.Batch) {
	switch {
	case d.gate == gateSuspend:
		d.parked = append(d.parked, r)
	case d.gate == gateFail:
		finish(r, block.ErrIO, b)
	case d.role != replication.Primary || d.closing:
		finish(r, block.ErrDropped, b)
	case d.readable.Load() != nil:
		d.bulk.put(&op{d: d, kind: readHere, what: block.Read, req: r, disk: d.disk})
	default:
		d.readRemotelyLocked(r, b)
	}
}

func (d *Device) readRemotelyLocked(r *block.Request, b *block.Batch) {
	if r.Len == 0 {
		finish(r, nil, b)
		return
	}
	g := &group{req: r, left: int((r.Len + wire.MaxPayload - 1) / wire.MaxPayload)}
	for at := int64(0); at < r.Len; at += wire.MaxPayload {
		n := min(wire.MaxPayload, r.Len-at)
		d.nextID++
		rr := &remoteRead{id: d.nextID, req: r, group: g, off: r.Off + at, data: r.Data[at : at+n]}
		d.askLocked(rr, b)
	}
}

// servesLocked reports whether a peer holds what the application would read.
// That a peer takes its own disk for current is not enough for a primary: it
// must have had every change.
func (d *Device) servesLocked(p *peer) bool {
	if !p.agreed || p.disk != replication.UpToDate {
		return false
	}
	return d.role != replication.Primary || d.receives.Has(p.id) && (p.repl == replication.Established || p.repl == replication.SyncTarget)
}

// askLocked sends a read to the next peer that has the data.
func (d *Device) askLocked(rr *remoteRead, b *block.Batch) {
	for id, p := range d.peers {
		if p == nil || !d.servesLocked(p) || rr.tried.Has(id) {
			continue
		}
		rr.from = p
		rr.tried = rr.tried.With(id)
		d.remote[rr.id] = rr
		d.stats.RemoteReads++
		p.send(wire.Header{Type: wire.ReadReq, Arg: [3]uint64{uint64(rr.off), rr.id, uint64(len(rr.data))}}, nil, nil, b)
		return
	}
	d.readDoneLocked(rr, block.ErrIO, b)
}

func (d *Device) readDoneLocked(rr *remoteRead, err error, b *block.Batch) {
	if err != nil && d.closing {
		err = block.ErrDropped // not that there is no copy: nobody is to be asked any more
	}
	switch {
	case rr.mend != nil:
		if err != nil {
			err = errHopeless
			if rr.lost {
				err = errNoCopy // now
			}
		}
		d.mendReadLocked(rr.mend, err, b)
		return
	case rr.relay != nil:
		d.relayedLocked(rr.relay, err, b)
		return
	}
	g := rr.group
	switch {
	case err == nil:
	case !d.closing && (rr.lost || d.gate == gateSuspend):
		g.again = true // that nobody can be asked is what requests wait for, or fail for, as one
	case g.err == nil:
		g.err = err
	}
	if g.left--; g.left == 0 {
		d.readEndsLocked(g, b)
	}
}

// readEndsLocked: all parts of a client's read have been dealt with.
func (d *Device) readEndsLocked(g *group, b *block.Batch) {
	switch {
	case g.err != nil:
		finish(g.req, g.err, b)
	case g.again:
		d.parked = append(d.parked, g.req)
		d.reconsider()
	case d.mayAnswerReadLocked(g.req, b):
		finish(g.req, nil, b)
	}
}

// readsLostLocked asks others for what a lost peer was to answer.
func (d *Device) readsLostLocked(p *peer, b *block.Batch) {
	for id, rr := range d.remote {
		if rr.from == p && rr.heal == nil {
			delete(d.remote, id)
			rr.lost = true
			d.askLocked(rr, b)
		}
	}
	d.healsPartLocked(p, b)
}

func (d *Device) readRepliedLocked(p *peer, f *wire.Frame, b *block.Batch) {
	rr := d.remote[f.Arg[1]]
	if rr == nil || rr.from != p {
		return
	}
	delete(d.remote, rr.id)
	ok := f.Flags&wire.FlagError == 0 && len(f.Payload) == len(rr.data)
	if ok {
		copy(rr.data, f.Payload)
	}
	switch {
	case rr.heal != nil:
		d.healReadLocked(rr.heal, ok, b)
		return
	case !ok:
		d.askLocked(rr, b)
		return
	}
	d.readDoneLocked(rr, nil, b)
}

// readRequestedLocked queues a peer's read: it may have to wait for the disk,
// which the link's reader must not, and for the changes that came before it.
func (d *Device) readRequestedLocked(p *peer, f *wire.Frame, b *block.Batch) {
	off, length := int64(f.Arg[0]), int64(f.Arg[2])
	o := d.newOpLocked()
	o.kind, o.what, o.from, o.session, o.seq, o.disk = readThere, block.Read, p, p.session, f.Arg[1], d.disk
	o.ext = block.Extent{Off: off, Len: length}
	heals := f.Flags&wire.FlagSync != 0
	o.granted = heals
	switch {
	case off < 0 || length <= 0 || length > wire.MaxPayload || off > d.cfg.Size-length:
	case d.relaysLocked(o.ext):
		o.kind = readRelayed
		d.relays++
		d.beginLocked(o, b)
		return
	case d.disk != nil && (d.dstat == replication.UpToDate || heals && d.wholesomeLocked()):
		d.beginLocked(o, b)
		return
	}
	d.unansweredLocked(o, false, b)
	d.freeOpLocked(o)
}

// bulkQueue is the work that reads much from the local disk for others: peers'
// reads and resync. It has its own goroutines so that links are not held up.
type bulkQueue struct {
	mu     sync.Mutex
	cond   *sync.Cond
	ops    []*op
	closed bool
}

// bulkWorkers is how many such reads go on at once.
const bulkWorkers = 2

func (q *bulkQueue) init() { q.cond = sync.NewCond(&q.mu) }

func (q *bulkQueue) put(o *op) {
	q.mu.Lock()
	q.ops = append(q.ops, o)
	q.mu.Unlock()
	q.cond.Signal()
}

func (q *bulkQueue) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.cond.Broadcast()
}

func (q *bulkQueue) get() *op {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.ops) == 0 && !q.closed {
		q.cond.Wait()
	}
	if q.closed {
		return nil
	}
	o := q.ops[0]
	q.ops[0] = nil
	q.ops = q.ops[1:]
	return o
}

func (q *bulkQueue) run(_ context.Context, d *Device) {
	var wg sync.WaitGroup
	for range bulkWorkers {
		wg.Go(func() {
			for o := q.get(); o != nil; o = q.get() {
				b := &block.Batch{}
				d.bulkRead(o, b)
				b.Finish()
			}
		})
	}
	wg.Wait()
}

// bulkRead serves one op of the queue.
func (d *Device) bulkRead(o *op, b *block.Batch) {
	switch o.kind {
	case syncRead:
		d.syncRead(o, b)
	case readHere:
		d.localRead(o, b)
	case verifyHere, verifyThere:
		d.verifyRead(o, b)
	default:
		d.peerRead(o, b)
	}
}

// localRead serves a read that was parked.
func (d *Device) localRead(o *op, b *block.Batch) {
	_, err := o.disk.ReadAt(o.req.Data, o.req.Off)
	if err == nil {
		if d.mayAnswerRead(o.req, b) {
			finish(o.req, nil, b)
		}
		return
	}
	d.readBadly(o.req, o.disk, err, b)
}

// peerRead answers a peer's read.
func (d *Device) peerRead(o *op, b *block.Batch) {
	buf := d.buffers.Get()
	defer buf.Release()
	data := buf.B[:o.ext.Len]
	bad, err := d.readFor(o, data)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case err != nil:
		d.unreadLocked(o, bad, err, b)
		return
	case o.disk == d.disk && d.givesLocked(o): // a disk that failed since may lack what was answered
		o.from.send(wire.Header{Type: wire.ReadReply, Arg: [3]uint64{uint64(o.ext.Off), o.seq, uint64(o.ext.Len)}}, data, buf, b)
	default:
		d.unansweredLocked(o, false, b)
	}
	d.releaseLocked(o, b)
}

// Extents tells which parts of a range hold data, for consumers that copy. A
// disk that does not hold the current data says nothing about holes.
func (d *Device) Extents(off, length int64, most int) ([]store.DataExtent, error) {
	ref := d.readable.Load()
	if ref == nil {
		return []store.DataExtent{{Extent: block.Extent{Off: off, Len: length}}}, nil
	}
	return ref.disk.Extents(off, length, most)
}
