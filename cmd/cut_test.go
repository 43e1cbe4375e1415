package cmd_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
)

// stat reads a number of a node's object database.
func stat(t *testing.T, n *cluster.Node, key string) string {
	t.Helper()
	var e struct{ Value any }
	if err := n.Call(within(t, patience), "cmap/get", map[string]string{"key": key}, &e); err != nil {
		t.Fatalf("%s: %s: %v", n.Name, key, err)
	}
	return fmt.Sprint(e.Value)
}

// TestShortCutIsAPause takes the primary's cables out for three seconds at a
// tick time of eight, twice, while fio writes and verifies: long enough for
// pings to be missed. It is a pause: nobody is down, and not one block is
// resynced.
func TestShortCutIsAPause(t *testing.T) {
	need(t, "fio")
	t.Parallel()
	cfg := quick()
	cfg.TickTime = 8 * time.Second
	n := newNetwork(t, cfg)
	alpha := n.Node("alpha")
	holder := open(t, alpha) // keeps alpha primary between fio's passes
	stop := verifying(t, alpha)
	missing := func(missed bool) func(cluster.Status) bool {
		return func(s cluster.Status) bool {
			for _, p := range s.Nodes {
				if p.State != "up" || p.MissedPings > 0 != missed {
					return false
				}
			}
			return true
		}
	}
	for range 2 {
		for _, peer := range []string{"beta", "gamma"} {
			n.cut("alpha", peer, "drop")
			n.cut(peer, "alpha", "drop")
		}
		until(t, alpha, "both peers have missed pings", missing(true))
		n.heal()
		until(t, alpha, "both peers are heard again", missing(false))
	}
	stop()
	if err := holder.Close(); err != nil {
		t.Error(err)
	}
	converged(t, n.Cluster)
	for _, at := range n.Nodes {
		for _, peer := range n.Nodes {
			if key := "stats.nodes." + peer.Name + ".connects"; peer != at && stat(t, at, key) != "1" {
				t.Errorf("%s: %s is %s: there was a nodedown", at.Name, key, stat(t, at, key))
			}
		}
		if got := stat(t, at, "stats.devices.r0.resync_bytes"); got != "0" {
			t.Errorf("%s: %s bytes were resynced", at.Name, got)
		}
		if log := at.Proc().LogTail(1000); strings.Contains(log, "node is down") {
			t.Errorf("%s:\n%s", at.Name, log)
		}
	}
}
