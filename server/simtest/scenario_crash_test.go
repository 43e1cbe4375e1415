package simtest

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// resynced is how many bytes all nodes that run have sent in resyncs.
func (c *Cluster) resynced() (n uint64) {
	for _, m := range c.Nodes {
		if m.Dev != nil {
			n += m.Dev.Status().Stats.ResyncBytes
		}
	}
	return n
}

// mustStart starts nodes in the order given.
func (c *Cluster) mustStart(t *testing.T, nodes ...int) {
	t.Helper()
	for _, n := range nodes {
		if err := c.Nodes[n].Start(); err != nil {
			t.Fatal(err)
		}
	}
}

// mustAllSync waits until every node sees every other in sync.
func (c *Cluster) mustAllSync(t *testing.T) {
	t.Helper()
	for n := range c.Nodes {
		c.mustSync(t, n)
	}
}

// TestScenario04PowerCutOfAll: what a flush, or a write with FUA, was answered
// for is there after the power of all nodes was cut, whoever comes back first.
func TestScenario04PowerCutOfAll(t *testing.T) {
	for _, fua := range []bool{false, true} {
		for seed := range uint64(6) {
			o := three()
			o.Seed = seed
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				for _, n := range c.Nodes[1:] {
					n.Disk.Inject(storetest.Fault{Ops: storetest.OpSync, Delay: 50 * time.Millisecond})
				}
				data := bytes.Repeat([]byte{'d'}, 300<<10)
				var flags block.Flags
				if fua {
					flags = block.FUA
				}
				if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Write, flags, mib, data, 0); err != nil {
					t.Fatal(err)
				}
				if !fua {
					c.mustFlush(t, 0)
				}
				c.mustWrite(t, 0, 3*mib, 'x', 64<<10) // that may be lost
				for _, n := range c.Nodes {
					n.PowerCut(1)
				}
				one, other := int(seed)%3, (int(seed)+1)%3
				c.mustStart(t, one, other)
				c.mustPromote(t, one)
				c.mustRead(t, one, mib, data)
				c.mustStart(t, 3-one-other)
				c.mustAllSync(t)
				c.mustEqual(t)
			})
		}
	}
}

// TestScenario08AReplicaDiesAroundAWrite: before the write is on its disk,
// before it has said so, and before what it said is durable.
func TestScenario08AReplicaDiesAroundAWrite(t *testing.T) {
	for name, die := range map[string]func(t *testing.T, c *Cluster){
		"received, not written": func(t *testing.T, c *Cluster) {
			hang := c.Nodes[1].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Hang: true})
			a := c.Nodes[0].ask(block.Write, 0, mib, bytes.Repeat([]byte{'w'}, 8192), 0)
			hang.Await(1)
			c.Nodes[1].PowerCut(1)
			c.mustAnswer(t, []asked{a})
		},
		"written, not acknowledged": func(t *testing.T, c *Cluster) {
			trap := c.SetTrap("write-ack: before it is sent", 0, func(at, _ *Node) { at.PowerOff(storetest.Crash{Lost: 1}) })
			a := c.Nodes[0].ask(block.Write, 0, mib, bytes.Repeat([]byte{'w'}, 8192), 0)
			time.Sleep(time.Second)
			if trap.Sprung() == nil {
				t.Fatal("nobody came to the point")
			}
			trap.Sprung().Bury()
			c.mustAnswer(t, []asked{a})
		},
		"acknowledged, not durable": func(t *testing.T, c *Cluster) {
			c.mustWrite(t, 0, mib, 'w', 8192)
			c.Nodes[1].PowerCut(1)
		},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, three(), func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 0, 'a', 2*mib)
				time.Sleep(5 * time.Second) // a background flush makes it stable
				die(t, c)
				c.mustWrite(t, 0, 3*mib, 'b', 4096)
				for _, n := range c.Nodes {
					if n.Dev == nil {
						c.mustStart(t, n.ID)
					}
				}
				c.mustAllSync(t)
				c.mustEqual(t)
				if n := c.resynced(); n == 0 || n > 128<<10 {
					t.Errorf("%d bytes were resynced for three blocks", n)
				}
			})
		})
	}
}

