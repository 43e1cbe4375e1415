package device

import (
	"context"
	"errors"
	"fmt"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
)

// A device ends in three steps. While it is closing it lets nothing new in, and
// what is under way ends as far as it can. When it is stopped nothing begins any
// more: not what gets its range, nor what a frame brings; what is being carried
// out on the disk ends. What is left then is given back: requests are dropped, and
// memory goes back to the links that lent it. So each op is carried out, or given
// back, once.

// Close stops the device in an orderly way: what is in flight is finished as
// far as it can be within ctx, the disks are flushed, the metadata is marked
// clean, and peers are told. Requests that cannot be finished are dropped, not
// failed.
func (d *Device) Close(ctx context.Context) error {
	d.mu.Lock()
	d.closing = true
	d.gateLocked()
	d.touchLocked() // an administrator's change under way gives up
	d.mu.Unlock()
	_ = d.wait(ctx, func() bool { return d.admin == "" }) // lest a disk is put in place that nobody closes
	err := d.quiesce(ctx)
	d.mu.Lock()
	clean := len(d.ranges.ops) == 0 && err == nil
	if errors.Is(err, errHeld) {
		d.log.Info("closed without quorum: what was being written will be compared with the peers", "device", d.opts.Name)
		err = nil
	}
	d.tellClosedLocked("shut down")
	d.stopLocked()
	att := d.att
	if att != nil {
		att.partLocked()
	}
	d.mu.Unlock()
	d.endWorkers()
	if att != nil {
		<-att.idle
	}
	d.giveBack()
	return errors.Join(err, d.closeStore(clean))
}

// Abandon stops the device as a crash would: nothing is finished, flushed or
// told. It is for tests of crashes, and for a daemon that must end at once.
func (d *Device) Abandon() {
	d.mu.Lock()
	d.closing = true
	d.stopLocked()
	meta := d.meta
	d.mu.Unlock()
	d.endWorkers()
	if meta != nil {
		_ = meta.Abandon()
	}
}

// stopLocked: nothing begins any more.
func (d *Device) stopLocked() {
	d.stopped = true
	d.gate = gateShut
	d.setReadableLocked(false)
}

// endWorkers ends what Start started, and waits for it.
func (d *Device) endWorkers() {
	if d.cancel == nil {
		return
	}
	d.cancel()
	d.work.close()
	d.bulk.close()
	d.done.Wait()
}

// giveBack ends what was not finished, of which nothing is under way any more.
func (d *Device) giveBack() {
	b := &block.Batch{}
	d.mu.Lock()
	d.dropParkedLocked(b)
	d.flush.dropLocked(d, b)
	d.held, d.stranded = nil, nil
	for _, h := range append([]*healing(nil), d.heals.list...) {
		d.unaskLocked(h)
		d.healedLocked(h, errHealVoid, false, b)
	}
	for _, rr := range d.remote {
		if rr.req != nil {
			d.readDoneLocked(rr, block.ErrDropped, b)
		}
	}
	clear(d.remote)
	for _, o := range d.bulk.ops {
		if o.kind == readHere {
			finish(o.req, block.ErrDropped, b)
		}
	}
	d.bulk.ops = nil
	for _, o := range d.ranges.ops {
		d.giveBackLocked(o, b)
	}
	d.ranges.ext, d.ranges.ops = nil, nil
	d.ranges.changes.Store(0)
	d.mu.Unlock()
	b.Finish()
}

// giveBackLocked drops the request of an op, and lets go of its memory.
func (d *Device) giveBackLocked(o *op, b *block.Batch) {
	switch {
	case o.kind == appChange && !o.answered:
		o.err = block.ErrDropped
		d.answerLocked(o, b)
	case o.kind == readAfter:
		finish(o.req, block.ErrDropped, b)
	}
	if o.buf != nil {
		o.buf.Release()
		o.buf = nil
	}
}

func (d *Device) closeStore(clean bool) error {
	d.mu.Lock()
	disk, meta, dropped := d.disk, d.meta, d.dropped
	d.disk, d.meta, d.dropped = nil, nil, nil
	d.mu.Unlock()
	switch {
	case meta == nil:
		return nil
	case disk == nil: // it failed a moment ago, and nobody has put it away
		return dropped.abandon()
	}
	var errs []error
	if err := disk.Sync(); err != nil {
		errs = append(errs, err)
		clean = false
	}
	if clean {
		errs = append(errs, meta.Close())
	} else {
		errs = append(errs, meta.Abandon())
	}
	errs = append(errs, disk.Close())
	return errors.Join(errs...)
}

// errHeld: a primary without quorum, or with a lost peer that is not fenced, can finish
// nothing, and waits in vain.
var errHeld = errors.New("without quorum, or with a lost peer that is not fenced, nothing can be finished")

// quiesce waits until no change is in flight here and makes what was done
// durable everywhere in reach.
func (d *Device) quiesce(ctx context.Context) error {
	for {
		d.mu.Lock()
		idle := len(d.ranges.ops) == 0
		primary := d.role == replication.Primary
		held := primary && d.hold&(holdCopies|holdFence) != 0
		w := d.watch
		d.mu.Unlock()
		if held {
			return errHeld
		}
		if idle && primary {
			return d.demoteAlone(ctx)
		}
		if idle {
			return nil
		}
		select {
		case <-w:
		case <-ctx.Done():
			return fmt.Errorf("device %s: stopped with changes in flight: %w", d.opts.Name, context.Cause(ctx))
		}
	}
}
