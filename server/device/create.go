package device

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/wire"
)

// Create says what a disk is worth that was there before the device: with
// existing, its content becomes the device's data and goes to every peer;
// without, it is blank from now on. A disk whose metadata speaks of the device's
// data already, or a device that a peer has data of, is left alone.
//
// That a device begins with what one disk holds has to be known wherever it may be
// promoted: where any two quorums share a disk, as many as quorum takes have noted it
// when Create returns. Without them nobody could tell that it is not the blank disks
// of the others that count.
func (d *Device) Create(ctx context.Context, existing bool) error {
	const what = "create"
	if err := d.begin(what); err != nil {
		return err
	}
	defer d.end()
	d.mu.Lock()
	err := d.mayCreateLocked()
	h := heralding{alone: !existing || !d.orderedLocked() || mutate.Is(mutate.BeginUnheard)}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if err := d.heralded(ctx, &h); err != nil {
		return err
	}
	d.mu.Lock()
	err = d.mayCreateLocked() // much may have come into reach meanwhile
	var ask replication.NodeSet
	for _, p := range d.peers {
		if p != nil && p.session != nil && p.handle != 0 {
			ask = ask.With(p.id)
		}
	}
	disk, meta, size := d.disk, d.meta, d.cfg.Size
	others := d.disks.Without(d.cfg.Self)
	g := replication.Gens{Noted: d.gens.Noted, Seen: d.gens.Seen}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	commit, err := d.plan(ctx, wire.Change{Kind: wire.ChangeCreate}, ask)
	if err != nil {
		return err
	}
	g.Current, g.Base = replication.DayOne, replication.DayOne
	if existing {
		// A generation that nobody else has, come from the first day.
		d.mu.Lock()
		h.gen = d.nextGenLocked()
		d.mu.Unlock()
		g = g.Bump(h.gen, others).InForce(h.gen)
		if err = markAll(meta, others); err == nil {
			err = d.herald(ctx, &h, wire.NewGen)
		}
	} else {
		err = blank(ctx, disk, size)
	}
	if err == nil {
		err = d.takeIn(meta, &g)
	}
	if err != nil {
		commit(false)
		if refused, ok := errors.AsType[*RefusedError](err); ok {
			return refused
		}
		return d.refuse(what, err.Error(), "", false)
	}
	unknown := d.herald(ctx, &h, wire.GenCommit)
	err = d.rejoin(ctx, what, allNodes, func() {
		if d.meta != meta {
			return
		}
		d.gens, d.newcomer, d.taken = d.takenLocked(), false, nil
		why := "made blank by an administrator"
		if existing {
			why = "its content is the device's data, by an administrator's word"
		}
		d.setDiskLocked(replication.Consistent, why)
		d.eventLocked("device", nil, "the disk of this node is taken in: %s", why)
		d.behindLocked("the device has begun elsewhere")
		d.saveLocked(nil)
	})
	commit(err == nil)
	return cmp.Or(err, unknown)
}

// takeIn has the metadata of this node's disk say what it bears from now on, before the
// node goes by it.
func (d *Device) takeIn(meta *store.Meta, g *replication.Gens) error {
	d.mu.Lock()
	d.taken = g
	d.mu.Unlock()
	err := d.save()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil && d.meta != meta {
		err = errors.New("its disk was lost meanwhile") // it may say nothing of that
	}
	if err != nil {
		d.taken = nil
	}
	return err
}

// takenLocked is what the disk that is being taken in bears. What this node has noted and
// heard of meanwhile stands.
func (d *Device) takenLocked() replication.Gens {
	g := *d.taken
	g.Noted = max(g.Noted, d.gens.Noted)
	g.Learn(&replication.Gens{Seen: d.gens.Seen})
	return g
}

func (d *Device) mayCreateLocked() error {
	const what = "create"
	switch {
	case d.disk == nil:
		return d.refuse(what, "this node has no disk attached", "", false)
	case d.gens.Current != replication.NoGen:
		return d.refuse(what, "it is there, and its disk holds its data", "see: lockstepctl device show "+d.opts.Name, false)
	case d.pullingLocked():
		return d.refuse(what, "its disk is being resynced", "", false)
	case d.beganLocked():
		return d.refuse(what, "other nodes have its data", "this disk is resynced from there; see: lockstepctl device show "+d.opts.Name, false)
	}
	for _, p := range d.peers {
		if p != nil && p.hs.peerNo != 0 && p.hs.theirs.HasPast() {
			return d.refuse(what, p.name+" has its data", "this disk is resynced from there; take the device away there if that is wrong", false)
		}
	}
	return nil
}

// markAll marks everything as out of sync with every node of set, durably.
func markAll(meta *store.Meta, set replication.NodeSet) error {
	for id := range set.All() {
		meta.Bitmap(id).SetAll()
	}
	return meta.WriteBitmaps()
}

// blank makes a disk zero.
func blank(ctx context.Context, disk store.Disk, size int64) error {
	const piece = 64 << 20
	for at := int64(0); at < size; at += piece {
		if ctx.Err() != nil {
			return fmt.Errorf("not all of the disk was zeroed in time: %w", context.Cause(ctx))
		}
		if err := disk.Zero(at, min(piece, size-at), block.Flags(0)); err != nil {
			return err
		}
	}
	return disk.Sync()
}

// Inspect tells what the metadata of this node's disk says, also where the disk
// is detached.
func (d *Device) Inspect() (*store.Inspection, error) {
	d.mu.Lock()
	meta, src := d.meta, d.source
	d.mu.Unlock()
	switch {
	case meta != nil:
		return meta.Inspect()
	case src != nil && src.bk.Meta != "":
		return store.Inspect(src.bk.Meta)
	}
	return nil, d.refuse("inspect", "this node has no disk for it", "", false)
}
