package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

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
	n, ok := ctx.Value(connKey).(*Notifier)
	return n, ok
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
	if errors.Is(err, ErrFull) {
		n.c.s.stats.dropped.Add(1)
	}
	return err
}

// Done is closed when the connection ends.
func (n *Notifier) Done() <-chan struct{} { return n.c.ctx.Done() }

// Room receives once there is room again after a Send that returned ErrFull.
// It has one receiver at most.
func (n *Notifier) Room() <-chan struct{} { return n.c.out.room }

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
