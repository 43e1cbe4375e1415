package ctl

import (
	"path/filepath"
	"strconv"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

const argFile = "a file to look at in place of the daemon's own; the daemon reads it"

func (a *app) configCommands() *cobra.Command {
	return a.group("config", "look at and change the configuration",
		a.command(verb{
			use: "show", short: "show the configuration in force",
			long: "Shows the configuration in force, with what was changed by command since the file was read.",
			do:   "show the configuration", example: "lockstepctl config show",
			run: a.askText("config/show"),
		}),
		a.command(verb{
			use: "check [FILE]", short: "say what is wrong with a configuration file",
			long: "Validates the file as a reload would, and says what is wrong with it, by line and column.",
			args: []string{"FILE", argFile}, files: true,
			do: "accept the configuration", example: "lockstepctl config check /etc/lockstep/new.toml",
			run: a.ask("config/check", fileParams, a.confirmation),
		}),
		a.command(verb{
			use: "diff [FILE]", short: "show what a configuration file would change",
			long: "Shows, key by key, what the file would change and how: live, by restarting a service,\nafter a restart of the daemon, or not at all and why. Nothing is changed.",
			args: []string{"FILE", argFile}, files: true,
			do: "compare the configuration", example: "lockstepctl config diff",
			run: a.ask("config/diff", fileParams, as(render.Changes)),
		}),
		a.configReload(),
		a.command(verb{
			use: "save", short: "write changes made by command back to the file",
			long: "Writes what was changed by command back to the configuration file; its comments and\nlayout stay as they are.",
			do:   "save the configuration", example: "lockstepctl config save",
			run: a.act("config/save", nil),
		}),
		a.command(verb{
			use: "history", short: "show the last configurations",
			long: "Shows the last ten revisions of the configuration, the newest first: when, by whom, and\nwhat each changed. They are kept over restarts. config rollback goes back to one.",
			do:   "show the history", example: "lockstepctl config history",
			run: a.askText("config/history"),
		}),
		a.command(verb{
			use: "rollback REVISION", short: "go back to an earlier configuration",
			long: "Applies an earlier revision of the configuration again, as a new revision.",
			args: []string{"REVISION", "the number of a revision"},
			do:   "roll back to revision %s", example: "lockstepctl config rollback 6",
			run: a.act("config/rollback", func(args []string) (any, error) {
				n, err := strconv.ParseUint(args[0], 10, 64)
				if err != nil {
					return nil, badArgument(strconv.Quote(args[0]) + " is not the number of a revision")
				}
				return api.ConfigRollbackParams{Revision: n}, nil
			}),
		}),
	)
}

// fileParams name a file. The daemon has another working directory than we, so
// a relative path is made absolute.
func fileParams(args []string) (any, error) {
	if len(args) == 0 {
		return api.ConfigFileParams{}, nil
	}
	path, err := filepath.Abs(args[0])
	return api.ConfigFileParams{File: path}, err
}

func (a *app) configReload() *cobra.Command {
	var partial bool
	return a.command(verb{
		use: "reload", short: "apply the configuration file",
		long: "Applies the configuration file as a whole or not at all. A file that changes keys which\nneed a restart of the daemon is refused, unless --partial applies the others.",
		do:   "reload the configuration", example: "lockstepctl config reload",
		flags: func(f *pflag.FlagSet) {
			f.BoolVar(&partial, "partial", false, "apply what can be applied now, leave what needs a restart")
		},
		run: a.ask("config/reload", func([]string) (any, error) { return api.ConfigReloadParams{Partial: partial}, nil }, a.confirmation),
	})
}
