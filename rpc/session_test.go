package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/reconnect"
)

// flaky is a peer in virtual time that can be down, mute or gone.
type flaky struct {
	t  *testing.T
	ln *pipeListener

	mu    sync.Mutex
	down  error      // what dialling fails with, guarded by mu
	mute  bool       // connections are accepted and not answered, guarded by mu
	last  net.Conn   // the client's end of the last connection, guarded by mu
	dials []string   // when, guarded by mu
	dead  []net.Conn // the other ends of mute connections, guarded by mu
}

func (f *flaky) dial(context.Context) (Caller, error) {
	f.mu.Lock()
	down, mute := f.down, f.mute
	f.dials = append(f.dials, since0().String())
	f.mu.Unlock()
	if down != nil {
		return nil, down
	}
	var nc net.Conn
	if mute {
		var theirs net.Conn
		nc, theirs = net.Pipe()
		go io.Copy(io.Discard, theirs)
		f.mu.Lock()
		f.dead = append(f.dead, theirs)
		f.mu.Unlock()
	} else {
		nc = f.ln.connect()
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last = nc
	return NewClient(nc, DialOptions{}), nil
}

func (f *flaky) set(down error, mute bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.down, f.mute = down, mute
}

func (f *flaky) cut() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last.Close()
}

func (f *flaky) dialled() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return strings.Join(f.dials, " ")
}

// since0 is the virtual time since a bubble began.
func since0() time.Duration { return time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) }

// startSession runs a session against a server in the bubble. end ends both.
func startSession(t *testing.T, o SessionOptions, cmds ...Command) (f *flaky, s *Session, end func() error) {
	t.Helper()
	server, ln := servePipe(t, ServerOptions{}, cmds...)
	f = &flaky{t: t, ln: ln}
	o.Dial = f.dial
	s = NewSession(o)
	ctx, cancel := context.WithCancel(t.Context())
	ran := make(chan error, 1)
	go func() { ran <- s.Run(ctx) }()
	return f, s, func() error {
		cancel()
		err := <-ran
		for _, nc := range f.dead {
			nc.Close()
		}
		return errors.Join(err, server.stop())
	}
}

func TestSessionReconnectsAndSubscribesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var states []string
		seen := uint64(0)
		o := SessionOptions{
			OnState: func(err error) { states = append(states, fmt.Sprint(err)) },
			OnConnect: func(ctx context.Context, c Caller) error {
				var r api.Subscribed
				err := c.Call(ctx, "events/subscribe", api.Subscribe{After: seen}, &r)
				seen = r.Seq
				return err
			},
		}
		var after []uint64
		f, s, end := startSession(t, o, Command{Name: "events/subscribe", Doc: "Subscribe.", MaxArgs: Unlimited,
			Do: Typed(func(_ context.Context, _ Actor, p api.Subscribe) (api.Subscribed, error) {
				after = append(after, p.After)
				return api.Subscribed{Seq: p.After + 10}, nil
			}, nil)})
		for range 3 {
			if err := s.Call(t.Context(), "echo", nil, nil); err != nil {
				t.Fatal(err)
			}
			f.cut()
			synctest.Wait()
			if err := s.Call(t.Context(), "echo", nil, nil); err != nil {
				t.Fatalf("after the connection was lost: %v", err)
			}
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(after); got != "[0 10 20 30]" {
			t.Errorf("subscribed after %s", got)
		}
		if len(states) != 7 || states[0] != "<nil>" || !strings.HasPrefix(states[1], "cannot reach pipe: ") {
			t.Errorf("states: %q", states)
		}
		if err := s.Call(t.Context(), "echo", nil, nil); !errors.Is(err, ErrEnded) || !errors.Is(err, ErrUnreachable) {
			t.Errorf("after the end: %v", err)
		}
	})
}

func TestSessionBacksOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := &UnreachableError{Target: "x", Cause: errors.New("down")}
		f, s, end := startSession(t, SessionOptions{})
		f.set(down, false)
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
		defer cancel()
		if err := s.Call(ctx, "echo", nil, nil); !errors.Is(err, down) {
			t.Errorf("while it is down: %v", err)
		}
		if got := f.dialled(); got != "0s 1s 3s 7s 15s 23s" {
			t.Errorf("dialled at %s", got)
		}
		if st := s.Stats(); st.State != reconnect.Backoff || st.Backoff != 8*time.Second {
			t.Errorf("%+v", st)
		}
		f.set(nil, false)
		if err := s.Call(t.Context(), "echo", nil, nil); err != nil {
			t.Error(err)
		}
		if since0() != 31*time.Second || !s.Stats().Connected {
			t.Errorf("connected after %v: %+v", since0(), s.Stats())
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// A mute peer is probed after five seconds, given up after ten, and dialled
// again a second later.
func TestSessionGivesUpAMutePeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, s, end := startSession(t, SessionOptions{})
		f.set(nil, true)
		time.Sleep(10500 * time.Millisecond)
		if got := f.dialled(); got != "0s" && !strings.HasPrefix(got, "0s ") {
			t.Errorf("dialled at %s", got)
		}
		f.set(nil, false)
		if err := s.Call(t.Context(), "echo", nil, nil); err != nil {
			t.Fatal(err)
		}
		if got := f.dialled(); got != "0s 11s" {
			t.Errorf("dialled at %s", got)
		}
		time.Sleep(time.Hour) // answered probes keep it
		if got := f.dialled(); got != "0s 11s" {
			t.Errorf("dialled at %s", got)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// Notifications are signs of life: no probe is sent while they come.
func TestSessionTakesNotificationsForLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		s := NewSession(SessionOptions{Dial: func(context.Context) (Caller, error) { return NewClient(ours, DialOptions{}), nil }})
		ctx, cancel := context.WithCancel(t.Context())
		ran := make(chan error, 1)
		go func() { ran <- s.Run(ctx) }()
		for range 30 {
			io.WriteString(theirs, `{"jsonrpc":"2.0","method":"event","params":{}}`)
			time.Sleep(time.Second)
		}
		theirs.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := theirs.Read(make([]byte, 100)); n > 0 {
			t.Errorf("it sent %d bytes, %v", n, err)
		}
		cancel()
		if err := <-ran; err != nil {
			t.Error(err)
		}
		theirs.Close()
	})
}

func TestSessionRunsOutOfTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		down := errors.New("down")
		n := 0
		s := NewSession(SessionOptions{MaxTries: 3, Dial: func(context.Context) (Caller, error) { n++; return nil, down }})
		if err := s.Run(t.Context()); !errors.Is(err, down) || n != 3 {
			t.Errorf("%v after %d tries", err, n)
		}
	})
}

func TestSessionRefusedByOnConnectTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := 0
		_, s, end := startSession(t, SessionOptions{Jitter: true, OnConnect: func(context.Context, Caller) error {
			if n++; n < 3 {
				return errors.New("not yet")
			}
			return nil
		}})
		if text, err := s.CallText(t.Context(), "echo", "x"); text != "x\n" || err != nil || n != 3 {
			t.Errorf("%q, %v after %d", text, err, n)
		}
		if d := since0(); d > 3*time.Second || d < time.Second {
			t.Errorf("with jitter it took %v", d)
		}
		if err := end(); err != nil {
			t.Fatal(err)
		}
	})
}

// An attempt that hangs is given up in a second, and its connection closed.
func TestSessionAttemptThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n int
		s := NewSession(SessionOptions{MaxTries: 2, Dial: func(ctx context.Context) (Caller, error) {
			n++
			<-ctx.Done()
			return nil, ctx.Err()
		}})
		if err := s.Run(t.Context()); !errors.Is(err, ErrTimeout) || n != 2 || since0() != 3*time.Second {
			t.Errorf("%v after %d tries and %v", err, n, since0())
		}
	})
}

// Notifications arrive in order, through the notify function of each client.
func TestClientNotificationsAreInOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		var got []string
		c := NewClient(ours, DialOptions{Notify: func(m string, p json.RawMessage) { got = append(got, m+string(p)) }})
		for i := range 3 {
			fmt.Fprintf(theirs, `{"jsonrpc":"2.0","method":"n","params":[%d]}`, i)
		}
		io.WriteString(theirs, `{"jsonrpc":"2.0","method":"bare"}{"jsonrpc":"2.0","id":1,"method":"asks"}`)
		theirs.Close()
		<-c.Done()
		synctest.Wait()
		if fmt.Sprint(got) != "[n[0] n[1] n[2] bare]" {
			t.Errorf("%v", got)
		}
	})
}
