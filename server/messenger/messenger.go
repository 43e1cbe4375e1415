package messenger

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/relief"
	"github.com/lockstepd/lockstep/server/wire"
	"golang.org/x/sys/unix"
)

// Options configure a Messenger.
type Options struct {
	Cluster  string
	NodeName string
	NodeID   int
	Features uint64
	Peers    []Peer

	// Secrets are the cookies that peers may prove; the first is the one that
	// this node proves. At least one.
	Secrets [][]byte

	// Listen is where to accept peers. Listener, where it is set, is used
	// instead, and Relisten, which may be nil, makes another one in its place when
	// its socket was lost. Dial replaces the dialling of TCP.
	Listen   Binding
	Listener net.Listener
	Relisten func(ctx context.Context, lost net.Addr) (net.Listener, error)
	Dial     func(ctx context.Context, bind, address string) (net.Conn, error)

	// Sign puts a keyed MAC on every frame. All nodes do or none does.
	Sign bool
	// TLS, where it is set, is asked for the configuration of each connection.
	TLS TLS

	Tick      time.Duration // default 8 s
	PingCount int           // default 4

	Handler Handler
	// Events is told what happens, in order, on one goroutine. A session begins when it
	// has returned from a node's coming up, for which it must not wait for that peer.
	Events func(cluster.Event)
	// Paused is told when this process finds that it did not run for a while.
	// It must not block.
	Paused func(d time.Duration)
	// Store keeps which nodes stay disconnected across restarts; it may be nil.
	Store DisconnectStore
	Log   *slog.Logger

	// HandshakeTimeout bounds a whole handshake, the dial included; 5 s by default.
	HandshakeTimeout time.Duration
	// MaxUnproven and MaxUnprovenPerAddress bound the connections that have
	// proved nothing yet. By default what all peers may need at once, twice.
	MaxUnproven, MaxUnprovenPerAddress int

	// MaxDataQueue and MaxMetaQueue bound what is kept for one peer, in bytes,
	// and MaxQueuedFrames in frames, on each link; a peer over a limit is cut.
	// The defaults are 256 MiB, 64 MiB and 1 Mi frames. The memory of a session
	// is at most the sum of the two, and 128 bytes a frame; that a device keeps
	// far fewer requests in flight is what makes the limit one that only a
	// peer which takes nothing can reach.
	MaxDataQueue, MaxMetaQueue int64
	MaxQueuedFrames            int
	// MaxQueuedAll bounds the same for all peers together, in bytes, 1 GiB by
	// default: when it is exceeded the peer with the most is cut. What is sent to
	// several is kept once and counted for each, so that memory is well below; the
	// local consumers bound how much of it there is.
	MaxQueuedAll int64
	// MaxHeld bounds, for each peer and each of its links, the memory that
	// handlers hold of what it sent, in bytes; 128 MiB by default. A handler
	// that keeps a payload keeps the slab of about 1 MiB in which it lies. A
	// link whose peer has reached it is not read until some is released.
	// MaxHeldAll bounds the same for all links together, 1 GiB by default: each
	// may have an equal part, so that no peer can use up what another needs.
	MaxHeld, MaxHeldAll int64

	// SpinData and SpinMeta are how long a reader spins before it parks, after
	// a read that brought one small frame. 0: not at all.
	SpinData, SpinMeta time.Duration
	// SendBuffer is the kernel's buffer of a connection; 0 leaves it to it.
	SendBuffer int
	// Passive keeps this node from making any connection to the nodes that dial
	// it: it neither asks them to do so now (a knock) nor finds out whether they
	// are there (a probe). A peer's death under load may then be found by the
	// silence only.
	Passive bool
}

// TLS makes TLS configurations for single connections, so that certificates
// can change while everything runs.
type TLS interface {
	// Client is for dialling the node of that name, Server for being dialled.
	Client(node string) (*tls.Config, error)
	Server() (*tls.Config, error)
}

// DisconnectStore keeps which nodes are to stay disconnected across restarts.
type DisconnectStore interface {
	Disconnected() ([]string, error)
	SetDisconnected(node string, on bool) error
}

// Defaults.
const (
	DefaultTick             = 8 * time.Second
	DefaultPingCount        = 4
	DefaultHandshakeTimeout = 5 * time.Second
	DefaultSpin             = 20 * time.Microsecond
	maxNodes                = 32
)

