package ctl

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/stream"
	"github.com/lockstepd/lockstep/rpc/unixsock"
)

// cleanError is an error's text, safe for a terminal.
func cleanError(err error) string {
	return strings.TrimRight(render.CleanLines(err.Error()), "\n")
}

// startTime is how long a daemon that is just starting is waited for.
const startTime = 2 * time.Second

// startPause lies between two attempts to reach a daemon that is starting.
const startPause = 50 * time.Millisecond

// dial connects to the daemon. One that is starting is waited for briefly; a
// failure is told in full.
func (a *app) dial(ctx context.Context, notify Notify) (Client, error) {
	return a.whileStarting(ctx, func(ctx context.Context) (Client, error) { return a.dialOnce(ctx, notify) })
}

// dialOnce is one attempt to connect; a failure is told in full.
func (a *app) dialOnce(ctx context.Context, notify Notify) (Client, error) {
	c, err := a.Dial(ctx, a.address(), notify)
	if err != nil {
		return nil, a.unreachable(ctx, err)
	}
	return c, nil
}

// whileStarting repeats an attempt to connect while the daemon is starting.
func (a *app) whileStarting(ctx context.Context, dial func(context.Context) (Client, error)) (Client, error) {
	begun := time.Now()
	for {
		c, err := dial(ctx)
		if err == nil || !a.starting(err) || time.Since(begun) >= startTime {
			return c, err
		}
		if !sleep(ctx, startPause) {
			return nil, a.unreachable(ctx, err)
		}
	}
}

// starting reports whether the error is that of a daemon that is there and does
// not listen yet.
func (a *app) starting(err error) bool {
	if hasCode(err, api.CodeUnavailable) {
		return true
	}
	if a.isPath() {
		return false // what a path leads to is not known to be alive
	}
	return errors.Is(err, syscall.ECONNREFUSED) && a.ofLivePID(err) || missingSocket(err)
}

// ofLivePID reports whether the error is about the socket of the process that
// holds the pidfile: that one's name has the pid in it. The socket whose name
// does not change may have been left behind.
func (a *app) ofLivePID(err error) bool {
	u, ok := errors.AsType[*rpc.UnreachableError](err)
	return ok && u.Path != "" && filepath.Base(u.Path) != a.target()+".ctl"
}

// missingSocket reports whether the pidfile names a live daemon whose socket is
// not there.
func missingSocket(err error) bool {
	p, ok := errors.AsType[*fs.PathError](err)
	return ok && errors.Is(p, fs.ErrNotExist) && strings.HasSuffix(p.Path, ".ctl")
}

// isPath reports whether the target is a socket, not a program's name.
func (a *app) isPath() bool { return strings.ContainsAny(a.target(), "/:") }

// isStream reports whether the target is reached over the network.
func (a *app) isStream() bool {
	class, _, ok := strings.Cut(a.target(), ":")
	return ok && class != "unix" && !strings.Contains(class, "/")
}

// unreachable words a failure to connect: what is wrong and what to do.
func (a *app) unreachable(ctx context.Context, err error) error {
	if limit, ok := timeLimit(ctx); ok {
		return a.late(limit)
	}
	if isType[*api.Error](err) { // the daemon refused the connection in its own words
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return unreachableError{fmt.Sprintf("cannot reach %s: %s", a.target(), a.diagnose(err)), err}
}

// diagnose says why the daemon can't be reached, and the next step.
func (a *app) diagnose(err error) string {
	why := strings.TrimPrefix(cause(err), a.target()+": ")
	switch {
	case errors.Is(err, fs.ErrPermission):
		return why + "; run this as root, or as a member of a group that [control] admin_groups or read_groups names"
	case a.starting(err):
		return "it runs and does not listen yet (" + why + "); it is starting, or was started with another --unixctl: try again, or name its socket with -t PATH"
	case a.isPath() && !a.isStream() && errors.Is(err, syscall.ECONNREFUSED):
		return "nobody listens on that socket; the daemon is starting, or it died and left the socket behind: try again, or start it"
	case a.isPath() && errors.Is(err, unixsock.ErrNotSocket):
		return why + "; name the daemon's with -t PATH"
	case errors.Is(err, stream.ErrNoIdentity):
		return "TLS needs to know who you are and whom to trust; give --certificate, --private-key and --ca-cert"
	case isType[*tls.CertificateVerificationError](err):
		return why + "; see whether --ca-cert is the one that signed the daemon's certificate"
	case a.isStream():
		return why + "; see whether it listens there ([control] listen), or name another address with -t"
	case a.isPath():
		return why + "; start the daemon, or name another socket with -t PATH"
	}
	return fmt.Sprintf("it does not run (%s); start it with: systemctl start %s, or: %s --detach; if it runs with another rundir, set LOCKSTEP_RUNDIR or name its socket with -t PATH",
		why, program, program)
}

// cause is an error without the repetition of what was tried: the file or the
// socket that it is about, and the reason.
func cause(err error) string {
	path := ""
	if u, ok := errors.AsType[*rpc.UnreachableError](err); ok && u.Cause != nil {
		err, path = u.Cause, u.Path
	}
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Sprintf("%s: %v", p.Path, p.Err)
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok && path != "" {
		return fmt.Sprintf("%s: %v", path, errno)
	}
	return err.Error()
}

// failed words a request that got no result.
func (a *app) failed(ctx context.Context, c Client, err error) error {
	if limit, ok := timeLimit(ctx); ok {
		return a.late(limit)
	}
	if isForeign(err) {
		return a.otherVersion(c, err)
	}
	if isType[*api.Error](err) || ctx.Err() != nil {
		return err
	}
	return lostError{a.target(), err}
}

// isForeign reports whether the daemon does not have the command, or not with
// these parameters. The dialect of Open vSwitch has no codes, so that its text
// has to tell.
func isForeign(err error) bool {
	return hasCode(err, api.CodeMethodNotFound) || hasCode(err, api.CodeInvalidParams) ||
		hasCode(err, api.CodeFailed) && strings.Contains(err.Error(), "is not a valid command")
}

// lostError is a connection that ended before the answer.
type lostError struct {
	target string
	err    error
}

func (e lostError) Error() string {
	return fmt.Sprintf("the connection to %s was lost before it answered (%v); whether it was done is not known: see its log, and ask again", e.target, e.err)
}

func (e lostError) Unwrap() error { return e.err }

// late is a time limit that passed.
func (a *app) late(limit errTimeout) error {
	return fmt.Errorf("no answer from %s in time (%w); it may be busy: wait longer with -T SECONDS, and look at its log", a.target(), limit)
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
	if c.Call(ctx, "version", nil, &v) != nil || v.Version == a.version() {
		return err
	}
	return fmt.Errorf("%w; it is %s %s and this is lockstepctl %s: use the lockstepctl that came with it, or upgrade it",
		err, v.Program, v.Version, a.version())
}

// notUnderstood words an answer that does not fit what this program knows.
func (a *app) notUnderstood(method string, err error) error {
	return fmt.Errorf("the answer of %s to %s does not fit this lockstepctl %s (%w); compare with: lockstepctl version, or see the answer itself with -f json",
		a.target(), method, a.version(), err)
}
