package config

import (
	"fmt"
	"maps"
	"math/bits"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
)

func (v *validator) devices() {
	if len(v.cfg.Devices) > MaxDevices {
		v.faults.add(v.cfg.Devices[MaxDevices].src.pos, "device", strconv.Itoa(len(v.cfg.Devices))+" devices", "at most 4096")
	}
	names := firsts[string]{}
	for i, d := range v.cfg.Devices {
		path := v.devicePath(i)
		v.name(&d.src, path, "name", d.Name)
		v.unique(names.again(v, &d.src, "name", d.Name), &d.src, path, "name", quote(d.Name))
		v.device(path, d)
	}
	v.groups()
	v.disks()
}

func (v *validator) device(path string, d *Device) {
	v.size(path, d)
	v.members(path, d)
	v.overrides(path, d)
	v.quorum(path, d)
	if d.src.has("disk") && d.Disk == "" {
		v.fault(&d.src, path, "disk", `""`, "a path in the state dir, or an absolute one")
	} else if d.Disk == "" {
		d.Disk = defaultDisk(d.Name)
	}
	v.disk(&d.src, path, d.Disk)
	v.nbd(&d.src, path, d.NBD)
	if d.src.has("group") {
		v.name(&d.src, path, "group", d.Group)
	}
	if d.DiskTimeout != 0 {
		v.duration(&d.src, path, "disk_timeout", d.DiskTimeout, 100*time.Millisecond, time.Hour)
	}
	if v.ok(&d.src, "resync_rate") && d.ResyncRate != RateAuto && Size(d.ResyncRate) < BlockBytes {
		v.fault(&d.src, path, "resync_rate", d.ResyncRate.String(), `"auto", or at least 4KiB/s`)
	}
	v.number(&d.src, path, "al_extents", d.ALExtents, 7, 65534)
	if d.ALExtent < 64<<10 || d.ALExtent > 1<<30 || bits.OnesCount64(uint64(d.ALExtent)) != 1 {
		v.fault(&d.src, path, "al_extent_size", d.ALExtent.String(), "a power of two from 64KiB to 1GiB")
	} else if need := leastLog/int64(d.ALExtent) + 1; d.ALExtents >= 7 && int64(d.ALExtents) < need {
		v.fault(&d.src, path, "al_extents", strconv.Itoa(d.ALExtents), fmt.Sprintf("at least %d of %v, so that the activity log covers 64MiB, the longest change", need, d.ALExtent))
	}
	v.command(&d.src, path, "fence_peer", d.FencePeer, d.src.has("fence_peer"))
}

// leastLog is what the activity log has to cover: a peer's longest change,
// wherever it begins, finds room in it.
const leastLog = 64 << 20

func (v *validator) size(path string, d *Device) {
	const allowed = "a multiple of 4KiB, from 4KiB to 16TiB"
	switch {
	case d.Size <= 0, d.Size > MaxDeviceSize:
		v.fault(&d.src, path, "size", d.Size.String(), allowed)
	case d.Size%BlockBytes != 0:
		v.fault(&d.src, path, "size", fmt.Sprintf("%s is %d bytes over a multiple", d.Size, d.Size%BlockBytes), allowed)
	}
}

// members resolves and checks the device's nodes.
func (v *validator) members(path string, d *Device) {
	if !d.src.has("nodes") {
		d.Nodes = make(Names, 0, len(v.cfg.Nodes))
		for _, n := range v.cfg.Nodes {
			d.Nodes = append(d.Nodes, n.Name)
		}
		return
	}
	if len(d.Nodes) == 0 {
		v.fault(&d.src, path, "nodes", "[]", "at least one node; leave it out for all nodes")
	}
	v.names(&d.src, path, "nodes", d.Nodes, "names of nodes of this file")
	for _, name := range d.Nodes {
		if v.cfg.Node(name) == nil {
			v.fault(&d.src, path, "nodes", quote(name)+" is no node", v.nodeNames())
		}
	}
}

