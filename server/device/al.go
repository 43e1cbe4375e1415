package device

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
)

// alQueue holds changes whose extents are not hot. One goroutine makes many
// hot with one transaction and then lets the changes go on.
type alQueue struct {
	mu   sync.Mutex
	ops  []*op
	wake chan struct{}
}

func (q *alQueue) init() { q.wake = make(chan struct{}, 1) }

func (q *alQueue) put(o *op) {
	q.mu.Lock()
	q.ops = append(q.ops, o)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *alQueue) take() []*op {
	q.mu.Lock()
	defer q.mu.Unlock()
	ops := q.ops
	q.ops = nil
	return ops
}

func (q *alQueue) run(ctx context.Context, d *Device) {
	for {
		if ops := q.take(); len(ops) > 0 {
			for len(ops) > 0 {
				n := min(len(ops), alBatch)
				d.activate(ctx, ops[:n])
				ops = ops[n:]
			}
			continue
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
	}
}

// activityLocked is the activity log that changes are noted in: that of the
// metadata or, on a primary without a disk, an account of it in memory.
func (d *Device) activityLocked() *store.ActivityLog {
	account := d.role == replication.Primary && !mutate.Is(mutate.NoAccount)
	switch {
	case account && d.account != nil:
		return d.account // even while the metadata of a disk that is given up are still there
	case d.meta != nil:
		return d.meta.AL()
	case !account:
		return nil
	}
	d.openAccountLocked(nil)
	return d.account
}

// openAccountLocked begins an account with what is hot in the log that was kept
// so far: that is so at the replicas, too.
func (d *Device) openAccountLocked(hot []block.Extent) {
	d.account = store.NewAccount(store.MetaOptions{Extents: d.opts.LogExtents, ExtentBytes: d.opts.LogExtentBytes, Pressure: d.Pressure})
	for _, e := range hot {
		if err := d.account.Activate(d.ctx, []block.Extent{e}); err == nil {
			d.account.End(e, d.epochLocked(d.window.head))
		}
	}
}

// alBatch is how many changes share a transaction at most.
const alBatch = 64

// activate makes the extents of ops hot and lets the ops go on.
func (d *Device) activate(ctx context.Context, ops []*op) {
	b := &block.Batch{}
	d.mu.Lock()
	ops = slices.DeleteFunc(ops, func(o *op) bool {
		over := o.kind == appChange && d.role != replication.Primary
		if over {
			d.issueLocked(o, b) // which drops it: it is to keep no room from the others
		}
		return over
	})
	meta, log := d.meta, d.activityLocked()
	stint, cancel := context.WithCancel(ctx)
	d.stintEnds = cancel
	d.mu.Unlock()
	b.Finish()
	var err error
	if log != nil && len(ops) > 0 {
		es := make([]block.Extent, len(ops))
		for i, o := range ops {
			es[i] = o.ext
		}
		err = log.Activate(stint, es)
	}
	cancel()
	if err != nil && ctx.Err() == nil && errors.Is(err, context.Canceled) {
		d.activate(ctx, ops)
		return
	}
	if errors.Is(err, store.ErrTooManyExtents) && len(ops) > 1 {
		d.activate(ctx, ops[:len(ops)/2])
		d.activate(ctx, ops[len(ops)/2:])
		return
	}
	if ctx.Err() != nil {
		return // the device is closing; what was not let in never happened
	}
	b = &block.Batch{}
	d.mu.Lock()
	if err != nil && meta != nil && d.activityLocked() == log {
		d.metaFailedLocked(meta, "activity log", err)
	}
	if err != nil && d.activityLocked() != log {
		// The disk went with its log: the changes are to be in what is kept now, or
		// more would be in flight than the replicas' logs have room for.
		d.mu.Unlock()
		b.Finish()
		d.activate(ctx, ops)
		return
	}
	for _, o := range ops {
		if err == nil {
			o.log = log
		}
		d.issueLocked(o, b)
	}
	d.mu.Unlock()
	b.Finish()
}

// Pressure is called by the activity log when it is full of extents that are
// not stable yet: those of epoch at the latest.
func (d *Device) Pressure(epoch uint64) {
	d.work.do(func() {
		b := &block.Batch{}
		d.mu.Lock()
		d.pressed = max(d.pressed, epoch)
		disk, meta, floor := d.disk, d.meta, d.epochLocked(d.floor)
		primary := d.role == replication.Primary
		d.relieveLocked(b)
		d.mu.Unlock()
		b.Finish()
		if !primary && disk != nil && meta != nil && disk.Sync() == nil {
			meta.AL().SetStable(floor)
		}
	})
}

// relieveLocked has the primary flush again and again while the activity log
// waits: one flush makes durable only what was everywhere when it began.
func (d *Device) relieveLocked(b *block.Batch) {
	if d.pressed == 0 || mutate.Is(mutate.FlushHere) { // that would never see an end of it
		return
	}
	d.stableLocked() // those that stood in the way may be gone, and with them what a flush would do
	d.backgroundFlushLocked(b)
}
