package simtest

import (
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestANewDiskIsNotTakenForOneThatWasPartlyResynced: a disk that was lost before anything
// was written comes back, and is lost again in the midst of its resync, for good. The new one
// in its place bears no generation, as that did at first, and lacks what that had got.
func TestANewDiskIsNotTakenForOneThatWasPartlyResynced(t *testing.T) {
	o := three()
	o.Size = 4 * mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.Isolate(1)
		time.Sleep(100 * time.Millisecond)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4*mib)
		trap := c.SetTrap(takePoint(wire.SyncAck), 3, func(at, with *Node) { c.Sever(at, with) })
		c.Heal(0, 1)
		c.until(t, 1, "being resynced", is(replication.Inconsistent))
		time.Sleep(time.Second)
		if trap.Sprung() != c.Nodes[0] {
			t.Fatalf("it was not resynced\n%s", c.Describe())
		}
		if g := c.Nodes[0].Dev.Status().Gens; g.Bitmap[1] != g.Current {
			t.Errorf("its source has it in %v\n%s", g.Bitmap[1], c.Describe())
		}
		c.Cut(0, 1)
		c.Nodes[1].Kill()
		c.Nodes[1].EmptyDisk(o.Size)
		c.mustStart(t, 1)
		c.Rejoin(1)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 0, 'a')
	})
}
