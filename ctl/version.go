package ctl

import (
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/lockstepd/lockstep/ctl/render"
)

// version is set by the linker in a release.
var version string

// Version is the version of this program.
func Version() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "dev"
}

func (a *app) versionCommand() *cobra.Command {
	return a.command(verb{
		use: "version", short: "show the daemon's version",
		long: "Shows the version of the daemon that answers. This program's own version is shown by: lockstepctl --version",
		do:   "ask for the version", example: "lockstepctl version",
		run: a.ask("version", nil, as(render.Version)),
	})
}
