package cmd_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
)

// crashes is how often TestCrashLoop crashes the daemon.
const crashes = 50

// TestCrashLoop crashes the daemon of the primary again and again, at random
// moments of serving and of starting, under clients that connect again when
// their connection is lost. They get no error and are never turned away, for
// the monitor holds the sockets; nothing that was acknowledged is lost; and
// monitor and daemon end up with the files, processes and sockets that they
// began with.
func TestCrashLoop(t *testing.T) {
	t.Parallel()
	s, rng := seed(t)
	c := layOut(t, quick(), nil)
	alpha := c.Node("alpha")
	// After the first restart the monitor waits, by default 10 s and more: the
	// operator's flag for that is the test's, too.
	alpha.Flags = []string{"--monitor", "--restart-delay=1ms"}
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, c, "r0")
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, 0)
	tr.moves(t)
	before, after := "", ""
	if !poll(within(t, patience), func() bool { before = footprint(t, alpha); return strings.Count(before, "socket:") == 4 }) {
		t.Fatalf("the monitor has other sockets than its link to the daemon, and those for the control, clients and peers:\n%s", before)
	}

	signals := []syscall.Signal{syscall.SIGKILL, syscall.SIGSEGV, syscall.SIGABRT, syscall.SIGBUS, syscall.SIGFPE, syscall.SIGILL}
	for i := range crashes {
		pid := daemonOf(t, alpha)
		if rng.IntN(4) > 0 { // while it serves; else as soon as it is there
			from, more := tr.Writes.Load(), 1+rng.Int64N(200)
			if !poll(within(t, patience), func() bool { return tr.Writes.Load() >= from+more }) {
				t.Fatalf("after %d crashes the load stands still; its failures: %v", i, tr.Failures())
			}
		}
		strike(t, pid, signals[rng.IntN(len(signals))])
		if !poll(within(t, patience), func() bool { now, err := alpha.DaemonPid(); return err == nil && now != pid }) {
			t.Fatalf("after crash %d no other daemon was started", i)
		}
	}
	tr.moves(t)
	until(t, alpha, "all disks are in sync with the primary's", cluster.InSync("r0"))
	if !poll(within(t, patience), func() bool { after = footprint(t, alpha); return after == before }) {
		t.Errorf("before the crashes:\n%s\nafter them:\n%s", before, after)
	}
	tr.neverRefused(t)
	onlyLostConnections(t, tr)
	conn := open(t, alpha)
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	until(t, alpha, "all disks are in sync with this one", cluster.InSync("r0"))
	if err := c.SameDisks("r0"); err != nil {
		t.Error(err)
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
