package cmd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// TestEveryCommandByOvsAppctl calls every command of the registry, without
// arguments, with the stock ovs-appctl: each answers or says what it needs.
func TestEveryCommandByOvsAppctl(t *testing.T) {
	need(t, "ovs-appctl")
	t.Parallel()
	c := start(t, quick())
	alpha := c.Node("alpha")
	appctl := func(args ...string) (string, error) {
		out, err := exec.CommandContext(within(t, patience), "ovs-appctl",
			append([]string{"-T", "20", "-t", alpha.Socket()}, args...)...).CombinedOutput()
		return string(out), err
	}
	list, err := appctl("list-commands")
	if err != nil {
		t.Fatalf("list-commands: %v\n%s", err, list)
	}
	var names []string
	for line := range strings.Lines(list) {
		// The first line is a heading; a command's name is followed by its usage.
		if f := strings.Fields(line); len(f) > 0 && !strings.HasSuffix(strings.TrimSpace(line), ":") {
			names = append(names, f[0])
		}
	}
	for _, want := range []string{"list-commands", "version", "help", "exit", "status", "node/list", "node/show", "node/why",
		"node/connect", "node/disconnect", "node/reconnect", "tick/get", "tick/set", "device/list", "device/show", "device/why",
		"device/promote", "device/demote", "device/wait"} {
		if !slices.Contains(names, want) {
			t.Errorf("%s is not in the list:\n%s", want, list)
		}
	}
	for _, name := range names {
		if name == "exit" || name == "restart" || strings.HasSuffix(name, "wait") {
			continue // they end the daemon, or wait for what does not come
		}
		out, err := appctl(name)
		if err != nil && !strings.Contains(out, "server returned an error") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		if low := strings.ToLower(out); strings.Contains(low, "internal error") || strings.Contains(low, "panic") {
			t.Errorf("%s: %s", name, out)
		}
		later(t, alpha, name)
	}
	if out, err := appctl("node/connect"); err != nil { // node/disconnect was one of them
		t.Errorf("node/connect: %v\n%s", err, out)
	}
	inSync(t, c, "r0")
	if out, err := appctl("exit"); err != nil {
		t.Errorf("exit: %v\n%s", err, out)
	}
	if st, err := alpha.Proc().Wait(within(t, patience)); err != nil || !st.Success() {
		t.Errorf("after exit: %v, %v", st, err)
	}
}

// later calls a command without arguments as the ovs-appctl of 3.4 and later
// does that is asked for JSON, byte by byte, and checks that it can take the
// replies: exactly its members, an error that is a string, and no zero byte.
func later(t *testing.T, n *cluster.Node, name string) {
	t.Helper()
	nc, err := net.Dial("unix", n.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ctx := within(t, patience)
	defer context.AfterFunc(ctx, func() { nc.Close() })()
	replies := json.NewDecoder(nc)
	for id, request := range []string{`{"id":0,"method":"set-options","params":["--format","json"]}`, fmt.Sprintf(`{"id":1,"method":%q,"params":[]}`, name)} {
		if _, err := io.WriteString(nc, request); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var raw json.RawMessage
		var reply map[string]json.RawMessage
		for reply["id"] == nil || string(reply["id"]) == "null" { // it passes over notifications
			reply = nil
			if err := errors.Join(replies.Decode(&raw), json.Unmarshal(raw, &reply)); err != nil {
				t.Fatalf("%s: %v (%v)", name, err, context.Cause(ctx))
			}
		}
		members := strings.Join(slices.Sorted(maps.Keys(reply)), " ")
		succeeded := members == "error id result" && string(reply["error"]) == "null" && string(reply["result"]) != "null"
		failed := members == "error id" && reply["error"][0] == '"'
		if string(reply["id"]) != strconv.Itoa(id) || !succeeded && (!failed || id == 0) || bytes.Contains(raw, []byte(`\u0000`)) {
			t.Errorf("the later ovs-appctl cannot take the reply to %s: %.2000s", request, raw)
		}
	}
}

// questions are commands that look at everything there is.
var questions = [][]string{
	{"status"}, {"node", "list"}, {"device", "list"}, {"device", "show", "r0"}, {"device", "why", "r0"}, {"device", "dump-md", "r0"},
	{"config", "show"}, {"config", "diff"}, {"service", "list"}, {"cmap", "dump"}, {"metrics"}, {"memory"}, {"coverage"}, {"log", "list"},
	{"call", "messenger/show"}, {"call", "reconnect/show"}, {"call", "tick/get"}, {"list-commands"}, {"version"},
}

// answersAll asks a node everything, some of it many times over, and logs the
// longest wait for a status.
func answersAll(t *testing.T, n *cluster.Node) {
	t.Helper()
	for _, q := range questions {
		if out, err := n.Lockstepctl(within(t, patience), q...); err != nil {
			t.Errorf("%q: %v\n%s", q, err, out)
		}
	}
	ctx, longest := within(t, patience), time.Duration(0)
	for range 200 {
		begin := time.Now()
		if _, err := n.Status(ctx); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(begin))
	}
	t.Logf("the slowest of 200 answers took %v", longest)
}

