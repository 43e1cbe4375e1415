package control

import (
	"context"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
)

func (c *Control) status(_ context.Context, _ rpc.Actor, p api.DeviceParams) (api.Status, error) {
	return c.snapshot(p.Device)
}

// snapshot gathers the status. The revision is read first: what changes while
// the rest is gathered makes the next one differ.
func (c *Control) snapshot(dev string) (api.Status, error) {
	rev := c.o.Revision.Current()
	t := c.o.Messenger.GetTick()
	st := api.Status{
		Node: c.o.Node, ID: c.o.ID, Version: c.o.Version, Revision: rev,
		TickTimeMS: t.Tick.Milliseconds(), MaxPingCount: t.Pings, Nodes: c.nodes(), Devices: []api.Device{},
	}
	cfg := c.o.Reload.Status()
	st.ConfigRevision = cfg.Revision
	if cfg.Err != nil {
		st.ConfigError = cfg.Err.Error()
	}
	for _, s := range c.o.Reload.Overrides() {
		st.Overrides = append(st.Overrides, api.ConfigOverride{Key: s.Path, Value: s.Value, File: s.File})
	}
	sts, err := c.deviceStatuses(dev)
	if err != nil {
		return st, err
	}
	for i := range sts {
		st.Devices = append(st.Devices, deviceOf(&sts[i]))
	}
	st.Health, st.Problems = health(st.Nodes, sts, cfg.Err, c.monitorGone())
	return st, nil
}

// Summary is what the status says of the whole: its health, and why.
func (c *Control) Summary() (health string, problems []api.Problem) {
	st, err := c.snapshot("")
	if err != nil {
		return "unknown", []api.Problem{{Subject: "status", What: err.Error()}}
	}
	return st.Health, st.Problems
}

func (c *Control) statusWait(ctx context.Context, _ rpc.Actor, p api.StatusWaitParams) (api.Status, error) {
	if _, err := c.o.Revision.Wait(ctx, p.Revision); err != nil && ctx.Err() == nil {
		return api.Status{}, err
	}
	return c.snapshot("")
}

// monitorGone reports whether the daemon had a monitor that is no more.
func (c *Control) monitorGone() bool {
	select {
	case <-c.o.MonitorGone:
		return true
	default:
		return false
	}
}
