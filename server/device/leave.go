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

// A node that stops in order gives its vote up, so that those that stay have
// quorum without it: the last one standing alone, and still after a restart
// (replication.Votes has the rules). It does so in three steps: everybody in
// reach ceases to count on its vote; it notes on stable storage that it has none;
// they note that. It asks for its vote when it is back. A disk that is detached
// leaves likewise; one that fails notes that it has no vote where its metadata
// still can be written, and else keeps it.

// leavePatience bounds how long a node that stops waits for others, of which
// some may be about to leave too.
const leavePatience = 2 * time.Second

// poll is a change of this node's vote, for which all in reach are asked. The
// device's mutex guards it.
type poll struct {
	tx    uint64 // 0: none
	kind  uint8
	asked replication.NodeSet
	wait  replication.NodeSet
	stays replication.NodeSet // of those who said yes, who is not about to leave itself
	no    *RefusedError
}

// Leave gives this node's vote up to those that stay, where it serves them:
// where all that have a vote are in reach, one that has the data among them. It
// is for a device that is about to be closed, while its peers are in reach, and
// demotes first. That there is nobody to stay is no error.
func (d *Device) Leave(ctx context.Context) error {
	d.mu.Lock()
	if d.closing || d.leaving {
		d.mu.Unlock()
		return nil
	}
	primary := d.role == replication.Primary
	d.mu.Unlock()
	if primary {
		if err := d.quiesce(ctx); err != nil {
			return fmt.Errorf("cannot leave %s in order: %w", d.opts.Name, err)
		}
	}
	d.mu.Lock()
	if d.role == replication.Primary || d.closing {
		d.mu.Unlock()
		return nil
	}
	d.leaving = true
	d.pollVoidLocked("this node is about to stop")
	d.mu.Unlock()
	return d.resign(ctx)
}

// resign gives this node's vote up, if it may within leavePatience.
func (d *Device) resign(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leavePatience)
	defer cancel()
	for {
		err := d.leave(ctx)
		r, refused := errors.AsType[*RefusedError](err)
		if !refused {
			return err
		}
		again := time.NewTimer(20 * time.Millisecond)
		if r.Again {
			select {
			case <-again.C:
				continue
			case <-ctx.Done():
			}
		}
		again.Stop()
		d.log.Info("this node keeps its vote", "device", d.opts.Name, "because", r.Why)
		return nil
	}
}

// leave is one attempt. A refusal that may pass says so.
func (d *Device) leave(ctx context.Context) error {
	d.mu.Lock()
	ask, ok := d.mayLeaveLocked()
	ok = ok && !d.closing
	d.mu.Unlock()
	if !ok {
		return d.stayOut(ctx)
	}
	stays, err := d.ask(ctx, wire.Change{Kind: wire.ChangeLeave, Arg: uint64(ask)}, ask)
	d.mu.Lock()
	if err == nil && !d.heirLocked(stays) {
		// Everybody is about to leave: then all keep their votes.
		err = d.refuse("leave", "nobody with current data stays", "", false)
	}
	if no := d.poll.no; err == nil && no != nil {
		err = no // since they said yes
	}
	if err != nil {
		d.pollEndLocked(ask)
		d.mu.Unlock()
		return err
	}
	count := d.votes[d.cfg.Self] + 1
	if !mutate.Is(mutate.KeepVote) {
		d.votes.Give(d.cfg.Self)
	}
	d.poll = poll{}
	d.mu.Unlock()
	if err := d.save(); err != nil {
		return err // on stable storage it may be given up; nobody counts on it
	}
	d.mu.Lock()
	d.eventLocked("quorum", nil, "this node leaves, and gives its vote up to %s", d.namesLocked(stays))
	d.mu.Unlock()
	d.tellLeft(ctx, count, ask)
	return nil
}

// tellLeft has everybody of a set that is in contact note that this node's vote is
// given up.
func (d *Device) tellLeft(ctx context.Context, count uint32, set replication.NodeSet) {
	d.mu.Lock()
	left := set & d.agreedLocked()
	d.mu.Unlock()
	if _, err := d.ask(ctx, wire.Change{Kind: wire.ChangeLeft, Arg: uint64(count)}, left); err != nil {
		d.log.Info("not all have noted that this node has left", "device", d.opts.Name, "err", err)
	}
	d.mu.Lock()
	d.poll = poll{}
	d.mu.Unlock()
}

