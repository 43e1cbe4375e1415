package ctl

import "github.com/spf13/cobra"

func (a *app) logCommands() *cobra.Command {
	return a.group("log", "look at and change what the daemon logs",
		a.command(verb{
			use: "list", short: "list modules and their log levels",
			long: "Lists every module with its level for each destination.",
			do:   "list the log levels", example: "lockstepctl log list",
			run: a.askText("vlog/list"),
		}),
		a.command(verb{
			use: "set [SPEC...]", short: "change log levels",
			long: `Changes log levels. SPEC is MODULE, DESTINATION and LEVEL in any order, joined by
colons; what is left out means all: device:file:dbg, or just dbg.`,
			args: []string{"SPEC", "module (as log list shows it), destination (syslog console file), level (off emer err warn info dbg)"},
			do:   "set the log levels", example: "lockstepctl log set messenger:file:dbg",
			run: a.askText("vlog/set"),
		}),
		a.command(verb{
			use: "reopen", short: "reopen the log file",
			long: "Closes and opens the log file again, after it was moved away by log rotation.",
			do:   "reopen the log file", example: "lockstepctl log reopen",
			run: a.askText("vlog/reopen"),
		}),
	)
}

func (a *app) coverageCommand() *cobra.Command {
	show, read := a.askText("coverage/show"), a.askText("coverage/read-counter")
	return a.command(verb{
		use: "coverage [COUNTER]", short: "show how often things happened inside the daemon",
		long: "Shows the daemon's internal counters with their rates, or one of them.",
		args: []string{"COUNTER", "the name of a counter"},
		do:   "show the counters", example: "lockstepctl coverage",
		run: pick(show, read),
	})
}

func (a *app) memoryCommand() *cobra.Command {
	return a.command(verb{
		use: "memory", short: "show what the daemon's memory is used for",
		do: "show the memory", example: "lockstepctl memory", run: a.askText("memory/show"),
	})
}

func (a *app) metricsCommand() *cobra.Command {
	return a.command(verb{
		use: "metrics", short: "show the metrics in Prometheus' text format",
		do: "show the metrics", example: "lockstepctl metrics", run: a.askText("metrics"),
	})
}
