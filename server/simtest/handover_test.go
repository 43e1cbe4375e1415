package simtest

import (
	"testing"
	"time"
)

// TestARoleMovesOnAfterAReplicaCameBack: a replica that joined the primary
// votes for the next one when that primary has demoted in order.
func TestARoleMovesOnAfterAReplicaCameBack(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Nodes[1].Kill()
		c.mustWrite(t, 0, 4096, 'b', 4096)
		if err := c.Nodes[1].Start(); err != nil {
			t.Fatal(err)
		}
		c.mustSync(t, 0)
		if err := c.Nodes[0].Dev.Demote(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // all have heard of it
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'c', 4096)
		c.mustEqual(t)
	})
}
