package device

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/wire"
)

// begin lets one administrator's change of the device in at a time; end is its
// counterpart.
func (d *Device) begin(what string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closing:
		return d.refuse(what, errClosing.Error(), "", false)
	case d.admin != "":
		return d.refuse(what, "\""+d.admin+"\" is under way", "try again when it is done", true)
	}
	d.admin = what
	return nil
}

func (d *Device) end() {
	d.mu.Lock()
	d.admin = ""
	d.touchLocked()
	d.mu.Unlock()
}

// Detach takes the disk of this node out of the device, which goes on with the
// peers'. It is refused where no peer would be left with current data, and where
// what is left would be no quorum.
func (d *Device) Detach(ctx context.Context) error {
	if err := d.begin("detach"); err != nil {
		return err
	}
	defer d.end()
	return d.afterHandshakes(ctx, d.detachPlanned)
}

// afterHandshakes does what a peer may be in the way of that is shaking hands: what it is
// worth is told when that is over.
func (d *Device) afterHandshakes(ctx context.Context, do func(context.Context) error) error {
	over := time.Now().Add(handshakeTimeout)
	for {
		err := do(ctx)
		if refused, ok := errors.AsType[*RefusedError](err); !ok || !refused.early || time.Now().After(over) {
			return err
		}
		// Not when the state changes: each attempt changes it.
		select {
		case <-time.After(handshakePause):
		case <-ctx.Done():
			return err
		}
	}
}

// handshakePause is how long a handshake that is in the way is left to itself.
const handshakePause = 50 * time.Millisecond

// earlyLocked says of a refusal whether a handshake with a peer that has a disk is under way.
func (d *Device) earlyLocked(e *RefusedError) *RefusedError {
	e.early = slices.ContainsFunc(d.peers[:], func(p *peer) bool { return p != nil && !p.diskless && p.shakingLocked() })
	return e
}

// detachPlanned detaches the disk by the agreement of those that keep the data.
func (d *Device) detachPlanned(ctx context.Context) error {
	d.mu.Lock()
	keepers, err := d.mayDetachLocked()
	d.mu.Unlock()
	if err != nil {
		return err
	}
	// Two nodes that detach at once must not rely on each other.
	commit, err := d.plan(ctx, wire.Change{Kind: wire.ChangeDetach}, keepers)
	if err != nil {
		return err
	}
	// With its vote the others would have quorum without its data, and it would
	// count again when it is back, whatever it has missed.
	d.setDetaching(true)
	if err = d.resign(ctx); err == nil {
		err = d.detach(ctx)
	}
	d.setDetaching(false)
	commit(err == nil)
	return err
}

// setDetaching: while this node detaches its disk it does not ask for the vote
// back that it has given up for that.
func (d *Device) setDetaching(on bool) {
	b := &block.Batch{}
	d.mu.Lock()
	d.detaching = on
	d.evaluateLocked(b)
	d.mu.Unlock()
	b.Finish()
}

// mayDetachLocked is who is asked to keep the data meanwhile; nobody where this
// disk has none that counts.
func (d *Device) mayDetachLocked() (keepers replication.NodeSet, err error) {
	if d.disk == nil {
		return 0, d.refuse("detach", "this node has no disk attached", "", false)
	}
	if d.dstat <= replication.Outdated && d.role != replication.Primary {
		return 0, nil
	}
	return d.keepersLocked("detach")
}

// quorumWithoutLocked refuses to detach this disk where what is left would be no
// quorum, because others are out of reach, or detached, or because this node could not
// give its vote up to them; or where it would be none when those out of reach are back.
// Nobody could be promoted then but by force, though a disk that is left may be
// complete. Where quorum takes every disk there is, whoever chose that has chosen this,
// too.
func (d *Device) quorumWithoutLocked() error {
	quorum := d.cfg.Quorum.Quorum
	if !quorum(replication.Census{UpToDate: d.disks.Len() - 1, Idle: 1}).Quorate {
		return nil
	}
	c := d.tallyAsLocked(replication.Diskless, allNodes)
	rest := quorum(c)
	if !d.quorum.Quorate {
		c.UpToDate, c.Present, c.Unknown, c.Had = c.UpToDate+c.Present+c.Unknown, 0, 0, true
		rest = quorum(c)
	}
	if rest.Quorate {
		return nil
	}
	return d.earlyLocked(d.refuse("detach", "without this disk there would be no quorum: "+rest.Why,
		"start the other nodes, or attach their disks, first", true))
}

