package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestADiskThatCaughtUpElsewhereIsCurrent: a disk missed changes of a primary without a disk,
// which knows that, and was resynced by another out of its sight. When the primary is back
// that disk has all that was answered, and may be the one that the others are resynced from.
func TestADiskThatCaughtUpElsewhereIsCurrent(t *testing.T) {
	bubble(t, disklessFirst(4), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.Cut(0, 1)
		c.mustWrite(t, 0, 0, 'a', block.Unit)
		_, written := c.Nodes[0].begin(block.Write, 0, bytes.Repeat([]byte{'b'}, block.Unit))
		c.Cut(0, 2)
		c.Cut(0, 3)
		time.Sleep(3 * time.Second)
		if s := c.Nodes[1].Dev.Status().Disk; s != replication.UpToDate || answered(written) {
			t.Fatalf("n1 is %v, answered %t\n%s", s, answered(written), c.Describe())
		}
		for _, n := range c.Nodes[2:] {
			n.Kill()
		}
		reads := c.Nodes[1].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 3 * time.Second})
		c.mustStart(t, 2)
		c.mustStart(t, 3)
		time.Sleep(time.Second)
		for _, n := range c.Nodes[2:] {
			if s := n.Dev.Status().Disk; s >= replication.UpToDate {
				t.Fatalf("%s is %v\n%s", n.Name, s, c.Describe())
			}
		}
		c.Rejoin(0)
		time.Sleep(5 * time.Second)
		c.Nodes[1].Disk.Lift(reads)
		c.mustAllSync(t)
		if !answered(written) {
			t.Errorf("it is not answered\n%s", c.Describe())
		}
		c.mustEqual(t)
	})
}
