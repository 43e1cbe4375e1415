package cmd_test

import (
	"syscall"
	"testing"

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
