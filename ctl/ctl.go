// Package ctl is lockstepctl, the companion program of lockstepd: it sends one
// command to the daemon's control socket and shows the answer to people (text)
// or to programs (-f json: the daemon's own result, byte for byte).
//
// A command is one verb in the file of its noun: what it sends, how the answer
// is shown, its help. Everything that touches the world (streams, terminal,
// environment, the dialler) comes in by Env, so that tests run whole command
// lines. Standard output carries the answer and nothing else; progress and
// remarks go to standard error. The exit codes are in exit.go.
//
// Nothing is built before it is needed: a command line costs the making of its
// own commands, not of all.
package ctl

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/stream"
)

// Client is a connection to the daemon, as commands use it.
type Client = rpc.Caller

// Notify is called with each notification, in order, by the goroutine that
// reads the connection; until it returns nothing more is read.
type Notify func(method string, params json.RawMessage)

// Target is what to connect to.
type Target struct {
	// Name is a socket's path, the name of a program whose pidfile is in Rundir,
	// or that of a stream, such as ssl:HOST:PORT.
	Name, Rundir string
	TLS          stream.Files // for ssl:
}

// Dial connects to a target. A target that can't be reached is an
// *rpc.UnreachableError. notify is nil where no notifications are asked for.
type Dial func(ctx context.Context, t Target, notify Notify) (Client, error)

// Terminal is an output that is a terminal.
type Terminal interface {
	// Size is in columns and lines.
	Size() (width, height int)
}

// Env is the world as a command sees it.
type Env struct {
	// Release is the version of this program, if it was built as a release.
	Release  string
	In       io.Reader
	Out, Err io.Writer
	Getenv   func(string) string
	// OutTerm and ErrTerm are nil where the stream is no terminal. InTerm says
	// whether somebody can be asked.
	OutTerm, ErrTerm Terminal
	InTerm           bool
	Dial             Dial
	// Inspect reads a metadata file without a daemon and returns an encoded
	// api.Metadata.
	Inspect func(ctx context.Context, path string) (json.RawMessage, error)
	// Open opens a file of the user's for reading.
	Open func(path string) (io.ReadCloser, error)
	// Interrupts returns a context that ends when the user interrupts. Without
	// it, an interrupt ends the program as usual.
	Interrupts func(context.Context) (context.Context, context.CancelFunc)
	// Keyboard turns the terminal over to a full-screen program.
	Keyboard func() (Keyboard, error)
}

// Keyboard is a terminal in raw mode.
type Keyboard interface {
	// Keys delivers what is typed, and is closed when there is no more.
	Keys() <-chan string
	// Resized receives a value when the terminal changed its size.
	Resized() <-chan struct{}
	// Close gives the terminal back as it was.
	Close() error
}

// Main runs one command line, without the program's name, and returns the exit
// status.
func Main(args []string, env Env) int {
	a := &app{Env: env}
	root := a.root(args)
	root.SetArgs(args)
	return a.report(root.ExecuteContext(context.Background()))
}

// app is one run of the program.
type app struct {
	Env
	opts options
}

// options are the flags that every command takes.
type options struct {
	target  string
	tls     stream.Files
	timeout float64
	format  string
	pretty  bool
	noColor bool
	quiet   bool
	version bool
}

// How long a command waits for its answer, without -T: longer than the daemon
// lets it run, so that its own word on the matter is heard if it has one.
// Commands that need peers' consent, drain I/O or rebuild are slow.
const (
	patience     = 20 * time.Second
	slowPatience = 75 * time.Second
)

// patienceFor is how long to wait for the answer to a command.
func patienceFor(method string) time.Duration {
	switch noun, _, _ := strings.Cut(method, "/"); noun {
	case "device", "config", "service":
		return slowPatience
	}
	return patience
}

// deadline gives ctx the time limit of -T, else the usual one; usual 0 is none.
func (a *app) deadline(ctx context.Context, usual time.Duration) (context.Context, context.CancelFunc) {
	if a.opts.timeout > 0 {
		usual = time.Duration(a.opts.timeout * float64(time.Second))
	}
	if usual == 0 {
		return context.WithCancel(ctx)
	}
	return context.WithTimeoutCause(ctx, usual, errTimeout{usual})
}

// daemonTime is how long a command may wait at the daemon for what stands in its
// way, in ms: less than -T, so that the reason comes before the time is over; 0,
// which leaves it to the daemon, without -T.
func (a *app) daemonTime() int64 {
	limit := a.opts.timeout * 1000
	if limit == 0 {
		return 0
	}
	return max(int64(limit-min(limit/5, 1000)), 1)
}

// target is the name of what to connect to.
func (a *app) target() string {
	return cmp.Or(a.opts.target, a.Getenv("LOCKSTEP_TARGET"), program)
}

// address is what to connect to, and how.
func (a *app) address() Target {
	return Target{Name: a.target(), Rundir: cmp.Or(a.Getenv("LOCKSTEP_RUNDIR"), "/run/lockstep"), TLS: a.opts.tls}
}

// program is whom we talk to when nobody else is named.
const program = "lockstepd"

// call sends one request on a connection of its own and returns the result as
// it came.
func (a *app) call(ctx context.Context, method string, params any) (json.RawMessage, error) {
	ctx, cancel := a.deadline(ctx, patienceFor(method))
	defer cancel()
	c, err := a.dial(ctx, nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var raw json.RawMessage
	if err := c.Call(ctx, method, params, &raw); err != nil {
		return nil, a.failed(ctx, c, err)
	}
	return raw, nil
}

// callText is call in the dialect that answers with text.
func (a *app) callText(ctx context.Context, method string, args ...string) (string, error) {
	ctx, cancel := a.deadline(ctx, patienceFor(method))
	defer cancel()
	c, err := a.dial(ctx, nil)
	if err != nil {
		return "", err
	}
	defer c.Close()
	s, err := c.CallText(ctx, method, args...)
	if err != nil {
		return "", a.failed(ctx, c, err)
	}
	return s, nil
}

// json reports whether the answer goes to a program.
func (a *app) json() bool { return a.opts.format == "json" }

// look is how text for standard output is rendered.
func (a *app) look() render.Options { return a.lookOf(a.OutTerm) }

// lookOf is how text for a stream is rendered.
func (a *app) lookOf(t Terminal) render.Options {
	o := render.Options{Now: time.Now()}
	if t != nil {
		o.Width, o.Height = t.Size()
		o.Color = !a.opts.noColor && a.Getenv("NO_COLOR") == "" && a.Getenv("TERM") != "dumb"
	}
	return o
}

// print writes the answer. A reader that went away is no failure of ours to
// report, but there is nothing left to do.
func (a *app) print(s string) error {
	if _, err := io.WriteString(a.Out, s); err != nil {
		return fmt.Errorf("cannot write the answer: %w", err)
	}
	return nil
}

// remark writes a line for people beside the answer, unless they want none.
func (a *app) remark(format string, args ...any) {
	if !a.opts.quiet {
		fmt.Fprintf(a.Err, format+"\n", args...)
	}
}
