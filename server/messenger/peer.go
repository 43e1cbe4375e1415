package messenger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
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

	in [2]*block.Pool // what its links are read into

	cfg  atomic.Pointer[Peer]
	sess atomic.Pointer[Session] // that is up; for snapshots
	view atomic.Pointer[view]

	// Of the peer's goroutine.
	s         *Session // nil, establishing, or up
	wanted    bool     // false: disconnected by an administrator
	retry     retry
	retryAt   time.Time
	lastFrom  uint64 // incarnation of the peer's process that lastSeq belongs to
	lastSeq   uint64 // the newest session it began with us
	probing   bool
	probes    retry
	probeAt   time.Time
	altSecret bool // the next dial tries the old secret
	waiters   []chan error
	reason    *Reason // with which to end when ctx ends
}

// view is the part of the goroutine's state that snapshots show.
type view struct {
	wanted   bool
	backoff  time.Duration
	retryAt  time.Time
	links    [2]string
	relinks  [2]uint64
	failures int
}

func (p *peer) name() string { return p.cfg.Load().Name }

// dials reports whether this node is the one that dials.
func (p *peer) dials() bool { return p.m.opt.NodeID > p.id }

// post has f called on the peer's goroutine.
func (p *peer) post(f func()) bool { return p.box.post(f) }

// do has f called on the peer's goroutine and waits for it.
func (p *peer) do(ctx context.Context, f func()) error {
	called := make(chan struct{})
	if !p.post(func() { f(); close(called) }) {
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
		if p.wanted && p.dials() && !now.Before(p.retryAt) {
			p.begin()
		}
	case !s.up:
		if !s.dialer && now.Sub(s.began) >= p.m.opt.HandshakeTimeout {
			p.abandon(errors.New("the peer dialled one link and not the other"))
		}
	default:
		p.actUp(s, now)
	}
}

