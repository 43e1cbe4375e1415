package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"

	"github.com/lockstepd/lockstep/daemon"
	"github.com/lockstepd/lockstep/daemon/process"
	"github.com/lockstepd/lockstep/daemon/vlog"
	"github.com/lockstepd/lockstep/server"
	"github.com/lockstepd/lockstep/server/events"
)

// logTable puts the [log] table into effect in the daemon's log. What the
// command line says holds until the table changes.
type logTable struct {
	log   *vlog.Vlog
	flags daemon.Flags
}

// Apply implements server.Log.
func (t logTable) Apply(s server.LogSettings, start bool) error {
	if start && len(t.flags.Verbose) > 0 {
		s.Level = ""
	}
	if s.Level != "" {
		if err := t.log.Set(t.specs(s.Level)...); err != nil {
			return err
		}
	}
	if s.Format != "" {
		if err := t.log.SetFormat(s.Format); err != nil {
			return err
		}
	}
	if start && (t.flags.LogFile.Set || s.File == "") || s.File == t.log.FilePath() {
		return nil
	}
	if s.File == "" {
		if err := t.log.CloseFile(); err != nil && !errors.Is(err, vlog.ErrNoFile) {
			return err
		}
		return nil
	}
	return t.log.OpenFile(s.File)
}

// specs set a level everywhere but on a console that is off: in the background
// nobody is there to read it.
func (t logTable) specs(level string) []string {
	word, ok := map[string]string{"debug": "dbg", "info": "info", "warn": "warn", "error": "err"}[level]
	if !ok {
		word = level
	}
	out := []string{"syslog:" + word, "file:" + word}
	if slices.ContainsFunc(t.log.List(), func(m vlog.ModuleLevels) bool { return m.Console != vlog.Off.String() }) {
		out = append(out, "console:"+word)
	}
	return out
}

// commandRunner runs the commands of handlers as supervised children.
type commandRunner struct{ log *slog.Logger }

// Run implements events.Runner.
func (r commandRunner) Run(ctx context.Context, c events.Command) (events.Result, error) {
	path := os.Getenv("PATH")
	exit, err := process.Run(ctx, process.Spec{
		Argv: c.Argv, Env: append([]string{"PATH=" + path}, c.Env...), Stdin: c.Stdin, Logger: r.log,
	})
	if err != nil {
		return events.Result{Status: -1}, err
	}
	if ctx.Err() != nil {
		return events.Result{Status: -1, Text: "ended"}, context.Cause(ctx)
	}
	res := events.Result{Status: exit.Code, Text: fmt.Sprintf("exit status %d", exit.Code)}
	if exit.Signal != 0 {
		res = events.Result{Status: -1, Text: fmt.Sprintf("killed by %v", exit.Signal)}
	}
	return res, nil
}
