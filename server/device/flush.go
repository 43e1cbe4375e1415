package device

import (
	"context"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/wire"
)

// flushState makes things durable. One flush is under way at a time; those
// that come meanwhile share the next. All of it is guarded by the device's
// mutex but the jobs channel.
type flushState struct {
	next []flushWaiter
	cur  []flushWaiter
	busy bool
	no   uint64
	// floor of the window when the flush began: every change up to it was
	// everywhere before, so it is durable everywhere afterwards.
	floor  uint64
	flowed uint64 // floor of the last flush that succeeded
	local  bool   // the local disk is syncing
	bad    error  // of the local disk
	wait   replication.NodeSet
	oks    int

	asked []askedFlush // by the primary, not begun yet

	jobs chan *flushJob
	job  flushJob // of the primary's own flush, reused
	// pace is how long a sync takes here, a moving average: a disk that syncs
	// in no time is synced on the spot, any other by the device's flusher.
	pace time.Duration
}

// inlineSync is how fast a sync must be to be done on the spot. A hand-off to
// another goroutine and back costs about as much.
const inlineSync = 40 * time.Microsecond

type flushWaiter struct {
	req *block.Request
	op  *op // an FUA change
}

type askedFlush struct {
	p     *peer
	s     Session
	no    uint64
	after uint64 // changes up to here must be applied first
	floor uint64
}

// flushJob is one sync of the local disk. It is a block.Deferred.
type flushJob struct {
	d       *Device
	disk    store.Disk
	ask     *askedFlush // nil: our own flush
	no      uint64
	applied uint64 // changes that had reached the disk when it was begun

	err  error // of the sync
	took time.Duration
}

func (fl *flushState) init() { fl.jobs = make(chan *flushJob, 64) }

func (fl *flushState) run(ctx context.Context, d *Device) {
	for {
		select {
		case j := <-fl.jobs:
			b := &block.Batch{}
			j.Perform()
			j.Performed(b)
			b.Finish()
		case <-ctx.Done():
			return
		}
	}
}

// TakenOver implements block.Deferred.
func (j *flushJob) TakenOver(*block.Batch) bool { return false }

// Perform implements block.Deferred.
func (j *flushJob) Perform() {
	start := time.Now()
	j.err = j.disk.Sync()
	j.took = time.Since(start)
}

// Late implements block.Deferred: the next syncs are the flusher's.
func (j *flushJob) Late() {
	d := j.d
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flush.pace = max(d.flush.pace, lateSync)
}

// lateSync is the pace of a disk whose sync has not ended yet.
const lateSync = 10 * inlineSync

// Performed implements block.Deferred.
func (j *flushJob) Performed(b *block.Batch) {
	err := j.err
	d := j.d
	d.mu.Lock()
	d.flush.pace += (j.took - d.flush.pace) / 8
	if err != nil {
		d.diskFailedLocked(j.disk, "flush", err)
	} else if j.disk == d.disk {
		d.synced = max(d.synced, j.applied)
	}
	if j.ask != nil {
		d.flush.answerAskedLocked(d, j.ask, err, b)
	} else if d.flush.busy && j.no == d.flush.no {
		d.flush.local = false
		d.flush.bad = err
		if err == nil {
			d.flush.oks++
		}
		d.flush.settleLocked(d, b)
	}
	d.mu.Unlock()
}

// startJobLocked syncs in the way that suits the disk.
func (fl *flushState) startJobLocked(j *flushJob, b *block.Batch) {
	if fl.pace < inlineSync {
		b.Defer(j)
		return
	}
	select {
	case fl.jobs <- j:
	default:
		b.Defer(j)
	}
}

// admitFlushLocked takes an application's flush.
func (d *Device) admitFlushLocked(r *block.Request, b *block.Batch) {
	if d.gate != gateOpen {
		d.turnAwayLocked(r, b)
		return
	}
	d.stats.Flushes++
	d.flush.next = append(d.flush.next, flushWaiter{req: r})
	d.flush.startLocked(d, b)
}

// behindLocked makes an FUA change durable before it is answered.
func (fl *flushState) behindLocked(d *Device, o *op, b *block.Batch) {
	fl.next = append(fl.next, flushWaiter{op: o})
	o.queued = true
	if !o.local && o.wait == 0 {
		d.landLocked(o, b)
	}
	fl.startLocked(d, b)
}

// backgroundFlushLocked bounds what an abrupt loss costs.
func (d *Device) backgroundFlushLocked(b *block.Batch) {
	if d.role == replication.Primary && !d.flush.busy && d.window.floor > d.stableSeqLocked() && d.hold == 0 {
		d.flush.beginLocked(d, b)
	}
}

func (fl *flushState) startLocked(d *Device, b *block.Batch) {
	if !fl.busy {
		fl.beginLocked(d, b)
	}
}

// beginLocked flushes the local disk and those of all that take part, at once.
func (fl *flushState) beginLocked(d *Device, b *block.Batch) {
	fl.cur, fl.next = fl.next, fl.cur[:0]
	fl.busy = true
	fl.no++
	fl.floor = d.window.floor
	fl.oks, fl.bad = 0, nil
	if fl.wait = d.receives; mutate.Is(mutate.FlushHere) {
		fl.wait = 0
	}
	for id := range fl.wait.All() {
		d.peers[id].send(wire.Header{Type: wire.FlushReq, Arg: [3]uint64{fl.no, fl.floor}}, nil, nil, b)
	}
	fl.local = d.disk != nil && d.dstat.HasData()
	if fl.local {
		fl.job = flushJob{d: d, disk: d.disk, no: fl.no, applied: d.applied}
		fl.startJobLocked(&fl.job, b)
		return
	}
	fl.settleLocked(d, b)
}

