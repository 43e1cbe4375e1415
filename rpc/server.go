package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// ServerOptions configure a Server. Only Registry is required.
type ServerOptions struct {
	Registry *Registry
	Logger   *slog.Logger

	Program string // of "version": "lockstepd"
	Version string

	// Authorize says what an actor may do. The default makes administrators
	// of root and of the daemon's own user, and admits nobody else.
	Authorize func(Actor) Role

	Limits Limits
}

// Limits bound what clients can make the server hold. Zero means the default.
type Limits struct {
	Connections  int           // 256
	RequestBytes int           // 1 MiB
	Depth        int           // 100 objects and lists within each other
	InProgress   int           // 64 JSON-RPC 2.0 requests of one connection; a unixctl connection has one
	Running      int           // 1024 commands in progress in all
	Batch        int           // 256 requests in a batch
	QueueBytes   int           // 256 KiB of replies and notifications that one connection has not read
	WriteTimeout time.Duration // 10 s without reading cut a client off
	Busy         time.Duration // 1 s: how long a request waits for one of InProgress before it is refused
	Stop         time.Duration // 5 s: how long Serve waits for commands that do not heed their context
}

func (l Limits) withDefaults() Limits {
	set(&l.Connections, 256)
	set(&l.RequestBytes, 1<<20)
	set(&l.Depth, 100)
	set(&l.InProgress, 64)
	set(&l.Running, 1024)
	set(&l.Batch, 256)
	set(&l.QueueBytes, 256<<10)
	set(&l.WriteTimeout, 10*time.Second)
	set(&l.Busy, time.Second)
	set(&l.Stop, 5*time.Second)
	return l
}

func set[T int | time.Duration](field *T, value T) {
	if *field <= 0 {
		*field = value
	}
}

// Server answers the commands of a registry on any number of listeners.
type Server struct {
	opts  ServerOptions
	lim   Limits
	log   *slog.Logger
	users userNames
	stats counters

	conns    chan struct{} // a token for each connection
	refusals chan struct{} // a token for each connection that is being refused
	running  chan struct{} // a token for each command in progress
	connSeq  atomic.Uint64

	mu       sync.Mutex
	commands map[string]*commandCount // of each command that was ever run, guarded by mu
}

// commandCount is what there is to know of one command.
type commandCount struct {
	CommandStats
	active int // in progress
}

// CommandStats are counts of one command since the server was made.
type CommandStats struct {
	Requests uint64
	Failures uint64        // that its handler answered with an error
	Took     time.Duration // all of them together
}

// maxRefusals bounds the goroutines that tell clients that there are too many.
const maxRefusals = 64

// NewServer returns a server that serves nothing yet.
func NewServer(opts ServerOptions) *Server {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	if opts.Authorize == nil {
		opts.Authorize = Policy{AdminUIDs: []uint32{0, uint32(os.Geteuid())}}.Role
	}
	lim := opts.Limits.withDefaults()
	return &Server{
		opts:     opts,
		lim:      lim,
		log:      opts.Logger,
		conns:    make(chan struct{}, lim.Connections),
		refusals: make(chan struct{}, maxRefusals),
		running:  make(chan struct{}, lim.Running),
		commands: make(map[string]*commandCount),
	}
}

// Serve answers on ln until ctx is done, then lets the commands in progress
// know, sends their replies, and returns when all of it has ended. It closes
// ln. A command that does not heed its context is waited for no longer than
// Limits.Stop and named in the error.
func (s *Server) Serve(ctx context.Context, ln net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	var conns sync.WaitGroup
	err := s.accept(ctx, ln, &conns)
	cancel() // a listener that failed takes its connections along
	ln.Close()
	return errors.Join(err, s.await(&conns))
}

func (s *Server) accept(ctx context.Context, ln net.Listener, conns *sync.WaitGroup) error {
	for {
		nc, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case err != nil && !passing(err):
			return fmt.Errorf("accepting control connections on %s: %w", ln.Addr(), err)
		case err != nil:
			s.log.Warn("cannot accept a control connection, trying again", "err", err)
			pause(ctx, 100*time.Millisecond)
			continue
		}
		s.admit(ctx, nc, conns)
	}
}

// passing reports whether Accept may succeed later: the process or the machine
// is short of something, or the client gave up.
func passing(err error) bool {
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ECONNABORTED} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// admit serves nc, or tells it that there are too many. Where even those who
// are told are too many, the next wait in the listener's backlog.
func (s *Server) admit(ctx context.Context, nc net.Conn, conns *sync.WaitGroup) {
	select {
	case s.conns <- struct{}{}:
		s.stats.accepted.Add(1)
		conns.Go(func() { s.serveConn(ctx, nc) })
		return
	default:
	}
	s.stats.refused.Add(1)
	select {
	case s.refusals <- struct{}{}:
		conns.Go(func() {
			defer func() { <-s.refusals }()
			s.refuse(ctx, nc)
		})
	case <-ctx.Done():
		nc.Close()
	}
}

// await waits for what the connections left behind.
func (s *Server) await(conns *sync.WaitGroup) error {
	done := make(chan struct{})
	go func() {
		conns.Wait()
		close(done)
	}()
	limit := time.NewTimer(s.lim.Stop)
	defer limit.Stop()
	select {
	case <-done:
		return nil
	case <-limit.C:
		return fmt.Errorf("%d connections do not end; commands in progress: %s",
			len(s.conns), strings.Join(s.inProgress(), ", "))
	}
}

// inProgress names the commands in progress.
func (s *Server) inProgress() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for name, c := range s.commands {
		if c.active > 0 {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// begun counts a command that a handler takes on.
func (s *Server) begun(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.commands[name]
	if c == nil {
		c = &commandCount{}
		s.commands[name] = c
	}
	c.active++
	c.Requests++
}

// ended counts how that went.
func (s *Server) ended(name string, took time.Duration, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.commands[name]
	c.active--
	c.Took += took
	if err != nil {
		c.Failures++
	}
}

// Commands returns the counts of every command that was ever run, by name.
func (s *Server) Commands() map[string]CommandStats {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string]CommandStats, len(s.commands))
	for name, c := range s.commands {
		out[name] = c.CommandStats
	}
	return out
}

// counters are the server's own statistics.
type counters struct {
	accepted, refused, cutOff    atomic.Uint64
	requests, failures, timeouts atomic.Uint64
	panics, malformed            atomic.Uint64
	dropped, notifications       atomic.Uint64
}

// Stats are counts since the server was made.
type Stats struct {
	Connections   int    // now
	InProgress    int    // commands, now
	Accepted      uint64 // connections
	Refused       uint64 // connections beyond the limit
	CutOff        uint64 // connections whose client did not read
	Requests      uint64
	Failures      uint64 // requests that were answered with an error
	Timeouts      uint64 // of them, because the deadline passed
	Panics        uint64 // of them, because the handler panicked
	Malformed     uint64 // messages that were no requests
	Dropped       uint64 // notifications that found a full queue
	Notifications uint64 // that were queued
}

// Stats returns the counts.
func (s *Server) Stats() Stats {
	return Stats{
		Connections: len(s.conns), InProgress: len(s.running),
		Accepted: s.stats.accepted.Load(), Refused: s.stats.refused.Load(), CutOff: s.stats.cutOff.Load(),
		Requests: s.stats.requests.Load(), Failures: s.stats.failures.Load(), Timeouts: s.stats.timeouts.Load(),
		Panics: s.stats.panics.Load(), Malformed: s.stats.malformed.Load(),
		Dropped: s.stats.dropped.Load(), Notifications: s.stats.notifications.Load(),
	}
}
