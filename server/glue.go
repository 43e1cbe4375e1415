package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// A session tells the devices for how long its peer takes this node for alive.
var _ device.Leaser = (*messenger.Session)(nil)

// router hands sessions and frames from the messenger to the devices.
type router struct{ devices *device.Set }

func (r router) SessionUp(s *messenger.Session) { r.devices.SessionUp(s) }

func (r router) SessionDown(s *messenger.Session, why messenger.Reason) {
	r.devices.SessionDown(s, why.String())
}

func (r router) HandleFrame(s *messenger.Session, f *wire.Frame, b *block.Batch) {
	r.devices.HandleFrame(s, f, b)
}

// exports offers the devices to NBD clients.
type exports struct {
	devices *device.Set
	log     *slog.Logger
}

func (x exports) List() []string {
	var names []string
	for _, d := range x.devices.All() {
		names = append(names, d.Name())
	}
	return names
}

// find resolves an export's name; the empty one is the only device's.
func (x exports) find(name string) (*device.Device, error) {
	if name == "" {
		if all := x.devices.All(); len(all) == 1 {
			return all[0], nil
		}
	}
	d, ok := x.devices.Get(name)
	if !ok {
		return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
	}
	return d, nil
}

func (x exports) Info(name string) (nbd.Info, error) {
	d, err := x.find(name)
	if err != nil {
		return nbd.Info{}, err
	}
	return infoOf(d), nil
}

func infoOf(d *device.Device) nbd.Info {
	return nbd.Info{
		Name: d.Name(), Description: "replicated by lockstep", Size: d.Size(), MinBlock: 1, Preferred: block.Unit,
		Trim: true, Zeroes: true, Cache: true, MultiConn: true,
	}
}

func (x exports) Open(ctx context.Context, name string, c nbd.ClientInfo) (nbd.Handle, error) {
	d, err := x.find(name)
	if err != nil {
		return nil, err
	}
	open := d.OpenFor
	if c.Resumed {
		open = d.ReopenFor
	}
	if err := open(ctx); err != nil {
		return nil, err
	}
	x.log.Info("opened", "device", d.Name(), "client", c.Addr)
	return handle{d}, nil
}

// handle is a device opened by one client.
type handle struct{ d *device.Device }

func (h handle) Info() nbd.Info                          { return infoOf(h.d) }
func (h handle) Submit(r *block.Request, b *block.Batch) { h.d.Submit(r, b) }

func (h handle) Extents(off, length int64, most int) ([]nbd.Extent, error) {
	es, err := h.d.Extents(off, length, most)
	if err != nil {
		return nil, err
	}
	out := make([]nbd.Extent, len(es))
	for i, e := range es {
		out[i] = nbd.Extent{Off: e.Off, Len: e.Len, Hole: e.Hole, Zero: e.Hole}
	}
	return out, nil
}

// Close gives the device back. What the client had in flight goes on in the
// device under its range locks, before anything that a successor sends to the
// same blocks.
func (h handle) Close() error {
	h.d.Released(context.Background())
	return nil
}

// deviceOptions translates a device's configuration.
func deviceOptions(l *config.Local, ld *config.LocalDevice) (device.Options, error) {
	q, err := replication.ParseQuorum(ld.Quorum.String())
	if err != nil {
		return device.Options{}, fmt.Errorf("device %s: %w", ld.Name, err)
	}
	// The size is not among what is compared: a device grows by command, and tells
	// its peers how large it is.
	o := device.Options{Config: device.Config{
		Name: ld.Name, Size: int64(ld.Size), Self: l.Node.ID, Protocol: replication.Protocol(ld.Protocol[0]), Quorum: q,
		AutoPromote: ld.AutoPromote, Fingerprint: fingerprint(ld.Fingerprint("size")),
	}}
	if ld.OnNoQuorum == config.OnNoQuorumError {
		o.OnNoQuorum = device.FailIO
	}
	if ld.OnIOError == config.OnIOErrorPassOn {
		o.OnIOError = device.PassOn
	}
	o.AfterSplit = replication.SplitPolicy{None: ld.AfterSB0Pri, One: ld.AfterSB1Pri, Two: ld.AfterSB2Pri}
	o.DiskTimeout, o.FencePeer = ld.DiskTimeout, ld.FencePeer
	if o.Group = ld.Group; o.Group != "" {
		for _, other := range l.Devices {
			if other.Group == o.Group {
				o.Together = append(o.Together, other.Name)
			}
		}
	}
	if ld.ResyncRate != config.RateAuto {
		o.ResyncRate = int64(ld.ResyncRate)
	}
	for _, m := range ld.Members {
		o.Nodes = append(o.Nodes, device.Node{ID: m.ID, Name: m.Node, Diskless: m.Diskless})
	}
	return o, nil
}

// fingerprint folds the configuration's into what the handshake carries.
func fingerprint(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return h
}

// peerOf is how this node reaches another: from its own bind address, if it
// has one.
func peerOf(self, n *config.Node) messenger.Peer {
	p := messenger.Peer{Name: n.Name, ID: n.ID, Address: n.Address}
	if self.Bind != "" {
		if host, _, err := net.SplitHostPort(self.Bind); err == nil {
			if ip := net.ParseIP(host); ip != nil && !ip.IsUnspecified() {
				p.Bind = host
			}
		}
	}
	return p
}

// disconnects keeps in a file which nodes an administrator disconnected for
// good.
type disconnects struct{ path string }

// Disconnected lists the nodes.
func (d disconnects) Disconnected() ([]string, error) {
	data, err := os.ReadFile(d.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(data, &names); err != nil {
		return nil, fmt.Errorf("%s is damaged; remove it to have all nodes connected: %w", d.path, err)
	}
	return names, nil
}

// SetDisconnected notes that a node is to stay away, or no longer.
func (d disconnects) SetDisconnected(node string, on bool) error {
	names, err := d.Disconnected()
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(n string) bool { return n == node })
	if on {
		names = append(names, node)
	}
	data, err := json.Marshal(names)
	if err != nil {
		return err
	}
	return replaceFile(d.path, data)
}

// replaceFile writes a file anew so that a crash leaves the old or the new.
func replaceFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}

// eventType and eventData translate what the cluster tells.
func eventType(t string) string {
	switch t {
	case cluster.NodeUp:
		return events.NodeUp
	case cluster.NodeDown:
		return events.NodeDown
	case cluster.NodeRefused:
		return events.PeerRefused
	case cluster.PingMissed, cluster.PingHeard:
		return events.MissedPing
	case cluster.TickChanging, cluster.TickChanged:
		return events.TickTime
	case cluster.NodeRelinked:
		return events.Relinked
	case cluster.HostPaused:
		return events.HostPaused
	}
	return t
}

func eventData(ev cluster.Event) map[string]any {
	d := map[string]any{"id": ev.ID}
	if ev.Reason != "" {
		d["reason"] = ev.Reason
	}
	if ev.Session != 0 {
		d["session"] = ev.Session
	}
	if ev.Incarnation != 0 {
		d["incarnation"] = strconv.FormatUint(ev.Incarnation, 16) // as node/show has it
	}
	if ev.Missed != 0 {
		d["missed"] = ev.Missed
	}
	return d
}
