package simtest

import (
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
)

// TestScenario45TheOnlyDiskLeftCrashes: of two disks one is out, by order or by a
// fault, or away, while the primary, which has none, goes on with the other.
// What that one notes of the difference outlives its crash.
func TestScenario45TheOnlyDiskLeftCrashes(t *testing.T) {
	for _, quorum := range []replication.QuorumPolicy{majority(), {}} {
		for what, do := range map[string]struct {
			diskless      replication.NodeSet
			part, return_ func(t *testing.T, c *Cluster)
		}{
			"the primary's is detached": {0,
				func(t *testing.T, c *Cluster) {
					if err := c.Nodes[0].Dev.Detach(timeout(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
				},
				func(t *testing.T, c *Cluster) {
					if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
				}},
			"the primary has none": {replication.Of(0),
				func(_ *testing.T, c *Cluster) { c.Nodes[2].Kill() },
				func(t *testing.T, c *Cluster) { c.mustStart(t, 2) }},
		} {
			t.Run(what+", quorum "+quorum.String(), func(t *testing.T) {
				o := Options{Nodes: 2, Quorum: quorum, Delay: time.Millisecond, Diskless: do.diskless}
				if do.diskless != 0 {
					o.Nodes = 3
				}
				bubble(t, o, func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, 0, 'a', mib)
					do.part(t, c)
					c.mustWrite(t, 0, 64<<10, 'b', 4096)
					c.mustWrite(t, 0, 2*mib, 'c', 4096)
					c.Nodes[1].Kill()
					time.Sleep(time.Second)
					c.mustStart(t, 1)
					time.Sleep(time.Second)
					do.return_(t, c)
					c.mustAllSync(t)
					c.mustEqual(t)
					c.mustHoldDisks(t, 64<<10, 'b')
					c.mustHoldDisks(t, 2*mib, 'c')
				})
			})
		}
	}
}
