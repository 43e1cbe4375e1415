package rpc

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"strings"
	"sync"
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

// A turn is one request's turn to be answered: by its handler, or in the
// handler's stead when that takes too long. Whoever is first answers, once.
type turn struct {
	c      *conn
	answer func(result, error)
	resume func() // goes on after an answer in the handler's stead; may be nil

	mu   sync.Mutex
	over bool // somebody answers, guarded by mu
}

// end answers with what the handler returned, and reports whether it was in
// time.
func (t *turn) end(r result, err error) bool {
	t.mu.Lock()
	late := t.over
	t.over = true
	t.mu.Unlock()
	if !late {
		t.answer(r, err)
	}
	return !late
}

// instead answers in the handler's stead. The handler has not returned where
// this does anything: the connection still waits for it, and so for what is
// started here.
func (t *turn) instead(err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	t.over = true
	t.c.handlers.Go(func() {
		t.answer(result{}, err)
		if t.resume != nil {
			t.resume()
		}
	})
}

// call runs the command called name and answers what the handler returns. It
// answers in its stead as soon as its deadline passes, or ctx has ended and
// the handler had its last word, whatever the handler does; then it resumes
// what would have followed. It returns when the handler has, and reports
// whether the handler was in time.
func (c *conn) call(ctx context.Context, name string, in input, answer func(result, error), resume func()) (inTime bool) {
	c.s.stats.requests.Add(1)
	t := &turn{c: c, resume: resume, answer: func(r result, err error) {
		c.s.tally(err)
		answer(r, err)
	}}
	cmd, err := c.admissible(ctx, name, in)
	if err != nil {
		return t.end(result{}, err)
	}
	if cmd.Access == Admin {
		t.answer = c.audited(cmd, in, t.answer)
	}
	return c.run(ctx, cmd, in, t)
}

func (s *Server) tally(err error) {
	if err == nil {
		return
	}
	s.stats.failures.Add(1)
	if wireError(err).Code == api.CodeTimeout {
		s.stats.timeouts.Add(1)
	}
}

// admissible returns the command, or why it will not be run.
func (c *conn) admissible(ctx context.Context, name string, in input) (*Command, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	cmd, err := c.s.opts.Registry.lookup(name)
	if err != nil {
		return nil, err
	}
	if err := forbidden(cmd, c.actor); err != nil {
		c.s.log.Warn("command refused", "command", name,
			"actor", c.actor.String(), "pid", c.actor.PID, "role", c.actor.Role.String())
		return nil, err
	}
	if in.args != nil {
		if err := cmd.arity(in.count()); err != nil {
			return nil, err
		}
	}
	if in.bad != nil {
		return nil, api.Errorf(api.CodeInvalidParams, "%q command has non-string argument", name)
	}
	return cmd, nil
}

func (c *conn) run(ctx context.Context, cmd *Command, in input, t *turn) (inTime bool) {
	s := c.s
	select {
	case s.running <- struct{}{}:
	default:
		return t.end(result{}, api.Errorf(api.CodeBusy, "the daemon is busy with %d commands; try again later", s.lim.Running).
			WithData(api.LimitDetail{Limit: "running", Value: int64(s.lim.Running)}))
	}
	var cancel context.CancelFunc
	if d := cmd.deadline(); d > 0 {
		ctx, cancel = context.WithTimeoutCause(ctx, d, errDeadline)
	} else {
		ctx, cancel = context.WithCancel(ctx)
	}
	defer cancel()
	stop := context.AfterFunc(ctx, func() { overdue(ctx, cmd, t) })
	r, err := s.protected(ctx, cmd, c.actor, in)
	stop()
	return t.end(r, explain(ctx, cmd, err))
}

// overdue is called when a command's context has ended before its handler.
func overdue(ctx context.Context, cmd *Command, t *turn) {
	cause := context.Cause(ctx)
	if cause == error(errDeadline) {
		t.instead(timedOut(cmd))
		return
	}
	time.AfterFunc(lastWord, func() { t.instead(cause) })
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
func (s *Server) protected(ctx context.Context, c *Command, by Actor, in input) (r result, err error) {
	s.begun(c.Name)
	start := time.Now()
	defer func() {
		if p := recover(); p != nil {
			s.stats.panics.Add(1)
			s.log.Error("command panicked", "command", c.Name, "panic", fmt.Sprint(p), "stack", string(debug.Stack()))
			err = api.Errorf(api.CodeInternal, "internal error in %q; the daemon's log has the details", c.Name)
		}
		s.ended(c.Name, time.Since(start), err)
		<-s.running
	}()
	return c.Do.handle(ctx, c, by, in)
}

// audited returns answer with a line in the log before it.
func (c *conn) audited(cmd *Command, in input, answer func(result, error)) func(result, error) {
	start := time.Now()
	return func(r result, err error) {
		c.s.audit(cmd, c.actor, in, time.Since(start), err)
		answer(r, err)
	}
}

// audit logs the call of an admin command.
func (s *Server) audit(c *Command, by Actor, in input, took time.Duration, err error) {
	outcome := "done"
	if err != nil {
		outcome = "failed"
	}
	attrs := []any{
		"command", c.Name, "args", in.show(), "user", by.User, "pid", by.PID,
		"took", took.Round(time.Microsecond), "outcome", outcome,
	}
	if by.Local {
		attrs = append(attrs, "uid", by.UID)
	}
	if err != nil {
		attrs = append(attrs, "err", err)
	}
	s.log.Info("admin command", attrs...)
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
