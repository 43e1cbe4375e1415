package device

import (
	"context"
	"fmt"
	"strings"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// Invalidate declares the data of this node's disk wrong: all of it is fetched
// from a peer, which is asked to keep its own meanwhile.
func (d *Device) Invalidate(ctx context.Context) error {
	const what = "invalidate"
	if err := d.begin(what); err != nil {
		return err
	}
	defer d.end()
	return d.afterHandshakes(ctx, d.invalidate)
}

func (d *Device) invalidate(ctx context.Context) error {
	const what = "invalidate"
	d.mu.Lock()
	keepers, err := d.keepersLocked(what)
	d.mu.Unlock()
	if err != nil {
		return err
	}
	commit, err := d.plan(ctx, wire.Change{Kind: wire.ChangeInvalidate}, keepers)
	if err != nil {
		return err
	}
	var refused error
	err = d.rejoin(ctx, what, d.disks, func() {
		// What was written since is perhaps on this disk alone.
		now, err := d.keepersLocked(what)
		if err == nil {
			err = d.keptLocked(what, now)
		}
		if err != nil && !mutate.Is(mutate.GiveUpUnkept) {
			refused = err
			return
		}
		for id := range d.disks.Without(d.cfg.Self).All() {
			d.meta.Bitmap(id).SetAll()
			d.beforeLog[id] = nil
		}
		d.setDiskLocked(replication.Inconsistent, "invalidated by an administrator")
		d.eventLocked("resync", nil, "the data of this disk is discarded, and fetched from a peer")
	})
	if refused != nil {
		err = refused
	}
	commit(err == nil)
	return err
}

// keptLocked refuses to give the data of this disk up unless one of those that have
// agreed to keep theirs still has it: a disk may have failed since.
func (d *Device) keptLocked(what string, keepers replication.NodeSet) error {
	if keepers&d.planned.yes == 0 {
		return d.refuse(what, "nobody who has agreed to keep the data still has it", "see: lockstepctl device show "+d.opts.Name, true)
	}
	return nil
}

// keepersLocked is who has current data, this node's own apart, which is about
// to go.
func (d *Device) keepersLocked(what string) (keepers replication.NodeSet, err error) {
	if d.disk == nil {
		return 0, d.refuse(what, "this node has no disk attached", "", false)
	}
	for _, p := range d.peers {
		waits := p != nil && (p.repl == replication.PausedSyncS || p.repl == replication.SyncSource) // for what this disk has
		if p != nil && p.agreed && p.disk == replication.UpToDate && !waits {
			keepers = keepers.With(p.id)
		}
	}
	if keepers == 0 {
		return 0, d.earlyLocked(d.refuse(what, fmt.Sprintf("no peer in reach has current data, and this disk is %v", d.dstat),
			"wait until a peer is in sync: lockstepctl device wait "+d.opts.Name, false))
	}
	return keepers, nil
}

// Resync has the blocks that are marked out of sync between this node and a
// peer (every peer if node is "") brought up to date, or goes on with a resync
// that was paused. It returns the peers with which there is something to do.
func (d *Device) Resync(ctx context.Context, node string) (with []string, err error) {
	const what = "resync"
	if err := d.begin(what); err != nil {
		return nil, err
	}
	defer d.end()
	b := &block.Batch{}
	d.mu.Lock()
	held := d.letGoLocked(node, b)
	set, err := d.chosenLocked(what, node)
	if err != nil {
		d.mu.Unlock()
		b.Finish()
		if held {
			err = nil
		}
		return nil, err
	}
	var again replication.NodeSet
	for id := range set.All() {
		p := d.peers[id]
		if q := d.primary; q >= 0 && q != d.cfg.Self && q != id {
			if node != "" && !held {
				err = d.refuse(what, fmt.Sprintf("%s is primary, so what is right is for it to say", d.nodeName(q)), "run it with --node "+d.nodeName(q)+", or on "+d.nodeName(q), false)
			}
			continue
		}
		busy := p.repl == replication.SyncSource || p.repl == replication.SyncTarget
		if busy || d.meta != nil && d.meta.Bitmap(id).Count() > 0 || p.repl == replication.PausedSyncS || p.repl == replication.PausedSyncT {
			with = append(with, p.name)
			if !busy {
				again = again.With(id)
			}
		}
	}
	d.mu.Unlock()
	b.Finish()
	if again == 0 {
		return with, err
	}
	return with, d.rejoin(ctx, what, again, nil)
}

// chosenLocked is the peers with a disk that a command speaks of.
func (d *Device) chosenLocked(what, node string) (set replication.NodeSet, err error) {
	if d.disk == nil {
		return 0, d.refuse(what, "this node has no disk attached", "run it on a node that has one", false)
	}
	var away []string
	for _, p := range d.peers {
		switch {
		case p == nil || p.diskless || node != "" && p.name != node:
		case !p.agreed || !p.disk.HasData():
			away = append(away, p.name)
		default:
			set = set.With(p.id)
		}
	}
	switch {
	case set != 0:
		return set, nil
	case len(away) > 0:
		return 0, d.refuse(what, "the disk of "+strings.Join(away, ", ")+" is not in reach", "see: lockstepctl device why "+d.opts.Name, false)
	case node != "":
		return 0, d.refuse(what, fmt.Sprintf("%q is no peer with a disk of it", node), "see: lockstepctl device show "+d.opts.Name, false)
	}
	return 0, d.refuse(what, "no peer has a disk", "", false)
}

// PauseResync stops the resyncs with a peer (every peer if node is "") until
// Resync. What is marked stays marked, and changes go on being replicated.
func (d *Device) PauseResync(node string) error {
	b := &block.Batch{}
	d.mu.Lock()
	set, err := d.chosenLocked("pause the resync of", node)
	if err == nil {
		for id := range set.All() {
			d.holdSyncLocked(d.peers[id], true, b)
		}
	}
	d.mu.Unlock()
	b.Finish()
	return err
}

// letGoLocked takes back what PauseResync said, which nobody else can, and reports
// whether there was any of it; a peer that is away is not paused when it comes back.
func (d *Device) letGoLocked(node string, b *block.Batch) (some bool) {
	for _, p := range d.peers {
		if p != nil && p.hold && (node == "" || p.name == node) {
			d.holdSyncLocked(p, false, b)
			some = true
		}
	}
	return some
}

// holdSyncLocked pauses or resumes, on both sides.
func (d *Device) holdSyncLocked(p *peer, hold bool, b *block.Batch) {
	if p.hold == hold {
		return
	}
	p.hold = hold
	word := "goes on"
	if hold {
		word = "is paused"
	}
	d.eventLocked("resync", p, "the resync with %s %s", p.name, word)
	d.tellHoldLocked(p, b)
	if p.sync.pulling {
		d.pumpLocked(p, b)
	}
	d.touchLocked()
}

func (d *Device) tellHoldLocked(p *peer, b *block.Batch) {
	h := wire.Header{Type: wire.SyncHold}
	if p.hold {
		h.Arg[0] = 1
	}
	p.send(h, nil, nil, b)
}

// heldLocked: the peer pauses or resumes the resync with us.
func (d *Device) heldLocked(p *peer, hold bool, b *block.Batch) {
	p.held = hold
	if p.sync.pulling {
		d.pumpLocked(p, b)
	}
	d.touchLocked()
}

// paused reports whether either side wants the resync to wait.
func (p *peer) paused() bool { return p.hold || p.held }
