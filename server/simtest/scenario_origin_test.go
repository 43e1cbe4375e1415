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
			c.mustAllSync(t)
			c.mustEqual(t)
		})
	}
}

// TestScenario32ADiskThatWasDetachedBeforeAnythingWasWritten: its node is primary without
// it later, and the origin that it met the others by is not theirs any more.
func TestScenario32ADiskThatWasDetachedBeforeAnythingWasWritten(t *testing.T) {
	for seed := range uint64(40) { // which origin is older is drawn, and who hears of it first
		o := three()
		o.Nodes, o.Diskless, o.Quorum = 4, replication.Of(3), replication.QuorumPolicy{}
		o.Seed, o.Delay = seed, 3*time.Millisecond
		bubble(t, o, func(t *testing.T, c *Cluster) {
			for c.Nodes[1].Dev.Detach(timeout(t, time.Minute)) != nil {
				time.Sleep(100 * time.Microsecond)
			}
			c.mustPromote(t, 3)
			c.mustWrite(t, 3, 0, 'a', 4096)
			c.mustDemote(t, 3)
			time.Sleep(time.Second)
			c.Isolate(0)
			c.mustPromote(t, 1)
			c.mustWrite(t, 1, 4096, 'b', 4096)
			c.Rejoin(0)
			if err := c.Nodes[1].Dev.Attach(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			c.mustAllSync(t)
			c.mustEqual(t)
		})
	}
}
