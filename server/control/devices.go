package control

import (
	"context"
	"errors"
	"time"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/device"
)

func deviceOf(st *device.Status) api.Device {
	d := api.Device{
		Name: st.Name, Size: st.Size, Role: st.Role.String(), Disk: st.Disk.String(), Quorum: st.Quorum.Quorate,
		Suspended: st.Suspended, Open: st.Open, Peers: []api.DevicePeer{}, Group: st.Group,
	}
	for i := range st.Peers {
		p := &st.Peers[i]
		dp := api.DevicePeer{Node: p.Node, Role: p.Role.String(), Disk: p.Disk.String(), Replication: p.Repl.String(), OutOfSync: p.OutOfSync,
			Refused: p.Refused, SplitBrain: split(*p)}
		if g := p.Resync; g != nil {
			dp.Resync = &api.Resync{Done: g.Done, Total: g.Total, Rate: g.Rate, ETAS: int64(g.Left / time.Second)}
		}
		if v := p.Verified; v != nil {
			dp.Verified = &api.Verified{At: v.At, Differ: v.Differ, Skipped: v.Skipped, Stopped: v.Stopped}
		}
		d.Peers = append(d.Peers, dp)
	}
	return d
}

func (c *Control) deviceStatuses(name string) ([]device.Status, error) {
	all := c.o.Devices.All()
	if name != "" {
		d, err := c.device(name)
		if err != nil {
			return nil, err
		}
		all = []*device.Device{d}
	}
	out := make([]device.Status, len(all))
	for i, d := range all {
		out[i] = d.Status()
	}
	return out, nil
}

func (c *Control) deviceList(context.Context, rpc.Actor, none) ([]api.Device, error) {
	sts, err := c.deviceStatuses("")
	out := make([]api.Device, len(sts))
	for i := range sts {
		out[i] = deviceOf(&sts[i])
	}
	return out, err
}

func (c *Control) deviceShow(_ context.Context, _ rpc.Actor, p api.DeviceParams) (api.DeviceDetail, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.DeviceDetail{}, err
	}
	st := d.Status()
	out := api.DeviceDetail{
		Device: deviceOf(&st), Protocol: st.Protocol.String(), QuorumPolicy: st.Policy.String(), OnNoQuorum: config.OnNoQuorumSuspend,
		Backing: st.Backing, CurrentGen: st.Gens.Current.String(), BitmapGens: []api.GenRef{}, NBD: c.exports(p.Device),
		ALExtents: st.HotExtents, ALExtentBytes: st.ExtentBytes, CrashCostBytes: int64(st.HotExtents) * st.ExtentBytes,
		InFlight: st.InFlight, Reads: st.Stats.Reads, Writes: st.Stats.Writes, Flushes: st.Stats.Flushes,
		ReadBytes: st.Stats.ReadBytes, WriteBytes: st.Stats.WriteBytes,
		ReadErrors: st.Stats.ReadErrors, HealedBytes: st.Stats.MendedBytes, Unhealed: st.Stats.Unmended,
	}
	x := c.o.NBD.Export(p.Device)
	c.showLatency(&out, &x)
	if st.OnNoQuorum == device.FailIO {
		out.OnNoQuorum = config.OnNoQuorumError
	}
	for i := range st.Peers {
		out.BitmapGens = append(out.BitmapGens, api.GenRef{Node: st.Peers[i].Node, Gen: st.Peers[i].Gen.String()})
	}
	return out, nil
}

// exports are the NBD URIs of a device.
func (c *Control) exports(name string) []string {
	uris := []string{}
	for _, ld := range c.o.Config().Devices {
		if ld.Name != name {
			continue
		}
		for _, l := range ld.Listeners {
			if l.Network == "unix" {
				uris = append(uris, "nbd+unix:///"+name+"?socket="+c.o.RunDir+"/"+name+".nbd")
			} else {
				uris = append(uris, "nbd://"+l.Address+"/"+name)
			}
		}
	}
	return uris
}

func (c *Control) deviceWhy(_ context.Context, _ rpc.Actor, p api.DeviceParams) (api.Why, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Why{}, err
	}
	w := d.Why()
	return api.Why{Subject: "device " + p.Device, State: w.State, Since: w.Since, Because: w.Because, Next: w.Next}, nil
}

// promotePatience is how long a promotion waits for what passes by itself.
const promotePatience = 5 * time.Second

func (c *Control) devicePromote(ctx context.Context, _ rpc.Actor, p api.DevicePromoteParams) (api.Done, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Done{}, err
	}
	// What passes by itself is waited for, but not as long as the client waits.
	limit := promotePatience
	if p.TimeoutMS > 0 && p.TimeoutMS < limit.Milliseconds() {
		limit = time.Duration(p.TimeoutMS) * time.Millisecond
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := d.Promote(ctx, p.Force); err != nil {
		return api.Done{}, refused(err)
	}
	if st := d.Status(); st.Suspended && !st.Quorum.Quorate {
		return text("%s is primary on %s; its I/O waits for quorum: %s", p.Device, c.o.Node, st.Quorum.Why)
	}
	return text("%s is primary on %s", p.Device, c.o.Node)
}

func (c *Control) deviceDemote(ctx context.Context, _ rpc.Actor, p api.DeviceParams) (api.Done, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Done{}, err
	}
	if err := d.Demote(ctx); err != nil {
		return api.Done{}, refused(err)
	}
	return text("%s is secondary on %s", p.Device, c.o.Node)
}

func (c *Control) deviceWait(ctx context.Context, _ rpc.Actor, p api.DeviceWaitParams) (api.Device, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Device{}, err
	}
	if p.TimeoutMS > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Duration(p.TimeoutMS)*time.Millisecond)
		defer cancel()
	}
	if err := d.WaitFor(ctx, p.For); err != nil {
		if errors.Is(err, context.DeadlineExceeded) {
			st := d.Status()
			return api.Device{}, api.Errorf(api.CodeTimeout, "%s is not %s yet: %s (see: lockstepctl device why %s)",
				p.Device, waitWord(p.For), d.Why().State, st.Name)
		}
		if ctx.Err() == nil {
			err = api.Errorf(api.CodeInvalidParams, "%v", err)
		}
		return api.Device{}, err
	}
	st := d.Status()
	return deviceOf(&st), nil
}

func waitWord(s string) string {
	if s == "" {
		return api.WaitSynced
	}
	return s
}
