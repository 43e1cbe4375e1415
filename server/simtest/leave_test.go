package simtest

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

func (c *Cluster) mustStop(t *testing.T, nodes ...int) {
	t.Helper()
	for _, i := range nodes {
		if err := c.Nodes[i].Stop(timeout(t, time.Minute)); err != nil {
			t.Fatalf("stop n%d: %v\n%s", i, err, c.Describe())
		}
	}
}

// mustVote waits until every node that is up has its vote, by its own word.
func (c *Cluster) mustVote(t *testing.T) {
	t.Helper()
	for range 100 {
		missing := false
		for _, n := range c.Nodes {
			missing = missing || n.Dev != nil && n.Dev.Status().Voteless
		}
		if !missing {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("somebody does not get its vote back\n%s", c.Describe())
}

// mustBeWithout fails if one of nodes has quorum within a minute, or is promoted.
func (c *Cluster) mustBeWithout(t *testing.T, nodes ...int) {
	t.Helper()
	time.Sleep(time.Minute)
	for _, i := range nodes {
		if c.quorate(i) {
			t.Fatalf("n%d has quorum\n%s", i, c.Describe())
		}
		if err := c.Nodes[i].Dev.Promote(timeout(t, 2*time.Second), false); err == nil {
			t.Fatalf("n%d was promoted\n%s", i, c.Describe())
		}
	}
}

func nodes(n int) Options {
	o := three()
	o.Nodes = n
	return o
}

// TestScenario37CleanLeavesLeaveQuorumBehind: the last one standing goes on, and
// still does after a crash of its own; those that left make no quorum without
// it, however many they are, and are resynced when it is back.
func TestScenario37CleanLeavesLeaveQuorumBehind(t *testing.T) {
	for n := 2; n <= 5; n++ {
		t.Run(fmt.Sprint(n, " nodes"), func(t *testing.T) {
			bubble(t, nodes(n), func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 0, 'a', 4096)
				for i := n - 1; i > 0; i-- {
					c.mustStop(t, i)
					c.mustWrite(t, 0, int64(i)*8192, 'b', 4096)
				}
				c.Nodes[0].Kill()
				c.mustStart(t, 0)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 0, 'c', 4096)
				c.Nodes[0].PowerCut(0)
				left := []int{}
				for i := 1; i < n; i++ {
					left = append(left, i)
				}
				c.mustStart(t, left...)
				c.mustBeWithout(t, left...)
				c.mustStart(t, 0)
				c.mustAllSync(t)
				c.mustEqual(t)
				c.mustHold(t, 0, 'c')
				c.mustVote(t)
				// Everything is as it was: one that is lost without a word is no leave.
				for _, i := range left[(n-1)/2:] {
					c.Nodes[i].Kill()
				}
				if c.quorate(0) != (n%2 == 1) {
					t.Fatalf("quorum with %d of %d\n%s", 1+(n-1)/2, n, c.Describe())
				}
			})
		})
	}
}

// TestScenario37ThePrimaryLeaves: it demotes, and the other is promoted alone.
func TestScenario37ThePrimaryLeaves(t *testing.T) {
	bubble(t, nodes(2), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', mib)
		c.mustStop(t, 0)
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 0, 'b', 4096)
		c.Nodes[1].Kill()
		c.mustStart(t, 0)
		c.mustBeWithout(t, 0)
		c.mustStart(t, 1)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 0, 'b')
	})
}

// TestScenario37AllStopAtOnce: where nobody stays nobody gives up its vote, and
// any majority of them goes on later.
func TestScenario37AllStopAtOnce(t *testing.T) {
	for seed := range uint64(20) {
		o := three()
		o.Seed = seed
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			var all sync.WaitGroup
			for i := range c.Nodes {
				all.Go(func() { c.mustStop(t, i) })
			}
			all.Wait()
			one, other := int(seed%3), int((seed+1)%3)
			c.mustStart(t, one, other)
			c.mustPromote(t, one)
			c.mustWrite(t, one, 0, 'b', 4096)
		})
	}
}

// TestScenario37TwoOfThreeStopAtOnce: the one that stays has quorum.
func TestScenario37TwoOfThreeStopAtOnce(t *testing.T) {
	for seed := range uint64(20) {
		o := three()
		o.Seed, o.Delay = seed, 3*time.Millisecond
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			var all sync.WaitGroup
			for _, i := range []int{1, 2} {
				all.Go(func() { c.mustStop(t, i) })
			}
			all.Wait()
			c.mustWrite(t, 0, 0, 'b', 4096)
			c.Nodes[0].Kill()
			c.mustStart(t, 1, 2)
			c.mustBeWithout(t, 1, 2)
			c.mustStart(t, 0)
			c.mustAllSync(t)
			c.mustHold(t, 0, 'b')
		})
	}
}

