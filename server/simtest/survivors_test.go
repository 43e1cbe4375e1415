package simtest

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
)

// Survivors of a primary that died in the midst of writes, or at rest, even out
// what they may not have in common, and then know of no difference; all the
// while none of them counts as a mixture.
func TestSurvivorsEvenOutByThemselves(t *testing.T) {
	for _, c := range []struct {
		name     string
		nodes    int
		inFlight bool
		rest     time.Duration
	}{
		{"3 nodes, at rest", 3, false, 10 * time.Second},
		{"3 nodes, just written", 3, false, 0},
		{"3 nodes, writes under way", 3, true, 0},
		{"5 nodes, at rest", 5, false, 10 * time.Second},
		{"5 nodes, writes under way", 5, true, 0},
	} {
		for seed := range uint64(8) {
			t.Run(fmt.Sprintf("%s/%d", c.name, seed), func(t *testing.T) {
				o := Options{Nodes: c.nodes, Quorum: majority(), Delay: 2 * time.Millisecond, Seed: seed, Extents: 8, ExtentBytes: 64 << 10}
				bubble(t, o, func(t *testing.T, cl *Cluster) { survive(t, cl, c.inFlight, c.rest) })
			})
		}
	}
}

func survive(t *testing.T, c *Cluster, inFlight bool, rest time.Duration) {
	c.mustSync(t, 0)
	c.mustPromote(t, 0)
	for i := range int64(40) {
		c.mustWrite(t, 0, i*17*block.Unit, byte('a'+i), block.Unit)
	}
	time.Sleep(rest)
	if inFlight {
		for i := range int64(6) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			_ = c.Nodes[0].Do(ctx, block.Write, 0, i*23*block.Unit, make([]byte, block.Unit), 0)
			cancel()
		}
	}
	c.Nodes[0].Kill()
	for at := range 200 {
		time.Sleep(50 * time.Millisecond)
		even := true
		for _, n := range c.Nodes[1:] {
			st := n.Dev.Status()
			if st.Disk < replication.Consistent {
				t.Fatalf("the disk of %s is %v\n%s", n.Name, st.Disk, c.Describe())
			}
			for _, p := range st.Peers[1:] {
				even = even && p.Repl == replication.Established && p.OutOfSync == 0
			}
		}
		if even {
			break
		}
		if at == 199 {
			t.Fatalf("the survivors differ after 10 s\n%s", c.Describe())
		}
	}
	for _, n := range c.Nodes[2:] {
		if at, same := c.Nodes[1].Disk.Equal(n.Disk); !same {
			t.Fatalf("%s and %s differ at %v\n%s", c.Nodes[1].Name, n.Name, at, c.Describe())
		}
	}
}

// TestSurvivorsThatDoNotSeeEachOtherTakeNoTurns: with a third between them that
// sees both, two survivors do not overwrite it from each in turn for ever.
func TestSurvivorsThatDoNotSeeEachOtherTakeNoTurns(t *testing.T) {
	for seed := range uint64(8) {
		o := Options{Nodes: 4, Quorum: majority(), Delay: 2 * time.Millisecond, Seed: seed, Extents: 8, ExtentBytes: 64 << 10}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 64<<10)
			for i := range int64(20) {
				c.Nodes[0].ask(block.Write, 0, i*8192, bytes.Repeat([]byte{byte(i)}, 4096), 0)
			}
			time.Sleep(2 * time.Millisecond)
			c.Cut(1, 2)
			c.Nodes[0].Kill()
			time.Sleep(20 * time.Second)
			n := c.resynced()
			time.Sleep(20 * time.Second)
			if more := c.resynced() - n; more > 0 {
				t.Fatalf("%d bytes are resynced in 20 seconds, and nobody writes\n%s", more, c.Describe())
			}
			c.Heal(1, 2)
			c.mustStart(t, 0)
			c.mustAllSync(t)
			c.mustEqual(t)
		})
	}
}
