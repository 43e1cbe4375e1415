package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
)

// daemon is a lockstepd of the tests: it answers by method, and remembers what
// it was asked.
type daemon struct {
	// answers are JSON texts, errors, or func(params string) (string, error).
	answers map[string]any
	// texts answer CallText.
	texts map[string]string
	// hangs makes CallText wait for the end of its time.
	hangs bool
	// dials, if set, decides on each attempt to connect, counted from 1.
	dials func(n int) error

	mu     sync.Mutex
	asked  []string
	dialed int
	conns  []*conn
}

// conn is a connection to a daemon of the tests.
type conn struct {
	d      *daemon
	notify Notify
	used   atomic.Bool
	once   sync.Once
	done   chan struct{}
}

func (d *daemon) dial(_ context.Context, _ Target, notify Notify) (Client, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dialed++
	if d.dials != nil {
		if err := d.dials(d.dialed); err != nil {
			return nil, err
		}
	}
	c := &conn{d: d, notify: notify, done: make(chan struct{})}
	d.conns = append(d.conns, c)
	return c, nil
}

func (d *daemon) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, fmt.Sprintf(format, args...))
}

// requests are what was asked so far.
func (d *daemon) requests() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.asked...)
}

func (c *conn) Call(ctx context.Context, method string, params, result any) error {
	raw, err := json.Marshal(params)
	if err != nil {
		return err
	}
	if c.used.Swap(true) && method == "version" && c.d.answers["version"] == nil {
		return ctx.Err() // a probe of a connection that is kept
	}
	c.d.note("%s %s", method, raw)
	var answer string
	switch a := c.d.answers[method].(type) {
	case nil:
		return api.Errorf(api.CodeMethodNotFound, "%q is not a valid command (use \"list-commands\" to see a list of valid commands)", method)
	case string:
		answer = a
	case error:
		return a
	case func(string) (string, error):
		if answer, err = a(string(raw)); err != nil {
			return err
		}
	case func(context.Context, *conn, string) (string, error):
		if answer, err = a(ctx, c, string(raw)); err != nil {
			return err
		}
	default:
		return fmt.Errorf("the test's answer to %s is a %T", method, a)
	}
	if result == nil {
		return nil
	}
	return json.Unmarshal([]byte(answer), result)
}

func (c *conn) CallText(ctx context.Context, method string, args ...string) (string, error) {
	c.d.note("%s %q", method, args)
	if c.d.hangs {
		<-ctx.Done()
		return "", ctx.Err()
	}
	if s, ok := c.d.texts[method]; ok {
		return s, nil
	}
	return "", api.Errorf(api.CodeFailed, "%q is not a valid command (use \"list-commands\" to see a list of valid commands)", method)
}

func (c *conn) Done() <-chan struct{}   { return c.done }
func (c *conn) Err() error              { return rpc.ErrLost }
func (c *conn) LastReceived() time.Time { return time.Time{} }

func (c *conn) Close() error {
	c.once.Do(func() { close(c.done) })
	return nil
}

// screenOf is a terminal of the tests.
type screenOf struct{ width, height int }

func (s screenOf) Size() (width, height int) { return s.width, s.height }

// outcome is what a command line did.
type outcome struct {
	code     int
	out, err string
}

// lockedBuffer may be read while the program writes.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// testRelease is the version of the program in tests.
const testRelease = "7.5"

// env is a world of the tests, without terminal.
func env(d *daemon, out, err io.Writer) Env {
	return Env{
		Release: testRelease,
		In:      strings.NewReader(""), Out: out, Err: err, Dial: d.dial,
		Getenv:     func(string) string { return "" },
		Open:       func(path string) (io.ReadCloser, error) { return os.Open(path) },
		Interrupts: func(ctx context.Context) (context.Context, context.CancelFunc) { return context.WithCancel(ctx) },
	}
}

// run runs a command line; change may change its world.
func run(t *testing.T, d *daemon, line string, change ...func(*Env)) outcome {
	t.Helper()
	var out, err lockedBuffer
	e := env(d, &out, &err)
	for _, c := range change {
		c(&e)
	}
	code := Main(strings.Fields(line), e)
	return outcome{code, out.String(), err.String()}
}
