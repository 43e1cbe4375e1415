package device

import (
	"context"
	"errors"
	"sync"

	"github.com/lockstepd/lockstep/server/block"
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

// alBatch is how many changes share a transaction at most.
const alBatch = 64

// activate makes the extents of ops hot and lets the ops go on.
func (d *Device) activate(ctx context.Context, ops []*op) {
	d.mu.Lock()
	meta := d.meta
	d.mu.Unlock()
	var err error
	if meta != nil {
		es := make([]block.Extent, len(ops))
		for i, o := range ops {
			es[i] = o.ext
		}
		err = meta.AL().Activate(ctx, es)
	}
	if errors.Is(err, store.ErrTooManyExtents) && len(ops) > 1 {
		d.activate(ctx, ops[:len(ops)/2])
		d.activate(ctx, ops[len(ops)/2:])
		return
	}
	if ctx.Err() != nil {
		return // the device is closing; what was not let in never happened
	}
	b := &block.Batch{}
	d.mu.Lock()
	if err != nil {
		d.metaFailedLocked(meta, "activity log", err)
	}
	for _, o := range ops {
		if meta != nil && err == nil {
			o.log = meta.AL()
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
	if d.pressed != 0 {
		d.backgroundFlushLocked(b)
	}
}
