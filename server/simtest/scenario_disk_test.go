package simtest

import (
	"errors"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestScenario43ErrorsOfEveryKind: an operation of a disk, or of its metadata,
// fails on the primary or on a replica. The client sees nothing of it, and the
// disk that is left out is attached again.
func TestScenario43ErrorsOfEveryKind(t *testing.T) {
	for _, n := range []int{0, 1} {
		for name, f := range map[string]struct {
			ops  storetest.Op
			err  error
			meta bool
		}{
			"write":          {storetest.OpWrite, syscall.EIO, false},
			"no space":       {storetest.OpWrite, syscall.ENOSPC, false},
			"flush":          {storetest.OpSync, syscall.EIO, false},
			"metadata write": {storetest.OpWrite, syscall.EIO, true},
			"metadata flush": {storetest.OpSync, syscall.EIO, true},
		} {
			t.Run(name+" on "+[]string{"primary", "replica"}[n], func(t *testing.T) {
				o := three()
				o.Extents, o.ExtentBytes = 8, 64<<10 // the log is written all the time
				bubble(t, o, func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					l := c.begin(t, 0)
					l.moves(t, c)
					im := c.Nodes[n].Disk
					if f.meta {
						im = c.Nodes[n].Meta
					}
					in := im.Inject(storetest.Fault{Ops: f.ops, Err: f.err})
					c.until(t, n, "detached", is(replication.Diskless))
					if why := c.Nodes[n].Dev.Status().LastError; why == "" {
						t.Error("it does not say why")
					}
					l.moves(t, c)
					im.Lift(in)
					if f.ops == storetest.OpSync { // what it did not keep is lost with the machine
						l.end()
						if l.err != nil {
							t.Fatal(l.err)
						}
						c.Nodes[n].PowerCut(1)
						c.mustStart(t, n)
						c.mustAllSync(t)
						c.mustEqual(t)
						return
					}
					if err := c.Nodes[n].Dev.Attach(timeout(t, time.Minute)); err != nil {
						t.Fatalf("%v\n%s", err, c.Describe())
					}
					l.moves(t, c)
					l.finish(t, c)
				})
			})
		}
	}
}

// TestScenario43ErrorsInAResync: its source cannot read a block, its target not
// write one.
func TestScenario43ErrorsInAResync(t *testing.T) {
	for _, target := range []bool{false, true} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.Isolate(2)
			c.mustWrite(t, 0, 0, 'a', mib)
			at, ops := c.Nodes[0], storetest.OpRead
			if target {
				at, ops = c.Nodes[2], storetest.OpWrite
			}
			im := at.Disk
			in := im.Inject(storetest.Fault{Ops: ops, Range: block.Extent{Off: 512 << 10, Len: 4096}, Err: syscall.EIO})
			c.Rejoin(2)
			for range 600 {
				if in.Hits() > 0 {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			time.Sleep(5 * time.Second)
			if in.Hits() == 0 {
				t.Fatal("nothing was hit")
			}
			c.mustWrite(t, 0, 2*mib, 'b', 4096) // the client goes on
			im.Lift(in)
			if at.Dev.Status().Disk == replication.Diskless {
				if err := at.Dev.Attach(timeout(t, time.Minute)); err != nil {
					t.Fatalf("%v\n%s", err, c.Describe())
				}
			}
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHold(t, 512<<10, 'a')
			c.mustHold(t, 2*mib, 'b')
		})
	}
}

// TestScenario46APeersDiskFailsUnderADisklessPrimary.
// TestScenario43ATargetsDiskFailsAndItsMetadataIsSlow: what the failed disk's
// metadata takes to be given up, the resync neither goes on in, nor ends.
func TestScenario43ATargetsDiskFailsAndItsMetadataIsSlow(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.Isolate(1)
		c.mustWrite(t, 0, 0, 'a', 4*mib)
		n := c.Nodes[1]
		n.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Skip: 2, Delay: 100 * time.Millisecond, Err: syscall.EIO})
		c.Rejoin(1)
		c.until(t, 1, "it is being resynced", is(replication.Inconsistent))
		time.Sleep(50 * time.Millisecond) // what a resync begins with is written
		n.Meta.Inject(storetest.Fault{Ops: storetest.OpWrite, Delay: time.Second})
		c.until(t, 1, "failed", is(replication.Failed))
		c.until(t, 1, "detached", is(replication.Diskless))
		c.mustWrite(t, 0, 0, 'b', 4096)
	})
}

