package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// onlyOnOneThatIsLost has the primary n3, which has no disk, write to n1 alone of n0 and
// n1, loses the link to n0, and kills n1: the change is not answered.
func (c *Cluster) onlyOnOneThatIsLost(off int64) asked {
	c.Stall(3, 0, wire.Data)
	write := c.Nodes[3].ask(block.Write, 0, off, bytes.Repeat([]byte{'z'}, 4096), 0)
	time.Sleep(10 * time.Millisecond) // n1 has it
	c.Cut(0, 3)
	c.Nodes[1].Kill()
	return write
}

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
			write := c.onlyOnOneThatIsLost(mib)
			c.mustStart(t, 2)
			time.Sleep(10 * time.Second)
			c.Heal(0, 3)
			c.mustStart(t, 1)
			c.mustAnswer(t, []asked{write})
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHoldDisks(t, mib, 'z')
		})
	}
}

// TestAResyncUndoesNothingOfAPrimaryThatItsSourceHasNotHeardOf: the target meets the
// primary while it is resynced by a source that does not, and its word on that, which
// goes by the meta link, is late. What it asks for next, by the data link, tells.
func TestAResyncUndoesNothingOfAPrimaryThatItsSourceHasNotHeardOf(t *testing.T) {
	for seed := range uint64(40) {
		o := three()
		o.Nodes, o.Diskless, o.Seed = 4, replication.Of(3), seed
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 3)
			c.Nodes[2].Kill()
			for off := int64(0); off < 4*mib; off += mib {
				c.mustWrite(t, 3, off, 'b', mib)
			}
			const at = 4*mib - 4096
			write := c.onlyOnOneThatIsLost(at)
			c.Cut(2, 3)
			c.mustStart(t, 2)
			for c.Nodes[2].Dev.Status().Disk != replication.Inconsistent {
				time.Sleep(100 * time.Microsecond)
			}
			c.Stall(0, 2, wire.Data)
			time.Sleep(5 * time.Millisecond)
			c.Stall(2, 0, wire.Meta)
			c.Heal(2, 3)
			time.Sleep(time.Second) // n2 has it, and has told so
			c.Flow(0, 2, wire.Data)
			time.Sleep(time.Second)
			c.Flow(2, 0, wire.Meta)
			time.Sleep(10 * time.Second)
			c.Heal(0, 3)
			c.mustStart(t, 1)
			c.mustAnswer(t, []asked{write})
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHoldDisks(t, at, 'z')
		})
	}
}
