package control

import (
	"context"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/reload"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
)

// quietly bounds how long a command waits for the device to become quiet: its
// clients wait just as long.
const quietly = 20 * time.Second

func (c *Control) deviceDetach(ctx context.Context, _ rpc.Actor, p api.DeviceParams) (api.Done, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Done{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, quietly)
	defer cancel()
	if err := d.Detach(ctx); err != nil {
		return api.Done{}, refused(err)
	}
	return text("the disk of %s is detached on %s", p.Device, c.o.Node)
}

func (c *Control) deviceAttach(ctx context.Context, _ rpc.Actor, p api.DeviceParams) (api.Done, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Done{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, quietly)
	defer cancel()
	if err := d.Attach(ctx); err != nil {
		return api.Done{}, refused(err)
	}
	return text("the disk of %s is attached on %s: %v", p.Device, c.o.Node, d.Status().Disk)
}

func (c *Control) deviceInvalidate(ctx context.Context, _ rpc.Actor, p api.DeviceParams) (api.Done, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Done{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, quietly)
	defer cancel()
	if err := d.Invalidate(ctx); err != nil {
		return api.Done{}, refused(err)
	}
	return text("the data of %s on %s is discarded and fetched from a peer", p.Device, c.o.Node)
}

func (c *Control) deviceResync(ctx context.Context, _ rpc.Actor, p api.DeviceResyncParams) (api.Done, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Done{}, err
	}
	if p.Pause {
		if err := d.PauseResync(p.Node); err != nil {
			return api.Done{}, refused(err)
		}
		return text("resyncs of %s are paused", p.Device)
	}
	ctx, cancel := context.WithTimeout(ctx, quietly)
	defer cancel()
	with, err := d.Resync(ctx, p.Node)
	if err != nil {
		return api.Done{}, refused(err)
	}
	if len(with) == 0 {
		return text("nothing of %s is out of sync", p.Device)
	}
	return text("%s is resynced with %s", p.Device, strings.Join(with, ", "))
}

func (c *Control) deviceVerify(_ context.Context, _ rpc.Actor, p api.DeviceVerifyParams) (api.Done, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Done{}, err
	}
	if p.Stop {
		if err := d.StopVerify(p.Node); err != nil {
			return api.Done{}, refused(err)
		}
		return text("no verify of %s is led by %s any more", p.Device, c.o.Node)
	}
	with, err := d.Verify(p.Node)
	if err != nil {
		return api.Done{}, refused(err)
	}
	return text("%s is compared with %s", p.Device, strings.Join(with, ", "))
}

func (c *Control) deviceResolve(ctx context.Context, _ rpc.Actor, p api.DeviceResolveParams) (api.Done, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Done{}, err
	}
	if p.Choice != api.KeepLocal && p.Choice != api.DiscardLocal {
		return api.Done{}, api.Errorf(api.CodeInvalidParams, "cannot resolve %s: %q is no choice; say %s or %s", p.Device, p.Choice, api.KeepLocal, api.DiscardLocal)
	}
	if err := d.Resolve(ctx, p.Choice == api.DiscardLocal); err != nil {
		return api.Done{}, refused(err)
	}
	if p.Choice == api.DiscardLocal {
		return text("the changes of %s on %s are discarded", p.Device, c.o.Node)
	}
	return text("the changes of %s on the peers are discarded", p.Device)
}

func (c *Control) deviceHandshake(ctx context.Context, _ rpc.Actor, p api.DevicePeerParams) (api.Handshake, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Handshake{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	h, err := d.DryHandshake(ctx, p.Node)
	if err != nil {
		return api.Handshake{}, refused(err)
	}
	return api.Handshake{
		Device: p.Device, Node: p.Node, Action: h.Decision.Action.String(), Text: h.Decision.Why,
		Rule: h.Decision.Rule, Agreed: h.Agreed, Mine: h.Mine, Theirs: h.Theirs,
	}, nil
}

func (c *Control) deviceResize(ctx context.Context, _ rpc.Actor, p api.DeviceResizeParams) (api.Done, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return api.Done{}, err
	}
	if err := d.Resize(ctx, p.Size); err != nil {
		return api.Done{}, refused(err)
	}
	return text("%s has %s now; set size = \"%dKiB\" in the configuration of every node. Clients see it when they connect again", p.Device, block.Amount(p.Size), p.Size>>10)
}

// deviceCreate makes a device that is in the configuration's file and not here
// yet, by reading the file; and says what a disk is worth that was there before.
func (c *Control) deviceCreate(ctx context.Context, by rpc.Actor, p api.DeviceCreateParams) (api.Done, error) {
	if _, here := c.o.Devices.Get(p.Device); !here {
		if _, err := c.o.Reload.Reload(ctx, reload.Request{Who: by.String()}); err != nil {
			return api.Done{}, configError(err)
		}
		d, err := c.device(p.Device)
		if err != nil {
			return api.Done{}, api.Errorf(api.CodeNotFound, "cannot create %s: the configuration names no such device for this node; add a [[device]] to it on every node", p.Device)
		}
		if st := d.Status(); !p.FromExisting || st.Gens.Current != replication.NoGen {
			return text("%s is created: disk %v", p.Device, st.Disk)
		}
	}
	d, err := c.device(p.Device)
	if err != nil {
		return api.Done{}, err
	}
	if err := d.Create(ctx, p.FromExisting); err != nil {
		return api.Done{}, refused(err)
	}
	if p.FromExisting {
		return text("what the disk holds is the data of %s now, and goes to every peer", p.Device)
	}
	return text("the disk of %s is blank now", p.Device)
}

func (c *Control) deviceDumpMD(_ context.Context, _ rpc.Actor, p api.DeviceParams) (store.Report, error) {
	d, err := c.device(p.Device)
	if err != nil {
		return store.Report{}, err
	}
	in, err := d.Inspect()
	if err != nil {
		return store.Report{}, refused(err)
	}
	return in.Report(), nil
}

func (c *Control) deviceCheck(ctx context.Context, by rpc.Actor, p api.DeviceParams) (api.Done, error) {
	r, err := c.deviceDumpMD(ctx, by, p)
	if err != nil {
		return api.Done{}, err
	}
	if len(r.Problems) > 0 {
		return api.Done{}, api.Errorf(api.CodeFailed, "metadata %s: %s", r.Path, strings.Join(r.Problems, "; "))
	}
	return text("metadata %s is sound", r.Path)
}
