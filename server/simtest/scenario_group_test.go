package simtest

import (
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestScenario42AGroupWaitsForAGeneration: where requests fail without quorum and
// there is quorum, a device of a group whose generation takes its time makes those
// of the other devices wait for it. They do not fail.
func TestScenario42AGroupWaitsForAGeneration(t *testing.T) {
	o := three()
	o.Beside, o.FailIO = 1, true
	bubble(t, o, func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustPromote(t, 0)
		n := c.Nodes[0]
		for i, d := range n.devs() {
			if err := c.ask(timeout(t, time.Minute), d, block.Write, 0, 0, fill(uint64(i+1)), 0); err != nil {
				t.Fatal(err)
			}
		}
		slow := c.Nodes[1].Meta.Inject(storetest.Fault{Ops: storetest.OpSync, Delay: 2 * time.Second})
		c.Nodes[2].Kill()
		time.Sleep(time.Second)
		if st := n.Dev.Status(); !st.Quorum.Quorate || !st.Suspended {
			t.Fatalf("r0 has its generation already\n%s", c.Describe())
		}
		began := time.Now()
		if err := c.ask(timeout(t, time.Minute), n.More[0].Dev, block.Write, 0, 0, fill(3), 0); err != nil {
			t.Fatalf("a write of r1: %v\n%s", err, c.Describe())
		}
		if time.Since(began) == 0 {
			t.Error("r1 did not wait for r0")
		}
		c.Nodes[1].Meta.Lift(slow)
		c.Nodes[1].Kill()
		time.Sleep(time.Second)
		for _, d := range n.devs() {
			if err := c.ask(timeout(t, time.Second), d, block.Write, 0, 0, fill(4), 0); err != block.ErrIO {
				t.Errorf("%s without quorum: %v", d.Name(), err)
			}
		}
	})
}
