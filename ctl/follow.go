package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"time"
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

// link is one connection of a stream.
type link struct {
	Client
	arriving chan message
	gone     context.CancelFunc // lets go of the reader, for which Close waits

	answer json.RawMessage // to the subscription
	early  []message       // what came before the answer
}

// Close implements Client.
func (l *link) Close() error {
	l.gone()
	return l.Client.Close()
}

// follower is a stream over one connection after the other.
type follower struct {
	*app
	s     subscription
	links chan *link
	// turn is held from a subscription until all that it brought was dealt
	// with: only then is known where the next has to begin.
	turn chan struct{}
}

// follow runs a stream until it has enough, the user interrupts or -T is over.
// The daemon must be there at the beginning; later it may come and go.
func (a *app) follow(ctx context.Context, s subscription) error {
	ctx, stop := a.Interrupts(ctx)
	defer stop()
	limited, cancel := a.deadline(ctx, 0)
	defer cancel()
	f := &follower{app: a, s: s, links: make(chan *link, 1), turn: make(chan struct{}, 1)}
	k, err := a.keep(limited, keeping{dial: f.dialLink, begin: f.begin})
	if err == nil {
		defer k.stop()
		err = f.run(k.ctx)
	}
	if ctx.Err() != nil {
		return nil // interrupted: how a stream ends
	}
	return err
}

// dialLink connects.
func (f *follower) dialLink(ctx context.Context) (Client, error) {
	there, gone := context.WithCancel(context.WithoutCancel(ctx))
	l := &link{arriving: make(chan message, inbox), gone: gone}
	c, err := f.dialOnce(ctx, func(method string, params json.RawMessage) {
		select {
		case l.arriving <- message{method, params}:
		case <-there.Done():
		}
	})
	if err != nil {
		gone()
		return nil, err
	}
	l.Client = c
	return l, nil
}

// begin subscribes on a new connection and hands it to run.
func (f *follower) begin(ctx context.Context, c Client) error {
	l := c.(*link)
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	var err error
	if l.answer, l.early, err = f.subscribe(ctx, l, f.s, l.arriving); err != nil {
		<-f.turn
		return err
	}
	f.links <- l // has room: run took the last one before it gave up its turn
	return nil
}

// run deals with what the connections bring, until it is enough or ctx ends.
func (f *follower) run(ctx context.Context) error {
	begun := f.s.begun
	for {
		select {
		case l := <-f.links:
			enough, err := f.take(ctx, l, begun)
			if enough || err != nil {
				return err
			}
			begun = f.s.resumed
			<-f.turn
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// take deals with what one connection brings: it ends without an error when the
// connection is lost.
func (f *follower) take(ctx context.Context, l *link, begun func(json.RawMessage) error) (enough bool, err error) {
	if begun != nil {
		if err := begun(l.answer); err != nil {
			return false, err
		}
	}
	for _, m := range l.early {
		if more, err := f.s.on(m.method, m.params); err != nil || !more {
			return true, err
		}
	}
	return pump(ctx, l, l.arriving, f.s.on)
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
