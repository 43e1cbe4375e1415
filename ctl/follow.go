package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
)

// subscription is a stream of notifications that outlives connections.
type subscription struct {
	method string
	params func() any // asked anew for each connection
	// begun and resumed get the result of the first subscription and of later
	// ones; either may be nil.
	begun, resumed func(json.RawMessage) error
	// on gets each notification and says whether to go on.
	on func(method string, raw json.RawMessage) (more bool, err error)
}

// message is a notification on its way.
type message struct {
	method string
	params json.RawMessage
}

// inbox is how many notifications wait for us beside those in the socket; the
// daemon bounds the rest, and says what it had to drop.
const inbox = 256

// The pauses between attempts to connect again.
const (
	firstPause = 250 * time.Millisecond
	longPause  = 5 * time.Second
)

// follow runs a stream until it has enough, the user interrupts or -T is over.
// The daemon must be there at the beginning; later it may come and go.
func (a *app) follow(ctx context.Context, s subscription) error {
	ctx, stop := a.Interrupts(ctx)
	defer stop()
	limited, cancel := a.deadline(ctx, 0)
	defer cancel()
	enough, err := a.session(limited, s, s.begun)
	pause := firstPause
	for err == nil && !enough && limited.Err() == nil {
		enough, err = a.again(limited, s, &pause)
	}
	if ctx.Err() != nil {
		return nil // interrupted: how a stream ends
	}
	if err == nil && !enough {
		return context.Cause(limited)
	}
	return err
}

// again tries once to connect again, after a pause that grows while it fails.
func (a *app) again(ctx context.Context, s subscription, pause *time.Duration) (enough bool, err error) {
	if *pause == firstPause {
		fmt.Fprintf(a.Err, "lost the connection to %s; trying again\n", a.target())
	}
	if !sleep(ctx, *pause) {
		return false, nil
	}
	*pause = min(2**pause, longPause)
	enough, err = a.session(ctx, s, func(raw json.RawMessage) error {
		*pause = firstPause
		if s.resumed == nil {
			return nil
		}
		return s.resumed(raw)
	})
	if transient(err) {
		err = nil
	}
	return enough, err
}

// transient reports whether an error may be gone on the next attempt.
func transient(err error) bool {
	return isType[unreachableError](err) || isType[lostError](err) ||
		hasCode(err, api.CodeUnavailable) || hasCode(err, api.CodeBusy) || hasCode(err, api.CodeCancelled)
}

// session is one connection of a stream: it ends without an error when the
// connection is lost.
func (a *app) session(ctx context.Context, s subscription, begun func(json.RawMessage) error) (enough bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	arriving := make(chan message, inbox)
	c, err := a.dial(ctx, func(method string, params json.RawMessage) {
		select {
		case arriving <- message{method, params}:
		case <-ctx.Done():
		}
	})
	if err != nil {
		return false, err
	}
	defer c.Close()
	defer cancel() // before Close, which waits for the reader
	raw, early, err := a.subscribe(ctx, c, s, arriving)
	if err != nil {
		return false, err
	}
	if begun != nil {
		if err := begun(raw); err != nil {
			return false, err
		}
	}
	for _, m := range early {
		if more, err := s.on(m.method, m.params); err != nil || !more {
			return true, err
		}
	}
	return pump(ctx, c, arriving, s.on)
}

// subscribe asks for the notifications, and returns those that came before the
// answer: they must be taken, or the answer would wait behind them.
func (a *app) subscribe(ctx context.Context, c Client, s subscription, arriving <-chan message) (raw json.RawMessage, early []message, err error) {
	flooded := false
	answered := make(chan error, 1)
	go func() { answered <- c.Call(ctx, s.method, s.params(), &raw) }()
	for {
		select {
		case m := <-arriving:
			if len(early) < maxEarly {
				early = append(early, m)
			} else if !flooded { // what comes until the end is dropped, so that the end can come
				flooded = true
				c.Close()
			}
		case err = <-answered:
			switch {
			case flooded:
				err = fmt.Errorf("%d notifications came before the answer to %s; see the log of %s", maxEarly, s.method, a.target())
			case err != nil:
				err = a.failed(ctx, c, err)
			}
			return raw, early, err
		}
	}
}

// maxEarly is more than a daemon keeps.
const maxEarly = 1 << 16

// pump hands notifications on until there is no more of them.
func pump(ctx context.Context, c Client, arriving <-chan message, on func(string, json.RawMessage) (bool, error)) (enough bool, err error) {
	for {
		var m message
		select {
		case m = <-arriving:
		case <-ctx.Done():
			return false, nil
		case <-c.Done():
			select {
			case m = <-arriving: // what came before the end still counts
			default:
				return false, nil
			}
		}
		if more, err := on(m.method, m.params); err != nil || !more {
			return true, err
		}
	}
}

// sleep waits, and reports whether it was for the whole time.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
