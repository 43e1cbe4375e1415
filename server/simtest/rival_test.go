package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
)

// TestScenario35ADisklessPrimaryIsReplaced: a primary without a disk is cut off,
// and another is promoted, with a disk or without. When it is back it is primary
// no longer; what waited there is not done.
func TestScenario35ADisklessPrimaryIsReplaced(t *testing.T) {
	for _, next := range []int{1, 3} {
		for _, wrote := range []bool{true, false} {
			for _, rejoin := range []string{"at once", "through the disks", "through the other"} {
				o := three()
				o.Nodes, o.Diskless = 5, replication.Of(0, 3)
				bubble(t, o, func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, 0, 'a', 4096)
					c.Isolate(0)
					a := c.Nodes[0].ask(block.Write, 0, 0, bytes.Repeat([]byte{'z'}, 4096), 0)
					time.Sleep(time.Second)
					c.mustPromote(t, next)
					if wrote {
						c.mustWrite(t, next, 0, 'b', 4096)
					}
					switch rejoin {
					case "through the disks":
						for _, i := range []int{1, 2, 4} {
							if i != next {
								c.Heal(0, i)
							}
						}
					case "through the other":
						c.Heal(0, next)
					}
					time.Sleep(time.Second)
					c.Rejoin(0)
					time.Sleep(10 * time.Second)
					if c.Nodes[0].Dev.Status().Role == replication.Primary || c.Nodes[next].Dev.Status().Role != replication.Primary {
						t.Fatalf("rejoined %s: the wrong one is primary\n%s", rejoin, c.Describe())
					}
					if answered(a.done) && a.r.Err == nil {
						t.Fatalf("rejoined %s: what waited was answered\n%s", rejoin, c.Describe())
					}
					c.mustWrite(t, next, 8192, 'c', 4096)
					c.mustAllSync(t)
					c.mustEqual(t)
					if wrote {
						c.mustHoldDisks(t, 0, 'b')
					}
				})
			}
		}
	}
}
