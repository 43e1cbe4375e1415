package messenger

import (
	"errors"
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// begin starts a new session as its dialer.
func (p *peer) begin() {
	s := p.newSession(newCookie(), p.m.Incarnation())
	s.dialer, s.globalSeq = true, p.m.lastGlobal.Add(1)
	p.s = s
	p.fsm.Connecting(time.Now())
	p.m.note(func(t *cluster.Table) { t.Attempt(p.id, time.Now(), "dialling "+p.cfg.Load().Address) })
	for _, l := range s.links {
		p.dial(s, l)
	}
}

// dial makes one connection of a link, in the background.
func (p *peer) dial(s *Session, l *link) {
	l.dialing, l.dialledAt = true, time.Now()
	l.connectSeq++
	hello := p.hello(wire.LinkKind(l.kind), s.local)
	hello.Session, hello.PeerSession = s.cookie, s.answer
	hello.ConnectSeq, hello.GlobalSeq, hello.Received = l.connectSeq, s.globalSeq, l.received.Load()
	secret := p.m.secretFor(p.altSecret)
	within := p.m.opt.HandshakeTimeout
	if s.up {
		within = p.attemptTime(s)
	}
	p.helpers.Go(func() {
		a, err := p.m.dialPeer(s.ctx, *p.cfg.Load(), &hello, secret, within)
		if !p.post(func() { p.dialled(s, l, a, err) }) && a != nil {
			_ = a.c.Close() // nobody is left to use it
		}
	})
}

// redialTime is how long the next attempt to restore a link may wait at most:
// a path that works again has to be found out within the tick time.
func (p *peer) redialTime() time.Duration {
	return min(max(p.m.mon.Promise().Interval()/2, leastAttempt), maxBackoff)
}

const (
	// minRedial is short because a dial may meet the peer's process as it dies,
	// and prove nothing; the next one does.
	minRedial = 10 * time.Millisecond
	// leastAttempt is what a busy host may need for a handshake.
	leastAttempt = 250 * time.Millisecond
)

// redialLater plans the next dial of a link of a session that is up.
func (p *peer) redialLater(l *link, from time.Time) {
	l.fsm.SetBackoff(minRedial, p.redialTime())
	l.retryAt = failed(l.fsm, from)
}

// attemptTime bounds an attempt to restore a link. On a path that lost its
// first packet TCP tries again later and later; a new attempt tries at once.
func (p *peer) attemptTime(s *Session) time.Duration {
	const roundTrips = 20 // of a dial, TLS and a handshake, with something to spare
	return min(max(p.redialTime(), roundTrips*s.RTT()), p.m.opt.HandshakeTimeout)
}

func (p *peer) hello(kind wire.LinkKind, incarnation uint64) wire.HelloMsg {
	m := p.m
	promise := m.mon.Promise()
	return wire.HelloMsg{
		MinVersion: wire.MinVersion, MaxVersion: wire.MaxVersion, Kind: kind,
		From: uint8(m.opt.NodeID), To: uint8(p.id), Cluster: m.opt.Cluster, Node: m.opt.NodeName,
		Incarnation: incarnation, Features: m.opt.Features,
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
	p.explained(err)
	p.m.note(func(t *cluster.Table) { t.Failed(p.id, time.Now(), err.Error()) })
	p.m.log.Debug("cannot restore a link yet", "node", p.name(), "link", l.kind.String(), "because", err)
	if r, over := overBecause(err); over && !(p.moved && refused(err)) && (r.Code != ReasonClosed || s.silenced()) {
		p.endSession(s, r)
		return
	}
	p.redialLater(l, l.dialledAt)
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
	if s.dialer {
		failed(p.fsm, time.Now())
	}
	p.explained(err)
	p.m.note(func(t *cluster.Table) { t.Failed(p.id, time.Now(), err.Error()) })
	p.m.complain(p.name(), "cannot connect to node "+p.name(), err)
	p.answer(err)
}

// probe finds out whether the peer's process is there by connecting to where
// it listens. It is for the side that does not dial: the other one redials.
func (p *peer) probe(s *Session) {
	p.probing = true
	p.probeAt = failed(p.probes, time.Now())
	p.helpers.Go(func() {
		err := p.m.probe(s.ctx, *p.cfg.Load())
		p.post(func() {
			p.probing = false
			if p.s == s && s.up && refused(err) && s.silenced() && !p.moved {
				r, _ := overBecause(err)
				p.endSession(s, r)
			}
		})
	})
}

// silenced reports whether the meta link has no connection. Before that a
// refused connection proves nothing yet: a Goodbye may still be on its way.
func (s *Session) silenced() bool { return !s.links[wire.Meta].downSince.IsZero() }

// knock tells the node that dials us that we are there.
func (p *peer) knock() {
	if !p.wanted || p.m.opt.Passive {
		return
	}
	hello := p.hello(wire.KindKnock, p.m.Incarnation())
	secret := p.m.secretFor(false)
	p.helpers.Go(func() {
		// Its outcome does not matter: a node that is there will dial.
		if a, err := p.m.dialPeer(p.ctx, *p.cfg.Load(), &hello, secret, p.m.opt.HandshakeTimeout); err == nil {
			_ = a.c.Close()
		}
	})
}
