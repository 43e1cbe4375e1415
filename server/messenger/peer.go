package messenger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/rpc/reconnect"
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// Peer is a node that this one keeps a session with.
type Peer struct {
	Name    string
	ID      int
	Address string // where it listens
	Bind    string // local IP to dial it from; "" leaves the choice to the host
}

// peer runs the sessions with one node. Everything marked as of the peer's
// goroutine is touched by run and by the functions in box alone.
//
//	none → establishing → up → none
//	          one link      │
//	          after the     └ links may be cut and come back meanwhile
//	          other
type peer struct {
	m       *Messenger
	id      int
	box     *mailbox
	ctx     context.Context
	cancel  context.CancelFunc
	done    chan struct{}  // closed when run has returned
	helpers sync.WaitGroup // dials and probes

	in   [2]*block.Pool  // what its links are read into
	away [2]atomic.Int32 // goroutines that read its links until a disk kept them

	cfg   atomic.Pointer[Peer]
	sess  atomic.Pointer[Session] // that is up; for snapshots
	view  atomic.Pointer[view]
	plain atomic.Pointer[plain] // of the last dial that failed

	// Of the peer's goroutine.
	s         *Session       // nil, establishing, or up
	wanted    bool           // false: disconnected by an administrator
	fsm       *reconnect.FSM // of sessions: void unless wanted, passive where the peer dials
	upTries   uint64         // attempts made when it was up last
	lastFrom  uint64         // incarnation of the peer's process that lastSeq belongs to
	lastSeq   uint64         // the newest session it began with us
	probing   bool
	probes    *reconnect.FSM
	probeAt   time.Time
	moved     bool // it has not been seen at its new address yet: that nobody listens there proves nothing
	altSecret bool // the next dial tries the old secret
	waiters   []chan error
	reason    *Reason // with which to end when ctx ends
}

// view is the part of the goroutine's state that snapshots show.
type view struct {
	at       time.Time
	stats    reconnect.Stats // as of then
	retryAt  time.Time       // zero: no dial is planned
	links    [2]string
	relinks  [2]uint64
	failures int
}

func (p *peer) name() string { return p.cfg.Load().Name }

// dials reports whether this node is the one that dials.
func (p *peer) dials() bool { return p.m.opt.NodeID > p.id }

// post has f called on the peer's goroutine.
func (p *peer) post(f func()) bool { return p.box.post(f) }

// do has f called on the peer's goroutine and waits for it. Snapshots show what
// it did when do returns.
func (p *peer) do(ctx context.Context, f func()) error {
	called := make(chan struct{})
	if !p.post(func() { f(); p.publish(); close(called) }) {
		return errClosed
	}
	select {
	case <-called:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.done:
		return errClosed
	}
}

var errClosed = errors.New("the messenger is shut down, or the node was removed")

// run is the peer's goroutine.
func (p *peer) run() {
	defer close(p.done)
	timer := time.NewTimer(0)
	defer timer.Stop()
	if !p.dials() {
		p.knock()
	}
	for {
		p.act()
		p.publish()
		timer.Reset(p.untilDue())
		select {
		case <-p.ctx.Done():
			p.stop()
			return
		case <-timer.C:
		case <-p.box.ready:
			for _, f := range p.box.take() {
				f()
			}
		}
	}
}

// stop ends the session and everything else that is under way.
func (p *peer) stop() {
	r := Reason{ReasonShutdown, "this node shuts down"}
	if p.reason != nil {
		r = *p.reason
	}
	if p.s != nil {
		p.endSession(p.s, r)
	}
	p.cancel()
	p.helpers.Wait()
	// What was posted meanwhile holds connections that must be closed, and
	// callers that wait.
	for left := p.box.close(); len(left) > 0; left = p.box.take() {
		p.wanted = false
		for _, f := range left {
			f()
		}
	}
	p.answer(errClosed)
	p.publish()
}

// act does what is due.
func (p *peer) act() {
	now := time.Now()
	s := p.s
	switch {
	case p.ctx.Err() != nil:
	case s == nil:
		p.actDown(now)
	case !s.up:
		if !s.dialer && now.Sub(s.began) >= p.m.opt.HandshakeTimeout {
			p.abandon(errors.New("the peer dialled one link and not the other"))
		}
	default:
		p.actUp(s, now)
	}
}

