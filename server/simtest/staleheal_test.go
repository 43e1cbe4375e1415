package simtest

import (
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAFailedDiskGivesNothingToHeal: a replica asks the primary for a block that its
// disk cannot read, behind a change of it, in which the primary's disk fails. What
// that disk holds lacks the change, which the replica has had meanwhile.
func TestAFailedDiskGivesNothingToHeal(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		time.Sleep(5 * time.Second)
		at := block.Extent{Len: 4096}
		c.Nodes[1].Disk.Spoil(at)
		fails := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Range: at, Hang: true, Err: syscall.EIO})
		hangs := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Range: block.Extent{Off: mib, Len: 4096}, Hang: true})
		defer hangs.Release()
		go c.Nodes[0].asked(mib, 'c') // which keeps the disk from being closed
		c.Stall(0, 1, wire.Data)
		answer := make(chan *block.Request, 1)
		go func() { answer <- <-c.Nodes[0].asked(0, 'b') }() // the disk keeps who asks
		time.Sleep(time.Second)
		if _, err := c.Nodes[1].Dev.Verify("n0"); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		c.Flow(0, 1, wire.Data)
		time.Sleep(time.Second)
		fails.Release()
		select {
		case r := <-answer:
			if r.Err != nil {
				t.Fatal(r.Err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("not answered\n%s", c.Describe())
		}
		c.until(t, 0, "detached", is(replication.Diskless))
		time.Sleep(time.Second)
		got := make([]byte, 1)
		for _, n := range c.Nodes[1:] {
			if n.Disk.Peek(got, 0); got[0] != 'b' {
				t.Errorf("%s holds %q, and %q was answered\n%s", n.Name, got, 'b', c.Describe())
			}
		}
	})
}