// withDefaults fills in what was left out.
func (o Options) withDefaults() Options {
	o.Tick = cmp.Or(o.Tick, DefaultTick)
	o.PingCount = cmp.Or(o.PingCount, DefaultPingCount)
	o.HandshakeTimeout = cmp.Or(o.HandshakeTimeout, DefaultHandshakeTimeout)
	o.MaxUnproven = cmp.Or(o.MaxUnproven, 4*maxNodes)
	o.MaxUnprovenPerAddress = cmp.Or(o.MaxUnprovenPerAddress, 2*(len(o.Peers)+8))
	o.MaxDataQueue = cmp.Or(o.MaxDataQueue, 256<<20)
	o.MaxMetaQueue = cmp.Or(o.MaxMetaQueue, 64<<20)
	o.MaxHeld = cmp.Or(o.MaxHeld, 128<<20)
	o.MaxHeldAll = cmp.Or(o.MaxHeldAll, 1<<30)
	o.MaxQueuedFrames = cmp.Or(o.MaxQueuedFrames, 1<<20)
	o.MaxQueuedAll = cmp.Or(o.MaxQueuedAll, 1<<30)
	if o.Events == nil {
		o.Events = func(cluster.Event) {}
	}
	if o.Paused == nil {
		o.Paused = func(time.Duration) {}
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o
}

// check finds what is wrong with the options, all of it.
func (o *Options) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if o.Handler == nil {
		bad("a Handler is needed")
	}
	if len(o.Secrets) == 0 {
		bad("a secret is needed")
	}
	if err := (cluster.Promise{Tick: o.Tick, Pings: o.PingCount}).Check(); err != nil {
		errs = append(errs, err)
	}
	if o.NodeID < 0 || o.NodeID >= maxNodes {
		bad("node id %d is out of range: allowed are 0 to %d", o.NodeID, maxNodes-1)
	}
	for i, p := range o.Peers {
		if err := o.checkPeer(p); err != nil {
			errs = append(errs, err)
		}
		if slices.ContainsFunc(o.Peers[:i], func(q Peer) bool { return q.ID == p.ID || q.Name == p.Name }) {
			bad("node %s (id %d): the name or the id is used twice", p.Name, p.ID)
		}
	}
	return errors.Join(errs...)
}

func (o *Options) checkPeer(p Peer) error {
	switch {
	case p.ID < 0 || p.ID >= maxNodes:
		return fmt.Errorf("node %s: id %d is out of range: allowed are 0 to %d", p.Name, p.ID, maxNodes-1)
	case p.ID == o.NodeID || p.Name == o.NodeName:
		return fmt.Errorf("node %s (id %d) is this node", p.Name, p.ID)
	case p.Address == "":
		return fmt.Errorf("node %s has no address", p.Name)
	}
	return nil
}

// Messenger keeps sessions with all peers. Its methods are safe for concurrent
// use.
type Messenger struct {
	opt         Options
	log         *slog.Logger
	start       time.Time
	leases      *cluster.Clock
	incarnation atomic.Uint64
	mon         *cluster.Monitor
	dataPool    *block.Pool
	metaPool    *block.Pool
	unproven    gate
	watch       *relief.Watch
	helped      helped
	complaints  *limiter

	lastSession atomic.Uint64
	lastGlobal  atomic.Uint64
	spinData    atomic.Int64
	spinMeta    atomic.Int64
	events      *mailbox

	ctx    context.Context
	cancel context.CancelFunc
	// The goroutines that run until Close; the accepter's are waited for first,
	// then the peers, then the rest.
	accepting sync.WaitGroup
	running   sync.WaitGroup
	closeOnce sync.Once
	closed    chan struct{}
	stopRest  context.CancelFunc

	// mu guards what follows. Nothing is called while it is held.
	mu        sync.Mutex
	listeners []net.Listener // where peers are accepted; the last one is Addr's
	binding   Binding        // how the last one was made; empty: it was given
	peers     map[int]*peer
	table     *cluster.Table
	secrets   [][]byte
	refusals  []Refusal
}