// nodeNames says which nodes there are.
func (v *validator) nodeNames() string {
	if len(v.cfg.Nodes) == 0 {
		return "names of nodes; there are none"
	}
	names := make([]string, len(v.cfg.Nodes))
	for i, n := range v.cfg.Nodes {
		names[i] = quote(n.Name)
	}
	return "nodes are " + strings.Join(names, ", ")
}

func (v *validator) overrides(path string, d *Device) {
	disks := len(d.Nodes)
	for _, name := range slices.Sorted(maps.Keys(d.On)) {
		o := d.On[name]
		at := path + ".on"
		if v.cfg.Node(name) == nil {
			v.fault(&o.src, at, printable(name), "no such node", v.nodeNames())
			continue
		}
		if !slices.Contains(d.Nodes, name) {
			v.fault(&o.src, at, name, "the device is not on this node", "one of the device's nodes "+formatList(d.Nodes))
		}
		at = join(at, name)
		if o.Diskless {
			disks--
			if o.src.has("disk") {
				v.fault(&o.src, at, "disk", quote(o.Disk)+" together with diskless", "the one or the other")
			}
		}
		if o.src.has("disk") && o.Disk == "" {
			v.fault(&o.src, at, "disk", `""`, "a path in the state dir, an absolute one, or diskless = true")
		}
		v.disk(&o.src, at, o.Disk)
		v.nbd(&o.src, at, o.NBD)
	}
	if disks <= 0 && v.ok(&d.src, "nodes") && len(d.Nodes) > 0 {
		v.fault(&d.src, path, "on", "every node is diskless", "at least one node with a disk")
	}
}

func (v *validator) quorum(path string, d *Device) {
	if d.Quorum > 0 && v.ok(&d.src, "nodes") && int(d.Quorum) > len(d.Nodes) {
		v.fault(&d.src, path, "quorum", d.Quorum.String(), fmt.Sprintf("%s; the device has %d nodes", allowQuorum, len(d.Nodes)))
	}
}

// disk checks the form of a disk's path; what is there is for the store to say.
func (v *validator) disk(src *source, path, disk string) {
	if strings.ContainsRune(disk, 0) || len(disk) > 4000 {
		v.fault(src, path, "disk", quote(disk), "a path of at most 4000 characters")
	}
	for part := range strings.SplitSeq(disk, "/") {
		if part == ".." && !strings.HasPrefix(disk, "/") {
			v.fault(src, path, "disk", quote(disk)+" leaves the state dir", "a path in the state dir, or an absolute one")
		}
	}
}

const allowNBD = `"unix" and "tcp:HOST:PORT"`

func (v *validator) nbd(src *source, path string, list Names) {
	v.names(src, path, "nbd", list, allowNBD)
	for _, s := range list {
		if _, why := parseListener(s); why != "" {
			v.fault(src, path, "nbd", quote(s)+" "+why, allowNBD)
		}
	}
}

// parseListener reads one entry of nbd, or says what is wrong with it.
func parseListener(s string) (Listener, string) {
	if s == "unix" {
		return Listener{Network: "unix"}, ""
	}
	addr, ok := strings.CutPrefix(s, "tcp:")
	if !ok {
		return Listener{}, "is neither"
	}
	if why := badAddress(addr, true); why != "" {
		return Listener{}, why
	}
	return Listener{Network: "tcp", Address: addr}, ""
}

