package simtest

import (
	"bytes"
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// Two disks that do not see each other, and tiebreakers that see both: the one
// that goes on is known to those, and the other does not take its place.
func TestScenario29ATiebreakerBridges(t *testing.T) {
	for _, tiebreakers := range []int{1, 2, 3} {
		for what, then := range map[string]func(t *testing.T, c *Cluster){
			"the primary dies":  func(*testing.T, *Cluster) {},
			"it dies at once":   nil,
			"all forget":        restartTiebreakers,
			"another is lost":   func(_ *testing.T, c *Cluster) { c.Isolate(len(c.Nodes) - 1) },
			"another forgets":   func(t *testing.T, c *Cluster) { n := len(c.Nodes) - 1; c.Nodes[n].Kill(); c.mustStart(t, n) },
			"the other returns": func(t *testing.T, c *Cluster) { c.Nodes[1].Kill(); c.mustStart(t, 1) },
		} {
			t.Run(fmt.Sprint(tiebreakers, " tiebreakers, ", what), func(t *testing.T) {
				o := three()
				o.Nodes = 2 + tiebreakers
				for i := range tiebreakers {
					o.Diskless = o.Diskless.With(2 + i)
				}
				bubble(t, o, func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, 0, 'a', 4096)
					c.Cut(0, 1)
					c.mustWrite(t, 0, 0, 'b', 4096)
					if then != nil {
						time.Sleep(5 * time.Second)
						then(t, c)
						time.Sleep(5 * time.Second)
					}
					c.Nodes[0].Kill()
					for n := 1; n < o.Nodes; n++ { // the disk left behind, or who has none
						if err := c.Nodes[n].Dev.Promote(timeout(t, 3*time.Second), false); err == nil {
							t.Fatalf("n%d was promoted without what was written last\n%s", n, c.Describe())
						}
					}
					c.mustStart(t, 0)
					for n := range c.Nodes {
						c.Rejoin(n)
					}
					c.mustAllSync(t)
					c.mustEqual(t)
					c.mustHoldDisks(t, 0, 'b')
					c.mustPromote(t, 1)
				})
			})
		}
	}
}

func restartTiebreakers(t *testing.T, c *Cluster) {
	for n := 2; n < len(c.Nodes); n++ {
		c.Nodes[n].Kill()
		c.mustStart(t, n)
	}
}

// TestScenario29ATiebreakerSaysWhoIsBehind: who is left behind knows it, and
// says so, while the other goes on.
func TestScenario29ATiebreakerSaysWhoIsBehind(t *testing.T) {
	bubble(t, tie(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.Cut(0, 1)
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.until(t, 1, "it knows", is(replication.Outdated))
		if c.quorate(1) || !c.quorate(0) {
			t.Fatalf("the wrong side has quorum\n%s", c.Describe())
		}
		c.mustWrite(t, 0, 4096, 'c', 4096)
		c.Heal(0, 1)
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}

// TestScenario38ADisklessPrimaryKeepsQuorum with half of the disks: it is a
// tiebreaker itself. Whoever comes back without what it wrote is not promoted.
func TestScenario38ADisklessPrimaryKeepsQuorum(t *testing.T) {
	o := three()
	o.Diskless = replication.Of(0)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Nodes[1].Kill()
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.Nodes[2].Kill()
		c.mustStart(t, 1)
		time.Sleep(5 * time.Second)
		if c.quorate(0) || c.quorate(1) {
			t.Fatalf("quorum with old data\n%s", c.Describe())
		}
		c.mustStart(t, 2)
		c.mustAllSync(t)
		c.mustWrite(t, 0, 4096, 'c', 4096)
		c.mustEqual(t)
		c.mustHoldDisks(t, 0, 'b')
	})
}