// ackedLocked takes a peer's answer to a flush. One that failed has left the
// set of those in sync by the state that it announced before it answered.
func (fl *flushState) ackedLocked(d *Device, p *peer, no uint64, ok bool, b *block.Batch) {
	if !fl.busy || no != fl.no || !fl.wait.Has(p.id) {
		return
	}
	fl.wait = fl.wait.Without(p.id)
	if ok {
		fl.oks++
		p.stable = max(p.stable, fl.floor)
	} else {
		d.missSinceLocked(p, p.stable)
	}
	fl.settleLocked(d, b)
}

// lostLocked: a peer is gone; nothing is awaited of it.
func (fl *flushState) lostLocked(d *Device, p *peer, b *block.Batch) {
	if fl.busy && fl.wait.Has(p.id) {
		fl.wait = fl.wait.Without(p.id)
		fl.settleLocked(d, b)
	}
}

// dropLocked: this node is no longer the primary. Whoever waits must come back;
// changes among them that are in the window are answered with the others there.
func (fl *flushState) dropLocked(d *Device, b *block.Batch) {
	for _, list := range [][]flushWaiter{fl.cur, fl.next} {
		for i, w := range list {
			list[i] = flushWaiter{}
			if w.req != nil {
				finish(w.req, block.ErrDropped, b)
			} else if w.op != nil && w.op.landed {
				d.dropOpLocked(w.op, b)
			}
		}
	}
	fl.cur, fl.next = fl.cur[:0], fl.next[:0]
}

// settleLocked ends the flush when all have answered and nothing is held.
func (fl *flushState) settleLocked(d *Device, b *block.Batch) {
	if !fl.busy || fl.local || fl.wait != 0 {
		return
	}
	fails := d.failsLocked()
	if len(fl.cur) > 0 && !fails && (d.hold != 0 || d.quorum.Quorate && !d.leasedLocked()) {
		return
	}
	fl.busy = false
	if fl.bad == nil {
		fl.flowed = fl.floor
	}
	d.stableLocked()
	var err error
	if fl.oks == 0 || fails && len(fl.cur) > 0 {
		err = block.ErrIO
	}
	cur := fl.cur
	for i, w := range cur {
		cur[i] = flushWaiter{}
		if w.req != nil {
			finish(w.req, err, b)
			continue
		}
		w.op.synced = true
		if err != nil {
			w.op.err, w.op.localOK, w.op.acked = err, false, false
		}
		d.answerLocked(w.op, b)
		if !w.op.local && w.op.wait == 0 {
			d.retireLocked(w.op, b)
		}
	}
	if d.frozen > 0 {
		d.touchLocked() // who freezes waits for this
	}
	if len(fl.next) > 0 && !fl.busy {
		fl.beginLocked(d, b)
	}
	if fl.bad == nil {
		d.relieveLocked(b)
	}
}

// stableLocked tells the activity log and the list of recent changes what is
// durable on all that are in sync.
func (d *Device) stableLocked() {
	if d.role != replication.Primary {
		return
	}
	stable := d.stableSeqLocked()
	d.recent.trim(stable)
	if l := d.activityLocked(); l != nil {
		epoch := d.epochLocked(stable)
		l.SetStable(epoch)
		if epoch >= d.pressed {
			d.pressed = 0
		}
	}
}

// stableSeqLocked is the last change of the primary's that is durable on all
// that are in sync, with all before it.
func (d *Device) stableSeqLocked() uint64 {
	stable := d.window.floor
	if d.disk != nil {
		stable = min(stable, d.flush.flowed)
	}
	for id := range d.receives.All() {
		stable = min(stable, d.peers[id].stable)
	}
	return stable
}

// requestedLocked takes the primary's flush on a replica. It begins when the
// changes before it were applied.
func (fl *flushState) requestedLocked(d *Device, p *peer, no, floor uint64, b *block.Batch) {
	d.floorLocked(p, floor)
	d.tagsReachedLocked(b)
	fl.asked = append(fl.asked, askedFlush{p: p, s: p.session, no: no, after: d.received, floor: floor})
	fl.appliedLocked(d, b)
}

// appliedLocked begins the flushes whose changes are all applied.
func (fl *flushState) appliedLocked(d *Device, b *block.Batch) {
	for len(fl.asked) > 0 {
		a := fl.asked[0]
		for _, o := range d.ranges.ops {
			if o.kind == peerChange && o.seq <= a.after {
				return
			}
		}
		n := copy(fl.asked, fl.asked[1:])
		fl.asked = fl.asked[:n]
		if mutate.Is(mutate.FlushUnsynced) {
			fl.answerAskedLocked(d, &a, nil, b)
			continue
		}
		if d.disk == nil {
			fl.answerAskedLocked(d, &a, block.ErrIO, b)
			continue
		}
		fl.startJobLocked(&flushJob{d: d, disk: d.disk, ask: &a, applied: d.applied}, b)
	}
}

func (fl *flushState) answerAskedLocked(d *Device, a *askedFlush, err error, b *block.Batch) {
	if err == nil && d.meta != nil && d.primary == a.p.id {
		d.meta.AL().SetStable(d.epochLocked(a.floor))
	}
	if a.p.session != a.s {
		return
	}
	h := wire.Header{Type: wire.FlushAck, Arg: [3]uint64{a.no}}
	if err != nil {
		h.Flags = wire.FlagError
	}
	a.p.send(h, nil, nil, b)
}
