package rpc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/lockstepd/lockstep/rpc/reconnect"
)

// Caller is a connection that a Session keeps: a *Client, or what wraps one.
type Caller interface {
	Call(ctx context.Context, method string, params, result any) error
	CallText(ctx context.Context, method string, args ...string) (string, error)
	// Done is closed when the connection has ended; Err then says why.
	Done() <-chan struct{}
	Err() error
	// LastReceived is when the last message came, zero where none has.
	LastReceived() time.Time
	Close() error
}

// SessionOptions configure a Session. Dial is required.
type SessionOptions struct {
	// Dial connects. Its context ends when the attempt has taken too long.
	Dial func(ctx context.Context) (Caller, error)

	// OnConnect is called with each new connection before Call may use it:
	// the place to subscribe anew. If it fails the connection is closed and
	// the attempt counts as failed. May be nil.
	OnConnect func(ctx context.Context, c Caller) error

	// OnState is called when the connection comes, with nil, and when it goes
	// or an attempt fails, with the reason. It must not wait. May be nil.
	OnState func(err error)

	MinBackoff    time.Duration // default 1 s
	MaxBackoff    time.Duration // default 8 s
	ProbeInterval time.Duration // default 5 s; negative for no probes
	MaxTries      int           // attempts in a row before Run gives up; 0 for no limit
	Jitter        bool          // wait for a random part of the backoff
}

// Session is a client that reconnects. Run keeps the connection; Call and
// CallText use it, and wait for it while there is none.
type Session struct {
	o SessionOptions

	mu      sync.Mutex
	client  Caller        // nil while there is none, guarded by mu
	changed chan struct{} // closed and replaced when client or last changes, guarded by mu
	last    error         // why there is no connection, guarded by mu
	stats   reconnect.Stats
	ended   bool // Run has returned; guarded by mu
}

// NewSession returns a session that connects once Run is called.
func NewSession(o SessionOptions) *Session {
	return &Session{o: o, changed: make(chan struct{})}
}

// ErrEnded says that the session does not connect any more.
var ErrEnded = fmt.Errorf("the session has ended: %w", ErrUnreachable)

// Run keeps the connection until ctx ends, which is no error, or the tries are
// used up; then it returns why the last one failed.
func (s *Session) Run(ctx context.Context) error {
	r := &sessionRun{s: s, fsm: s.newFSM(), done: make(chan attempt, 1), probed: make(chan error, 1)}
	defer s.end()
	r.fsm.Enable(time.Now())
	for ctx.Err() == nil {
		r.act(ctx)
		if !r.fsm.Enabled() {
			break
		}
		r.wait(ctx)
	}
	r.close()
	if ctx.Err() != nil {
		return nil
	}
	return s.lastError()
}

func (s *Session) newFSM() *reconnect.FSM {
	f := reconnect.New(time.Now())
	f.ReceivesContinuously()
	f.SetBackoff(max(s.o.MinBackoff, 0), max(s.o.MaxBackoff, 0))
	if s.o.ProbeInterval != 0 {
		f.SetProbeInterval(max(s.o.ProbeInterval, 0))
	}
	if s.o.MaxTries > 0 {
		f.SetMaxTries(s.o.MaxTries)
	}
	if s.o.Jitter {
		f.SetJitter(func(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) })
	}
	return f
}

// sessionRun is what Run keeps. It belongs to Run's goroutine.
type sessionRun struct {
	s   *Session
	fsm *reconnect.FSM

	client  Caller             // the connection; nil while there is none
	heard   time.Time          // when something was received last, as the FSM was told
	cancel  context.CancelFunc // of what is in progress; nil if nothing is
	working sync.WaitGroup     // of what is in progress
	done    chan attempt       // an attempt ended
	probed  chan error         // a probe ended
}

type attempt struct {
	client Caller
	err    error
}

// act does what is to be done now.
func (r *sessionRun) act(ctx context.Context) {
	now := time.Now()
	if r.client != nil {
		if at := r.client.LastReceived(); at.After(r.heard) {
			r.heard = at
			r.fsm.Activity(at)
		}
	}
	switch r.fsm.Run(now) {
	case reconnect.Connect:
		r.fsm.Connecting(now)
		r.work(ctx, func(ctx context.Context) { r.done <- r.s.attempt(ctx) })
	case reconnect.Probe:
		c := r.client
		r.work(ctx, func(ctx context.Context) { r.probed <- c.Call(ctx, "version", nil, nil) })
	case reconnect.Disconnect:
		r.drop(fmt.Errorf("no answer for too long: %w", ErrTimeout))
	}
	r.s.publish(r.fsm.Stats(now))
}

