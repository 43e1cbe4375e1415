package rpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lockstepd/lockstep/rpc/api"
)

func TestMain(m *testing.M) {
	if holdLock() {
		return
	}
	goleak.VerifyTestMain(m)
}

// patience is how long a test waits for what should happen at once.
const patience = 20 * time.Second

// testServer is a server on a Unix socket in a temporary folder.
type testServer struct {
	*Server
	path string
	reg  *Registry
	log  *syncBuffer
	stop func() error // ends Serve and returns what it returned
}

// syncBuffer collects a log.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

type echoParams struct {
	Words []string `json:"words"`
}

type setParams struct {
	Name  string        `json:"name"`
	Count int           `json:"count"`
	Wait  time.Duration `json:"wait"`
	Force bool          `json:"force"`
	Extra string        `json:"extra" rpc:"named"`
}

// testCommands are a command of each kind.
func testCommands() []Command {
	return []Command{
		{Name: "echo", Usage: "[ARG…]", MaxArgs: Unlimited, Doc: "Show the arguments.",
			Do: Text(func(_ context.Context, _ Actor, args []string) (string, error) { return strings.Join(args, " "), nil })},
		{Name: "words", Usage: "[WORD…]", MaxArgs: Unlimited, Doc: "Show the words.",
			Do: Typed(func(_ context.Context, _ Actor, p echoParams) (echoParams, error) { return p, nil },
				func(p echoParams) string { return strings.Join(p.Words, "\n") })},
		{Name: "set", Usage: "NAME [COUNT [WAIT [FORCE]]]", MinArgs: 1, MaxArgs: 4, Access: Admin, Doc: "Show typed parameters.",
			Do: Typed(func(_ context.Context, _ Actor, p setParams) (setParams, error) { return p, nil }, nil)},
		{Name: "fail", Usage: "MESSAGE", MinArgs: 1, MaxArgs: 1, Doc: "Fail with a message.",
			Do: Text(func(_ context.Context, _ Actor, args []string) (string, error) { return "", errors.New(args[0]) })},
		{Name: "refuse", Doc: "Fail with a code and data.",
			Do: Text(func(context.Context, Actor, []string) (string, error) {
				return "", fmt.Errorf("cannot: %w", api.Errorf(api.CodeInvalidState, "not now").WithData(api.Detail{Subject: "device r0"}))
			})},
		{Name: "panic", Doc: "Panic.",
			Do: Text(func(context.Context, Actor, []string) (string, error) { panic("on purpose") })},
		{Name: "whoami", Doc: "Show who calls.",
			Do: Typed(func(_ context.Context, by Actor, _ struct{}) (string, error) {
				return fmt.Sprintf("%s %s", by.User, by.Role), nil
			}, nil)},
		{Name: "null", Doc: "Answer null.",
			Do: Typed(func(context.Context, Actor, struct{}) (*int, error) { return nil, nil }, func(*int) string { return "nothing" })},
		{Name: "hidden", Doc: "Not listed.", Hidden: true,
			Do: Text(func(context.Context, Actor, []string) (string, error) { return "found", nil })},
	}
}

func newRegistry(t testing.TB, cmds ...Command) *Registry {
	t.Helper()
	reg, err := NewRegistry(cmds...)
	if err != nil {
		t.Fatal(err)
	}
	return reg
}

// serve starts a server with the test commands and cmds.
func serve(t testing.TB, o ServerOptions, cmds ...Command) *testServer {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.ctl")
	ln, err := ListenUnix(path, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return serveOn(t, ln, path, o, cmds...)
}

func serveOn(t testing.TB, ln net.Listener, path string, o ServerOptions, cmds ...Command) *testServer {
	t.Helper()
	s := &testServer{path: path, log: new(syncBuffer)}
	s.reg = newRegistry(t, append(testCommands(), cmds...)...)
	o.Registry, o.Program, o.Version = s.reg, "testd", "1.2.3"
	o.Logger = slog.New(slog.NewTextHandler(s.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	s.Server = NewServer(o)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, ln) }()
	s.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() {
		if err := s.stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return s
}

// raw is a client that sends and receives bytes.
type raw struct {
	*net.UnixConn
	t testing.TB
}

func (s *testServer) raw(t testing.TB) *raw {
	t.Helper()
	nc, err := net.Dial("unix", s.path)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(patience))
	t.Cleanup(func() { nc.Close() })
	return &raw{nc.(*net.UnixConn), t}
}

func (r *raw) send(text string) {
	r.t.Helper()
	if _, err := io.WriteString(r, text); err != nil {
		r.t.Fatalf("sending: %v", err)
	}
}

// expect reads as many bytes as want has.
func (r *raw) expect(want string) {
	r.t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(r, got)
	if string(got[:n]) != want {
		r.t.Fatalf("received %.300q, %v\nwant     %.300q", got[:n], err, want)
	}
}

// rest closes the sending half and returns all that comes.
func (r *raw) rest() string {
	r.t.Helper()
	r.CloseWrite()
	return r.all()
}

// all returns all that comes until the server closes.
func (r *raw) all() string {
	r.t.Helper()
	got, err := io.ReadAll(r)
	if err != nil {
		r.t.Fatalf("reading the rest: %v (after %q)", err, got)
	}
	return string(got)
}

// exchange sends text on a new connection, and returns all that is answered.
func (s *testServer) exchange(t testing.TB, text string) string {
	t.Helper()
	r := s.raw(t)
	r.send(text)
	return r.rest()
}

func (s *testServer) dial(t testing.TB, o DialOptions) *Client {
	t.Helper()
	c, err := Dial(t.Context(), s.path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// blocking is a command that runs until its context ends, and tells when it
// begins and why it ends.
type blocking struct {
	Command
	began chan struct{}
	ended chan error
}

func newBlocking(name string, deadline time.Duration) *blocking {
	b := &blocking{began: make(chan struct{}, 1000), ended: make(chan error, 1000)}
	b.Command = Command{Name: name, Doc: "Wait until the context ends.", Deadline: deadline,
		Do: Text(func(ctx context.Context, _ Actor, _ []string) (string, error) {
			b.began <- struct{}{}
			<-ctx.Done()
			b.ended <- context.Cause(ctx)
			return "", ctx.Err()
		})}
	return b
}

// receive returns what comes from ch, within patience.
func receive[T any](t testing.TB, ch <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
		panic("unreachable")
	}
}
