package messenger

import (
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

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
	p.fsm.ConnectSucceeded(s.upAt)
	p.upTries = p.fsm.Stats(s.upAt).AttemptedConnections
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
	l.retryAt = l.attachedAt.Add(p.redialTime()) // time for the peer to be heard on it
	if !s.cut() {
		p.probes.SetFreeTries(freeTries)
		p.probeAt = time.Time{}
		s.relinking = false
	}
	p.m.relinked(p, l)
}

// linkDown is called when a connection of a link has ended.
func (p *peer) linkDown(l *link, st *stream, err error) {
	s := l.s
	if p.s != s || l.current() != st {
		return
	}
	l.detach(true)
	p.markDown(s, l, err)
	p.probes.SetFreeTries(freeTries)
	p.probeAt = time.Time{}
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

// calmTime is how long a connection must have lasted for its link to be dialled
// at once when it is cut, as if it had never been cut before.
const calmTime = time.Second

// markDown notes that a link of a session that is up has no connection.
func (p *peer) markDown(s *Session, l *link, err error) {
	if !s.up {
		return
	}
	p.m.log.Debug("a link was cut", "node", p.name(), "link", l.kind.String(), "because", err)
	if l.kind == wire.Meta {
		s.lease.Break() // it is not known why: the peer may have hung up
	}
	if l.downSince.IsZero() {
		l.downSince = time.Now()
	}
	if l.received.Load() > l.progress || time.Since(l.attachedAt) > calmTime {
		l.fsm.SetFreeTries(freeTries)
	}
	p.redialLater(l, time.Now())
	p.m.note(func(t *cluster.Table) {
		t.Failed(p.id, time.Now(), fmt.Sprintf("the %v link was cut: %v", l.kind, err))
	})
}

// relink drops both connections of a session, which goes on. The data link is
// reset: the peer, which the Goodbye on the other may not have reached, or not in
// time, must not take the two for those of a dying process.
func (p *peer) relink(s *Session, why error) {
	s.relinking = true
	for _, l := range s.links {
		l.fsm.SetFreeTries(freeTries)
		l.detach(l.kind == wire.Data)
		p.markDown(s, l, why)
	}
}

// cut reports whether a link has no connection.
func (s *Session) cut() bool {
	return !s.links[0].downSince.IsZero() || !s.links[1].downSince.IsZero()
}
