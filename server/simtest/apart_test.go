package simtest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
)

// TestADisklessNodeIsNotPromotedOnDisksThatAreApart: it is in contact with disks that are
// not in contact with each other, one of which has gone on. Where no quorum says which is
// current, a generation of its own would make the two pass for equal.
func TestADisklessNodeIsNotPromotedOnDisksThatAreApart(t *testing.T) {
	o := three()
	o.Nodes, o.Diskless, o.Quorum = 4, replication.Of(3), replication.QuorumPolicy{}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.Cut(2, 0)
		c.Cut(2, 1)
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'a', 4096)
		c.mustDemote(t, 2)
		time.Sleep(time.Second)
		if err := c.Nodes[3].Dev.Promote(timeout(t, 10*time.Second), false); err == nil {
			t.Errorf("promoted, though the disks in reach differ\n%s", c.Describe())
		}
		c.Heal(2, 0)
		c.Heal(2, 1)
		c.mustAllSync(t)
		c.mustPromote(t, 3)
		c.mustWrite(t, 3, 4096, 'b', 4096)
		c.settle(t)
		c.mustEqual(t)
		c.mustHoldDisks(t, 0, 'a')
	})
}

// TestADisklessNodeIsNotPromotedBesideADiskThatMayBeNewer, of which that one itself does
// not know yet whether it is current.
func TestADisklessNodeIsNotPromotedBesideADiskThatMayBeNewer(t *testing.T) {
	o := three()
	o.Diskless, o.Quorum = replication.Of(2), replication.QuorumPolicy{}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.Isolate(0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Nodes[0].Kill()
		c.Heal(0, 2) // and not with the other disk
		c.mustStart(t, 0)
		time.Sleep(time.Second)
		if err := c.Nodes[2].Dev.Promote(timeout(t, 10*time.Second), false); err == nil {
			t.Errorf("promoted on a disk that lacks what was answered\n%s", c.Describe())
		}
		c.Rejoin(0)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHoldDisks(t, 0, 'a')
	})
}

// TestADiskThatComesIsNotTakenForWhatADisklessPrimaryServes: it was away, and has missed
// what was answered before this primary's time.
func TestADiskThatComesIsNotTakenForWhatADisklessPrimaryServes(t *testing.T) {
	o := three()
	o.Nodes, o.Diskless, o.Quorum = 4, replication.Of(3), replication.QuorumPolicy{}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.Isolate(0)
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'a', 4096)
		c.mustDemote(t, 2)
		time.Sleep(time.Second)
		c.mustPromote(t, 3)
		c.Heal(0, 3) // and not with the other disks
		time.Sleep(time.Second)
		for range 4 {
			c.mustRead(t, 3, 0, bytes.Repeat([]byte{'a'}, 4096))
		}
		c.mustWrite(t, 3, 4096, 'b', 4096)
		c.Rejoin(0)
		c.mustAllSync(t)
		c.settle(t)
		c.mustEqual(t)
		c.mustHoldDisks(t, 0, 'a')
	})
}

// TestADisklessPrimaryYieldsToWhoWentOn from what it served, by the word of a handler that
// has not told this node.
func TestADisklessPrimaryYieldsToWhoWentOn(t *testing.T) {
	o := three()
	o.Nodes, o.Diskless, o.Quorum = 4, replication.Of(3), replication.QuorumPolicy{}
	o.Fence = func(node int, _ string) int {
		if node == 3 {
			return 1
		}
		return 4
	}
	for _, tc := range []struct {
		all   bool // it loses every disk
		idle  bool // nothing is written meanwhile
		third bool // it hears of it by a disk that it has not lost
	}{{}, {all: true}, {all: true, idle: true}, {third: true}} {
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.settle(t)
			c.mustPromote(t, 3)
			c.mustWrite(t, 3, 0, 'a', 4096)
			gone := []int{0}
			if tc.all {
				gone = []int{0, 1, 2} // it has no data left
			}
			for _, n := range gone {
				for m := range c.Nodes {
					if m == 3 || !tc.all && m != n {
						c.Cut(n, m)
					}
				}
			}
			if err := c.Nodes[3].Do(timeout(t, time.Second), block.Write, 0, 4096, bytes.Repeat([]byte{'x'}, 4096), 0); err != ErrUnanswered {
				t.Fatal(err)
			}
			c.mustPromote(t, 0)
			if !tc.idle {
				c.mustWrite(t, 0, 0, 'b', 4096)
				c.mustDemote(t, 0)
			}
			if tc.third {
				c.Heal(0, 2)
				time.Sleep(3 * time.Second)
				if got := c.Nodes[3].Dev.Status().Role; got == replication.Primary {
					t.Errorf("it is still primary\n%s", c.Describe())
				}
			}
			for a := range c.Nodes {
				for b := range a {
					c.Heal(a, b)
				}
			}
			c.mustAllSync(t)
			if got := c.Nodes[3].Dev.Status().Role; got == replication.Primary {
				t.Errorf("it is still primary\n%s", c.Describe())
			}
			c.settle(t)
			c.mustEqual(t)
			if !tc.idle {
				c.mustHoldDisks(t, 0, 'b')
			}
			if s := c.splits(); len(s) > 0 {
				t.Errorf("split brains: %v", s)
			}
		})
	}
}

