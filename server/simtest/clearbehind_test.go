package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestWhatIsChangedDuringAReadStaysMarked: a disk that has not heard that its primary gave
// it up is resynced from another. What the primary changes while that one reads the very
// piece is not in it, and the mark that says so is not taken off with those of the piece:
// nobody else knows of it, for the primary has no disk.
func TestWhatIsChangedDuringAReadStaysMarked(t *testing.T) {
	bubble(t, disklessFirst(3), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Nodes[2].Kill()
		c.mustWrite(t, 0, 0, 'b', 4096)
		reads := c.Nodes[1].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 3 * time.Second})
		c.Cut(1, 2)
		c.mustStart(t, 2)
		time.Sleep(5 * time.Second)
		c.CutUnheard(2, 0)
		time.Sleep(time.Second)
		c.Heal(1, 2)
		time.Sleep(time.Second)
		if at := c.Nodes[1].Dev.Status().Peers[1].Repl; at != replication.SyncSource {
			t.Fatalf("%s\n%s", at, c.Describe())
		}
		_, written := c.Nodes[0].begin(block.Write, 0, bytes.Repeat([]byte{'c'}, 4096))
		time.Sleep(6 * time.Second)
		if !answered(written) {
			t.Fatalf("it is not answered\n%s", c.Describe())
		}
		c.Nodes[1].Disk.Lift(reads)
		c.Hear(2, 0)
		c.Nodes[0].Kill()
		c.mustPromote(t, 1)
		time.Sleep(20 * time.Second)
		for _, n := range c.Nodes[1:] {
			p := make([]byte, 1)
			if n.Disk.Peek(p, 0); p[0] != 'c' {
				t.Errorf("%s holds %q\n%s", n.Name, p, c.Describe())
			}
		}
	})
}