// loaded is the node of three that clients load.
func loaded(t testing.TB) (*cluster.Node, *traffic) {
	s, _ := seed(t)
	alpha := start(t, quick()).Node("alpha")
	return alpha, load(t, ledger.New(s, faultSize), alpha, 0)
}

// dialling is the one of 32 nodes that runs; all its dialling hangs.
func dialling(t testing.TB) *cluster.Node {
	need(t, "nft")
	needRoot(t, "a network namespace")
	host, err := proc.NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(host.Close)
	if _, err := host.Run(within(t, patience), "nft",
		"add table ip cut; add chain ip cut in { type filter hook input priority 0; policy drop; }"); err != nil {
		t.Fatal(err)
	}
	cfg := one()
	cfg.Devices[0].Nodes = []string{"n31"}
	cfg.Nodes = nil
	for i := range 32 {
		cfg.Nodes = append(cfg.Nodes, fmt.Sprintf("n%d", i))
	}
	last := layOut(t, cfg, host).Node("n31") // the highest id dials all others
	launch(t, last)
	until(t, last, "it knows of 31 peers", func(s cluster.Status) bool { return len(s.Nodes) == 31 })
	return last
}

// hangingDisk is a node whose disk is a file that nbdfuse serves, and what has
// it hang and go on again.
func hangingDisk(t testing.TB) (n *cluster.Node, hang, goOn func()) {
	need(t, "nbdfuse", "nbdkit", "fusermount3")
	needRoot(t, "a file system of its own")
	cfg := one()
	c := layOut(t, cfg, nil)
	mount := filepath.Join(c.Dir, "fuse")
	if err := os.Mkdir(mount, 0o700); err != nil {
		t.Fatal(err)
	}
	disk := filepath.Join(mount, "disk")
	fuse, err := c.Host().Start(proc.Spec{Argv: []string{"nbdfuse", disk, "--command", "nbdkit", "-s", "memory", strings.TrimSuffix(cfg.Devices[0].Size, "iB")},
		Log: filepath.Join(c.Dir, "nbdfuse.log")})
	if err != nil {
		t.Fatal(err)
	}
	goOn = func() { fuse.Signal(syscall.SIGCONT) }
	t.Cleanup(func() {
		goOn()
		// Whoever has the file open still may, until the cluster ends.
		if out, err := c.Host().Run(context.Background(), "fusermount3", "-u", "-z", mount); err != nil {
			t.Errorf("%v: %s", err, out)
		}
	})
	if !poll(within(t, patience), func() bool { _, err := os.Stat(disk); return err == nil }) {
		t.Fatalf("nbdfuse shows no disk: %s", fuse.LogTail(10))
	}
	cfg.Devices[0].Disk = disk
	if err := c.WriteConfig(cfg); err != nil {
		t.Fatal(err)
	}
	n = c.Node("alpha")
	launch(t, n)
	if out, err := n.Lockstepctl(within(t, patience), "device", "create", "r0", "--from-existing"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return n, func() {
		if err := fuse.Freeze(); err != nil {
			t.Fatal(err)
		}
	}, goOn
}

// TestControlAnswersUnderLoad asks while clients load the device.
func TestControlAnswersUnderLoad(t *testing.T) {
	t.Parallel()
	alpha, tr := loaded(t)
	tr.moves(t)
	answersAll(t, alpha)
	tr.moves(t)
	tr.flawless(t)
}

// TestControlAnswersWhilePeersHang asks while dialling 31 peers hangs.
func TestControlAnswersWhilePeersHang(t *testing.T) {
	t.Parallel()
	last := dialling(t)
	answersAll(t, last)
	for _, peer := range statusOf(t, last).Nodes {
		if peer.State == "up" {
			t.Errorf("%s is up", peer.Name)
		}
	}
	conn := open(t, last)
	if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
}

// TestControlAnswersWhileADiskHangs asks while the disk has not answered a
// client's write.
func TestControlAnswersWhileADiskHangs(t *testing.T) {
	t.Parallel()
	n, hang, goOn := hangingDisk(t)
	conn := open(t, n)
	if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Fatal(err)
	}
	hang()
	written := make(chan error, 1)
	go func() {
		_, err := conn.WriteAt(make([]byte, 4096), 4096)
		written <- err
	}()
	var d struct {
		InFlight int `json:"in_flight"`
	}
	if !poll(within(t, patience), func() bool {
		if err := n.Call(within(t, patience), "device/show", []string{"r0"}, &d); err != nil {
			t.Fatal(err)
		}
		return d.InFlight > 0
	}) {
		t.Fatal("the write is not in flight")
	}
	answersAll(t, n)
	select {
	case err := <-written:
		t.Fatalf("the write was answered although the disk hangs: %v", err)
	default:
	}
	goOn()
	if err := <-written; err != nil {
		t.Errorf("after the disk went on: %v", err)
	}
}