// stayOut is for a node that has given its vote up and has asked for it back in vain:
// some may have noted that it has it again, and would count on it for as long as it is
// away. They are told, and learn from its facts, that it has not.
func (d *Device) stayOut(ctx context.Context) error {
	d.mu.Lock()
	all, noted := d.agreedLocked(), d.claimed
	for id := range all.All() {
		noted = max(noted, d.peers[id].hs.theirs.Votes[d.cfg.Self])
	}
	if d.closing || d.meta == nil || !d.votes.Given(d.cfg.Self) || noted <= d.votes[d.cfg.Self] || !d.pollableLocked(all) {
		d.mu.Unlock()
		return nil
	}
	count := noted | 1
	d.votes[d.cfg.Self] = count
	d.mu.Unlock()
	if err := d.save(); err != nil {
		return err
	}
	d.tellLeft(ctx, count, all)
	return nil
}

// mayLeaveLocked reports whether this node is to give its vote up, and whom it
// asks. Only a majority becomes another one by it.
func (d *Device) mayLeaveLocked() (ask replication.NodeSet, ok bool) {
	ask = d.agreedLocked()
	ok = d.cfg.Quorum.Kind == replication.QuorumMajority && d.meta != nil && d.dstat.HasData() &&
		d.votes.MayLeave(d.cfg.Self, d.disks, d.reachLocked()) && d.pollableLocked(ask)
	return ask, ok
}

// agreedLocked is everybody in contact.
func (d *Device) agreedLocked() (s replication.NodeSet) {
	for _, p := range d.peers {
		if p != nil && p.agreed {
			s = s.With(p.id)
		}
	}
	return s
}

// reachLocked is whose disks are in reach.
func (d *Device) reachLocked() replication.NodeSet { return d.withDataLocked() }

// pollableLocked reports whether all of a set can be asked.
func (d *Device) pollableLocked(set replication.NodeSet) bool {
	for id := range set.All() {
		if !d.peers[id].speaks(wire.FeatureVotes) {
			return false
		}
	}
	return set != 0
}

// heirLocked reports whether somebody of a set has a vote, and all the data that
// this node has.
func (d *Device) heirLocked(stays replication.NodeSet) bool {
	for id := range stays.All() {
		p := d.peers[id]
		if !p.voteless() && !p.diskless && p.agreed && p.disk == replication.UpToDate && (p.inSync || d.dstat != replication.UpToDate) {
			return true
		}
	}
	return false
}

func (d *Device) namesLocked(set replication.NodeSet) (s string) {
	for id := range set.All() {
		if s != "" {
			s += ", "
		}
		s += d.nodeName(id)
	}
	return s
}

// ask has everybody of a set do what c says. It returns who, of those, stays.
// The poll is left as it is, for the caller to look at and to end.
func (d *Device) ask(ctx context.Context, c wire.Change, set replication.NodeSet) (stays replication.NodeSet, err error) {
	b := &block.Batch{}
	d.mu.Lock()
	c.Tx, c.Node = randomID(), uint8(d.cfg.Self)
	d.poll = poll{tx: c.Tx, kind: c.Kind, asked: set, wait: set}
	for id := range set.All() {
		d.peers[id].send(wire.Header{Type: wire.Prepare}, c.Append(nil), nil, b)
	}
	d.mu.Unlock()
	b.Finish()
	if werr := d.wait(ctx, func() bool { return d.poll.tx != c.Tx || d.poll.wait == 0 || d.poll.no != nil || d.closing }); werr != nil {
		err = d.refuse(c.What(), "not everybody in reach has answered in time", "", true)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.poll.tx != c.Tx:
		return 0, d.refuse(c.What(), "something else came in between", "", true)
	case d.poll.no != nil:
		err = d.poll.no
	case d.closing:
		err = errClosing
	}
	return d.poll.stays, err
}

// pollEndLocked ends a poll that came to nothing: who ceased to count on this
// node's vote does so again.
func (d *Device) pollEndLocked(asked replication.NodeSet) {
	c := wire.Change{Tx: d.poll.tx, Kind: d.poll.kind, Node: uint8(d.cfg.Self)}
	d.poll = poll{}
	b := &block.Batch{}
	for id := range asked.All() {
		if p := d.peers[id]; p.agreed {
			p.send(wire.Header{Type: wire.Abort}, c.Append(nil), nil, b)
		}
	}
	d.work.do(b.Finish)
}

// pollVoidLocked has a poll under way fail, for it was not everybody who was
// asked, or not of the present state.
func (d *Device) pollVoidLocked(why string) {
	if d.poll.tx != 0 && d.poll.kind != wire.ChangeLeft && d.poll.no == nil {
		d.poll.no = d.refuse("leave", why, "", true)
		d.touchLocked()
	}
}

