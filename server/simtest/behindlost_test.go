package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAResyncEndsAsThePrimaryLosesItsTarget: a disk is resynced by a replica, and the
// primary, which loses sight of it at the very end, still takes it for a mixture. What is
// answered from there on it lacks, though it is complete.
func TestAResyncEndsAsThePrimaryLosesItsTarget(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 0, 'a', 4096)
		// The primary's own disk is a mixture, so another is to be the source.
		if err := c.Nodes[1].Dev.PauseResync(""); err != nil {
			t.Fatal(err)
		}
		if err := c.Nodes[1].Dev.Invalidate(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
		c.Isolate(2)
		c.mustWrite(t, 1, 0, 'b', 4096)
		trap := c.SetTrapOn(c.Nodes[0], c.Nodes[2], sendPoint(wire.SyncDone), func(_, target *Node) { c.Sever(c.Nodes[1], target) })
		c.Rejoin(2)
		time.Sleep(100 * time.Millisecond)
		c.until(t, 2, "up to date", is(replication.UpToDate))
		if trap.Sprung() == nil {
			t.Fatalf("it was not resynced by n0\n%s", c.Describe())
		}
		c.Cut(1, 2)
		c.mustWrite(t, 1, 0, 'c', 4096)
		c.mustStop(t, 1)
		if err := c.Nodes[2].Dev.Promote(timeout(t, time.Minute), false); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		c.mustRead(t, 2, 0, bytes.Repeat([]byte{'c'}, 4096))
	})
}
