package control

import (
	"context"
	"fmt"
	"strings"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
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
	st.Health, st.Problems = health(st.Nodes, sts)
	also := func(p api.Problem) {
		st.Problems = append(st.Problems, p)
		if st.Health == "ok" {
			st.Health = "degraded"
		}
	}
	if cfg.Err != nil {
		also(api.Problem{Subject: "configuration", What: "not applied: " + firstLine(st.ConfigError), Do: "lockstepctl config check; lockstepctl config diff"})
	}
	select {
	case <-c.o.MonitorGone:
		also(api.Problem{Subject: "monitor", What: "gone: a crash would not be followed by a restart", Do: "lockstepctl restart brings another; clients do not notice"})
	default:
	}
	return st, nil
}

func (c *Control) statusWait(ctx context.Context, _ rpc.Actor, p api.StatusWaitParams) (api.Status, error) {
	if _, err := c.o.Revision.Wait(ctx, p.Revision); err != nil && ctx.Err() == nil {
		return api.Status{}, err
	}
	return c.snapshot("")
}

// health sums up what is wrong and says what to do about it.
func health(nodes []api.Node, devs []device.Status) (string, []api.Problem) {
	var ps []api.Problem
	failed := false
	for _, n := range nodes {
		if n.State != "up" {
			what := n.State
			if n.LastError != "" {
				what += ": " + n.LastError
			}
			ps = append(ps, api.Problem{Subject: "node " + n.Name, What: what, Do: "lockstepctl node why " + n.Name})
		}
	}
	for i := range devs {
		bad, more := deviceProblems(&devs[i])
		failed = failed || bad
		ps = append(ps, more...)
	}
	switch {
	case failed:
		return "failed", ps
	case len(ps) > 0:
		return "degraded", ps
	}
	return "ok", nil
}

func deviceProblems(st *device.Status) (failed bool, ps []api.Problem) {
	subject, why := "device "+st.Name, "lockstepctl device why "+st.Name
	add := func(format string, args ...any) {
		ps = append(ps, api.Problem{Subject: subject, What: fmt.Sprintf(format, args...), Do: why})
	}
	if st.Suspended {
		add("I/O is suspended: %s", st.Quorum.Why)
	} else if !st.Quorum.Quorate {
		add("no quorum: %s", st.Quorum.Why)
	}
	failed = !st.Quorum.Quorate
	if st.Disk != replication.UpToDate && st.Disk != replication.Diskless {
		add("the disk is %v", st.Disk)
	} else if st.Detached && st.LastError != "" {
		add("the disk failed: %s", st.LastError)
	} else if st.Detached {
		add("the disk is detached")
	}
	if len(st.Differs) > 0 {
		add("configured otherwise than %s, in what nodes must agree on", strings.Join(st.Differs, ", "))
	}
	for i := range st.Peers {
		p := &st.Peers[i]
		switch {
		case p.Refused != "":
			add("%s is not connected: %s", p.Node, p.Refused)
		case p.Connected && p.Disk < replication.UpToDate && p.Disk != replication.Diskless:
			add("the disk of %s is %v, %s out of sync", p.Node, p.Disk, block.Amount(p.OutOfSync))
		}
	}
	return failed, ps
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return line
}
