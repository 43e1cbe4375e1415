package simtest

import (
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/wire"
)

// TestAStrandedChangeIsInTheLogOfTheDiskThatComes: a change has its place in the
// account of a primary without a disk when there is nowhere to make it. It is made
// when a disk was attached and a peer is back, of which a crash is to be known from
// the disk's own log.
func TestAStrandedChangeIsInTheLogOfTheDiskThatComes(t *testing.T) {
	o := three()
	o.Extents, o.ExtentBytes = 8, 64<<10
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		n := c.Nodes[0]
		if err := n.Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		for i := range int64(8) {
			c.mustWrite(t, 0, i*64<<10, 'a', 4096)
		}
		c.Stall(1, 0, wire.Meta) // so that nothing becomes stable, which makes room
		c.Stall(2, 0, wire.Meta)
		n.asked(2*mib, 'w')
		time.Sleep(100 * time.Millisecond)
		c.Isolate(0)
		time.Sleep(100 * time.Millisecond)
		if err := n.Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		sent := c.SetTrap(sendPoint(wire.Write), 0, func(at, with *Node) {
			c.Sever(n, c.Nodes[1])
			c.Sever(n, c.Nodes[2])
		})
		c.Rejoin(0)
		time.Sleep(100 * time.Millisecond)
		got := make([]byte, 1)
		n.Disk.Peek(got, 2*mib)
		if sent.Sprung() == nil || got[0] != 'w' {
			t.Fatalf("not made on n0 alone, as is to be compared\n%s", c.Describe())
		}
		n.Kill()
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
