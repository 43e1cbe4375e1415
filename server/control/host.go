package control

import (
	"context"
	"fmt"

	"github.com/lockstepd/lockstep/rpc"
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
