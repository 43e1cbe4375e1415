package device

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// A RefusedError says why a device was not promoted or demoted, and what to
// do. Again means that the cause passes by itself.
type RefusedError struct {
	What  string // "promote r0"
	Why   string
	Do    string
	Again bool

	early bool                  // a handshake is under way, by which it may be otherwise
	fence func(context.Context) // has those fenced that are in the way; nil: nobody is
}

func (e *RefusedError) Error() string {
	s := "cannot " + e.What + ": " + e.Why
	if e.Do != "" {
		s += " (" + e.Do + ")"
	}
	return s
}

// changeState is a promotion under way: ours, or a peer's that we agreed to.
type changeState struct {
	tx    uint64
	asked replication.NodeSet
	wait  replication.NodeSet // who of them has not voted
	no    string              // first vote against
	again bool

	promisedTo int // a peer whose promotion we voted for; valid while promised != 0
	promised   uint64
	committed  bool // and it is the primary, which its state has yet to say
	until      time.Time
}

// voteTimeout bounds how long a promotion waits for votes, and how long a vote
// binds whoever gave it.
const voteTimeout = 5 * time.Second

// Promote makes this node the device's primary, by the agreement of all that
// are in reach. force promotes without quorum and from a disk that is not
// known to be current; what others wrote meanwhile may be lost. Where peers that may have
// gone on are in the way, and out of reach, the fence-peer handler is asked once to fence
// them.
func (d *Device) Promote(ctx context.Context, force bool) error {
	fenced := false
	for {
		err := d.promoteOnce(ctx, force)
		refused, ok := errors.AsType[*RefusedError](err)
		if err == nil || !ok || !refused.Again {
			return err
		}
		if refused.fence != nil && !fenced {
			fenced = true
			refused.fence(ctx)
			continue
		}
		d.mu.Lock()
		w := d.watch
		d.mu.Unlock()
		select {
		case <-w:
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return err
		}
	}
}

// ballotLocked tells those who vote of a step of our promotion, and with the
// first notes whose votes are awaited.
func (d *Device) ballotLocked(t wire.Type, c wire.Change, b *block.Batch) {
	for _, p := range d.peers {
		if p == nil || !p.agreed || mutate.Is(mutate.PromoteUnasked) && t == wire.Prepare {
			continue
		}
		if t == wire.Prepare {
			d.change.asked, d.change.wait = d.change.asked.With(p.id), d.change.wait.With(p.id)
		}
		p.send(wire.Header{Type: t}, c.Append(nil), nil, b)
	}
}

func (d *Device) refuse(what, why, do string, again bool) *RefusedError {
	return &RefusedError{What: what + " " + d.opts.Name, Why: why, Do: do, Again: again}
}

// changesLocked reports whether something is written here, or waits for that. A range that
// is read for a peer changes nothing; while others are resynced there always is one.
func (d *Device) changesLocked() bool {
	for _, o := range d.ranges.ops {
		switch o.kind {
		case syncRead, readThere, verifyHere, verifyThere:
		default:
			return true
		}
	}
	return false
}

// mayPromoteLocked says what stands in the way on this node's own knowledge.
func (d *Device) mayPromoteLocked(force bool) error {
	if d.closing || d.leaving {
		return d.refuse("promote", "the daemon is stopping", "", false)
	}
	if d.change.promised != 0 && time.Now().Before(d.change.until) {
		return d.refuse("promote", d.peers[d.change.promisedTo].name+" is being promoted", "", true)
	}
	if d.change.tx != 0 {
		return d.refuse("promote", "a promotion is under way here", "", true)
	}
	for _, p := range d.peers {
		if p == nil {
			continue
		}
		if p.agreed && p.role == replication.Primary {
			return d.refuse("promote", fmt.Sprintf("peer %s is primary", p.name),
				fmt.Sprintf("run \"lockstepctl device demote %s\" on %s", d.opts.Name, p.name), false)
		}
		if p.shakingLocked() {
			return d.refuse("promote", "the handshake with "+p.name+" is under way", "", true)
		}
	}
	if d.changesLocked() {
		// Else a read could be answered without them and a later one with them.
		return d.refuse("promote", "changes of the last primary are still being applied here", "", true)
	}
	if force {
		return nil
	}
	if refused := d.unfencedRefusalLocked(); refused != nil {
		return refused
	}
	if !d.quorum.Quorate {
		return d.refuse("promote", "no quorum: "+d.quorum.Why, "start or reconnect the other nodes", true)
	}
	if refused := d.unservableLocked(); refused != nil {
		return refused
	}
	// A disk that is being resynced could be read through its source; but the
	// data would then hang on that one peer, so the resync comes first.
	if d.dstat == replication.UpToDate || d.remoteDataLocked() && d.disk == nil {
		return nil
	}
	if d.dstat == replication.Consistent && d.cfg.Quorum.Kind == replication.QuorumOff && !d.pullingLocked() {
		return nil
	}
	return d.refuse("promote", fmt.Sprintf("this disk is %v and no peer with current data is in reach", d.dstat),
		"see: lockstepctl device why "+d.opts.Name, true)
}

