package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/lockstepd/lockstep/daemon/coverage"
	"github.com/lockstepd/lockstep/daemon/memory"
	"github.com/lockstepd/lockstep/daemon/notify"
	"github.com/lockstepd/lockstep/daemon/vlog"
)

// Env is what the daemon's function gets from the process around it. Its
// methods are safe for concurrent use.
type Env struct {
	opts     *Options
	stage    stage
	image    image
	log      *slog.Logger
	vlog     *vlog.Vlog
	coverage *coverage.Registry
	memory   *memory.Account
	notifier *notify.Notifier
	sockets  *sockets
	link     *link // to the monitor; nil without one
	cancel   context.CancelCauseFunc
	ctx      context.Context
	tasks    sync.WaitGroup // background work, ended by ctx
	over     chan struct{}  // closed when the function has returned
	finished sync.WaitGroup // background work, ended by over
	serving  chan struct{}  // closed by Ready
	alone    chan struct{}  // closed with orphaned
	reload   chan struct{}
	orphaned atomic.Bool // the monitor is gone

	mu        sync.Mutex // guards all below
	reporter  *reporter
	ready     bool
	reloads   bool // somebody takes reloads
	reloading bool
	dumps     []func(io.Writer)
	status    string
}

// Logger returns the logger of a part of the program.
func (e *Env) Logger(module string) *slog.Logger { return e.vlog.Logger(module) }

// Vlog is the log itself, for the commands that change it.
func (e *Env) Vlog() *vlog.Vlog { return e.vlog }

// Coverage is the registry of event counters.
func (e *Env) Coverage() *coverage.Registry { return e.coverage }

// Memory is the account of memory.
func (e *Env) Memory() *memory.Account { return e.memory }

// Ready says that the daemon serves. Whoever waits for that is told: the
// launcher, the monitor, the service manager. With --detach the process goes
// into the background: to / and away from the terminal. Inherited sockets that
// were not claimed are closed.
func (e *Env) Ready() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ready {
		return nil
	}
	e.ready = true
	close(e.serving)
	e.sockets.dropUnclaimed()
	e.told(e.notifier.Ready(e.mainPID()))
	if e.stage.Detached {
		if err := e.background(); err != nil {
			return err
		}
	}
	if err := e.reporter.report(verdict{ready: true}); err != nil {
		e.log.Warn("nobody waits any more for this daemon to serve", "error", err)
	}
	return nil
}

// background leaves the terminal and the working folder.
func (e *Env) background() error {
	if err := e.vlog.Set("console:off"); err != nil {
		return err
	}
	e.vlog.Flush()
	return leaveTerminal(e.opts.Flags.NoChdir, cmp.Or(e.stage.Console, 2))
}

// mainPID is the process that a service manager should watch.
func (e *Env) mainPID() int {
	if e.stage.Monitor != 0 {
		return e.stage.Monitor
	}
	return os.Getpid()
}

// told logs that the service manager could not be told something.
func (e *Env) told(err error) {
	if err != nil {
		e.log.Warn("notification failed", "error", err)
	}
}

// AdoptOrListen returns the listening socket that this daemon's predecessor,
// its monitor or the service manager holds under the given name, or makes one
// with listen and has it held from now on. Of what listen returns, the socket
// counts: the listener that is returned is a plain one on it. Closing that does
// not give up the name, nor remove a Unix socket's file: the successor gets
// both. See Release.
func (e *Env) AdoptOrListen(name string, listen func() (net.Listener, error)) (net.Listener, error) {
	return e.sockets.adoptOrListen(name, listen)
}

// Release gives up the socket held under name, for a listener that is closed
// for good.
func (e *Env) Release(name string) { e.sockets.release(name) }

// Conns returns the connections that the predecessor handed over, once.
func (e *Env) Conns() []Conn { return e.sockets.conns() }

// HandOver keeps a connection, a net.Conn or the file of one, open for the
// successor, with whatever the successor must know about it (64 MiB at most).
// It is for use on the way to a planned restart (see Restarting); the caller
// closes its own side of conn without shutting it down.
func (e *Env) HandOver(name string, conn syscall.Conn, state []byte) error {
	return e.sockets.handOver(name, conn, state)
}

// controlName is the name under which the control socket is held.
const controlName = "control"

// ControlPath is where the control socket belongs; "" means that there is to be none.
func (e *Env) ControlPath() string {
	f := &e.opts.Flags
	switch f.Unixctl {
	case "none":
		return ""
	case "":
		return filepath.Join(f.RunDir, fmt.Sprintf("%s.%d.ctl", e.opts.Program, os.Getpid()))
	}
	return f.Unixctl
}

