package messenger

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

const testWait = 20 * time.Second

var testSecret = []byte("a secret of sixteen bytes and more")

// node is a messenger under test with a recording handler.
type node struct {
	*Messenger
	t    testing.TB
	name string

	mu     sync.Mutex
	change chan struct{} // closed and replaced when something was recorded
	log    []string      // "up 1", "down connection-closed", in order
	up     map[int]*Session
	ups    int
	got    [2][]uint64 // Arg[0] of the frames received, by link
	events []cluster.Event
	frame  func(s *Session, f *wire.Frame, b *block.Batch)
	onUp   func(s *Session)
	onDown func(s *Session, r Reason)
	fault  string // a violation of what Handler promises
}

func (n *node) record(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
	close(n.change)
	n.change = make(chan struct{})
}

func (n *node) SessionUp(s *Session) {
	var hook func(*Session)
	n.record(func() {
		hook = n.onUp
		if n.up[s.PeerID()] != nil {
			n.fault = "SessionUp before SessionDown of the predecessor"
		}
		n.up[s.PeerID()] = s
		n.ups++
		n.log = append(n.log, fmt.Sprintf("up %d", s.PeerID()))
	})
	if hook != nil {
		hook(s)
	}
}

func (n *node) HandleFrame(s *Session, f *wire.Frame, b *block.Batch) {
	var hook func(*Session, *wire.Frame, *block.Batch)
	n.record(func() {
		hook = n.frame
		if n.up[s.PeerID()] != s {
			n.fault = "a frame outside SessionUp and SessionDown"
		}
		k := f.Type.Link()
		n.got[k] = append(n.got[k], f.Arg[0])
	})
	if hook != nil {
		hook(s, f, b)
	}
}

func (n *node) SessionDown(s *Session, r Reason) {
	n.mu.Lock()
	hook := n.onDown
	n.mu.Unlock()
	if hook != nil {
		hook(s, r)
	}
	n.record(func() {
		if n.up[s.PeerID()] != s {
			n.fault = "SessionDown of a session that was not up"
		}
		delete(n.up, s.PeerID())
		n.log = append(n.log, "down "+r.Code.String())
	})
}

// wait waits until ok, which is called with the record locked.
func (n *node) wait(what string, ok func() bool) {
	n.t.Helper()
	deadline := time.After(testWait)
	for {
		n.mu.Lock()
		done, change := ok(), n.change
		n.mu.Unlock()
		if done {
			return
		}
		select {
		case <-change:
		case <-deadline:
			n.mu.Lock()
			defer n.mu.Unlock()
			n.t.Fatalf("node %s: timed out waiting for %s; log %q, frames %d/%d", n.name, what, n.log, len(n.got[0]), len(n.got[1]))
		}
	}
}

func (n *node) waitUp(times int) *Session {
	n.t.Helper()
	var s *Session
	n.wait("session up", func() bool {
		for _, s = range n.up {
			return n.ups >= times
		}
		return false
	})
	return s
}

func (n *node) waitLog(want ...string) {
	n.t.Helper()
	n.wait(fmt.Sprintf("log %q", want), func() bool { return fmt.Sprint(n.log) == fmt.Sprint(want) })
}

func (n *node) frames(k wire.Link) []uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]uint64(nil), n.got[k]...)
}

func (n *node) waitEvent(kind string) cluster.Event {
	n.t.Helper()
	var e cluster.Event
	n.wait("event "+kind, func() bool {
		for _, e = range n.events {
			if e.Type == kind {
				return true
			}
		}
		return false
	})
	return e
}

// bed is a set of nodes that know one another.
type bed struct {
	t     testing.TB
	nodes []*node
	opts  []Options
	// listen, where it is set, makes a node's listener at each start.
	listen func(i int) net.Listener
}

func nodeName(i int) string {
	if greek := []string{"alpha", "beta", "gamma", "delta", "epsilon"}; i < len(greek) {
		return greek[i]
	}
	return fmt.Sprintf("node%02d", i)
}