// TestADiskThatIsBehindIsNotCurrentByAnothersWord who has not heard of it.
func TestADiskThatIsBehindIsNotCurrentByAnothersWord(t *testing.T) {
	o := three()
	o.Nodes, o.Quorum = 4, replication.QuorumPolicy{Kind: replication.QuorumCount, N: 1}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.Isolate(2)
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 0, 'a', 4096)
		c.Heal(2, 3) // which sees all, and 2 none of the others
		time.Sleep(10 * time.Second)
		if got := c.Nodes[2].Dev.Status().Peers[2]; got.Disk != replication.UpToDate || got.Repl != replication.Established {
			t.Fatalf("%v, %v\n%s", got.Disk, got.Repl, c.Describe())
		}
		if n := c.Nodes[3].told("disk", ""); n > 20 {
			t.Errorf("the disk of n3 has changed its state %d times", n)
		}
		c.mustWrite(t, 2, 4096, 'b', 4096)
		c.Rejoin(2)
		c.mustAllSync(t)
		c.settle(t)
		c.mustEqual(t)
		c.mustHold(t, 0, 'a')
	})
}

// TestANodeWithoutADiskIsNotPromotedOnWhatIsPast: no quorum decides, and the disk in reach
// passes for current, for it knows nothing of what came after it. Who has none, and was
// primary since, or had a disk that is newer, knows better.
func TestANodeWithoutADiskIsNotPromotedOnWhatIsPast(t *testing.T) {
	for _, client := range []bool{false, true} {
		t.Run(fmt.Sprint("never had one ", client), func(t *testing.T) {
			o := three()
			o.Quorum = replication.QuorumPolicy{}
			if client {
				o.Diskless = replication.Of(0)
			}
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.Isolate(1)
				time.Sleep(time.Second)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 0, 'a', 4096)
				c.mustDemote(t, 0)
				if !client {
					if err := c.Nodes[0].Dev.Detach(timeout(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
				}
				c.Cut(0, 2)
				c.Heal(0, 1)
				time.Sleep(10 * time.Second)
				err := c.Nodes[0].Dev.Promote(timeout(t, 5*time.Second), false)
				if refused, ok := errors.AsType[*device.RefusedError](err); !ok || !strings.Contains(refused.Why, "is behind what this node has seen") {
					t.Fatalf("promote: %v\n%s", err, c.Describe())
				}
				c.Rejoin(0)
				c.Rejoin(1)
				time.Sleep(10 * time.Second)
				c.mustPromote(t, 0)
				c.mustRead(t, 0, 0, bytes.Repeat([]byte{'a'}, 4096))
			})
		})
	}
}

// TestAnOldDiskDoesNotHideWhoWentOn: a primary without a disk, whose changes wait because
// nobody was fenced for it, is given its old disk. What the others made without it meanwhile
// comes from what it serves, and not from what that disk holds: it yields all the same.
func TestAnOldDiskDoesNotHideWhoWentOn(t *testing.T) {
	for _, nodes := range []int{2, 3} {
		o := three()
		o.Nodes, o.Quorum = nodes, replication.QuorumPolicy{}
		o.Fence = func(node int, _ string) int {
			if node == 0 {
				return 1
			}
			return 4
		}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.settle(t)
			if err := c.Nodes[0].Dev.Detach(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			for n := range c.Nodes[1:] {
				c.Cut(0, n+1)
			}
			c.Nodes[0].begin(block.Write, 0, bytes.Repeat([]byte{'x'}, 4096))
			time.Sleep(time.Second)
			c.mustPromote(t, 1)
			c.mustWrite(t, 1, 0, 'b', 4096)
			c.mustDemote(t, 1)
			if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			for n := range c.Nodes[1:] {
				c.Heal(0, n+1)
			}
			time.Sleep(10 * time.Second)
			if got := c.Nodes[0].Dev.Status().Role; got == replication.Primary {
				t.Errorf("it is still primary\n%s", c.Describe())
			}
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHoldDisks(t, 0, 'b')
		})
	}
}

// TestAnOldDiskDoesNotHideWhoIsBehind: such a primary takes nobody's disk for what it serves
// that is of the past, though it is newer than its own.
func TestAnOldDiskDoesNotHideWhoIsBehind(t *testing.T) {
	o := three()
	o.Quorum = replication.QuorumPolicy{}
	o.Fence = func(int, string) int { return 4 }
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		if err := c.Nodes[0].Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.Nodes[1].Kill()
		c.mustWrite(t, 0, 0, 'c', 4096)
		c.Nodes[2].Kill()
		c.Nodes[0].begin(block.Write, 8192, bytes.Repeat([]byte{'x'}, 4096))
		time.Sleep(time.Second)
		if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if err := c.Nodes[1].Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second)
		if st := c.Nodes[0].Dev.Status(); st.Disk != replication.Outdated {
			t.Errorf("its disk is %v by now\n%s", st.Disk, c.Describe())
		}
		p := make([]byte, 4096)
		if err := c.Nodes[0].Do(timeout(t, time.Second), block.Read, 0, 0, p, 0); err == nil && p[0] != 'c' {
			t.Fatalf("it reads %q\n%s", p[0], c.Describe())
		}
		if err := c.Nodes[2].Start(); err != nil {
			t.Fatal(err)
		}
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHoldDisks(t, 0, 'c')
	})
}
