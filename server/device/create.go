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
	if err := d.mayCreate(); err != nil {
		return err
	}
	h := heralding{alone: !existing || !d.ordered() || mutate.Is(mutate.BeginUnheard)}
	if err := d.heralded(ctx, &h); err != nil {
		return err
	}
	d.mu.Lock()
	err := d.mayCreateLocked()
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
		err = meta.Update(func(sb *store.Superblock) {
			putGens(sb, &g)
			sb.Flags |= store.Consistent | store.WasUpToDate
		})
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
		g.Noted = max(g.Noted, d.gens.Noted)
		g.Learn(&replication.Gens{Seen: d.gens.Seen}) // what it has noted and heard of meanwhile stands
		d.gens, d.newcomer = g, false
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

// heralding is how a disk that is taken in makes known what it begins. It is the protocol
// of startGenLocked, of one who is no primary: those in contact note the generation, the
// disk takes it over, they note that it is in force. Until that they are as current as
// they were, lest a word that is never kept leaves all behind.
type heralding struct {
	alone     bool // nobody has to know
	gen       replication.Gen
	no        uint64 // of the acknowledgements; 0: none are awaited
	step      wire.Type
	wait, has replication.NodeSet
}

// herald has those in contact note one of the two steps, and returns when as many as
// quorum takes have.
func (d *Device) herald(ctx context.Context, h *heralding, step wire.Type) error {
	if h.alone {
		return nil
	}
	b := &block.Batch{}
	d.mu.Lock()
	to := d.notersLocked()
	if step == wire.NewGen {
		d.genNo++
		h.no = d.genNo
	} else {
		to &= h.has // who has come since does not know what it is about
	}
	h.step, h.wait, h.has = step, to, 0
	d.heralding = h
	head, payload := wire.Header{Type: step, Arg: [3]uint64{h.no, uint64(replication.Of(d.cfg.Self))}}, []byte(nil)
	if step == wire.NewGen {
		head.Arg = [3]uint64{d.beginsLocked(), wire.OnlyNote}
		g := wire.Generation{No: h.no, New: uint64(h.gen), Away: uint32(d.disks.Without(d.cfg.Self))}
		payload = g.Append(nil)
	}
	for id := range to.All() {
		d.peers[id].send(head, payload, nil, b)
	}
	d.mu.Unlock()
	b.Finish()
	defer func() {
		d.mu.Lock()
		d.heralding = nil
		d.mu.Unlock()
	}()
	return d.heralded(ctx, h)
}

// heralded waits until those that have noted the step are as many as quorum takes with
// this node, and those that are still to are gone. Before the first step it waits until
// there are as many in contact.
func (d *Device) heralded(ctx context.Context, h *heralding) error {
	if h.alone {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, voteTimeout)
	defer cancel()
	var v replication.Verdict
	closing := false
	err := d.wait(ctx, func() bool {
		seen := allNodes
		if h.no != 0 {
			h.wait &= d.notersLocked()
			seen = h.has
		}
		v = d.cfg.Quorum.Quorum(d.tallyAsLocked(replication.UpToDate, seen))
		closing = d.closing
		return v.Quorate && h.wait == 0 || closing
	})
	switch {
	case closing:
		return d.refuse("create", errClosing.Error(), "", false)
	case err == nil:
		return nil
	}
	if h.step == wire.GenCommit {
		return d.refuse("create", "this disk is the device's, but not all have noted it that have to: "+v.Why, "start or reconnect the other nodes before somebody is promoted among them", false)
	}
	return d.refuse("create", "those who have to know that the device begins with what this disk holds are not in reach: "+v.Why, "start or reconnect the other nodes, and try again", true)
}

// heraldedLocked: a peer has noted a step on stable storage.
func (d *Device) heraldedLocked(p *peer, no uint64, step wire.Type) bool {
	h := d.heralding
	if h == nil || no != h.no {
		return false
	}
	if step == h.step {
		h.wait, h.has = h.wait.Without(p.id), h.has.With(p.id)
		d.touchLocked()
	}
	return true
}

// hearLocked notes a generation that a disk is about to begin the device with.
func (d *Device) hearLocked(p *peer, g *wire.Generation) {
	next := replication.Gen(g.New)
	switch {
	case d.meta == nil || !p.agreed:
		return
	case d.beganLocked() || d.role == replication.Primary || d.primary >= 0 || !d.gens.MayNote(next):
		d.objectLocked(p, g, "the device has begun, or is about to, or another was noted")
		return
	}
	d.gens.Noted = next
	d.genNoted, d.genNotedNo, d.genAway, d.genBy, d.announcer = next, g.No, replication.NodeSet(g.Away), nil, p.id
	d.confirmLocked(p, wire.Header{Type: wire.NewGenAck, Arg: [3]uint64{g.No}})
}

func (d *Device) mayCreate() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mayCreateLocked()
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

func (d *Device) ordered() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.orderedLocked()
}

// beganLocked reports whether the device is known to have begun, wherever its data is.
func (d *Device) beganLocked() bool {
	return d.gens.HasPast() || d.orderedLocked() && d.gens.Seen.After(replication.DayOne)
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