// TestScenario38ADisklessPrimaryUnderEveryProtocol: a change is answered as soon
// as one disk has it, whatever the protocol asks for besides, and whether there are more.
func TestScenario38ADisklessPrimaryUnderEveryProtocol(t *testing.T) {
	for _, protocol := range []replication.Protocol{replication.ProtocolA, replication.ProtocolB, replication.ProtocolC} {
		for _, nodes := range []int{2, 3} {
			o := three()
			o.Nodes, o.Diskless, o.Protocol = nodes, replication.Of(0), protocol
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				start := time.Now()
				for i := range int64(20) {
					c.mustWrite(t, 0, i*4096, 'a', 4096)
				}
				if took := time.Since(start); took > 200*time.Millisecond {
					t.Errorf("protocol %v, %d nodes: 20 writes took %v", protocol, nodes, took)
				}
				c.mustFlush(t, 0)
				time.Sleep(time.Second) // protocols A and B answer before all have it
				c.mustEqual(t)
				c.mustHoldDisks(t, 19*4096, 'a')
			})
		}
	}
}

// TestScenario38TheOnlyDiskIsLostAndComesBack: what its client without a disk was not
// answered waits for it, and is made then; where requests fail, it fails.
func TestScenario38TheOnlyDiskIsLostAndComesBack(t *testing.T) {
	for _, protocol := range []replication.Protocol{replication.ProtocolA, replication.ProtocolB, replication.ProtocolC} {
		for _, failIO := range []bool{false, true} {
			o := three()
			o.Nodes, o.Diskless, o.Protocol, o.FailIO = 2, replication.Of(0), protocol, failIO
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 0, 'a', 4096)
				in := c.Nodes[1].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Delay: time.Second})
				write := c.Nodes[0].ask(block.Write, 0, 4096, fill('b'), 0)
				time.Sleep(100 * time.Millisecond)
				c.Nodes[1].Kill()
				c.Nodes[1].Disk.Lift(in)
				time.Sleep(time.Minute)
				if done := answered(write.done); done != failIO || done && write.r.Err == nil {
					t.Errorf("protocol %c, requests fail %t: it was answered %t, with %v, and is on no disk", protocol, failIO, done, write.r.Err)
				}
				c.mustStart(t, 1)
				if !failIO {
					c.mustAnswer(t, []asked{write})
				}
				c.mustAllSync(t)
				c.mustWrite(t, 0, 8192, 'c', 4096)
				c.mustFlush(t, 0)
				c.mustHoldDisks(t, 0, 'a')
				c.mustHoldDisks(t, 8192, 'c')
				if !failIO {
					c.mustHoldDisks(t, 4096, 'b')
				}
			})
		}
	}
}

// TestScenario29TheDiskThatWentOnFails: its node still knows what came into force
// on it, and the tiebreaker does. The disk that comes back without that is no
// substitute, whoever of the two is there to say so.
func TestScenario29TheDiskThatWentOnFails(t *testing.T) {
	for _, tiebreaker := range []bool{true, false} {
		o := three()
		o.Diskless, o.Extents, o.ExtentBytes = replication.Of(2), 8, 64<<10
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 1)
			c.mustWrite(t, 1, 0, 'a', 4096)
			c.Nodes[0].Kill()
			c.mustWrite(t, 1, 0, 'b', 4096)
			in := c.Nodes[1].Meta.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO})
			held := c.Nodes[1].ask(block.Write, 0, mib, bytes.Repeat([]byte{'c'}, 4096), 0)
			c.until(t, 1, "detached", is(replication.Diskless))
			if !tiebreaker {
				c.Nodes[2].Kill()
			}
			c.mustStart(t, 0)
			time.Sleep(30 * time.Second)
			if st := c.Nodes[0].Dev.Status(); st.Disk == replication.UpToDate || answered(held.done) {
				t.Fatalf("what was acknowledged is gone\n%s", c.Describe())
			}
			c.Nodes[1].Meta.Lift(in)
			if err := c.Nodes[1].Dev.Attach(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			if !tiebreaker {
				c.mustStart(t, 2)
			}
			c.mustAnswer(t, []asked{held})
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHoldDisks(t, 0, 'b')
			c.mustHoldDisks(t, mib, 'c')
		})
	}
}
