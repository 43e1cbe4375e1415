package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestAGenerationIsToldWhenItIsSaved: a primary begins a generation because it has lost the
// other disk, which comes back before the primary has saved it. Were it told then that the
// generation is in force, and the primary lost with what it has not saved, both disks would
// take themselves for outdated, by a generation that is on none; until they meet, and for
// good if one of them is detached.
func TestAGenerationIsToldWhenItIsSaved(t *testing.T) {
	o := three()
	o.Diskless = replication.Of(2)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Nodes[0].Meta.Inject(storetest.Fault{Ops: storetest.OpWrite | storetest.OpSync, Delay: 2 * time.Second})
		c.Cut(0, 1)
		_, written := c.Nodes[0].begin(block.Write, 0, bytes.Repeat([]byte{'b'}, 4096))
		time.Sleep(100 * time.Millisecond)
		c.Heal(0, 1)
		time.Sleep(900 * time.Millisecond)
		if answered(written) {
			t.Fatalf("it is answered already\n%s", c.Describe())
		}
		if at := c.Nodes[1].Dev.Status().Disk; at == replication.Outdated {
			t.Errorf("the other disk is %s\n%s", at, c.Describe())
		}
		c.Nodes[0].Kill()
		c.mustStart(t, 0)
		time.Sleep(10 * time.Second)
		c.mustPromote(t, 1)
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
