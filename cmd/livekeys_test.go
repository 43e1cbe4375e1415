package cmd_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/proc"
	"github.com/lockstepd/lockstep/server/config"
)

// liveEdit changes keys in the file, and looks on every node for the effect.
type liveEdit struct {
	keys     string // that it changes, as the schema knows them: without names of nodes and devices
	old, new string
	key      string // of the object database, "" for none
	want     string
}

// liveEdits are edits of every key that changes while everything runs. Each is
// made on top of those before.
func liveEdits(c *cluster.Cluster, secret, handled string) []liveEdit {
	elsewhere := func(id, port int) string { return fmt.Sprintf("%s:%d", c.IP(id), port) }
	return []liveEdit{
		{"cluster.tick_time", `tick_time = "1s"`, `tick_time = "2s"`, "cluster.tick_target_ms", "2000"},
		{"cluster.max_ping_count", "max_ping_count = 4", "max_ping_count = 6", "cluster.max_ping_count", "6"},
		{"cluster.secret_file", `secret_file = "secret"`, fmt.Sprintf("secret_file = %q", secret), "", ""},
		{"cluster.tls.ca cluster.tls.cert cluster.tls.key", tlsFiles(""), tlsFiles("next/"), "", ""},
		{"node.name node.address", "\n[[device]]", fmt.Sprintf("\n[[node]]\nname = \"delta\"\nid = 9\naddress = %q\n\n[[device]]\nnodes = [\"alpha\", \"beta\", \"gamma\"]", elsewhere(9, 7799)), "nodes.delta.id", "9"},
		{"node.address node.bind", elsewhere(9, 7799), elsewhere(10, 7799) + "\"\nbind = \"" + elsewhere(10, 7799), "nodes.delta.address", elsewhere(10, 7799)},
		{"device.protocol", "\n[[device]]", "\n[[device]]\nprotocol = \"A\"", "devices.r0.protocol", "A"},
		{"device.protocol", `protocol = "A"`, `protocol = "B"`, "devices.r0.protocol", "B"},
		{"device.protocol", `protocol = "B"`, `protocol = "C"`, "devices.r0.protocol", "C"},
		{"device.quorum", `quorum = "majority"`, `quorum = "all"`, "devices.r0.quorum", "1"},
		{"device.quorum", `quorum = "all"`, `quorum = "off"`, "devices.r0.quorum", "1"},
		{"device.quorum", `quorum = "off"`, `quorum = 2`, "devices.r0.quorum", "1"},
		{"device.on_no_quorum", "quorum = 2", "quorum = 2\non_no_quorum = \"io-error\"", "", ""},
		{"device.resync_rate", "quorum = 2", "quorum = 2\nresync_rate = \"10MiB/s\"", "", ""},
		{"device.auto_promote", "quorum = 2", "quorum = 2\nauto_promote = false", "", ""},
		{"device.auto_promote", "auto_promote = false", "auto_promote = true", "", ""},
		{"device.on_io_error", "quorum = 2", "quorum = 2\non_io_error = \"pass-on\"", "", ""},
		{"device.disk_timeout", "quorum = 2", "quorum = 2\ndisk_timeout = \"30s\"", "", ""},
		{"device.disk_timeout", `disk_timeout = "30s"`, `disk_timeout = "1m"`, "", ""},
		{"device.disk_timeout", "disk_timeout = \"1m\"\n", "", "", ""},
		{"device.fence_peer", "quorum = 2", "quorum = 2\nfence_peer = [\"/bin/sh\", \"-c\", \"exit 4\"]", "", ""},
		{"device.fence_peer", "fence_peer = [\"/bin/sh\", \"-c\", \"exit 4\"]\n", "", "", ""},
		{"device.after_sb_0pri device.after_sb_1pri device.after_sb_2pri", "quorum = 2", "quorum = 2\nafter_sb_0pri = \"discard-zero-changes\"\nafter_sb_1pri = \"consensus\"\nafter_sb_2pri = \"call-pri-lost-after-sb\"", "", ""},
		{"device.nbd device.on.nbd", "on_no_quorum = \"io-error\"", fmt.Sprintf("on_no_quorum = \"io-error\"\nnbd = []\n[device.on.alpha]\nnbd = [\"unix\", \"tcp:%s\"]", elsewhere(0, 10809)), "", ""},
		{"device.name device.size", "\n[[device]]", "\n[[device]]\nname = \"r1\"\nsize = \"4MiB\"\nnodes = [\"alpha\", \"beta\", \"gamma\"]\n\n[[device]]", "devices.r1.size", "4194304"},
		{"control.admin_groups control.read_groups control.admin_names control.read_names", "\n[[node]]", "\n[control]\nadmin_groups = [\"0\"]\nread_groups = [\"1\"]\nadmin_names = [\"a\"]\nread_names = [\"b\"]\n\n[[node]]", "", ""},
		{"log.level log.format", "\n[[node]]", "\n[log]\nlevel = \"debug\"\nformat = \"json\"\n\n[[node]]", "", ""},
		{"log.file log.format", "format = \"json\"", fmt.Sprintf("format = \"text\"\nfile = %q", filepath.Join(c.Dir, "one.log")), "", ""},
		{"handler.event handler.command handler.device handler.node handler.timeout handler.max_parallel handler.retries", "\n[[node]]",
			fmt.Sprintf("\n[[handler]]\nevent = \"config\"\ncommand = [\"/bin/sh\", \"-c\", \"cat >>%s\"]\ntimeout = \"5s\"\nmax_parallel = 1\nretries = 1\n\n[[handler]]\nevent = \"role\"\ncommand = [\"/bin/true\"]\ndevice = [\"r0\"]\nnode = [\"beta\"]\n\n[[node]]", handled), "", ""},
		{"node.name", fmt.Sprintf("\n[[node]]\nname = \"delta\"\nid = 9\naddress = %q\nbind = %q\n", elsewhere(10, 7799), elsewhere(10, 7799)), "", "cluster.max_ping_count", "6"},
		{"device.name", "\n[[device]]\nname = \"r1\"\nsize = \"4MiB\"\nnodes = [\"alpha\", \"beta\", \"gamma\"]\n", "", "services.nbd.state", "running"},
	}
}

