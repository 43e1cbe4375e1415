package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

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
	_, err := n.SendAll([]*Notification{note})
	return err
}

// SendAll queues notifications, in order, as far as there is room for them, and
// returns how many. It is much cheaper than to Send each: the client's writer
// wakes up once.
func (n *Notifier) SendAll(notes []*Notification) (sent int, err error) {
	sent, err = n.c.out.try(len(notes), func(i int) []byte { return notes[i].in(n.legacy) })
	n.c.s.stats.notifications.Add(uint64(sent))
	if errors.Is(err, ErrFull) {
		n.c.s.stats.dropped.Add(1)
	}
	return sent, err
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
type Notification struct {
	modern []byte
	params []byte // within modern
	method string

	inLegacy sync.Once
	legacy   []byte // once somebody spoke the unixctl dialect
}

// in returns the message in one of the dialects.
func (n *Notification) in(legacy bool) []byte {
	if !legacy {
		return n.modern
	}
	n.inLegacy.Do(func() {
		msg := frame.AppendQuote([]byte(`{"id":null,"method":`), n.method)
		n.legacy = append(append(append(msg, `,"params":[`...), frame.WithoutNUL(n.params)...), "]}"...)
	})
	return n.legacy
}

// NewNotification encodes a notification.
func NewNotification(method string, params any) (*Notification, error) {
	raw, err := json.Marshal(params)
	if err != nil {
		return nil, fmt.Errorf("encoding a notification %q: %w", method, err)
	}
	msg := make([]byte, 0, len(raw)+len(method)+48)
	msg = append(frame.AppendQuote(append(msg, `{"jsonrpc":"2.0","method":`...), method), `,"params":`...)
	at := len(msg)
	msg = append(append(msg, raw...), "}\n"...)
	return &Notification{modern: msg, params: msg[at : at+len(raw)], method: method}, nil
}
