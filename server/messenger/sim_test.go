package messenger

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
)

// simNet is a network in memory, for virtual time. Paths between two hosts can
// be delayed, stopped one way or both ways (what was sent waits, as TCP's
// retransmission makes it wait), and connections reset.
type simNet struct {
	mu        sync.Mutex
	listeners map[string]*simListener
	conns     []*simConn
	stopped   map[[2]string]bool // from, to
	delay     atomic.Int64       // of what is written from now on, in ns
	changed   chan struct{}      // closed and replaced when stopped changes
	dials     map[[2]string]int
	spoken    map[[2]string]int    // dials over which the dialer said anything: probes do not
	resetAt   func(c *simConn) int // bytes after which a new connection is reset; 0: never
	// slow makes what was sent over a stopped path before it healed wait once
	// more for as long as the path was stopped, as TCP's growing timeouts do.
	slow      bool
	stoppedAt map[[2]string]time.Time
	flipAt    func(c *simConn) int // the byte written by one end of which a bit is turned over; 0: none
	// lag is how much slower than delay a new connection is. It is another one for
	// each, so that what is said on one link overtakes what was said before on the
	// other.
	lag func() time.Duration
}

func newSimNet() *simNet {
	return &simNet{listeners: make(map[string]*simListener), stopped: make(map[[2]string]bool), changed: make(chan struct{}), dials: make(map[[2]string]int), spoken: make(map[[2]string]int)}
}

type simAddr string

func (a simAddr) Network() string { return "sim" }
func (a simAddr) String() string  { return string(a) }

type simListener struct {
	net    *simNet
	host   string
	queue  chan net.Conn
	once   sync.Once
	closed chan struct{}
}

