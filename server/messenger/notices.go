package messenger

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// maxEvents bounds the events that wait to be delivered. A receiver that is
// that far behind loses the newest ones, which is logged.
const maxEvents = 4096

// emit has an event delivered. What is returned is closed when it has been, or is lost.
func (m *Messenger) emit(e cluster.Event) (delivered <-chan struct{}) {
	e.Time = time.Now()
	done := make(chan struct{})
	deliver := func() {
		defer close(done)
		m.opt.Events(e)
	}
	if !m.events.postUpTo(maxEvents, deliver) {
		m.complain("", "events are lost: their receiver is too slow", fmt.Errorf("the last one lost is %s", e.Type))
		close(done)
	}
	return done
}

// deliver calls the receiver of events, in order, until ctx ends and all are
// delivered.
func (m *Messenger) deliver(ctx context.Context) {
	for {
		select {
		case <-m.events.ready:
		case <-ctx.Done():
			for _, f := range m.events.close() {
				f()
			}
			return
		}
		for _, f := range m.events.take() {
			f()
		}
	}
}

// nodeUp notes a session that came up. It returns when that was told: nothing that the
// session brings is told before.
func (m *Messenger) nodeUp(p *peer, s *Session) {
	m.note(func(t *cluster.Table) { t.Up(p.id, time.Now(), s.id, s.remote) })
	m.log.Info("node is up", "node", p.name(), "session", s.id, "incarnation", fmt.Sprintf("%016x", s.remote), "version", s.version)
	<-m.emit(cluster.Event{
		Type: cluster.NodeUp, Node: p.name(), ID: p.id, Session: s.id, Incarnation: s.remote,
		Text: fmt.Sprintf("node %s is up", p.name()),
	})
}

// nodeDown notes a session that ended.
func (m *Messenger) nodeDown(p *peer, s *Session, r Reason) {
	m.note(func(t *cluster.Table) { t.Down(p.id, time.Now(), r.String()) })
	m.log.Warn("node is down", "node", p.name(), "session", s.id, "reason", r.Code.String(), "because", r.Text)
	m.emit(cluster.Event{
		Type: cluster.NodeDown, Node: p.name(), ID: p.id, Session: s.id, Incarnation: s.remote, Reason: r.Code.String(),
		Text: fmt.Sprintf("node %s is down: %s", p.name(), r.Text),
	})
}

// relinked notes a link that came back.
func (m *Messenger) relinked(p *peer, l *link) {
	m.log.Info("link is back", "node", p.name(), "link", l.kind.String(), "session", l.s.id, "connection", l.connectSeq)
	m.emit(cluster.Event{
		Type: cluster.NodeRelinked, Node: p.name(), ID: p.id, Session: l.s.id, Incarnation: l.s.remote,
		Text: fmt.Sprintf("the %v link with node %s is back; nothing was lost", l.kind, p.name()),
	})
}

// noticed is called by the monitor, on its goroutine.
func (m *Messenger) noticed(a cluster.Action) {
	switch a.Kind {
	case cluster.Paused:
		m.opt.Paused(a.For)
		if m.complaints.allow("paused", time.Now()) {
			m.log.Warn("this process did not run for a while: no peer is judged by that time", "for", a.For)
		}
		m.emit(cluster.Event{Type: cluster.HostPaused, Text: fmt.Sprintf("this process did not run for %v", a.For.Round(time.Millisecond))})
	case cluster.Changed:
		m.emit(cluster.Event{Type: cluster.TickChanged, Text: fmt.Sprintf("the tick time is %v", a.For)})
	case cluster.Missed:
		m.pingEvent(a, cluster.PingMissed, "node %s has missed %d pings: nothing was heard for %v")
	case cluster.Heard:
		m.pingEvent(a, cluster.PingHeard, "node %s is heard again after %d missed pings, %v ago")
	}
}

func (m *Messenger) pingEvent(a cluster.Action, kind, text string) {
	p := m.peerByID(a.Peer)
	if p == nil {
		return
	}
	p.post(func() { p.doubt(a.Epoch, a.Kind == cluster.Missed) })
	m.emit(cluster.Event{
		Type: kind, Node: p.name(), ID: p.id, Session: a.Epoch, Missed: a.Count,
		Text: fmt.Sprintf(text, p.name(), a.Count, a.For.Round(time.Millisecond)),
	})
}

// Refusal is a handshake that this node turned down.
type Refusal struct {
	Time   time.Time
	Node   string // as the dialer called itself; "" if it did not get so far
	From   string // address
	Code   string
	Reason string
}

// maxRefusals is how many are remembered.
const maxRefusals = 64

// refusedPeer notes a connection that was turned down.
func (m *Messenger) refusedPeer(o *offer, r *RefusedError) {
	ref := Refusal{Time: time.Now(), Node: o.hello.Node, From: hostOf(o.c), Code: r.Code.String(), Reason: r.Reason}
	m.mu.Lock()
	// One entry a cause: a stranger that tries for ever fills nothing.
	m.refusals = slices.DeleteFunc(m.refusals, func(q Refusal) bool {
		return q.Node == ref.Node && q.From == ref.From && q.Code == ref.Code
	})
	m.refusals = append(m.refusals, ref)
	if len(m.refusals) > maxRefusals {
		m.refusals = m.refusals[1:]
	}
	m.mu.Unlock()
	if r.Code == wire.RefuseStale || !m.complaints.allow("refused "+ref.Code+" "+ref.Node+" "+ref.From, time.Now()) {
		return
	}
	m.log.Warn("refused a connection", "from", ref.From, "node", ref.Node, "code", ref.Code, "reason", r.Reason)
	e := cluster.Event{Type: cluster.NodeRefused, Node: ref.Node, ID: -1, Reason: ref.Code, Text: fmt.Sprintf("refused a connection from %s: %s", ref.From, r.Reason)}
	if p := m.peerByName(ref.Node); p != nil {
		e.ID = p.id
	}
	m.emit(e)
}

// Refusals returns what was turned down lately, oldest first.
func (m *Messenger) Refusals() []Refusal {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.refusals)
}

// complain logs what goes wrong again and again once per cause and minute.
func (m *Messenger) complain(about, what string, err error) {
	if m.complaints.allow(about+" "+what+" "+err.Error(), time.Now()) {
		m.log.LogAttrs(context.Background(), slog.LevelWarn, what, slog.String("because", err.Error()))
	}
}

// limiter lets each key through once in a while.
type limiter struct {
	every time.Duration
	most  int

	// mu guards seen.
	mu   sync.Mutex
	seen map[string]time.Time
}

func newLimiter(every time.Duration, most int) *limiter {
	return &limiter{every: every, most: most, seen: make(map[string]time.Time)}
}

func (l *limiter) allow(key string, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if at, ok := l.seen[key]; ok && now.Sub(at) < l.every {
		return false
	}
	if len(l.seen) >= l.most {
		for k, at := range l.seen {
			if now.Sub(at) >= l.every {
				delete(l.seen, k)
			}
		}
	}
	if len(l.seen) >= l.most {
		return false // more causes a minute than anybody reads
	}
	l.seen[key] = now
	return true
}
