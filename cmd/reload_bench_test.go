package cmd_test

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
)

// BenchmarkReload measures how long a change takes from the saving of the file
// until the last of three nodes has applied it, with 100 devices on them and
// clients writing to one.
func BenchmarkReload(b *testing.B) {
	cfg := quick()
	for i := range 99 {
		cfg.Devices = append(cfg.Devices, cluster.Device{Name: fmt.Sprintf("x%d", i), Size: "4MiB", Quorum: "majority"})
	}
	c := start(b, cfg)
	raw, err := os.ReadFile(c.Config)
	if err != nil {
		b.Fatal(err)
	}
	b.Run("idle", func(b *testing.B) { reloads(b, c, string(raw)) })
	b.Run("loaded", func(b *testing.B) {
		tr := load(b, ledger.New(1, faultSize), c.Nodes[0], 0)
		reloads(b, c, string(raw))
		tr.end(b)
	})
}

// reloads saves the file again and again, each time with another value of a
// key of the cluster and of one of the devices.
func reloads(b *testing.B, c *cluster.Cluster, text string) {
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		pings := 5 + i%50
		next := strings.Replace(text, "max_ping_count = 4", fmt.Sprintf("max_ping_count = %d", pings), 1)
		next = strings.Replace(next, "\n[[device]]", fmt.Sprintf("\n[[device]]\nresync_rate = \"%dMiB/s\"", pings), 1)
		begin := time.Now()
		if err := os.WriteFile(c.Config, []byte(next), 0o600); err != nil {
			b.Fatal(err)
		}
		for _, n := range c.Nodes {
			if !poll(within(b, patience), func() bool {
				var e struct{ Value any }
				err := n.Call(b.Context(), "cmap/get", map[string]string{"key": "cluster.max_ping_count"}, &e)
				return err == nil && fmt.Sprint(e.Value) == fmt.Sprint(pings)
			}) {
				b.Fatalf("%s has not applied it", n.Name)
			}
		}
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "median-ms")
	b.ReportMetric(float64(took[len(took)-1].Milliseconds()), "slowest-ms")
}