func (n *simNet) listen(host string) *simListener {
	l := &simListener{net: n, host: host, queue: make(chan net.Conn, 256), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.listeners[host] = l
	return l
}

func (l *simListener) Addr() net.Addr { return simAddr(l.host) }
func (l *simListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.queue:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *simListener) Close() error {
	l.once.Do(func() {
		close(l.closed)
		l.net.mu.Lock()
		defer l.net.mu.Unlock()
		if l.net.listeners[l.host] == l {
			delete(l.net.listeners, l.host)
		}
	})
	return nil
}

// dialer returns the Options.Dial of a host.
func (n *simNet) dialer(from string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, _, to string) (net.Conn, error) {
		for {
			n.mu.Lock()
			blocked := n.stopped[[2]string{from, to}] || n.stopped[[2]string{to, from}]
			if !blocked {
				break
			}
			changed := n.changed
			n.mu.Unlock()
			select { // a SYN without an answer
			case <-ctx.Done():
				return nil, context.Cause(ctx)
			case <-changed:
			}
		}
		defer n.mu.Unlock()
		n.dials[[2]string{from, to}]++
		l := n.listeners[to]
		if l == nil {
			return nil, &net.OpError{Op: "dial", Net: "sim", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		}
		ab, ba := newSimPipe(n, from, to), newSimPipe(n, to, from)
		a := &simConn{in: ba, out: ab, local: from, remote: to}
		a.speak = sync.OnceFunc(func() {
			n.mu.Lock()
			defer n.mu.Unlock()
			n.spoken[[2]string{from, to}]++
		})
		b := &simConn{in: ab, out: ba, local: to, remote: from}
		if n.resetAt != nil {
			a.budget = n.resetAt(a)
		}
		if n.flipAt != nil {
			a.flip, b.flip = n.flipAt(a), n.flipAt(b)
		}
		if n.lag != nil {
			ab.lag, ba.lag = n.lag(), n.lag()
		}
		n.conns = append(n.conns, a)
		l.queue <- b
		return a, nil
	}
}

// lags makes each new connection slower by a random time of its own, below most,
// in whole milliseconds: so much happens in the same instant.
func (n *simNet) lags(seed uint64, most time.Duration) {
	rng := rand.New(rand.NewPCG(seed, 3))
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lag = func() time.Duration { return time.Duration(rng.Int64N(int64(most))).Truncate(time.Millisecond) }
}

// stop and heal stop and restart one direction of a path.
func (n *simNet) stop(from, to string) { n.set(from, to, true) }
func (n *simNet) heal(from, to string) { n.set(from, to, false) }

// healAll restarts every path on which there are connections, and lets dials
// through on all.
func (n *simNet) healAll() {
	n.mu.Lock()
	clear(n.stopped)
	n.mu.Unlock()
	n.set("", "", false)
}

func (n *simNet) set(from, to string, stopped bool) {
	n.mu.Lock()
	until := n.slowedLocked(from, to, stopped)
	n.stopped[[2]string{from, to}] = stopped
	close(n.changed)
	n.changed = make(chan struct{})
	conns := append([]*simConn(nil), n.conns...)
	n.mu.Unlock()
	for _, c := range conns {
		c.in.holdBack(from, to, until)
		c.out.holdBack(from, to, until)
	}
}

// slowedLocked is until when the connections of a path that heals are held
// back, if slow is set; zero: they are not.
func (n *simNet) slowedLocked(from, to string, stopped bool) time.Time {
	if !n.slow {
		return time.Time{}
	}
	path := [2]string{from, to}
	if n.stoppedAt == nil {
		n.stoppedAt = make(map[[2]string]time.Time)
	}
	at := n.stoppedAt[path]
	switch {
	case stopped && at.IsZero():
		n.stoppedAt[path] = time.Now()
	case !stopped && !at.IsZero():
		delete(n.stoppedAt, path)
		return time.Now().Add(time.Since(at))
	}
	return time.Time{}
}

// holdBack lets nothing arrive before until, and has it looked at again.
func (p *simPipe) holdBack(from, to string, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.from == from && p.to == to && !until.IsZero() {
		p.until = until
	}
	p.wakeLocked()
}

func (n *simNet) isStopped(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stopped[[2]string{from, to}]
}

// reset breaks every connection between two hosts.
func (n *simNet) reset(a, b string) {
	n.mu.Lock()
	conns := append([]*simConn(nil), n.conns...)
	n.conns = nil
	n.mu.Unlock()
	var others []*simConn
	for _, c := range conns {
		if c.local == a && c.remote == b || c.local == b && c.remote == a {
			c.breakOff()
		} else {
			others = append(others, c)
		}
	}
	n.mu.Lock()
	n.conns = append(n.conns, others...)
	n.mu.Unlock()
}

// simPipe is one direction of a connection.
type simPipe struct {
	net      *simNet
	from, to string
	lag      time.Duration

	mu     sync.Mutex
	chunks []simChunk
	size   int
	eof    bool
	err    error
	change chan struct{}
	until  time.Time // nothing arrives before
}

type simChunk struct {
	at time.Time
	p  []byte
}

const simWindow = 256 << 10

func newSimPipe(n *simNet, from, to string) *simPipe {
	return &simPipe{net: n, from: from, to: to, change: make(chan struct{})}
}

func (p *simPipe) wakeLocked() {
	close(p.change)
	p.change = make(chan struct{})
}

func (p *simPipe) fail(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
	p.wakeLocked()
}

func (p *simPipe) read(b []byte, d *simDeadline) (int, error) {
	for {
		p.mu.Lock()
		wait := time.Duration(-1)
		switch {
		case p.err != nil:
			defer p.mu.Unlock()
			return 0, p.err
		case p.net.isStopped(p.from, p.to):
		case time.Now().Before(p.until):
			wait = time.Until(p.until)
		case len(p.chunks) > 0:
			c := &p.chunks[0]
			if wait = time.Until(c.at); wait <= 0 {
				n := copy(b, c.p)
				if c.p = c.p[n:]; len(c.p) == 0 {
					p.chunks = p.chunks[1:]
				}
				p.size -= n
				p.wakeLocked()
				p.mu.Unlock()
				return n, nil
			}
		case p.eof:
			p.mu.Unlock()
			return 0, io.EOF
		}
		change := p.change
		p.mu.Unlock()
		if err := d.wait(change, wait); err != nil {
			return 0, err
		}
	}
}

func (p *simPipe) write(b []byte, d *simDeadline) (int, error) {
	n := 0
	for len(b) > 0 {
		p.mu.Lock()
		if p.err != nil || p.eof {
			p.mu.Unlock()
			return n, syscall.EPIPE
		}
		if room := min(len(b), simWindow-p.size); room > 0 {
			p.chunks = append(p.chunks, simChunk{time.Now().Add(time.Duration(p.net.delay.Load()) + p.lag), append([]byte(nil), b[:room]...)})
			p.size += room
			n += room
			b = b[room:]
			p.wakeLocked()
		}
		change := p.change
		p.mu.Unlock()
		if len(b) == 0 {
			break
		}
		if err := d.wait(change, -1); err != nil {
			return n, err
		}
	}
	return n, nil
}

// simDeadline is a read or write deadline.
type simDeadline struct {
	mu     sync.Mutex
	at     time.Time
	change chan struct{}
}

func (d *simDeadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = t
	if d.change != nil {
		close(d.change)
		d.change = nil
	}
}

// wait waits for change, for at most most (-1: for ever), or the deadline.
func (d *simDeadline) wait(change <-chan struct{}, most time.Duration) error {
	d.mu.Lock()
	if d.change == nil {
		d.change = make(chan struct{})
	}
	at, moved := d.at, d.change
	d.mu.Unlock()
	var timeout, expire <-chan time.Time
	if most >= 0 {
		t := time.NewTimer(most)
		defer t.Stop()
		timeout = t.C
	}
	if !at.IsZero() {
		left := time.Until(at)
		if left <= 0 {
			return os.ErrDeadlineExceeded
		}
		t := time.NewTimer(left)
		defer t.Stop()
		expire = t.C
	}
	select {
	case <-change:
	case <-timeout:
	case <-moved:
	case <-expire:
		return os.ErrDeadlineExceeded
	}
	return nil
}

// simConn is one end of a connection.
type simConn struct {
	in, out       *simPipe
	local, remote string
	rd, wd        simDeadline
	speak         func() // of who dialled: called before the first write

	hard   atomic.Bool
	mu     sync.Mutex
	flip   int // bytes until one is damaged
	budget int // bytes in either direction until the connection is reset; 0: no limit
}

var errSimReset = fmt.Errorf("reset by the simulated network: %w", syscall.ECONNRESET)

// spend takes n bytes from the budget, and reports how many may pass.
func (c *simConn) spend(n int) (pass int, broken bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.budget == 0 {
		return n, false
	}
	if n < c.budget {
		c.budget -= n
		return n, false
	}
	return c.budget, true
}

func (c *simConn) Read(b []byte) (int, error) {
	n, err := c.in.read(b, &c.rd)
	if pass, broken := c.spend(n); broken && err == nil {
		c.breakOff()
		return pass, nil
	}
	return n, err
}

func (c *simConn) Write(b []byte) (int, error) {
	if c.speak != nil {
		c.speak()
	}
	pass, broken := c.spend(len(b))
	n, err := c.out.write(c.damage(b[:pass]), &c.wd)
	if broken && err == nil {
		c.breakOff()
		err = errSimReset
	}
	return n, err
}

// damage turns over a bit of the byte that flip names.
func (c *simConn) damage(b []byte) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.flip == 0 {
		return b
	}
	if c.flip > len(b) {
		c.flip -= len(b)
		return b
	}
	b = append([]byte(nil), b...)
	b[c.flip-1] ^= 0x10
	c.flip = 0
	return b
}

