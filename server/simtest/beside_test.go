package simtest

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAResyncBesideThePrimarysIsOne: a replica is resynced from another, of which the
// primary's own disk is getting all that it lacks as well. When it is current again it
// stays with the primary: to agree with that anew would be to lose it, and the replica
// would have to be resynced for what it may have missed in between, and so on for as long
// as the primary's disk takes.
func TestAResyncBesideThePrimarysIsOne(t *testing.T) {
	o := three()
	o.Extents, o.ExtentBytes = 8, 64<<10
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		if err := c.Nodes[0].Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		for off := c.opts.Size / 2; off < c.opts.Size; off += 2 * block.Unit {
			c.mustWrite(t, 0, off, 'b', block.Unit)
		}
		for _, n := range c.Nodes[1:] {
			n.Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 300 * time.Millisecond})
		}
		if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * time.Second)
		other := c.Nodes[1]
		if c.Nodes[0].Dev.Status().Peers[0].Repl == replication.SyncTarget {
			other = c.Nodes[2]
		}
		_, written := c.Nodes[0].begin(block.Write, 0, bytes.Repeat([]byte{'c'}, block.Unit))
		c.Cut(0, other.ID)
		time.Sleep(time.Second)
		c.Heal(0, other.ID)
		for range 1000 {
			c.mustWrite(t, 0, 0, 'd', block.Unit)
			time.Sleep(10 * time.Millisecond)
		}
		if s := other.Dev.Status().Disk; s != replication.UpToDate {
			t.Errorf("%s is %v\n%s", other.Name, s, c.Describe())
		}
		c.mustAllSync(t)
		if !answered(written) {
			t.Errorf("it is not answered\n%s", c.Describe())
		}
		from, begun := "resync from "+c.Nodes[3-other.ID].Name+": ", 0
		for _, e := range other.events {
			if strings.HasPrefix(e.Text, from) {
				begun++
			}
		}
		if begun != 1 {
			t.Errorf("%d times it began: %s", begun, from)
		}
		c.mustEqual(t)
	})
}

// TestAHotBlockIsResynced: a block that is changed more often than its source can be asked
// for it is current when a change of all of it has been made, whoever the primary is.
func TestAHotBlockIsResynced(t *testing.T) {
	for _, primary := range []int{0, 2} {
		t.Run([]string{"by a primary without a disk", "", "of the primary"}[primary], func(t *testing.T) {
			bubble(t, disklessFirst(3), func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, primary)
				c.mustWrite(t, primary, 0, 'a', block.Unit)
				target := c.Nodes[2]
				if primary == 2 {
					if err := target.Dev.Detach(timeout(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
				} else {
					target.Kill()
				}
				c.mustWrite(t, primary, 0, 'b', 64*block.Unit)
				c.Nodes[1].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 100 * time.Millisecond})
				if primary == 2 {
					if err := target.Dev.Attach(timeout(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
				} else {
					c.mustStart(t, 2)
				}
				for i := range 1000 {
					c.mustWrite(t, primary, block.Unit, byte(i), block.Unit)
					time.Sleep(5 * time.Millisecond)
				}
				if s := target.Dev.Status().Disk; s != replication.UpToDate {
					t.Errorf("%s is %v\n%s", target.Name, s, c.Describe())
				}
				c.mustAllSync(t)
				c.mustEqual(t)
			})
		})
	}
}

// TestAChangeThatFailsCoversNothing: the target keeps its mark of a block that a change was
// to replace and that its disk failed.
func TestAChangeThatFailsCoversNothing(t *testing.T) {
	o := disklessFirst(3)
	o.PassOn, o.Extents, o.ExtentBytes = true, 8, 64<<10
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', block.Unit)
		target := c.Nodes[2]
		target.Kill()
		c.mustWrite(t, 0, 2*mib, 'b', block.Unit)
		reads := c.Nodes[1].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 2 * time.Second})
		c.mustStart(t, 2)
		time.Sleep(time.Second)
		writes := target.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: errors.New("medium error"), Count: 1})
		c.Stall(2, 0, wire.Meta)
		c.Stall(2, 0, wire.Data)
		_, written := c.Nodes[0].begin(block.Write, 2*mib, bytes.Repeat([]byte{'c'}, block.Unit))
		time.Sleep(1500 * time.Millisecond)
		c.Stall(2, 1, wire.Data) // it asks no more
		time.Sleep(time.Second)
		marked := target.Dev.Status().Peers[1].OutOfSync
		if marked == 0 || answered(written) {
			t.Errorf("marked %d, answered %t\n%s", marked, answered(written), c.Describe())
		}
		target.Disk.Lift(writes)
		c.Nodes[1].Disk.Lift(reads)
		c.Flow(2, 1, wire.Data)
		c.Flow(2, 0, wire.Meta)
		c.Flow(2, 0, wire.Data)
		c.mustAllSync(t)
		if !answered(written) {
			t.Errorf("it is not answered\n%s", c.Describe())
		}
		c.mustEqual(t)
	})
}

// TestAResyncUnderManyWritesEnds: each piece of a resync is overtaken by some of the writes
// of a primary without a disk, which come all the time and all over the device.
func TestAResyncUnderManyWritesEnds(t *testing.T) {
	o := disklessFirst(3)
	o.Extents = 64
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		ctx, stop := context.WithCancel(t.Context())
		var writers sync.WaitGroup
		defer writers.Wait()
		defer stop()
		for i := range 16 {
			writers.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 1))
				for ctx.Err() == nil {
					_ = c.Nodes[0].Do(ctx, block.Write, 0, rng.Int64N(c.opts.Size/block.Unit)*block.Unit, bytes.Repeat([]byte{byte(i)}, block.Unit), 0)
				}
			})
		}
		if err := c.Nodes[2].Dev.Invalidate(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.Nodes[1].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 50 * time.Millisecond})
		began := time.Now()
		for c.Nodes[2].Dev.Status().Disk != replication.UpToDate && time.Since(began) < 20*time.Second {
			time.Sleep(10 * time.Millisecond)
		}
		if s := c.Nodes[2].Dev.Status().Disk; s != replication.UpToDate {
			t.Errorf("n2 is %v\n%s", s, c.Describe())
		}
		stop()
		writers.Wait()
		time.Sleep(time.Second)
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
