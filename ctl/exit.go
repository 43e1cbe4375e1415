package ctl

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

// The exit codes, a contract with every script.
const (
	exitDone        = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitTimeout     = 4
	exitUnhealthy   = 5
)

// exits says what each code means; help and manual print it.
var exits = [...]string{
	exitDone:        "done",
	exitFailed:      "the daemon refused, or the command failed; its message is on standard error",
	exitUsage:       "the command line is wrong",
	exitUnreachable: "the daemon cannot be reached",
	exitTimeout:     "timed out",
	exitUnhealthy:   "status --check: not healthy",
}

// exitCode is the one place that turns errors into codes.
func exitCode(err error) int {
	switch {
	case err == nil:
		return exitDone
	case isType[usageError](err):
		return exitUsage
	case isType[unreachableError](err):
		return exitUnreachable
	case isType[errTimeout](err), errors.Is(err, context.DeadlineExceeded), hasCode(err, api.CodeTimeout):
		return exitTimeout
	case isType[lostError](err), hasCode(err, api.CodeUnavailable):
		return exitUnreachable
	case errors.Is(err, errUnhealthy):
		return exitUnhealthy
	}
	return exitFailed
}

// errUnhealthy is the outcome of a check whose answer was already printed.
var errUnhealthy = errors.New("not healthy")

// errSaid is a failure that the user has been told of already.
var errSaid = errors.New("failed")

// usageError is a command line that cannot be run; see names the command whose
// help would tell.
type usageError struct{ msg, see string }

func (e usageError) Error() string {
	return fmt.Sprintf("%s; see: %s --help", e.msg, e.see)
}

// unreachableError is a daemon that cannot be talked to, told in full.
type unreachableError struct {
	msg   string
	cause error
}

func (e unreachableError) Error() string { return e.msg }
func (e unreachableError) Unwrap() error { return e.cause }

// errTimeout is a time limit that was reached.
type errTimeout struct{ after time.Duration }

func (e errTimeout) Error() string { return fmt.Sprintf("timed out after %v", e.after) }

func isType[E error](err error) bool {
	_, ok := errors.AsType[E](err)
	return ok
}

// hasCode reports whether err is the daemon's answer with this code.
func hasCode(err error, code int) bool {
	e, ok := errors.AsType[*api.Error](err)
	return ok && e.Code == code
}

// attempt is an error with what was being tried.
type attempt struct {
	what string // "promote r0"
	err  error
}

func (e attempt) Unwrap() error { return e.err }

// Error starts with what could not be done, once.
func (e attempt) Error() string {
	msg := e.err.Error()
	if isType[usageError](e.err) || isType[unreachableError](e.err) || strings.HasPrefix(strings.ToLower(msg), "cannot ") {
		return msg
	}
	return "cannot " + e.what + ": " + msg
}

// report tells the user of an error and returns the exit code.
func (a *app) report(err error) int {
	if err != nil && !errors.Is(err, errUnhealthy) && !errors.Is(err, errSaid) {
		a.say("lockstepctl: " + cleanError(err))
	}
	return exitCode(err)
}

// say writes what is no answer to standard error; on a terminal no word is
// broken, so that commands in it can be copied.
func (a *app) say(text string) {
	if a.ErrTerm != nil {
		width, _ := a.ErrTerm.Size()
		text = render.Fill(width, text)
	}
	fmt.Fprintln(a.Err, text)
}
