package ctl

import (
	"context"

	"github.com/spf13/cobra"
)

// runner is what a verb does.
type runner = func(ctx context.Context, args []string) error

// pick chooses by whether there are arguments.
func pick(without, with runner) runner {
	return func(ctx context.Context, args []string) error {
		if len(args) == 0 {
			return without(ctx, args)
		}
		return with(ctx, args)
	}
}

func (a *app) callCommand() *cobra.Command {
	return a.command(verb{
		use: "call METHOD [ARG...]", short: "send any command, raw",
		long: "Sends any command of the daemon with its arguments as they are, and shows the answer as\nit comes. list-commands shows what there is. Flags of lockstepctl come before METHOD.",
		args: []string{"METHOD", "a command, such as node/show", "ARG", "its arguments"},
		do:   "call %s", example: "lockstepctl call node/show beta", verbatim: true, complete: completeMethods,
		run: func(ctx context.Context, args []string) error { return a.askText(args[0])(ctx, args[1:]) },
	})
}

func (a *app) listCommandsCommand() *cobra.Command {
	return a.command(verb{
		use: "list-commands", short: "list the commands that the daemon knows",
		do: "list the commands", example: "lockstepctl list-commands", run: a.askText("list-commands"),
	})
}

func (a *app) restartCommand() *cobra.Command {
	return a.command(verb{
		use: "restart", short: "restart the daemon",
		long: "Restarts the daemon, with a monitor or without, by the program and the configuration that are on disk now; where these would not start, it says so and does nothing. NBD clients stay connected; their requests wait meanwhile.",
		do:   "restart the daemon", example: "lockstepctl restart", run: a.act("restart", nil),
	})
}

func (a *app) exitCommand() *cobra.Command {
	return a.command(verb{
		use: "exit", short: "stop the daemon",
		long: "Stops the daemon in order: devices are closed cleanly, peers are told.",
		do:   "stop the daemon", example: "lockstepctl exit", run: a.act("exit", nil),
	})
}