// pollPartedLocked: a peer is out of contact, or about to agree anew.
func (d *Device) pollPartedLocked(p *peer) {
	p.given, p.parting = false, false
	if d.poll.tx != 0 && d.poll.kind == wire.ChangeLeft {
		d.poll.wait = d.poll.wait.Without(p.id)
		d.touchLocked()
		return
	}
	d.pollVoidLocked(p.name + " is out of reach")
}

// pollFrameLocked takes a frame about a node's vote.
func (d *Device) pollFrameLocked(p *peer, t wire.Type, c wire.Change, b *block.Batch) {
	switch t {
	case wire.Prepare:
		d.polledLocked(p, c, b)
	case wire.Vote:
		if c.Tx != d.poll.tx || !d.poll.wait.Has(p.id) {
			return
		}
		d.poll.wait = d.poll.wait.Without(p.id)
		switch {
		case !c.Yes && d.poll.no == nil:
			d.poll.no = d.refuse(c.What(), c.Reason, "", c.Again)
		case c.Yes && !c.Again:
			d.poll.stays = d.poll.stays.With(p.id)
		}
		d.touchLocked()
	case wire.Abort:
		if c.Kind == wire.ChangeLeave && p.parting {
			p.parting = false
			d.evaluateLocked(b)
		}
	}
}

// polledLocked answers a peer that is about to give its vote up, has given it
// up, or wants it back.
func (d *Device) polledLocked(p *peer, c wire.Change, b *block.Batch) {
	if !p.agreed {
		return
	}
	c.Reason, c.Again = d.objectionToPollLocked(p, &c)
	c.Yes = c.Reason == ""
	if !c.Yes {
		p.send(wire.Header{Type: wire.Vote}, c.Append(nil), nil, b)
		return
	}
	switch c.Kind {
	case wire.ChangeLeave:
		p.parting = true
		d.pollVoidLocked(p.name + " leaves first")
		c.Again = d.leaving
		d.evaluateLocked(b) // there may be no quorum without it
		p.send(wire.Header{Type: wire.Vote}, c.Append(nil), nil, b)
		return
	case wire.ChangeLeft:
		p.given = true
		d.votes.Note(p.id, uint32(c.Arg))
		d.eventLocked("quorum", p, "%s leaves in order: quorum does without it", p.name)
	case wire.ChangeReturn:
		d.votes.Note(p.id, uint32(c.Arg>>32))
		d.touchLocked()
		d.log.Info("a node that had left has its vote again", "device", d.opts.Name, "peer", p.name)
	}
	s := p.session
	d.saveLocked(func(err error, b *block.Batch) {
		if err == nil && p.session == s && p.agreed {
			p.send(wire.Header{Type: wire.Vote}, c.Append(nil), nil, b)
		}
		d.evaluateLocked(b)
	})
}

// objectionToPollLocked is why a peer's vote must not change now; "" is nothing.
func (d *Device) objectionToPollLocked(p *peer, c *wire.Change) (why string, again bool) {
	self := d.nodeName(d.cfg.Self)
	asked := replication.NodeSet(uint32(c.Arg))
	unseen := d.agreedLocked().Without(p.id) &^ asked
	switch {
	case d.closing:
		return self + " is stopping", false
	case c.Kind == wire.ChangeLeft:
		return "", false
	case unseen != 0:
		return fmt.Sprintf("%s is in contact with %s, and %s is not", self, d.namesLocked(unseen), p.name), true
	case c.Kind == wire.ChangeReturn && d.leaving:
		return self + " is about to leave", true
	case c.Kind == wire.ChangeReturn && d.disks.Has(d.cfg.Self) && d.meta == nil && !d.votes.Given(d.cfg.Self) && d.votesKept[p.id] != uint32(c.Arg>>32):
		return "the disk of " + self + " is not attached", true
	case c.Kind == wire.ChangeReturn:
		return "", false
	case d.leaving && d.votes.Given(d.cfg.Self):
		return self + " is leaving itself", true
	case d.poll.tx != 0 && d.poll.kind == wire.ChangeLeave && d.poll.no == nil && d.cfg.Self < p.id:
		return self + " is about to leave, too, and goes first", true
	}
	return "", false
}

// learnVotesLocked takes over what a peer knows of who has a vote, and of what
// origin the device is. An agreement waits until that is durable.
func (d *Device) learnVotesLocked(theirs *replication.Facts) {
	mine := replication.Facts{Origin: d.origin, Gens: d.gens, Role: d.role, Member: d.member}
	if mine.Foreign(theirs) {
		return
	}
	news := d.votes.Learn(&theirs.Votes, d.cfg.Self)
	if d.meta != nil && mine.Adopts(theirs) {
		d.newcomer = d.newcomer || mine.Joins(theirs)
		d.origin, news = theirs.Origin, true
	}
	if !news {
		return
	}
	d.votesNews = true
	d.saveLocked(func(err error, b *block.Batch) {
		if err == nil {
			d.votesNews = false
		}
		d.evaluateLocked(b)
	})
}

