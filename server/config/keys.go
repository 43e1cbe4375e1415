package config

import (
	"maps"
	"slices"
	"strconv"
)

// Key is one key of a configuration in the flat view.
type Key struct {
	Path  string // "device.r0.quorum"
	Value string // as text; lists in brackets
	Set   bool   // the file gives it; otherwise it is the default
	Pos   Pos    // of the value in the file, of its table where it is a default
	How   How    // how a change of it applies, as a rule
}

// Keys is the flat view: every key with the value that holds, in the order of
// the schema. Secrets show by the name of their file only.
func (c *Config) Keys() []Key {
	all := c.slots()
	out := make([]Key, len(all))
	for i, s := range all {
		out[i] = Key{s.path, format(s.ptr), s.src.has(s.key), s.src.where(s.key), s.how}
	}
	return out
}

// SchemaKey is a key that a file can have.
type SchemaKey struct {
	Path string // without the names of nodes and devices: "device.on.nbd"
	How  How    // how a change of it applies, as a rule
}

// Schema lists every key that there is, set or not, in the order of the schema.
func Schema() []SchemaKey {
	all := slices.Concat(
		slots("cluster", &Cluster{}, &source{}, clusterFields()),
		slots("cluster.tls", &TLS{}, &source{}, tlsFields()),
		slots("node", &Node{}, &source{}, nodeFields()),
		slots("device", &Device{}, &source{}, deviceFields()),
		slots("device.on", &Override{}, &source{}, overrideFields()),
		slots("control", &Control{}, &source{}, controlFields()),
		slots("log", &Log{}, &source{}, logFields()),
		slots("metrics", &Metrics{}, &source{}, metricsFields()),
		slots("handler", &Handler{}, &source{}, handlerFields()),
	)
	out := make([]SchemaKey, len(all))
	for i, s := range all {
		out[i] = SchemaKey{s.path, s.how}
	}
	return out
}

// slots is every key of the configuration with all the schema knows of it.
func (c *Config) slots() []slot {
	out := slots("cluster", &c.Cluster, &c.Cluster.src, clusterFields())
	if c.Cluster.TLS.Enabled() {
		out = append(out, slots("cluster.tls", &c.Cluster.TLS, &c.Cluster.TLS.src, tlsFields())...)
	}
	for i, n := range c.Nodes {
		out = append(out, slots(pathOf("node", i, n.Name), n, &n.src, nodeFields())...)
	}
	for i, d := range c.Devices {
		out = append(out, d.slots(pathOf("device", i, d.Name))...)
	}
	out = append(out, slots("control", &c.Control, &c.Control.src, controlFields())...)
	out = append(out, slots("log", &c.Log, &c.Log.src, logFields())...)
	out = append(out, slots("metrics", &c.Metrics, &c.Metrics.src, metricsFields())...)
	for i, h := range c.Handlers {
		out = append(out, slots("handler."+strconv.Itoa(i+1), h, &h.src, handlerFields())...)
	}
	return out
}

// slots is the device's keys, and those of its overrides that the file gives.
func (d *Device) slots(path string) []slot {
	out := slots(path, d, &d.src, deviceFields())
	for _, node := range slices.Sorted(maps.Keys(d.On)) {
		o := d.On[node]
		for _, s := range slots(path+".on."+node, o, &o.src, overrideFields()) {
			if o.src.has(s.key) {
				out = append(out, s)
			}
		}
	}
	return out
}