// breakOff resets both directions at once: neither end may see the other's
// close in place of the reset. Only the dialer's end is broken off, so that
// the order of the two locks is always the same.
func (c *simConn) breakOff() {
	c.in.mu.Lock()
	defer c.in.mu.Unlock()
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	for _, p := range [...]*simPipe{c.in, c.out} {
		if p.err == nil {
			p.err = errSimReset
		}
		p.wakeLocked()
	}
}

// SetLinger(0) makes Close reset the connection, as TCP's does.
func (c *simConn) SetLinger(int) error {
	c.hard.Store(true)
	return nil
}

func (c *simConn) Close() error {
	if c.hard.Load() {
		c.out.fail(errSimReset)
	}
	c.out.mu.Lock()
	c.out.eof = true
	c.out.wakeLocked()
	c.out.mu.Unlock()
	c.in.fail(net.ErrClosed)
	return nil
}

func (c *simConn) LocalAddr() net.Addr  { return simAddr(c.local) }
func (c *simConn) RemoteAddr() net.Addr { return simAddr(c.remote) }
func (c *simConn) SetDeadline(t time.Time) error {
	c.rd.set(t)
	c.wd.set(t)
	return nil
}
func (c *simConn) SetReadDeadline(t time.Time) error  { c.rd.set(t); return nil }
func (c *simConn) SetWriteDeadline(t time.Time) error { c.wd.set(t); return nil }

// simBed is a bed on a simulated network. Host i is called as the node.
func simBed(t *testing.T, n int, change func(i int, o *Options)) (*bed, *simNet) {
	t.Helper()
	sn := newSimNet()
	b := &bed{t: t}
	for i := range n {
		o := Options{
			Cluster: "test", NodeName: nodeName(i), NodeID: i, Secrets: [][]byte{testSecret},
			Dial: sn.dialer(nodeName(i)), Tick: 4 * time.Second, PingCount: 4,
		}
		for j := range n {
			if j != i {
				o.Peers = append(o.Peers, Peer{Name: nodeName(j), ID: j, Address: nodeName(j)})
			}
		}
		if change != nil {
			change(i, &o)
		}
		b.opts = append(b.opts, o)
		b.nodes = append(b.nodes, nil)
	}
	b.listen = func(i int) net.Listener { return sn.listen(nodeName(i)) }
	return b, sn
}

// since is when after start an event of the kind came; -1: it did not.
func since(start time.Time, n *node, kind string) (time.Duration, cluster.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.events {
		if e.Type == kind {
			return e.Time.Sub(start), e
		}
	}
	return -1, cluster.Event{}
}
