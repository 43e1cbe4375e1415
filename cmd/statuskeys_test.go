package cmd_test

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/rpc/api"
)

// elsewhere is where the object database has what the status has at its top.
var elsewhere = map[string]string{
	"node": "runtime.node", "id": "runtime.status.id", "version": "runtime.version", "revision": "cluster.revision",
	"tick_time_ms": "cluster.tick_time_ms", "max_ping_count": "cluster.max_ping_count", "health": "runtime.status.health",
	"config_revision": "runtime.config.revision", "config_error": "runtime.config.error",
}

// seldom is where the object database has what this status does not show, for
// nothing of the kind is so: its keys are there all the same, and empty.
var seldom = map[string]string{
	".problems.failed":                "runtime.status.problems.1.failed",
	".devices.peers.verified.stopped": "devices.r0.peers.beta.verified.stopped",
	".devices.peers.split_brain":      "devices.r0.peers.beta.split_brain",
	".devices.peers.refused":          "devices.r0.peers.beta.refused",
}

// statusLeaves are the values of a status by their keys in the object database,
// and by their places in the type.
func statusLeaves(at, place string, v any, out map[string]string, places map[string]bool) {
	switch v := v.(type) {
	case nil:
	case map[string]any:
		for name, inner := range v {
			key := at + "." + name
			if at == "" {
				key = name
				if moved, ok := elsewhere[name]; ok {
					key = moved
				}
			}
			statusLeaves(strings.TrimPrefix(key, "."), place+"."+name, inner, out, places)
		}
	case []any:
		for i, item := range v {
			fields := item.(map[string]any)
			base := map[string]string{".problems": "runtime.status.problems", ".overrides": "runtime.status.overrides"}[place]
			if base == "" {
				base = at
			}
			name := fmt.Sprint(i + 1)
			for _, id := range []string{"name", "node", "key"} {
				if s, ok := fields[id].(string); ok {
					name = s
					delete(fields, id) // it is the key's
					places[place+"."+id] = true
					break
				}
			}
			statusLeaves(base+"."+name, place, fields, out, places)
		}
	default:
		places[place] = true
		out[at] = fmt.Sprint(v)
	}
}

// typeLeaves are the places of all that a status can have.
func typeLeaves(place string, t reflect.Type, out map[string]bool) {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct || t.PkgPath() == "time" {
		out[place] = true
		return
	}
	for field := range t.Fields() {
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		typeLeaves(place+"."+name, field.Type, out)
	}
}

// TestAllThatStatusShowsIsInTheObjectDatabase, under a key that scripts can
// read and track: a field of the status that is new has to be there, too.
func TestAllThatStatusShowsIsInTheObjectDatabase(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Devices[0].Extra = "group = \"pair\"\n"
	cfg.Devices = append(cfg.Devices, cluster.Device{Name: "r1", Size: "64MiB", Quorum: "majority", ResyncRate: "1MiB/s", Extra: "group = \"pair\"\n"})
	c := start(t, cfg)
	raw, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	n := &configured{c.Node("alpha"), c, string(raw)}
	// A verify that is over, a resync that takes long, a setting made by command, a file that is wrong, a node that is down.
	n.must(t, nil, "device", "verify", "r0")
	n.must(t, nil, "cmap", "set", "config.cluster.max_ping_count", "str", "5")
	n.must(t, nil, "device", "promote", "r0")
	n.must(t, nil, "device", "promote", "r1")
	if out, err := c.Node("beta").Lockstepctl(within(t, patience), "device", "invalidate", "r1", "--yes"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	until(t, n.Node, "beta resyncs", func(s cluster.Status) bool { return s.Device("r1").Peer("beta").Resync != nil })
	c.Node("gamma").Kill9()
	until(t, n.Node, "gamma is down", cluster.PeerDown("gamma"))
	n.edit(t, "max_ping_count = 4", "max_ping_count = 1")
	n.untilSaid(t, "max_ping_count")

	want := map[string]bool{}
	typeLeaves("", reflect.TypeFor[api.Status](), want)
	var wrong []string
	if !poll(within(t, patience), func() bool { // both are of one moment, some time
		var st map[string]any
		if err := n.Call(t.Context(), "status", nil, &st); err != nil {
			t.Fatal(err)
		}
		values, places := map[string]string{}, map[string]bool{}
		statusLeaves("", "", st, values, places)
		wrong = nil
		for p := range want {
			if places[p] {
				continue
			}
			if key, ok := seldom[p]; ok {
				values[key] = ""
			} else {
				wrong = append(wrong, "the status has no "+p)
			}
		}
		wrong = append(wrong, n.unlike(t, values)...)
		return len(wrong) == 0
	}) {
		t.Errorf("%s", strings.Join(wrong, "\n"))
	}
}

// unlike compares with the object database.
func (n *configured) unlike(t *testing.T, want map[string]string) (wrong []string) {
	t.Helper()
	var all []struct {
		Key   string
		Value json.RawMessage
	}
	if err := n.Call(within(t, patience), "cmap/dump", nil, &all); err != nil {
		t.Fatal(err)
	}
	have := map[string]string{}
	for _, e := range all {
		var v any
		if err := json.Unmarshal(e.Value, &v); err != nil {
			t.Fatal(err)
		}
		have[e.Key] = fmt.Sprint(v)
	}
	for key, value := range want {
		got, ok := have[key]
		switch {
		case !ok:
			wrong = append(wrong, "there is no key "+key)
		case got != value && !(value == "true" && got == "1" || (value == "false" || value == "") && got == "0") && !passing(key) &&
			!strings.Contains(key, ".resync.") && !strings.HasSuffix(key, ".out_of_sync") && !strings.HasSuffix(key, ".at"):
			wrong = append(wrong, fmt.Sprintf("%s is %q, in the status %q", key, got, value))
		}
	}
	return wrong
}
