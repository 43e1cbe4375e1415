package simtest

import (
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
)

// TestAPrimaryWithoutADiskKnowsWhoIsBehind: a disk that was cut off from the others,
// and has not heard that they went on without it, takes itself for current. Between it
// and one of those others a node without a disk becomes primary, which sees them both
// and can compare nothing: it reads from none that is behind, and writes to none.
func TestAPrimaryWithoutADiskKnowsWhoIsBehind(t *testing.T) {
	o := three()
	o.Nodes, o.Diskless = 4, replication.Of(3)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 0, 'a', 4096)
		time.Sleep(time.Second)
		c.Cut(0, 1)
		c.Cut(0, 2)
		c.mustWrite(t, 1, 0, 'b', 4096)
		if err := c.Nodes[1].Dev.Demote(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.Nodes[1].Kill()
		c.mustPromote(t, 3)
		for range 50 {
			got := make([]byte, 4096)
			if err := c.Nodes[3].Do(timeout(t, time.Minute), block.Read, 0, 0, got, 0); err != nil || got[0] != 'b' {
				t.Fatalf("%q was read, %v\n%s", got[0], err, c.Describe())
			}
			time.Sleep(10 * time.Millisecond)
		}
		write := c.Nodes[3].ask(block.Write, 0, 8192, fill(1), 0)
		time.Sleep(time.Second)
		if s := c.Nodes[0].Dev.Status().Disk; s > replication.Outdated {
			t.Errorf("n0 passes for %v\n%s", s, c.Describe())
		}
		c.Rejoin(0)
		c.mustStart(t, 1)
		c.mustAnswer(t, []asked{write})
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
