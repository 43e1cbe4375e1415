package ctl

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// part is one command of the root: its name, and how to build it.
type part struct {
	name  string
	build func(*app) *cobra.Command
}

// parts are the commands, in the order of the help.
func parts() []part {
	return []part{
		{"status", (*app).statusCommand},
		{"top", (*app).topCommand},
		{"events", (*app).eventsCommand},
		{"node", (*app).nodeCommands},
		{"tick", (*app).tickCommands},
		{"device", (*app).deviceCommands},
		{"config", (*app).configCommands},
		{"service", (*app).serviceCommands},
		{"cmap", (*app).cmapCommands},
		{"log", (*app).logCommands},
		{"coverage", (*app).coverageCommand},
		{"memory", (*app).memoryCommand},
		{"metrics", (*app).metricsCommand},
		{"call", (*app).callCommand},
		{"list-commands", (*app).listCommandsCommand},
		{"version", (*app).versionCommand},
		{"restart", (*app).restartCommand},
		{"exit", (*app).exitCommand},
		{"completion", (*app).completionCommand},
		{"help", (*app).helpCommand},
	}
}

// needed are the parts that a command line may need: the one it names, or all
// where it names none or asks about all.
func needed(args []string) []part {
	all := parts()
	if len(args) == 0 || strings.HasPrefix(args[0], "__") || slices.Contains(args, "help") ||
		slices.Contains(args, "--help") || slices.Contains(args, "-h") {
		return all
	}
	named := slices.DeleteFunc(slices.Clone(all), func(p part) bool { return !slices.Contains(args, p.name) })
	if len(named) == 0 || slices.ContainsFunc(named, func(p part) bool { return p.name == "completion" }) {
		return all
	}
	return named
}

// Tree is the whole program as a tree of commands that are not meant to be run:
// the manual is made from it.
func Tree() *cobra.Command { return new(app).root(nil) }

// root builds the program for a command line.
func (a *app) root(args []string) *cobra.Command {
	c := &cobra.Command{
		Use:           "lockstepctl",
		Short:         "look at and command lockstepd",
		Long:          rootLong,
		Example:       "lockstepctl status\nlockstepctl device wait r0 synced\nlockstepctl -f json node list",
		SilenceErrors: true, SilenceUsage: true, DisableFlagsInUseLine: true,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknown(c, args[0])
			}
			return nil
		},
		RunE:              func(c *cobra.Command, _ []string) error { return a.bare(c) },
		PersistentPreRunE: func(c *cobra.Command, _ []string) error { return a.checkFlags(c) },
	}
	c.CompletionOptions.DisableDefaultCmd = true
	c.SetIn(a.In)
	c.SetOut(a.Out)
	if len(args) > 0 && strings.HasPrefix(args[0], "__") {
		c.SetOut(unquoted{a.Out})
	}
	c.SetErr(a.Err)
	a.globalFlags(c.PersistentFlags())
	a.completeFlags(c, map[string]completer{"format": words("text", "json")})
	c.Flags().BoolVarP(&a.opts.version, "version", "V", false, "show the version of this program")
	c.SetFlagErrorFunc(flagError)
	c.SetHelpFunc(func(c *cobra.Command, _ []string) { a.help(c) })
	c.SetUsageFunc(func(c *cobra.Command) error { a.help(c); return nil })
	for _, p := range needed(args) {
		c.AddCommand(p.build(a))
	}
	c.SetHelpCommand(&cobra.Command{Use: "no-help", Hidden: true})
	return c
}

// unquoted takes the marks off a flag's description, by which help finds the
// name of its value, for shells that show it as it is.
type unquoted struct{ io.Writer }

func (u unquoted) Write(b []byte) (int, error) {
	if _, err := u.Writer.Write(bytes.ReplaceAll(b, []byte("`"), nil)); err != nil {
		return 0, err
	}
	return len(b), nil
}

const rootLong = `lockstepctl sends one command to a running lockstepd and shows the answer: as
text for people, or with -f json as the daemon's own result for programs.
Standard output carries the answer alone.`

// globalFlags are what every command takes.
func (a *app) globalFlags(f *pflag.FlagSet) {
	f.StringVarP(&a.opts.target, "target", "t", "", "talk to `TARGET`: a socket's path, a program's name that is looked up by its pidfile in the rundir, or ssl:HOST:PORT (default: $LOCKSTEP_TARGET, else lockstepd)")
	f.Float64VarP(&a.opts.timeout, "timeout", "T", 0, "give up after this many `SECONDS`")
	f.StringVarP(&a.opts.format, "format", "f", "text", "answer in this `FORMAT`: text or json")
	f.BoolVar(&a.opts.pretty, "pretty", false, "lay out JSON for reading")
	f.BoolVar(&a.opts.noColor, "no-color", false, "no colour, even on a terminal (so does NO_COLOR)")
	f.BoolVarP(&a.opts.quiet, "quiet", "q", false, "no progress, no confirmations")
	f.StringVar(&a.opts.tls.Cert, "certificate", "", "for ssl: targets, the `FILE` with our certificate")
	f.StringVar(&a.opts.tls.Key, "private-key", "", "for ssl: targets, the `FILE` with the key of our certificate")
	f.StringVar(&a.opts.tls.CA, "ca-cert", "", "for ssl: targets, the `FILE` with the certificate of whom we trust")
	f.BoolP("help", "h", false, "show help")
	f.SortFlags = false
}

// checkFlags refuses global flags that make no sense.
func (a *app) checkFlags(c *cobra.Command) error {
	switch {
	case a.opts.format != "text" && a.opts.format != "json":
		return usageError{fmt.Sprintf("-f %s: the formats are text and json", a.opts.format), c.CommandPath()}
	case a.opts.timeout < 0 || a.opts.timeout != a.opts.timeout:
		return usageError{"-T: the time must be greater than 0", c.CommandPath()}
	case a.opts.timeout > 1e9:
		a.opts.timeout = 1e9
	}
	return nil
}

// bare is the program without a command.
func (a *app) bare(c *cobra.Command) error {
	if a.opts.version {
		return a.print("lockstepctl (lockstep) " + a.version() + "\n")
	}
	return usageError{"a command is needed, for example: lockstepctl status", c.CommandPath()}
}

// flagError words what pflag refuses.
func flagError(c *cobra.Command, err error) error {
	if errors.Is(err, pflag.ErrHelp) {
		return err
	}
	if bad, ok := errors.AsType[*pflag.InvalidValueError](err); ok {
		return usageError{fmt.Sprintf("--%s %q: %s is expected", bad.GetFlag().Name, bad.GetValue(), kind(bad.GetFlag())), c.CommandPath()}
	}
	return usageError{strings.TrimSuffix(err.Error(), " in -"), c.CommandPath()}
}

// kind is what values of a flag are.
func kind(f *pflag.Flag) string {
	switch f.Value.Type() {
	case "bool":
		return "true or false"
	case "string", "stringSlice", "stringArray":
		return "text"
	}
	return "a number"
}
