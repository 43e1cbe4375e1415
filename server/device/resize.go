package device

import (
	"context"
	"fmt"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/wire"
)

// A device grows on every node, or on none. First every node makes room: its
// disk and its metadata cover the new size from then on, and the new space is
// zero. Only when all have, the size is raised, and clients may use it. A node
// that did not hear of that learns it from those that did, from the next handshake,
// or from a change in the new space: whoever has the room takes over the larger
// size. The configuration gives the size that the device began with, or was told since;
// the metadata remembers what it grew to.

// Resize makes the device larger.
func (d *Device) Resize(ctx context.Context, size int64) error {
	const what = "resize"
	if err := d.begin(what); err != nil {
		return err
	}
	defer d.end()
	d.mu.Lock()
	all, err := d.mayResizeLocked(size)
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if err := d.makeRoom(size); err != nil {
		return d.refuse(what, "this node has no room: "+err.Error(), "", false)
	}
	commit, err := d.plan(ctx, wire.Change{Kind: wire.ChangeResize, Arg: uint64(size)}, all)
	if err != nil {
		return err
	}
	d.mu.Lock()
	d.setSizeLocked(size)
	d.mu.Unlock()
	err = d.save() // before anybody counts on it
	commit(true)
	return err
}

// mayResizeLocked is who has to make room besides this node.
func (d *Device) mayResizeLocked(size int64) (all replication.NodeSet, err error) {
	const what = "resize"
	switch {
	case size < d.cfg.Size:
		return 0, d.refuse(what, fmt.Sprintf("it has %d bytes, and making it smaller would cut data off", d.cfg.Size), "make a smaller device and copy", false)
	case size == d.cfg.Size:
		return 0, d.refuse(what, "it has that size already", "", false)
	case size%block.Unit != 0 || size > store.MaxSize:
		return 0, d.refuse(what, fmt.Sprintf("%d bytes are no multiple of %d, or more than %d", size, block.Unit, int64(store.MaxSize)), "", false)
	case !d.disks.Has(d.cfg.Self):
		return 0, d.refuse(what, "this node has no disk of it, and nothing to note the new size on", "run it on a node that has one", false)
	case d.dstat != replication.UpToDate:
		return 0, d.refuse(what, fmt.Sprintf("this node's disk is %v", d.dstat), "wait until it is in sync, or attach it", true)
	}
	for _, p := range d.peers {
		switch {
		case p == nil:
		case !p.agreed:
			return 0, d.refuse(what, p.name+" is not in reach, and every node has to make room", "see: lockstepctl node why "+p.name, true)
		case !p.diskless && p.disk != replication.UpToDate:
			return 0, d.refuse(what, fmt.Sprintf("the disk of %s is %v", p.name, p.disk), "wait until it is in sync: lockstepctl device wait "+d.opts.Name, true)
		default:
			all = all.With(p.id)
		}
	}
	return all, nil
}

// makeRoom makes disk and metadata cover size bytes, of which the new ones are
// zero. What there is room for already stays as it is: the device may have grown
// to it elsewhere, and its changes come before the word that it has.
func (d *Device) makeRoom(size int64) error {
	d.rooms <- struct{}{}
	defer func() { <-d.rooms }()
	d.mu.Lock()
	disk, meta, old := d.disk, d.meta, d.room
	d.mu.Unlock()
	if disk == nil || meta == nil {
		if d.source != nil {
			return fmt.Errorf("its disk is detached")
		}
		return nil
	}
	if size <= old {
		return nil
	}
	if err := extend(disk, meta, old, size); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.meta != meta {
		return fmt.Errorf("its disk was detached")
	}
	d.room = size
	return nil
}

// extend makes a disk and its metadata cover size bytes, instead of old.
func extend(disk store.Disk, meta *store.Meta, old, size int64) error {
	if err := resizeDisk(disk, size); err != nil {
		return err
	}
	const piece = 1 << 30
	for at := old; at < size; at += piece {
		if err := disk.Zero(at, min(piece, size-at), 0); err != nil {
			return err
		}
	}
	if err := disk.Sync(); err != nil {
		return err
	}
	return meta.Resize(size)
}

// setSizeLocked raises the size. Every node has room for it.
func (d *Device) setSizeLocked(size int64) {
	if size <= d.cfg.Size {
		return
	}
	d.eventLocked("device", nil, "the device grew from %s to %s", block.Amount(d.cfg.Size), block.Amount(size))
	d.cfg.Size = size
	d.size.Store(size)
	d.saveLocked(nil)
	d.touchLocked()
}

// learnSizeLocked takes over the size that a peer's device has grown to, where
// there is room for it.
func (d *Device) learnSizeLocked(size int64) {
	if size > d.cfg.Size && size%block.Unit == 0 && (d.source == nil && d.disk == nil || d.disk != nil && size <= d.room) {
		d.setSizeLocked(size)
	}
}

// fitLocked has this disk get room for what a peer has, and tell so. It was not asked
// when the device grew: it is new, and no configuration gives the new size yet, or it
// had been taken out of the device then. One with content of its own is not written to.
func (d *Device) fitLocked(p *peer, f *wire.DeviceFacts, theirs *replication.Facts) {
	if d.disk == nil || d.fitting || f.Size <= d.room || f.Size%block.Unit != 0 || f.Size > store.MaxSize || f.Config != d.cfg.Fingerprint {
		return
	}
	if mine := d.factsLocked(p); d.gens.Current == replication.NoGen || mine.Foreign(theirs) {
		return
	}
	d.fitting = true
	d.done.Go(func() {
		err := d.makeRoom(f.Size)
		b := &block.Batch{}
		d.mu.Lock()
		d.fitting = false
		if err != nil {
			d.lastErr = fmt.Sprintf("no room for the %s that the device has grown to: %v", block.Amount(f.Size), err)
			d.eventLocked("device", p, "%s", d.lastErr)
		} else if !d.closing {
			d.learnSizeLocked(f.Size)
			d.refreshLocked(b)
		}
		d.mu.Unlock()
		b.Finish()
	})
}

// beyondLocked: the primary has a change in what this node has made room for.
// The device has grown to it.
func (d *Device) beyondLocked(end int64) {
	if c := d.planned.change; end > d.cfg.Size && c.Kind == wire.ChangeResize && end <= int64(c.Arg) {
		d.learnSizeLocked(int64(c.Arg))
	}
}

// resizePlanned answers a peer that asks for room.
func (d *Device) resizePlanned(p *peer, s Session, c wire.Change) {
	err := d.makeRoom(int64(c.Arg))
	b := &block.Batch{}
	d.mu.Lock()
	c.Yes = err == nil
	if err != nil {
		c.Reason = d.nodeName(d.cfg.Self) + " has no room: " + err.Error()
		if d.planned.promised == c.Tx {
			d.planned.promised = 0
		}
	}
	if p.session == s {
		p.send(wire.Header{Type: wire.Vote}, c.Append(nil), nil, b)
	}
	d.mu.Unlock()
	b.Finish()
}
