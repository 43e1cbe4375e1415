package ctl

import (
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/lockstepd/lockstep/ctl/render"
)

// version is the version of this program: that of the release, else what the
// build says of itself.
func (e *Env) version() string {
	if e.Release != "" {
		return e.Release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "0.1.0"
}

func (a *app) versionCommand() *cobra.Command {
	return a.command(verb{
		use: "version", short: "show the daemon's version",
		long: "Shows the version of the daemon that answers. This program's own version is shown by: lockstepctl --version",
		do:   "ask for the version", example: "lockstepctl version",
		run: a.ask("version", nil, as(render.Version)),
	})
}
