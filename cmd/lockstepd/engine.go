package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime/debug"

	"github.com/lockstepd/lockstep/daemon"
	"github.com/lockstepd/lockstep/server"
	"github.com/lockstepd/lockstep/server/control"
	"github.com/lockstepd/lockstep/server/store"
)

// modules are the engine's modules in the log, known before they exist so
// that -v can set their levels.
var modules = []string{
	"config", "service", "cmap", "wire", "messenger", "cluster", "replication",
	"store", "device", "nbd", "control", "events", "metrics", "rpc", "server",
}

// release is set by the linker.
var release string

// version is the program's version.
func version() string {
	if release != "" {
		return release
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return "0.1.0"
}

// versionText is what --version prints; scripts take the last word of its first line.
func versionText() string { return fmt.Sprintf("%s (lockstep) %s", program, version()) }

// check validates the configuration for --check.
func check(f engineFlags, stdout, stderr io.Writer) int {
	if !server.Check(f.Config, f.NodeGiven(), stderr) {
		return daemon.ExitConfig
	}
	fmt.Fprintf(stdout, "%s: ok\n", f.Config)
	return daemon.ExitOK
}

// engineMain returns the function that runs as the daemon.
func engineMain(f engineFlags, flags daemon.Flags) daemon.Main {
	return func(ctx context.Context, env *daemon.Env) error {
		o := server.Options{
			Config: f.Config, Node: f.Node, StateDir: f.StateDir, RunDir: f.RunDir, Version: version(),
			Logger: func(module string) *slog.Logger { return env.Logger(module) },
			Log:    logTable{env.Vlog(), flags},
			Listen: env.AdoptOrListen, Release: env.Release,
			Reload: env.Reload(), Reloaded: env.Reloaded, Runner: commandRunner{env.Logger("events")},
			Ready: ready(env), Exit: env.Exit, Restart: env.Restart,
			Restarting: env.Restarting, HandOver: env.HandOver, Conns: conns(env), MonitorGone: env.MonitorGone(),
			Status: env.Status, Extend: env.Extend, OnDump: env.OnDump,
			Vlog: env.Vlog(), Coverage: env.Coverage(), Memory: env.Memory(),
		}
		if env.ControlPath() != "" {
			o.Control = func(open func(string) (net.Listener, error)) (net.Listener, error) { return env.Control(open) }
		}
		err := server.Main(ctx, o)
		if _, ok := errors.AsType[*server.ConfigError](err); ok {
			return &daemon.ConfigError{Err: err}
		}
		if l, ok := errors.AsType[*store.LockedError](err); ok {
			return &daemon.RunningError{Err: l}
		}
		return err
	}
}

// conns returns the NBD connections that the process before handed over.
func conns(env *daemon.Env) func() []server.Conn {
	return func() []server.Conn {
		var out []server.Conn
		for _, c := range env.Conns() {
			out = append(out, server.Conn(c))
		}
		return out
	}
}

// ready says that the daemon serves. From then on the service manager's
// watchdog is fed for as long as commands are answered: the probe takes the
// way that a user's command takes. Without a control socket there is no such
// way, and that the process lives has to do.
func ready(env *daemon.Env) func() error {
	return func() error {
		if err := env.Ready(); err != nil {
			return err
		}
		env.Watchdog(func(ctx context.Context) error {
			if env.ControlPath() == "" {
				return nil
			}
			return control.Probe(ctx, env.ControlPath())
		})
		return nil
	}
}