func (d *Device) becomePrimaryLocked(force bool, b *block.Batch) {
	if force && d.dstat.HasData() || d.dstat == replication.Consistent {
		d.setDiskLocked(replication.UpToDate, "promoted")
	}
	if force && d.votes.Given(d.cfg.Self) {
		d.votes.Take(d.cfg.Self)
		d.eventLocked("quorum", nil, "this node has its vote again, by an administrator's word that nobody who stayed when it left has gone on")
	}
	if force {
		d.forceRegroupLocked()
	}
	d.setRoleLocked(replication.Primary)
	d.beginFencingLocked()
	d.primary, d.leader = d.cfg.Self, d.cfg.Self
	d.stream, d.genStint, d.served, d.lags = randomID(), false, d.gens.Current, false
	if d.disk == nil {
		d.served = replication.NoGen
		if p := d.newestLocked(); p != nil {
			d.served = p.inGen()
		}
	}
	d.logStream = 0 // from now on this disk has what nobody else has
	d.began, d.discard, d.conceded = time.Now().UnixNano(), 0, 0
	// One numbering over all stints: the activity log tells by it what is stable.
	start := max(d.window.head, d.received)
	d.window.head, d.window.floor = start, start
	d.flush.flowed = start
	d.recent.reset()
	d.newEpochLocked()
	for _, p := range d.peers {
		if p == nil {
			continue
		}
		p.stable, p.missed, p.undo = start, false, replication.NoGen
		p.lacks, p.outOf = replication.NoGen, replication.NoGen
		if d.disk == nil && p.agreed {
			d.gens = d.gens.Heard(p.hs.theirs.Gens.Seen, replication.Gen(p.state.Current))
			p.disk = d.creditLocked(p, p.disk)
		}
	}
	d.saveLocked(nil)
	d.evaluateLocked(b)
	// Where this disk was to be resynced from another of its generation, the
	// direction turns: what the application will see is the truth.
	var again replication.NodeSet
	for _, p := range d.peers {
		if p != nil && p.agreed && p.state.Primary == wire.NoNode {
			// It said hello while it followed the last primary, and has voted since.
			p.hs.theirs.Primary, p.hs.theirs.Following = replication.NoPrimary, false
		}
		if p != nil && p.repl == replication.PausedSyncT && d.dstat == replication.UpToDate {
			again = again.With(p.id)
		}
	}
	d.rehelloLocked(again, b)
}

// countAllLocked: an administrator says to a primary what he would have said by its
// promotion, had all been there that are in reach now.
func (d *Device) countAllLocked(b *block.Batch) {
	d.forceRegroupLocked()
	d.ballotLocked(wire.Commit, wire.Change{Kind: wire.ChangePromote, Node: uint8(d.cfg.Self), Force: true}, b)
	d.evaluateLocked(b)
}

// needsGenLocked: the next change must start a generation where a disk does
// not take part whose slot does not say that it has been left behind: else that
// disk would bear the same name as this one and lack an answered change. And
// always where nothing was ever written, lest a disk made anew look equal.
func (d *Device) needsGenLocked() bool {
	if d.gens.Current == replication.DayOne || d.gens.Current == replication.NoGen {
		return true
	}
	if d.disk != nil && (d.gens.Tentative() || d.passedLocked()) {
		return true // nothing may be answered in what is not in force
	}
	if d.disk == nil && d.disks.Has(d.cfg.Self) && !d.genStint {
		return true // this node's own disk is left behind: it was detached, or failed, before
	}
	if d.regroupedLocked() {
		return true
	}
	for id := range (d.disks.Without(d.cfg.Self) &^ d.receives).All() {
		if !d.genStint {
			return true // since it was left behind, another may have resynced it
		}
		if slot := d.gens.Bitmap[id]; slot == replication.NoGen || slot == d.gens.Current {
			return true
		}
	}
	for _, p := range d.peers {
		if p != nil && d.unnotedLocked(p) {
			return true
		}
		if p != nil && p.diskless && !p.agreed && !d.genStint {
			return true // it may take itself for primary still, and learns by this that it is not
		}
	}
	return false
}

