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
}

type simFrame struct {
	h       wire.Header
	payload []byte
}

// simLink is one direction of one link: frames in order, with a delay each.
type simLink struct {
	mu     sync.Mutex
	cond   *sync.Cond
	q      []simFrame
	begun  bool // both sides know of the session
	closed bool
	stuck  bool // nothing arrives any more
}

func newSession(c *Cluster, from, to *Node) *session {
	s := &session{c: c, from: from, to: to, set: to.set}
	for i := range s.links {
		l := &simLink{}
		l.cond = sync.NewCond(&l.mu)
		s.links[i] = l
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
	if !l.closed {
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
			l.mu.Lock()
			l.closed = true
			l.q = nil
			l.mu.Unlock()
			l.cond.Broadcast()
		}
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
	if d := x.s.c.delay(); d > 0 {
		time.Sleep(d)
	}
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
