package cmd_test

import (
	"fmt"
	"os/exec"
	"slices"
	"strings"
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

// slowest asks for the status many times over and returns the longest wait for it.
func slowest(t *testing.T, n *cluster.Node) time.Duration {
	t.Helper()
	ctx, longest := within(t, patience), time.Duration(0)
	for range 200 {
		begin := time.Now()
		if _, err := n.Status(ctx); err != nil {
			t.Fatal(err)
		}
		longest = max(longest, time.Since(begin))
	}
	return longest
}

// TestControlAnswersUnderLoad asks while clients load the device.
func TestControlAnswersUnderLoad(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	c := start(t, quick())
	alpha := c.Node("alpha")
	tr := load(t, ledger.New(s, faultSize), alpha, 0)
	tr.moves(t)
	t.Logf("the slowest of 200 answers took %v", slowest(t, alpha))
	tr.flawless(t)
}

// TestControlAnswersWhilePeersHang starts one of 32 nodes; all dialling hangs.
func TestControlAnswersWhilePeersHang(t *testing.T) {
	need(t, "nft")
	needRoot(t, "a network namespace")
	t.Parallel()
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
	c := layOut(t, cfg, host)
	last := c.Node("n31") // the highest id dials all others
	launch(t, last)
	until(t, last, "it knows of 31 peers", func(s cluster.Status) bool { return len(s.Nodes) == 31 })
	t.Logf("the slowest of 200 answers took %v", slowest(t, last))
	conn := open(t, last)
	if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
}