func (d *Device) setRoleLocked(r replication.Role) {
	if d.role == r {
		return
	}
	d.role = r
	if r != replication.Primary && d.genBusy {
		d.work.do(d.settleGen) // it is over, whatever it waited for
	}
	d.since["role"] = time.Now()
	d.eventLocked("role", nil, "this node is now %v", r)
	d.touchLocked()
}

// changeFrameLocked takes a frame of a promotion.
func (d *Device) changeFrameLocked(p *peer, t wire.Type, c wire.Change, b *block.Batch) {
	switch c.Kind {
	case wire.ChangePromote:
	case wire.ChangeLeave, wire.ChangeLeft, wire.ChangeReturn:
		d.pollFrameLocked(p, t, c, b)
		return
	default:
		d.planFrameLocked(p, t, c, b)
		return
	}
	switch t {
	case wire.Prepare:
		c.Yes, c.Again, c.Reason = d.voteLocked(p, c)
		if c.Yes {
			d.change.promised, d.change.promisedTo, d.change.committed = c.Tx, p.id, false
			d.change.until = time.Now().Add(2 * voteTimeout)
		}
		p.send(wire.Header{Type: wire.Vote}, c.Append(nil), nil, b)
	case wire.Vote:
		if c.Tx != d.change.tx || !d.change.wait.Has(p.id) {
			return
		}
		d.change.wait = d.change.wait.Without(p.id)
		if !c.Yes && d.change.no == "" {
			d.change.no, d.change.again = c.Reason, c.Again
		}
		d.touchLocked()
	case wire.Commit, wire.Abort:
		if t == wire.Commit && c.Force {
			d.forceRegroupLocked()
			d.evaluateLocked(b)
		}
		if c.Tx != d.change.promised {
			return
		}
		if t == wire.Commit && p.role != replication.Primary && !mutate.Is(mutate.VoteTwice) {
			d.change.committed = true // its state comes next; another that asks in between is not to be voted for
			return
		}
		d.change.promised = 0
		d.touchLocked()
	}
}

// redeemedLocked: a peer that was voted for has said what it is since.
func (d *Device) redeemedLocked(p *peer) {
	if d.change.promised != 0 && d.change.promisedTo == p.id && d.change.committed {
		d.change.promised = 0
		d.touchLocked()
	}
}

// voteLocked says whether a peer may become primary, as far as this node knows.
// What the peer's own disk is worth is for the peer to say: in agreement with this
// node it knows of all that this one has, and it may serve from this disk.
func (d *Device) voteLocked(p *peer, c wire.Change) (yes, again bool, why string) {
	self := d.nodeName(d.cfg.Self)
	switch {
	case !p.agreed:
		return false, true, self + " has not agreed with it yet"
	case d.role == replication.Primary:
		return false, false, "peer " + self + " is primary"
	case d.primary >= 0 && d.primary != p.id:
		return false, true, fmt.Sprintf("%s sees %s as primary", self, d.nodeName(d.primary))
	case d.change.tx != 0 && d.cfg.Self < p.id:
		return false, true, self + " is being promoted itself"
	case d.heralding != nil:
		return false, true, "the device is about to begin with what the disk of " + self + " holds"
	case d.planned.promised != 0 && d.planned.change.Kind == wire.ChangeCreate && d.planned.to != p.id && time.Now().Before(d.planned.until):
		return false, true, fmt.Sprintf("%s is about to create it", d.nodeName(d.planned.to))
	case d.change.promised != 0 && d.change.promisedTo != p.id && time.Now().Before(d.change.until):
		return false, true, fmt.Sprintf("%s is being promoted", d.nodeName(d.change.promisedTo))
	}
	if !c.Force && d.witnessedAgainstLocked(p) {
		return false, true, self + " has seen the primary go on without " + p.name
	}
	if !c.Force && d.unawareLocked(p) {
		b := &block.Batch{}
		d.helloLocked(p, b)
		d.work.do(b.Finish)
		return false, true, self + " tells " + p.name + " of a newer generation"
	}
	if d.unsyncedLocked() {
		d.work.do(d.syncDisk)
		return false, true, self + " is making its disk durable"
	}
	for _, q := range d.peers {
		// Once it is agreed on, what the primary says of itself counts and not its hello.
		if q != nil && q != p && q.hs.sent && !q.agreed && q.hs.theirs.Role == replication.Primary && !q.decision.Yields.Has(q.id) {
			return false, true, fmt.Sprintf("%s is about to follow %s", self, q.name)
		}
	}
	if d.change.tx != 0 {
		// The lower id goes first; ours tries again.
		d.change.no, d.change.again = d.nodeName(p.id)+" is being promoted", true
		d.touchLocked()
	}
	return true, false, ""
}