func (d *Device) detach(ctx context.Context) error {
	defer d.thaw()
	if err := d.freeze(ctx, "detach", false); err != nil {
		return err
	}
	d.mu.Lock()
	primary := d.role == replication.Primary
	d.mu.Unlock()
	if primary {
		if err := d.flushAll(ctx); err != nil {
			return d.refuse("detach", "what was written could not be made durable: "+err.Error(), "", true)
		}
	}
	if err := d.noteBehind(); err != nil {
		return d.refuse("detach", "its metadata could not be written: "+err.Error(), "", true)
	}
	b := &block.Batch{}
	d.mu.Lock()
	keepers, err := d.mayDetachLocked()
	switch {
	case d.closing:
		err = d.refuse("detach", errClosing.Error(), "", false)
	case err == nil && keepers != 0:
		err = d.keptLocked("detach", keepers)
	}
	if err == nil {
		err = d.quorumWithoutLocked()
	}
	if err != nil {
		d.saveLocked(nil) // it is not behind
		d.mu.Unlock()
		return err
	}
	// What of a primary's last changes the others may not have has to be known
	// when the disk comes back, whatever becomes of that primary.
	list, complete := d.recent.after(d.floor)
	if !primary && d.primary >= 0 {
		for _, c := range list {
			d.missLocked(d.disks.Without(d.cfg.Self), c.ext)
		}
	}
	note := d.superblockLocked()
	if whole := note; d.detachNotedLocked() {
		note = func(sb *store.Superblock) { whole(sb); behind(sb) }
	}
	left := d.dropDiskLocked(false)
	d.disklessLocked("detached by an administrator", b)
	done := d.putAwayLocked(left, note, primary || complete)
	d.mu.Unlock()
	b.Finish()
	select {
	case err := <-done:
		if err != nil {
			d.log.Warn("the detached disk was not put away in order; more of it is resynced when it comes back", "err", err)
		}
	case <-ctx.Done():
		d.log.Warn("detached, but operations of the disk are still under way")
	}
	return nil
}

// noteBehind has a disk that is about to be detached know that the others go on without
// it, before they do.
func (d *Device) noteBehind() error {
	d.mu.Lock()
	meta, noted := d.meta, d.detachNotedLocked()
	d.mu.Unlock()
	if !noted || meta == nil {
		return nil
	}
	return meta.Update(behind)
}

// detachNotedLocked reports whether a disk has to know that it was detached. Where
// generations in force are a chain it learns when it is back what it has missed. Elsewhere
// it could be promoted before.
func (d *Device) detachNotedLocked() bool {
	return !d.orderedLocked() && !mutate.Is(mutate.DetachUnnoted)
}

// behind notes that a disk is not current.
func behind(sb *store.Superblock) { sb.Flags &^= store.WasUpToDate }

// putAwayLocked closes a detached disk when nothing is under way on it, which
// Close waits for. With clean nothing but its bitmaps is needed to tell what it
// lacks.
func (d *Device) putAwayLocked(left leaving, note func(*store.Superblock), clean bool) <-chan error {
	done := make(chan error, 1)
	d.done.Go(func() {
		<-left.att.idle
		err := left.disk.Sync()
		err = errors.Join(err, left.meta.Update(func(sb *store.Superblock) {
			note(sb)
			sb.Flags &^= store.PrimaryInd
		}))
		if err == nil && clean {
			if err = left.meta.WriteBitmaps(); err == nil {
				left.meta.AL().SetStable(math.MaxUint64)
			}
		}
		if err == nil {
			err = left.meta.Close()
		} else {
			err = errors.Join(err, left.meta.Abandon())
		}
		left.settle()
		err = errors.Join(err, left.disk.Close())
		d.departed()
		done <- err
	})
	return done
}

