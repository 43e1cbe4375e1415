package simtest

import (
	"testing"
	"time"
)

// TestANodeWhoseDiskIsDetachedLeavesItBehind: who is promoted without its disk, which
// was detached before, begins a generation, as for any disk that lacks what is written
// from then on. Else the disk bears the name of those that have it all, and when every
// node comes back from a crash it may well be the one that the others are resynced
// from.
func TestANodeWhoseDiskIsDetachedLeavesItBehind(t *testing.T) {
	for seed := range uint64(8) {
		o := three()
		o.Seed = seed
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			if err := c.Nodes[0].Dev.Demote(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			if err := c.Nodes[1].Dev.Detach(timeout(t, time.Minute)); err != nil {
				t.Fatalf("%v\n%s", err, c.Describe())
			}
			before := c.Nodes[0].Dev.Status().Gens.Current
			c.mustPromote(t, 1)
			c.mustWrite(t, 1, 0, 'b', 4096)
			if now := c.Nodes[0].Dev.Status().Gens.Current; now == before {
				t.Errorf("what was written without n1's disk is of the generation that this has, too: %v\n%s", now, c.Describe())
			}
			for _, n := range c.Nodes {
				n.Kill()
			}
			c.mustStart(t, 1, 0, 2)
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHold(t, 0, 'b')
		})
	}
}
