package simtest

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// mustRegroup ends all nodes, and starts some with a configuration that gives the device
// to none of those in without.
func (c *Cluster) mustRegroup(t *testing.T, without replication.NodeSet, nodes ...int) {
	t.Helper()
	for _, n := range c.Nodes {
		n.Kill()
	}
	c.without = without
	c.mustStart(t, nodes...)
}

// TestScenario55FewerDisks: a configuration that takes disks away does not make
// current what was not: who was in the last quorum has to be there.
func TestScenario55FewerDisks(t *testing.T) {
	o := three()
	o.Nodes = 5
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'a', 4096)
		c.Isolate(0)
		c.Isolate(1)
		c.mustWrite(t, 2, 0, 'b', 4096)
		for _, n := range c.Nodes {
			n.Kill()
		}
		c.Rejoin(0)
		c.Rejoin(1)
		c.without = replication.Of(3).With(4)
		c.mustStart(t, 0, 1)
		c.mustBeWithout(t, 0, 1)
		c.mustStart(t, 2)
		for i := range 3 {
			c.mustSync(t, i)
		}
		c.Nodes[2].Kill()
		c.mustPromote(t, 0)
		c.mustHold(t, 0, 'b')
	})
}

// TestScenario55ANewDiskIsNotTheOneThatStayed: a node has left in order in favour of two, of
// which one has lost its disk, and the other is taken out. Who has left is not known to take
// no part by a new disk, which is not the one that it gave its vote to.
func TestScenario55ANewDiskIsNotTheOneThatStayed(t *testing.T) {
	o := three()
	o.Size = 4 * mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustStop(t, 1)
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'a', 4096)
		c.Nodes[0].Kill()
		c.Nodes[0].EmptyDisk(o.Size)
		c.mustRegroup(t, replication.Of(2), 0, 1)
		c.mustBeWithout(t, 0, 1)
		c.mustRegroup(t, 0, 0, 1, 2)
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustHold(t, 0, 'a')
	})
}

// TestScenario55ALostDiskIsTakenAway from a device that needs all of its disks, and
// the others go on: each of them knows what was written last.
func TestScenario55ALostDiskIsTakenAway(t *testing.T) {
	o := three()
	o.Quorum = replication.QuorumPolicy{Kind: replication.QuorumAll}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		for _, n := range c.Nodes {
			n.Kill()
		}
		c.mustStart(t, 0, 1)
		c.mustBeWithout(t, 0, 1)
		c.mustRegroup(t, replication.Of(2), 0, 1)
		c.mustSync(t, 0)
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 0, 'b', 4096)
	})
}

// TestScenario55AMajorityIsLostForGood: an administrator says that what is left
// counts, and all nodes that are left take his word for it.
func TestScenario55AMajorityIsLostForGood(t *testing.T) {
	bubble(t, nodes(5), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.mustRegroup(t, replication.Of(2).With(3).With(4), 0, 1)
		c.mustBeWithout(t, 0, 1)
		if err := c.Nodes[0].Dev.Promote(timeout(t, time.Minute), true); err != nil {
			t.Fatal(err)
		}
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.mustSync(t, 1)
		c.Nodes[0].Kill()
		c.Nodes[1].Kill()
		c.mustStart(t, 0, 1)
		c.mustPromote(t, 1)
	})
}

// TestScenario55WhoStayedIsTakenAway: two nodes leave in order, the third goes on by itself
// and is taken out. The others know that somebody stayed, and not what it did.
func TestScenario55WhoStayedIsTakenAway(t *testing.T) {
	bubble(t, nodes(3), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustStop(t, 1, 2)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.mustRegroup(t, replication.Of(0), 1, 2)
		c.mustBeWithout(t, 1, 2)
		c.mustRegroup(t, 0, 0, 1, 2)
		c.mustAllSync(t)
		c.mustPromote(t, 1)
		c.mustHold(t, 0, 'a')
	})
}

// TestScenario55AMixtureKnowsOfMore: a disk that is behind and one whose resync from the
// third has not ended are all that is left in the configuration. The third has what was
// acknowledged.
func TestScenario55AMixtureKnowsOfMore(t *testing.T) {
	bubble(t, nodes(3), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.Nodes[2].Kill()
		c.mustWrite(t, 0, 0, 'a', 2*mib)
		c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 10 * time.Second})
		c.mustStart(t, 2)
		c.until(t, 2, "is being resynced", func(s replication.DiskState) bool { return s == replication.Inconsistent })
		c.Nodes[1].Kill()
		c.mustWrite(t, 0, 3*mib, 'b', 4096)
		c.mustRegroup(t, replication.Of(0), 1, 2)
		c.mustBeWithout(t, 1, 2)
		c.mustRegroup(t, 0, 0, 1, 2)
		c.mustAllSync(t)
		c.mustPromote(t, 1)
		c.mustHold(t, 3*mib, 'b')
	})
}

