package simtest

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestWhatAPrimaryDropsIsCompared: when a primary yields, a change is under way that one
// replica has and another, which is lost before it arrives there, has not. The two are not
// taken for equal.
func TestWhatAPrimaryDropsIsCompared(t *testing.T) {
	begin := func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		for to := 2; to < len(c.Nodes); to++ {
			c.Stall(0, to, wire.Data)
		}
		c.Nodes[0].begin(block.Write, 4096, bytes.Repeat([]byte{'b'}, 4096))
		time.Sleep(100 * time.Millisecond) // n1 has it, and nobody else
	}
	yielded := func(t *testing.T, c *Cluster) {
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if st := c.Nodes[0].Dev.Status(); st.Role == replication.Primary {
			t.Fatalf("it has not yielded\n%s", c.Describe())
		}
		c.Nodes[0].Kill()
	}
	t.Run("to the word of a fence-peer handler", func(t *testing.T) {
		o := three()
		o.Nodes, o.Quorum = 4, replication.QuorumPolicy{}
		o.Fence = func(int, string) int { return 6 }
		bubble(t, o, func(t *testing.T, c *Cluster) {
			begin(t, c)
			c.Cut(0, 3)
			yielded(t, c)
			time.Sleep(time.Minute)
			synctest.Wait()
			for _, n := range c.Nodes[2:] {
				if at, same := c.Nodes[1].Disk.Equal(n.Disk); !same {
					t.Fatalf("n1 and %s differ at %v\n%s", n.Name, at, c.Describe())
				}
			}
		})
	})
	t.Run("to a majority, of which it has not heard from all", func(t *testing.T) {
		o := three()
		o.Nodes = 6
		bubble(t, o, func(t *testing.T, c *Cluster) {
			begin(t, c)
			for to := 2; to < 6; to++ {
				c.Cut(1, to)
				c.CutUnheard(0, to)
			}
			c.mustPromote(t, 2)
			c.mustWrite(t, 2, 8192, 'c', 4096)
			for from := 3; from < 6; from++ {
				c.Hear(0, from)
			}
			c.Heal(0, 3)
			yielded(t, c)
			c.Heal(1, 2)
			time.Sleep(time.Minute)
			synctest.Wait()
			if at, same := c.Nodes[1].Disk.Equal(c.Nodes[2].Disk); !same {
				t.Fatalf("n1 and n2 differ at %v\n%s", at, c.Describe())
			}
		})
	})
}

// TestAPrimaryThatYieldsGivesItsGenerationUp: one waits for a fence-peer handler, by whose
// word the primary yields. Nothing waits for it any more: the disk can be attached.
func TestAPrimaryThatYieldsGivesItsGenerationUp(t *testing.T) {
	o := three()
	o.Nodes, o.Quorum = 4, replication.QuorumPolicy{}
	yield := true
	o.Fence = func(_ int, peer string) int {
		if peer == "n2" && yield {
			time.Sleep(3 * time.Second)
			return 6
		}
		return 4
	}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		slow := c.Nodes[1].Meta.Inject(storetest.Fault{Ops: storetest.OpSync, Delay: 2 * time.Second})
		c.Isolate(3)
		c.Nodes[0].begin(block.Write, 0, bytes.Repeat([]byte{'a'}, 4096))
		time.Sleep(time.Second)
		c.Cut(0, 2)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		if st := c.Nodes[0].Dev.Status(); st.Role == replication.Primary {
			t.Fatalf("it has not yielded\n%s", c.Describe())
		}
		c.Nodes[1].Meta.Lift(slow)
		yield = false
		c.Rejoin(3)
		c.Heal(0, 2)
		c.settle(t)
		n := c.Nodes[0]
		if err := n.Dev.Detach(timeout(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		if err := n.Dev.Attach(timeout(t, 10*time.Second)); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
	})
}
