package control

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/events"
)

func (c *Control) eventCommands() []rpc.Command {
	return []rpc.Command{
		{Name: "events/subscribe", Usage: "[TYPE]...", MaxArgs: rpc.Unlimited, Doc: "send events to this connection as they happen", Do: rpc.Typed(c.subscribe, func(s api.Subscribed) string {
			return fmt.Sprintf("subscribed after event %d", s.Seq)
		})},
		{Name: "events/unsubscribe", Usage: "[TYPE]...", MaxArgs: rpc.Unlimited, Doc: "end this connection's subscriptions to these types (all without TYPE)", Do: rpc.Typed(c.unsubscribe, done)},
	}
}

// subscriptions are the streams of events that connections take.
type subscriptions struct {
	// mu guards list.
	mu   sync.Mutex
	list []*subscription
}

// subscription is one of them: of a connection, by its number.
type subscription struct {
	conn   uint64
	types  []string // empty is all
	cancel context.CancelFunc
}

func (s *subscriptions) add(x *subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = append(s.list, x)
}

func (s *subscriptions) remove(x *subscription) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = slices.DeleteFunc(s.list, func(o *subscription) bool { return o == x })
}

// end cancels a connection's subscriptions to nothing but the given types, or
// all of them, and counts them.
func (s *subscriptions) end(conn uint64, types []string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.list {
		other := len(x.types) == 0 || slices.ContainsFunc(x.types, func(t string) bool { return !slices.Contains(types, t) })
		if x.conn == conn && (len(types) == 0 || !other) {
			x.cancel()
			n++
		}
	}
	return n
}

// subscribe pushes events to the connection until it closes or unsubscribes.
// What a slow subscriber misses costs it a note that says how much.
func (c *Control) subscribe(ctx context.Context, by rpc.Actor, p api.Subscribe) (api.Subscribed, error) {
	n, ok := rpc.NotifierFrom(ctx)
	if !ok {
		return api.Subscribed{}, api.Errorf(api.CodeInvalidRequest, "events can only be sent to a connection")
	}
	stream := c.o.Events.Stream()
	if p.After > 0 && p.Stream != "" && p.Stream != stream {
		p.After = events.FromStart
	}
	sub, err := c.o.Events.Subscribe(p.After, p.Types...)
	if err != nil {
		return api.Subscribed{}, api.Errorf(api.CodeInvalidParams, "%v", err)
	}
	err = c.follow(n, by, p.Types, func(ctx context.Context) (*rpc.Notification, error) {
		ev, lost, err := sub.Next(ctx)
		switch {
		case err != nil:
			return nil, err
		case lost != nil:
			return note("lost", *lost), nil
		}
		return c.notes.of(ev), nil
	})
	return api.Subscribed{Seq: c.o.Events.Newest(), Missed: sub.Missed(), Stream: stream}, err
}

// follow sends what next returns to a connection, until that ends.
func (c *Control) follow(n *rpc.Notifier, by rpc.Actor, types []string, next func(context.Context) (*rpc.Notification, error)) error {
	// The end may be asked for before the goroutine has begun.
	own, cancel := context.WithCancel(context.Background())
	x := &subscription{conn: by.Conn, types: types, cancel: cancel}
	c.subs.add(x)
	err := n.Go(func(ctx context.Context) {
		defer c.subs.remove(x)
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		push(own, n, next)
	})
	if err != nil {
		cancel()
		c.subs.remove(x)
	}
	return err
}

// push sends one notification after the other, and waits for a client that is
// slow: what it misses meanwhile is lost where the stream is kept, in bounds.
func push(ctx context.Context, n *rpc.Notifier, next func(context.Context) (*rpc.Notification, error)) {
	for {
		note, err := next(ctx)
		if err != nil {
			return
		}
		for note != nil && n.Send(note) != nil {
			select {
			case <-n.Room():
			case <-ctx.Done():
				return
			}
		}
	}
}

// notes keeps the newest events as they are sent, so that each is encoded once
// and not for every subscriber.
type notes struct {
	// mu guards ring. Encoding goes on under it: whoever waits wants its result.
	mu   sync.Mutex
	ring [256]struct {
		seq  uint64
		note *rpc.Notification
	}
}

func (n *notes) of(ev events.Event) *rpc.Notification {
	n.mu.Lock()
	defer n.mu.Unlock()
	kept := &n.ring[ev.Seq%uint64(len(n.ring))]
	if kept.seq == ev.Seq {
		return kept.note
	}
	made := note("event", ev)
	if ev.Seq > kept.seq { // one who is behind drives out nothing newer
		kept.seq, kept.note = ev.Seq, made
	}
	return made
}

// note encodes a notification; one that cannot be is none.
func note(method string, params any) *rpc.Notification {
	n, err := rpc.NewNotification(method, params)
	if err != nil {
		return nil
	}
	return n
}

func (c *Control) unsubscribe(_ context.Context, by rpc.Actor, p struct {
	Types []string `json:"types,omitempty"`
}) (api.Done, error) {
	return text("ended %d subscriptions", c.subs.end(by.Conn, p.Types))
}
