package nbd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/server/block"
)

// Limits bound what clients can take. A zero field means its default.
type Limits struct {
	Connections   int           // at a time; those beyond are closed at once; default 512
	Handshake     time.Duration // from connecting to GO, not counting the wait for the backend; default 30 s
	Grace         time.Duration // what is left of a handshake when the connection is to be passed on; default 1 s
	Options       int           // before GO; default 4096
	Inflight      int           // requests in flight per connection; default 1024
	InflightBytes int64         // of their payloads; default 64 MiB; one request larger than this may be alone
	TotalBytes    int64         // of all connections' payloads; default 1 GiB; beyond it each may have one request
	Slabs         int           // of 1 MiB that writes in flight may hold per connection; default 8
	// Spin is how long a reader polls for the next request before it sleeps,
	// where requests come one at a time and there is more than one processor;
	// default 20 µs, negative for none.
	Spin time.Duration
	// Patience is how long it polls, and helps, while the last one is under way;
	// default 60 µs, negative for none.
	Patience time.Duration
}

func (l Limits) withDefaults() Limits {
	def(&l.Connections, 512)
	def(&l.Handshake, 30*time.Second)
	def(&l.Grace, time.Second)
	def(&l.Options, 4096)
	def(&l.Inflight, 1024)
	def(&l.InflightBytes, 64<<20)
	def(&l.TotalBytes, 1<<30)
	def(&l.Slabs, 8)
	def(&l.Spin, 20*time.Microsecond)
	def(&l.Patience, 60*time.Microsecond)
	return l
}

func def[T comparable](p *T, v T) {
	var zero T
	if *p == zero {
		*p = v
	}
}

// Options make a Server.
type Options struct {
	Backend Backend      // required
	Logger  *slog.Logger // default: none
	Limits  Limits
	Helper  Helper // default: none
}

// Helper brings on what a backend waits for, on a goroutine that has nothing
// else to do for the moment.
type Helper interface {
	// Help calls while, and as long as that returns true takes what others
	// answered. It does not sleep, and performs nothing that may take long.
	Help(while func() bool)
}

// nobody helps where there is no Helper.
type nobody struct{}

func (nobody) Help(while func() bool) {
	for while() {
	}
}

// Server serves a Backend. Its methods may be called concurrently.
type Server struct {
	backend Backend
	log     *slog.Logger
	limits  Limits
	helper  Helper
	slabs   *block.Pool
	bufs    *bufs
	epoch   time.Time
	exports exports
	held    atomic.Int64 // bytes of payloads in flight, of all connections

	// mu guards the fields below.
	mu        sync.Mutex
	closed    bool
	conns     map[*conn]struct{} // every connection, from accept to the end
	listeners map[net.Listener]struct{}
	accepted  uint64
	refused   uint64
	changed   sync.Cond // on mu: a connection ended
	passed    []Passed  // connections stopped for HandOver
}

// NewServer returns a server that serves nothing yet.
func NewServer(o Options) *Server {
	s := &Server{
		backend:   o.Backend,
		log:       o.Logger,
		limits:    o.Limits.withDefaults(),
		helper:    o.Helper,
		slabs:     block.NewPool(slabSize),
		bufs:      newBufs(),
		epoch:     time.Now(),
		conns:     make(map[*conn]struct{}),
		listeners: make(map[net.Listener]struct{}),
	}
	s.changed.L = &s.mu
	s.exports.init()
	if s.helper == nil {
		s.helper = nobody{}
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s
}

// now is the server's clock, in nanoseconds.
func (s *Server) now() int64 { return int64(time.Since(s.epoch)) }

// ErrClosed is returned by Serve and Resume after Close or HandOver.
var ErrClosed = errors.New("nbd: server closed")

// Serve accepts connections from ln and serves them until ctx ends, the server
// is closed or handed over, or ln fails. It closes ln, and returns when all
// that it started has ended: nil if it was asked to stop.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	return s.serve(ctx, ln, s.backend)
}

// ServeOnly is Serve for a listener that belongs to one export: its clients
// see no other, and the empty name means it.
func (s *Server) ServeOnly(ctx context.Context, ln net.Listener, export string) error {
	return s.serve(ctx, ln, only{s.backend, export})
}

func (s *Server) serve(ctx context.Context, ln net.Listener, b Backend) error {
	if !s.addListener(ln) {
		_ = ln.Close()
		return ErrClosed
	}
	defer s.removeListener(ln)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()

	var conns sync.WaitGroup
	err := s.accept(ctx, ln, func(nc net.Conn) { s.start(ctx, nc, b, &conns) })
	if ctx.Err() != nil || s.isClosed() {
		err = nil
	}
	if !s.isClosed() {
		cancel() // connections end with their listener, unless Close or HandOver see to it
	}
	conns.Wait()
	return err
}

// accept accepts until ln fails for good. Running out of descriptors is waited
// out: connections that end give some back.
func (s *Server) accept(ctx context.Context, ln net.Listener, start func(net.Conn)) error {
	const least, most = 5 * time.Millisecond, time.Second
	pause := least
	for {
		nc, err := ln.Accept()
		switch {
		case err == nil:
			pause = least
			start(nc)
		case exhausted(err) && ctx.Err() == nil:
			s.log.Warn("accepting NBD clients failed, trying again", "addr", ln.Addr(), "err", err, "pause", pause)
			if !sleep(ctx, pause) {
				return err
			}
			pause = min(2*pause, most)
		default:
			return fmt.Errorf("accept NBD clients on %s: %w", ln.Addr(), err)
		}
	}
}

// exhausted reports whether err passes when other connections end, or was the
// client's.
func exhausted(err error) bool {
	for _, e := range []error{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func (s *Server) start(ctx context.Context, nc net.Conn, b Backend, conns *sync.WaitGroup) {
	c, err := s.add(nc)
	if err != nil {
		_ = nc.Close()
		s.log.Warn("NBD client refused", "addr", nc.RemoteAddr(), "err", err)
		return
	}
	c.backend = b
	conns.Go(func() {
		defer s.remove(c)
		stop := context.AfterFunc(ctx, func() { c.kill(errShutdown) })
		defer stop()
		c.serve(ctx)
	})
}

// add admits a connection.
func (s *Server) add(nc net.Conn) (*conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.accepted++
	switch {
	case s.closed:
		return nil, ErrClosed
	case len(s.conns) >= s.limits.Connections:
		s.refused++
		return nil, fmt.Errorf("there are %d connections, which is the limit", len(s.conns))
	}
	c := newConn(s, nc, s.accepted)
	s.conns[c] = struct{}{}
	return c, nil
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.changed.Broadcast()
}

func (s *Server) addListener(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.listeners[ln] = struct{}{}
	return true
}

func (s *Server) removeListener(ln net.Listener) {
	_ = ln.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.listeners, ln)
}

func (s *Server) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// shut closes the listeners for good and returns the connections there are.
func (s *Server) shut() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for ln := range s.listeners {
		_ = ln.Close() // unblocks its Serve; closing does not wait
	}
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	slices.SortFunc(conns, func(a, b *conn) int { return int(a.client.ID) - int(b.client.ID) })
	return conns
}

// Close drops every connection and has Serve return. Requests in flight get no
// answer, so that clients that reconnect ask again. It does not wait: Serve
// does.
func (s *Server) Close() {
	for _, c := range s.shut() {
		c.kill(errShutdown)
	}
}

// Drop drops every connection to an export, as Close does with all. A client
// that connects again is served, if the backend lets it.
func (s *Server) Drop(export string) {
	for _, c := range s.exports.of(export) {
		c.kill(errDropped)
	}
}
