package simtest

import (
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAGenerationThatNoDiskIsIn does not come into force: the one disk that takes part
// is lost while a primary without one announces it, and the other is only told that it
// is left behind. Neither takes itself for outdated by it for good, nor does a
// tiebreaker take the primary for gone on without them.
func TestAGenerationThatNoDiskIsIn(t *testing.T) {
	o := three()
	o.Diskless = replication.Of(2)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'a', 4096)
		if err := c.Nodes[2].Dev.Demote(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		c.Nodes[0].Kill()
		c.Cut(0, 1)
		c.mustStart(t, 0)
		time.Sleep(time.Second)
		// n0 cannot know whether it is current, and takes no part; n1 never hears of it.
		c.SetTrap(sendPoint(wire.NewGen), 0, func(_, _ *Node) {
			c.Stall(2, 1, wire.Data)
			c.Stall(2, 1, wire.Meta)
		})
		c.mustPromote(t, 2)
		dev, ctx := c.Nodes[2].Dev, timeout(t, 2*time.Second)
		var write sync.WaitGroup
		write.Go(func() { _ = c.ask(ctx, dev, block.Write, 0, 8192, fill(1), 0) })
		time.Sleep(100 * time.Millisecond)
		c.Nodes[1].Kill()
		time.Sleep(time.Second)
		c.Nodes[2].Kill()
		write.Wait()
		c.Heal(0, 1)
		c.mustStart(t, 1, 2)
		time.Sleep(10 * time.Second)
		c.mustPromote(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
		got := make([]byte, 1)
		if c.Nodes[1].Disk.Peek(got, 0); got[0] != 'a' {
			t.Error("what was written is gone")
		}
	})
}
