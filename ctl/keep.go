package ctl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
)

// maxBackoff is the longest pause between attempts to connect again. Somebody
// looks on.
const maxBackoff = 2 * time.Second

// moment is how long a request that a restart cut off is held back.
const moment = 250 * time.Millisecond

// keeping says what is done with a connection that is kept. Each may be nil.
type keeping struct {
	// dial connects; usually a plain connection.
	dial func(context.Context) (Client, error)
	// begin prepares each new connection before it is used.
	begin func(context.Context, Client) error
	// lost is told of each loss; usually standard error is.
	lost func()
}

// keeper keeps a connection: one that must be there at the beginning, and then
// is made again whenever it is lost or no longer answers.
type keeper struct {
	*rpc.Session
	// ctx ends with the keeper; its cause is what it can't live through.
	ctx   context.Context
	give  context.CancelCauseFunc
	ended chan struct{}

	// first is the connection to begin with, until the session has it. Then
	// connected belongs to the session: whether there is one.
	first     Client
	connected bool
}

// keep connects and keeps the connection until ctx ends or stop is called.
func (a *app) keep(ctx context.Context, o keeping) (*keeper, error) {
	if o.dial == nil {
		o.dial = func(ctx context.Context) (Client, error) { return a.dialOnce(ctx, nil) }
	}
	if o.begin == nil {
		o.begin = func(context.Context, Client) error { return nil }
	}
	if o.lost == nil {
		o.lost = func() { fmt.Fprintf(a.Err, "lost the connection to %s; trying again\n", a.target()) }
	}
	first, err := a.whileStarting(ctx, o.dial)
	if err != nil {
		return nil, err
	}
	if err := o.begin(ctx, first); err != nil {
		first.Close()
		return nil, err
	}
	k := &keeper{ended: make(chan struct{}), first: first, connected: true}
	k.ctx, k.give = context.WithCancelCause(ctx)
	k.Session = rpc.NewSession(k.options(o))
	go func() {
		defer close(k.ended)
		_ = k.Run(k.ctx) // ends with k.ctx alone, whose cause is known
	}()
	return k, nil
}

func (k *keeper) options(o keeping) rpc.SessionOptions {
	return rpc.SessionOptions{
		MaxBackoff: maxBackoff,
		Dial: func(ctx context.Context) (rpc.Caller, error) {
			if k.first != nil {
				return k.first, nil
			}
			c, err := o.dial(ctx)
			if err != nil {
				return nil, err // not c: its nil would be another
			}
			return c, nil
		},
		OnConnect: func(ctx context.Context, c rpc.Caller) error {
			if c == k.first {
				k.first = nil
				return nil
			}
			return o.begin(ctx, c)
		},
		OnState: func(err error) {
			lost := err != nil && k.connected
			k.connected = err == nil
			switch {
			case err != nil && !transient(err):
				k.give(err)
			case lost:
				o.lost()
			}
		},
	}
}

// stop ends the connection and returns when nothing of it runs any more.
func (k *keeper) stop() {
	k.give(nil)
	<-k.ended
	if k.first != nil { // the session has not come to take it
		k.first.Close()
	}
}

// transient reports whether an error may be gone on the next attempt.
func transient(err error) bool {
	return isType[unreachableError](err) || isType[lostError](err) ||
		errors.Is(err, rpc.ErrUnreachable) || errors.Is(err, rpc.ErrTimeout) ||
		hasCode(err, api.CodeUnavailable) || hasCode(err, api.CodeBusy) || hasCode(err, api.CodeCancelled)
}
