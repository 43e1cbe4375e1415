package cmd_test

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
	"github.com/lockstepd/lockstep/cmd/internal/nbdio"
	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

var crashes = flag.Int("crashes", 9, "how often TestCrashLoop crashes the daemon")

// TestCrashLoop crashes the daemon of the primary again and again, by SIGSEGV,
// by SIGKILL and by a panic of its own, at random moments of serving and of
// starting. fio writes and verifies all the while, through QEMU, which connects
// again and repeats what was not answered: it gets no error and reads what it
// wrote. So do clients that know what they were told, and connect again by
// themselves; they are never turned away, for the monitor holds the sockets.
// Nodes and monitor end up with the files, processes and sockets that they
// began with. "make crashes" crashes it fifty times.
func TestCrashLoop(t *testing.T) {
	need(t, "fio", "qemu-storage-daemon")
	t.Parallel()
	s, rng := seed(t)
	cfg := quick()
	cfg.Devices[0].Size = "128MiB" // fio's half, and the ledger's
	c := layOutFrom(t, crashable(t), cfg, nil)
	alpha := c.Node("alpha")
	// After the first restart the monitor waits, by default 10 s and more: the
	// operator's flag for that is the test's, too.
	alpha.Flags = []string{"--monitor", "--restart-delay=1ms"}
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, c, "r0")
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, faultSize)
	stop := verifyingAt(t, reconnecting(t, alpha))
	x := &crashing{T: t, rng: rng, alpha: alpha, peers: []*cluster.Node{c.Node("beta"), c.Node("gamma")}, tr: tr}
	x.crash(syscall.SIGKILL) // what comes after it inherits its sockets, as all later ones do
	x.allServed()
	before, files := x.settled(""), x.peersFiles()

	kinds := []syscall.Signal{syscall.SIGSEGV, syscall.SIGKILL, syscall.SIGUSR2}
	for i := range *crashes {
		if i%len(kinds) == 0 {
			rng.Shuffle(len(kinds), func(i, j int) { kinds[i], kinds[j] = kinds[j], kinds[i] })
		}
		x.crash(kinds[i%len(kinds)])
	}
	tr.moves(t)
	until(t, alpha, "all disks are in sync with the primary's", cluster.InSync("r0"))
	x.allServed()
	if after := x.settled(before); after != before {
		t.Errorf("before the crashes:\n%s\nafter them:\n%s", before, after)
	}
	x.peersKeep(files)
	x.told()
	stop()
	tr.neverRefused(t)
	onlyLostConnections(t, tr)
	conn := open(t, alpha)
	verify(t, book, conn, faultSize)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	until(t, alpha, "all disks are in sync with this one", cluster.InSync("r0"))
	if err := c.SameDisks("r0"); err != nil {
		t.Error(err)
	}
}

// crashable builds a lockstepd that has a fault of its own when it is told to.
func crashable(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := goBuild(dir, "-tags", "crashable", "./lockstepd", "./lockstepctl"); err != nil {
		t.Fatal(err)
	}
	return dir
}

// reconnecting starts a QEMU that passes r0 of a node on, and connects again
// when it has lost the node. It returns where it serves.
func reconnecting(t *testing.T, n *cluster.Node) (uri string) {
	t.Helper()
	host, dir := proc.NewHost(), t.TempDir()
	t.Cleanup(host.Close)
	socket := filepath.Join(dir, "front")
	q, err := host.Start(proc.Spec{Log: filepath.Join(dir, "log"), Argv: []string{"qemu-storage-daemon",
		"--blockdev", "driver=nbd,node-name=r0,server.type=unix,server.path=" + n.NBD("r0") + ",export=r0,reconnect-delay=60",
		"--nbd-server", "addr.type=unix,addr.path=" + socket,
		"--export", "type=nbd,id=front,node-name=r0,name=r0,writable=on"}})
	if err != nil {
		t.Fatal(err)
	}
	if !poll(within(t, patience), func() bool {
		c, err := nbdio.Dial(t.Context(), socket, "r0")
		if err == nil {
			err = c.Close()
		}
		return err == nil
	}) {
		t.Fatalf("QEMU does not serve:\n%s", q.LogTail(20))
	}
	return "nbd+unix:///r0?socket=" + socket
}

// crashing is a run of TestCrashLoop.
type crashing struct {
	*testing.T
	rng   *rand.Rand
	alpha *cluster.Node
	peers []*cluster.Node
	tr    *traffic
	count int
}

// crash ends the daemon at some moment, and waits for the next one.
func (x *crashing) crash(sig syscall.Signal) {
	x.Helper()
	pid := daemonOf(x.T, x.alpha)
	if x.rng.IntN(4) > 0 { // while it serves; else as soon as it is there
		x.allServed()
		from, more := x.tr.Writes.Load(), 1+x.rng.Int64N(100)
		if !poll(within(x.T, patience), func() bool { return x.tr.Writes.Load() >= from+more }) {
			x.Fatalf("after %d crashes the load stands still; its failures: %v", x.count, x.tr.Failures())
		}
	}
	strike(x.T, pid, sig)
	x.count++
	if !poll(within(x.T, patience), func() bool { now, err := x.alpha.DaemonPid(); return err == nil && now != pid }) {
		x.Fatalf("after crash %d, by %v, no other daemon was started", x.count, sig)
	}
}

// allServed waits until fio's QEMU and the ledger's two clients have r0 open.
func (x *crashing) allServed() {
	x.Helper()
	until(x.T, x.alpha, "three clients have r0 open", func(s cluster.Status) bool { return s.Device("r0").Open >= 3 })
}