// TestScenario08AChangeThatWaitedMissesAReplica: it waited for one that a lost
// replica had not acknowledged, and goes on in the moment of the loss. Whoever is
// left when the primary is gone, too, knows that the lost one lacks it.
func TestScenario08AChangeThatWaitedMissesAReplica(t *testing.T) {
	for _, lost := range []func(c *Cluster){
		func(c *Cluster) { c.Isolate(2) },
		func(c *Cluster) { c.Nodes[2].Kill() },
	} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', mib)
			// While it is resynced no generation is wanted at its loss, which would
			// hold up everything.
			c.Isolate(2)
			c.mustWrite(t, 0, 2*mib, 'a', mib)
			slow := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: time.Minute})
			c.Heal(0, 2)
			c.until(t, 2, "it is being resynced", is(replication.Inconsistent))
			time.Sleep(time.Second)
			hang := c.Nodes[2].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Hang: true})
			all := []asked{
				c.Nodes[0].ask(block.Write, 0, mib, bytes.Repeat([]byte{'b'}, 4096), 0),
				c.Nodes[0].ask(block.Write, 0, mib, bytes.Repeat([]byte{'c'}, 256<<10), 0),
			}
			hang.Await(1)
			time.Sleep(time.Second) // nothing else is awaited
			lost(c)
			hang.Release()
			c.Nodes[0].Disk.Lift(slow)
			c.mustAnswer(t, all)
			time.Sleep(5 * time.Second) // the other one hears that it has all that there is
			c.Nodes[0].Kill()
			if c.Nodes[2].Dev == nil {
				c.mustStart(t, 2)
			}
			c.Heal(1, 2)
			c.mustPromote(t, 1)
			c.mustStart(t, 0)
			c.Rejoin(2)
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHold(t, mib+128<<10, 'c')
		})
	}
}

// TestScenario12APrimaryKilledUnderLoad comes back: what is resynced is what
// its activity log had, from one survivor, from the other, and once more from
// the first, because the second may have differed from it; and each time the
// last change, of which the survivors have not heard that the others have it.
func TestScenario12APrimaryKilledUnderLoad(t *testing.T) {
	o := three()
	o.Size, o.Extents, o.ExtentBytes = 64*mib, 32, 64<<10
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 32*mib, 'x', 16*mib)
		h := &history{t: t, c: c, l: newLedger()}
		for i := range int64(300) {
			h.l.write(timeout(t, time.Second), c.Nodes[0], i*13%tortureBlocks)
		}
		c.Nodes[0].Kill()
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
		if err := h.l.check(func(off int64, p []byte) { c.Nodes[2].Disk.Peek(p, off) }); err != nil {
			t.Fatal(err)
		}
		if n, log := c.resynced(), uint64(o.Extents)*uint64(o.ExtentBytes); n > 3*(log+4096) {
			t.Errorf("%d bytes were resynced; the log holds %d", n, log)
		}
	})
}

// TestScenario15PowerCutOfAllInEveryOrder of coming back: nothing is copied as
// a whole, and all are equal at the end.
func TestScenario15PowerCutOfAllInEveryOrder(t *testing.T) {
	for i, order := range [][]int{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}} {
		t.Run(fmt.Sprint(order), func(t *testing.T) {
			o := three()
			o.Size, o.Extents, o.ExtentBytes, o.Seed = 64*mib, 32, 64<<10, uint64(i)
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 32*mib, 'x', 16*mib)
				c.mustFlush(t, 0)
				for j := range 200 {
					c.Nodes[0].ask(block.Write, 0, int64(j*53%512)*4096, bytes.Repeat([]byte{byte(j)}, 4096), 0)
				}
				time.Sleep(20 * time.Millisecond)
				for _, n := range c.Nodes {
					n.PowerCut(0.5)
				}
				for _, n := range order {
					c.mustStart(t, n)
					time.Sleep(10 * time.Second)
				}
				c.mustAllSync(t)
				c.mustEqual(t)
				c.mustHold(t, 40*mib, 'x')
				if n := c.resynced(); n > 12*mib {
					t.Errorf("%d bytes were resynced; the log holds %d", n, o.Extents*int(o.ExtentBytes))
				}
				c.mustPromote(t, order[2])
				c.mustWrite(t, order[2], 0, 'z', 4096)
			})
		})
	}
}

// tails leaves the survivors of a primary with different parts of its last
// writes, and returns those that were acknowledged.
func (c *Cluster) tails(t *testing.T) (acked []int64) {
	t.Helper()
	var all []asked
	for i := range int64(60) {
		all = append(all, c.Nodes[0].ask(block.Write, 0, i*8192, bytes.Repeat([]byte{byte(1 + i)}, 4096), 0))
	}
	time.Sleep(c.opts.Delay * 8)
	c.Nodes[0].PowerOff(storetest.Crash{})
	for i, a := range all {
		if answered(a.done) && a.r.Err == nil {
			acked = append(acked, int64(i))
		}
	}
	c.Nodes[0].Bury()
	return acked
}

