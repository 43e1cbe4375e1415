package simtest

import (
	"bytes"
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// asked submits a write of 4 KiB and returns where its answer comes.
func (n *Node) asked(off int64, fill byte) chan *block.Request {
	return n.burst([]*block.Request{{Op: block.Write, Off: off, Len: 4096, Data: bytes.Repeat([]byte{fill}, 4096)}})
}

// mustEnd stops a node, and fails if that does not end a while after patience is
// over.
func (c *Cluster) mustEnd(t *testing.T, n int, patience time.Duration) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		_ = c.Nodes[n].Stop(ctx) // what it could not finish is compared when it is back
	}()
	select {
	case <-done:
	case <-time.After(patience + time.Minute):
		t.Fatalf("n%d does not stop\n%s", n, c.Describe())
	}
}

// everyDisk is three nodes of which every disk is needed for quorum.
func everyDisk() Options {
	o := three()
	o.Quorum = replication.QuorumPolicy{Kind: replication.QuorumAll}
	return o
}

// holdAChange leaves n0 a primary without quorum, with a change that is held for
// that and on n1 too, and a disk whose resync from n1 is paused. The answer to the
// change is to come where holdAChange says.
func (c *Cluster) holdAChange(t *testing.T) (answer chan *block.Request) {
	t.Helper()
	c.mustAllSync(t)
	c.mustPromote(t, 0)
	for _, n := range c.Nodes[1:] {
		if err := n.Dev.PauseResync("n0"); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Nodes[0].Dev.Invalidate(timeout(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	c.mustWrite(t, 0, mib, 'b', 4096) // no generation is on the way any more
	c.Stall(2, 0, wire.Meta)          // so its acknowledgement does not come
	answer = c.Nodes[0].asked(0, 'c')
	time.Sleep(time.Second)
	c.Cut(0, 2)
	time.Sleep(time.Second)
	if len(answer) > 0 || c.quorate(0) {
		t.Fatalf("a write was answered without quorum\n%s", c.Describe())
	}
	return answer
}

// goOn has a node go on with the resync of n0.
func (c *Cluster) goOn(t *testing.T, n int) {
	t.Helper()
	if _, err := c.Nodes[n].Dev.Resync(timeout(t, time.Minute), "n0"); err != nil {
		t.Fatalf("%v\n%s", err, c.Describe())
	}
	time.Sleep(time.Second)
}

// TestANodeStopsThoughAPieceWaitsBehindAHeldChange: a piece of a resync has come
// and waits for its range, in which a change waits for quorum. Neither is under
// way on the disk.
func TestANodeStopsThoughAPieceWaitsBehindAHeldChange(t *testing.T) {
	bubble(t, everyDisk(), func(t *testing.T, c *Cluster) {
		c.holdAChange(t)
		c.goOn(t, 1)
		c.mustEnd(t, 0, 5*time.Second)
		c.Heal(0, 2)
		c.mustStart(t, 0)
		time.Sleep(time.Second)
		c.goOn(t, 2)
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}

// TestADiskComesBackThoughAPieceForItWaits: the same, and the disk fails. It is
// let go at once, and the piece is not written to what comes in its place.
func TestADiskComesBackThoughAPieceForItWaits(t *testing.T) {
	bubble(t, everyDisk(), func(t *testing.T, c *Cluster) {
		answer := c.holdAChange(t)
		fault := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite | storetest.OpPunch, Err: syscall.EIO})
		c.goOn(t, 1)
		c.until(t, 0, "detached", is(replication.Diskless))
		c.Nodes[0].Disk.Lift(fault)
		if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		c.Heal(0, 2)
		if r := <-answer; r.Err != nil {
			t.Fatal(r.Err)
		}
		c.goOn(t, 2)
		c.mustAllSync(t)
		c.mustHold(t, 1, 'c')
		c.mustEqual(t)
	})
}
