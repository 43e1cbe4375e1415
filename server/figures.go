package server

import (
	"context"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/metrics"
	"github.com/lockstepd/lockstep/server/reload"
	"github.com/lockstepd/lockstep/server/service"
)

// newMetrics makes the metrics of a running engine. The control part is there
// or will never be.
func (e *engine) newMetrics() (*metrics.Metrics, error) {
	s := metrics.Sources{
		Version: e.opts.Version, Nodes: e.msgr.Nodes, Tick: func() time.Duration { return e.msgr.GetTick().Tick },
		Devices: e.deviceStatuses, NBD: e.nbd.Stats, Services: e.services.List, Handlers: e.handlers.Stats, Events: e.events.Newest, Counts: e.events.Counts,
		Config: func() metrics.Config {
			st := e.conf.Status()
			return metrics.Config{Revision: st.Revision, Applied: st.Err == nil, Pending: len(st.Pending)}
		},
	}
	if e.control != nil {
		s.Commands = e.control.Commands
	}
	return metrics.New(s)
}

func (e *engine) deviceStatuses() []device.Status {
	all := e.devices.All()
	out := make([]device.Status, len(all))
	for i, d := range all {
		out[i] = d.Status()
	}
	return out
}

// metricsService is the listener for scrapes.
type metricsService struct {
	e  *engine
	m  *metrics.Metrics
	at string
	l  atomic.Pointer[door]
}

const metricsHold = "metrics"

// Start listens.
func (s *metricsService) Start(context.Context) error {
	l, err := s.e.opts.Listen(metricsHold+":"+s.at, func() (net.Listener, error) { return net.Listen("tcp", s.at) })
	if err != nil {
		return fmt.Errorf("cannot listen for scrapes of the metrics on %s: %w", s.at, err)
	}
	s.l.Store(&door{Listener: l})
	return nil
}

// Health says why no scrape gets in, or went wrong.
func (s *metricsService) Health() error {
	if err := s.l.Load().health(); err != nil {
		return err
	}
	return s.m.Health()
}

// Stats counts scrapes.
func (s *metricsService) Stats() map[string]any {
	out := s.l.Load().stats()
	if out == nil {
		return nil
	}
	n := s.m.Scrapes()
	out["scrapes"], out["scrapes_failed"] = n.All, n.Failed
	return out
}

// Run serves until ctx ends.
func (s *metricsService) Run(ctx context.Context) error {
	err := s.m.Serve(ctx, s.l.Load())
	if !s.e.ending.Load() && s.e.opts.Release != nil {
		s.e.opts.Release(metricsHold + ":" + s.at)
	}
	return err
}

func (e *engine) metricsSpec(at string) service.Spec {
	s := &metricsService{e: e, m: e.figures, at: at}
	e.scrapes = s
	return service.Spec{ID: id("metrics"), Service: s, Needs: ids("messenger", "nbd"), Stoppable: true, Contained: true, Policy: service.Policy{Restart: true}}
}

// applyMetrics listens for scrapes where the configuration says so, or nowhere.
func (e *engine) applyMetrics(ctx context.Context, to *config.Local) error {
	if e.scrapes != nil {
		if e.scrapes.at == to.Metrics.Listen {
			return nil
		}
		if err := e.end(ctx, "metrics"); err != nil {
			return &reload.KeyError{Key: "metrics.listen", Err: err}
		}
		e.scrapes = nil
	}
	if to.Metrics.Listen == "" {
		return nil
	}
	if err := e.begin(ctx, e.metricsSpec(to.Metrics.Listen)); err != nil {
		e.scrapes = nil
		return &reload.KeyError{Key: "metrics.listen", Err: err}
	}
	return nil
}

// attach shows the engine's counters among the daemon's.
func (e *engine) attach() {
	if c := e.opts.Coverage; c != nil {
		c.Attach("nbd_accepted", func() uint64 { return e.nbd.Stats().Accepted })
		c.Attach("nbd_refused", func() uint64 { return e.nbd.Stats().Refused })
		c.Attach("events", e.events.Newest)
		c.Attach("config_revisions", func() uint64 { return e.conf.Status().Revision })
	}
	if m := e.opts.Memory; m != nil {
		m.Attach("devices", func() uint64 { return uint64(len(e.devices.All())) })
		m.Attach("nbd-connections", func() uint64 { return uint64(len(e.nbd.Stats().Connections)) })
		m.Attach("nbd-buffers", func() uint64 { return uint64(e.nbd.Stats().Buffers) })
		m.Attach("link-queued-bytes", func() uint64 {
			return sum(e.msgr.Nodes(), func(n *messenger.NodeInfo) uint64 { return uint64(n.Data.QueuedBytes + n.Meta.QueuedBytes) })
		})
		m.Attach("link-held-bytes", func() uint64 {
			return sum(e.msgr.Nodes(), func(n *messenger.NodeInfo) uint64 { return uint64(n.Data.HeldBytes + n.Meta.HeldBytes) })
		})
		m.Attach("cmap-keys", func() uint64 { return uint64(e.cmap.Len()) })
	}
}

func sum(nodes []messenger.NodeInfo, of func(*messenger.NodeInfo) uint64) (total uint64) {
	for i := range nodes {
		total += of(&nodes[i])
	}
	return total
}
