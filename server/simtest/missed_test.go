package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestWhatWasReadAfterAnErrorStays: a primary without a disk, whose requests fail where
// there is no quorum, has written to one of two disks, and tells the client of an error
// since it loses the other. That is back at once. What the client reads then it reads
// for good, whichever of the disks is lost.
func TestWhatWasReadAfterAnErrorStays(t *testing.T) {
	o := three()
	o.Nodes, o.Diskless, o.FailIO = 4, replication.Of(3), true
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 3)
		c.mustWrite(t, 3, 0, 'a', 4096)
		c.Nodes[2].Kill()
		c.mustWrite(t, 3, 0, 'b', 4096)
		c.mustFlush(t, 3)
		time.Sleep(time.Second) // nothing of before is in doubt
		c.Stall(3, 1, wire.Data)
		write := c.Nodes[3].ask(block.Write, 0, 0, bytes.Repeat([]byte{'z'}, 4096), 0)
		time.Sleep(10 * time.Millisecond) // n0 has it
		c.Cut(3, 1)
		if <-write.done; write.r.Err == nil {
			t.Fatal("it was answered without quorum")
		}
		c.Heal(3, 1)
		time.Sleep(time.Second)
		c.mustRead(t, 3, 0, bytes.Repeat([]byte{'z'}, 4096))
		c.Isolate(0)
		c.mustStart(t, 2)
		c.Cut(0, 2)
		time.Sleep(time.Second)
		c.mustRead(t, 3, 0, bytes.Repeat([]byte{'z'}, 4096))
		c.Rejoin(0)
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}

// TestAPrimarysMixtureLosesACompletePeer: a primary whose disk is being resynced from
// one of two peers loses the other for a moment, in the midst of a change, which is
// answered. What is back then lacks it, and does not pass for current.
func TestAPrimarysMixtureLosesACompletePeer(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'a', mib)
		if err := c.Nodes[2].Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off < 4*mib; off += mib {
			c.mustWrite(t, 2, off, 'b', mib)
		}
		c.Nodes[2].mustReconfigure(t, func(cfg *device.Config) { cfg.ResyncRate = 64 << 10 })
		if err := c.Nodes[2].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.Nodes[0].Kill()
		c.mustWrite(t, 2, 0, 'c', 4096)
		c.mustStart(t, 0)
		time.Sleep(5 * time.Second)
		c.mustWrite(t, 2, 0, 'd', 4096)
		c.mustFlush(t, 2)
		time.Sleep(time.Second) // nothing of before is in doubt
		if disk := c.Nodes[0].Dev.Status().Disk; disk != replication.UpToDate {
			t.Fatalf("the other is not resynced: %v", disk)
		}
		if disk := c.Nodes[2].Dev.Status().Disk; disk != replication.Inconsistent {
			t.Fatalf("the resync has ended: %v", disk)
		}
		c.Stall(2, 0, wire.Data)
		write := c.Nodes[2].ask(block.Write, 0, 0, bytes.Repeat([]byte{'z'}, 4096), 0)
		time.Sleep(10 * time.Millisecond) // n1 has it
		c.Cut(0, 2)
		time.Sleep(time.Second)
		c.Heal(0, 2)
		c.mustAnswer(t, []asked{write})
		time.Sleep(time.Second)
		c.Nodes[1].Kill()
		c.Nodes[2].mustReconfigure(t, func(cfg *device.Config) { cfg.ResyncRate = 0 })
		time.Sleep(time.Second)
		c.mustStart(t, 1)
		c.mustAllSync(t)
		c.mustRead(t, 2, 0, bytes.Repeat([]byte{'z'}, 4096))
		c.mustEqual(t)
	})
}

// TestAChangeThatFailedIsNotWhatADiskLacks: a primary without a disk waits for a flush behind a
// change, and loses the disks that have received that and have not written it. The change
// fails, so nobody lacks it: the disks are current when they are back.
func TestAChangeThatFailedIsNotWhatADiskLacks(t *testing.T) {
	o := disklessFirst(3)
	o.Protocol, o.FailIO = replication.ProtocolB, true
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		for _, n := range c.Nodes[1:] {
			n.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Range: block.Extent{Off: mib, Len: 4096}, Delay: time.Second})
		}
		write := c.Nodes[0].ask(block.Write, block.FUA, mib, fill('b'), 0)
		time.Sleep(100 * time.Millisecond)
		c.Isolate(0)
		if <-write.done; write.r.Err == nil {
			t.Fatalf("it was answered\n%s", c.Describe())
		}
		time.Sleep(5 * time.Second)
		c.Rejoin(0)
		c.mustAllSync(t)
		c.mustWrite(t, 0, 0, 'c', 4096)
		c.mustEqual(t)
	})
}

// TestWhereRequestsFailAPrimaryWithoutADiskWaitsForOne: under protocols that answer before a
// disk has a change, that is on none yet; it fails when the last that may take it is lost.
func TestWhereRequestsFailAPrimaryWithoutADiskWaitsForOne(t *testing.T) {
	for _, protocol := range []replication.Protocol{replication.ProtocolA, replication.ProtocolB, replication.ProtocolC} {
		o := disklessFirst(3)
		o.Protocol, o.FailIO = protocol, true
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			for _, n := range c.Nodes[1:] {
				n.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Delay: time.Second})
			}
			c.mustWrite(t, 0, 0, 'a', 4096)
			write := c.Nodes[0].ask(block.Write, 0, 4096, fill('b'), 0)
			time.Sleep(100 * time.Millisecond)
			c.Nodes[1].Kill()
			c.Nodes[2].Kill()
			if <-write.done; write.r.Err == nil {
				t.Errorf("protocol %v: it was answered, and is on no disk", protocol)
			}
			time.Sleep(5 * time.Second) // the disks are at it still
		})
	}
}
