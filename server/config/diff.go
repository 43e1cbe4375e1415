package config

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Op is what happened to a key between two configurations.
type Op string

// The operations.
const (
	Changed Op = "changed"
	Added   Op = "added"
	Removed Op = "removed"
)

// Change is one difference between two configurations and how it is applied.
// A node, a device or a handler that is new or gone is one change.
type Change struct {
	Key      string
	Op       Op
	Old, New string
	How      How
	Why      string // what restarts, why it is not live, why it is refused
	File     string // of the new configuration
	Pos      Pos    // in it; zero for what is gone
}

// Where is "FILE:LINE:COL", or the file alone for what is gone from it.
func (c Change) Where() string { return Fault{File: c.File, Pos: c.Pos}.Where() }

// String is one line for people: "cluster.tick_time: 8s → 20s (live)".
func (c Change) String() string {
	how := string(c.How)
	if c.Why != "" {
		how += ": " + c.Why
	}
	switch c.Op {
	case Added:
		return fmt.Sprintf("%s: added, %s (%s)", c.Key, c.New, how)
	case Removed:
		return fmt.Sprintf("%s: removed, was %s (%s)", c.Key, c.Old, how)
	}
	return fmt.Sprintf("%s: %s → %s (%s)", c.Key, orEmpty(c.Old), orEmpty(c.New), how)
}

func orEmpty(s string) string {
	if s == "" {
		return `""`
	}
	return s
}

// Diff lists what changes from old to new, in the order of the new file, what
// is gone last. It compares what holds, so writing down a default is no change.
// Whether a running engine can take a change now is for its appliers to say.
func Diff(old, new *Config) []Change {
	d := &differ{file: new.Path}
	d.slots(clusterSlots(old), clusterSlots(new))
	d.contents(&old.Cluster, &new.Cluster)
	d.tables(nodeTables(old), nodeTables(new))
	d.tables(deviceTables(old), deviceTables(new))
	d.tables(handlerTables(old), handlerTables(new))
	slices.SortStableFunc(d.changes, func(a, b Change) int {
		return cmp.Or(cmp.Compare(late(a), late(b)), cmp.Compare(a.Pos.Line, b.Pos.Line), cmp.Compare(a.Pos.Col, b.Pos.Col))
	})
	return d.changes
}

// late sorts what has no place in the new file behind what has.
func late(c Change) int {
	if c.Pos.Line == 0 {
		return 1
	}
	return 0
}

type differ struct {
	file    string
	changes []Change
}

func (d *differ) add(c Change) {
	c.File = d.file
	d.changes = append(d.changes, c)
}

// entry is one node, device or handler for comparing.
type entry struct {
	path, text string
	pos        Pos
	slots      []slot
}

func clusterSlots(c *Config) []slot {
	out := slots("cluster", &c.Cluster, &c.Cluster.src, clusterFields())
	tls := slots("cluster.tls", &c.Cluster.TLS, &c.Cluster.TLS.src, tlsFields())
	out = append(out, tls...)
	out = append(out, slots("control", &c.Control, &c.Control.src, controlFields())...)
	out = append(out, slots("log", &c.Log, &c.Log.src, logFields())...)
	return append(out, slots("metrics", &c.Metrics, &c.Metrics.src, metricsFields())...)
}

func nodeTables(c *Config) []entry {
	out := make([]entry, len(c.Nodes))
	for i, n := range c.Nodes {
		path := pathOf("node", i, n.Name)
		out[i] = entry{path, fmt.Sprintf("id %d at %s", n.ID, n.Address), n.src.pos, slots(path, n, &n.src, nodeFields())}
	}
	return out
}

func deviceTables(c *Config) []entry {
	out := make([]entry, len(c.Devices))
	for i, dev := range c.Devices {
		path := pathOf("device", i, dev.Name)
		out[i] = entry{path, fmt.Sprintf("%s on %s", dev.Size, strings.Join(dev.Nodes, ", ")), dev.src.pos, dev.slots(path)}
	}
	return out
}

func handlerTables(c *Config) []entry {
	out := make([]entry, len(c.Handlers))
	for i, h := range c.Handlers {
		path := fmt.Sprintf("handler.%d", i+1)
		out[i] = entry{path, fmt.Sprintf("%s on %s", formatList(h.Command), h.Event), h.src.pos, slots(path, h, &h.src, handlerFields())}
	}
	return out
}

// tables compares two lists of entries by their paths.
func (d *differ) tables(old, new []entry) {
	was := map[string]entry{}
	for _, e := range old {
		was[e.path] = e
	}
	for _, e := range new {
		o, ok := was[e.path]
		if !ok {
			d.add(Change{Key: e.path, Op: Added, New: e.text, How: Live, Pos: e.pos})
			continue
		}
		delete(was, e.path)
		d.slots(o.slots, e.slots)
	}
	for _, e := range old {
		if _, gone := was[e.path]; gone {
			d.add(Change{Key: e.path, Op: Removed, Old: e.text, How: Live})
		}
	}
}

// slots compares two lists of keys of one table.
func (d *differ) slots(old, new []slot) {
	was := map[string]slot{}
	for _, s := range old {
		was[s.path] = s
	}
	for _, s := range new {
		o, ok := was[s.path]
		delete(was, s.path)
		d.slot(o, s, ok)
	}
	for _, s := range old {
		if _, gone := was[s.path]; gone {
			d.add(Change{Key: s.path, Op: Removed, Old: format(s.ptr), How: s.how, Why: s.note})
		}
	}
}

func (d *differ) slot(old, new slot, both bool) {
	c := Change{Key: new.path, Op: Changed, New: format(new.ptr), How: new.how, Why: new.note, Pos: new.src.where(new.key)}
	if !both {
		c.Op = Added
		d.add(c)
		return
	}
	c.Old = format(old.ptr)
	if same(old.ptr, new.ptr) {
		return
	}
	c.How, c.Why = special(old, new, c.How, c.Why)
	d.add(c)
}

// same reports whether two values of one key mean the same. The order of
// names means nothing, that of arguments does.
func same(old, new any) bool {
	if a, ok := old.(*Names); ok {
		return slices.Equal(sorted(*a), sorted(*new.(*Names)))
	}
	return format(old) == format(new)
}

// special is how a change applies where that depends on the values.
func special(old, new slot, how How, why string) (How, string) {
	switch a := old.ptr.(type) {
	case *Size:
		if b := new.ptr.(*Size); new.key == "size" && *b < *a {
			return Refused, "a device does not shrink; make a smaller one and copy"
		}
	case *string:
		b := new.ptr.(*string)
		if strings.HasPrefix(new.path, "cluster.tls.") && (*a == "") != (*b == "") {
			return Daemon, "links begin or cease to be encrypted when all nodes have restarted"
		}
	}
	return how, why
}

// contents finds new contents of files whose names stayed.
func (d *differ) contents(old, new *Cluster) {
	if old.SecretFile == new.SecretFile && !bytes.Equal(old.Secret.b, new.Secret.b) {
		d.add(Change{Key: "cluster.secret_file", Op: Changed, Old: old.SecretFile, New: new.SecretFile + " (new content)", How: Live, Pos: new.src.where("secret_file")})
	}
	a, b := old.TLS, new.TLS
	if a.CA == b.CA && a.Cert == b.Cert && a.Key == b.Key && a.content != b.content {
		d.add(Change{Key: "cluster.tls.cert", Op: Changed, Old: a.Cert, New: b.Cert + " (new content)", How: Live, Pos: b.src.where("cert")})
	}
}