func TestScenario46APeersDiskFailsUnderADisklessPrimary(t *testing.T) {
	o := three()
	o.Diskless = replication.Of(0)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		l := c.begin(t, 0)
		l.moves(t, c)
		for _, n := range []int{1, 2} {
			in := c.Nodes[n].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO})
			c.until(t, n, "detached", is(replication.Diskless))
			l.moves(t, c)
			c.Nodes[n].Disk.Lift(in)
			if err := c.Nodes[n].Dev.Attach(timeout(t, time.Minute)); err != nil {
				t.Fatalf("%v\n%s", err, c.Describe())
			}
			c.mustSync(t, 0)
			l.moves(t, c)
		}
		l.finish(t, c)
	})
}

// TestScenario48TheSourceOfAResyncDies: another goes on with what is left.
func TestScenario48TheSourceOfAResyncDies(t *testing.T) {
	o := three()
	o.Size, o.Extents, o.ExtentBytes = 64*mib, 32, 64<<10
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 32*mib, 'x', 16*mib)
		c.mustFlush(t, 0)
		c.Isolate(2)
		c.mustWrite(t, 0, 0, 'a', 16*mib)
		c.mustFlush(t, 0)
		for _, n := range c.Nodes {
			n.Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 20 * time.Millisecond})
		}
		c.Rejoin(2)
		c.until(t, 2, "it is being resynced", is(replication.Inconsistent))
		time.Sleep(50 * time.Millisecond)
		c.Nodes[0].Kill()
		c.until(t, 2, "it is resynced", is(replication.UpToDate))
		if n := c.Nodes[1].Dev.Status().Stats.ResyncBytes; n == 0 || n > 24*mib {
			t.Errorf("n1 sent %d bytes for what was left of 16 MiB", n)
		}
		c.mustPromote(t, 2)
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 8*mib, 'a')
		c.mustHold(t, 40*mib, 'x')
	})
}

// TestScenario49TwoTargetsAtOnce, under load.
func TestScenario49TwoTargetsAtOnce(t *testing.T) {
	o := three()
	o.Nodes = 5
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		l := c.begin(t, 0)
		for range 3 {
			c.Isolate(3)
			c.Isolate(4)
			l.moves(t, c)
			c.Rejoin(3)
			c.Rejoin(4)
			c.mustSync(t, 0)
		}
		l.finish(t, c)
	})
}

// TestScenario50AResyncEndsUnderFullLoad: as many clients as can write, a
// target with a slow disk, and it converges all the same.
func TestScenario50AResyncEndsUnderFullLoad(t *testing.T) {
	o := three()
	o.Size = 16 * mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.Isolate(2)
		c.mustWrite(t, 0, 4*mib, 'a', 12*mib)
		l := c.begin(t, 0)
		l.moves(t, c)
		c.Nodes[2].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Delay: time.Millisecond})
		c.Rejoin(2)
		c.until(t, 2, "it is resynced", is(replication.UpToDate))
		l.moves(t, c)
		l.finish(t, c)
	})
}

// TestScenario53EmptySpaceStaysEmpty: the first sync of a disk that is mostly
// holes leaves holes, and is done only where the disks may differ.
func TestScenario53EmptySpaceStaysEmpty(t *testing.T) {
	o := three()
	o.Size, o.Existing = 256*mib, replication.Of(0)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		if _, err := c.Nodes[0].Disk.Disk("hand").WriteAt([]byte(strings.Repeat("data", 16<<10)), 100*mib); err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		if err := c.Nodes[0].Dev.Create(timeout(t, time.Minute), true); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		c.mustAllSync(t)
		c.mustEqual(t)
		for _, n := range c.Nodes {
			if b := n.Disk.DataBytes(); b > mib {
				t.Errorf("%s stores %d bytes for 64 KiB of data", n.Name, b)
			}
		}
	})
	bubble(t, three(), func(t *testing.T, c *Cluster) { // made by lockstep: known to be equal
		c.mustAllSync(t)
		if n := c.resynced(); n > 0 {
			t.Errorf("%d bytes were resynced of new disks", n)
		}
	})
}

var errBadBlock = errors.New("bad block")

// TestScenario45ABadBlockOnTheSource is resynced from where it is good.
func TestScenario45ABadBlockOnTheSource(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.Isolate(2)
		c.mustWrite(t, 0, 3*mib, 'a', mib)
		l := c.begin(t, 0)
		l.moves(t, c)
		in := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Range: block.Extent{Off: 3*mib + 700<<10, Len: 4096}, Err: errBadBlock, Count: 1})
		c.Cut(1, 2)
		c.Heal(0, 2)
		time.Sleep(2 * time.Second)
		c.Rejoin(2)
		c.until(t, 2, "it is resynced", is(replication.UpToDate))
		if in.Hits() == 0 {
			t.Fatalf("nothing was hit\n%s", c.Describe())
		}
		l.moves(t, c)
		l.end()
		if l.err != nil {
			t.Fatalf("%v\n%s", l.err, c.Describe())
		}
		if c.Nodes[0].Dev.Status().Disk == replication.Diskless {
			if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