// actUp redials the links that are cut, and gives up the session when one has
// been so for too long.
func (p *peer) actUp(s *Session, now time.Time) {
	for _, l := range s.links {
		if l.downSince.IsZero() {
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
	if !s.dialer && s.cut() && !p.probing && !now.Before(p.probeAt) {
		p.probe(s)
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
		if p.wanted && p.dials() {
			due(p.retryAt)
		}
	case !s.up:
		if !s.dialer {
			due(s.began.Add(p.m.opt.HandshakeTimeout))
		}
	default:
		for _, l := range s.links {
			if l.downSince.IsZero() {
				continue
			}
			due(l.downSince.Add(p.linkLimit() + time.Millisecond))
			if s.dialer && !l.dialing {
				due(l.retryAt)
			}
		}
		if !s.dialer && s.cut() && !p.probing {
			due(p.probeAt)
		}
	}
	return wait
}

// begin starts a new session as its dialer.
func (p *peer) begin() {
	s := p.newSession(newCookie())
	s.dialer, s.globalSeq = true, p.m.lastGlobal.Add(1)
	p.s = s
	p.m.note(func(t *cluster.Table) { t.Attempt(p.id, time.Now(), "dialling "+p.cfg.Load().Address) })
	for _, l := range s.links {
		p.dial(s, l)
	}
}

// dial makes one connection of a link, in the background.
func (p *peer) dial(s *Session, l *link) {
	l.dialing = true
	l.connectSeq++
	hello := p.hello(wire.LinkKind(l.kind))
	hello.Session, hello.PeerSession = s.cookie, s.answer
	hello.ConnectSeq, hello.GlobalSeq, hello.Received = l.connectSeq, s.globalSeq, l.received.Load()
	secret := p.m.secretFor(p.altSecret)
	p.helpers.Go(func() {
		a, err := p.m.dialPeer(s.ctx, *p.cfg.Load(), &hello, secret)
		if !p.post(func() { p.dialled(s, l, a, err) }) && a != nil {
			_ = a.c.Close() // nobody is left to use it
		}
	})
}

func (p *peer) hello(kind wire.LinkKind) wire.HelloMsg {
	m := p.m
	promise := m.mon.Promise()
	return wire.HelloMsg{
		MinVersion: wire.MinVersion, MaxVersion: wire.MaxVersion, Kind: kind,
		From: uint8(m.opt.NodeID), To: uint8(p.id), Cluster: m.opt.Cluster, Node: m.opt.NodeName,
		Incarnation: m.incarnation, Features: m.opt.Features,
		TickMS: uint32(promise.Tick.Milliseconds()), PingCount: uint16(promise.Pings),
	}
}

// dialled is the outcome of dial.
func (p *peer) dialled(s *Session, l *link, a *admitted, err error) {
	l.dialing = false
	if p.s != s || s.dead.Load() {
		if a != nil {
			_ = a.c.Close() // of a session that is over
		}
		return
	}
	switch {
	case err == nil && s.up:
		err = p.checkResumed(s, a)
	case err == nil:
		err = p.agree(s, a)
	}
	if err != nil {
		if a != nil {
			_ = a.c.Close() // it does not fit the session
		}
		p.dialFailed(s, l, err)
		return
	}
	p.altSecret = p.altSecret && s.up
	st := newStream(a.c)
	if !s.up {
		l.held, l.heldFrom = st, a.welcome.Received
		p.upIfComplete(s)
		return
	}
	p.relinked(s, l, st, a.welcome.Received)
}

// checkResumed sees whether the peer goes on with the session that we mean.
func (p *peer) checkResumed(s *Session, a *admitted) error {
	if a.challenge.Incarnation != s.remote {
		return errRestarted
	}
	if a.welcome.Session != s.answer {
		return &RefusedError{Code: wire.RefuseSession, Reason: "it went on with another session", Proven: true}
	}
	return nil
}

var errRestarted = errors.New("a new process answers in the peer's name")

// agree takes what the first link of a new session was told, and sees whether
// the second was told the same.
func (p *peer) agree(s *Session, a *admitted) error {
	c := &a.challenge
	if s.answer == 0 {
		s.answer, s.remote = a.welcome.Session, c.Incarnation
		s.version, s.feats = c.Version, c.Features&p.m.opt.Features
		s.promise = promiseOf(c.TickMS, c.PingCount)
		s.setKeys(a.secret)
		return nil
	}
	if s.remote != c.Incarnation || s.answer != a.welcome.Session || s.version != c.Version {
		return errRestarted
	}
	return nil
}

func promiseOf(tickMS uint32, pings uint16) cluster.Promise {
	return cluster.Promise{Tick: time.Duration(tickMS) * time.Millisecond, Pings: int(pings)}
}

// dialFailed decides what a failed dial means.
func (p *peer) dialFailed(s *Session, l *link, err error) {
	if r, ok := errors.AsType[*RefusedError](err); ok && r.Code == wire.RefuseSecret || errors.Is(err, errWrongSecret) {
		p.altSecret = !p.altSecret
	}
	if !s.up {
		p.abandon(err)
		return
	}
	p.m.note(func(t *cluster.Table) { t.Failed(p.id, time.Now(), err.Error()) })
	if r, over := overBecause(err); over {
		p.endSession(s, r)
		return
	}
	l.retryAt = time.Now().Add(l.retry.next())
}

// overBecause says whether the outcome of a redial proves that the session is
// over, and why.
func overBecause(err error) (Reason, bool) {
	switch r, ok := errors.AsType[*RefusedError](err); {
	case refused(err):
		return Reason{ReasonClosed, "the peer's process is gone: nobody listens at its address"}, true
	case errors.Is(err, errRestarted):
		return Reason{ReasonRestarted, err.Error()}, true
	case ok && r.Proven && (r.Code == wire.RefuseSession || r.Code == wire.RefuseStale):
		return Reason{ReasonReset, r.Reason}, true
	case ok && r.Proven && r.Code == wire.RefuseDisconnected:
		return Reason{ReasonDisconnect, r.Reason}, true
	case ok && r.Proven && r.Code == wire.RefuseShutdown:
		return Reason{ReasonShutdown, r.Reason}, true
	}
	return Reason{}, false
}

// abandon gives up a session that did not come up.
func (p *peer) abandon(err error) {
	s := p.s
	p.s = nil
	p.release(s, true)
	p.retryAt = time.Now().Add(p.retry.next())
	p.m.note(func(t *cluster.Table) { t.Failed(p.id, time.Now(), err.Error()) })
	p.m.complain(p.name(), "cannot connect to node "+p.name(), err)
	p.answer(err)
}

// offered gives the verdict on an incoming connection that proved the cookie.
func (p *peer) offered(o *offer) {
	h := &o.hello
	var r *RefusedError
	switch {
	case p.ctx.Err() != nil:
		r = refusal(wire.RefuseShutdown, "node %s shuts down", p.m.opt.NodeName)
	case !p.wanted:
		r = refusal(wire.RefuseDisconnected, "node %s was disconnected there by its administrator: run \"node connect %s\" there", p.m.opt.NodeName, p.m.opt.NodeName)
	case h.Kind == wire.KindKnock:
		p.knocked(o)
		return
	case p.dials():
		r = refusal(wire.RefuseDirection, "node %s has the higher id and is the one that dials", p.m.opt.NodeName)
	default:
		r = p.admit(o)
	}
	if r != nil {
		o.refuse(r)
		p.m.refusedPeer(o, r)
	}
}

// knocked is called when a node that we dial says that it is there.
func (p *peer) knocked(o *offer) {
	_ = o.welcome(0, 0) // best effort: the dial that follows is the answer
	_ = o.c.Close()
	if p.s == nil {
		p.retry.reset()
		p.retryAt = time.Time{}
	}
}

// admit finds the session that an offer belongs to, or begins it.
func (p *peer) admit(o *offer) *RefusedError {
	h, s := &o.hello, p.s
	if s != nil && s.cookie == h.Session && s.remote == h.Incarnation {
		l := s.links[h.Kind]
		if h.PeerSession != 0 && h.PeerSession != s.answer || h.ConnectSeq <= l.connectSeq {
			return refusal(wire.RefuseStale, "a newer connection of this session exists")
		}
		p.join(s, l, o)
		return nil
	}
	if h.PeerSession != 0 {
		return refusal(wire.RefuseSession, "node %s does not know this session (any more)", p.m.opt.NodeName)
	}
	if h.Incarnation == p.lastFrom && h.GlobalSeq <= p.lastSeq {
		return refusal(wire.RefuseStale, "a newer session was begun meanwhile")
	}
	p.supersede(h)
	s = p.newSession(h.Session)
	s.answer, s.remote, s.globalSeq = newCookie(), h.Incarnation, h.GlobalSeq
	s.version, s.feats, s.promise = o.version, o.features, promiseOf(h.TickMS, h.PingCount)
	s.setKeys(o.secret)
	p.s, p.lastFrom, p.lastSeq = s, h.Incarnation, h.GlobalSeq
	p.m.note(func(t *cluster.Table) { t.Attempt(p.id, time.Now(), "dialled by the peer") })
	p.join(s, s.links[h.Kind], o)
	return nil
}

// supersede ends what a new session replaces.
func (p *peer) supersede(h *wire.HelloMsg) {
	s := p.s
	switch {
	case s == nil:
	case !s.up:
		p.s = nil
		p.release(s, true)
	case s.remote != h.Incarnation:
		p.endSession(s, Reason{ReasonRestarted, "the peer's process was restarted"})
	default:
		p.endSession(s, Reason{ReasonReset, "the peer began a new session"})
	}
}

// join gives the link of a session the connection that was offered for it.
func (p *peer) join(s *Session, l *link, o *offer) {
	l.connectSeq = o.hello.ConnectSeq
	// The predecessor may be half open: nothing of it is taken in after we say
	// what we have.
	l.detach(true)
	l.dropHeld()
	_ = o.c.SetWriteDeadline(time.Now().Add(time.Second))
	if err := o.welcome(s.answer, l.received.Load()); err != nil {
		_ = o.c.Close() // the dialer will dial again
		p.markDown(s, l, err)
		return
	}
	_ = o.c.SetDeadline(time.Time{})
	st := newStream(o.c)
	if s.up {
		p.relinked(s, l, st, o.hello.Received)
		return
	}
	l.held, l.heldFrom = st, o.hello.Received
	p.upIfComplete(s)
}

// dropHeld closes a connection that waits for the session to come up.
func (l *link) dropHeld() {
	if l.held != nil {
		l.held.close(true)
		l.held = nil
	}
}

// upIfComplete brings a session up whose links are both there.
func (p *peer) upIfComplete(s *Session) {
	d, m := s.links[wire.Data], s.links[wire.Meta]
	if d.held == nil || m.held == nil {
		return
	}
	s.up = true
	now := p.m.clock()
	s.heard.Store(int64(now))
	s.sentMeta.Store(int64(now))
	s.upAt = time.Now()
	p.sess.Store(s)
	p.m.nodeUp(p, s)
	p.m.mon.Watch(p.id, s.id, s.promise, s)
	p.m.opt.Handler.SessionUp(s)
	for _, l := range [...]*link{m, d} {
		st := l.held
		l.held = nil
		if err := l.attach(st, l.heldFrom); err != nil {
			st.close(true)
			p.endSession(s, Reason{ReasonProtocol, err.Error()})
			return
		}
	}
	p.answer(nil)
}

// relinked puts a link that was cut back into service.
func (p *peer) relinked(s *Session, l *link, st *stream, received uint64) {
	l.detach(true)
	if err := l.attach(st, received); err != nil {
		st.close(true)
		p.endSession(s, Reason{ReasonProtocol, err.Error()})
		return
	}
	if !s.cut() {
		p.probes.reset()
		p.probeAt = time.Time{}
		s.relinking = false
	}
	p.m.relinked(p, l)
}

// linkDown is called when a connection of a link has ended.
func (p *peer) linkDown(l *link, st *stream, err error) {
	s := l.s
	l.mu.Lock()
	current := l.st == st
	l.mu.Unlock()
	if p.s != s || !current {
		return
	}
	l.detach(true)
	p.markDown(s, l, err)
	if s.relinking {
		return
	}
	l.hungUp = hungUp(err)
	if s.links[0].hungUp && s.links[1].hungUp {
		p.endSession(s, Reason{ReasonClosed, "the peer closed both links without a goodbye: its process is gone"})
		return
	}
	if protocolFault(err) {
		p.m.complain(p.name(), fmt.Sprintf("the %v link with node %s was cut", l.kind, p.name()), err)
		if p.barren(l) {
			p.endSession(s, Reason{ReasonProtocol, fmt.Sprintf("the %v link ended %d times in a row without progress: %v", l.kind, maxBarren, err)})
		}
	}
}

// barren counts connections that ended on a fault without having brought
// anything new, and reports whether there were too many.
func (p *peer) barren(l *link) bool {
	if l.received.Load() > l.progress {
		l.barren = 0
	}
	l.barren++
	return l.barren >= maxBarren
}

// markDown notes that a link of a session that is up has no connection.
func (p *peer) markDown(s *Session, l *link, err error) {
	if !s.up {
		return
	}
	if l.downSince.IsZero() {
		l.downSince = time.Now()
	}
	wait := time.Duration(0)
	if l.received.Load() > l.progress {
		l.retry.reset()
	}
	wait = l.retry.next()
	l.retryAt = time.Now().Add(wait)
	p.m.note(func(t *cluster.Table) {
		t.Failed(p.id, time.Now(), fmt.Sprintf("the %v link was cut: %v", l.kind, err))
	})
}

// goodbye is called when the peer said so.
func (p *peer) goodbye(s *Session, bye wire.GoodbyeMsg) {
	if p.s != s {
		return
	}
	switch bye.Code {
	case wire.GoodbyeRelink:
		p.relink(s, errors.New("the peer asked for new connections: "+bye.Reason))
	case wire.GoodbyeShutdown:
		p.endSession(s, Reason{ReasonShutdown, "the peer said: " + bye.Reason})
	case wire.GoodbyeDisconnect:
		p.endSession(s, Reason{ReasonDisconnect, "the peer said: " + bye.Reason})
	default:
		p.endSession(s, Reason{ReasonReset, "the peer said: " + bye.Reason})
	}
}

// relink drops both connections of a session, which goes on.
func (p *peer) relink(s *Session, why error) {
	s.relinking = true
	for _, l := range s.links {
		l.retry.reset()
		l.detach(false)
		p.markDown(s, l, why)
	}
}

// probe finds out whether the peer's process is there by connecting to where
// it listens. It is for the side that does not dial: the other one redials.
func (p *peer) probe(s *Session) {
	p.probing = true
	p.probeAt = time.Now().Add(p.probes.next())
	p.helpers.Go(func() {
		err := p.m.probe(s.ctx, *p.cfg.Load())
		p.post(func() {
			p.probing = false
			if p.s == s && s.up && refused(err) && s.cut() {
				r, _ := overBecause(err)
				p.endSession(s, r)
			}
		})
	})
}

// cut reports whether a link has no connection.
func (s *Session) cut() bool {
	return !s.links[0].downSince.IsZero() || !s.links[1].downSince.IsZero()
}

// knock tells the node that dials us that we are there.
func (p *peer) knock() {
	if !p.wanted || p.m.opt.NoKnock {
		return
	}
	hello := p.hello(wire.KindKnock)
	secret := p.m.secretFor(false)
	p.helpers.Go(func() {
		// Its outcome does not matter: a node that is there will dial.
		if a, err := p.m.dialPeer(p.ctx, *p.cfg.Load(), &hello, secret); err == nil {
			_ = a.c.Close()
		}
	})
}

// endSession ends s for the reason given, if it is the current one.
func (p *peer) endSession(s *Session, r Reason) {
	if p.s != s {
		return
	}
	p.s = nil
	s.ending.Store(true)
	p.sess.CompareAndSwap(s, nil)
	p.farewell(s, r)
	p.release(s, r.Code != ReasonDisconnect && r.Code != ReasonShutdown && r.Code != ReasonRemoved)
	p.m.mon.Unwatch(p.id, s.id)
	if s.up {
		p.m.opt.Handler.SessionDown(s, r)
		p.m.nodeDown(p, s, r)
	}
	for _, l := range s.links {
		l.discard()
	}
	// A peer with which sessions come up and end at once is left in peace for
	// longer and longer.
	if s.up && time.Since(s.upAt) > maxBackoff {
		p.retry.reset()
	}
	p.retryAt = time.Now().Add(p.retry.next())
}

// farewell tells the peer that this node ends the session, where it does.
func (p *peer) farewell(s *Session, r Reason) {
	bye := &wire.GoodbyeMsg{Code: wire.GoodbyeReset, Reason: r.Text}
	switch r.Code {
	case ReasonShutdown:
		bye.Code = wire.GoodbyeShutdown
	case ReasonDisconnect, ReasonRemoved:
		bye.Code = wire.GoodbyeDisconnect
	}
	if s.up {
		s.links[wire.Meta].sayGoodbye(bye)
	}
}

// release takes a session out of service: nobody reads or writes for it when
// it returns.
func (p *peer) release(s *Session, hard bool) {
	s.dead.Store(true)
	s.cancel()
	s.ackTimer.Stop()
	for _, l := range s.links {
		l.dropHeld()
		l.detach(hard)
		l.seal()
		if !s.up {
			l.discard()
		}
	}
}

// sayGoodbye sends m if the socket takes it at once.
func (l *link) sayGoodbye(m *wire.GoodbyeMsg) {
	l.hurry(func(u *urgent) { u.bye = m })
	l.mu.Lock()
	st := l.st
	l.mu.Unlock()
	if st == nil || st.raw != nil {
		return
	}
	// The writer goroutine sends it; it is given a moment.
	deadline := time.Now().Add(100 * time.Millisecond)
	_ = st.c.SetWriteDeadline(deadline)
	l.mu.Lock()
	for st.writing && st.err == nil {
		l.idle.Wait()
	}
	l.mu.Unlock()
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
	v := &view{wanted: p.wanted, backoff: p.retry.wait, retryAt: p.retryAt, failures: p.retry.failed}
	for k := range v.links {
		v.links[k] = p.linkState(wire.Link(k))
		if p.s != nil {
			v.relinks[k] = p.s.links[k].connectSeq
		}
	}
	if p.s != nil {
		v.retryAt = time.Time{}
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
