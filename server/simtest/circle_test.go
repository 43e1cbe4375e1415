package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestNoCircleOfResyncs: of disks in one generation, which differ in what was never
// answered, whose data the others take depends on who is primary, has received more, or was
// restarted. So one that is to take another's waits until that has said that it stays
// complete: else each of three could come to wait for the next.
func TestNoCircleOfResyncs(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'a', 4096)
		c.Stall(2, 1, wire.Data)
		c.Nodes[2].begin(block.Write, 0, bytes.Repeat([]byte{'b'}, 4096))
		time.Sleep(100 * time.Millisecond)
		asks := c.SetTrapOn(c.Nodes[1], c.Nodes[0], sendPoint(wire.StayReq), func(_, _ *Node) { c.Stall(0, 1, wire.Meta) })
		c.Nodes[2].Kill()
		time.Sleep(2 * time.Second)
		if asks.Sprung() == nil {
			t.Fatalf("it does not ask\n%s", c.Describe())
		}
		for _, p := range c.Nodes[1].Dev.Status().Peers {
			if p.Repl == replication.SyncTarget {
				t.Fatalf("it does not wait for the answer\n%s", c.Describe())
			}
		}
		c.Flow(0, 1, wire.Meta)
		if err := c.Nodes[2].Start(); err != nil {
			t.Fatal(err)
		}
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
