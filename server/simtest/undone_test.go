package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
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

// TestAChangeThatIsOnlyOnItsWayToAMixtureIsSentToWhoIsBack: a primary whose own disk is being
// resynced loses its source before that has a change, and has it back before its own disk
// has taken it. That counts for nothing there, and the source is to have it: when a third
// comes it would be answered else, and undone by the resync of both.
func TestAChangeThatIsOnlyOnItsWayToAMixtureIsSentToWhoIsBack(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 1)
		c.Nodes[0].Kill()
		c.mustWrite(t, 1, 0, 'b', mib)
		c.Nodes[2].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Range: block.Extent{Len: 4096}, Delay: 10 * time.Second})
		if err := c.Nodes[1].Dev.Invalidate(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.until(t, 1, "being resynced", is(replication.Inconsistent))
		c.mustWrite(t, 1, 2*mib, 'b', 4096)
		slow := c.Nodes[1].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Range: block.Extent{Off: 3 * mib, Len: 4096}, Delay: time.Second})
		c.Stall(1, 2, wire.Data)
		written := make(chan asked)
		go func() { written <- c.Nodes[1].ask(block.Write, 0, 3*mib, fill('c'), 0) }()
		time.Sleep(10 * time.Millisecond)
		c.Cut(1, 2)
		time.Sleep(10 * time.Millisecond)
		c.Heal(1, 2)
		write := <-written
		c.Nodes[1].Disk.Lift(slow)
		time.Sleep(time.Second)
		c.mustStart(t, 0)
		c.mustAnswer(t, []asked{write})
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 3*mib, fill('c')[0])
	})
}
