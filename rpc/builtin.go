package rpc

import (
	"context"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"strings"

	"github.com/lockstepd/lockstep/rpc/api"
)

// builtins are the commands that every registry has.
func builtins(r *Registry) []Command {
	return []Command{
		{Name: "list-commands", Doc: "list the commands and their arguments",
			Do: Typed(r.listCommands, commandTable)},
		{Name: "version", Doc: "show the daemon's version",
			Do: Typed(showVersion, versionLine)},
		{Name: "help", Usage: "[COMMAND]", MaxArgs: 1, Doc: "explain one command, or all of them",
			Do: Typed(r.help, helpText)},
		{Name: "set-options", Usage: "[--format text|json]", MinArgs: 1, MaxArgs: 2,
			Doc: "choose the format of the results on this connection",
			Do:  Text(setOptions)},
	}
}

type none struct{}

// usages is the result of list-commands: names and what follows them.
type usages map[string]string

func (r *Registry) listCommands(context.Context, Actor, none) (usages, error) {
	list := make(usages)
	for _, c := range r.Commands() {
		list[c.Name] = c.Usage
	}
	return list, nil
}

// commandTable renders list-commands as Open vSwitch does.
func commandTable(list usages) string {
	var b strings.Builder
	b.WriteString("The available commands are:\n")
	for _, name := range slices.Sorted(maps.Keys(list)) {
		fmt.Fprintf(&b, "  %-23s %s\n", name, list[name])
	}
	return b.String()
}

func showVersion(ctx context.Context, _ Actor, _ none) (api.Version, error) {
	v := api.Version{Go: runtime.Version()}
	if n, ok := NotifierFrom(ctx); ok {
		v.Program, v.Version = n.c.s.opts.Program, n.c.s.opts.Version
	}
	return v, nil
}

// versionLine has the version as its last word: scripts made for Open vSwitch
// look for it there.
func versionLine(v api.Version) string {
	return v.Program + " (lockstep) " + v.Version
}

type helpParams struct {
	Command string `json:"command"`
}

func (r *Registry) help(_ context.Context, _ Actor, p helpParams) ([]api.Command, error) {
	if p.Command == "" {
		return r.Describe(), nil
	}
	c, err := r.lookup(p.Command)
	if err != nil {
		return nil, err
	}
	return []api.Command{c.describe()}, nil
}

// helpText renders one command in full, or many in a line each.
func helpText(list []api.Command) string {
	var b strings.Builder
	if len(list) == 1 {
		writeCommand(&b, list[0])
		return b.String()
	}
	for _, c := range list {
		fmt.Fprintf(&b, "%-23s %s\n", c.Name, c.Doc)
	}
	return b.String()
}

func writeCommand(b *strings.Builder, c api.Command) {
	fmt.Fprintf(b, "%s\n  %s\n", strings.TrimSpace(c.Name+" "+c.Usage), c.Doc)
	fmt.Fprintf(b, "  Access: %s.", c.Access)
	if c.DeadlineMS > 0 {
		fmt.Fprintf(b, " Deadline: %g s.", float64(c.DeadlineMS)/1000)
	}
	b.WriteByte('\n')
	for _, p := range c.Params {
		need := "optional"
		if p.Required {
			need = "required"
		}
		fmt.Fprintf(b, "  %-12s %s, %s\n", p.Name, p.Type, need)
	}
}

// setOptions takes what getopt_long would: -f json, -fjson, --format json,
// --format=json, and any abbreviation of it. Other arguments are ignored.
func setOptions(ctx context.Context, _ Actor, args []string) (string, error) {
	format, err := formatOption(args)
	if err != nil || format == "" {
		return "", err
	}
	n, ok := NotifierFrom(ctx)
	if !ok {
		return "", api.Errorf(api.CodeInvalidState, "there is no connection to set options of")
	}
	n.c.asJSON.Store(format == "json")
	return "", nil
}

func formatOption(args []string) (format string, err error) {
	for len(args) > 0 && args[0] != "--" {
		var value string
		var found bool
		value, found, args, err = nextOption(args)
		if err != nil {
			return "", err
		}
		if !found {
			continue
		}
		if format = strings.ToLower(value); format != "text" && format != "json" {
			return "", optionError("option format has invalid value %s", value)
		}
	}
	return format, nil
}

// nextOption takes one option with its value, or one other argument, from args.
func nextOption(args []string) (value string, found bool, rest []string, err error) {
	arg, rest := args[0], args[1:]
	long, isLong := strings.CutPrefix(arg, "--")
	name, value, attached := strings.Cut(long, "=")
	switch {
	case isLong && (name == "" || !strings.HasPrefix("format", name)):
		return "", false, nil, optionError("unrecognized option '%s'", arg)
	case isLong && attached:
		return value, true, rest, nil
	case isLong:
		return optionValue("option '--format' requires an argument", rest)
	case strings.HasPrefix(arg, "-f") && len(arg) > 2:
		return arg[2:], true, rest, nil
	case arg == "-f":
		return optionValue("option requires an argument -- 'f'", rest)
	case len(arg) > 1 && arg[0] == '-':
		return "", false, nil, optionError("invalid option -- '%c'", arg[1])
	}
	return "", false, rest, nil
}

func optionValue(missing string, rest []string) (string, bool, []string, error) {
	if len(rest) == 0 {
		return "", false, nil, optionError("%s", missing)
	}
	return rest[0], true, rest[1:], nil
}

func optionError(format string, args ...any) error {
	return api.Errorf(api.CodeInvalidParams, format, args...)
}
