package cluster

import (
	"context"
	"sync"
	"time"
)

// Peer is a session as the monitor sees it. Its methods never block and take
// no lock that is held over I/O.
type Peer interface {
	// Activity is when the peer was last heard and last spoken to.
	Activity() Activity
	// Ping sends a ping that carries our promise, ahead of everything queued.
	Ping(p Promise)
	// Silent tells that the peer is down. It must hand the news on.
	Silent(silent time.Duration)
}

// MonitorOptions configure a Monitor.
type MonitorOptions struct {
	Promise Promise
	// Clock is the monotonic clock; Suspended, which may be nil, is how much
	// time in all the host spent suspended, which Clock does not count.
	Clock     func() Instant
	Suspended func() time.Duration
	// Notify is told of everything but pings and silence, on the monitor's own
	// goroutine: it must not block.
	Notify func(Action)
}

// Monitor runs Ticks on a goroutine of its own.
type Monitor struct {
	opt  MonitorOptions
	wake chan struct{} // capacity 1: something changed, look again

	// mu guards the machine and the peers. Nothing is called while it is held.
	mu    sync.Mutex
	ticks *Ticks
	peers map[int]watched
}

type watched struct {
	Peer
	epoch uint64
}

// NewMonitor returns a monitor; Run runs it.
func NewMonitor(opt MonitorOptions) *Monitor {
	return &Monitor{opt: opt, wake: make(chan struct{}, 1), ticks: NewTicks(opt.Promise), peers: make(map[int]watched)}
}

// Watch begins to watch a peer; epoch tells its sessions apart.
func (m *Monitor) Watch(id int, epoch uint64, p Promise, peer Peer) {
	m.mu.Lock()
	m.peers[id] = watched{peer, epoch}
	m.ticks.Watch(id, epoch, p, m.opt.Clock())
	m.mu.Unlock()
	m.poke()
}

// Unwatch ends what Watch began, unless another session of the peer is
// watched by now.
func (m *Monitor) Unwatch(id int, epoch uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.ticks.Unwatch(id, epoch)
	if m.peers[id].epoch == epoch {
		delete(m.peers, id)
	}
}

// Promised takes note of a peer's promise.
func (m *Monitor) Promised(id int, p Promise) {
	m.mu.Lock()
	old, ok := m.ticks.PeerPromise(id)
	m.ticks.Promised(id, p, m.opt.Clock())
	m.mu.Unlock()
	if ok && old != p {
		m.poke()
	}
}

// Promise is what this node promises now.
func (m *Monitor) Promise() Promise {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ticks.Promise()
}

// Limit is the silence after which the peer is down, and what it promised.
func (m *Monitor) Limit(id int) (limit time.Duration, p Promise, missed int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.ticks.PeerPromise(id)
	if !ok {
		return m.ticks.tick, Promise{}, 0
	}
	return max(m.ticks.tick, p.Tick), p, m.ticks.MissedPings(id)
}

// Get tells the tick time.
func (m *Monitor) Get() TickInfo {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ticks.Get(m.opt.Clock())
}

// Set begins a change of the tick time on this node.
func (m *Monitor) Set(tick, transition time.Duration) (SetResult, time.Duration, error) {
	m.mu.Lock()
	res, target, err := m.ticks.Set(tick, transition, m.opt.Clock())
	m.mu.Unlock()
	m.poke()
	return res, target, err
}

// SetPings changes the ping count.
func (m *Monitor) SetPings(n int) error {
	m.mu.Lock()
	err := m.ticks.SetPings(n, m.opt.Clock())
	m.mu.Unlock()
	m.poke()
	return err
}

func (m *Monitor) poke() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Run runs the machine until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	r := round{seen: make(map[int]Activity), suspended: m.suspended()}
	for {
		next := m.step(&r)
		timer.Reset(max(0, next-m.opt.Clock()))
		select {
		case <-ctx.Done():
			return
		case <-m.wake:
		case <-timer.C:
		}
	}
}

// round is the memory of a run, kept so that a step allocates nothing.
type round struct {
	acts      []Action
	peers     []Peer
	ids       []int
	seen      map[int]Activity
	suspended time.Duration
}

func (m *Monitor) suspended() time.Duration {
	if m.opt.Suspended == nil {
		return 0
	}
	return m.opt.Suspended()
}

// step runs the machine once, and then, without the lock, does what it says.
func (m *Monitor) step(r *round) Instant {
	total := m.suspended()
	away := max(0, total-r.suspended)
	r.suspended = total

	m.look(r)
	m.mu.Lock()
	now := m.opt.Clock()
	var next Instant
	// A peer that came meanwhile was not looked at: its silence counts from when
	// it came.
	r.acts, next = m.ticks.Step(now, away, func(id int) Activity { return r.seen[id] }, r.acts[:0])
	r.peers = r.peers[:0]
	for _, a := range r.acts {
		r.peers = append(r.peers, m.peers[a.Peer].Peer)
	}
	promise := m.ticks.Promise()
	m.mu.Unlock()

	// What the machine says is done without the lock.
	for i, a := range r.acts {
		m.do(a, r.peers[i], promise)
	}
	clear(r.peers)
	return next
}

// look asks every peer for its activity, without the lock.
func (m *Monitor) look(r *round) {
	m.mu.Lock()
	r.peers, r.ids = r.peers[:0], r.ids[:0]
	for id, p := range m.peers {
		r.peers, r.ids = append(r.peers, p.Peer), append(r.ids, id)
	}
	m.mu.Unlock()
	clear(r.seen)
	for i, id := range r.ids {
		r.seen[id] = r.peers[i].Activity()
	}
}

func (m *Monitor) do(a Action, p Peer, promise Promise) {
	switch a.Kind {
	case Ping:
		p.Ping(promise)
	case Silent:
		p.Silent(a.For)
	default:
		m.opt.Notify(a)
	}
}