// unawareLocked reports whether a generation has come into force here, since this
// node agreed with a peer, of which the peer may know nothing: its primary lost
// sight of the peer in the midst of it. The peer lacks nothing that was answered,
// but as primary it would learn that it is behind, and yield. One without a disk has
// to know, before it reads or writes, which of the disks that it sees are behind.
func (d *Device) unawareLocked(p *peer) bool {
	base := d.gens.Base
	if p.disk == replication.Diskless && d.meta != nil {
		return d.orderedLocked() && d.gens.Seen.After(p.hs.mine.Gens.Seen)
	}
	return d.orderedLocked() && base != p.hs.mine.Gens.Base && p.disk.HasData() &&
		base.After(max(p.hs.theirs.Gens.Current, replication.Gen(p.state.Current)))
}

func (d *Device) nodeName(id int) string {
	for _, n := range d.opts.Nodes {
		if n.ID == id {
			return n.Name
		}
	}
	return fmt.Sprintf("node %d", id)
}

// voteVoidLocked: the agreement in which a peer was asked for its vote has ended. What it
// was asked, or answered, in that is not heard in the next; and what it has answered does
// not bind it any more, see freeVoteLocked: we ask again.
func (d *Device) voteVoidLocked(p *peer) {
	if d.change.tx != 0 && d.change.asked.Has(p.id) && d.change.no == "" {
		d.change.no, d.change.again = "the agreement with "+p.name+" has ended meanwhile", true
		d.touchLocked()
	}
}

// freeVoteLocked: a peer that was voted for has agreed anew. Our vote does not count for it
// any more, since it parted from the agreement before; and that its promotion was done, or
// came to nothing, is not told in the midst of a handshake.
func (d *Device) freeVoteLocked(p *peer) {
	if d.change.promised != 0 && d.change.promisedTo == p.id && p.speaks(wire.FeatureVoteEnds) {
		d.change.promised = 0
		d.touchLocked()
	}
}

// voteLostLocked: a peer is gone in the middle of a promotion.
func (d *Device) voteLostLocked(p *peer, b *block.Batch) {
	if d.change.promised != 0 && d.change.promisedTo == p.id {
		d.change.promised = 0
		d.touchLocked()
	}
	if d.genWait.Has(p.id) {
		d.genWait = d.genWait.Without(p.id)
		d.genSettleLocked(b)
	}
}

// tickChangeLocked frees a vote whose owner never came back on it.
func (d *Device) tickChangeLocked(now time.Time) {
	if d.change.promised != 0 && now.After(d.change.until) {
		d.change.promised = 0
		d.touchLocked()
	}
}

// Demote makes this node a secondary, for all devices of the group. It is
// refused while clients have one of them open.
func (d *Device) Demote(ctx context.Context) error { return d.demoteTogether(ctx) }

// demoteAlone is for a device that closes: its group's others close too, or go
// on without it.
func (d *Device) demoteAlone(ctx context.Context) error {
	if err := d.calm(ctx); err != nil {
		return err
	}
	b := &block.Batch{}
	d.mu.Lock()
	if err := d.quietLocked(); err != nil {
		d.mu.Unlock()
		return err
	}
	d.becomeSecondaryLocked(b)
	d.mu.Unlock()
	b.Finish()
	return d.noteDemotion()
}

// mayDemote refuses while clients have the device open.
func (d *Device) mayDemote() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.opens == 0 {
		return nil
	}
	return d.refuse("demote", fmt.Sprintf("%d NBD connections have it open", d.opens), "disconnect the clients first", false)
}

