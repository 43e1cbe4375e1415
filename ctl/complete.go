package ctl

import (
	"context"
	_ "embed" // for the script
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepd/lockstep/rpc/api"
)

// completer offers words for the next argument; given are those before it.
type completer func(ctx context.Context, a *app, given []string, prefix string) []string

// completionTime is how long a Tab may take. Without an answer there are no
// offers, and no noise.
const completionTime = 300 * time.Millisecond

// completion is a completer in cobra's terms.
func (a *app) completion(offer completer) cobra.CompletionFunc {
	return func(c *cobra.Command, given []string, prefix string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if offer == nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		ctx, cancel := context.WithTimeout(context.Background(), completionTime)
		defer cancel()
		var fitting []cobra.Completion
		for _, w := range offer(ctx, a, given, prefix) {
			if strings.HasPrefix(w, prefix) {
				fitting = append(fitting, w)
			}
		}
		return fitting, cobra.ShellCompDirectiveNoFileComp
	}
}

// completeFlags makes the values of flags complete; those of a flag that does
// not exist are a mistake of ours that a test would show.
func (a *app) completeFlags(c *cobra.Command, words map[string]completer) {
	for name, offer := range words {
		_ = c.RegisterFlagCompletionFunc(name, a.completion(func(ctx context.Context, a *app, _ []string, prefix string) []string {
			return offer(ctx, a, nil, prefix)
		}))
	}
}

// completeFiles leaves the first argument, a file's path, to the shell.
func completeFiles(_ *cobra.Command, given []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(given) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return nil, cobra.ShellCompDirectiveDefault
}

// words offers some words, whatever was given before.
func words(list ...string) completer {
	return func(context.Context, *app, []string, string) []string { return list }
}

// eventTypes are the types of events that there are always.
var eventTypes = words("nodeup", "nodedown", "role", "disk", "replication", "quorum", "resync", "config", "service", "split-brain")

// listed asks the daemon and picks a name from each entry; nothing on failure.
func listed[T any](ctx context.Context, a *app, method string, params any, name func(T) string) []string {
	c, err := a.Dial(ctx, a.address(), nil)
	if err != nil {
		return nil
	}
	defer c.Close()
	var list []T
	if c.Call(ctx, method, params, &list) != nil {
		return nil
	}
	names := make([]string, len(list))
	for i, e := range list {
		names[i] = name(e)
	}
	return names
}

func completeNodes(ctx context.Context, a *app, given []string, _ string) []string {
	if len(given) > 0 {
		return nil
	}
	return listed(ctx, a, "node/list", nil, func(n api.Node) string { return n.Name })
}

func completeDevices(ctx context.Context, a *app, given []string, _ string) []string {
	if len(given) > 0 {
		return nil
	}
	return listed(ctx, a, "device/list", nil, func(d api.Device) string { return d.Name })
}

func completeDeviceThenNode(ctx context.Context, a *app, given []string, prefix string) []string {
	switch len(given) {
	case 0:
		return completeDevices(ctx, a, nil, prefix)
	case 1:
		return completeNodes(ctx, a, nil, prefix)
	}
	return nil
}

func completeDeviceThenState(ctx context.Context, a *app, given []string, prefix string) []string {
	switch len(given) {
	case 0:
		return completeDevices(ctx, a, nil, prefix)
	case 1:
		return waitStates[:]
	}
	return nil
}

func completeServices(ctx context.Context, a *app, given []string, _ string) []string {
	if len(given) > 0 {
		return nil
	}
	return listed(ctx, a, "service/list", nil, func(s api.Service) string { return s.Name })
}

// completeKeys offers keys of the object database; the second argument of
// "cmap set" is a type.
func completeKeys(ctx context.Context, a *app, given []string, prefix string) []string {
	switch len(given) {
	case 0:
		return listed(ctx, a, "cmap/dump", api.CmapPrefixParams{Prefix: prefix}, func(e api.CmapEntry) string { return e.Key })
	case 1:
		return []string{"i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "flt", "dbl", "str", "bin"}
	}
	return nil
}

// completeMethods offers the daemon's commands.
func completeMethods(ctx context.Context, a *app, given []string, _ string) []string {
	if len(given) > 0 {
		return nil
	}
	return listed(ctx, a, "help", nil, func(c api.Command) string { return c.Name })
}

// bashCompletion is ours because cobra's needs the package bash-completion,
// which small systems do not have.
//
//go:embed completion.bash
var bashCompletion string

const completionLong = `Prints a script that teaches a shell to complete commands, flags, and the names of
nodes, devices, services and keys, which it asks the running daemon for.`

func (a *app) completionCommand() *cobra.Command {
	var root *cobra.Command
	c := a.command(verb{
		use: "completion SHELL", short: "print the completion script for a shell",
		long: completionLong, args: []string{"SHELL", "bash, zsh or fish"},
		do:       "make the completion for %s",
		example:  "lockstepctl completion bash > /etc/bash_completion.d/lockstepctl",
		complete: words("bash", "zsh", "fish"),
		run: func(_ context.Context, args []string) error {
			switch args[0] {
			case "bash":
				return a.print(bashCompletion)
			case "zsh":
				return root.GenZshCompletion(a.Out)
			case "fish":
				return root.GenFishCompletion(a.Out, true)
			}
			return badArgument("the shells are bash, zsh and fish")
		},
	})
	run := c.RunE
	c.RunE = func(c *cobra.Command, args []string) error {
		root = c.Root()
		return run(c, args)
	}
	return c
}
