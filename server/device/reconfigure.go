package device

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// ErrReopen means that a configuration differs in more than can change while
// the device runs: it has to be closed and opened again.
var ErrReopen = errors.New("the device has to be closed and opened for it")

// CanReconfigure reports whether a device changes from one configuration to
// the other while it runs.
func CanReconfigure(from, to Config) bool { return reflect.DeepEqual(withLive(from, to), to) }

// withLive is c with those keys of live that can change while a device runs.
func withLive(c, live Config) Config {
	c.Protocol, c.Quorum, c.OnNoQuorum = live.Protocol, live.Quorum, live.OnNoQuorum
	c.AutoPromote, c.ResyncRate, c.Fingerprint = live.AutoPromote, live.ResyncRate, live.Fingerprint
	c.Together = live.Together
	c.OnIOError, c.AfterSplit = live.OnIOError, live.AfterSplit
	c.DiskTimeout, c.FencePeer = live.DiskTimeout, live.FencePeer
	return c
}

// Reconfigure changes the configuration of a device that runs: requests in
// flight and clients are not disturbed. What was sent under the old protocol is
// answered under it. Peers are told, so that each side knows whether the two
// agree; an agreement that stands is kept while they differ, for nodes are
// reconfigured one after the other, and no new one is made.
func (d *Device) Reconfigure(to Config) error {
	d.mu.Lock()
	now := d.cfg
	// The caller need not know what was chosen for it.
	to.Handle, to.FlushEvery, to.PromoteWait = now.Handle, now.FlushEvery, now.PromoteWait
	if to.Size == d.opts.Size {
		to.Size = now.Size // which it has grown to by command since it was opened
	}
	if !CanReconfigure(now, to) {
		d.mu.Unlock()
		return fmt.Errorf("device %s: %w", d.opts.Name, ErrReopen)
	}
	what := differences(now, to)
	if len(what) == 0 {
		d.mu.Unlock()
		return nil
	}
	d.cfg = to
	b := &block.Batch{}
	if now.ResyncRate != to.ResyncRate {
		d.changePaceLocked(b)
	}
	for _, l := range d.limitersLocked() {
		if l != nil {
			l.limit.Store(int64(to.DiskTimeout))
		}
	}
	if !slices.Equal(now.FencePeer, to.FencePeer) {
		d.handlerChangedLocked(len(now.FencePeer) > 0)
	}
	d.eventLocked("device", nil, "reconfigured: %s", strings.Join(what, ", "))
	if now.Fingerprint != to.Fingerprint {
		d.tellConfigLocked(b)
	}
	d.evaluateLocked(b)
	d.genSettleLocked(b) // other nodes may have to note a generation now
	d.touchLocked()
	d.mu.Unlock()
	b.Finish()
	return nil
}

// differences names what changes, for people.
func differences(from, to Config) (out []string) {
	add := func(key string, a, b any) {
		if a != b {
			out = append(out, fmt.Sprintf("%s %v -> %v", key, a, b))
		}
	}
	add("protocol", from.Protocol, to.Protocol)
	add("quorum", from.Quorum, to.Quorum)
	add("on_no_quorum", from.OnNoQuorum, to.OnNoQuorum)
	add("auto_promote", from.AutoPromote, to.AutoPromote)
	add("resync_rate", from.ResyncRate, to.ResyncRate)
	add("on_io_error", from.OnIOError, to.OnIOError)
	add("after split brain", from.AfterSplit, to.AfterSplit)
	add("disk_timeout", from.DiskTimeout, to.DiskTimeout)
	add("fence_peer", fmt.Sprintf("%q", from.FencePeer), fmt.Sprintf("%q", to.FencePeer))
	if !slices.Equal(from.Together, to.Together) {
		out = append(out, fmt.Sprintf("devices of the group %v -> %v", from.Together, to.Together))
	}
	if len(out) == 0 && from.Fingerprint != to.Fingerprint {
		out = append(out, "what nodes must agree on")
	}
	return out
}

// String is the policy's name in the configuration.
func (p NoQuorumPolicy) String() string {
	if p == FailIO {
		return "io-error"
	}
	return "suspend-io"
}

// changePaceLocked begins the account of every resync and verify anew, for an unlimited one
// has taken far more than a limit would have allowed it, and goes on with those
// that have no limit now.
func (d *Device) changePaceLocked(b *block.Batch) {
	for _, p := range d.peers {
		if p == nil {
			continue
		}
		p.sync.allowance, p.verify.allowance = 0, 0
		if p.sync.pulling {
			d.pumpLocked(p, b)
		}
		if p.verify.active {
			d.pumpVerifyLocked(p, b)
		}
	}
}

// tellConfigLocked tells the peers what this node is configured to. A peer that
// agrees gets its last hello again, of which only the configuration is news;
// any other gets a new one.
func (d *Device) tellConfigLocked(b *block.Batch) {
	for _, p := range d.peers {
		switch {
		case p == nil || p.session == nil || p.hs.no == 0:
		case p.agreed:
			d.sendHelloLocked(p, b)
		default:
			d.helloLocked(p, b)
		}
	}
}

// sendHelloLocked sends the facts of the present handshake.
func (d *Device) sendHelloLocked(p *peer, b *block.Batch) {
	f := wireFacts(&p.hs.mine)
	f.Name, f.No, f.Handle = d.opts.Name, p.hs.no, d.opts.Handle
	f.Protocol = uint8(d.cfg.Protocol)
	f.Members, f.Config, f.Whole = uint32(d.disks), d.cfg.Fingerprint, p.speaks(wire.FeatureVotes)
	p.session.Send(&wire.Header{Type: wire.DevHello}, f.Append(nil), nil, b)
}

// configReceivedLocked takes a hello that came before: its sender has been
// reconfigured.
func (d *Device) configReceivedLocked(p *peer, f *wire.DeviceFacts, b *block.Batch) {
	if f.No != p.hs.peerNo || f.Config == p.hs.config {
		return
	}
	p.hs.config, p.hs.members, p.hs.protocol = f.Config, f.Members, f.Protocol
	d.since["config"] = time.Now()
	if p.agreed {
		if f.Config != d.cfg.Fingerprint {
			d.log.Warn("a peer's configuration of this device differs in what must agree", "peer", p.name)
		}
	} else {
		d.helloLocked(p, b)
	}
	d.touchLocked()
}

// differsLocked names the peers in contact whose configuration of this device
// differs in what must agree.
func (d *Device) differsLocked() (names []string) {
	for _, p := range d.peers {
		if p != nil && p.session != nil && p.hs.peerNo > 0 && p.hs.config != d.cfg.Fingerprint {
			names = append(names, p.name)
		}
	}
	return names
}