// TestScenario55WhoHadLeftComesFromAnotherSet: the last one standing goes on, also when one
// comes back of those that had left, and which the configuration had for a while without
// it; and when both do, which are both resynced.
func TestScenario55WhoHadLeftComesFromAnotherSet(t *testing.T) {
	o := nodes(3)
	o.Size = 64 * mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 2)
		c.mustStop(t, 0, 1)
		c.mustWrite(t, 2, 0, 'a', 4096)
		c.mustRegroup(t, replication.Of(2), 0, 1)
		c.mustBeWithout(t, 0, 1)
		c.mustRegroup(t, 0, 2)
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'b', 4096)
		slow := c.Nodes[2].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 10 * time.Second})
		for i := range 2 {
			c.mustStart(t, i)
			c.until(t, i, "is being resynced", func(s replication.DiskState) bool { return s == replication.Inconsistent })
			c.mustWrite(t, 2, 63*mib, 'c', 4096)
		}
		c.Nodes[2].Disk.Lift(slow)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.Nodes[2].Kill()
		c.mustPromote(t, 0)
	})
}

// TestScenario55TheRestComesOneByOne of what is left of a lost majority: an administrator's
// word is heard by those alone that are in reach, and can be given again.
func TestScenario55TheRestComesOneByOne(t *testing.T) {
	bubble(t, nodes(5), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.mustRegroup(t, replication.Of(2).With(3).With(4), 0)
		force := func() {
			t.Helper()
			if err := c.Nodes[0].Dev.Promote(timeout(t, time.Minute), true); err != nil {
				t.Fatal(err)
			}
		}
		force()
		c.mustStart(t, 1)
		time.Sleep(time.Minute)
		if c.quorate(0) {
			t.Fatalf("node 1 has a say of which nobody knows what it is worth\n%s", c.Describe())
		}
		force()
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.mustSync(t, 1)
	})
}

// TestScenario55ADiskIsTakenAwayAndGivenBack: it lacks what was written meanwhile,
// also where it lacked something before already, or is the one of the lowest id.
func TestScenario55ADiskIsTakenAwayAndGivenBack(t *testing.T) {
	o := three()
	o.Size, o.Extents, o.ExtentBytes = 16*mib, 32, 64<<10
	kill, stop := (*Node).Kill, func(n *Node) { _ = n.Stop(context.Background()) }
	for i := range 8 {
		out, behind, end := 2*(i&1), i&2 != 0, kill
		if i&4 != 0 {
			end = stop
		}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 1)
			c.mustWrite(t, 1, 0, 'a', 4096)
			if behind {
				c.Isolate(out)
				c.mustWrite(t, 1, 2*mib, 'a', 4096)
			}
			for _, n := range []int{out, 2 - out, 1} {
				end(c.Nodes[n])
			}
			c.without = replication.Of(out)
			c.mustStart(t, 1, 2-out)
			c.mustSync(t, 1)
			c.mustPromote(t, 1)
			c.mustWrite(t, 1, 8*mib, 'b', 4096)
			c.mustFlush(t, 1)
			for _, n := range []int{2 - out, 1} {
				end(c.Nodes[n])
			}
			c.without = 0
			c.Rejoin(out)
			c.mustStart(t, 0, 1, 2)
			c.mustAllSync(t)
			c.mustHold(t, 8*mib, 'b')
			c.mustEqual(t)
		})
	}
}

// TestAfterManyChangesADiskIsRefused: what it would have to meet first is not
// forgotten. With the nodes of the beginning it is one of them again.
func TestAfterManyChangesADiskIsRefused(t *testing.T) {
	bubble(t, nodes(5), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		for _, n := range c.Nodes {
			n.Kill()
		}
		var err error
		tries := 0
		for without := replication.NodeSet(2); err == nil && without < 1<<5; without += 2 {
			tries++
			c.without = without
			if err = c.Nodes[0].Start(); err == nil {
				time.Sleep(time.Second)
				if c.quorate(0) {
					t.Fatalf("without %v it has quorum\n%s", without, c.Describe())
				}
				c.Nodes[0].Kill()
			}
		}
		if err == nil || !strings.Contains(err.Error(), "put back the nodes") {
			t.Errorf("after %d changes: %v", tries, err)
		}
		c.without = 0
		c.mustStart(t, 0, 1, 2, 3, 4)
		c.mustAllSync(t)
		c.mustHold(t, 0, 'a')
	})
}