// New returns a messenger which does nothing before Start.
func New(opt Options) (*Messenger, error) {
	opt = opt.withDefaults()
	opt.Features = opt.Features&^wire.FeatureSign | wire.Features
	if opt.Sign {
		opt.Features |= wire.FeatureSign
	}
	if err := opt.check(); err != nil {
		return nil, fmt.Errorf("cannot set up the messenger: %w", err)
	}
	m := &Messenger{
		opt: opt, log: opt.Log, start: time.Now(), leases: cluster.NewClock(suspended),
		dataPool: block.NewPool(dataSlab), metaPool: block.NewPool(metaSlab),
		watch:      relief.NewWatch(),
		complaints: newLimiter(time.Minute, 256), events: newMailbox(), closed: make(chan struct{}),
		peers: make(map[int]*peer), table: cluster.NewTable(), secrets: slices.Clone(opt.Secrets),
	}
	m.unproven.all, m.unproven.each = opt.MaxUnproven, opt.MaxUnprovenPerAddress
	m.incarnation.Store(newCookie())
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.SetSpin(opt.SpinData, opt.SpinMeta)
	m.mon = cluster.NewMonitor(cluster.MonitorOptions{
		Promise: cluster.Promise{Tick: opt.Tick, Pings: opt.PingCount},
		Clock:   m.clock, Suspended: suspended, Notify: m.noticed,
	})
	return m, nil
}

// clock is the monotonic time since the messenger was made. It is never 0
// after that, so that 0 means never.
func (m *Messenger) clock() cluster.Instant { return time.Since(m.start) + 1 }

// suspended is how long the host has been suspended since it booted: what the
// one clock counts and the other does not. On a busy machine the process may
// lose its processor between the two readings, and that is no suspension; so
// they are taken again until they are close together.
func suspended() time.Duration {
	const closeBy, tries = 20 * time.Microsecond, 10
	var total, apart time.Duration
	for i := range tries {
		var before, boot, after unix.Timespec
		if unix.ClockGettime(unix.CLOCK_MONOTONIC, &before) != nil || unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot) != nil ||
			unix.ClockGettime(unix.CLOCK_MONOTONIC, &after) != nil {
			return 0
		}
		if d := time.Duration(after.Nano() - before.Nano()); i == 0 || d < apart {
			total, apart = time.Duration(boot.Nano()-before.Nano()), d
		}
		if apart <= closeBy {
			break
		}
	}
	return total
}

// Start binds, and begins to connect.
func (m *Messenger) Start() error {
	away, err := m.disconnected()
	if err != nil {
		return err
	}
	ln := m.opt.Listener
	if ln == nil {
		if ln, err = Bind(m.ctx, m.opt.Listen); err != nil {
			return err
		}
	}
	m.mu.Lock()
	if m.opt.Listener == nil {
		m.binding = m.opt.Listen
	}
	m.listeners = append(m.listeners, ln)
	m.mu.Unlock()
	rest, stop := context.WithCancel(context.Background())
	m.stopRest = stop
	m.running.Go(func() { m.mon.Run(rest) })
	m.running.Go(func() { m.deliver(rest) })
	m.running.Go(func() { m.watch.Run(rest) })
	for _, p := range m.opt.Peers {
		if err := m.addPeer(p, !slices.Contains(away, p.Name)); err != nil {
			return err
		}
	}
	m.accepting.Go(func() { m.accept(ln) })
	return nil
}

func (m *Messenger) disconnected() ([]string, error) {
	if m.opt.Store == nil {
		return nil, nil
	}
	away, err := m.opt.Store.Disconnected()
	if err != nil {
		return nil, fmt.Errorf("cannot read which nodes stay disconnected: %w", err)
	}
	return away, nil
}

// Incarnation is the number of this node's life: of its process, or of what it
// has been since Rebind.
func (m *Messenger) Incarnation() uint64 { return m.incarnation.Load() }

