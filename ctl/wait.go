package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

// waitStates are what can be waited for.
var waitStates = [...]string{api.WaitUpToDate, api.WaitConnected, api.WaitSynced, api.WaitPrimary}

func (a *app) deviceWait() *cobra.Command {
	var state string
	return a.command(verb{
		use: "wait DEVICE [STATE]", short: "wait until a device is in a state",
		long: `Waits until the device is in the state, showing how far a resync is: as a bar on a
terminal, as lines elsewhere, not at all with -q. Interrupting it stops the waiting,
not the resync.`,
		args: []string{
			"DEVICE", argDevice,
			"STATE", `uptodate (this node's disk), connected (to every peer), synced (connected, nothing out of sync, and every vote back that was given up by a stop in order; the default), primary (here)`,
		},
		do: "wait for %s", example: "lockstepctl device wait r0 synced\nlockstepctl -T 60 -q device wait r0 uptodate && start-my-database",
		complete: completeDeviceThenState, flagWords: map[string]completer{"for": words(waitStates[:]...)},
		flags: func(f *pflag.FlagSet) {
			f.StringVar(&state, "for", "", "the `STATE` to wait for, in place of the argument")
		},
		run: func(ctx context.Context, args []string) error {
			if s := arg(args, 1); s != "" && state != "" && s != state {
				return badArgument("the state is given twice, and differently")
			} else if s != "" {
				state = s
			}
			if state == "" {
				state = api.WaitSynced
			}
			if !slices.Contains(waitStates[:], state) {
				return badArgument(fmt.Sprintf("%q cannot be waited for; the states are %s", state, strings.Join(waitStates[:], ", ")))
			}
			return a.wait(ctx, args[0], state)
		},
	})
}

func (a *app) deviceVerify() *cobra.Command {
	var stop bool
	return a.longVerb("verify", "compare the data with the peers'",
		"Compares every block of the device with the peers' while it is in use. Blocks that\ndiffer are marked out of sync and not changed: device resync mends them, and\noverwrites the peer's with the primary's.",
		func(f *pflag.FlagSet) {
			f.BoolVar(&stop, "stop", false, "stop a verify that was begun on this node")
		},
		func(device, node string) (any, bool) {
			return api.DeviceVerifyParams{Device: device, Node: node, Stop: stop}, !stop
		})
}

func (a *app) deviceResync() *cobra.Command {
	var pause bool
	return a.longVerb("resync", "bring blocks that are out of sync up to date, or pause that",
		"Starts or resumes the resync of every block that is marked out of sync. With --pause a\nresync stops until it is asked for again; new writes go on being replicated.",
		func(f *pflag.FlagSet) {
			f.BoolVar(&pause, "pause", false, "stop the resync for now, and don't wait")
		},
		func(device, node string) (any, bool) {
			return api.DeviceResyncParams{Device: device, Node: node, Pause: pause}, !pause
		})
}

// longVerb is a verb that starts work and, where params says so, stays to show
// how far it is.
func (a *app) longVerb(name, short, long string, more func(*pflag.FlagSet), params func(device, node string) (p any, stay bool)) *cobra.Command {
	var node string
	var noWait bool
	return a.command(verb{
		use: name + " DEVICE", short: short,
		long: long + "\nShows how far it is until it is done. Interrupting that leaves the work running.",
		args: []string{"DEVICE", argDevice},
		do:   name + " %s", example: "lockstepctl device " + name + " r0", complete: completeDevices,
		flags: func(f *pflag.FlagSet) {
			f.StringVar(&node, "node", "", "with this `NODE` only")
			f.BoolVar(&noWait, "no-wait", false, "return as soon as it has begun")
			more(f)
		},
		flagWords: map[string]completer{"node": completeNodes},
		run: func(ctx context.Context, args []string) error {
			p, stay := params(args[0], node)
			raw, err := a.call(ctx, "device/"+name, p)
			if err != nil {
				return err
			}
			if err := a.show("device/"+name, raw, a.confirmation); err != nil || noWait || !stay {
				return err
			}
			return a.waitIdle(ctx, args[0], name)
		},
	})
}

// wait waits for a state with device/wait, whose word counts, and meanwhile
// shows the progress.
func (a *app) wait(ctx context.Context, device, state string) error {
	return a.patiently(ctx, device, "device wait "+device+" "+state, func(ctx context.Context, c Client, p *progress) (bool, error) {
		raw, err := a.waitAnswer(ctx, c, device, state, p)
		if err != nil {
			return false, err
		}
		p.finish()
		if a.opts.quiet {
			return true, nil
		}
		return true, a.show("device/wait", raw, func(render.Options, json.RawMessage) (string, error) {
			return fmt.Sprintf("%s is %s\n", device, stateWord(state)), nil
		})
	})
}

func stateWord(state string) string {
	switch state {
	case api.WaitUpToDate:
		return "up to date"
	case api.WaitSynced:
		return "in sync"
	}
	return state
}

// waitAnswer asks device/wait, and shows the progress until it answers.
func (a *app) waitAnswer(ctx context.Context, c Client, device, state string, p *progress) (json.RawMessage, error) {
	params := api.DeviceWaitParams{Device: device, For: state}
	if end, ok := ctx.Deadline(); ok {
		params.TimeoutMS = max(time.Until(end).Milliseconds(), 1)
	}
	type answer struct {
		raw json.RawMessage
		err error
	}
	answered := make(chan answer, 1)
	go func() {
		var r answer
		r.err = c.Call(ctx, "device/wait", params, &r.raw)
		answered <- r
	}()
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	for {
		select {
		case r := <-answered:
			if r.err != nil {
				return nil, a.failed(ctx, c, r.err)
			}
			return r.raw, nil
		case <-tick.C:
			if d, err := a.deviceNow(ctx, c, device); err == nil {
				p.show(d)
			}
		}
	}
}

