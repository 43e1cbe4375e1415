package server

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/reload"
	"github.com/lockstepd/lockstep/server/service"
)

// What is here looks, once a configuration was applied, whether it is so. It
// asks those who do the work, not those who were told to have it done.

// serves reports why a service of the configuration does not do its work. One
// that was stopped by command stays so, and one that had failed before is no
// reason to refuse a change.
func (e *engine) serves(name string, began time.Time) error {
	i, err := e.services.Show(id(name).String())
	switch {
	case err != nil:
		return err
	case i.State == service.Failed && i.Since.After(began):
		return fmt.Errorf("service %s has failed: %s", name, i.LastError)
	}
	return nil
}

// unlike names the first of two sets that differ, "" where there is none.
func unlike(have, want []string) string {
	for _, w := range want {
		if !slices.Contains(have, w) {
			return w + " is not there"
		}
	}
	for _, h := range have {
		if !slices.Contains(want, h) {
			return h + " is there still"
		}
	}
	return ""
}

func (e *engine) verifyHandlers(to *config.Local, _ time.Time) error {
	have := e.handlers.Stats()
	if len(have) != len(to.Handlers) {
		return fmt.Errorf("%d handlers are there, %d are configured", len(have), len(to.Handlers))
	}
	for i, h := range to.Handlers {
		if have[i].Event != h.Event || !slices.Equal(have[i].Command, h.Command) {
			return &reload.KeyError{Key: fmt.Sprintf("handler.%d", i+1), Err: fmt.Errorf("handler %d runs %q on %s", i+1, have[i].Command, have[i].Event)}
		}
	}
	return nil
}

func (e *engine) verifyRemotes(to *config.Local, began time.Time) error {
	if e.control == nil {
		return nil
	}
	for _, at := range to.Control.Addresses() {
		if err := e.serves(remoteName(at), began); err != nil {
			return &reload.KeyError{Key: "control.listen", Err: err}
		}
	}
	return nil
}

func (e *engine) verifyAddress(to *config.Local, _ time.Time) error {
	if at := to.Node.ListenAddress(); !listensAt(e.msgr.Addr(), at) {
		return &reload.KeyError{Key: "node." + to.Node.Name + ".address", Err: fmt.Errorf("it listens at %s, not at %s", e.msgr.Addr(), at)}
	}
	return nil
}

func (e *engine) verifyNodes(to *config.Local, _ time.Time) error {
	var want, have []string
	text := func(p messenger.Peer) string { return fmt.Sprintf("node %s (id %d) at %s", p.Name, p.ID, p.Address) }
	for _, n := range to.Peers {
		want = append(want, text(peerOf(to.Node, n)))
	}
	for _, n := range e.msgr.Nodes() {
		have = append(have, text(messenger.Peer{Name: n.Name, ID: n.ID, Address: n.Address}))
	}
	if why := unlike(have, want); why != "" {
		return fmt.Errorf("%s", why)
	}
	return nil
}

func (e *engine) verifyDevices(to *config.Local, began time.Time) error {
	specs, listeners, err := e.wanted(to)
	if err != nil {
		return err
	}
	if why := unlike(slices.Sorted(maps.Keys(e.disks)), slices.Sorted(maps.Keys(specs))); why != "" {
		return fmt.Errorf("device %s", why)
	}
	if why := unlike(slices.Sorted(maps.Keys(e.listeners)), slices.Sorted(maps.Keys(listeners))); why != "" {
		return fmt.Errorf("listener %s", why)
	}
	for name, spec := range specs {
		if d := e.disks[name].dev.Load(); d != nil { // nil where it was stopped by command
			if got := d.Status(); got.Protocol != spec.Config.Protocol || got.OnNoQuorum != spec.Config.OnNoQuorum || got.Policy != spec.Config.Quorum {
				return &reload.KeyError{Key: "device." + name, Err: fmt.Errorf("it runs by protocol %v and quorum %v", got.Protocol, got.Policy)}
			}
		}
	}
	for name := range listeners {
		if err := e.serves(name, began); err != nil {
			return &reload.KeyError{Key: "device." + e.listeners[name].device + ".nbd", Err: err}
		}
	}
	return nil
}

func (e *engine) verifyMetrics(to *config.Local, began time.Time) error {
	if to.Metrics.Listen == "" {
		return nil
	}
	if err := e.serves("metrics", began); err != nil {
		return &reload.KeyError{Key: "metrics.listen", Err: err}
	}
	return nil
}

func (e *engine) verifyTick(to *config.Local, _ time.Time) error {
	t := e.msgr.GetTick()
	if t.Pings != to.Cluster.MaxPingCount {
		return &reload.KeyError{Key: "cluster.max_ping_count", Err: fmt.Errorf("it is %d", t.Pings)}
	}
	if t.Tick != to.Cluster.TickTime && t.Target != to.Cluster.TickTime {
		return &reload.KeyError{Key: "cluster.tick_time", Err: fmt.Errorf("it is %v", t.Tick)}
	}
	return nil
}
