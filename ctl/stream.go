package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
)

// stream is a subscription that outlives connections.
type stream struct {
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
func (a *app) follow(ctx context.Context, s stream) error {
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
func (a *app) again(ctx context.Context, s stream, pause *time.Duration) (enough bool, err error) {
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
func (a *app) session(ctx context.Context, s stream, begun func(json.RawMessage) error) (enough bool, err error) {
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
	var raw json.RawMessage
	if err := c.Call(ctx, s.method, s.params(), &raw); err != nil {
		return false, a.failed(ctx, c, err)
	}
	if begun != nil {
		if err := begun(raw); err != nil {
			return false, err
		}
	}
	return pump(ctx, c, arriving, s.on)
}

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