// waitIdle waits until no resync or verify of the device runs.
func (a *app) waitIdle(ctx context.Context, device, work string) error {
	return a.patiently(ctx, device, "device wait "+device+" synced", func(ctx context.Context, c Client, p *progress) (bool, error) {
		for again := false; ; {
			d, err := a.deviceNow(ctx, c, device)
			if err != nil {
				return false, err
			}
			idle := !working(d)
			if idle && (again || !unsettled(d)) {
				p.finish()
				a.remark("%s: %s done, %s out of sync", device, work, render.Bytes(outOfSync(d)))
				return true, nil
			}
			again = idle
			p.show(d)
			if !sleep(ctx, refresh) {
				return false, ctx.Err()
			}
		}
	})
}

// working reports whether a resync or verify runs, or is paused and will go on.
func working(d api.Device) bool {
	return slices.ContainsFunc(d.Peers, func(p api.DevicePeer) bool {
		return p.Resync != nil || strings.HasPrefix(p.Replication, "Sync") ||
			strings.HasPrefix(p.Replication, "Verify") || strings.HasPrefix(p.Replication, "PausedSync")
	})
}

// unsettled reports whether two nodes may be about to agree on what comes next,
// which takes them a moment.
func unsettled(d api.Device) bool {
	return slices.ContainsFunc(d.Peers, func(p api.DevicePeer) bool { return p.Replication == "Off" && p.OutOfSync > 0 })
}

func outOfSync(d api.Device) (n int64) {
	for _, p := range d.Peers {
		n += p.OutOfSync
	}
	return n
}

// deviceNow is the device's present state.
func (a *app) deviceNow(ctx context.Context, c Client, device string) (api.Device, error) {
	var s api.Status
	if err := c.Call(ctx, "status", api.DeviceParams{Device: device}, &s); err != nil {
		return api.Device{}, a.failed(ctx, c, err)
	}
	for _, d := range s.Devices {
		if d.Name == device {
			return d, nil
		}
	}
	return api.Device{}, fmt.Errorf("there is no device %s any more; see: lockstepctl device list", device)
}

// patiently runs a wait over as many connections as it takes. back is the
// command that takes the wait up again.
func (a *app) patiently(ctx context.Context, device, back string, do func(context.Context, Client, *progress) (bool, error)) error {
	ctx, stop := a.Interrupts(ctx)
	defer stop()
	limited, cancel := a.deadline(ctx, 0)
	defer cancel()
	p := a.progress()
	k, err := a.keep(limited, keeping{lost: func() { p.note(fmt.Sprintf("lost the connection to %s; trying again", a.target())) }})
	if err != nil {
		return err
	}
	defer k.stop()
	for {
		done, err := a.once(k, p, do)
		switch {
		case done:
			return err
		case ctx.Err() != nil:
			p.finish()
			if p.quiet && a.ErrTerm != nil {
				fmt.Fprintln(a.Err) // the terminal shows a ^C
			}
			a.say(fmt.Sprintf("interrupted; what runs on %s goes on. Come back to it with: lockstepctl %s", device, back))
			return errSaid
		case limited.Err() != nil:
			p.finish()
			return fmt.Errorf("%w; take it up again with: lockstepctl %s", context.Cause(limited), back)
		case k.ctx.Err() != nil:
			p.finish()
			return context.Cause(k.ctx)
		case !transient(err):
			p.finish()
			return err
		}
		sleep(limited, moment)
	}
}

// once is one connection's part of a wait.
func (a *app) once(k *keeper, p *progress, do func(context.Context, Client, *progress) (bool, error)) (bool, error) {
	c, err := k.Client(k.ctx)
	if err != nil {
		return false, err
	}
	return do(k.ctx, c, p)
}

// progress shows how far work is on standard error: as one line that is
// redrawn on a terminal, as lines of news elsewhere, not at all with -q.
type progress struct {
	w     io.Writer
	term  Terminal // nil: lines
	quiet bool

	// mu guards what follows, and the order of what is written.
	mu    sync.Mutex
	drawn bool
	last  string
}

func (a *app) progress() *progress {
	return &progress{w: a.Err, term: a.ErrTerm, quiet: a.opts.quiet}
}

// show shows a device's progress.
func (p *progress) show(d api.Device) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.quiet:
	case p.term != nil:
		width, _ := p.term.Size()
		fmt.Fprint(p.w, "\r\x1b[K"+render.DeviceProgress(width-len("^C")-1, d))
		p.drawn = true
	default:
		if step := render.ProgressStep(d); step != p.last {
			p.last = step
			fmt.Fprintln(p.w, render.DeviceProgress(0, d))
		}
	}
}

// note shows a sentence, once while it is the latest.
func (p *progress) note(s string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.quiet || p.last == s {
		return
	}
	p.finishLocked()
	p.last = s
	fmt.Fprintln(p.w, s)
}

// finish leaves the line that was redrawn.
func (p *progress) finish() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finishLocked()
}

func (p *progress) finishLocked() {
	if p.drawn {
		fmt.Fprintln(p.w)
		p.drawn = false
	}
}
