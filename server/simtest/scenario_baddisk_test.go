package simtest

import (
	"bytes"
	"errors"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestScenario45OnlyMixturesTakeAWrite: the only disk with the current data is the
// primary's, and fails a write that the targets of its resyncs take. That is no
// success: the resync takes it away again. Nor may a part that is in sync already
// stay different.
func TestScenario45OnlyMixturesTakeAWrite(t *testing.T) {
	o := three()
	o.Nodes, o.Quorum, o.Size = 2, replication.QuorumPolicy{}, 64*mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 64*mib)
		time.Sleep(5 * time.Second)
		c.Nodes[1].Kill()
		c.mustWrite(t, 0, 0, 'b', 64*mib)
		p := c.Nodes[0]
		p.Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 10 * time.Millisecond})
		if err := c.Nodes[1].Start(); err != nil {
			t.Fatal(err)
		}
		synced := func(off int64) bool {
			b := make([]byte, 1)
			c.Nodes[1].Disk.Peek(b, off)
			return b[0] == 'b'
		}
		for range 10000 {
			if synced(0) {
				break
			}
			time.Sleep(time.Millisecond)
		}
		if err := p.Dev.PauseResync("n1"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		early, late := int64(0), int64(64*mib-4096)
		if !synced(early) || synced(late) {
			t.Fatalf("the resync is not in its midst\n%s", c.Describe())
		}
		bad := p.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: errors.New("bad sector")})
		for _, off := range []int64{early, late} {
			if err := p.Do(timeout(t, time.Minute), block.Write, 0, off, bytes.Repeat([]byte{'c'}, 4096), 0); err == nil {
				t.Errorf("a write at %d that only a mixture has taken was answered", off)
			}
		}
		p.Disk.Lift(bad)
		if _, err := p.Dev.Resync(timeout(t, time.Minute), "n1"); err != nil {
			t.Fatal(err)
		}
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
	})
}

// TestScenario45TheDiskGoesThatKnewWhoIsBehind: a primary's disk fails that had marks
// for a replica that is away. The replica takes itself for current when
// it is back; the primary does not.
func TestScenario45TheDiskGoesThatKnewWhoIsBehind(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', mib)
		time.Sleep(5 * time.Second)
		c.Isolate(1)
		c.mustWrite(t, 0, 0, 'b', mib)
		bad := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO})
		write := c.Nodes[0].ask(block.Write, 0, mib, bytes.Repeat([]byte{'b'}, 4096), 0)
		c.until(t, 0, "detached", is(replication.Diskless))
		c.Nodes[0].Disk.Lift(bad)
		c.Heal(0, 1)
		for range 20 {
			time.Sleep(100 * time.Millisecond)
			got := make([]byte, 4096)
			if err := c.Nodes[0].Do(timeout(t, time.Second), block.Read, 0, 0, got, 0); err == nil && got[0] != 'b' {
				t.Fatalf("%q was read from a disk that is behind\n%s", got[0], c.Describe())
			}
		}
		for _, p := range c.Nodes[0].Dev.Status().Peers {
			if p.Node == "n1" && p.Disk == replication.UpToDate {
				t.Fatalf("n1 passes for current\n%s", c.Describe())
			}
		}
		c.Heal(1, 2)
		if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustAnswer(t, []asked{write})
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
		c.mustHold(t, 0, 'b')
	})
}

// TestScenario46WhatADiskHadThatWasResyncedSince: a primary without a disk waits for
// quorum with a change that one replica has taken and the other has not. The one
// is resynced from the other meanwhile, so the change is nowhere: it is answered
// when it is somewhere again.
func TestScenario46WhatADiskHadThatWasResyncedSince(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 8192)
		if err := c.Nodes[0].Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustWrite(t, 0, 4096, 'b', 4096)
		time.Sleep(5 * time.Second)
		c.Stall(0, 1, wire.Write.Link())
		done := make(chan error, 1)
		go func() {
			done <- c.Nodes[0].Do(timeout(t, 5*time.Minute), block.Write, 0, 0, bytes.Repeat([]byte{'c'}, 4096), 0)
		}()
		time.Sleep(500 * time.Millisecond)
		c.Cut(0, 1)
		time.Sleep(10 * time.Millisecond)
		n2 := c.Nodes[2]
		if err := n2.Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		if err := n2.Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		time.Sleep(5 * time.Second)
		c.Heal(0, 1)
		if err := <-done; err != nil {
			t.Fatalf("write: %v\n%s", err, c.Describe())
		}
		got := make([]byte, 4096)
		if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Read, 0, 0, got, 0); err != nil || got[0] != 'c' {
			t.Fatalf("read %q, %v\n%s", got[0], err, c.Describe())
		}
		if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
		c.mustHold(t, 0, 'c')
	})
}

// TestScenario45AFailedChangeIsGivenUp: the one complete disk fails a change, and stays.
// No other has it, and the client is told. Who comes to be resynced then does not wait
// for the change to be made; nor for others that were given up with it, and that the disk
// fails only after it has heard of that.
func TestScenario45AFailedChangeIsGivenUp(t *testing.T) {
	for _, others := range []int{0, 1, 4} {
		o := devices(1, 2, 1)
		o.PassOn, o.FailIO, o.Size = true, true, 64*mib
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 2)
			c.mustStop(t, 1)
			c.mustWrite(t, 2, mib, 'a', 62*mib)
			bad := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO, DelayFunc: func(r storetest.Record) time.Duration {
				return time.Duration(r.Off/4096) * 100 * time.Millisecond
			}})
			for n := range others {
				c.Nodes[2].begin(block.Write, int64(n+1)*4096, bytes.Repeat([]byte{'b'}, 4096))
			}
			if err := c.Nodes[2].Do(timeout(t, time.Minute), block.Write, 0, 0, bytes.Repeat([]byte{'b'}, 4096), 0); err == nil {
				t.Fatal("a change that no disk has was acknowledged")
			}
			time.Sleep(time.Second)
			c.Nodes[0].Disk.Lift(bad)
			time.Sleep(5 * time.Second) // its primary counts on it again
			c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 20 * time.Millisecond})
			c.mustStart(t, 1)
			c.until(t, 1, "is being resynced", func(s replication.DiskState) bool { return s == replication.Inconsistent })
			c.mustWrite(t, 2, 64<<10, 'c', 4096)
			c.mustSync(t, 1)
			c.mustEqual(t)
		})
	}
}