// addPeer starts a peer's goroutine, unless the messenger is shutting down or
// the name or id is taken.
func (m *Messenger) addPeer(cfg Peer, wanted bool) error {
	p := &peer{m: m, id: cfg.ID, box: newMailbox(), done: make(chan struct{}), wanted: wanted}
	p.fsm, p.probes = newFSM(minBackoff, maxBackoff), newFSM(minBackoff, maxBackoff)
	p.fsm.SetPassive(!p.dials(), time.Now())
	if wanted {
		p.fsm.Enable(time.Now())
	}
	p.in = [2]*block.Pool{wire.Data: block.NewPool(dataSlab), wire.Meta: block.NewPool(metaSlab)}
	p.cfg.Store(&cfg)
	p.publish()
	now := time.Now()
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return errClosed
	}
	for _, q := range m.peers {
		if q.id == cfg.ID || q.name() == cfg.Name {
			return fmt.Errorf("node %s (id %d) cannot be added: node %s has id %d", cfg.Name, cfg.ID, q.name(), q.id)
		}
	}
	m.peers[cfg.ID] = p
	m.table.Add(cfg.ID, cfg.Name, now)
	if !wanted {
		m.table.Disconnect(cfg.ID, now, "it was disconnected, to stay so across restarts")
	}
	p.ctx, p.cancel = context.WithCancel(m.ctx)
	m.running.Go(p.run)
	return nil
}

// Close ends every session with a goodbye and returns when nothing of the
// messenger runs any more, or ctx ends.
func (m *Messenger) Close(ctx context.Context) error {
	m.closeOnce.Do(func() {
		m.mu.Lock()
		m.cancel() // no peer is added from here on
		m.mu.Unlock()
		go m.shutDown() // waited for through m.closed
	})
	select {
	case <-m.closed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("closing the messenger: %w", context.Cause(ctx))
	}
}

// shutDown runs once. The accepter ends first, so that nothing new comes; then
// the peers, whose last events are delivered; then the monitor and delivery.
func (m *Messenger) shutDown() {
	defer close(m.closed)
	m.mu.Lock()
	lns := slices.Clone(m.listeners)
	m.mu.Unlock()
	for _, ln := range lns {
		_ = ln.Close() // it makes the accepter return
	}
	m.accepting.Wait()
	for _, p := range m.allPeers() {
		<-p.done
	}
	if m.stopRest != nil {
		m.stopRest()
	}
	m.running.Wait()
}

func (m *Messenger) allPeers() []*peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	ps := make([]*peer, 0, len(m.peers))
	for _, p := range m.peers {
		ps = append(ps, p)
	}
	slices.SortFunc(ps, func(a, b *peer) int { return cmp.Compare(a.id, b.id) })
	return ps
}

func (m *Messenger) peerByID(id int) *peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peers[id]
}

func (m *Messenger) peerByName(name string) *peer {
	for _, p := range m.allPeers() {
		if p.name() == name {
			return p
		}
	}
	return nil
}

// note changes the node table.
func (m *Messenger) note(f func(t *cluster.Table)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f(m.table)
}

// SetSpin changes how long readers spin before they park.
func (m *Messenger) SetSpin(data, meta time.Duration) {
	m.spinData.Store(int64(data))
	m.spinMeta.Store(int64(meta))
}

func (m *Messenger) spin(k wire.Link) time.Duration {
	if k == wire.Data {
		return time.Duration(m.spinData.Load())
	}
	return time.Duration(m.spinMeta.Load())
}

// SetSecrets replaces the cookies: the first is proved to peers, all are taken
// from them. Sessions that exist go on.
func (m *Messenger) SetSecrets(secrets ...[]byte) error {
	if len(secrets) == 0 {
		return errors.New("at least one secret is needed")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.secrets = slices.Clone(secrets)
	return nil
}

func (m *Messenger) allSecrets() [][]byte {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.secrets
}

// secretFor is the secret to prove: the first one, or, after a peer did not
// take it, the next.
func (m *Messenger) secretFor(alt bool) []byte {
	all := m.allSecrets()
	if alt && len(all) > 1 {
		return all[1]
	}
	return all[0]
}

// dialTCP is how peers are dialled unless Options say otherwise.
func dialTCP(ctx context.Context, bind, address string) (net.Conn, error) {
	d := net.Dialer{KeepAlive: -1}
	if bind != "" {
		host := strings.Trim(bind, "[]")
		ip := net.ParseIP(host)
		if ip == nil {
			return nil, fmt.Errorf("bind address %q is not an IP address", bind)
		}
		d.LocalAddr = &net.TCPAddr{IP: ip}
	}
	return d.DialContext(ctx, "tcp", address)
}
