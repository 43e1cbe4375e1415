package control

import (
	"context"
	"fmt"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/events"
)

// hostCommands are those of the daemonizer's log, counters and memory.
func (c *Control) hostCommands() []rpc.Command {
	var rows []rpc.Command
	if v := c.o.Vlog; v != nil {
		rows = append(rows,
			rpc.Command{Name: "vlog/list", Doc: "list the levels of every module", Do: rpc.Text(func(context.Context, rpc.Actor, []string) (string, error) { return v.ListText(), nil })},
			rpc.Command{Name: "vlog/list-pattern", Doc: "list the patterns of the destinations", Do: rpc.Text(func(context.Context, rpc.Actor, []string) (string, error) { return v.ListPatternText(), nil })},
			rpc.Command{Name: "vlog/set", Usage: "{SPEC | PATTERN:DESTINATION:PATTERN}...", MaxArgs: rpc.Unlimited, Access: rpc.Admin, Doc: "set levels by module and destination", Do: verb(v.Set)},
			rpc.Command{Name: "vlog/reopen", Access: rpc.Admin, Doc: "reopen the log file", Do: verb(func(...string) error { return v.Reopen() })},
			rpc.Command{Name: "vlog/close", Access: rpc.Admin, Doc: "close the log file", Do: verb(func(...string) error { return v.CloseFile() })},
			rpc.Command{Name: "vlog/enable-rate-limit", Usage: "[MODULE]...", MaxArgs: rpc.Unlimited, Access: rpc.Admin, Doc: "limit the rate of messages", Do: verb(func(m ...string) error { return v.SetRateLimit(true, m...) })},
			rpc.Command{Name: "vlog/disable-rate-limit", Usage: "[MODULE]...", MaxArgs: rpc.Unlimited, Access: rpc.Admin, Doc: "log every message", Do: verb(func(m ...string) error { return v.SetRateLimit(false, m...) })},
		)
	}
	if k := c.o.Coverage; k != nil {
		rows = append(rows,
			rpc.Command{Name: "coverage/show", Doc: "show how often things happened", Do: rpc.Text(func(context.Context, rpc.Actor, []string) (string, error) { return k.Text(), nil })},
			rpc.Command{Name: "coverage/read-counter", Usage: "COUNTER", MinArgs: 1, MaxArgs: 1, Doc: "show one counter", Do: rpc.Text(func(_ context.Context, _ rpc.Actor, a []string) (string, error) {
				n, err := k.Read(a[0])
				return fmt.Sprintf("%d\n", n), err
			})},
		)
	}
	if m := c.o.Memory; m != nil {
		rows = append(rows, rpc.Command{Name: "memory/show", Doc: "show what the memory is used for", Do: rpc.Text(func(context.Context, rpc.Actor, []string) (string, error) { return m.Text(), nil })})
	}
	return rows
}

func verb(do func(args ...string) error) rpc.Handler {
	return rpc.Text(func(_ context.Context, _ rpc.Actor, args []string) (string, error) { return "", do(args...) })
}

func (c *Control) eventCommands() []rpc.Command {
	return []rpc.Command{
		{Name: "events/subscribe", Usage: "[TYPE]...", MaxArgs: rpc.Unlimited, Doc: "send events to this connection as they happen", Do: rpc.Typed(c.subscribe, func(s api.Subscribed) string {
			return fmt.Sprintf("subscribed after event %d", s.Seq)
		})},
	}
}

// subscribe pushes events to the connection until it closes. What a slow
// subscriber misses costs it a note that says how much.
func (c *Control) subscribe(ctx context.Context, _ rpc.Actor, p api.Subscribe) (api.Subscribed, error) {
	n, ok := rpc.NotifierFrom(ctx)
	if !ok {
		return api.Subscribed{}, api.Errorf(api.CodeInvalidRequest, "events can only be sent to a connection")
	}
	sub, err := c.o.Events.Subscribe(p.After, p.Types...)
	if err != nil {
		return api.Subscribed{}, api.Errorf(api.CodeInvalidParams, "%v", err)
	}
	sctx, cancel := context.WithCancel(context.Background())
	go func() {
		<-n.Done()
		cancel()
	}()
	go push(sctx, sub, n)
	return api.Subscribed{Seq: c.o.Events.Newest(), Missed: sub.Missed()}, nil
}

func push(ctx context.Context, sub *events.Subscription, n *rpc.Notifier) {
	for {
		ev, lost, err := sub.Next(ctx)
		if err != nil {
			return
		}
		method, params := "event", any(ev)
		if lost != nil {
			method, params = "lost", *lost
		}
		note, err := rpc.NewNotification(method, params)
		if err != nil {
			continue
		}
		for {
			err := n.Send(note)
			if err == nil {
				break
			}
			select {
			case <-n.Room():
			case <-n.Done():
				return
			}
		}
	}
}
