package ctl

import (
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

const argNode = "a node's name, as in the configuration"

func (a *app) nodeCommands() *cobra.Command {
	return a.group("node", "look at and command the links to peers",
		a.command(verb{
			use: "list", short: "list the peers",
			long: "Lists every peer: whether it is up and since when, both links, the round trip.",
			do:   "list the nodes", example: "lockstepctl node list",
			run: a.ask("node/list", nil, as(render.NodeList)),
		}),
		a.command(verb{
			use: "show NODE", short: "show all there is to know of a peer",
			long: "Shows a peer in full: links, session, ticks, traffic, the next attempt to connect.",
			args: []string{"NODE", argNode},
			do:   "show node %s", example: "lockstepctl node show beta", complete: completeNodes,
			run: a.ask("node/show", nodeParams, as(render.Node)),
		}),
		a.command(verb{
			use: "why NODE", short: "explain a peer's state",
			long: "Explains what the state of a peer is, since when, because of what, and what would change it.",
			args: []string{"NODE", argNode},
			do:   "explain node %s", example: "lockstepctl node why gamma", complete: completeNodes,
			run: a.ask("node/why", nodeParams, as(render.Why)),
		}),
		a.linkCommand("connect", "connect to a peer, or to all",
			"Connects to a peer that was disconnected, or that is waiting to be tried again."),
		a.nodeDisconnect(),
		a.linkCommand("reconnect", "drop the links to a peer, or to all, and connect again",
			"Drops both links to a peer and connects again at once, with a fresh backoff."),
	)
}

func (a *app) nodeDisconnect() *cobra.Command {
	var persist bool
	return a.command(verb{
		use: "disconnect [NODE]", short: "disconnect a peer, or all",
		long: "Takes both links to a peer down. It stays disconnected until it is connected again; with --persist, even across restarts of the daemon. Its replicas fall behind meanwhile, and catch up afterwards.",
		args: []string{"NODE", argNode + "; every peer when left out"},
		do:   "disconnect %s", example: "lockstepctl node disconnect beta", complete: completeNodes,
		flags: func(f *pflag.FlagSet) { f.BoolVar(&persist, "persist", false, "stay disconnected across restarts") },
		run: a.act("node/disconnect", func(args []string) (any, error) {
			return api.NodeDisconnectParams{Node: arg(args, 0), Persist: persist}, nil
		}),
	})
}

// linkCommand is a verb on the links of a node, or of all.
func (a *app) linkCommand(name, short, long string) *cobra.Command {
	return a.command(verb{
		use: name + " [NODE]", short: short, long: long,
		args: []string{"NODE", argNode + "; every peer when left out"},
		do:   name + " %s", example: "lockstepctl node " + name + " beta", complete: completeNodes,
		run: a.act("node/"+name, nodeParams),
	})
}