func statusOf(t testing.TB, n *cluster.Node) cluster.Status {
	t.Helper()
	s, err := n.Status(within(t, patience))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// BenchmarkControlAnswers measures how long the status of a node takes, a
// connection of its own each time.
func BenchmarkControlAnswers(b *testing.B) {
	ask := func(b *testing.B, n *cluster.Node) {
		ctx, took := within(b, 10*patience), []time.Duration{}
		for b.Loop() {
			begin := time.Now()
			if _, err := n.Status(ctx); err != nil {
				b.Fatal(err)
			}
			took = append(took, time.Since(begin))
		}
		slices.Sort(took)
		b.ReportMetric(float64(took[len(took)/2].Microseconds())/1000, "ms/median")
		b.ReportMetric(float64(took[len(took)*99/100].Microseconds())/1000, "ms/p99")
		b.ReportMetric(float64(took[len(took)-1].Microseconds())/1000, "ms/slowest")
	}
	b.Run("idle", func(b *testing.B) { ask(b, start(b, quick()).Node("alpha")) })
	b.Run("full load", func(b *testing.B) {
		alpha, tr := loaded(b)
		tr.moves(b)
		ask(b, alpha)
	})
	b.Run("31 peers hang in dialling", func(b *testing.B) { ask(b, dialling(b)) })
	b.Run("a disk hangs", func(b *testing.B) {
		n, hang, goOn := hangingDisk(b)
		defer goOn()
		conn := open(b, n)
		hang()
		go conn.WriteAt(make([]byte, 4096), 0) // until the disk goes on
		ask(b, n)
	})
}