// Control returns the listening control socket: the inherited one, whose file
// is moved to this process's name for it, or a new one made by listen. A
// symbolic link PROGRAM.ctl beside it that leads to it goes on to do so. It
// returns nil, nil if there is to be none.
func (e *Env) Control(listen func(path string) (net.Listener, error)) (net.Listener, error) {
	path := e.ControlPath()
	if path == "" {
		return nil, nil
	}
	l, err := e.AdoptOrListen(controlName, func() (net.Listener, error) { return listen(path) })
	if err != nil {
		return nil, err
	}
	socket := e.sockets.socketOf(controlName)
	if socket == nil {
		return l, nil // from a service manager, or of another kind
	}
	if err := e.place(socket, path); err != nil {
		l.Close()
		e.sockets.release(controlName)
		return nil, fmt.Errorf("cannot move the control socket to %s: %w", path, err)
	}
	return &moved{l, &net.UnixAddr{Name: path, Net: "unix"}}, nil
}

// moved is a listener that tells where its socket's file is now. The kernel
// goes on to tell where it was made.
type moved struct {
	net.Listener
	at net.Addr
}

func (m *moved) Addr() net.Addr { return m.at }

// place moves the control socket to path if it is not there, and has the
// monitor know of it and of its link.
func (e *Env) place(socket *socketFile, path string) error {
	link := filepath.Join(filepath.Dir(socket.Path), e.opts.Program+".ctl")
	if socket.Link == "" && leadsTo(link, socket.Path) {
		socket.Link = link
	}
	if socket.Path != path {
		if err := socket.rename(path); err != nil {
			return err
		}
	}
	return e.sockets.describe(controlName, socket)
}

// MonitorGone returns a channel that is closed when the daemon has lost its
// monitor, and goes on without. A planned restart brings another.
func (e *Env) MonitorGone() <-chan struct{} { return e.alone }

// Reload returns the channel on which requests to read the configuration again
// arrive. Whoever takes one answers with Reloaded.
func (e *Env) Reload() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.reloads = true
	return e.reload
}

// Reloaded ends a reload; err says why it failed.
func (e *Env) Reloaded(err error) {
	e.mu.Lock()
	reloading, status := e.reloading, e.status
	e.reloading = false
	e.mu.Unlock()
	if err != nil {
		e.log.Error("reload failed; the configuration stays as it was", "error", err)
		status = "reload failed: " + err.Error()
	}
	if reloading {
		e.told(e.notifier.Send("READY=1", "STATUS="+status))
	}
}

// Exit asks the daemon to stop in order, as TERM does.
func (e *Env) Exit() { e.cancel(ErrExit) }

// Restart asks the daemon for a planned restart. Where the program would not
// start again, because of what is on disk now, it says so and does nothing.
func (e *Env) Restart(ctx context.Context) error {
	if err := e.image.probe(ctx, e.opts.ProbeArgs); err != nil {
		return err
	}
	e.cancel(ErrRestart)
	return nil
}

// Restarting reports whether the daemon is on its way to a planned restart, so
// that connections should be handed over rather than closed.
func (e *Env) Restarting() bool {
	return errors.Is(context.Cause(e.ctx), ErrRestart)
}

// Status shows one line about the daemon's health to the service manager.
func (e *Env) Status(text string) {
	e.mu.Lock()
	changed := text != e.status
	e.status = text
	e.mu.Unlock()
	if changed {
		e.told(e.notifier.Status(text))
	}
}

// Extend asks service manager and monitor for more time, from now, before they
// kill a daemon that has been asked to stop.
func (e *Env) Extend(d time.Duration) {
	e.told(e.notifier.Extend(d))
	if e.link != nil {
		if err := e.link.send(message{Op: opExtend, Millis: d.Milliseconds()}); err != nil {
			e.log.Warn("cannot ask the monitor for more time", "error", err)
		}
	}
}

// Watchdog feeds the service manager's watchdog, if it wants to be fed, for as
// long as probe succeeds. The probe is to take the way that a user's command takes.
func (e *Env) Watchdog(probe func(context.Context) error) {
	if e.stage.Watchdog <= 0 || !e.notifier.Enabled() {
		return
	}
	e.tasks.Go(func() {
		e.notifier.Watchdog(e.ctx, e.stage.Watchdog, probe, func(err error) { e.log.Error(err.Error()) })
	})
}

// OnDump adds a part to what USR1 writes to the log.
func (e *Env) OnDump(f func(io.Writer)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dumps = append(e.dumps, f)
}