// calm waits until no change is in flight, and makes all durable. A primary that yields
// meanwhile has dropped what was in flight, and is what it was to become.
func (d *Device) calm(ctx context.Context) error {
	if err := d.wait(ctx, func() bool { return len(d.window.ops) == 0 || d.window.floor == d.window.head }); err != nil {
		return fmt.Errorf("cannot demote %s: changes are still in flight: %w", d.opts.Name, err)
	}
	if err := d.flushAll(ctx); err != nil && d.isPrimary() {
		return fmt.Errorf("cannot demote %s: %w", d.opts.Name, err)
	}
	return nil
}

func (d *Device) isPrimary() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.role == replication.Primary
}

func (d *Device) quietLocked() error {
	if d.role == replication.Primary && d.window.floor != d.window.head {
		return d.refuse("demote", "changes came in meanwhile", "try again", true)
	}
	return nil
}

func (d *Device) becomeSecondaryLocked(b *block.Batch) {
	if d.role != replication.Primary {
		return // it has yielded meanwhile
	}
	d.setRoleLocked(replication.Secondary)
	d.primary = -1
	d.heals.ended = d.stream
	d.needGen, d.genOwed, d.hold = false, false, 0
	d.receives = 0
	d.recent.reset()
	d.newEpochLocked()
	d.mendsPartLocked(b)
	d.forgetFencedLocked()
	d.evaluateLocked(b)
	d.chooseSourceLocked(b)
}

// noteDemotion makes durable that this node was demoted in order.
func (d *Device) noteDemotion() error {
	d.mu.Lock()
	meta := d.meta
	d.mu.Unlock()
	if meta != nil {
		if err := meta.WriteBitmaps(); err != nil {
			return fmt.Errorf("demoted %s, but its bitmaps could not be written: %w", d.opts.Name, err)
		}
	}
	return d.save()
}

// flushAll makes everything durable everywhere in reach.
func (d *Device) flushAll(ctx context.Context) error {
	w := &waiter{ch: make(chan struct{})}
	r := &block.Request{Op: block.Flush, Done: w}
	b := &block.Batch{}
	d.mu.Lock()
	d.flush.next = append(d.flush.next, flushWaiter{req: r})
	d.flush.startLocked(d, b)
	d.mu.Unlock()
	b.Finish()
	select {
	case <-w.ch:
		return r.Err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// waiter is a Completer for one request.
type waiter struct{ ch chan struct{} }

// Complete wakes who waits.
func (w *waiter) Complete(*block.Request, *block.Batch) { close(w.ch) }

// yieldLocked: another primary has quorum and this one has not. What is in
// flight here was never answered and never will be: clients must come back.
func (d *Device) yieldLocked(p *peer, b *block.Batch) {
	d.eventLocked("role", p, "yielding the primary role: %s has quorum, or newer data", p.name)
	d.setRoleLocked(replication.Secondary)
	d.primary = -1
	d.hold, d.needGen, d.genAgain, d.genOwed = 0, false, false, false
	defer d.newEpochLocked()
	d.receives = 0
	d.gate = gateShut
	d.readable.Store(nil)
	d.held = nil
	d.forgetFencedLocked()
	if !mutate.Is(mutate.FlushAfterYield) {
		d.flush.dropLocked(d, b)
	}
	for o := range d.window.all {
		d.dropOpLocked(o, b)
	}
	d.dropParkedLocked(b)
	d.mendsPartLocked(b)
	if !mutate.Is(mutate.YieldQuietly) {
		// A primary that is none any more, in order, has everything everywhere. Of this one
		// some have changes that others have not: they have to take it for lost.
		for _, q := range d.peers {
			if q != nil && q.agreed {
				d.helloLocked(q, b)
			}
		}
	}
	d.yieldTogetherLocked(p)
}

// dropOpLocked gives up on a change of a primary that has yielded.
func (d *Device) dropOpLocked(o *op, b *block.Batch) {
	o.need, o.wait = 0, 0
	o.finished = true
	if !o.answered {
		o.err, o.localOK, o.acked = block.ErrDropped, false, false
		d.answerLocked(o, b)
	}
	d.missLocked(d.disks.Without(d.cfg.Self), o.ext)
	if !o.local {
		d.retireLocked(o, b)
	}
}
