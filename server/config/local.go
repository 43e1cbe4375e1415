package config

import (
	"fmt"
	"slices"
	"strings"
)

// Local is the configuration as one node sees it.
type Local struct {
	*Config
	Node    *Node
	Peers   []*Node // the other nodes, in the order of the file
	Devices []*LocalDevice
}

// LocalDevice is a device that this node takes part in. Its own fields are
// those of this node; what holds on every node is in Device.
type LocalDevice struct {
	*Device
	Disk      string // "" where diskless; a relative path is in the state dir
	Diskless  bool
	Listeners []Listener
	Members   []Member // all the device's nodes by id, this one included
}

// Member is one node of a device.
type Member struct {
	Node     string
	ID       int
	Disk     string // "" where diskless
	Diskless bool
}

// Listener is one place where NBD clients are served: the Unix socket
// DEVICE.nbd in the rundir, or a TCP address.
type Listener struct {
	Network string // "unix" or "tcp"
	Address string // HOST:PORT of tcp
}

// Local returns the configuration as the node of that name sees it.
func (c *Config) Local(name string) (*Local, error) {
	n := c.Node(name)
	if n == nil {
		names := make([]string, len(c.Nodes))
		for i, n := range c.Nodes {
			names[i] = n.Name
		}
		return nil, fmt.Errorf("%s has no node %q; it has %s: give --node NAME, or add a [[node]]", c.Path, name, strings.Join(names, ", "))
	}
	l := &Local{Config: c, Node: n}
	for _, p := range c.Nodes {
		if p != n {
			l.Peers = append(l.Peers, p)
		}
	}
	for _, d := range c.Devices {
		if ld := c.localDevice(d, n); ld != nil {
			l.Devices = append(l.Devices, ld)
		}
	}
	return l, nil
}

func (c *Config) localDevice(d *Device, n *Node) *LocalDevice {
	me := d.member(n)
	if me == nil {
		return nil
	}
	ld := &LocalDevice{Device: d, Disk: me.Disk, Diskless: me.Diskless}
	for _, node := range c.Nodes {
		if m := d.member(node); m != nil {
			ld.Members = append(ld.Members, *m)
		}
	}
	slices.SortFunc(ld.Members, func(a, b Member) int { return a.ID - b.ID })
	list := d.NBD
	if o := d.On[n.Name]; o != nil && o.NBD != nil {
		list = o.NBD
	}
	for _, s := range list {
		if l, why := parseListener(s); why == "" {
			ld.Listeners = append(ld.Listeners, l)
		}
	}
	return ld
}

// member is the device on that node, or nil where it is not.
func (d *Device) member(n *Node) *Member {
	if !slices.Contains(d.Nodes, n.Name) {
		return nil
	}
	m := &Member{Node: n.Name, ID: n.ID, Disk: d.Disk}
	if o := d.On[n.Name]; o != nil {
		if o.Disk != "" {
			m.Disk = o.Disk
		}
		if o.Diskless {
			m.Disk, m.Diskless = "", true
		}
	}
	return m
}