// groups checks that the devices of a consistency group live on the same nodes,
// lose and regain quorum alike, and acknowledge what is written everywhere.
func (v *validator) groups() {
	first := map[string]*Device{}
	for i, d := range v.cfg.Devices {
		if d.Group == "" {
			continue
		}
		if d.Protocol != ProtocolC {
			v.fault(&d.src, v.devicePath(i), "protocol", quote(string(d.Protocol))+" in a group",
				`"C": under A and B a replica may have acknowledged for one device of a group what it has not written for another`)
		}
		f := first[d.Group]
		if f == nil {
			first[d.Group] = d
			continue
		}
		if !slices.Equal(sorted(f.Nodes), sorted(d.Nodes)) {
			v.fault(&d.src, v.devicePath(i), "group", fmt.Sprintf("%s is on %s, %s on %s", quote(d.Name), formatList(d.Nodes), quote(f.Name), formatList(f.Nodes)),
				"the devices of a group are on the same nodes")
		}
		for _, k := range []struct{ key, f, d string }{
			{"quorum", f.Quorum.String(), d.Quorum.String()},
			{"on_no_quorum", f.OnNoQuorum, d.OnNoQuorum},
		} {
			if k.f != k.d {
				v.fault(&d.src, v.devicePath(i), k.key, fmt.Sprintf("%s has %s, and %s, of the same group, %s", quote(d.Name), quote(k.d), quote(f.Name), quote(k.f)),
					"the same for all devices of a group")
			}
		}
	}
}

func sorted(list Names) Names { return slices.Sorted(slices.Values(list)) }

// disks checks that no two devices use one disk on one node.
func (v *validator) disks() {
	for _, n := range v.cfg.Nodes {
		taken := map[string]string{}
		for i, d := range v.cfg.Devices {
			m := d.member(n)
			if m == nil || m.Diskless || m.Disk == "" {
				continue
			}
			if other, dup := taken[m.Disk]; dup && other != d.Name {
				src, path := d.diskSource(v.devicePath(i), n.Name)
				v.fault(src, path, "disk", fmt.Sprintf("%s is the disk of %s on %s", quote(m.Disk), quote(other), n.Name), "a disk for each device")
			} else if !dup {
				taken[m.Disk] = d.Name
			}
		}
	}
}

// diskSource is where the disk of the device on that node is written.
func (d *Device) diskSource(path, node string) (*source, string) {
	if o := d.On[node]; o != nil && o.Disk != "" {
		return &o.src, path + ".on." + node
	}
	return &d.src, path
}

// listening is one TCP socket that a node would open.
type listening struct {
	host string
	what string
}

// ports checks that no node listens twice on one port.
func (v *validator) ports() {
	for i, n := range v.cfg.Nodes {
		taken := map[string][]listening{} // by port
		claim := func(src *source, path, key, addr, what string) {
			host, port, err := net.SplitHostPort(addr)
			if err != nil || !v.ok(src, key) {
				return
			}
			for _, t := range taken[port] {
				if t.host == host || anyHost(t.host) || anyHost(host) {
					v.fault(src, path, key, fmt.Sprintf("%s is taken on %s by %s", quote(addr), n.Name, t.what), "a port for each")
					return
				}
			}
			taken[port] = append(taken[port], listening{host, what})
		}
		key := "address"
		if n.Bind != "" {
			key = "bind"
		}
		claim(&n.src, v.nodePath(i), key, n.ListenAddress(), "the peers' port")
		claim(&v.cfg.Metrics.src, "metrics", "listen", v.cfg.Metrics.Listen, "[metrics]")
		for _, addr := range v.cfg.Control.Addresses() {
			claim(&v.cfg.Control.src, "control", "listen", addr, "[control]")
		}
		v.nbdPorts(n, claim)
	}
}

func (v *validator) nbdPorts(n *Node, claim func(src *source, path, key, addr, what string)) {
	for i, d := range v.cfg.Devices {
		if !slices.Contains(d.Nodes, n.Name) {
			continue
		}
		src, path, list := &d.src, v.devicePath(i), d.NBD
		if o := d.On[n.Name]; o != nil && o.NBD != nil {
			src, path, list = &o.src, path+".on."+n.Name, o.NBD
		}
		for _, s := range list {
			if l, why := parseListener(s); why == "" && l.Network == "tcp" {
				claim(src, path, "nbd", l.Address, "NBD of "+quote(d.Name))
			}
		}
	}
}

func anyHost(host string) bool { return host == "" || host == "0.0.0.0" || host == "::" }
