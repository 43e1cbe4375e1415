package cmd_test

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
	"github.com/lockstepd/lockstep/server/config"
)

// settled is all that the object database says of the configuration and of
// what runs, but for times, counters, and what befell the links.
func (n *configured) settled(t *testing.T) []string {
	t.Helper()
	var all []struct {
		Key   string
		Value any
	}
	if err := n.Call(within(t, patience), "cmap/dump", nil, &all); err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range all {
		if !passing(e.Key) {
			out = append(out, fmt.Sprintf("%s=%v", e.Key, e.Value))
		}
	}
	return out
}

// passing reports whether a key has other values without a change of the
// configuration.
func passing(key string) bool {
	switch {
	case strings.HasPrefix(key, "stats."), slices.Contains([]string{"runtime.config.error", "services.config.health", "cluster.revision", "cluster.tick_remaining_ms"}, key):
		return true
	case strings.HasPrefix(key, "nodes.delta."): // nobody is there
		return !strings.HasSuffix(key, ".id") && !strings.HasSuffix(key, ".address")
	case strings.HasPrefix(key, "nodes."):
		return strings.HasSuffix(key, ".since") || strings.HasSuffix(key, ".rtt_us") || strings.HasSuffix(key, ".missed_pings") || strings.HasSuffix(key, ".last_error")
	}
	return strings.HasSuffix(key, ".since") || strings.HasPrefix(key, "runtime.status.")
}

// randomEdit is one change of the file: old, which is there once, becomes text,
// whose %d is a number that differs each time.
type randomEdit struct {
	name      string
	old, text string
	verdict   func(node string) bool // whether a node takes it
}

func byAll(string) bool  { return true }
func byNone(string) bool { return false }

// randomEdits are edits of all kinds, good and bad. Some pass the validator and
// fail while they are applied, on one node only.
func randomEdits(c *cluster.Cluster, inUse string) []randomEdit {
	const device = "\n[[device]]"
	another := func(name, lines string) string {
		return fmt.Sprintf("\n[[device]]\nname = %q\nsize = \"1MiB\"\nnodes = [\"alpha\", \"beta\", \"gamma\"]\n%s\n\n[[device]]", name, lines)
	}
	onAlpha := func(listen string) string {
		return fmt.Sprintf("quorum = 'majority' # %%d\n[device.on.alpha]\nnbd = [\"unix\", \"tcp:%s\"]", listen)
	}
	butAlpha := func(node string) bool { return node != "alpha" }
	return []randomEdit{
		{"pings", "max_ping_count = 4", "max_ping_count = %d", byAll},
		{"another device", device, another("r7", "disk_timeout = \"%ds\""), byAll},
		{"one of io-error", device, another("r6", "on_no_quorum = \"io-error\" # %d"), byAll},
		{"a handler", device, "\n[[handler]]\nevent = \"role\"\ncommand = [\"/bin/true\"]\ntimeout = \"%ds\"\n\n[[device]]", byAll},
		{"protocol and rate", device, "\n[[device]]\nprotocol = \"B\"\nresync_rate = \"%dMiB/s\"", byAll},
		{"quorum", "quorum = \"majority\"", "quorum = 2 # %d\non_no_quorum = \"io-error\"", byAll},
		{"a listener", "quorum = \"majority\"", onAlpha(c.IP(0) + ":10809"), byAll},
		{"a node", device, fmt.Sprintf("\n[[node]]\nname = \"delta\"\nid = 9\naddress = \"%s:7799\" # %%d\n\n[[device]]", c.IP(9)), byAll},
		{"an address in use", "quorum = \"majority\"", onAlpha(inUse), butAlpha},
		{"a negative number", "max_ping_count = 4", "max_ping_count = -%d", byNone},
		{"no size", "size = ", "size = \"%d\" # ", byNone},
		{"needs a restart", "[cluster]", "[cluster]\nsign = true # %d", byNone},
		{"an unknown key", "\n[[node]]", strings.TrimSuffix(another("r8", "nonsense = %d"), device) + "\n[[node]]", byNone},
		{"a disk in no folder", device, another("r9", "disk = \"/nonexistent/%d\""), byNone},
		{"no TOML", "[cluster]", "[cluster %d", byNone},
		{"another disk of an open device", "quorum = \"majority\"", "quorum = 'majority' # %d\n[device.on.alpha]\ndisk = \"other.img\"", butAlpha},
	}
}

