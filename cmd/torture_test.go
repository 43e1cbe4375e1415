package cmd_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/torture"
)

var rounds = flag.Int("rounds", 1, "how often TestTorture kills the primary's host")

// writers is how many programs write in a machine side by side.
const writers = 3

// TestTorture runs a real kernel, with ext4 on a device of three nodes through
// the kernel's own NBD client, which never connects again. Planned restarts of
// the primary's daemon in the midst of its writes are nothing that it notices.
// Then the host that it is on is killed, round after round: the machine and the
// primary's daemon at once, or the daemon first. Another machine goes on at another node: it recovers
// the file system as after any crash, in which then every file that was
// fsynced is whole and e2fsck finds nothing. "make torture" runs ten rounds.
func TestTorture(t *testing.T) {
	if _, _, err := torture.Kernel(); err != nil {
		t.Skipf("there is no kernel to torture: %v", err)
	}
	need(t, "ip", "nft", "nbd-client", "mkfs.ext4", "e2fsck")
	t.Parallel()
	s, rng := seed(t)
	x := newTortured(t, s, rng)
	order := rng.Perm(3)
	m := x.boot(t, x.Nodes[order[0]], torture.Order{Format: true})
	for round := range *rounds {
		primary, next := x.Nodes[order[round%3]], x.Nodes[order[(round+1)%3]]
		x.letWrite(t, m)
		for range 1 + rng.IntN(3) {
			x.restart(t, m, primary)
		}
		// The one that takes over is in sync; the other may still be resyncing
		// from when it was killed.
		until(t, primary, next.Name+" is in sync", func(s cluster.Status) bool {
			p := s.Device("r0").Peer(next.Name)
			return p.Disk == "UpToDate" && p.Replication == "Established" && p.OutOfSync == 0
		})
		how := x.kill(t, m, primary)
		m = x.boot(t, next, torture.Order{})
		r := x.checked(t, m)
		t.Logf("round %d, %s on %s: %d promises and %d planned restarts by now; on %s %d files are whole and e2fsck finds nothing",
			round+1, how, primary.Name, x.promises, x.restarts, next.Name, r.Checked)
		launch(t, primary)
		if rng.IntN(2) == 0 {
			inSync(t, x.Cluster, "r0")
		}
	}
	x.letWrite(t, m)
	m.Kill()
	x.learn(t, m)
	inSync(t, x.Cluster, "r0")
	m = x.boot(t, x.Nodes[order[rng.IntN(3)]], torture.Order{Halt: true})
	x.checked(t, m)
	if err := m.Halted(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	converged(t, x.Cluster)
}

// TestTheKernelRidesOutCrashes crashes the daemon under a kernel whose NBD
// client has been told, by netlink, to wait for another connection and to send
// again what was not answered: its writers see a pause. (nbd-client does not
// tell it so.)
func TestTheKernelRidesOutCrashes(t *testing.T) {
	if _, _, err := torture.Kernel(); err != nil {
		t.Skipf("there is no kernel to torture: %v", err)
	}
	need(t, "ip", "nft", "mkfs.ext4", "e2fsck")
	t.Parallel()
	s, rng := seed(t)
	x := newTortured(t, s, rng, "--monitor", "--restart-delay=1ms")
	alpha, beta := x.Node("alpha"), x.Node("beta")
	m := x.boot(t, alpha, torture.Order{Format: true, Again: true})
	for i, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV} {
		x.letWrite(t, m)
		strike(t, daemonOf(t, alpha), sig)
		if err := m.Until(within(t, 2*patience), writers, "it has another connection", func(r torture.Report) bool { return r.Again > i }); err != nil {
			t.Fatal(err)
		}
		x.goesOn(t, m)
	}
	m.Kill()
	x.learn(t, m)
	m = x.boot(t, beta, torture.Order{Halt: true})
	r := x.checked(t, m)
	t.Logf("%d promises; on beta %d files are whole and e2fsck finds nothing", x.promises, r.Checked)
	if err := m.Halted(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	converged(t, x.Cluster)
}

// tortured is a cluster in a network of its own, and what machines were promised.
type tortured struct {
	network
	rng      *rand.Rand
	seed     uint64
	init     string
	kept     []torture.Kept
	promises int
	restarts int
	lives    int
}

// newTortured starts the cluster; without flags for the nodes' daemons some have
// a monitor, and some have none.
func newTortured(t *testing.T, seed uint64, rng *rand.Rand, flags ...string) *tortured {
	t.Helper()
	init := filepath.Join(real.build(t), "guest")
	build := exec.Command("go", "build", "-o", init, "./internal/torture/guest")
	build.Env = append(build.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the machines' init: %v\n%s", err, out)
	}
	cfg := cluster.Three("128MiB")
	cfg.TickTime = quick().TickTime
	for i, name := range cfg.Nodes {
		cfg.Devices[0].Extra += fmt.Sprintf("[device.on.%s]\nnbd = [\"unix\", \"tcp:0.0.0.0:%s\"]\n", name, nbdPort(i))
	}
	net := layOutNetwork(t, cfg)
	for i, n := range net.Nodes {
		n.Flags = flags
		if len(flags) == 0 && (seed+uint64(i))%2 == 0 { // always one with a monitor, and one without
			n.Flags = []string{"--monitor"}
		}
	}
	if err := net.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, net.Cluster, "r0")
	x := &tortured{network: net, rng: rng, seed: seed, init: init, kept: make([]torture.Kept, writers)}
	if err := torture.Plug(within(t, patience), x.Host()); err != nil {
		t.Fatal(err)
	}
	return x
}

