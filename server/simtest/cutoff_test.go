package simtest

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
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
