package ctl

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

func (a *app) tickCommands() *cobra.Command {
	return a.group("tick", "look at and change the tick time",
		a.command(verb{
			use: "get", short: "show the tick time",
			long: "Shows the tick time, after which a silent peer is down, and a change of it that is under way.",
			do:   "get the tick time", example: "lockstepctl tick get",
			run: a.ask("tick/get", nil, as(render.Tick)),
		}),
		a.tickSet(),
	)
}

func (a *app) tickSet() *cobra.Command {
	var local bool
	return a.command(verb{
		use: "set SECONDS [TRANSITION]", short: "change the tick time of the running cluster",
		long: `Changes the tick time on this node and, unless --local, on every connected peer.
No peer is dropped by the change. The answer begins with what happened: unchanged,
change_initiated or ongoing_change_to.`,
		args: []string{
			"SECONDS", "the new tick time, 0.1 to 3600",
			"TRANSITION", "seconds in which every node must have begun the change; the daemon's usual time when left out",
		},
		do: "set the tick time to %s", example: "lockstepctl tick set 20 60",
		flags: func(f *pflag.FlagSet) { f.BoolVar(&local, "local", false, "change this node alone") },
		run: a.ask("tick/set", func(args []string) (any, error) {
			p := api.TickSetParams{Local: local}
			var err error
			if p.Seconds, err = parseSeconds(args[0]); err == nil && len(args) > 1 {
				p.Transition, err = parseSeconds(args[1])
			}
			return p, err
		}, as(render.TickSet)),
	})
}
