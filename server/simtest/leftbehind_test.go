package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestWhoWasLeftBehindIsNotCurrentByAnothersWord: without quorum, a primary goes on without
// two disks before they have what only it had. They have noted that, so it has nobody
// fenced. One of them hears of it later than the other, which does not take that one's
// word for it that its data is current.
func TestWhoWasLeftBehindIsNotCurrentByAnothersWord(t *testing.T) {
	for i := range time.Duration(24) {
		late, between := i/4, i%4
		fenced := false
		o := three()
		o.Fence = func(node int, _ string) int {
			fenced = fenced || node == 2
			return 4
		}
		o.Quorum = replication.QuorumPolicy{}
		o.Latency = func(from, to int, _ wire.Link) time.Duration {
			switch {
			case from == 2 && to == 1:
				return late * time.Millisecond
			case from+to == 1:
				return between * time.Millisecond
			}
			return time.Millisecond
		}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.settle(t)
			c.mustPromote(t, 2)
			c.mustWrite(t, 2, 0, 'a', 4096)
			c.Stall(2, 0, wire.Data)
			c.Stall(2, 1, wire.Data)
			c.Nodes[2].begin(block.Write, 4096, bytes.Repeat([]byte{'b'}, 4096))
			time.Sleep(100 * time.Millisecond)
			c.Nodes[2].Kill()
			time.Sleep(time.Second)
			if err := c.Nodes[2].Start(); err != nil {
				t.Fatal(err)
			}
			c.mustPromote(t, 2)
			_, written := c.Nodes[2].begin(block.Write, 8192, bytes.Repeat([]byte{'c'}, 4096))
			for !answered(written) {
				time.Sleep(time.Millisecond)
			}
			c.Nodes[2].Kill()
			time.Sleep(10 * time.Second)
			if fenced {
				t.Fatalf("%d: the others have not noted it\n%s", i, c.Describe())
			}
			for _, n := range c.Nodes[:2] {
				p := make([]byte, 1)
				if n.Disk.Peek(p, 8192); p[0] == 'c' {
					continue // it was there in time
				}
				if err := n.Dev.Promote(timeout(t, 5*time.Second), false); err == nil {
					t.Fatalf("%d: %s was promoted on what is past\n%s", i, n.Name, c.Describe())
				}
			}
		})
	}
}
