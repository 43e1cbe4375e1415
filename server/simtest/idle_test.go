package simtest

import (
	"bytes"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestScenario45DisksComeBackWithoutTheOneThatWentOn: two of three disks are
// out, one after the other, and the primary goes on with its own; then it is
// lost, and the two are back. What they have is not current, however many they
// are.
func TestScenario45DisksComeBackWithoutTheOneThatWentOn(t *testing.T) {
	fails := func(ops storetest.Op) func(t *testing.T, c *Cluster, i int) {
		return func(t *testing.T, c *Cluster, i int) {
			in := c.Nodes[i].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO})
			var meta *storetest.Injection
			if ops != 0 {
				meta = c.Nodes[i].Meta.Inject(storetest.Fault{Ops: ops, Err: syscall.EIO})
			}
			a := c.Nodes[0].ask(block.Write, 0, 4096, bytes.Repeat([]byte{'x'}, 4096), 0)
			c.until(t, i, "detached", is(replication.Diskless))
			time.Sleep(time.Second)
			c.Nodes[i].Disk.Lift(in)
			if meta != nil {
				c.Nodes[i].Meta.Lift(meta)
			}
			_ = a
		}
	}
	for what, out := range map[string]struct {
		do     func(t *testing.T, c *Cluster, i int)
		goesOn bool
	}{
		"detached": {func(t *testing.T, c *Cluster, i int) {
			for range 100 { // the other is about to rely on this one
				if c.Nodes[i].Dev.Detach(timeout(t, time.Minute)) == nil {
					return
				}
				time.Sleep(time.Second)
			}
			t.Fatalf("n%d is not detached\n%s", i, c.Describe())
		}, true},
		"failed":                   {fails(0), true},
		"failed with its metadata": {fails(storetest.OpWrite | storetest.OpSync), false},
	} {
		for how, back := range map[string]func(t *testing.T, c *Cluster, i int){
			"attached": func(t *testing.T, c *Cluster, i int) {
				if err := c.Nodes[i].Dev.Attach(timeout(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
			},
			"restarted": func(t *testing.T, c *Cluster, i int) { c.Nodes[i].Kill(); c.mustStart(t, i) },
		} {
			t.Run(what+", "+how, func(t *testing.T) {
				bubble(t, three(), func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, 0, 'a', 4096)
					out.do(t, c, 1)
					c.mustWrite(t, 0, 8192, 'a', 4096)
					out.do(t, c, 2)
					err := c.Nodes[0].Do(timeout(t, 5*time.Second), block.Write, 0, 0, bytes.Repeat([]byte{'b'}, 4096), 0)
					if (err == nil) != out.goesOn {
						t.Fatalf("one disk of three is left, and a write is answered %v\n%s", err, c.Describe())
					}
					c.Nodes[0].Kill()
					back(t, c, 1)
					back(t, c, 2)
					time.Sleep(5 * time.Second)
					for _, n := range c.Nodes[1:] {
						if perr := n.Dev.Promote(timeout(t, 5*time.Second), false); perr == nil && err == nil {
							t.Fatalf("%s was promoted without what was written last\n%s", n.Name, c.Describe())
						}
					}
					c.mustStart(t, 0)
					c.mustAllSync(t)
					c.mustEqual(t)
					if err == nil {
						c.mustHoldDisks(t, 0, 'b')
					}
					c.mustVote(t)
				})
			})
		}
	}
}
