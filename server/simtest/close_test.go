package simtest

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
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

// pausedTarget leaves n0 a primary whose disk is about to be resynced, which both
// others pause.
func (c *Cluster) pausedTarget(t *testing.T) {
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
}

// holdAChange leaves n0 without quorum besides, with a change that is held for that
// and on n1 too. The answer to it is to come where holdAChange says.
func (c *Cluster) holdAChange(t *testing.T) (answer chan *block.Request) {
	t.Helper()
	c.pausedTarget(t)
	c.Stall(2, 0, wire.Meta) // so its acknowledgement does not come
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
	var err error
	for range 100 {
		if _, err = c.Nodes[n].Dev.Resync(timeout(t, time.Minute), "n0"); err == nil {
			time.Sleep(time.Second)
			return
		}
		time.Sleep(100 * time.Millisecond) // the two may have to agree first
	}
	t.Fatalf("%v\n%s", err, c.Describe())
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

// TestWhatIsHeldWhenANodeStopsIsDropped: who asked for a change that waits for
// quorum, for a flush behind it, or for a read that a peer has not answered, is told
// to come back, and the memory that the device has kept is free again.
func TestWhatIsHeldWhenANodeStopsIsDropped(t *testing.T) {
	bubble(t, everyDisk(), func(t *testing.T, c *Cluster) {
		pool := block.NewPool(4096)
		buf := pool.Get()
		held := &block.Request{Op: block.Write, Len: 4096, Data: buf.B, Buf: buf}
		rs := []*block.Request{held, {Op: block.Flush}, {Op: block.Read, Off: mib, Len: 4096, Data: make([]byte, 4096)}}
		c.pausedTarget(t)
		c.Stall(1, 0, wire.Data) // whence a read would be answered
		c.Stall(2, 0, wire.Data)
		c.Stall(2, 0, wire.Meta)
		answers := c.Nodes[0].burst(rs)
		time.Sleep(time.Second)
		c.Cut(0, 2)
		time.Sleep(time.Second)
		if len(answers) > 0 || c.quorate(0) {
			t.Fatalf("%d requests were answered without quorum\n%s", len(answers), c.Describe())
		}
		dev := c.Nodes[0].Dev
		_ = dev.Close(timeout(t, 5*time.Second))
		for range rs {
			select {
			case r := <-answers:
				if !errors.Is(r.Err, block.ErrDropped) {
					t.Errorf("%v: %v, not dropped", r.Op, r.Err)
				}
			case <-time.After(time.Second):
				t.Fatal("not all requests were dropped")
			}
		}
		if buf.Release(); pool.Out() != 0 {
			t.Error("the device keeps memory that it was lent")
		}
	})
}

// TestACloseIsToldInTheMiddleOfAHandshake: a node waits for what it has asked a
// peer, the peer begins a handshake and closes the device before that is over. The
// session stays, so that nothing else tells that there will be no answer.
func TestACloseIsToldInTheMiddleOfAHandshake(t *testing.T) {
	o := three()
	o.Diskless = replication.Of(0)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.Stall(0, 1, wire.Data)
		c.Stall(0, 1, wire.Meta)
		read := c.Nodes[0].burst([]*block.Request{{Op: block.Read, Len: 4096, Data: make([]byte, 4096)}})
		time.Sleep(time.Second)
		if len(read) > 0 {
			t.Fatalf("a read was not n1's to answer\n%s", c.Describe())
		}
		for _, do := range []func(context.Context) error{c.Nodes[1].Dev.Detach, c.Nodes[1].Dev.Attach} {
			if err := do(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		if err := c.Nodes[1].Dev.Close(timeout(t, 5*time.Second)); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-read:
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("a read waits for a peer that has closed the device\n%s", c.Describe())
		}
	})
}

// TestANodeStopsInOrderUnderLoad: clients that go on asking do not keep it from
// finishing what is under way.
func TestANodeStopsInOrderUnderLoad(t *testing.T) {
	o := three()
	o.DiskDelay = 5 * time.Millisecond
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		dev, over := c.Nodes[0].Dev, make(chan struct{})
		var clients sync.WaitGroup
		for i := range int64(4) {
			clients.Go(func() {
				for err := error(nil); err == nil; {
					err = c.ask(t.Context(), dev, block.Write, 0, i*mib, make([]byte, 4096), 0)
				}
			})
		}
		time.Sleep(time.Second)
		go func() {
			clients.Wait()
			close(over)
		}()
		if err := dev.Close(timeout(t, 10*time.Second)); err != nil {
			t.Errorf("not closed in order: %v", err)
		}
		select {
		case <-over:
		case <-time.After(time.Second):
			t.Error("clients wait for a device that is closed")
		}
	})
}

// TestCloseWaitsForADiskThatIsBeingAttached: else it would be open still when
// somebody else opens it.
func TestCloseWaitsForADiskThatIsBeingAttached(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		dev := c.Nodes[1].Dev
		if err := dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.Nodes[1].Meta.Inject(storetest.Fault{Ops: storetest.OpRead, Count: 1, Delay: 2 * time.Second})
		attached := make(chan error, 1)
		go func() { attached <- dev.Attach(timeout(t, time.Minute)) }()
		time.Sleep(time.Second)
		if err := dev.Close(timeout(t, 10*time.Second)); err != nil {
			t.Error(err)
		}
		synctest.Wait()
		select {
		case err := <-attached:
			if err == nil {
				t.Error("a disk was attached to a device that was being closed")
			}
		default:
			t.Error("the device was closed before its disk was")
		}
	})
}

// TestAPeerThatClosedTheDeviceIsNoHandshake: its node is in contact, and has the device no
// longer. The others are promoted as if it were away.
func TestAPeerThatClosedTheDeviceIsNoHandshake(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.settle(t)
		if err := c.Nodes[2].CloseDevices(timeout(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
	})
}
