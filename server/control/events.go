package control

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

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
// all of them, and counts them, each once.
func (s *subscriptions) end(conn uint64, types []string) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.list = slices.DeleteFunc(s.list, func(x *subscription) bool {
		other := len(x.types) == 0 || slices.ContainsFunc(x.types, func(t string) bool { return !slices.Contains(types, t) })
		if x.conn != conn || len(types) != 0 && other {
			return false
		}
		x.cancel()
		n++
		return true
	})
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
	err = c.follow(n, by, p.Types, c.eventsOf(sub))
	return api.Subscribed{Seq: c.o.Events.Newest(), Missed: sub.Missed(), Stream: stream}, err
}

// follow sends what next returns to a connection, until that ends.
func (c *Control) follow(n *rpc.Notifier, by rpc.Actor, types []string, next following) error {
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

// following returns the notifications that come next.
type following func(context.Context) ([]*rpc.Notification, error)

const (
	eventsAtOnce = 128
	// gather is how long what follows an event is waited for, so that many of
	// them wake a client once. The first after a pause goes out at once.
	gather = 5 * time.Millisecond
)

// eventsOf returns the events of a subscription as they are sent.
func (c *Control) eventsOf(sub *events.Subscription) following {
	batch := make([]events.Event, eventsAtOnce)
	got := len(batch)
	return func(ctx context.Context) ([]*rpc.Notification, error) {
		if got < len(batch) { // or there are more already
			pause(ctx, gather)
		}
		var lost *events.Lost
		var err error
		got, lost, err = sub.Read(ctx, batch)
		switch {
		case err != nil:
			return nil, err
		case lost != nil:
			got = len(batch)
			return note("lost", *lost), nil
		}
		return c.notes.of(batch[:got]), nil
	}
}

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// push sends what next returns, and waits for a client that is slow: what it
// misses meanwhile is lost where the stream is kept, in bounds.
func push(ctx context.Context, n *rpc.Notifier, next following) {
	for {
		notes, err := next(ctx)
		if err != nil || !deliver(ctx, n, notes) {
			return
		}
	}
}

// deliver sends notifications, and reports whether ctx lasted as long.
func deliver(ctx context.Context, n *rpc.Notifier, notes []*rpc.Notification) bool {
	for {
		sent, err := n.SendAll(notes)
		if err == nil {
			return true
		}
		notes = notes[sent:]
		select {
		case <-n.Room():
		case <-ctx.Done():
			return false
		}
	}
}

// notes keep the events that are kept as they are sent, so that each is encoded
// once and not for every subscriber.
type notes struct {
	// mu guards ring. Encoding goes on under it: whoever waits wants its result.
	mu   sync.Mutex
	ring []encoded // as long as the log, once somebody has subscribed
}

type encoded struct {
	seq  uint64
	note *rpc.Notification
}

func (n *notes) of(evs []events.Event) []*rpc.Notification {
	list := make([]*rpc.Notification, 0, len(evs))
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.ring == nil {
		n.ring = make([]encoded, events.DefaultCapacity)
	}
	for i := range evs {
		seq := evs[i].Seq
		kept := &n.ring[seq%uint64(len(n.ring))]
		if kept.seq == seq {
			list = append(list, kept.note)
			continue
		}
		made := note("event", evs[i])
		if list = append(list, made...); len(made) > 0 && seq > kept.seq { // one who is behind drives out nothing newer
			kept.seq, kept.note = seq, made[0]
		}
	}
	return list
}

// note encodes a notification; one that cannot be is none.
func note(method string, params any) []*rpc.Notification {
	n, err := rpc.NewNotification(method, params)
	if err != nil {
		return nil
	}
	return []*rpc.Notification{n}
}

func (c *Control) unsubscribe(_ context.Context, by rpc.Actor, p struct {
	Types []string `json:"types,omitempty"`
}) (api.Done, error) {
	return text("ended %d subscriptions", c.subs.end(by.Conn, p.Types))
}
