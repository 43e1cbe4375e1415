package simtest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

func (c *Cluster) quorate(n int) bool { return c.Nodes[n].Dev.Status().Quorum.Quorate }

// tie is two disks and a tiebreaker, n2.
func tie() Options {
	o := three()
	o.Diskless = replication.Of(2)
	return o
}

// TestScenario36ATiebreakerKeepsAndNeverGives: with its peer's disk gone, a
// disk keeps quorum by the tiebreaker that sees it; the tiebreaker gone first,
// it has none to lose but loses it with the peer; and a disk that starts alone
// gets none from it.
func TestScenario36ATiebreakerKeepsAndNeverGives(t *testing.T) {
	t.Run("peer first", func(t *testing.T) {
		bubble(t, tie(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.Nodes[1].Kill()
			c.mustWrite(t, 0, 0, 'a', 4096)
			c.Nodes[2].Kill()
			if err := c.Nodes[0].Do(timeout(t, 5*time.Second), block.Write, 0, 0, make([]byte, 4096), 0); !errors.Is(err, ErrUnanswered) {
				t.Fatalf("alone: %v\n%s", err, c.Describe())
			}
			c.mustStart(t, 2)
			time.Sleep(5 * time.Second)
			if c.quorate(0) {
				t.Fatalf("the tiebreaker gave quorum back\n%s", c.Describe())
			}
			c.mustStart(t, 1)
			c.mustSync(t, 0)
			c.mustWrite(t, 0, 0, 'b', 4096)
			c.mustEqual(t)
		})
	})
	t.Run("tiebreaker first", func(t *testing.T) {
		bubble(t, tie(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.Nodes[2].Kill()
			c.mustWrite(t, 0, 0, 'a', 4096)
			c.Nodes[1].Kill()
			time.Sleep(5 * time.Second)
			if c.quorate(0) {
				t.Fatalf("one of two is quorate\n%s", c.Describe())
			}
		})
	})
	t.Run("a disk that starts", func(t *testing.T) {
		bubble(t, tie(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			for _, n := range c.Nodes {
				n.Kill()
			}
			c.mustStart(t, 0, 2)
			time.Sleep(5 * time.Second)
			if c.quorate(0) {
				t.Fatalf("the tiebreaker gave quorum\n%s", c.Describe())
			}
			c.mustStart(t, 1)
			c.mustPromote(t, 1)
		})
	})
}

// TestScenario37TheLastOneStanding: who was left by crashes stands still, and
// is not quorate alone when it comes back itself. Who was left in order is
// quorate after a crash only if it was before; nothing answered is lost.
func TestScenario37TheLastOneStanding(t *testing.T) {
	for _, inOrder := range []bool{true, false} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			for _, n := range c.Nodes[1:] {
				if !inOrder {
					n.Kill()
				} else if err := n.Stop(timeout(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
			}
			err := c.Nodes[0].Do(timeout(t, 5*time.Second), block.Write, 0, 0, bytes.Repeat([]byte{'b'}, 4096), 0)
			if err == nil && !inOrder {
				t.Fatalf("one of three, the others crashed, answered\n%s", c.Describe())
			}
			c.Nodes[0].Kill()
			c.mustStart(t, 0)
			time.Sleep(5 * time.Second)
			if c.quorate(0) && err != nil {
				t.Fatalf("quorate alone, though it was not before\n%s", c.Describe())
			}
			c.mustStart(t, 1, 2)
			c.mustAllSync(t)
			c.mustEqual(t)
			if err == nil {
				c.mustHold(t, 0, 'b')
			}
		})
	}
}

// TestScenario38ADisklessPrimary loses its peers' disks, and gets them back, in
// every order: it stands still without any, and forgets nothing.
func TestScenario38ADisklessPrimary(t *testing.T) {
	for _, lose := range [][2]int{{1, 2}, {2, 1}} {
		for _, back := range [][2]int{{1, 2}, {2, 1}} {
			o := three()
			o.Diskless = replication.Of(0)
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 0, 'a', 4096)
				c.Nodes[lose[0]].Kill()
				time.Sleep(time.Second)
				first := c.Nodes[0].ask(block.Write, 0, 8192, bytes.Repeat([]byte{'b'}, 4096), 0)
				time.Sleep(time.Second)
				c.Nodes[lose[1]].Kill()
				time.Sleep(time.Second)
				then := c.Nodes[0].ask(block.Write, 0, 16384, bytes.Repeat([]byte{'c'}, 4096), 0)
				time.Sleep(5 * time.Second)
				if answered(then.done) {
					t.Fatalf("a write without any disk was answered: %v\n%s", then.r.Err, c.Describe())
				}
				wrote := answered(first.done) && first.r.Err == nil
				c.mustStart(t, back[0])
				time.Sleep(5 * time.Second)
				c.mustStart(t, back[1])
				time.Sleep(20 * time.Second)
				c.mustAllSync(t)
				c.mustEqual(t)
				c.mustHoldDisks(t, 0, 'a')
				if wrote {
					c.mustHoldDisks(t, 8192, 'b')
				}
				if !answered(then.done) {
					t.Fatalf("the write that waited is not answered\n%s", c.Describe())
				}
				if then.r.Err == nil {
					c.mustHoldDisks(t, 16384, 'c')
				}
			})
		}
	}
}

