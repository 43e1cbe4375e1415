package main

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"

	"github.com/lockstepd/lockstep/daemon"
)

// modules are the engine's modules in the log, known before they exist so
// that -v can set their levels.
var modules = []string{
	"config", "service", "cmap", "wire", "messenger", "cluster", "replication",
	"store", "device", "nbd", "control", "events", "metrics", "rpc", "server",
}

// version is the program's version.
func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "dev"
}

// versionText is what --version prints; scripts take the last word of its first line.
func versionText() string { return fmt.Sprintf("%s (lockstep) %s", program, version()) }

// check validates the configuration for --check.
func check(engineFlags, io.Writer, io.Writer) int { return daemon.ExitOK }

// engineMain returns the function that runs as the daemon.
func engineMain(engineFlags) daemon.Main {
	return func(ctx context.Context, env *daemon.Env) error {
		if err := env.Ready(); err != nil {
			return err
		}
		<-ctx.Done()
		return nil
	}
}