// tlsFiles are the files of the certificates, in a folder.
func tlsFiles(dir string) string {
	return fmt.Sprintf("tls = { ca = %q, cert = %q, key = %q }\n", dir+"ca.pem", dir+"node.pem", dir+"node.key")
}

// schemaKey is a key without the names of nodes and devices.
func schemaKey(path string) string {
	parts := strings.Split(path, ".")
	if kind := parts[0]; kind == "node" || kind == "device" || kind == "handler" {
		parts = append(parts[:1], parts[2:]...)
		if len(parts) == 4 && parts[1] == "on" {
			parts = append(parts[:2], parts[3])
		}
	}
	return strings.Join(parts, ".")
}

// checkRevision holds that the newest revision changed just these keys, and how.
func checkRevision(t *testing.T, n *configured, keys string) {
	t.Helper()
	var history []struct {
		Changes []struct{ Key, How string }
	}
	if err := n.Call(within(t, patience), "config/history", nil, &history); err != nil || len(history) == 0 {
		t.Fatalf("%v, %v", history, err)
	}
	want := strings.Fields(keys)
	got := map[string]bool{}
	for _, c := range history[0].Changes {
		key := schemaKey(c.Key)
		got[key] = true
		if !strings.Contains(key, ".") { // a node, a device, a handler came or went, with all of its keys
			for _, w := range want {
				got[w] = got[w] || strings.HasPrefix(w, key+".")
			}
		} else if !slices.Contains(want, key) {
			t.Errorf("%s was changed as well as %s", c.Key, keys)
		}
		if c.How != string(config.Live) {
			t.Errorf("%s is changed %s, not live", c.Key, c.How)
		}
	}
	for _, w := range want {
		if !got[w] {
			t.Errorf("%s was not changed, but %+v", w, history[0].Changes)
		}
	}
}

// fioUntil writes and verifies with fio, again and again, until stopped; it
// returns how often that went well.
func fioUntil(t *testing.T, host *proc.Host, uri string) (stop func() int) {
	done, ended := make(chan struct{}), make(chan struct{})
	runs, failed := 0, error(nil)
	go func() {
		defer close(ended)
		for failed == nil {
			if failed = fioVerify(t.Context(), host, uri, "16M"); failed == nil {
				runs++
			}
			select {
			case <-done:
				return
			default:
			}
		}
	}()
	end := sync.OnceFunc(func() { close(done); <-ended })
	t.Cleanup(end)
	return func() int {
		end()
		if failed != nil {
			t.Errorf("fio: %v", failed)
		}
		return runs
	}
}

// TestEveryLiveKeyUnderFio changes every live key on three nodes while fio
// writes and verifies on one of them: it sees no error, nobody restarts, no
// device is reopened. A key of the schema that is live and not changed here
// fails the test, and so does one that is only said to be changed.
func TestEveryLiveKeyUnderFio(t *testing.T) {
	need(t, "fio")
	t.Parallel()
	cfg := quick()
	cfg.Security = tlsFiles("")
	c := layOut(t, cfg, nil)
	next := filepath.Join(c.Dir, "next")
	if err := os.Mkdir(next, 0o755); err != nil {
		t.Fatal(err)
	}
	identities(t, c.Dir, cfg.Nodes...)
	identities(t, next, cfg.Nodes...)
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, c, "r0")
	raw, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	var nodes []*configured
	for _, n := range c.Nodes {
		nodes = append(nodes, &configured{n, c, string(raw)})
	}
	if err := os.WriteFile(filepath.Join(c.Dir, "secret2"), []byte("another cookie for one run\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	holder := open(t, c.Nodes[0]) // keeps the device open, and this node primary
	stop := fioUntil(t, c.Host(), c.Nodes[0].URI("r0"))
	opened, pid := nodes[0].key(t, "services.device/r0.since"), nodes[0].Pid()
	covered := map[string]bool{}
	for i, e := range liveEdits(c, "secret2", filepath.Join(c.Dir, "handled")) {
		nodes[0].edit(t, e.old, e.new)
		for _, n := range nodes {
			n.untilKey(t, "runtime.config.revision", fmt.Sprint(i+2))
			if e.key != "" {
				n.untilKey(t, e.key, e.want)
			}
			checkRevision(t, n, e.keys)
		}
		for k := range strings.FieldsSeq(e.keys) {
			covered[k] = true
		}
	}
	if runs := stop(); runs == 0 {
		t.Error("fio has not come to its end once")
	}
	for _, k := range config.Schema() {
		if k.How == config.Live && !covered[k.Path] {
			t.Errorf("%s is live, and was not changed", k.Path)
		}
	}
	if now := nodes[0].key(t, "services.device/r0.since"); now != opened || now == "" || nodes[0].Pid() != pid {
		t.Errorf("the device was opened again: %q, before %q", now, opened)
	}
	holder.Close()
	converged(t, c)
}