// mustHoldDisks is mustHold where nodes have no disk.
func (c *Cluster) mustHoldDisks(t *testing.T, off int64, want byte) {
	t.Helper()
	for _, n := range c.Nodes {
		if n.Disk == nil {
			continue
		}
		var got [1]byte
		if n.Disk.Peek(got[:], off); got[0] != want {
			t.Errorf("%s holds %q at %d, not %q\n%s", n.Name, got[0], off, want, c.Describe())
		}
	}
}

// TestScenario40ConcurrentPromotions leave one primary, or none for the moment,
// also while nodes are only connecting.
func TestScenario40ConcurrentPromotions(t *testing.T) {
	for seed := range uint64(20) {
		o := three()
		o.Seed, o.Delay = seed, 3*time.Millisecond
		bubble(t, o, func(t *testing.T, c *Cluster) {
			if seed%2 == 0 {
				c.mustAllSync(t)
			}
			var all sync.WaitGroup
			errs := make([]error, 3)
			for i, n := range c.Nodes {
				all.Go(func() { errs[i] = n.Dev.Promote(timeout(t, 20*time.Second), false) })
			}
			all.Wait()
			won := -1
			for i, err := range errs {
				if err == nil && won >= 0 {
					t.Fatalf("n%d and n%d were both promoted\n%s", won, i, c.Describe())
				} else if err == nil {
					won = i
				}
			}
			if won < 0 {
				t.Fatalf("nobody was promoted: %v\n%s", errs, c.Describe())
			}
			c.mustWrite(t, won, 0, 'a', 4096)
			c.mustEqual(t)
			if err := c.Nodes[won].Dev.OpenFor(timeout(t, time.Second)); err != nil {
				t.Fatal(err)
			}
			if err := c.Nodes[won].Dev.Demote(timeout(t, time.Second)); err == nil {
				t.Error("demoted under a client")
			}
		})
	}
}

// TestScenario41SuspendedIOGoesOn: what waited for quorum is done when it comes
// back in time; with a majority of the others having gone another way it never
// is, and says so.
func TestScenario41SuspendedIOGoesOn(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Isolate(0)
		var all []asked
		for i := range int64(20) {
			all = append(all, c.Nodes[0].ask(block.Write, 0, i*4096, bytes.Repeat([]byte{'b'}, 4096), 0))
		}
		time.Sleep(time.Minute)
		for _, a := range all {
			if answered(a.done) {
				t.Fatalf("answered without quorum: %v", a.r.Err)
			}
		}
		c.Rejoin(0)
		c.mustAnswer(t, all)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 0, 'b')
	})
}

// TestWhatWasHeldIsNotDurable: a change that waited for quorum is sent
// to the peer that brings it, answered, and lost with that peer's cache. It is
// resynced like any other that was not flushed.
func TestWhatWasHeldIsNotDurable(t *testing.T) {
	for _, diskless := range []replication.NodeSet{0, replication.Of(0)} {
		o := three()
		if o.Diskless = diskless; diskless != 0 {
			o.Quorum = replication.QuorumPolicy{Kind: replication.QuorumAll}
		}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			c.mustFlush(t, 0)
			if diskless == 0 {
				c.Isolate(2)
			}
			c.Cut(0, 1)
			held := c.Nodes[0].ask(block.Write, 0, 0, bytes.Repeat([]byte{'b'}, 4096), 0)
			time.Sleep(2 * time.Second)
			if answered(held.done) {
				t.Fatalf("answered without quorum\n%s", c.Describe())
			}
			c.Heal(0, 1)
			c.mustAnswer(t, []asked{held})
			c.Nodes[1].PowerCut(1)
			time.Sleep(time.Second)
			c.mustStart(t, 1)
			c.Rejoin(2)
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHoldDisks(t, 0, 'b')
		})
	}
}

// TestScenario35NothingIsAnsweredByOneDiskAlone: a disk in reach that is not sent
// changes yet, for its resync has not begun, makes quorum. What is written then is
// answered when it is on that disk, too: else the loss of the other would lose it,
// with a majority of the disks left.
func TestScenario35NothingIsAnsweredByOneDiskAlone(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.Isolate(2)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Isolate(1)
		c.SetTrap(sendPoint(wire.Bits), 0, func(at, with *Node) { c.Stall(at.ID, with.ID, wire.Bits.Link()) })
		c.Heal(0, 2)
		w := c.Nodes[0].ask(block.Write, 0, 8192, bytes.Repeat([]byte{'b'}, 4096), 0)
		time.Sleep(time.Second)
		st := c.Nodes[0].Dev.Status()
		if !st.Quorum.Quorate {
			t.Fatalf("there is no quorum\n%s", c.Describe())
		}
		if answered(w.done) {
			t.Fatalf("answered by one disk of three\n%s", c.Describe())
		}
		if why := fmt.Sprint(c.Nodes[0].Dev.Why()); !st.Suspended || !strings.Contains(why, "do not get what is written") {
			t.Errorf("it is not said what answers wait for: %s", why)
		}
		c.Flow(2, 0, wire.Bits.Link())
		c.mustAnswer(t, []asked{w})
		c.Rejoin(1)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 8192, 'b')
	})
}
