package ctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

// cleanError is an error's text, safe for a terminal.
func cleanError(err error) string {
	return strings.TrimRight(render.CleanLines(err.Error()), "\n")
}

// unreachable words a failure to connect: what is wrong and what to do.
func (a *app) unreachable(ctx context.Context, err error) error {
	if limit, ok := timeLimit(ctx); ok {
		return a.late(limit)
	}
	if isType[*api.Error](err) { // the daemon refused the connection in its own words
		return err
	}
	return unreachableError{fmt.Sprintf("cannot reach %s: %s", a.target(), a.diagnose(err))}
}

// diagnose says why the daemon can't be reached, and the next step.
func (a *app) diagnose(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Sprintf("its socket may not be opened by you (%s); run this as root, or as a member of a group that [control] admin_groups or read_groups names", cause(err))
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ESRCH):
		return a.notThere(err)
	}
	return fmt.Sprintf("%s; see whether it runs (systemctl status lockstepd, or ps), or name its socket with -t PATH", cause(err))
}

// notThere tells a daemon that does not run from one that is starting and from
// one that left its socket behind.
func (a *app) notThere(err error) string {
	if a.isPath() {
		if errors.Is(err, syscall.ECONNREFUSED) {
			return "nobody listens on that socket: the daemon is starting, or died and left it behind; wait a moment, or start it"
		}
		return fmt.Sprintf("%s; start the daemon, or name another socket with -t PATH", cause(err))
	}
	if pid := a.alivePID(); pid > 0 {
		return fmt.Sprintf("it runs (pid %d) and does not listen yet: it is starting, or was started with --unixctl elsewhere; wait a moment, or name its socket with -t PATH", pid)
	}
	return fmt.Sprintf("it does not run (%s); start it with: systemctl start %s, or: %s --detach; if it runs with another rundir, name its socket with -t PATH or set LOCKSTEP_RUNDIR",
		cause(err), program, program)
}

// isPath reports whether the target is a socket, not a program's name.
func (a *app) isPath() bool { return strings.Contains(a.target(), "/") }

// alivePID is the process that the target's pidfile names, if there is one.
func (a *app) alivePID() int {
	text, err := os.ReadFile(filepath.Join(a.rundir(), a.target()+".pid"))
	if err != nil {
		return 0
	}
	var pid int
	if _, err := fmt.Sscan(string(text), &pid); err != nil || pid <= 0 {
		return 0
	}
	if err := syscall.Kill(pid, 0); err != nil && !errors.Is(err, syscall.EPERM) {
		return 0
	}
	return pid
}

// cause is the error without the repetition of what was tried: the innermost
// path and reason.
func cause(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Sprintf("%s: %v", p.Path, p.Err)
	}
	return err.Error()
}

// failed words a request that got no result.
func (a *app) failed(ctx context.Context, c Client, err error) error {
	if limit, ok := timeLimit(ctx); ok {
		return a.late(limit)
	}
	if hasCode(err, api.CodeMethodNotFound) {
		return a.otherVersion(c, err)
	}
	if isType[*api.Error](err) || ctx.Err() != nil {
		return err
	}
	return lostError{a.target(), err}
}

// lostError is a connection that ended before the answer.
type lostError struct {
	target string
	err    error
}

func (e lostError) Error() string {
	return fmt.Sprintf("the connection to %s was lost before it answered (%v); see its log, then try again", e.target, e.err)
}

func (e lostError) Unwrap() error { return e.err }

// late is a time limit that passed.
func (a *app) late(limit errTimeout) error {
	return fmt.Errorf("no answer from %s within %s; it may be busy: wait longer with -T SECONDS, and look at its log (%w)",
		a.target(), render.Millis(limit.after.Milliseconds()), limit)
}

// timeLimit is the time limit of ctx, if that is what ended it.
func timeLimit(ctx context.Context) (errTimeout, bool) {
	if ctx.Err() == nil {
		return errTimeout{}, false
	}
	return errors.AsType[errTimeout](context.Cause(ctx))
}

// otherVersion words a command that this daemon does not have.
func (a *app) otherVersion(c Client, err error) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	var v api.Version
	if c.Call(ctx, "version", nil, &v) != nil || v.Version == Version() {
		return err
	}
	return fmt.Errorf("%w (it is %s %s and this is lockstepctl %s: use the lockstepctl that came with it, or upgrade it)",
		err, v.Program, v.Version, Version())
}

// notUnderstood words an answer that does not fit what this program knows.
func (a *app) notUnderstood(method string, err error) error {
	return fmt.Errorf("the answer of %s to %s does not fit this lockstepctl %s: %w; compare with: lockstepctl version; the answer as it came: lockstepctl -f json …",
		a.target(), method, Version(), err)
}