// TestScenario16SurvivorsWithDifferentTails: the primary dies in the midst of
// its writes; either of the others takes over, and they come to one content.
func TestScenario16SurvivorsWithDifferentTails(t *testing.T) {
	for seed := range uint64(10) {
		o := three()
		o.Seed, o.Delay = seed, 4*time.Millisecond
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 3*mib, 'a', 4096)
			acked := c.tails(t)
			next := 1 + int(seed)%2
			c.mustPromote(t, next)
			c.mustWrite(t, next, 3*mib, 'b', 4096)
			c.mustStart(t, 0)
			c.mustAllSync(t)
			c.mustEqual(t)
			for _, i := range acked {
				c.mustHold(t, i*8192, byte(1+i))
			}
		})
	}
}

// TestScenario17SurvivorsApart: as 16, and one of the survivors is cut off
// until another was promoted.
func TestScenario17SurvivorsApart(t *testing.T) {
	for seed := range uint64(10) {
		o := three()
		o.Nodes, o.Seed, o.Delay = 5, seed, 4*time.Millisecond
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 3*mib, 'a', 4096)
			acked := c.tails(t)
			apart, next := 1+int(seed)%4, 1+int(seed+1)%4
			c.Isolate(apart)
			if err := c.Nodes[apart].Dev.Promote(timeout(t, 3*time.Second), false); err == nil {
				t.Fatalf("one of five was promoted\n%s", c.Describe())
			}
			c.mustPromote(t, next)
			c.mustWrite(t, next, 3*mib, 'b', 4096)
			c.Rejoin(apart)
			c.mustStart(t, 0)
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHold(t, 3*mib, 'b')
			for _, i := range acked {
				c.mustHold(t, i*8192, byte(1+i))
			}
		})
	}
}

// TestScenario19APrimaryThatWroteNothing dies, and the next one too: there is
// nothing to quarrel about, and nothing to resync but what an earlier primary
// left in the activity log.
func TestScenario19APrimaryThatWroteNothing(t *testing.T) {
	for _, quorum := range []replication.QuorumPolicy{majority(), {}} {
		for _, before := range []bool{false, true} {
			o := three()
			o.Quorum, o.Extents, o.ExtentBytes = quorum, 8, 64<<10
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				most := uint64(0)
				if before {
					c.mustPromote(t, 1)
					c.mustWrite(t, 1, 0, 'a', 4096)
					if err := c.Nodes[1].Dev.Demote(timeout(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
					time.Sleep(5 * time.Second)
					most = 4 * 64 << 10 // the extent, from either of two to two
				}
				c.mustPromote(t, 0)
				c.Nodes[0].Kill()
				c.mustPromote(t, 2)
				c.Nodes[2].Kill()
				c.mustStart(t, 0, 2)
				c.mustAllSync(t)
				c.mustEqual(t)
				if n := c.resynced(); n > most {
					t.Errorf("%d bytes were resynced, not %d at most\n%s", n, most, c.Describe())
				}
			})
		}
	}
}

// TestScenario20LostMetadata: a disk without its metadata is never taken for
// one in sync, whether it is alone with that or not.
func TestScenario20LostMetadata(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', mib)
		c.Nodes[1].Kill()
		c.mustWrite(t, 0, 0, 'b', mib)
		n := c.Nodes[1]
		n.Meta = storetest.NewImage(0)
		c.opts.Existing = replication.Of(1)
		c.mustStart(t, 1)
		c.mustAllSync(t)
		c.mustEqual(t)
		if dec := c.Nodes[0].Dev.Status().Peers[0].Decision; dec.Action != replication.SourceFull {
			t.Errorf("a disk of which nothing is known: %v\n%s", dec, c.Describe())
		}
		// All metadata is lost: what the disks hold is nobody's to say.
		for _, n := range c.Nodes {
			n.Kill()
			n.Meta = storetest.NewImage(0)
		}
		c.opts.Existing = replication.Of(0, 1, 2)
		c.mustStart(t, 0, 1, 2)
		time.Sleep(10 * time.Second)
		for _, n := range c.Nodes {
			if err := n.Dev.Promote(timeout(t, 3*time.Second), false); err == nil {
				t.Fatalf("%s was promoted without any metadata\n%s", n.Name, c.Describe())
			}
		}
		c.mustHold(t, 0, 'b')
	})
}