// TestRandomEditsNeverHalfApply edits the file of three nodes at random, for
// good and for bad, while a client writes to one of them, and has all of them
// reload it at the same time, by command and because the file changed. On each
// node the object database then shows the file as a whole, or it shows what it
// did before, to the last key.
func TestRandomEditsNeverHalfApply(t *testing.T) {
	t.Parallel()
	s, rnd := seed(t)
	cfg := quick()
	cfg.Devices[0].Nodes = []string{"alpha", "beta", "gamma"}
	c := start(t, cfg)
	raw, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	good := string(raw)
	inUse, err := net.Listen("tcp", c.IP(0)+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer inUse.Close()
	edits := randomEdits(c, inUse.Addr().String())
	book := ledger.New(s, faultSize)
	tr := load(t, book, c.Node("alpha"), 0)
	tr.moves(t)
	f := &editFuzz{c: c}
	f.apply(t, good, nil)
	applied, kept := 0, 0
	for i := range 40 {
		text, made := good, []randomEdit(nil)
		for _, at := range rnd.Perm(len(edits))[:1+rnd.IntN(3)] {
			e := edits[at]
			if e.verdict("alpha") != e.verdict("beta") { // on top of what all have, and alone: the others' devices stay
				text, made = strings.Replace(f.now, e.old, fmt.Sprintf(e.text, 5+i), 1), []randomEdit{e}
				break
			}
			if next := strings.Replace(text, e.old, fmt.Sprintf(e.text, 5+i), 1); next != text {
				text, made = next, append(made, e)
			}
		}
		if text == f.now {
			continue
		}
		took := f.apply(t, text, made)
		applied, kept = applied+took, kept+len(c.Nodes)-took
		tr.moves(t)
	}
	if applied == 0 || kept == 0 {
		t.Errorf("%d times the file was applied, %d times it was not", applied, kept)
	}
	f.apply(t, good, nil)
	tr.flawless(t)
	conn := open(t, c.Node("alpha"))
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	converged(t, c)
}

type editFuzz struct {
	c   *cluster.Cluster
	now string // the last text that all nodes took
}

// apply saves a text, has all nodes reload it, and looks at each. It returns
// how many have taken it.
func (f *editFuzz) apply(t *testing.T, text string, made []randomEdit) (took int) {
	t.Helper()
	nodes := make([]*configured, len(f.c.Nodes))
	before, errs := make([][]string, len(nodes)), make([]error, len(nodes))
	for i, n := range f.c.Nodes {
		until(t, n, "its devices are whole", whole)
		nodes[i] = &configured{n, f.c, text}
		before[i] = nodes[i].settled(t)
	}
	if err := os.WriteFile(f.c.Config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = n.Call(within(t, patience), "config/reload", nil, nil) })
	}
	wg.Wait()
	var names []string
	for _, e := range made {
		names = append(names, e.name)
	}
	for i, n := range nodes {
		want := true
		for _, e := range made {
			want = want && e.verdict(n.Name)
		}
		if (errs[i] == nil) != want {
			t.Fatalf("%s with %q: %v; the file is\n%s", n.Name, names, errs[i], text)
		}
		if errs[i] == nil {
			took++
			f.shows(t, n, names)
		} else if after := n.settled(t); !slices.Equal(before[i], after) {
			t.Fatalf("%s refused %q: %v; and the object database has\n%s", n.Name, names, errs[i], firstDifference(before[i], after))
		}
	}
	if took == len(nodes) {
		f.now = text
	}
	return took
}

// shows holds that a node's object database has the file, and nothing else.
func (f *editFuzz) shows(t *testing.T, n *configured, edits []string) {
	t.Helper()
	cfg, err := config.Load(f.c.Config)
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, k := range cfg.Keys() {
		want = append(want, "config."+k.Path+"="+k.Value)
	}
	for _, line := range n.settled(t) {
		if strings.HasPrefix(line, "config.") {
			got = append(got, line)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(want, got) {
		t.Fatalf("%s took %q, and the object database has\n%s", n.Name, edits, firstDifference(want, got))
	}
	local, err := cfg.Local(n.Name)
	if err != nil {
		t.Fatal(err)
	}
	var devices []string
	for _, d := range local.Devices {
		devices = append(devices, d.Name)
	}
	var st cluster.Status
	if err := n.Call(within(t, patience), "status", nil, &st); err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, d := range st.Devices {
		have = append(have, d.Name)
	}
	slices.Sort(devices)
	slices.Sort(have)
	if !slices.Equal(devices, have) {
		t.Fatalf("%s took %q, and has the devices %q, not %q", n.Name, edits, have, devices)
	}
}

// whole holds where all devices are in sync with all nodes that have them.
func whole(s cluster.Status) bool {
	for _, d := range s.Devices {
		if d.Disk != "UpToDate" || !d.Quorum {
			return false
		}
		for _, p := range d.Peers {
			if p.Disk != "UpToDate" || p.Replication != "Established" {
				return false
			}
		}
	}
	return true
}

func firstDifference(a, b []string) string {
	var out []string
	for _, l := range a {
		if !slices.Contains(b, l) {
			out = append(out, "- "+l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			out = append(out, "+ "+l)
		}
	}
	return strings.Join(out, "\n")
}
