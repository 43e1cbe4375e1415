package simtest

import (
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAVoteEndsWithItsAgreement: a node that comes to a new agreement with the one that it
// has voted for does not hear that the promotion is done. It is free to vote for the next.
func TestAVoteEndsWithItsAgreement(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.mustDemote(t, 0)
		if err := c.Nodes[1].Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		attached := make(chan error, 1)
		trap := c.SetTrapOn(c.Nodes[1], c.Nodes[0], sendPoint(wire.Vote), func(at, _ *Node) {
			go func() { attached <- at.Dev.Attach(timeout(t, time.Minute)) }()
		})
		c.mustPromote(t, 0)
		if trap.Sprung() == nil {
			t.Fatal("n1 has not voted")
		}
		if err := <-attached; err != nil {
			t.Fatal(err)
		}
		c.until(t, 1, "up to date", is(replication.UpToDate))
		c.mustDemote(t, 0)
		time.Sleep(100 * time.Millisecond)
		began := time.Now()
		c.mustPromote(t, 2)
		if took := time.Since(began); took > time.Second {
			t.Fatalf("the next promotion took %v", took)
		}
	})
}

// TestAVoteIsNotCountedBeyondItsAgreement: who has voted may be out of contact for a moment
// while others have yet to vote, and then votes for somebody else.
func TestAVoteIsNotCountedBeyondItsAgreement(t *testing.T) {
	o := three()
	o.Nodes = 5
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		for _, i := range []int{0, 2} { // n1 alone sees all
			c.Cut(i, 3)
			c.Cut(i, 4)
		}
		time.Sleep(100 * time.Millisecond)
		c.Stall(2, 0, wire.Vote.Link())
		promoted := make(chan error, 1)
		go func() { promoted <- c.Nodes[0].Dev.Promote(timeout(t, 4*time.Second), false) }()
		time.Sleep(100 * time.Millisecond)
		c.Cut(0, 1)
		time.Sleep(100 * time.Millisecond)
		c.Heal(0, 1)
		time.Sleep(100 * time.Millisecond)
		c.mustPromote(t, 3)
		c.Flow(2, 0, wire.Vote.Link())
		if err := <-promoted; err == nil {
			t.Fatalf("two primaries\n%s", c.Describe())
		}
	})
}
