package messenger

import (
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/rpc/reconnect"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// LinkInfo is what status shows of one link.
type LinkInfo struct {
	State                  string // connected, connecting, down
	SentBytes, RecvBytes   uint64 // of the present session
	SentFrames, RecvFrames uint64
	QueuedBytes            int64  // not sent, or not acked yet
	QueuedFrames           int    //
	LimitBytes             int64  // what QueuedBytes may reach before the peer is cut
	HeldBytes              int64  // that handlers keep of what it sent, in whole slabs
	Throttled              uint64 // times that the link was not read because of that
	Relieved               uint64 // times that a disk kept the reader, and another went on
	Away                   int    // readers that disks keep now
	Connections            uint64 // of the link within the present session
	Local, Remote          string // addresses
}

// NodeInfo is a snapshot of one peer.
type NodeInfo struct {
	Name        string
	ID          int
	Address     string
	Bind        string
	Dials       bool   // this node dials it
	State       string // up, down, connecting, disconnected
	Since       time.Time
	Because     string
	LastError   string
	LastErrorAt time.Time
	plain       *plain // what LastError means, if it is a dial's
	LastUp      time.Time
	Connects    uint64
	Incarnation uint64 // of the peer's process; 0: not known
	Session     uint64 // 0: none
	SessionID   string // as both sides know it
	Version     uint8
	Features    uint64
	RTT         time.Duration // 0: not measured
	MissedPings int
	LastFrame   time.Duration // ago; -1: nothing in the present session
	Promise     cluster.Promise
	Limit       time.Duration // silence after which it is down
	Data, Meta  LinkInfo
	Dialling    reconnect.Stats // of sessions; of a node that dials us, it is waited for
	RetryIn     time.Duration   // -1: no dial is planned
	Attempts    int             // failed in a row
}

// Nodes returns a snapshot of every peer, by id.
func (m *Messenger) Nodes() []NodeInfo {
	var out []NodeInfo
	for _, p := range m.allPeers() {
		out = append(out, p.info())
	}
	return out
}

// Node returns a snapshot of one peer.
func (m *Messenger) Node(name string) (NodeInfo, error) {
	p := m.peerByName(name)
	if p == nil {
		return NodeInfo{}, fmt.Errorf("%w: %s", ErrNoNode, name)
	}
	return p.info(), nil
}

// Session returns the session with a node that is up, or nil.
func (m *Messenger) Session(id int) *Session {
	if p := m.peerByID(id); p != nil {
		return p.sess.Load()
	}
	return nil
}

// Revision grows with every change of the node table.
func (m *Messenger) Revision() uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.Revision()
}

func (p *peer) info() NodeInfo {
	m, cfg, v := p.m, p.cfg.Load(), p.view.Load()
	m.mu.Lock()
	row, _ := m.table.Get(p.id)
	m.mu.Unlock()
	n := NodeInfo{
		Name: cfg.Name, ID: cfg.ID, Address: cfg.Address, Bind: cfg.Bind, Dials: p.dials(),
		State: row.State.String(), Since: row.Since, Because: row.Because,
		LastError: row.LastError, LastErrorAt: row.LastErrorAt, LastUp: row.LastUp,
		Connects: row.Connects, Incarnation: row.Incarnation, Session: row.Session,
		plain: p.plain.Load(), LastFrame: -1, Dialling: v.statsNow(), RetryIn: -1, Attempts: v.failures,
	}
	n.Data.State, n.Meta.State = v.links[wire.Data], v.links[wire.Meta]
	n.Data.Connections, n.Meta.Connections = v.relinks[wire.Data], v.relinks[wire.Meta]
	n.Limit, n.Promise, n.MissedPings = m.mon.Limit(p.id)
	if n.Dials && !v.retryAt.IsZero() && row.State != cluster.Up {
		n.RetryIn = max(0, time.Until(v.retryAt))
	}
	if s := p.sess.Load(); s != nil {
		s.fill(&n)
	}
	return n
}

// statsNow returns the statistics as of now: since the view was published
// nothing has happened, but time has passed.
func (v *view) statsNow() reconnect.Stats {
	s, d := v.stats, time.Since(v.at)
	s.StateFor += d
	if s.SinceConnect >= 0 {
		s.SinceConnect += d
	}
	if s.SinceDisconnect >= 0 {
		s.SinceDisconnect += d
	}
	if s.Connected {
		s.TotalConnected += d
	}
	return s
}

