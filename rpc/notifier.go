package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/frame"
)

// A Notifier pushes notifications to the client whose command it was taken
// from. It outlives the command and ends with the connection. Its methods may
// be called from any goroutine and never wait.
type Notifier struct {
	c      *conn
	legacy bool // the client spoke the unixctl dialect
}

// NotifierFrom returns the notifier of the connection whose command runs under
// ctx; false where there is no connection.
func NotifierFrom(ctx context.Context) (*Notifier, bool) {
	c, ok := callerFrom(ctx)
	if !ok {
		return nil, false
	}
	return c.notify, true
}

// Notify pushes one notification to the client whose command runs under ctx.
func Notify(ctx context.Context, method string, params any) error {
	n, ok := NotifierFrom(ctx)
	if !ok {
		return errors.New("there is no client to notify")
	}
	return n.Notify(method, params)
}

// Notify queues a notification. ErrFull says that the client does not read and
// this one is dropped, ErrGone that there is no client any more.
func (n *Notifier) Notify(method string, params any) error {
	note, err := NewNotification(method, params)
	if err != nil {
		return err
	}
	return n.Send(note)
}

// Send is Notify for a notification that was encoded once for many clients.
func (n *Notifier) Send(note *Notification) error {
	msg := note.modern
	if n.legacy {
		msg = note.legacy
	}
	err := n.c.out.try(msg)
	switch {
	case err == nil:
		n.c.s.stats.notifications.Add(1)
	case errors.Is(err, ErrFull):
		n.c.s.stats.dropped.Add(1)
	}
	return err
}

// Done is closed when the connection ends.
func (n *Notifier) Done() <-chan struct{} { return n.c.ctx.Done() }

// Room returns a channel that is closed once there is room again after a Send
// that returned ErrFull; it is closed at once if there has been since.
func (n *Notifier) Room() <-chan struct{} { return n.c.out.hasRoom() }

// maxFollowers bounds the goroutines of Go, on one connection.
const maxFollowers = 16

// Go runs do in a goroutine that belongs to the connection: its context ends
// with the connection, which waits for it to return. A client that closes its
// sending half goes on being notified meanwhile. It may be called only
// while the command that the notifier was taken from runs. A connection has
// sixteen such goroutines at most.
func (n *Notifier) Go(do func(ctx context.Context)) error {
	if n.c.followers.Add(1) > maxFollowers {
		n.c.followers.Add(-1)
		return api.Errorf(api.CodeBusy, "the connection has %d subscriptions, as many as it may", maxFollowers).
			WithData(api.LimitDetail{Limit: "subscriptions", Value: maxFollowers})
	}
	n.c.following.Add(1)
	n.c.handlers.Go(func() {
		defer n.c.following.Done()
		defer n.c.followers.Add(-1)
		do(n.c.ctx)
	})
	return nil
}

// A Notification is encoded and ready to be sent to any number of clients.
type Notification struct{ modern, legacy []byte }

// NewNotification encodes a notification in both dialects.
func NewNotification(method string, params any) (*Notification, error) {
	raw, err := json.Marshal(params)
	if err != nil {
		return nil, fmt.Errorf("encoding a notification %q: %w", method, err)
	}
	modern := frame.AppendQuote([]byte(`{"jsonrpc":"2.0","method":`), method)
	modern = append(append(append(modern, `,"params":`...), raw...), "}\n"...)
	legacy := frame.AppendQuote([]byte(`{"id":null,"method":`), method)
	legacy = append(append(append(legacy, `,"params":[`...), frame.WithoutNUL(raw)...), "]}"...)
	return &Notification{modern, legacy}, nil
}
