package simtest

import (
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestScenario44AGenerationOnSlowMetadata: a generation comes into force however
// long its replicas take to note it, and nobody takes that for something amiss.
func TestScenario44AGenerationOnSlowMetadata(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		time.Sleep(10 * time.Second)
		c.Nodes[1].Meta.Inject(storetest.Fault{Ops: storetest.OpSync, Delay: 4 * time.Second})
		c.Nodes[2].Kill()
		events := func() (n int) {
			c.Nodes[0].mu.Lock()
			defer c.Nodes[0].mu.Unlock()
			return len(c.Nodes[0].events)
		}
		before := events()
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.Nodes[0].mu.Lock()
		defer c.Nodes[0].mu.Unlock()
		for _, e := range c.Nodes[0].events[before:] {
			if e.Peer == "n1" || e.Type == "quorum" {
				t.Errorf("%s: %s", e.Type, e.Text)
			}
		}
	})
}
