package cmd_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/nbdio"
)

// configured is one node on its own, and its configuration file.
type configured struct {
	*cluster.Node
	c    *cluster.Cluster
	text string
}

// layOutConfigured makes a node whose file says extra besides the usual.
func layOutConfigured(t *testing.T, extra string) *configured {
	t.Helper()
	cfg := one()
	cfg.Extra = extra
	c := layOut(t, cfg, nil)
	raw, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	return &configured{c.Nodes[0], c, string(raw)}
}

// startConfigured starts such a node.
func startConfigured(t *testing.T, extra string) *configured {
	t.Helper()
	n := layOutConfigured(t, extra)
	launch(t, n.Node)
	return n
}

// add appends to the file.
func (n *configured) add(t *testing.T, text string) {
	t.Helper()
	n.text += text
	if err := os.WriteFile(n.c.Config, []byte(n.text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// edit replaces a text in the file, in place.
func (n *configured) edit(t *testing.T, old, new string) {
	t.Helper()
	if !strings.Contains(n.text, old) {
		t.Fatalf("%q is not in\n%s", old, n.text)
	}
	n.text = strings.Replace(n.text, old, new, 1)
	if err := os.WriteFile(n.c.Config, []byte(n.text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// ctl runs lockstepctl and returns its output and exit status.
func (n *configured) ctl(t *testing.T, args ...string) (string, int) {
	t.Helper()
	return ctlOf(t, n.Node, args...)
}

// must runs lockstepctl, which must succeed and say all of these.
func (n *configured) must(t *testing.T, says []string, args ...string) string {
	t.Helper()
	out, status := n.ctl(t, args...)
	for _, want := range says {
		if status != 0 || !strings.Contains(out, want) {
			t.Fatalf("%q: status %d, and not %q in\n%s", args, status, want, out)
		}
	}
	return out
}

// key reads a key of the object database.
func (n *configured) key(t *testing.T, key string) string {
	t.Helper()
	out, _ := n.ctl(t, "-q", "cmap", "get", key)
	return strings.TrimSpace(out)
}

// untilKey waits until a key of the object database has a value.
func (n *configured) untilKey(t *testing.T, key, want string) {
	t.Helper()
	var got string
	if !poll(within(t, patience), func() bool {
		var e struct{ Value json.RawMessage }
		if err := n.Call(t.Context(), "cmap/get", map[string]string{"key": key}, &e); err != nil {
			got = err.Error()
		} else {
			got = strings.Trim(string(e.Value), `"`)
		}
		return got == want
	}) {
		t.Fatalf("%s is %q, not %q", key, got, want)
	}
}

// TestEveryLiveKeyByEditingTheFile changes what can change while the daemon
// runs, by nothing but saving the file, and while fio writes and verifies.
func TestEveryLiveKeyByEditingTheFile(t *testing.T) {
	need(t, "fio")
	t.Parallel()
	n := startConfigured(t, "\n[log]\nlevel = \"info\"\n")
	holder := open(t, n.Node)
	stop := fioUntil(t, n.c.Host(), n.URI("r0"))
	pid := n.Pid()
	revision := 1
	edit := func(old, new string) {
		n.edit(t, old, new)
		revision++
		n.untilKey(t, "runtime.config.revision", fmt.Sprint(revision))
	}
	// A setting, a node and a device, each in its own transaction.
	edit(`max_ping_count = 4`, `max_ping_count = 7`)
	n.untilKey(t, "cluster.max_ping_count", "7")
	edit(`tick_time = "`, "tick_time = \"1m0s\" # was \"")
	n.untilKey(t, "cluster.tick_target_ms", "60000")
	edit("\n[[device]]", fmt.Sprintf("\n[[node]]\nname = \"delta\"\nid = 9\naddress = %q\n\n[[device]]\nnodes = [\"alpha\"]", n.c.IP(9)+":7799"))
	n.untilKey(t, "nodes.delta.id", "9")
	edit(n.c.IP(9)+":7799", n.c.IP(10)+":7799")
	n.untilKey(t, "nodes.delta.address", n.c.IP(10)+":7799")
	edit("\n[log]", "\n[[device]]\nname = \"r1\"\nsize = \"1MiB\"\nnodes = [\"alpha\"]\nquorum = \"off\"\n\n[log]")
	n.untilKey(t, "devices.r1.size", "1048576")
	use(t, n.Node, "r1")
	edit("quorum = \"off\"\n", "quorum = \"off\"\nresync_rate = \"1MiB/s\"\n")
	use(t, n.Node, "r1")
	edit("resync_rate = \"1MiB/s\"\n", "resync_rate = \"1MiB/s\"\nnbd = [\"tcp:"+n.c.IP(0)+":10809\"]\n")
	if _, err := os.Stat(n.NBD("r1")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket of a listener that is gone: %v", err)
	}
	if conn, err := nbdio.DialNetwork(within(t, patience), "tcp", n.c.IP(0)+":10809", "r1"); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	edit(`level = "info"`, `level = "debug"`)
	if out := n.must(t, []string{"DBG"}, "log", "list"); !strings.Contains(out, "messenger") {
		t.Error(out)
	}
	edit("\n[log]", fmt.Sprintf("\n[metrics]\nlisten = \"%s:9799\"\n\n[log]", n.c.IP(0)))
	if conn, err := net.Dial("tcp", n.c.IP(0)+":9799"); err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	edit("\n[log]", "\n[control]\nadmin_groups = [\"0\"]\n\n[log]")
	flag := filepath.Join(n.c.Dir, "handled")
	edit("\n[log]", fmt.Sprintf("\n[[handler]]\nevent = \"config\"\ncommand = [\"/bin/sh\", \"-c\", \"cat >> %s\"]\n\n[log]", flag))
	edit(`level = "debug"`, `level = "warn"`)
	if !poll(within(t, patience), func() bool {
		raw, err := os.ReadFile(flag)
		return err == nil && bytes.Contains(raw, []byte(`"type":"config"`))
	}) {
		t.Error("the handler did not run")
	}
	if err := os.WriteFile(filepath.Join(n.c.Dir, "secret"), []byte("another cookie for one run\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	revision++
	n.untilKey(t, "runtime.config.revision", fmt.Sprint(revision))
	begin := strings.Index(n.text, "\n[[device]]\nname = \"r1\"")
	end := begin + 1 + strings.Index(n.text[begin+1:], "\n[")
	edit(n.text[begin:end], "")
	if out, status := n.ctl(t, "device", "show", "r1"); status == 0 {
		t.Errorf("the device is there still:\n%s", out)
	}
	n.must(t, []string{"metrics.listen", "handler"}, "config", "history")
	if runs := stop(); runs == 0 {
		t.Error("fio has not come to its end once")
	}
	holder.Close()
	if n.Pid() != pid {
		t.Error("it was restarted")
	}
}

// use opens a device and writes to it.
func use(t *testing.T, n *cluster.Node, device string) {
	t.Helper()
	conn, err := nbdio.Dial(within(t, patience), n.NBD(device), device)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
}

// TestARefusedConfigurationChangesNothing: the object database is the same
// before and after, the status says what is wrong, the exit status is not 0.
func TestARefusedConfigurationChangesNothing(t *testing.T) {
	t.Parallel()
	n := startConfigured(t, "")
	good := n.text
	conn := open(t, n.Node)
	defer conn.Close()
	taken, err := net.Listen("tcp", n.c.IP(0)+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	before := n.settled(t)
	for name, c := range map[string]struct {
		old, new string
		says     []string
	}{
		"unknown key":    {"max_ping_count", "max_ping_cont", []string{"lockstep.toml:5:1", "max_ping_cont"}},
		"no TOML":        {"[cluster]", "[cluster", []string{"lockstep.toml:1:"}},
		"wrong type":     {"max_ping_count = 4", "max_ping_count = \"4\"", []string{"lockstep.toml:5:18"}},
		"open device":    {"[[device]]", "[[device]]\nal_extents = 100", []string{"lockstep.toml:", "r0 is open by 1 clients"}},
		"needs restart":  {`name = "demo"`, `name = "other"`, []string{"lockstep.toml:2:8", "needs-restart", "--partial"}},
		"half of it bad": {`max_ping_count = 4`, "max_ping_count = 9\nsign = true", []string{"lockstep.toml:6:8", "cluster.sign"}},
		"address in use": {"[[device]]", fmt.Sprintf("[metrics]\nlisten = %q\n\n[[device]]", taken.Addr()), []string{"lockstep.toml:", "in use", "all is as it was before"}},
		"node, no device": {"[[device]]", fmt.Sprintf("[[node]]\nname = \"delta\"\nid = 9\naddress = \"%s:7799\"\n\n[[device]]\nname = \"r1\"\nsize = \"1MiB\"\nnodes = [\"alpha\"]\ndisk = \"/nonexistent/x\"\n\n[[device]]\nnodes = [\"alpha\"]", n.c.IP(9)),
			[]string{"lockstep.toml:", "cannot use disk", "all is as it was before"}},
	} {
		n.text = good
		n.edit(t, c.old, c.new)
		out, status := n.ctl(t, "config", "reload")
		if status != 1 {
			t.Errorf("%s: exit status %d:\n%s", name, status, out)
		}
		for _, want := range c.says {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %q is not in\n%s", name, want, out)
			}
		}
		if list, _ := n.ctl(t, "service", "list"); !strings.Contains(list, "the file is not applied") {
			t.Errorf("%s: the service is well:\n%s", name, list)
		}
		if st, _ := n.ctl(t, "-f", "json", "status"); !strings.Contains(st, `"config_error"`) {
			t.Errorf("%s: the status says nothing:\n%s", name, st)
		}
		if after := n.settled(t); !slices.Equal(before, after) {
			t.Errorf("%s: %v became %v", name, before, after)
		}
	}
	n.text = good
	if err := os.WriteFile(n.c.Config, []byte(good), 0o600); err != nil {
		t.Fatal(err)
	}
	n.must(t, nil, "config", "reload")
	if got := n.key(t, "runtime.config.error"); got != "" {
		t.Errorf("after mending: %q", got)
	}
}

// TestReloadBySignal, by hand, in part, and back again; and what is set by
// command stays until it is saved.
func TestReloadBySignalByHandInPartAndBack(t *testing.T) {
	t.Parallel()
	n := startConfigured(t, "")
	n.edit(t, "max_ping_count = 4", "max_ping_count = 5")
	n.Proc().Signal(syscall.SIGHUP)
	n.untilKey(t, "cluster.max_ping_count", "5")
	n.must(t, []string{"nothing has changed"}, "config", "reload")

	n.edit(t, "max_ping_count = 5", "max_ping_count = 6\nsign = true")
	out := n.must(t, []string{"cluster.max_ping_count", "live", "cluster.sign", "needs-restart"}, "config", "diff")
	if _, status := n.ctl(t, "config", "reload"); status != 1 {
		t.Errorf("it was applied, though it was\n%s", out)
	}
	n.must(t, []string{"1 changes wait for a restart"}, "config", "reload", "--partial")
	n.untilKey(t, "cluster.max_ping_count", "6")

	n.must(t, []string{"again"}, "config", "rollback", "2")
	n.untilKey(t, "cluster.max_ping_count", "5")
	if raw, err := os.ReadFile(n.c.Config); err != nil || !strings.Contains(string(raw), "max_ping_count = 5") {
		t.Errorf("the file: %s, %v", raw, err)
	}

	n.must(t, nil, "cmap", "set", "config.cluster.max_ping_count", "str", "8")
	n.untilKey(t, "cluster.max_ping_count", "8")
	n.must(t, []string{"cluster.max_ping_count = 8 (file: 5)"}, "config", "show")
	if out, status := n.ctl(t, "cmap", "set", "config.cluster.max_ping_count", "str", "1"); status != 1 {
		t.Errorf("a value that the file may not have: %s", out)
	}
	n.must(t, nil, "config", "save")
	if raw, err := os.ReadFile(n.c.Config); err != nil || !strings.Contains(string(raw), "max_ping_count = 8") {
		t.Errorf("the file: %s, %v", raw, err)
	}
	n.must(t, nil, "tick", "set", "30")
	n.must(t, []string{"cluster.tick_time = 30s (file: 1s)"}, "config", "show")
	n.must(t, []string{"set by command: cluster.tick_time = 30s (file: 1s)"}, "status")
	n.must(t, []string{`"overrides": [`}, "-f", "json", "--pretty", "status")
	n.must(t, []string{"set by command: cluster.tick_time = 30s (file: 1s)"}, "call", "status")
	// A restart by the monitor, or any other, keeps it.
	if err := n.Restart(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	n.must(t, []string{"set by command: cluster.tick_time = 30s (file: 1s)"}, "status")
	n.must(t, []string{"cluster.tick_time: 1s → 30s", "cluster.max_ping_count: 5 → 6"}, "config", "history")
	n.must(t, nil, "config", "save")
	if out := n.must(t, nil, "status"); strings.Contains(out, "set by command") {
		t.Errorf("what was saved is not the file's:\n%s", out)
	}
}

// TestServicesByCommand: what may be stopped is, what others need is not.
func TestServicesByCommand(t *testing.T) {
	t.Parallel()
	n := startConfigured(t, "")
	list := n.must(t, nil, "service", "list")
	for _, want := range []string{"cmap", "config", "control", "cluster", "device/r0", "events", "handlers", "messenger", "nbd", "nbd/r0/unix"} {
		if !strings.Contains(list, want) {
			t.Errorf("%s is not in\n%s", want, list)
		}
	}
	for name, says := range map[string]string{"messenger": "does not work without it", "device/r0": "nbd/r0/unix@1 needs it", "none": "there is no service none"} {
		if out, status := n.ctl(t, "service", "stop", name); status != 1 || !strings.Contains(out, says) {
			t.Errorf("stop %s: status %d, %s", name, status, out)
		}
	}
	n.must(t, nil, "service", "stop", "nbd/r0/unix")
	if conn, err := net.Dial("unix", n.NBD("r0")); err == nil {
		conn.Close()
		t.Error("clients still get in")
	}
	n.must(t, nil, "service", "restart", "device/r0")
	n.must(t, nil, "service", "start", "nbd/r0/unix")
	use(t, n.Node, "r0")
	n.must(t, []string{"writes", "needed_by"}, "service", "show", "device/r0")
	for name, figure := range map[string]string{"cluster": "nodes_up", "messenger": "queued_bytes", "config": "revision", "control": "requests",
		"nbd": "accepted", "cmap": "keys", "events": "events", "handlers": "lost"} {
		n.must(t, []string{figure}, "service", "show", name)
	}
	n.must(t, []string{`lockstep_service_running{service="device/r0"} 1`}, "metrics")
}

// TestKeysAreTracked: a change arrives at who tracks it, as a notification.
func TestKeysAreTracked(t *testing.T) {
	t.Parallel()
	n := startConfigured(t, "")
	conn, err := net.Dial("unix", n.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deadline, _ := within(t, patience).Deadline()
	_ = conn.SetDeadline(deadline)
	fmt.Fprint(conn, `{"jsonrpc":"2.0","id":1,"method":"cmap/track","params":{"prefix":"user."}}`+"\n")
	dec := json.NewDecoder(conn)
	var reply struct {
		Method string
		Result any
		Params struct {
			Key, Op  string
			Old, New *struct{ Value any }
		}
	}
	if err := dec.Decode(&reply); err != nil || reply.Result == nil {
		t.Fatalf("%+v, %v", reply, err)
	}
	n.must(t, nil, "cmap", "set", "user.site", "str", "north")
	n.must(t, nil, "cmap", "set", "user.site", "str", "south")
	n.must(t, nil, "cmap", "delete", "user.site")
	var got []string
	for range 3 {
		reply.Params.Old, reply.Params.New = nil, nil
		if err := dec.Decode(&reply); err != nil {
			t.Fatal(err)
		}
		text := reply.Method + " " + reply.Params.Op + " " + reply.Params.Key
		if v := reply.Params.New; v != nil {
			text += fmt.Sprint(" ", v.Value)
		}
		got = append(got, text)
	}
	if want := []string{"cmap added user.site north", "cmap modified user.site south", "cmap deleted user.site"}; !slices.Equal(got, want) {
		t.Errorf("%q", got)
	}
	if out, status := n.ctl(t, "cmap", "set", "nodes.x.state", "str", "up"); status != 1 || !strings.Contains(out, "read-only") {
		t.Errorf("%d: %s", status, out)
	}
}
