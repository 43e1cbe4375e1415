package ctl

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepd/lockstep/ctl/top"
	"github.com/lockstepd/lockstep/rpc/api"
)

func (a *app) topCommand() *cobra.Command {
	return a.command(verb{
		use: "top", short: "watch nodes, devices, rates and latencies on a full screen",
		long: "Shows nodes, devices, rates, latencies and resyncs on the whole terminal, fresh every\nsecond. Press ? for the keys, q to leave.",
		do:   "show the full screen", example: "lockstepctl top",
		run: a.top,
	})
}

// Full-screen control: another screen, no cursor; and back.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l\x1b[2J"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
)

// look is one look at the daemon.
type look struct {
	at      time.Time
	status  api.Status
	details []api.DeviceDetail
	err     error
}

// top runs the full screen until the user leaves it. The daemon must be there
// at the beginning; later it may come and go.
func (a *app) top(ctx context.Context, _ []string) error {
	if a.OutTerm == nil || a.Keyboard == nil || a.json() {
		return badArgument("top needs a terminal; for programs there is: lockstepctl -f json status --watch")
	}
	interrupted, stop := a.Interrupts(ctx)
	defer stop()
	ctx, cancel := a.deadline(interrupted, 0)
	defer cancel()
	k, err := a.keep(ctx, keeping{lost: func() {}}) // the next look will tell
	if err != nil {
		return err
	}
	defer k.stop()
	first := a.glance(k, nil)
	if first.err != nil {
		return first.err
	}
	keyboard, err := a.Keyboard()
	if err != nil {
		return fmt.Errorf("the terminal can't be taken over: %w", err)
	}
	defer keyboard.Close()
	if err := a.print(enterScreen); err != nil {
		return err
	}
	defer a.print(leaveScreen)
	err = a.screen(k, keyboard, first)
	if interrupted.Err() != nil {
		return nil
	}
	return err
}

// screen is the loop of the full screen. Looks are taken by a goroutine of
// their own, so that keys are answered while the daemon is not.
func (a *app) screen(k *keeper, keyboard Keyboard, first look) error {
	ctx, cancel := context.WithCancel(k.ctx)
	wanted, looks, ended := make(chan []string), make(chan look), make(chan struct{})
	go func() {
		defer close(ended)
		a.looker(ctx, k, wanted, looks)
	}()
	defer func() { k.stop(); cancel(); <-ended }() // a look that hangs ends with its connection

	var m top.Model
	take(&m, first)
	tick := time.NewTicker(refresh)
	defer tick.Stop()
	idle := true // the looker is
	for {
		o := a.look()
		o.Width, o.Height = max(o.Width, 20), max(o.Height, 5)
		if err := a.print("\x1b[H" + padded(m.View(o))); err != nil {
			return err
		}
		select {
		case k, ok := <-keyboard.Keys():
			if !ok || m.Key(k, o) {
				return nil
			}
		case <-keyboard.Resized():
			if err := a.print("\x1b[2J"); err != nil {
				return err
			}
		case <-tick.C:
			if idle {
				idle = !ask(ctx, wanted, m.Visible(o))
			}
		case l := <-looks:
			idle = true
			take(&m, l)
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// ask sends the looker, which is idle, to work; false when it is gone.
func ask(ctx context.Context, wanted chan<- []string, devices []string) bool {
	select {
	case wanted <- devices:
		return true
	case <-ctx.Done():
		return false
	}
}

// take gives a look to the model.
func take(m *top.Model, l look) {
	if l.err != nil {
		m.Note(cleanError(l.err))
		return
	}
	m.Status(l.status)
	for _, d := range l.details {
		m.Detail(d, l.at)
	}
}

// padded makes every line of a screen clear what it leaves of the old one.
func padded(screen string) string {
	var b []byte
	for i := range len(screen) {
		if screen[i] == '\n' {
			b = append(b, "\x1b[K\r"...)
		}
		b = append(b, screen[i])
	}
	return string(b) + "\x1b[K"
}

// looker takes a look at the daemon for every list of devices it is given,
// until ctx ends.
func (a *app) looker(ctx context.Context, k *keeper, wanted <-chan []string, looks chan<- look) {
	for {
		var devices []string
		select {
		case devices = <-wanted:
		case <-ctx.Done():
			return
		}
		select {
		case looks <- a.glance(k, devices):
		case <-ctx.Done():
			return
		}
	}
}

// glance takes one look, with the details of some devices. While there is no
// connection it says why; a look that hangs costs its connection.
func (a *app) glance(k *keeper, devices []string) (l look) {
	c, err := connection(k)
	if err != nil {
		return look{err: err}
	}
	ctx, cancel := context.WithTimeoutCause(k.ctx, lookTime, errTimeout{lookTime})
	defer cancel()
	if err := c.Call(ctx, "status", api.DeviceParams{}, &l.status); err != nil {
		return look{err: a.failed(ctx, c, err)}
	}
	for _, name := range devices {
		var d api.DeviceDetail
		if c.Call(ctx, "device/show", api.DeviceParams{Device: name}, &d) == nil {
			l.details = append(l.details, d) // one that just went away is not worth a word
		}
	}
	l.at = time.Now()
	return l
}

// connection is the one there is, or that comes before the screen is due.
func connection(k *keeper) (Client, error) {
	ctx, cancel := context.WithTimeout(k.ctx, refresh)
	defer cancel()
	return k.Client(ctx)
}

// lookTime bounds one look.
const lookTime = 5 * time.Second
