package messenger

import (
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// offered gives the verdict on an incoming connection that proved the cookie.
func (p *peer) offered(o *offer) {
	h := &o.hello
	var r *RefusedError
	switch {
	case p.ctx.Err() != nil:
		r = refusal(wire.RefuseShutdown, "node %s shuts down", p.m.opt.NodeName)
	case !p.wanted:
		r = refusal(wire.RefuseDisconnected, "an administrator disconnected node %s on node %s: run \"node connect %[1]s\" on node %[2]s", p.name(), p.m.opt.NodeName)
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
		atOnce(p.fsm, time.Now())
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
	if o.local != p.m.Incarnation() {
		return refusal(wire.RefuseSession, "node %s has begun a new life meanwhile", p.m.opt.NodeName)
	}
	if h.Incarnation == p.lastFrom && h.GlobalSeq <= p.lastSeq {
		return refusal(wire.RefuseStale, "a newer session was begun meanwhile")
	}
	p.supersede(h)
	s = p.newSession(h.Session, o.local)
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
