package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAResyncBeginsWhicheverLinkIsFaster: what a primary says on one link arrives before
// what it has said earlier on the other, as long as the nodes are in contact.
func TestAResyncBeginsWhicheverLinkIsFaster(t *testing.T) {
	for name, slow := range map[string]wire.Link{"data": wire.Meta, "meta": wire.Data} {
		t.Run(name, func(t *testing.T) {
			o := three()
			o.Nodes = 2
			o.Latency = func(_, _ int, l wire.Link) time.Duration {
				if l == slow {
					return 60 * time.Millisecond
				}
				return time.Millisecond
			}
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.settle(t)
				c.mustPromote(t, 1)
				c.mustWrite(t, 1, 0, 'a', 4096)
				for range 3 {
					c.Nodes[0].Kill()
					_, w := c.Nodes[1].begin(block.Write, 0, bytes.Repeat([]byte{'b'}, 4096))
					time.Sleep(time.Second)
					if err := c.Nodes[0].Start(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(150 * time.Millisecond)
					c.Cut(0, 1)
					c.Heal(0, 1)
					c.mustSync(t, 0)
					if !answered(w) {
						t.Fatalf("not answered\n%s", c.Describe())
					}
				}
			})
		})
	}
}

// TestAResyncIsShorterThanAGeneration: of three nodes one is far away, so that a
// generation takes longer than the resync of a disk that missed nothing. Devices of a
// group begin one as soon as a disk is left behind.
func TestAResyncIsShorterThanAGeneration(t *testing.T) {
	for ms := range 8 {
		o := three()
		o.Beside = 1
		o.Latency = func(from, to int, l wire.Link) time.Duration {
			if from == 2 || to == 2 {
				return 100 * time.Millisecond
			}
			return time.Duration(l) * time.Duration(ms) * time.Millisecond
		}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.settle(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			for range 3 {
				c.Cut(0, 1)
				time.Sleep(time.Duration(ms*ms*5) * time.Millisecond)
				c.Heal(0, 1)
				c.mustSync(t, 1)
				c.mustSync(t, 0)
			}
			if n := c.Nodes[0].Dev.Status().Stats.Generations; n > 10 {
				t.Errorf("%d ms: %d generations", ms, n)
			}
		})
	}
}
