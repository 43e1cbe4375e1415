package simtest

import (
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
)

// TestScenario32ANewDeviceThatADisklessNodeBegins: disks that have not met yet get
// one origin from their first primary, though that has no disk: they are of one
// device when they meet.
func TestScenario32ANewDeviceThatADisklessNodeBegins(t *testing.T) {
	for range 12 { // which origin is older is drawn
		o := three()
		o.Nodes, o.Diskless = 4, replication.Of(1)
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.Cut(0, 3)
			time.Sleep(time.Second)
			c.mustPromote(t, 1)
			c.mustWrite(t, 1, 0, 'a', 4096)
			c.Cut(0, 2)
			c.Cut(2, 3)
			c.mustWrite(t, 1, 4096, 'b', 4096)
			c.Heal(0, 3)
			c.Heal(0, 2)
			c.Heal(2, 3)
			for n := range c.Nodes {
				c.mustSync(t, n)
			}
			c.mustEqual(t)
		})
	}
}
