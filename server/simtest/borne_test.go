package simtest

import (
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAGenerationIsNotOnAMixtureAlone: a primary without a disk loses the source of a
// resync under way, and what waits for that is to be answered in another generation. It
// does not begin one for the target, which would leave behind the only complete disk:
// that is back in a moment, and again, and everything goes on.
func TestAGenerationIsNotOnAMixtureAlone(t *testing.T) {
	o := three()
	o.Diskless = replication.Of(2)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'a', 4096)
		c.Nodes[0].Kill()
		c.mustWrite(t, 2, 0, 'b', 2*mib)
		c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Range: block.Extent{Len: 2 * mib}, Delay: 20 * time.Second})
		c.mustStart(t, 0)
		c.until(t, 0, "being resynced", is(replication.Inconsistent))
		c.Stall(2, 1, wire.Data)
		write := c.Nodes[2].ask(block.Write, 0, 3*mib, fill(1), 0)
		time.Sleep(100 * time.Millisecond) // n0 has it
		c.Nodes[1].Kill()
		time.Sleep(time.Second)
		c.mustStart(t, 1)
		time.Sleep(time.Second)
		c.Nodes[1].Kill()
		c.mustStart(t, 1)
		c.mustAnswer(t, []asked{write})
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHoldDisks(t, 0, 'b')
		c.mustHoldDisks(t, 3*mib, fill(1)[0])
	})
}

// TestWhatOnlyALostDiskTookBeforeIsAnsweredInAnotherGeneration: one of two disks took a
// change of a primary without one, and is lost before the other took it. Where that is
// lost, too, before it has noted that it goes on alone, the two are equals when they
// are back, and either may be the source of the other: so nothing was answered that one
// of them may have lost, and that keeps the primary from reading there.
func TestWhatOnlyALostDiskTookBeforeIsAnsweredInAnotherGeneration(t *testing.T) {
	for name, lose := range map[string]func(n *Node){
		"killed":   (*Node).Kill,
		"no power": func(n *Node) { n.PowerCut(1) },
	} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(4) {
				o := three()
				o.Diskless, o.Seed = replication.Of(2), seed
				bubble(t, o, func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 2)
					c.mustWrite(t, 2, 0, 'a', 4096)
					time.Sleep(10 * time.Second) // that is stable
					c.Stall(1, 2, wire.Meta)
					write := c.Nodes[2].ask(block.Write, 0, 0, fill('z'), 0)
					time.Sleep(10 * time.Millisecond) // both have it, and n1 cannot say so
					c.SetTrap(sendPoint(wire.NewGen), 0, func(_, _ *Node) {
						c.Stall(2, 1, wire.Meta)
						c.Stall(2, 1, wire.Data)
					})
					lose(c.Nodes[0])
					c.Flow(1, 2, wire.Meta)
					time.Sleep(10 * time.Millisecond)
					early := answered(write.done)
					c.Nodes[1].Kill()
					c.mustStart(t, 0, 1)
					c.mustAnswer(t, []asked{write})
					c.mustAllSync(t)
					c.mustEqual(t)
					c.mustHoldDisks(t, 0, fill('z')[0])
					if early {
						t.Error("answered though n1 has not noted that it goes on without n0")
					}
				})
			}
		})
	}
}

// TestAPrimaryThatIsLostAsItBeginsAGenerationGetsOnlyWhatItMissed: one replica has noted the
// generation, and goes on from it. The primary had not, and is left in the one of before.
func TestAPrimaryThatIsLostAsItBeginsAGenerationGetsOnlyWhatItMissed(t *testing.T) {
	o := three()
	o.Size = 64 * mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', mib)
		time.Sleep(10 * time.Second)
		trap := c.SetTrap(takePoint(wire.NewGenAck), 0, func(at, with *Node) { c.Sever(at, with) })
		c.Nodes[2].Kill()
		c.Nodes[0].ask(block.Write, 0, 0, fill('b'), 0)
		time.Sleep(100 * time.Millisecond)
		c.Nodes[0].Kill()
		if trap.Sprung() != c.Nodes[0] {
			t.Fatalf("it began no generation\n%s", c.Describe())
		}
		c.mustStart(t, 2)
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 0, 'c', block.Unit)
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
		for _, n := range c.Nodes {
			if s := n.Dev.Status().Stats; s.ResyncBytes+s.ResyncZeroBytes > 8*mib {
				t.Errorf("%s was sent, or sent, %d bytes", n.Name, s.ResyncBytes+s.ResyncZeroBytes)
			}
		}
	})
}

// TestAnOwnOldDiskIsResyncedByWhoNotedTheGeneration: the disk of a primary fails, and the word
// that the generation without it is in force is lost. The others bear that one, and have
// quorum without the primary: from it they learn that it is in force all the same. Else it
// would be the source, being primary, of what its old disk holds.
func TestAnOwnOldDiskIsResyncedByWhoNotedTheGeneration(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', mib)
		c.SetTrap(sendPoint(wire.GenCommit), 0, func(_, _ *Node) {
			c.Stall(0, 1, wire.Meta)
			c.Stall(0, 2, wire.Meta)
		})
		broken := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO})
		write := c.Nodes[0].ask(block.Write, 0, 0, fill('b'), 0)
		time.Sleep(200 * time.Millisecond)
		if g := c.Nodes[1].Dev.Status().Gens; c.Nodes[0].Dev.Status().Disk != replication.Diskless || !g.Tentative() {
			t.Fatalf("the word was not lost\n%s", c.Describe())
		}
		c.Nodes[0].Disk.Lift(broken)
		c.Isolate(0)
		if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		c.Rejoin(0)
		c.mustAnswer(t, []asked{write})
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
