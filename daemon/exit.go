package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/lockstepd/lockstep/daemon/monitor"
	"github.com/lockstepd/lockstep/daemon/pidfile"
)

// The exit statuses.
const (
	ExitOK      = 0
	ExitFailed  = 1
	ExitConfig  = 2
	ExitRunning = monitor.RunningStatus
	exitRestart = monitor.RestartStatus // from the daemon to its monitor; never seen outside
)

// ErrRestart asks for a planned restart, by the program as it is on disk now:
// with a monitor in a fresh process, without one in this process, whose pid stays.
var ErrRestart = errors.New("restart requested")

// ErrExit is the cause of the context when Env.Exit was called.
var ErrExit = errors.New("exit requested")

// ConfigError says that the daemon was asked for something that can't be: bad
// flags or a bad configuration. Trying again without a change is of no use.
type ConfigError struct{ Err error }

// Error returns the fault itself.
func (e *ConfigError) Error() string { return e.Err.Error() }

// Unwrap returns the fault itself.
func (e *ConfigError) Unwrap() error { return e.Err }

// RunningError says that another instance is at work, where the daemon's
// function finds that out and not the pidfile.
type RunningError struct{ Err error }

// Error returns what was found.
func (e *RunningError) Error() string { return "already running: " + e.Err.Error() }

// Unwrap returns what was found.
func (e *RunningError) Unwrap() error { return e.Err }

// SignalError is the cause of the context when a signal asked for the end.
type SignalError struct{ Signal os.Signal }

// Error names the signal.
func (e *SignalError) Error() string { return fmt.Sprintf("asked to stop by a signal (%v)", e.Signal) }

// ExitStatus is the exit status that an error of the daemon's function means.
func ExitStatus(err error) int {
	_, config := errors.AsType[*ConfigError](err)
	_, running := errors.AsType[*RunningError](err)
	if !running {
		_, running = errors.AsType[*pidfile.RunningError](err)
	}
	_, signal := errors.AsType[*SignalError](err)
	switch {
	case err == nil, signal, errors.Is(err, ErrExit):
		return ExitOK
	case config:
		return ExitConfig
	case running:
		return ExitRunning
	case errors.Is(err, ErrRestart):
		return exitRestart
	}
	return ExitFailed
}

// outcome joins what the function returned with why its context ended: to
// return nil or the context's error after a request means to have obeyed it.
func outcome(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return err
	}
	if err == nil || errors.Is(err, context.Canceled) {
		return context.Cause(ctx)
	}
	return err
}