// TestScenario37ALeaveDuringAPromotion leaves one primary with quorum, whichever
// comes first.
func TestScenario37ALeaveDuringAPromotion(t *testing.T) {
	for seed := range uint64(20) {
		o := nodes(2 + int(seed%2))
		o.Seed, o.Delay = seed, 3*time.Millisecond
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			var both sync.WaitGroup
			both.Go(func() { c.mustStop(t, 1) })
			both.Go(func() { c.mustPromote(t, 0) })
			both.Wait()
			c.mustWrite(t, 0, 0, 'b', 4096)
			c.mustStart(t, 1)
			c.mustAllSync(t)
			c.mustVote(t)
			c.mustEqual(t)
		})
	}
}

// TestScenario37OneAfterTheOther: restarted in turn under load, with the role
// moving on, all keep quorum and get their votes back.
func TestScenario37OneAfterTheOther(t *testing.T) {
	for n := 2; n <= 4; n++ {
		bubble(t, nodes(n), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			for round := range 2 * n {
				i := round % n
				p := (i + 1) % n
				c.mustPromote(t, p)
				c.mustWrite(t, p, int64(round)*4096, 'a'+byte(round), 4096)
				c.mustStop(t, i)
				c.mustWrite(t, p, int64(round)*4096+mib, 'a'+byte(round), 4096)
				c.mustStart(t, i)
				c.mustAllSync(t)
				c.mustVote(t)
				if err := c.Nodes[p].Dev.Demote(timeout(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second) // all have heard of it
			}
			c.mustEqual(t)
		})
	}
}

// TestScenario37APeerOfAnEarlierVersion knows nothing of votes, so that nobody
// gives one up.
func TestScenario37APeerOfAnEarlierVersion(t *testing.T) {
	o := nodes(2)
	o.Older = replication.Of(1)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustStop(t, 0)
		time.Sleep(5 * time.Second)
		if c.quorate(1) {
			t.Fatalf("one of two has quorum\n%s", c.Describe())
		}
		c.mustStart(t, 0)
		c.mustAllSync(t)
	})
}

// TestScenario37TheOneThatStayedIsLost for good: those that left say so, and an
// administrator's word gives them quorum.
func TestScenario37TheOneThatStayedIsLost(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.mustStop(t, 2, 1)
		c.Nodes[0].Kill()
		c.mustStart(t, 1, 2)
		c.mustBeWithout(t, 1, 2)
		why := fmt.Sprint(c.Nodes[1].Dev.Why())
		if !strings.Contains(why, "left in order") || !strings.Contains(why, "n0") || !strings.Contains(why, "--force") {
			t.Errorf("why: %s", why)
		}
		if err := c.Nodes[1].Dev.Promote(timeout(t, time.Minute), true); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		c.mustWrite(t, 1, 0, 'b', 4096)
	})
}

// TestScenario37ACrashDuringALeave, of either side, at every point of it: there
// are never two that have quorum, and with all back all have their votes.
func TestScenario37ACrashDuringALeave(t *testing.T) {
	for _, point := range []string{
		"prepare: before it is sent", "prepare: before it is taken", "vote: before it is sent", "vote: before it is taken",
		"superblock: before its write", "superblock: before its sync",
	} {
		for skip := range 4 {
			t.Run(fmt.Sprint(point, " ", skip), func(t *testing.T) {
				o := three()
				o.Seed = uint64(skip)
				bubble(t, o, func(t *testing.T, c *Cluster) { c.crashInLeave(t, point, skip) })
			})
		}
	}
}

func (c *Cluster) crashInLeave(t *testing.T, point string, skip int) {
	c.mustAllSync(t)
	c.mustPromote(t, 0)
	c.mustWrite(t, 0, 0, 'a', 4096)
	c.mustStop(t, 2)
	c.mustWrite(t, 0, 8192, 'b', 4096)
	var gone *Node
	c.SetTrap(point, skip, func(at, _ *Node) { gone = at; at.PowerOff(storetest.Crash{Lost: 1}) })
	left := c.Nodes[1].Stop(timeout(t, time.Minute))
	c.SetTrap("nothing", 0, nil)
	for _, n := range c.Nodes {
		n.Bury()
	}
	// Whoever is there writes, if it may; n1 and n2 without n0 may not both of
	// them have been able to, and neither loses the other's.
	wrote := byte(0)
	try := func(with byte, nodes ...int) {
		for _, i := range nodes {
			n := c.Nodes[i]
			if n.Dev == nil || wrote != 0 || n.Dev.Promote(timeout(t, 5*time.Second), false) != nil {
				continue
			}
			if n.Do(timeout(t, 5*time.Second), block.Write, 0, 0, fill(uint64(with)), 0) == nil {
				wrote = with
			}
		}
	}
	try(1, 0)
	first := wrote
	if c.Nodes[0].Dev != nil {
		c.Nodes[0].Kill()
	}
	wrote = 0
	for _, i := range []int{1, 2} {
		if c.Nodes[i].Dev == nil {
			c.mustStart(t, i)
		}
	}
	try(2, 1, 2)
	if first != 0 && wrote != 0 {
		t.Fatalf("n0 went on alone, and so did the others (%v crashed, the leave: %v)\n%s", gone, left, c.Describe())
	}
	c.mustStart(t, 0)
	c.mustAllSync(t)
	c.mustVote(t)
	c.mustEqual(t)
	if want := max(first, wrote); want != 0 {
		c.mustHold(t, 0, want)
	}
}

