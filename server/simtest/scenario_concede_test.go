package simtest

import (
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
)

// TestScenario27BothConcede: the primaries of a split brain are demoted at one
// moment, and each learns from the other's last word that it is the secondary, whose
// changes the policy discards. Neither side's data goes by that, and a person can
// end the split brain.
func TestScenario27BothConcede(t *testing.T) {
	for range 5 {
		splitCluster(t, replication.SplitPolicy{One: "discard-secondary"}, func(t *testing.T, c *Cluster) {
			c.Heal(0, 1)
			c.mustRefuse(t)
			var wg sync.WaitGroup
			for _, n := range c.Nodes {
				wg.Go(func() {
					if err := n.Dev.Demote(timeout(t, time.Minute)); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			time.Sleep(5 * time.Second)
			if c.Nodes[0].splitFrom() != 0 {
				for _, n := range c.Nodes {
					if st := n.Dev.Status(); st.Disk != replication.UpToDate {
						t.Errorf("the disk of %s is %v\n%s", n.Name, st.Disk, c.Describe())
					}
				}
				if err := c.Nodes[0].Dev.Resolve(timeout(t, time.Minute), true); err != nil {
					t.Fatalf("%v\n%s", err, c.Describe())
				}
			}
			for n := range c.Nodes {
				c.mustSync(t, n)
			}
			c.mustEqual(t)
		})
	}
}

// TestScenario27WhatIsDiscardedIsAllResynced: a replica of a primary crashes, goes
// on by itself, and is to discard that in favour of the same primary. What it wrote
// by itself is resynced, not only what it may have lacked.
func TestScenario27WhatIsDiscardedIsAllResynced(t *testing.T) {
	o := three()
	o.Quorum = replication.QuorumPolicy{}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 8192)
		c.Isolate(1)
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.Nodes[1].Kill()
		if err := c.Nodes[1].Start(); err != nil {
			t.Fatal(err)
		}
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 2*mib, 'c', 64<<10)
		if err := c.Nodes[1].Dev.Demote(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.Heal(0, 1)
		time.Sleep(time.Second)
		if c.Nodes[1].splitFrom() == 0 {
			t.Fatalf("no split brain\n%s", c.Describe())
		}
		if err := c.Nodes[1].Dev.Resolve(timeout(t, time.Minute), true); err != nil {
			t.Fatal(err)
		}
		c.Heal(1, 2)
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
	})
}

// TestScenario27WhatIsDiscardedWithAnotherIsResynced: a replica that was killed under its
// primary is resynced from another disk, that went its own way meanwhile. Both discard that
// for the primary, which has run on: what its log tells it may lack is what the primary has
// marked, and what it got from the other disk is not.
func TestScenario27WhatIsDiscardedWithAnotherIsResynced(t *testing.T) {
	o := three()
	o.Quorum = replication.QuorumPolicy{}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Nodes[2].Kill() // it logs what it was sent
		c.Isolate(0)
		c.mustWrite(t, 0, 4096, 'b', 4096)
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 2*mib, 'c', 64<<10)
		c.mustDemote(t, 1)
		c.mustStart(t, 2)
		time.Sleep(10 * time.Second)
		c.Rejoin(0)
		time.Sleep(time.Second)
		for _, n := range c.Nodes[1:] {
			if n.splitFrom() != 1 {
				t.Fatalf("no split brain\n%s", c.Describe())
			}
			if err := n.Dev.Resolve(timeout(t, time.Minute), true); err != nil {
				t.Fatal(err)
			}
		}
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHoldDisks(t, 4096, 'b')
	})
}