// actDown begins to connect, where it is time to: it dials, or waits to be
// dialled. How long an attempt may take is not for the FSM to say.
func (p *peer) actDown(now time.Time) {
	if p.fsm.Run(now) != reconnect.Connect {
		return
	}
	if p.dials() {
		p.begin()
	} else {
		p.fsm.Listening(now)
	}
}

// actUp redials the links that are cut, and gives up the session when one has
// been so for too long.
func (p *peer) actUp(s *Session, now time.Time) {
	for _, l := range s.links {
		if l.downSince.IsZero() {
			if s.redials(l) && !now.Before(l.retryAt) {
				p.dial(s, l)
			}
			continue
		}
		if now.Sub(l.downSince) > p.linkLimit() {
			p.endSession(s, Reason{ReasonTimeout, fmt.Sprintf("the %v link was cut and did not come back within %v", l.kind, p.linkLimit())})
			return
		}
		if s.dialer && !l.dialing && !now.Before(l.retryAt) {
			p.dial(s, l)
		}
	}
	if p.mayProbe(s) && !now.Before(p.probeAt) {
		p.probe(s)
	}
}

// mayProbe reports whether it is for this side to find out about the peer.
func (p *peer) mayProbe(s *Session) bool {
	return !s.dialer && s.cut() && !p.probing && !p.m.opt.Passive
}

// redials reports whether a link is to be dialled anew though it is not cut: a
// path that dropped packets for a while works again long before TCP tries its
// old connections.
func (s *Session) redials(l *link) bool { return s.dialer && s.doubtful && !l.dialing }

// doubt takes note that the peer of a session has missed pings, or is heard
// again.
func (p *peer) doubt(session uint64, on bool) {
	if s := p.s; s != nil && s.up && s.id == session {
		s.doubtful = on
	}
}

// linkLimit is how long a link may be cut before the session ends.
func (p *peer) linkLimit() time.Duration {
	limit, _, _ := p.m.mon.Limit(p.id)
	return limit
}

// untilDue is how long act has nothing to do.
func (p *peer) untilDue() time.Duration {
	now := time.Now()
	wait := time.Hour
	due := func(t time.Time) { wait = min(wait, max(0, t.Sub(now))) }
	s := p.s
	switch {
	case s == nil:
		if at, ok := p.fsm.Deadline(now); ok {
			due(at)
		}
	case !s.up:
		if !s.dialer {
			due(s.began.Add(p.m.opt.HandshakeTimeout))
		}
	default:
		for _, l := range s.links {
			if l.downSince.IsZero() {
				if s.redials(l) {
					due(l.retryAt)
				}
				continue
			}
			due(l.downSince.Add(p.linkLimit() + time.Millisecond))
			if s.dialer && !l.dialing {
				due(l.retryAt)
			}
		}
		if p.mayProbe(s) {
			due(p.probeAt)
		}
	}
	return wait
}

// answer tells those who wait for the node to come up how it went.
func (p *peer) answer(err error) {
	for _, w := range p.waiters {
		w <- err // capacity 1
	}
	p.waiters = nil
}

// publish brings what snapshots show up to date.
func (p *peer) publish() {
	now := time.Now()
	v := &view{at: now, stats: p.fsm.Stats(now)}
	if v.stats.State == reconnect.Backoff && p.s == nil {
		v.retryAt, _ = p.fsm.Deadline(now)
	}
	v.failures = int(v.stats.AttemptedConnections - p.upTries)
	for k := range v.links {
		v.links[k] = p.linkState(wire.Link(k))
		if p.s != nil {
			v.relinks[k] = p.s.links[k].connectSeq
		}
	}
	p.view.Store(v)
}

func (p *peer) linkState(k wire.Link) string {
	s := p.s
	switch {
	case s == nil:
		return "down"
	case s.up && s.links[k].downSince.IsZero():
		return "connected"
	}
	return "connecting"
}