// Attach takes the disk of this node into the device again. What it missed is
// resynced from the peers.
func (d *Device) Attach(ctx context.Context) error {
	if err := d.begin("attach"); err != nil {
		return err
	}
	defer d.end()
	if err := d.mayAttach(); err != nil {
		return err
	}
	d.mu.Lock()
	o := d.opts
	o.Config = d.cfg
	d.mu.Unlock()
	got, err := d.source.open(o, d.Pressure)
	installed := false
	if err == nil {
		err = d.rejoin(ctx, "attach", allNodes, func() {
			d.installLocked(&got)
			installed = true
		})
	}
	switch {
	case installed && d.attached(got.meta):
		return nil // even where a peer has not agreed yet
	case installed:
		// Whoever found it failing puts it away.
		return d.refuse("attach", "its disk failed as soon as it was used", "see \"lockstepctl device show "+d.opts.Name+"\" for the error, and attach it again when it works", true)
	case got.meta != nil:
		err = errors.Join(err, got.meta.Abandon(), got.disk.Close())
	}
	d.mu.Lock()
	d.setDiskLocked(replication.Diskless, "it could not be attached")
	d.mu.Unlock()
	if _, ok := errors.AsType[*RefusedError](err); ok {
		return err
	}
	return d.refuse("attach", err.Error(), "", false)
}

func (d *Device) attached(meta *store.Meta) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.meta == meta
}

func (d *Device) mayAttach() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.source == nil:
		return d.refuse("attach", "this node has no disk for it", "give it one in the configuration: [device.on.NODE] disk = \"…\"", false)
	case d.disk != nil:
		return d.refuse("attach", "its disk is attached", "", false)
	case d.departing:
		return d.refuse("attach", "operations of the disk that was detached are still under way", "try again when the disk has answered, or restart the daemon", true)
	}
	d.lastErr = ""
	d.setDiskLocked(replication.Attaching, "its metadata is being read")
	return nil
}

// installLocked takes an opened disk in. Nothing of the application's is under
// way, and every agreement is renewed right after.
func (d *Device) installLocked(got *opened) {
	moved, served := d.gens.Current, d.servedLocked()
	d.disk, d.meta, d.att = limitDisk(got.disk, d.cfg.DiskTimeout), got.meta, newAttachment()
	if d.account != nil {
		d.account.Halt() // nothing makes it stable from now on: who waits for room in it goes to the disk's log
		d.account = nil
	}
	d.taken = nil
	if d.window.floor < d.window.head {
		d.drain = d.window.head
	}
	d.recovered(got)
	sb := got.meta.Superblock()
	g := gensOf(&sb)
	// What this node has noted and heard of meanwhile stands.
	g.Noted = max(g.Noted, d.gens.Noted)
	g.Learn(&replication.Gens{Seen: d.gens.Seen})
	d.gens = g
	d.origin = originOf(&sb)
	d.recallLocked(&sb)
	d.votesKept = votesOf(&sb)
	for id, n := range d.votesKept {
		d.votes.Note(id, n)
	}
	d.crashed = false
	// What was announced last came into force without this disk.
	d.genNew = d.gens.Current
	d.room = sb.Size
	s := diskStateOf(&sb)
	switch {
	case d.role != replication.Primary:
	case d.remoteDataLocked():
		s = replication.Inconsistent // whatever it holds, the peers' is what the clients have seen
	case moved != d.gens.Current:
		s = min(s, replication.Outdated)
	}
	if d.role == replication.Primary && s != replication.UpToDate {
		d.served, d.lags = served, true // what this disk bears tells nothing of that any more
	}
	d.setDiskLocked(s, "attached")
	d.lacksHeldLocked()
}

// lacksHeldLocked: what waits for quorum while a disk is attached may have been
// made when there was none. The peers are sent it again when they are back, and
// take this disk for one that has it. So it is marked here, durably before
// anything is agreed with them, and fetched from them.
func (d *Device) lacksHeldLocked() {
	some := false
	for o := range d.window.all {
		d.missLocked(d.disks.Without(d.cfg.Self), o.ext)
		some = true
	}
	if some {
		d.noteMarksLocked(nil)
	}
}

// planState is a change other than a promotion that peers are asked for, and
// one that we said yes to. The device's mutex guards it.
type planState struct {
	tx       uint64 // of our own plan; 0: none
	own      wire.Change
	wait     replication.NodeSet
	yes      replication.NodeSet
	no       string
	promised uint64 // to a peer that is about to rely on this disk
	to       int
	until    time.Time
	change   wire.Change
}

