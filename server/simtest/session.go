package simtest

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/relief"
	"github.com/lockstepd/lockstep/server/wire"
)

// session is one side of a contact: what from sends to to.
type session struct {
	c        *Cluster
	from, to *Node
	set      *device.Set // of to, when the session began
	other    *session
	links    [2]*simLink
	wg       sync.WaitGroup
	watch    *relief.Watch
	stop     context.CancelFunc // of watch
	lapsed   atomic.Bool        // the lease has run out
	late     atomic.Bool        // it is over, and from has not heard of that
}

type simFrame struct {
	h       wire.Header
	payload []byte
	at      time.Time // when it arrives; zero: after its own delay
}

// simLink is one direction of one link: frames in order, with a delay each.
type simLink struct {
	latency func() time.Duration // how long the next frame is under way; nil: see Options.Delay
	gone    chan struct{}        // is closed with it

	mu     sync.Mutex // guards what is below
	cond   *sync.Cond
	q      []simFrame
	begun  bool // both sides know of the session
	sealed bool // nothing more is sent
	closed bool
	stuck  bool // nothing arrives any more
}

func newLink(latency func() time.Duration) *simLink {
	l := &simLink{latency: latency, gone: make(chan struct{})}
	l.cond = sync.NewCond(&l.mu)
	return l
}

// close has nothing arrive any more.
func (l *simLink) close() {
	l.mu.Lock()
	if !l.closed {
		l.closed, l.q = true, nil
		close(l.gone)
	}
	l.mu.Unlock()
	l.cond.Broadcast()
}

// seal has nothing sent any more. What is under way arrives.
func (l *simLink) seal() {
	l.mu.Lock()
	l.sealed = true
	l.mu.Unlock()
}

func newSession(c *Cluster, from, to *Node) *session {
	s := &session{c: c, from: from, to: to, set: to.set}
	for i := range s.links {
		s.links[i] = newLink(c.latency(from, to, wire.Link(i)))
	}
	return s
}

// PeerID implements device.Session.
func (s *session) PeerID() int { return s.to.ID }

// Features is what both sides speak; none where Options.Older says so of one.
func (s *session) Features() uint64 {
	if s.c.opts.Older.Has(s.from.ID) || s.c.opts.Older.Has(s.to.ID) {
		return 0
	}
	return wire.Features
}

// Send implements device.Session. The frame goes through the codec, so what
// arrives is what a wire would carry.
func (s *session) Send(h *wire.Header, payload []byte, _ *block.Buf, _ *block.Batch) {
	if s.c.killed(s.other.set) {
		return
	}
	hh := *h
	hh.Version = wire.MaxVersion
	hh.Len = uint32(len(payload))
	var raw [wire.HeaderSize]byte
	hh.Put(raw[:])
	f := simFrame{payload: append([]byte(nil), payload...)}
	if err := f.h.Decode(raw[:], 0); err != nil {
		panic(fmt.Sprintf("a frame that no peer would take: %v", err))
	}
	s.c.pass(sendPoint(h.Type), s.from, s.to)
	l := s.links[h.Type.Link()]
	l.mu.Lock()
	if !l.closed && !l.sealed {
		if l.latency != nil {
			f.at = time.Now().Add(l.latency())
		}
		l.q = append(l.q, f)
	}
	l.mu.Unlock()
	l.cond.Signal()
}

// StopWatches is called at the end, when every node was killed.
func (c *Cluster) StopWatches() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, stop := range c.watches {
		stop()
	}
	c.watches = nil
}

func (s *session) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.watch, s.stop = relief.NewWatch(), cancel
	s.c.mu.Lock()
	s.c.watches = append(s.c.watches, cancel)
	s.c.mu.Unlock()
	go s.watch.Run(ctx)
	for _, l := range s.links {
		d := &delivery{s: s, l: l}
		s.watch.Add(&d.post, d)
		s.wg.Add(1)
		go d.run(false)
	}
}

// begin lets arrive what is sent. As with a messenger, nothing does before its
// receiver has heard of the session.
func (s *session) begin() {
	for _, l := range s.links {
		l.mu.Lock()
		l.begun = true
		l.mu.Unlock()
		l.cond.Broadcast()
	}
}

// end stops delivery in both directions of this side.
func (s *session) end() {
	for _, side := range []*session{s, s.other} {
		for _, l := range side.links {
			l.close()
		}
	}
}

// leave is that for this side alone: what it has sent still arrives.
func (s *session) leave() {
	for _, l := range s.links {
		l.seal()
	}
	for _, l := range s.other.links {
		l.close()
	}
}

// wait returns when nothing more is delivered to this side.
func (s *session) wait() {
	s.other.wg.Wait()
	s.other.stop()
}

// delivery reads one link, as the reader of a messenger does: while a disk
// keeps it, another goroutine goes on in its place.
type delivery struct {
	s     *session
	l     *simLink
	batch block.Batch
	post  block.Post
}

// MayRelieve implements relief.Holder.
func (x *delivery) MayRelieve() bool { return true }

// Relieved implements relief.Holder.
func (x *delivery) Relieved() { go x.run(true) }

// run delivers, from after what was handled last where it takes another's place.
func (x *delivery) run(instead bool) {
	for instead || x.next() {
		instead = false
		if !x.batch.FinishOn(&x.post) {
			return
		}
	}
	x.s.wg.Done()
}

// next handles the next frame; false: the link is closed.
func (x *delivery) next() bool {
	l := x.l
	l.mu.Lock()
	for (len(l.q) == 0 || l.stuck || !l.begun) && !l.closed {
		l.cond.Wait()
	}
	if l.closed {
		l.mu.Unlock()
		return false
	}
	f := l.q[0]
	l.q = l.q[1:]
	l.mu.Unlock()
	x.s.c.underWay(l, f.at)
	x.s.c.pass(takePoint(f.h.Type), x.s.to, x.s.from)
	l.mu.Lock()
	closed := l.closed
	l.mu.Unlock()
	if closed {
		return false
	}
	x.s.set.HandleFrame(x.s.other, &wire.Frame{Header: f.h, Payload: f.payload}, &x.batch)
	return true
}

// latency is that of one link of a new session, one way.
func (c *Cluster) latency(from, to *Node, link wire.Link) func() time.Duration {
	switch {
	case c.opts.Latency != nil:
		return func() time.Duration { return c.opts.Latency(from.ID, to.ID, link) }
	case c.opts.Uneven:
		most := c.spell(200 * time.Millisecond)
		return func() time.Duration { return c.upTo(most) }
	}
	return nil
}

// underWay waits until a frame arrives, or the link is closed.
func (c *Cluster) underWay(l *simLink, at time.Time) {
	if at.IsZero() {
		if d := c.delay(); d > 0 {
			time.Sleep(d)
		}
		return
	}
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.gone:
	}
}