// ofOriginLocked: this disk has, or is about to have, what p's has.
func (d *Device) ofOriginLocked(p *peer) {
	theirs := &p.hs.theirs
	if p.hs.mine.Foreign(theirs) {
		// What it has heard of generations was about another device.
		d.gens.Seen, d.gens.Noted = theirs.Gens.Seen, theirs.Gens.Noted
	}
	if theirs.Origin != replication.NoOrigin {
		d.origin = theirs.Origin
	}
}

// regainLocked asks for this node's vote, if it gave it up and all that have one
// are in reach.
func (d *Device) regainLocked() {
	ask := d.agreedLocked()
	if d.returning || d.leaving || d.detaching || d.closing || d.ctx == nil || d.meta == nil || !d.dstat.HasData() || d.poll.tx != 0 || !d.votes.Given(d.cfg.Self) {
		return
	}
	may := d.votes.MayReturn(d.cfg.Self, d.disksSinceLocked(), d.reachLocked()|d.returnedToLocked()) && d.pollableLocked(ask)
	if !may && !mutate.Is(mutate.ReturnUnasked) {
		return
	}
	d.returning = true
	d.done.Go(func() { d.regain(ask) })
}

// returnedToLocked is who says that this node has its vote again, which this node did
// not come to note. One whose disk is not attached any more has that on its disk.
func (d *Device) returnedToLocked() (s replication.NodeSet) {
	for id := range d.agreedLocked().All() {
		if d.peers[id].hs.theirs.Votes[d.cfg.Self] == d.votes[d.cfg.Self]+1 {
			s = s.With(id)
		}
	}
	return s
}

// returnPause is how long a node waits that was not given its vote back.
const returnPause = 200 * time.Millisecond

func (d *Device) regain(ask replication.NodeSet) {
	ctx, cancel := context.WithTimeout(d.ctx, voteTimeout)
	defer cancel()
	d.mu.Lock()
	count := d.votes[d.cfg.Self] + 1
	d.claimed = count
	d.mu.Unlock()
	var err error
	if !mutate.Is(mutate.ReturnUnasked) {
		_, err = d.ask(ctx, wire.Change{Kind: wire.ChangeReturn, Arg: uint64(count)<<32 | uint64(ask)}, ask)
	}
	d.mu.Lock()
	if err == nil && d.poll.no == nil && !d.leaving && !d.closing && d.votes[d.cfg.Self]+1 == count {
		d.votes.Take(d.cfg.Self)
		d.touchLocked()
		d.eventLocked("quorum", nil, "this node, which had left in order, has its vote again")
		d.saveLocked(func(_ error, b *block.Batch) { d.evaluateLocked(b) })
	}
	if d.poll.kind == wire.ChangeReturn {
		d.poll = poll{}
	}
	d.mu.Unlock()
	if err != nil {
		d.log.Debug("no vote yet", "device", d.opts.Name, "because", err)
		select {
		case <-time.After(returnPause):
		case <-d.ctx.Done():
		}
	}
	b := &block.Batch{}
	d.mu.Lock()
	d.returning = false
	if d.ctx.Err() == nil {
		d.evaluateLocked(b)
	}
	d.mu.Unlock()
	b.Finish()
}

// resignedLocked is the votes after a failed disk's was given up; ok: that serves
// those who have the data.
func (d *Device) resignedLocked() (v replication.Votes, ok bool) {
	all := d.agreedLocked()
	ok = d.cfg.Quorum.Kind == replication.QuorumMajority && d.votes.MayLeave(d.cfg.Self, d.disks, d.reachLocked()) &&
		d.pollableLocked(all) && d.heirLocked(all)
	v = d.votes
	v.Give(d.cfg.Self)
	return v, ok
}

// tellLeftLocked tells all in contact that this node's vote is given up, for good:
// nobody counts on a disk that is known to have failed. Who does not hear it
// learns it from the next facts.
func (d *Device) tellLeftLocked(b *block.Batch) {
	c := wire.Change{Tx: randomID(), Kind: wire.ChangeLeft, Node: uint8(d.cfg.Self), Arg: uint64(d.votes[d.cfg.Self])}
	for id := range d.agreedLocked().All() {
		d.peers[id].send(wire.Header{Type: wire.Prepare}, c.Append(nil), nil, b)
	}
}
