package messenger

import (
	"time"

	"github.com/lockstepd/lockstep/server/wire"
)

// goodbye is called when the peer said so over the connection st.
func (p *peer) goodbye(s *Session, st *stream, bye wire.GoodbyeMsg) {
	if p.s != s {
		return
	}
	switch bye.Code {
	case wire.GoodbyeRelink:
		// The peer closes what there is: that is not the end of its process. Its
		// new connections may have come before this, and are left alone.
		if s.links[wire.Meta].current() == st {
			s.relinking = true
		}
	case wire.GoodbyeShutdown:
		p.endSession(s, Reason{ReasonShutdown, "the peer said: " + bye.Reason})
	case wire.GoodbyeDisconnect:
		p.endSession(s, Reason{ReasonDisconnect, "the peer said: " + bye.Reason})
	default:
		p.endSession(s, Reason{ReasonReset, "the peer said: " + bye.Reason})
	}
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
	now := time.Now()
	if s.up && now.Sub(s.upAt) > maxBackoff {
		p.fsm.SetFreeTries(freeTries)
	}
	if s.up || s.dialer {
		failed(p.fsm, now)
	}
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

// goodbyeTime is how long an ending session waits for its Goodbye to be sent, and
// one that can send no more for the peer's.
const goodbyeTime = 100 * time.Millisecond

// sayGoodbye sends m, if the socket takes it within a moment.
func (l *link) sayGoodbye(m *wire.GoodbyeMsg) {
	l.hurry(func(u *urgent) { u.bye = m })
	late := false
	timer := time.AfterFunc(goodbyeTime, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		late = true
		l.idle.Broadcast()
	})
	defer timer.Stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.st != nil && l.st.writing && l.st.err == nil && !late {
		l.idle.Wait()
	}
}
