package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Agreement is the part of a configuration that nodes must have alike, as
// keys and values without secrets, so that a peer can be sent it and a
// difference be named.
type Agreement struct {
	Cluster map[string]string            `json:"cluster"`
	Devices map[string]map[string]string `json:"devices"`
}

// Fingerprint is an Agreement in short: equal fingerprints mean equal
// agreements.
type Fingerprint struct {
	Cluster string            `json:"cluster"`
	Devices map[string]string `json:"devices"`
}

// Agreement returns what this configuration has in common with its peers'.
func (c *Config) Agreement() Agreement {
	a := Agreement{Cluster: map[string]string{}, Devices: map[string]map[string]string{}}
	agreed(a.Cluster, slots("cluster", &c.Cluster, &c.Cluster.src, clusterFields()))
	a.Cluster["cluster.tls"] = fmt.Sprint(c.Cluster.TLS.Enabled())
	for i, n := range c.Nodes {
		agreed(a.Cluster, slots(pathOf("node", i, n.Name), n, &n.src, nodeFields()))
	}
	for _, d := range c.Devices {
		a.Devices[d.Name] = d.agreement()
	}
	return a
}

func (d *Device) agreement() map[string]string {
	m := map[string]string{}
	agreed(m, d.slots(""))
	return m
}

// Fingerprint is that of what nodes must agree on about this device alone, but
// for some keys.
func (d *Device) Fingerprint(but ...string) string {
	m := d.agreement()
	for _, key := range but {
		delete(m, key)
	}
	return digest(m)
}

// agreed puts the values that must agree into m.
func agreed(m map[string]string, all []slot) {
	for _, s := range all {
		if !s.agree {
			continue
		}
		value := format(s.ptr)
		if list, ok := s.ptr.(*Names); ok {
			value = formatList(sorted(*list))
		}
		m[strings.TrimPrefix(s.path, ".")] = value
	}
}

// Fingerprint returns the agreement's digests.
func (a Agreement) Fingerprint() Fingerprint {
	f := Fingerprint{Cluster: digest(a.Cluster), Devices: map[string]string{}}
	for name, m := range a.Devices {
		f.Devices[name] = digest(m)
	}
	return f
}

// Fingerprint returns the digests of what must agree between nodes.
func (c *Config) Fingerprint() Fingerprint { return c.Agreement().Fingerprint() }

func digest(m map[string]string) string {
	h := sha256.New()
	for _, k := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(h, "%q=%q\n", k, m[k])
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// Disagreement is one key that two nodes have different values for. A value
// is "" where the node does not have the key at all.
type Disagreement struct {
	Device       string // "" for the cluster's keys
	Key          string
	Mine, Theirs string
}

// String is "device.r0.size: 1GiB here, 2GiB there".
func (d Disagreement) String() string {
	key := d.Key
	if d.Device != "" {
		key = strings.TrimSuffix(join("device."+d.Device, d.Key), ".")
	}
	return fmt.Sprintf("%s: %s here, %s there", key, orNothing(d.Mine), orNothing(d.Theirs))
}

func orNothing(s string) string {
	if s == "" {
		return "nothing"
	}
	return s
}

// Compare names every difference between this node's agreement and a peer's.
// Devices that only one of them has are one difference each.
func (a Agreement) Compare(peer Agreement) []Disagreement {
	out := compare("", a.Cluster, peer.Cluster)
	for _, name := range bothKeys(a.Devices, peer.Devices) {
		mine, here := a.Devices[name]
		theirs, there := peer.Devices[name]
		switch {
		case here && there:
			out = append(out, compare(name, mine, theirs)...)
		case here:
			out = append(out, Disagreement{Device: name, Mine: "the device"})
		default:
			out = append(out, Disagreement{Device: name, Theirs: "the device"})
		}
	}
	return out
}

func compare(device string, mine, theirs map[string]string) []Disagreement {
	var out []Disagreement
	for _, k := range bothKeys(mine, theirs) {
		if mine[k] != theirs[k] {
			out = append(out, Disagreement{device, k, mine[k], theirs[k]})
		}
	}
	return out
}

func bothKeys[V any](a, b map[string]V) []string {
	all := maps.Clone(a)
	if all == nil {
		all = map[string]V{}
	}
	maps.Copy(all, b)
	return slices.Sorted(maps.Keys(all))
}
