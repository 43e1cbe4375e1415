package simtest

import (
	"context"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
)

// TestAResyncedDiskIsAsGoodAsItsSource: a replica is resynced from another, of which
// nobody could tell whether it is current, and both stop. When all are back it does not
// take itself for outdated: it would have the others, the primary's disk with them, take
// themselves for that, and nobody would be resynced from anybody; beside a fourth that is
// apart from them nobody could tell that there is nothing newer.
func TestAResyncedDiskIsAsGoodAsItsSource(t *testing.T) {
	o := three()
	o.Nodes, o.Quorum = 4, replication.QuorumPolicy{}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.Isolate(3)
		c.mustPromote(t, 3)
		c.mustWrite(t, 3, mib, 'x', 4096)
		c.mustPromote(t, 0)
		l := newLedger()
		for blk := range int64(8) {
			l.write(t.Context(), c.Nodes[0], blk)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Microsecond)
		l.write(ctx, c.Nodes[0], 9)
		cancel()
		c.killAll()
		for n := 1; n < 3; n++ {
			if err := c.Nodes[n].Start(); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10 * time.Second)
		if st := c.Nodes[2].Dev.Status(); st.Disk != replication.Consistent || st.Peers[1].Repl != replication.Established {
			t.Fatalf("n2 was not resynced from n1\n%s", c.Describe())
		}
		c.killAll()
		if err := c.StartAll(); err != nil {
			t.Fatal(err)
		}
		c.Rejoin(3)
		time.Sleep(30 * time.Second)
		for _, n := range c.Nodes[:3] {
			for _, p := range n.Dev.Status().Peers {
				if p.ID != 3 && p.Repl != replication.Established || p.ID == 3 && p.Refused == "" {
					t.Fatalf("%s is not in sync with node %d\n%s", n.Name, p.ID, c.Describe())
				}
			}
		}
		if err := l.check(func(off int64, p []byte) { c.Nodes[2].Disk.Peek(p, off) }); err != nil {
			t.Fatal(err)
		}
	})
}