// nbdPort is where a node serves machines.
func nbdPort(id int) string { return fmt.Sprint(10810 + id) }

// boot starts a machine on a node's device. Its mounts differ, by seed.
func (x *tortured) boot(t *testing.T, n *cluster.Node, o torture.Order) *torture.Machine {
	t.Helper()
	o.Port, o.Export, o.Seed, o.Expect = nbdPort(n.ID), "r0", x.seed, x.kept
	o.Options = []string{"", "data=journal", "nodelalloc,journal_checksum", "discard"}[x.rng.IntN(4)]
	x.lives++
	m, err := torture.Boot(x.Host(), filepath.Join(x.Dir, fmt.Sprintf("machine%d", x.lives)), x.init, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Kill)
	return m
}

// letWrite waits until a machine's writers have made some more promises.
func (x *tortured) letWrite(t *testing.T, m *torture.Machine) {
	t.Helper()
	more := 30 + x.rng.IntN(60)
	err := m.Until(within(t, patience), writers, fmt.Sprintf("%d files are fsynced", more),
		func(r torture.Report) bool { return r.Synced >= more })
	if err != nil {
		t.Fatal(err)
	}
}

// restart restarts the daemon that a machine is connected to, in the way that is
// planned. Its writers go on, and none of them has seen an error.
func (x *tortured) restart(t *testing.T, m *torture.Machine, n *cluster.Node) {
	t.Helper()
	before := lives(t, n)
	restartByCommand(t, n)
	if !poll(within(t, patience), func() bool { return lives(t, n) > before }) {
		t.Fatalf("%s's daemon did not restart", n.Name)
	}
	x.goesOn(t, m)
	x.restarts++
}

// goesOn waits until a machine's writers have made more promises. None of them
// may have seen an error.
func (x *tortured) goesOn(t *testing.T, m *torture.Machine) {
	t.Helper()
	was, err := m.Learn(make([]torture.Kept, writers))
	if err != nil {
		t.Fatal(err)
	}
	more := was.Synced + 10*writers
	if err := m.Until(within(t, patience), writers, fmt.Sprintf("%d files are fsynced", more),
		func(r torture.Report) bool { return r.Synced >= more || r.Errors > 0 }); err != nil {
		t.Fatal(err)
	}
	now, err := m.Learn(make([]torture.Kept, writers))
	if err != nil || now.Errors > 0 {
		t.Fatalf("%d writers saw an error (%v)\n%s", now.Errors, err, m.Log())
	}
}

// checked waits until a machine has found all that was promised to be there.
func (x *tortured) checked(t *testing.T, m *torture.Machine) torture.Report {
	t.Helper()
	if err := m.Until(within(t, patience), writers, "the file system is checked", func(r torture.Report) bool { return r.Checked >= 0 }); err != nil {
		t.Fatal(err)
	}
	r, err := m.Learn(make([]torture.Kept, writers))
	if err != nil {
		t.Fatal(err)
	}
	want := 0
	for _, k := range x.kept {
		want += len(k.Files)
		if k.Gen > 0 {
			want++
		}
	}
	if r.Checked != want {
		t.Fatalf("%d files were checked, %d were promised", r.Checked, want)
	}
	return r
}

// kill ends the host of a machine in one of the ways that hosts end.
func (x *tortured) kill(t *testing.T, m *torture.Machine, n *cluster.Node) (how string) {
	t.Helper()
	switch x.rng.IntN(3) {
	case 0:
		how = "daemon first, the kernel sees errors"
		kill9(t, n)
		if err := m.Until(within(t, patience), writers, "the writers see that their disk is gone",
			func(r torture.Report) bool { return r.Errors == writers }); err != nil {
			t.Fatal(err)
		}
		m.Kill()
	case 1:
		how = "machine, then daemon"
		m.Kill()
		kill9(t, n)
	default:
		how = "daemon, then machine"
		kill9(t, n)
		m.Kill()
	}
	x.learn(t, m)
	return how
}

// kill9 ends a node: its monitor, if it has one, and its daemon.
func kill9(t *testing.T, n *cluster.Node) {
	t.Helper()
	pid := 0
	if slices.Contains(n.Flags, "--monitor") {
		pid = daemonOf(t, n)
	}
	n.Kill9()
	if pid == 0 {
		return
	}
	strike(t, pid, syscall.SIGKILL)
	if !poll(within(t, patience), func() bool { return ended(pid) }) {
		t.Fatalf("%s's daemon %d outlives a SIGKILL", n.Name, pid)
	}
}

// learn takes what a dead machine has promised.
func (x *tortured) learn(t *testing.T, m *torture.Machine) {
	t.Helper()
	r, err := m.Learn(x.kept)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Failed) > 0 {
		t.Fatalf("the machine says: %q", r.Failed)
	}
	x.promises += r.Synced
}