// planTimeout is how long peers may take to answer: making room may mean to
// write zeroes.
func planTimeout(c *wire.Change) time.Duration {
	if c.Kind == wire.ChangeResize {
		return time.Minute
	}
	return voteTimeout
}

// plan asks peers whether a change may be made. The returned function tells
// them whether it was.
func (d *Device) plan(ctx context.Context, c wire.Change, ask replication.NodeSet) (commit func(done bool), err error) {
	what := c.What()
	b := &block.Batch{}
	d.mu.Lock()
	if d.planned.promised != 0 && time.Now().Before(d.planned.until) {
		name := d.nodeName(d.planned.to)
		d.mu.Unlock()
		return nil, d.refuse(what, name+" is about to "+what+" it, or has", "try again in a moment", true)
	}
	c.Tx, c.Node = randomID(), uint8(d.cfg.Self)
	d.planned.tx, d.planned.wait, d.planned.yes, d.planned.no, d.planned.own = c.Tx, ask, 0, "", c
	d.sendPlanLocked(wire.Prepare, c, ask, b)
	d.mu.Unlock()
	b.Finish()
	vctx, cancel := context.WithTimeout(ctx, planTimeout(&c))
	defer cancel()
	werr := d.wait(vctx, func() bool {
		for id := range d.planned.wait.All() {
			if p := d.peers[id]; p == nil || p.session == nil {
				d.planned.wait = d.planned.wait.Without(id)
			}
		}
		return d.planned.wait == 0 || d.planned.no != "" || d.closing
	})
	d.mu.Lock()
	if d.closing && d.planned.no == "" {
		d.planned.no = errClosing.Error()
	}
	got := d.planned
	d.planned.tx, d.planned.wait = 0, 0
	d.mu.Unlock()
	commit = func(done bool) {
		b := &block.Batch{}
		typ, to := wire.Abort, ask // those who still think about it, too
		if done {
			typ, to = wire.Commit, got.yes
		}
		d.mu.Lock()
		d.sendPlanLocked(typ, c, to, b)
		d.mu.Unlock()
		b.Finish()
	}
	switch {
	case got.no != "":
		err = d.refuse(what, got.no, "", true)
	case werr != nil:
		err = d.refuse(what, "not everybody in reach has answered in time", "see: lockstepctl node list", true)
	case c.Kind == wire.ChangeResize && got.yes != ask:
		err = d.refuse(what, "a node was lost meanwhile, and every node has to make room", "see: lockstepctl node list", true)
	case ask != 0 && got.yes == 0:
		err = d.refuse(what, "the peers that were asked are gone", "see: lockstepctl node list", true)
	}
	if err != nil {
		commit(false)
	}
	return commit, err
}

// askAgainLocked asks a peer anew that has come to another agreement before it answered: in
// the midst of its handshake it did not hear. To make room is asked once.
func (d *Device) askAgainLocked(p *peer, b *block.Batch) {
	if pl := &d.planned; pl.tx != 0 && pl.wait.Has(p.id) && pl.own.Kind != wire.ChangeResize {
		d.sendPlanLocked(wire.Prepare, pl.own, p.bit(), b)
	}
}

func (d *Device) sendPlanLocked(t wire.Type, c wire.Change, to replication.NodeSet, b *block.Batch) {
	for id := range to.All() {
		// The end of it is told in the middle of a handshake, too.
		if p := d.peers[id]; p != nil && p.handle != 0 {
			p.send(wire.Header{Type: t}, c.Append(nil), nil, b)
		}
	}
}