// settled is the footprint of the node, as soon as that is as it was before,
// or, if there is no before, holds what it should hold.
func (x *crashing) settled(before string) (now string) {
	x.Helper()
	ok := poll(within(x.T, patience), func() bool {
		now = footprint(x.T, x.alpha)
		return now == before || before == "" && strings.Count(now, "socket:") == 4
	})
	if !ok && before == "" {
		x.Fatalf("the monitor has other sockets than its link to the daemon, and those for the control, clients and peers:\n%s", now)
	}
	return now
}

// peersFiles counts what the other nodes have open.
func (x *crashing) peersFiles() map[string]int {
	x.Helper()
	count := map[string]int{}
	for _, n := range x.peers {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", n.Pid()))
		if err != nil {
			x.Fatal(err)
		}
		count[n.Name] = len(fds)
	}
	return count
}

// peersKeep checks that the nodes which lost the primary so often have not
// kept something of it each time. A few files come and go with the links.
func (x *crashing) peersKeep(before map[string]int) {
	x.Helper()
	var now map[string]int
	if !poll(within(x.T, patience), func() bool {
		now = x.peersFiles()
		return !slices.ContainsFunc(x.peers, func(n *cluster.Node) bool { return now[n.Name] >= before[n.Name]+x.count-1 })
	}) {
		x.Errorf("the peers had these numbers of files open: %v; and now, after %d crashes: %v", before, x.count, now)
	}
}

// told checks what there is to be seen of the crashes.
func (x *crashing) told() {
	x.Helper()
	title, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", x.alpha.Pid()))
	if want := fmt.Sprintf("(%d crashes: ", x.count); err != nil || !strings.Contains(string(title), want) {
		x.Errorf("the monitor's title is %q, without %q (%v)", title, want, err)
	}
	log, err := os.ReadFile(x.alpha.Log)
	if err != nil {
		x.Fatal(err)
	}
	for what, forms := range map[string][]string{
		"SIGSEGV": {"died, exit status 2, SIGSEGV: segmentation violation"},
		"SIGKILL": {"died, killed (Killed)"},
		"a fault of its own": {"died, exit status 2, panic: crashable: a panic of its own", "died, exit status 2, panic: runtime error: invalid memory address",
			"died, exit status 2, fatal error: sync: unlock of unlocked mutex"},
	} {
		if !slices.ContainsFunc(forms, func(form string) bool { return strings.Contains(string(log), form) }) {
			x.Errorf("the log does not tell of a death by %s: %q", what, forms)
		}
	}
	reports, err := filepath.Glob(filepath.Join(x.alpha.State, "crash", "*"))
	if err != nil || len(reports) == 0 || len(reports) > 5 {
		x.Errorf("%d crash reports are kept: %v (%v)", len(reports), reports, err)
	}
}

// daemonOf returns the pid of a monitored node's daemon, which must be a child of the monitor's.
func daemonOf(t *testing.T, n *cluster.Node) int {
	t.Helper()
	var pid int
	if !poll(within(t, patience), func() bool {
		var err error
		pid, err = n.DaemonPid()
		return err == nil && slices.Contains(childrenOf(t, n.Pid()), pid)
	}) {
		t.Fatalf("%s's monitor has no daemon", n.Name)
	}
	return pid
}

// childrenOf lists the children of a process, zombies among them.
func childrenOf(t *testing.T, pid int) []int {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		t.Fatal(err)
	}
	var out []int
	for _, p := range paths {
		child, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			t.Fatal(err)
		}
		if _, parent := procStat(child); parent == pid {
			out = append(out, child)
		}
	}
	return out
}

// footprint is what a monitored node takes of the system beyond its work: how
// many processes, the monitor's open files by their kind, the files in the
// rundir. The daemon's own files come and go with its clients and peers, and
// with the daemon; what it inherits, the monitor has, once it has read what the
// daemon told it: the daemon does not wait for that.
func footprint(t *testing.T, n *cluster.Node) string {
	t.Helper()
	daemonOf(t, n)
	dir := fmt.Sprintf("/proc/%d/fd", n.Pid())
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	kinds, names := map[string]int{}, socketNames(t)
	for _, e := range entries {
		to, err := os.Readlink(filepath.Join(dir, e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // closed since it was listed
		}
		if err != nil {
			t.Fatal(err)
		}
		kind, inode, _ := strings.Cut(to, "[") // of sockets and pipes
		kinds[kind+names[strings.TrimSuffix(inode, "]")]]++
	}
	files, err := filepath.Glob(filepath.Join(n.Run, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d processes, %d of them the monitor's children\nopen: %v\nfiles: %v",
		len(processesOf(t, n)), len(childrenOf(t, n.Pid())), kinds, files)
}

// socketNames are the paths of Unix sockets and the addresses of TCP sockets, by inode.
func socketNames(t *testing.T) map[string]string {
	t.Helper()
	names := map[string]string{}
	for file, columns := range map[string][2]int{"unix": {6, 7}, "tcp": {9, 1}} {
		text, err := os.ReadFile("/proc/net/" + file)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(text)) {
			if f := strings.Fields(line); len(f) > max(columns[0], columns[1]) {
				names[f[columns[0]]] = f[columns[1]]
			}
		}
	}
	return names
}

// processesOf lists the processes whose command line names a node's state dir.
func processesOf(t *testing.T, n *cluster.Node) []string {
	t.Helper()
	paths, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(paths, func(p string) bool {
		b, err := os.ReadFile(p)
		return err != nil || !strings.Contains(string(b), n.State)
	})
}

// onlyLostConnections: whatever the clients saw was the end of a connection,
// before the export was opened or after; nobody was refused in words.
func onlyLostConnections(t *testing.T, tr *traffic) {
	t.Helper()
	for _, err := range tr.Failures() {
		if strings.Contains(err.Error(), "refuse") || strings.Contains(err.Error(), "answered") {
			t.Errorf("the client was refused: %v", err)
		}
	}
}
