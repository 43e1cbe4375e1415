package simtest

import (
	"bytes"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// disklessFirst is a cluster whose n0 has no disk.
func disklessFirst(nodes int) Options {
	o := three()
	o.Nodes, o.Diskless = nodes, replication.Of(0)
	return o
}

// TestScenario58AZombieWithoutADisk: a primary that was given up, and that has
// no data by which others could tell, answers nothing when it is back; also
// where the one that was promoted instead has gone before it comes.
func TestScenario58AZombieWithoutADisk(t *testing.T) {
	for _, nodes := range []int{3, 4, 5} {
		for _, alone := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d nodes, successor gone %t", nodes, alone), func(t *testing.T) {
				bubble(t, disklessFirst(nodes), func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, 0, 'a', 4096)
					c.Isolate(0)
					zombie := c.Nodes[0].ask(block.Write, 0, 8192, bytes.Repeat([]byte{'z'}, 4096), 0)
					time.Sleep(time.Second)
					c.mustPromote(t, 1)
					c.mustWrite(t, 1, 0, 'b', 4096)
					c.mustWrite(t, 1, 8192, 'b', 4096)
					if alone {
						c.Nodes[1].Kill()
						time.Sleep(time.Second)
						c.mustStart(t, 1)
						time.Sleep(5 * time.Second)
					}
					c.Rejoin(0)
					time.Sleep(20 * time.Second)
					synctest.Wait()
					if st := c.Nodes[0].Dev.Status(); st.Role == replication.Primary {
						t.Fatalf("it is primary still\n%s", c.Describe())
					}
					if !answered(zombie.done) || !errors.Is(zombie.r.Err, block.ErrDropped) {
						t.Fatalf("its write was answered %t with %v\n%s", answered(zombie.done), zombie.r.Err, c.Describe())
					}
					c.mustAllSync(t)
					c.mustEqual(t)
					c.mustHoldDisks(t, 0, 'b')
					c.mustHoldDisks(t, 8192, 'b')
				})
			})
		}
	}
}

// TestScenario58AZombieThatATiebreakerToldFirst: a primary without a disk was cut off,
// and another has written and demoted meanwhile. It hears of that from a tiebreaker
// first: what it held back is not made when it meets the disks after that.
func TestScenario58AZombieThatATiebreakerToldFirst(t *testing.T) {
	o := three()
	o.Nodes, o.Diskless = 4, replication.Of(2, 3)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 3)
		c.mustWrite(t, 3, 0, 'a', 4096)
		c.Isolate(3)
		c.Nodes[3].ask(block.Write, 0, 0, bytes.Repeat([]byte{'x'}, 4096), 0)
		time.Sleep(time.Second)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.mustDemote(t, 0)
		c.Isolate(2) // which knows of that, and has no quorum
		c.Heal(3, 2)
		time.Sleep(time.Second)
		c.Rejoin(3)
		time.Sleep(time.Second)
		c.Rejoin(2)
		time.Sleep(time.Minute)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHoldDisks(t, 0, 'b')
	})
}

// TestScenario49ADisklessPrimaryKnowsWhoIsInSync: a disk that missed something
// under a primary without one is resynced from one of the others, and the third
// learns that it need not do so again.
func TestScenario49ADisklessPrimaryKnowsWhoIsInSync(t *testing.T) {
	for back := 1; back < 4; back++ {
		for seed := range uint64(5) {
			o := disklessFirst(4)
			o.Seed = seed
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 0, 'a', 2*mib)
				c.Nodes[back].Kill()
				c.mustWrite(t, 0, mib, 'b', 64<<10)
				before := c.resynced()
				c.mustStart(t, back)
				c.mustAllSync(t)
				c.mustWrite(t, 0, 3*mib, 'c', 64<<10)
				time.Sleep(30 * time.Second)
				c.mustAllSync(t)
				c.mustEqual(t)
				// What was written, and the extents that were hot, from each source.
				if n := c.resynced() - before; n > 9*mib {
					t.Errorf("%d bytes were resynced\n%s", n, c.Describe())
				}
			})
		}
	}
}

// TestScenario11ADisklessPrimaryFillsNoLog: what is in flight from a primary
// without an activity log fits those of its replicas, which would else be full
// of different extents and wait for each other.
func TestScenario11ADisklessPrimaryFillsNoLog(t *testing.T) {
	for seed := range uint64(10) {
		o := disklessFirst(3)
		o.Seed, o.Extents, o.ExtentBytes, o.Size, o.DiskDelay = seed, 8, 64<<10, 16*mib, 5*time.Millisecond
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			var all []asked
			for i := range int64(1000) {
				all = append(all, c.Nodes[0].ask(block.Write, 0, i*37%256*(64<<10), bytes.Repeat([]byte{byte(i)}, 4096), 0))
			}
			c.mustAnswer(t, all)
			c.mustFlush(t, 0)
			c.mustEqual(t)
		})
	}
}

// TestScenario48TheTargetIsReachedLate: a resync from another replica does not
// end before the primary, which has no disk, sends the target what it writes.
func TestScenario48TheTargetIsReachedLate(t *testing.T) {
	bubble(t, disklessFirst(3), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.Nodes[1].Kill()
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.Cut(1, 2)
		c.mustStart(t, 1)
		time.Sleep(5 * time.Second)
		c.Stall(1, 0, wire.Meta) // the primary does not hear that it is being resynced
		c.Heal(1, 2)
		time.Sleep(time.Second)
		c.mustWrite(t, 0, 8192, 'c', 4096)
		c.Flow(1, 0, wire.Meta)
		time.Sleep(time.Second)
		c.mustRead(t, 0, 8192, bytes.Repeat([]byte{'c'}, 4096)) // from whichever disk it takes for current
		time.Sleep(10 * time.Second)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHoldDisks(t, 8192, 'c')
	})
}

// TestScenario38WhatADisklessPrimaryWroteIsDurable at whoever votes on the next:
// of two disks neither keeps a log of what the other may lose with its cache.
func TestScenario38WhatADisklessPrimaryWroteIsDurable(t *testing.T) {
	bubble(t, disklessFirst(3), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, mib, 'a', 64<<10)
		time.Sleep(200 * time.Millisecond) // every replica has heard that it is everywhere
		c.Nodes[0].Kill()
		c.mustPromote(t, 1)
		c.Nodes[2].PowerCut(1)
		c.mustStart(t, 2)
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHoldDisks(t, mib, 'a')
	})
}
