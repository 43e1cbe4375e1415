package ctl

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

// eventFilter is what of the event stream is wanted.
type eventFilter struct {
	types, nodes, devices []string
	after                 uint64
	count                 uint64
}

// wants reports whether an event passes; the daemon has sorted out types.
func (f *eventFilter) wants(e api.Event) bool {
	return (len(f.nodes) == 0 || slices.Contains(f.nodes, e.Node)) &&
		(len(f.devices) == 0 || slices.Contains(f.devices, e.Device)) &&
		(len(f.types) == 0 || slices.Contains(f.types, e.Type))
}

func (a *app) eventsCommand() *cobra.Command {
	var f eventFilter
	return a.command(verb{
		use: "events", short: "show events as they happen",
		long: `Shows events as they happen, until interrupted: nodes going up and down, roles,
disks, replication, quorum, resyncs, configuration, services. With -f json, one
object a line. A lost connection is made again and the events of the meantime are
shown, or it is said how many were missed.`,
		do: "follow the events", example: "lockstepctl events --type nodedown --type quorum",
		flags: func(fs *pflag.FlagSet) {
			fs.StringSliceVar(&f.types, "type", nil, "only events of this `TYPE`; may be repeated")
			fs.StringSliceVar(&f.nodes, "node", nil, "only events about this `NODE`; may be repeated")
			fs.StringSliceVar(&f.devices, "device", nil, "only events about this `DEVICE`; may be repeated")
			fs.Uint64Var(&f.after, "after", 0, "begin after the event with this `NUMBER`, as far as it is kept")
			fs.Uint64Var(&f.count, "count", 0, "end after `N` events")
		},
		flagWords: map[string]completer{"type": eventTypes, "node": completeNodes, "device": completeDevices},
		run:       func(ctx context.Context, _ []string) error { return a.events(ctx, f) },
	})
}

// events shows the event stream. last is the number of the newest event that
// was seen or could have been: where a new subscription begins.
func (a *app) events(ctx context.Context, f eventFilter) error {
	last, shown, stream := f.after, uint64(0), ""
	begin := func(raw json.RawMessage) error {
		var sub api.Subscribed
		if err := json.Unmarshal(raw, &sub); err != nil {
			return a.notUnderstood("events/subscribe", err)
		}
		another := stream != "" && sub.Stream != stream || sub.Seq < last
		last, stream = a.begun(last, another, sub), sub.Stream
		return nil
	}
	on := func(method string, raw json.RawMessage) (bool, error) {
		if method == "lost" {
			to := lostTo(raw)
			if to > 0 && to <= last {
				return true, nil // told when the subscription began
			}
			last = max(last, to)
			return true, a.showLost(raw)
		}
		var e api.Event
		if method != "event" {
			return true, nil
		} else if err := json.Unmarshal(raw, &e); err != nil {
			return false, a.notUnderstood(method, err)
		}
		if e.Seq <= last || !f.wants(e) {
			last = max(last, e.Seq)
			return true, nil
		}
		last = e.Seq
		shown++
		return shown != f.count, a.show(method, raw, as(render.Event))
	}
	return a.follow(ctx, subscription{
		method: "events/subscribe",
		params: func() any { return api.Subscribe{Types: f.types, After: last, Stream: stream} },
		begun:  begin, resumed: begin, on: on,
	})
}

// begun tells what was missed before a subscription, and returns the number of
// the last event that it will not bring. In another stream than that of last,
// one of the daemon's next life, it brings all there is.
func (a *app) begun(last uint64, another bool, sub api.Subscribed) uint64 {
	switch {
	case another:
		fmt.Fprintln(a.Err, "the daemon was restarted; what it noted just before may be in its log only")
		last = 0
	case last == 0:
		return sub.Seq
	}
	if sub.Missed > 0 {
		fmt.Fprintln(a.Err, render.Lost(api.Lost{Count: sub.Missed, From: last + 1, To: last + sub.Missed}))
	}
	return last + sub.Missed
}

// lostTo is the number of the last event that a "lost" stands for.
func lostTo(raw json.RawMessage) uint64 {
	var l api.Lost
	_ = json.Unmarshal(raw, &l) // what can't be read is shown as an error by showLost
	return l.To
}

// showLost tells how many notifications we were too slow to take.
func (a *app) showLost(raw json.RawMessage) error {
	var l api.Lost
	if err := json.Unmarshal(raw, &l); err != nil {
		return a.notUnderstood("lost", err)
	}
	_, err := fmt.Fprintln(a.Err, render.Lost(l))
	return err
}
