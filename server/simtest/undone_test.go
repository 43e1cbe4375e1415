package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAResyncUndoesNothingThatTheTargetConfirmed: a primary without a disk is in contact
// with the target of a resync, and not with its source, which lacks what the primary
// sends the target meanwhile.
func TestAResyncUndoesNothingThatTheTargetConfirmed(t *testing.T) {
	for seed := range uint64(40) {
		o := three()
		o.Nodes, o.Diskless, o.Seed = 4, replication.Of(3), seed
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 3)
			c.mustWrite(t, 3, 0, 'a', 4096)
			c.Nodes[2].Kill()
			c.mustWrite(t, 3, 0, 'b', 2*mib)
			c.Stall(3, 0, wire.Data)
			write := c.Nodes[3].ask(block.Write, 0, mib, bytes.Repeat([]byte{'z'}, 4096), 0)
			time.Sleep(10 * time.Millisecond) // n1 has it
			c.Cut(0, 3)
			c.Nodes[1].Kill()
			c.mustStart(t, 2)
			time.Sleep(10 * time.Second)
			c.Heal(0, 3)
			c.mustStart(t, 1)
			c.mustAnswer(t, []asked{write})
			c.mustAllSync(t)
			c.mustEqual(t)
			got := make([]byte, 4096)
			if c.Nodes[2].Disk.Peek(got, mib); got[0] != 'z' {
				t.Errorf("%q is there in the place of what was answered\n%s", got[0], c.Describe())
			}
		})
	}
}
