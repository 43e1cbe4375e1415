package simtest

import (
	"slices"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestScenario34WhoHeardNothingOfAGeneration: a primary loses sight of a replica
// in the midst of a generation, brings that into force with the other, and dies.
// Who is promoted then stays so: it does not find out only as primary that there
// is a generation of which it has nothing.
func TestScenario34WhoHeardNothingOfAGeneration(t *testing.T) {
	o := three()
	o.Delay = 0
	bubble(t, o, func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustPromote(t, 1)
		p := c.Nodes[1]
		cut := c.SetTrap(takePoint(wire.NewGen), 0, func(at, _ *Node) { c.Sever(p, at) })
		go func() { _ = p.Do(timeout(t, time.Minute), block.Write, 0, 0, fill(1), 0) }()
		time.Sleep(time.Second)
		late := cut.Sprung()
		if late == nil {
			t.Fatal("no generation was announced")
		}
		off := c.SetTrap(sendPoint(wire.GenDone), 0, func(_, _ *Node) { p.PowerOff(storetest.Crash{}) })
		c.Cut(p.ID, late.ID)
		time.Sleep(time.Second)
		if off.Sprung() == nil {
			t.Fatalf("no generation came into force\n%s", c.Describe())
		}
		p.Bury()
		time.Sleep(time.Second)
		c.mustPromote(t, late.ID)
		if err := late.Do(timeout(t, time.Minute), block.Read, 0, 0, make([]byte, 4096), 0); err != nil {
			t.Fatalf("read: %v\n%s", err, c.Describe())
		}
		c.mustWrite(t, late.ID, 0, 'a', 4096)
		if st := late.Dev.Status(); st.Role != replication.Primary {
			t.Fatalf("%s is %v\n%s", late.Name, st.Role, c.Describe())
		}
	})
}

// TestScenario40AVoteBindsUntilTheNewPrimaryIsKnown: a node that has voted for one, and
// has heard that its promotion is done, but not yet its state, is asked by another which
// is not in contact with the first.
func TestScenario40AVoteBindsUntilTheNewPrimaryIsKnown(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.Cut(0, 2)
		time.Sleep(time.Second)
		c.Stall(2, 1, wire.Data)
		c.SetTrap(takePoint(wire.Commit), 0, func(_, _ *Node) { c.Stall(2, 1, wire.Meta) })
		c.mustPromote(t, 2)
		time.Sleep(100 * time.Millisecond)
		if err := c.Nodes[0].Dev.Promote(timeout(t, time.Second), false); err == nil {
			t.Fatalf("two are primary\n%s", c.Describe())
		}
		c.Flow(2, 1, wire.Meta)
		c.Flow(2, 1, wire.Data)
		c.mustWrite(t, 2, 0, 'a', 4096)
	})
}

// TestASourceIsPromotedWhileItReads: pieces that are read for a target are no changes that
// a promotion waits for.
func TestASourceIsPromotedWhileItReads(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		c.Nodes[2].Kill()
		c.mustWrite(t, 0, 0, 'a', 4*mib)
		c.mustDemote(t, 0)
		slow := func(n *Node) *storetest.Injection {
			return n.Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 10 * time.Second})
		}
		reads := []*storetest.Injection{slow(c.Nodes[0]), slow(c.Nodes[1])}
		c.mustStart(t, 2)
		time.Sleep(5 * time.Second)
		source := slices.IndexFunc(c.Nodes[2].Dev.Status().Peers, func(p device.PeerStatus) bool { return p.Repl == replication.SyncTarget })
		if source < 0 {
			t.Fatalf("it is not resynced\n%s", c.Describe())
		}
		if err := c.Nodes[source].Dev.Promote(timeout(t, 3*time.Second), false); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		for i, f := range reads {
			c.Nodes[i].Disk.Lift(f)
		}
		c.mustWrite(t, source, 4096, 'b', 4096)
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