// planFrameLocked takes a frame of a change other than a promotion.
func (d *Device) planFrameLocked(p *peer, t wire.Type, c wire.Change, b *block.Batch) {
	pl := &d.planned
	switch t {
	case wire.Prepare:
		c.Reason = d.objectionLocked(p, &c)
		c.Yes = c.Reason == ""
		if c.Yes {
			pl.promised, pl.to, pl.until, pl.change = c.Tx, p.id, time.Now().Add(2*planTimeout(&c)), c
			if c.Kind == wire.ChangeResize {
				s := p.session
				d.done.Go(func() { d.resizePlanned(p, s, c) })
				return
			}
		}
		p.send(wire.Header{Type: wire.Vote}, c.Append(nil), nil, b)
	case wire.Vote:
		if c.Tx != pl.tx || !pl.wait.Has(p.id) {
			return
		}
		pl.wait = pl.wait.Without(p.id)
		if c.Yes {
			pl.yes = pl.yes.With(p.id)
		} else if pl.no == "" {
			pl.no = c.Reason
		}
		d.touchLocked()
	case wire.Commit, wire.Abort:
		if c.Tx != pl.promised {
			return
		}
		pl.promised = 0
		if t == wire.Commit && c.Kind == wire.ChangeResize {
			d.learnSizeLocked(int64(c.Arg))
			d.sendPlanLocked(wire.Commit, c, allNodes.Without(d.cfg.Self), b) // who planned it may be lost before all have heard
		}
		if t == wire.Commit && c.Kind == wire.ChangeCreate && d.newcomer {
			d.newcomer = false // the device begins now
			d.saveLocked(nil)
		}
		if t == wire.Commit && c.Kind == wire.ChangeDiscard && d.role != replication.Primary {
			d.discardLocked(p.bit(), b)
		}
		d.chooseSourceLocked(b) // see keepsLocked
		d.touchLocked()
	}
}

// waitsLocked reports whether this disk is to be resynced.
func (d *Device) waitsLocked() bool {
	for _, p := range d.peers {
		if p != nil && (p.repl == replication.PausedSyncT || p.sync.pulling) {
			return true
		}
	}
	return false
}

// keepsLocked reports whether a peer that is about to give its own data up counts
// on this disk, which must not become a mixture meanwhile.
func (d *Device) keepsLocked() bool {
	k := d.planned.change.Kind
	return d.planned.promised != 0 && time.Now().Before(d.planned.until) && (k == wire.ChangeDetach || k == wire.ChangeInvalidate)
}

// objectionLocked is why a peer should not do what it plans; "" is nothing.
func (d *Device) objectionLocked(p *peer, c *wire.Change) string {
	self := d.nodeName(d.cfg.Self)
	switch {
	case d.closing:
		return self + " is stopping"
	case d.planned.promised != 0 && d.planned.to != p.id && time.Now().Before(d.planned.until):
		return fmt.Sprintf("%s is about to %s it", d.nodeName(d.planned.to), d.planned.change.What())
	case d.planned.tx != 0 && d.cfg.Self < p.id || d.admin != "" && d.planned.tx == 0 && d.disk == nil:
		return fmt.Sprintf("%s is about to %s it itself", self, d.admin)
	case (c.Kind == wire.ChangeDetach || c.Kind == wire.ChangeInvalidate) && (d.disk == nil || d.dstat != replication.UpToDate):
		return fmt.Sprintf("the disk of %s is %v", self, d.dstat)
	case (c.Kind == wire.ChangeDetach || c.Kind == wire.ChangeInvalidate) && d.waitsLocked():
		return fmt.Sprintf("the disk of %s waits to be resynced", self)
	case c.Kind == wire.ChangeResize && d.disks.Has(d.cfg.Self) && d.dstat != replication.UpToDate:
		return fmt.Sprintf("the disk of %s is %v", self, d.dstat)
	case c.Kind == wire.ChangeResize && (int64(c.Arg) <= d.cfg.Size || c.Arg%block.Unit != 0 || c.Arg > store.MaxSize):
		return fmt.Sprintf("%s has it with %d bytes", self, d.cfg.Size)
	case c.Kind == wire.ChangeCreate && d.objectionToBeginLocked() != "":
		return d.objectionToBeginLocked()
	case c.Kind == wire.ChangeDiscard && d.role == replication.Primary:
		return fmt.Sprintf("%s is primary: run \"lockstepctl device demote %s\" there first", self, d.opts.Name)
	case c.Kind == wire.ChangeDiscard && !d.splitFromLocked().Has(p.id):
		return self + " knows of no split brain"
	}
	if d.planned.tx != 0 {
		// The lower id goes first.
		d.planned.no = d.nodeName(p.id) + " is about to " + c.What() + " it"
		d.touchLocked()
	}
	return ""
}