// wait waits for the next thing to happen and takes it in.
func (r *sessionRun) wait(ctx context.Context) {
	var due <-chan time.Time
	if d, ok := r.fsm.Timeout(time.Now()); ok {
		t := time.NewTimer(d)
		defer t.Stop()
		due = t.C
	}
	var lost <-chan struct{}
	if r.client != nil {
		lost = r.client.Done()
	}
	select {
	case <-ctx.Done():
	case <-due:
	case a := <-r.done:
		r.attempted(a)
	case err := <-r.probed:
		r.answered(err)
	case <-lost:
		r.drop(whyEnded(r.client))
	}
}

// whyEnded is the reason of a connection's end. A moment after somebody here
// has closed it there may be none yet.
func whyEnded(c Caller) error {
	if err := c.Err(); err != nil {
		return err
	}
	return ErrLost
}

// work runs do beside the loop; stop ends it.
func (r *sessionRun) work(ctx context.Context, do func(context.Context)) {
	r.stop()
	ctx, r.cancel = context.WithCancel(ctx)
	r.working.Go(func() { do(ctx) })
}

// stop ends what is in progress and forgets its outcome.
func (r *sessionRun) stop() {
	if r.cancel == nil {
		return
	}
	r.cancel()
	r.working.Wait()
	r.cancel = nil
	select {
	case a := <-r.done:
		if a.client != nil {
			a.client.Close()
		}
	case <-r.probed:
	default:
	}
}

func (s *Session) attempt(ctx context.Context) attempt {
	c, err := s.o.Dial(ctx)
	if err != nil {
		return attempt{err: err}
	}
	if s.o.OnConnect != nil {
		if err := s.o.OnConnect(ctx, c); err != nil {
			c.Close()
			return attempt{err: err}
		}
	}
	return attempt{client: c}
}

func (r *sessionRun) attempted(a attempt) {
	if a.err != nil {
		r.drop(a.err)
		return
	}
	r.stop()
	r.client = a.client
	r.fsm.ConnectSucceeded(time.Now())
	if r.s.o.MaxTries > 0 {
		r.fsm.SetMaxTries(r.s.o.MaxTries)
	}
	r.s.set(a.client, nil)
}

// answered takes the end of a probe. Any answer will do, a refusal too.
func (r *sessionRun) answered(err error) {
	r.stop()
	if _, refused := errors.AsType[*Error](err); err == nil || refused {
		r.fsm.Activity(time.Now())
		return
	}
	r.drop(err)
}

// drop takes the loss of the connection or the failure of an attempt.
func (r *sessionRun) drop(err error) {
	r.stop()
	r.close()
	r.fsm.Disconnected(time.Now())
	r.s.set(nil, err)
}

func (r *sessionRun) close() {
	r.stop()
	if r.client != nil {
		r.client.Close()
		r.client = nil
	}
}

func (s *Session) publish(stats reconnect.Stats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stats = stats
}

// set makes c the connection, or err the reason why there is none.
func (s *Session) set(c Caller, err error) {
	s.mu.Lock()
	s.client, s.last = c, err
	s.wakeLocked()
	s.mu.Unlock()
	if s.o.OnState != nil {
		s.o.OnState(err)
	}
}

func (s *Session) wakeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *Session) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.client, s.ended = nil, true
	s.wakeLocked()
}

func (s *Session) lastError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.last != nil {
		return s.last
	}
	return ErrEnded
}

// Stats returns the state of the connection for display.
func (s *Session) Stats() reconnect.Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.stats
}

// Client returns the connection, waiting for it until ctx ends. The error then
// says why there is none.
func (s *Session) Client(ctx context.Context) (Caller, error) {
	for {
		s.mu.Lock()
		c, changed, last, ended := s.client, s.changed, s.last, s.ended
		s.mu.Unlock()
		switch {
		case c != nil:
			return c, nil
		case ended:
			return nil, ErrEnded
		}
		select {
		case <-changed:
		case <-ctx.Done():
			if last != nil {
				return nil, last
			}
			return nil, ctx.Err()
		}
	}
}

// Call is Client.Call on the connection there is, or that comes before ctx
// ends. It does not try again when the connection is lost: ErrLost leaves it to
// the caller, who knows whether the command may be repeated.
func (s *Session) Call(ctx context.Context, method string, params, result any) error {
	c, err := s.Client(ctx)
	if err != nil {
		return err
	}
	return c.Call(ctx, method, params, result)
}

// CallText is Client.CallText in the same way.
func (s *Session) CallText(ctx context.Context, method string, args ...string) (string, error) {
	c, err := s.Client(ctx)
	if err != nil {
		return "", err
	}
	return c.CallText(ctx, method, args...)
}
