package cmd_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
)

// TestMonitorRestartsThePrimaryUnderLoad crashes the daemon of the primary in
// three ways under a client that reconnects. The monitor holds the sockets, so
// the client is never refused, gets no error, and misses nothing.
func TestMonitorRestartsThePrimaryUnderLoad(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	c := layOut(t, quick(), nil)
	alpha := c.Node("alpha")
	alpha.Flags = []string{"--monitor"}
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, c, "r0")
	book := ledger.New(s, faultSize)
	for _, sig := range []syscall.Signal{syscall.SIGSEGV, syscall.SIGKILL, syscall.SIGABRT} {
		tr := load(t, book, alpha, 0)
		tr.moves(t)
		before, err := alpha.DaemonPid()
		if err != nil {
			t.Fatal(err)
		}
		if before == alpha.Pid() {
			t.Fatal("the daemon and its monitor are one process")
		}
		// The monitor is this test's child, the daemon the monitor's.
		strike(t, before, sig)
		if !poll(within(t, patience), func() bool {
			pid, err := alpha.DaemonPid()
			return err == nil && pid != before
		}) {
			t.Fatalf("after %v no other daemon was started", sig)
		}
		tr.moves(t)
		inSync(t, c, "r0")
		for _, err := range tr.Failures() {
			t.Logf("%v: the client saw %v", sig, err)
		}
		tr.neverRefused(t)
		// A monitor that is new restarts a first crash at once; the next one would wait.
		if err := alpha.Restart(within(t, patience)); err != nil {
			t.Fatal(err)
		}
		inSync(t, c, "r0")
	}
	conn := open(t, alpha)
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	converged(t, c)
}

// TestAMonitorThatIsKilledIsReplaced: nothing but the status tells of its end,
// and a planned restart, which clients do not notice, brings another.
func TestAMonitorThatIsKilledIsReplaced(t *testing.T) {
	t.Parallel()
	s, _ := seed(t)
	c := layOut(t, quick(), nil)
	alpha := c.Node("alpha")
	alpha.Flags = []string{"--monitor"}
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, c, "r0")
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, 0)
	tr.moves(t)
	pid := daemonOf(t, alpha)
	orphan, err := os.FindProcess(pid) // by a descriptor: it is nobody's child soon
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = orphan.Signal(syscall.SIGTERM) // the only error is that it has ended
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if !poll(ctx, func() bool { return orphan.Signal(syscall.Signal(0)) != nil || ended(pid) }) {
			t.Errorf("process %d does not end", pid)
			_ = orphan.Kill()
		}
	})
	alpha.Kill9()
	asked := func(want int, says string) {
		t.Helper()
		var out string
		var status int
		if !poll(within(t, patience), func() bool {
			out, status = ctlOf(t, alpha, "status", "--check")
			return status == want && strings.Contains(out, says)
		}) {
			t.Fatalf("status %d, want %d and %q:\n%s", status, want, says, out)
		}
	}
	asked(5, "monitor: gone: a crash would not be followed by a restart")
	tr.moves(t)
	restartByCommand(t, alpha)
	asked(0, "healthy")
	tr.moves(t)
	next, err := alpha.DaemonPid()
	if err != nil || next == pid || parentOf(t, next) != pid {
		t.Fatalf("the daemon is %d (%v), and not a child of the one that lost its monitor, %d", next, err, pid)
	}
	tr.flawless(t)
	strike(t, next, syscall.SIGKILL)
	if !poll(within(t, patience), func() bool { now, err := alpha.DaemonPid(); return err == nil && now != next }) {
		t.Fatal("the new monitor does not restart its daemon")
	}
	asked(0, "healthy")
}

// ctlOf runs lockstepctl against a node, and returns what it says and its status.
func ctlOf(t *testing.T, n *cluster.Node, args ...string) (string, int) {
	t.Helper()
	out, err := n.Lockstepctl(within(t, patience), args...)
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return out, exit.ExitCode()
	} else if err != nil {
		t.Fatal(err)
	}
	return out, 0
}

// ended reports whether a process has ended; one that nobody waits for may stay as a zombie.
func ended(pid int) bool {
	state, _ := procStat(pid)
	return state == "" || state == "Z"
}
