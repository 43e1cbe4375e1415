package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

func (a *app) statusCommand() *cobra.Command {
	var watch, check bool
	return a.command(verb{
		use: "status [DEVICE]", short: "show in one screen how everything is",
		long: `Shows health, peers, devices, running resyncs, and of everything that is wrong what
to do about it. With --watch it stays and shows changes; with --check it says in a
sentence whether all is well, and the exit status tells scripts.`,
		args: []string{"DEVICE", "show this device alone"},
		do:   "show the status", example: "lockstepctl status\nlockstepctl status --check || page-somebody",
		exits: []int{exitUnhealthy}, complete: completeDevices,
		flags: func(f *pflag.FlagSet) {
			f.BoolVarP(&watch, "watch", "w", false, "stay, and show every change")
			f.BoolVar(&check, "check", false, "exit with 5 when not healthy")
		},
		run: func(ctx context.Context, args []string) error {
			switch {
			case watch && check:
				return badArgument("--watch and --check exclude each other")
			case watch:
				return a.watch(ctx, args)
			case check:
				return a.check(ctx, args)
			}
			return a.ask("status", deviceParams, as(render.Status))(ctx, args)
		},
	})
}

// check prints whether all is well, and makes the exit status say so too.
func (a *app) check(ctx context.Context, args []string) error {
	params, _ := deviceParams(args)
	raw, err := a.call(ctx, "status", params)
	if err != nil {
		return err
	}
	var s api.Status
	if err := json.Unmarshal(raw, &s); err != nil {
		return a.notUnderstood("status", err)
	}
	if a.json() || !a.opts.quiet {
		if err := a.show("status", raw, as(render.Check)); err != nil {
			return err
		}
	}
	if s.Health != "ok" {
		return errUnhealthy
	}
	return nil
}

// watch shows the status again whenever it has changed, until interrupted. A
// terminal is redrawn each second; elsewhere each revision is printed once.
func (a *app) watch(ctx context.Context, args []string) error {
	ctx, stop := a.Interrupts(ctx)
	defer stop()
	limited, cancel := a.deadline(ctx, 0)
	defer cancel()
	w := watcher{app: a, device: arg(args, 0), screen: a.OutTerm != nil && !a.json()}
	err := w.run(limited)
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// watcher is a status that is followed over connections.
type watcher struct {
	*app
	device   string
	screen   bool
	revision uint64
	shown    json.RawMessage
}

// refresh is how often a screen is redrawn.
const refresh = time.Second

// run follows the status until ctx ends. The daemon must be there at the
// beginning; later it may come and go.
func (w *watcher) run(ctx context.Context) error {
	k, err := w.keep(ctx, keeping{})
	if err != nil {
		return err
	}
	defer k.stop()
	for {
		err := w.turn(k)
		switch {
		case k.ctx.Err() != nil:
			return context.Cause(k.ctx)
		case err != nil && (w.shown == nil || !transient(err)):
			return err
		case err != nil:
			w.revision = 0 // another daemon counts from the start
			sleep(k.ctx, moment)
		}
	}
}

// turn shows the status once, when there is something new.
func (w *watcher) turn(k *keeper) error {
	c, err := k.Client(k.ctx)
	if err != nil {
		return err
	}
	before := w.revision
	raw, err := w.next(k.ctx, c)
	if err != nil {
		return err
	}
	if err := w.draw(raw); err != nil {
		return err
	}
	// A wait that brought nothing new is not repeated at once: its answer may
	// come at once again.
	if w.screen || w.revision == before {
		sleep(k.ctx, refresh)
	}
	return nil
}

// next is the status now, or for those who want each revision, when it has
// changed.
func (w *watcher) next(ctx context.Context, c Client) (json.RawMessage, error) {
	var raw json.RawMessage
	var err error
	if w.screen || w.revision == 0 {
		err = c.Call(ctx, "status", api.DeviceParams{Device: w.device}, &raw)
	} else {
		err = c.Call(ctx, "status/wait", api.StatusWaitParams{Revision: w.revision}, &raw)
	}
	if hasCode(err, api.CodeTimeout) && ctx.Err() == nil {
		return w.shown, nil // nothing has changed for long; ask again
	}
	if err != nil {
		return nil, w.failed(ctx, c, err)
	}
	return raw, nil
}

// draw shows a status that was not shown yet.
func (w *watcher) draw(raw json.RawMessage) error {
	var s api.Status
	if err := json.Unmarshal(raw, &s); err != nil {
		return w.notUnderstood("status", err)
	}
	again := !w.screen && w.shown != nil && (s.Revision == w.revision || bytes.Equal(raw, w.shown))
	w.revision, w.shown = s.Revision, raw
	switch {
	case again:
		return nil
	case w.json():
		return w.printJSON(raw)
	case w.screen:
		o := w.look()
		return w.print(clearScreen + fitting(render.Status(o, w.only(s)), o.Height))
	}
	return w.print(render.Status(w.look(), w.only(s)) + "\n")
}

// only is the status of the one device that is watched, if it is one: a wait
// answers with all of them.
func (w *watcher) only(s api.Status) api.Status {
	if w.device == "" {
		return s
	}
	for _, d := range s.Devices {
		if d.Name == w.device {
			s.Devices = []api.Device{d}
			break
		}
	}
	return s
}

// fitting is as much of a text as a screen takes, the last line left empty for
// the cursor.
func fitting(text string, height int) string {
	lines := strings.SplitAfter(text, "\n")
	return strings.Join(lines[:max(min(len(lines), height-1), 0)], "")
}

// clearScreen moves home and clears what is below, so that nothing flickers.
const clearScreen = "\x1b[H\x1b[J"
