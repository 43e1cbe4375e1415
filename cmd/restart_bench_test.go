package cmd_test

import (
	"context"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/nbdio"
)

// benchCluster starts a cluster with a device of 1 GiB on loopback.
func benchCluster(b *testing.B, nodes []string, flags ...string) *cluster.Cluster {
	b.Helper()
	cfg := cluster.Three("1GiB")
	cfg.Nodes = nodes
	c, err := cluster.New(cluster.Options{Bin: real.build(b)}, cfg)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := c.Close(); err != nil {
			b.Error(err)
		}
	})
	for _, n := range c.Nodes {
		n.Flags = flags
	}
	if err := c.Start(within(b, patience)); err != nil {
		b.Fatal(err)
	}
	if err := c.Until(within(b, patience), "r0 is in sync", cluster.InSync("r0")); err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkCrashToServing is the time from the crash of the primary's monitored
// daemon, one node of three with a device of 1 GiB, to the answer to a command
// (ns/op; the budget is 500 ms) and to an acknowledged write (ms-to-write).
func BenchmarkCrashToServing(b *testing.B) {
	c := benchCluster(b, []string{"alpha", "beta", "gamma"}, "--monitor", "--restart-delay=1ns")
	alpha, ctx := c.Node("alpha"), b.Context()
	written := writeSome(b, ctx, alpha)
	var toWrite time.Duration
	for b.Loop() {
		b.StopTimer()
		if err := alpha.Until(within(b, patience), "r0 is in sync", cluster.InSync("r0")); err != nil {
			b.Fatal(err)
		}
		pid, err := alpha.DaemonPid()
		if err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		began := time.Now()
		strike(b, pid, syscall.SIGKILL)
		answered(b, alpha)
		// The one that dies may have answered yet.
		if !poll(within(b, patience), func() bool { now, err := alpha.DaemonPid(); return err == nil && now != pid }) {
			b.Fatal("no other daemon came")
		}
		answered(b, alpha)
		b.StopTimer()
		written.Close()
		written = writeSome(b, ctx, alpha)
		toWrite += time.Since(began)
		b.StartTimer()
	}
	written.Close()
	b.ReportMetric(float64(toWrite.Milliseconds())/float64(b.N), "ms-to-write")
}

// writeSome writes to r0 as soon as the node lets it, and returns the connection.
func writeSome(b *testing.B, ctx context.Context, n *cluster.Node) *nbdio.Conn {
	b.Helper()
	buf := make([]byte, 4096)
	var conn *nbdio.Conn
	if !poll(within(b, patience), func() bool {
		c, err := nbdio.Dial(ctx, n.NBD("r0"), "r0")
		if err != nil {
			return false
		}
		if _, err := c.WriteAt(buf, 0); err != nil {
			c.Close()
			return false
		}
		conn = c
		return true
	}) {
		b.Fatal("r0 is not written to")
	}
	return conn
}

// answered waits until the node's daemon answers a command. The monitor holds
// the socket, so that the question waits in its backlog; what the daemon that
// is dying had taken fails, and is asked again.
func answered(b *testing.B, n *cluster.Node) {
	b.Helper()
	ctx := within(b, patience)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		err := n.Call(ctx, "version", nil, nil)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b.Fatal(err)
		}
	}
}

// BenchmarkStartToServing is the time from the start of a daemon with a device
// of 1 GiB, whose disk is there already, to its first answer to a command. The
// budget is 200 ms.
func BenchmarkStartToServing(b *testing.B) {
	alpha := benchCluster(b, []string{"alpha"}).Node("alpha")
	for b.Loop() {
		b.StopTimer()
		if err := alpha.Term(within(b, patience)); err != nil {
			b.Fatal(err)
		}
		if _, err := os.Stat(alpha.Socket()); err == nil {
			b.Fatal("the control socket outlived the daemon")
		}
		b.StartTimer()
		if err := alpha.Launch(); err != nil {
			b.Fatal(err)
		}
		answered(b, alpha)
	}
}

// BenchmarkPlannedRestart is the pause that a client sees which stays connected
// through "lockstepctl restart": the longest that a write takes meanwhile.
func BenchmarkPlannedRestart(b *testing.B) {
	c := benchCluster(b, []string{"alpha", "beta", "gamma"}, "--monitor")
	alpha := c.Node("alpha")
	conn := writeSome(b, b.Context(), alpha)
	defer conn.Close()
	buf := make([]byte, 4096)
	var pauses time.Duration
	for b.Loop() {
		if err := alpha.Until(within(b, patience), "r0 is in sync", cluster.InSync("r0")); err != nil {
			b.Fatal(err)
		}
		pid, err := alpha.DaemonPid()
		if err != nil {
			b.Fatal(err)
		}
		if err := alpha.Call(within(b, patience), "restart", nil, nil); err != nil {
			b.Fatal(err)
		}
		var longest time.Duration
		if !poll(within(b, patience), func() bool {
			now, err := alpha.DaemonPid()
			began := time.Now()
			if _, err := conn.WriteAt(buf, 0); err != nil {
				b.Fatal(err)
			}
			longest = max(longest, time.Since(began))
			return err == nil && now != pid
		}) {
			b.Fatal("no other daemon came")
		}
		pauses += longest
	}
	b.ReportMetric(0, "ns/op") // the waits around the pause are in it
	b.ReportMetric(float64(pauses.Microseconds())/1000/float64(b.N), "ms-pause")
}