// newBed prepares n nodes on loopback; change adapts each one's options.
func newBed(t testing.TB, n int, change func(i int, o *Options)) *bed {
	t.Helper()
	b := &bed{t: t}
	var listeners []net.Listener
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners = append(listeners, ln)
	}
	for i := range n {
		o := Options{Cluster: "test", NodeName: nodeName(i), NodeID: i, Secrets: [][]byte{testSecret}, Listener: listeners[i]}
		for j := range n {
			if j != i {
				o.Peers = append(o.Peers, Peer{Name: nodeName(j), ID: j, Address: listeners[j].Addr().String()})
			}
		}
		if change != nil {
			change(i, &o)
		}
		b.opts = append(b.opts, o)
		b.nodes = append(b.nodes, nil)
	}
	return b
}

// start starts node i, anew where it ran before.
func (b *bed) start(i int) *node {
	b.t.Helper()
	o := b.opts[i]
	if b.listen != nil {
		o.Listener = b.listen(i)
	}
	n := &node{t: b.t, name: o.NodeName, change: make(chan struct{}), up: make(map[int]*Session)}
	if o.Handler == nil {
		o.Handler = n
	}
	first := o.Events
	o.Events = func(e cluster.Event) {
		if first != nil {
			first(e)
		}
		n.record(func() { n.events = append(n.events, e) })
	}
	if testing.Verbose() {
		o.Log = slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("at", o.NodeName)
	}
	m, err := New(o)
	if err != nil {
		b.t.Fatal(err)
	}
	n.Messenger = m
	b.nodes[i] = n
	if err := m.Start(); err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { n.stop() })
	return n
}

func (n *node) stop() {
	ctx, cancel := context.WithTimeout(context.Background(), testWait)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		n.t.Error(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fault != "" {
		n.t.Errorf("node %s: %s", n.name, n.fault)
	}
}

// pair starts two nodes and waits until they are connected.
func pair(t *testing.T, change func(i int, o *Options)) (a, b *node) {
	t.Helper()
	bed := newBed(t, 2, change)
	a, b = bed.start(0), bed.start(1)
	a.waitUp(1)
	b.waitUp(1)
	return a, b
}

// cutter makes connections that a test can cut.
type cutter struct {
	mu    sync.Mutex
	conns []net.Conn
}

func (c *cutter) dial(ctx context.Context, bind, addr string) (net.Conn, error) {
	conn, err := dialTCP(ctx, bind, addr)
	if err == nil {
		c.mu.Lock()
		c.conns = append(c.conns, conn)
		c.mu.Unlock()
	}
	return conn, err
}

// cut resets all connections made so far, as a broken path does.
func (c *cutter) cut() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.conns {
		_ = conn.(*net.TCPConn).SetLinger(0)
		_ = conn.Close()
	}
	c.conns = nil
}

func sendNumber(s *Session, t wire.Type, n uint64, payload []byte, b *block.Batch) {
	s.Send(&wire.Header{Type: t, Arg: [3]uint64{n}}, payload, nil, b)
}

func checkOrder(t *testing.T, got []uint64, n int) {
	t.Helper()
	if len(got) != n {
		t.Fatalf("%d frames arrived, want %d", len(got), n)
	}
	for i, v := range got {
		if v != uint64(i+1) {
			t.Fatalf("frame %d is number %d", i, v)
		}
	}
}

func pattern(n int) []byte { return bytes.Repeat([]byte("lockstep"), n/8+1)[:n] }

// waitABit waits for a moment in a loop that polls for something which has no
// channel, and ends with ctx.
func waitABit(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, time.Millisecond)
	defer cancel()
	<-ctx.Done()
}

// crash ends a node as the death of its process does: the kernel closes its
// sockets, and nobody says goodbye.
func crash(n *node) {
	for _, p := range n.allPeers() {
		if s := p.sess.Load(); s != nil {
			for _, l := range s.links {
				l.seal()
			}
		}
	}
	n.stop()
}

func (n *node) countEvents(kind string) int { return len(n.eventsOf(kind)) }

func (n *node) eventsOf(kind string) (of []cluster.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.events {
		if e.Type == kind {
			of = append(of, e)
		}
	}
	return of
}