// TestScenario37WhatWasNotSaidInOrder gives nobody quorum: a power cut in the
// place of a stop.
func TestScenario37WhatWasNotSaidInOrder(t *testing.T) {
	bubble(t, nodes(2), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Nodes[1].PowerCut(0)
		if err := c.Nodes[0].Do(timeout(t, 10*time.Second), block.Write, 0, 0, fill(1), 0); !errors.Is(err, ErrUnanswered) {
			t.Fatalf("answered: %v\n%s", err, c.Describe())
		}
	})
}

// TestScenario37AVoteThatNotAllGaveBack: a node that had left asks for its vote back,
// which one of two notes and the other refuses, since it is in contact with a node that
// the first is not in contact with. When its disk is detached again, and the other's
// after it, nobody counts on either.
func TestScenario37AVoteThatNotAllGaveBack(t *testing.T) {
	o := nodes(4)
	o.Diskless = replication.Of(3)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustStop(t, 2)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Cut(0, 3)
		c.Cut(2, 3)
		c.mustStart(t, 2)
		time.Sleep(time.Minute)
		if !c.Nodes[2].Dev.Status().Voteless {
			t.Fatalf("n2 has its vote back\n%s", c.Describe())
		}
		for _, i := range []int{2, 1} {
			if err := c.Nodes[i].Dev.Detach(timeout(t, time.Minute)); err != nil {
				t.Fatalf("detach the disk of n%d: %v\n%s", i, err, c.Describe())
			}
			time.Sleep(time.Minute) // two do not rely on each other at once
		}
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.Nodes[0].Kill()
		c.mustStart(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'c', 4096)
	})
}

// TestScenario37AVoteThatCameBackUnheard: the disk of a primary is about to be detached,
// and it has given its vote up, when the only other is killed. That comes back, is
// resynced, and notes that the primary has its vote again; but the primary stops before it
// hears that. When then the other's disk, a mixture, is detached, the one that has all the
// data has a vote all the same: the other's node can tell without its disk.
func TestScenario37AVoteThatCameBackUnheard(t *testing.T) {
	bubble(t, nodes(2), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		left := c.SetTrap(takePoint(wire.Vote), 2, func(*Node, *Node) { c.Nodes[1].PowerOff(storetest.Crash{}) }) // after those on the detach, and on the vote
		detached := make(chan error, 1)
		go func() { detached <- c.Nodes[0].Dev.Detach(timeout(t, time.Minute)) }()
		time.Sleep(100 * time.Millisecond)
		if left.Sprung() != c.Nodes[0] {
			t.Fatalf("n0 has not left\n%s", c.Describe())
		}
		c.Nodes[1].Bury()
		if err := <-detached; err == nil || !c.Nodes[0].Dev.Status().Voteless {
			t.Fatalf("the disk of n0 is detached (%v), or it has its vote\n%s", err, c.Describe())
		}
		var noted atomic.Pointer[Trap]
		c.SetTrap(sendPoint(wire.SyncData), 0, func(*Node, *Node) {
			c.Stall(0, 1, wire.Data)
			noted.Store(c.SetTrap(sendPoint(wire.Vote), 0, func(*Node, *Node) { c.Stall(1, 0, wire.Meta) }))
		})
		c.mustStart(t, 1)
		time.Sleep(time.Second)
		if at := noted.Load(); at == nil || at.Sprung() != c.Nodes[1] {
			t.Fatalf("n1 has not noted that n0 has its vote\n%s", c.Describe())
		}
		c.Nodes[0].Kill()
		if err := c.Nodes[1].Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		c.mustStart(t, 0)
		time.Sleep(10 * time.Second)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'b', 4096)
		if err := c.Nodes[1].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
