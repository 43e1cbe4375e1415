package rpc

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
)

// The causes with which the context of a command ends.
var (
	errDeadline = &api.Error{Code: api.CodeTimeout}
	errStopping = api.Errorf(api.CodeUnavailable, "the daemon is stopping")
	errGone     = api.Errorf(api.CodeCancelled, "the client went away")
)

// lastWord is how long a command that was cancelled may take to answer before
// it is answered for: "exit" wants its reply sent though it ends the server.
const lastWord = time.Second

type outcome struct {
	result result
	err    error
}

// call runs the command called name and returns what it answered, or an
// error as soon as its deadline passes or ctx ends, whatever the handler does.
func (c *conn) call(ctx context.Context, name string, in input) (result, error) {
	stats := &c.s.stats
	stats.requests.Add(1)
	r, err := c.dispatch(ctx, name, in)
	if err != nil {
		stats.failures.Add(1)
		if wireError(err).Code == api.CodeTimeout {
			stats.timeouts.Add(1)
		}
	}
	return r, err
}

func (c *conn) dispatch(ctx context.Context, name string, in input) (result, error) {
	if ctx.Err() != nil {
		return result{}, context.Cause(ctx)
	}
	cmd, err := c.s.opts.Registry.lookup(name)
	if err != nil {
		return result{}, err
	}
	if err := forbidden(cmd, c.actor); err != nil {
		c.s.log.Warn("command refused", "command", name,
			"actor", c.actor.String(), "pid", c.actor.PID, "role", c.actor.Role.String())
		return result{}, err
	}
	if in.args != nil {
		if err := cmd.arity(in.count()); err != nil {
			return result{}, err
		}
	}
	if in.bad != nil {
		return result{}, api.Errorf(api.CodeInvalidParams, "%q command has non-string argument", name)
	}
	if cmd.Access != Admin {
		return c.run(ctx, cmd, in)
	}
	start := time.Now()
	r, err := c.run(ctx, cmd, in)
	c.s.audit(cmd, c.actor, in, time.Since(start), err)
	return r, err
}

// run runs the handler in a goroutine of its own, so that one that hangs keeps
// nobody waiting beyond the deadline. The connection waits for it to end.
func (c *conn) run(ctx context.Context, cmd *Command, in input) (result, error) {
	s := c.s
	select {
	case s.running <- struct{}{}:
	default:
		return result{}, api.Errorf(api.CodeBusy, "the daemon is busy with %d commands; try again later", s.lim.Running).
			WithData(api.LimitDetail{Limit: "running", Value: int64(s.lim.Running)})
	}
	ctx = context.WithValue(ctx, actorKey, c.actor)
	cancel := context.CancelFunc(func() {})
	if d := cmd.deadline(); d > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, d, errDeadline)
	}
	done := make(chan outcome, 1)
	c.handlers.Go(func() {
		defer cancel()
		done <- s.protected(ctx, cmd, c.actor, in)
	})
	return wait(ctx, cmd, done)
}

// wait returns the outcome, or the reason why there is none yet.
func wait(ctx context.Context, c *Command, done <-chan outcome) (result, error) {
	select {
	case o := <-done:
		return o.result, explain(ctx, c, o.err)
	case <-ctx.Done():
	}
	if context.Cause(ctx) == error(errDeadline) {
		return result{}, timedOut(c)
	}
	t := time.NewTimer(lastWord)
	defer t.Stop()
	select {
	case o := <-done:
		return o.result, explain(ctx, c, o.err)
	case <-t.C:
		return result{}, context.Cause(ctx)
	}
}

// explain puts the cause in the place of a bare context error, which says
// nothing to a client.
func explain(ctx context.Context, c *Command, err error) error {
	cause := context.Cause(ctx)
	if err == nil || cause == nil || !(errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)) {
		return err
	}
	if cause == error(errDeadline) {
		return timedOut(c)
	}
	return cause
}

func timedOut(c *Command) error {
	return api.Errorf(api.CodeTimeout, "%q timed out after %v", c.Name, c.deadline()).
		WithData(api.LimitDetail{Limit: "deadline_ms", Value: c.deadline().Milliseconds()})
}

// protected runs the handler and turns a panic into an internal error.
func (s *Server) protected(ctx context.Context, c *Command, by Actor, in input) (o outcome) {
	call := s.begin(c.Name)
	defer func() {
		if p := recover(); p != nil {
			s.stats.panics.Add(1)
			s.log.Error("command panicked", "command", c.Name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			o = outcome{err: api.Errorf(api.CodeInternal, "internal error in %q; the daemon's log has the details", c.Name)}
		}
		s.end(call)
		<-s.running
	}()
	r, err := c.Do.handle(ctx, c, by, in)
	return outcome{r, err}
}

// audit logs the call of an admin command.
func (s *Server) audit(c *Command, by Actor, in input, took time.Duration, err error) {
	attrs := []any{
		"command", c.Name, "args", in.show(), "user", by.User, "pid", by.PID,
		"took", took.Round(time.Microsecond), "outcome", "done",
	}
	if by.Local {
		attrs = append(attrs, "uid", by.UID)
	}
	if err != nil {
		attrs[len(attrs)-1] = "failed"
		attrs = append(attrs, "err", err)
	}
	s.log.Log(context.Background(), slog.LevelInfo, "admin command", attrs...)
}

// show returns the parameters for the log, shortened.
func (in input) show() string {
	if in.args != nil {
		return shorten(strings.Join(in.args, " "))
	}
	return shorten(string(in.raw))
}

func shorten(s string) string {
	const most = 200
	if len(s) <= most {
		return s
	}
	return s[:most] + "…"
}