// fill adds what a session that is up knows.
func (s *Session) fill(n *NodeInfo) {
	n.Version, n.Features, n.RTT = s.version, s.feats, s.RTT()
	n.SessionID = fmt.Sprintf("%016x-%016x", s.cookie, s.answer)
	n.LastFrame = s.p.m.clock() - cluster.Instant(s.heard.Load())
	s.links[wire.Data].fill(&n.Data)
	s.links[wire.Meta].fill(&n.Meta)
}

func (l *link) fill(i *LinkInfo) {
	i.SentBytes, i.RecvBytes = l.sentBytes.Load(), l.recvBytes.Load()
	i.SentFrames, i.RecvFrames = l.sentFrames.Load(), l.recvFrames.Load()
	i.LimitBytes = l.s.limit[l.kind].bytes
	pool := l.s.p.in[l.kind]
	i.HeldBytes, i.Throttled = pool.Out()*int64(pool.Size()), l.throttled.Load()
	i.Relieved, i.Away = l.relieved.Load(), int(l.s.p.away[l.kind].Load())
	l.mu.Lock()
	st := l.st
	i.QueuedBytes, i.QueuedFrames = l.q.bytes, l.q.frames()
	l.mu.Unlock()
	if st != nil {
		i.Local, i.Remote = st.c.LocalAddr().String(), st.c.RemoteAddr().String()
	}
}

// Explanation answers why a node is as it is.
type Explanation struct {
	Subject string
	State   string
	Since   time.Time
	Because []string
	Next    []string
}

// Why explains a node's state: what is so, since when, because of what, and
// what would change it.
func (m *Messenger) Why(node string) (Explanation, error) {
	n, err := m.Node(node)
	if err != nil {
		return Explanation{}, err
	}
	e := Explanation{Subject: "node " + n.Name, State: n.State, Since: n.Since, Because: []string{n.plain.says(n.Because)}}
	add := func(format string, args ...any) { e.Because = append(e.Because, fmt.Sprintf(format, args...)) }
	next := func(format string, args ...any) { e.Next = append(e.Next, fmt.Sprintf(format, args...)) }
	if n.State == "up" {
		m.whyUp(&n, add, next)
	} else {
		m.whyNot(&n, add, next)
	}
	for _, r := range m.Refusals() {
		if r.Node == n.Name && (n.State != "up" || r.Time.After(n.Since)) {
			add("at %s a connection from it (%s) was refused here: %s", r.Time.Format(time.TimeOnly), r.From, r.Reason)
		}
	}
	return e, nil
}

type say func(format string, args ...any)

func (m *Messenger) whyUp(n *NodeInfo, add, next say) {
	add("last heard %v ago; a ping takes %v", n.LastFrame.Round(time.Millisecond), n.RTT.Round(time.Microsecond))
	if n.MissedPings > 0 {
		add("it has missed %d pings", n.MissedPings)
	}
	if n.Data.State != "connected" || n.Meta.State != "connected" {
		add("data link %s, meta link %s: %s", n.Data.State, n.Meta.State, n.plain.says(n.LastError))
		next("the session goes on if both links are back within %v", n.Limit)
	}
	next("it is down when nothing is heard for %v, when its process ends, or on \"node disconnect %s\"", n.Limit, n.Name)
}

func (m *Messenger) whyNot(n *NodeInfo, add, next say) {
	if n.LastError != "" && n.LastError != n.Because {
		add("the last error, at %s: %s", n.LastErrorAt.Format(time.TimeOnly), n.plain.says(n.LastError))
	}
	if !n.LastUp.IsZero() {
		add("it was last up from %s on, in process life %016x", n.LastUp.Format(time.DateTime), n.Incarnation)
	}
	switch {
	case n.State == "disconnected":
		next("\"node connect %s\" makes it wanted again", n.Name)
	case n.Dials && n.RetryIn >= 0:
		next("the next dial of %s is in %v; \"node reconnect %s\" dials at once", n.Address, n.RetryIn.Round(time.Millisecond), n.Name)
	case n.Dials:
		next("%s is being dialled", n.Address)
	default:
		next("node %s dials this node, because its id is the higher one: it must run, and reach this node's address", n.Name)
	}
}
