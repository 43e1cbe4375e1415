package simtest

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestScenario35AFlushThatWasCutOff: a primary that is replaced while it flushes
// never says that it has.
func TestScenario35AFlushThatWasCutOff(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, mib, 'a', 64<<10)
		hang := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpSync, Hang: true})
		asking := make(chan asked, 1)
		go func() { asking <- c.Nodes[0].ask(block.Flush, 0, 0, nil, 0) }() // the client's goroutine syncs
		hang.Await(1)
		c.Isolate(0)
		time.Sleep(time.Second)
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 2*mib, 'b', 4096)
		c.Rejoin(0)
		time.Sleep(time.Second)
		hang.Release()
		flush := <-asking
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if !answered(flush.done) || !errors.Is(flush.r.Err, block.ErrDropped) {
			t.Fatalf("the flush was answered %t with %v\n%s", answered(flush.done), flush.r.Err, c.Describe())
		}
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}

// TestScenario15WhatVotersHoldIsDurable: who votes on the next primary, or agrees
// with one that is back, has made durable what it holds. Of two disks the
// replica keeps no log, and as primary it logs what it writes itself.
func TestScenario15WhatVotersHoldIsDurable(t *testing.T) {
	o := three()
	o.Nodes, o.Extents, o.ExtentBytes = 2, 8, 64<<10
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, mib, 'a', 64<<10)
		c.Nodes[1].PowerCut(1)
		c.mustStart(t, 1)
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 2*mib, 'b', 4096)
		c.Nodes[0].PowerCut(1)
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, mib, 'a')
		c.mustHold(t, 2*mib, 'b')
	})
}

// TestScenario48TheOnlyCompleteDiskIsLost while another is being resynced from it
// and the third is away: what was written last is on no complete disk any more.
// That is never made up for silently; an administrator says what is to count.
func TestScenario48TheOnlyCompleteDiskIsLost(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 2*mib)
		c.Nodes[1].Kill()
		c.mustWrite(t, 0, 0, 'b', 2*mib)
		c.Nodes[1].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Range: block.Extent{Len: 2 * mib}, Delay: 20 * time.Second})
		c.mustStart(t, 1)
		c.until(t, 1, "being resynced", is(replication.Inconsistent))
		c.Isolate(2)
		c.mustWrite(t, 0, 3*mib, 'c', 4096)
		n := c.Nodes[0]
		n.Kill()
		c.Nodes[1].Kill()
		n.EmptyDisk(4 * mib)
		c.mustStart(t, 0)
		c.Rejoin(2)
		time.Sleep(10 * time.Second)
		c.mustStart(t, 1)
		time.Sleep(30 * time.Second)
		for i, n := range c.Nodes {
			if err := n.Dev.Promote(timeout(t, 3*time.Second), false); err == nil {
				t.Fatalf("n%d was promoted without what was written last\n%s", i, c.Describe())
			}
		}
		if err := c.Nodes[2].Dev.Promote(timeout(t, 10*time.Second), true); err != nil {
			t.Fatalf("by force: %v\n%s", err, c.Describe())
		}
		c.mustWrite(t, 2, 3*mib, 'd', 4096)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 3*mib, 'd')
	})
}
