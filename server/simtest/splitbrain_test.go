package simtest

import (
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// splitCluster is two nodes that were both written while they were apart: n1
// more than n0.
func splitCluster(t *testing.T, p replication.SplitPolicy, f func(t *testing.T, c *Cluster)) {
	t.Helper()
	o := three()
	o.Nodes, o.Quorum, o.Split = 2, replication.QuorumPolicy{}, p
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustSync(t, 1)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', mib)
		time.Sleep(5 * time.Second) // a background flush makes it stable
		c.Cut(0, 1)
		c.mustWrite(t, 0, 0, 'b', 8192)
		time.Sleep(time.Second)
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 4096, 'c', 64<<10)
		f(t, c)
	})
}

// mustRefuse waits until both sides know of their split brain.
func (c *Cluster) mustRefuse(t *testing.T) {
	t.Helper()
	for range 100 {
		if c.Nodes[0].Dev.Status().Peers[0].Refused != "" && c.Nodes[1].Dev.Status().Peers[0].Refused != "" {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("no split brain\n%s", c.Describe())
}

func (c *Cluster) mustResolve(t *testing.T, n int, discard bool) {
	t.Helper()
	if err := c.Nodes[n].Dev.Resolve(timeout(t, time.Minute), discard); err != nil {
		t.Fatalf("%v\n%s", err, c.Describe())
	}
}

func (c *Cluster) first(n int) byte {
	p := make([]byte, 1)
	c.Nodes[n].Disk.Peek(p, 4096)
	return p[0]
}

// TestASplitBrainIsResolvedByHand from the side that loses, and from the one
// that stays; by bitmap; and it is explained before.
func TestASplitBrainIsResolvedByHand(t *testing.T) {
	for _, discard := range []bool{true, false} {
		splitCluster(t, replication.SplitPolicy{}, func(t *testing.T, c *Cluster) {
			c.Heal(0, 1)
			c.mustRefuse(t)
			h, err := c.Nodes[0].Dev.DryHandshake(timeout(t, time.Minute), "n1")
			if err != nil || h.Decision.Action != replication.SplitBrain || h.Mine != 8192 || h.Theirs != 64<<10 {
				t.Fatalf("%+v, %v", h, err)
			}
			if err := c.Nodes[0].Dev.Resolve(timeout(t, time.Minute), true); err == nil || !strings.Contains(err.Error(), "device demote") {
				t.Fatalf("a primary's changes discarded: %v", err)
			}
			if err := c.Nodes[1].Dev.Resolve(timeout(t, time.Minute), false); err == nil || !strings.Contains(err.Error(), "device demote") {
				t.Fatalf("a primary's changes discarded from afar: %v", err)
			}
			if err := c.Nodes[0].Dev.Demote(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			l := c.begin(t, 1) // the side that stays is in use
			at := 1
			if discard {
				at = 0
			}
			c.mustResolve(t, at, discard)
			c.until(t, 0, "resynced", is(replication.UpToDate))
			c.mustSync(t, 1)
			l.end()
			c.mustSync(t, 1)
			c.mustEqual(t)
			sent := c.Nodes[1].Dev.Status().Stats.ResyncBytes
			if sent > mib/2 {
				t.Errorf("%d bytes were resynced for some 70 KiB that differ", sent)
			}
			if err := c.Nodes[1].Dev.Resolve(timeout(t, time.Minute), true); err == nil {
				t.Error("resolved what is not split")
			}
		})
	}
}

// TestSplitBrainPolicies: what the configuration says is done, at once.
func TestSplitBrainPolicies(t *testing.T) {
	for _, tc := range []struct {
		policy  replication.SplitPolicy
		primary int // still primary when they meet; -1: nobody
		want    byte
	}{
		{replication.SplitPolicy{None: "discard-least-changes"}, -1, 'c'},
		{replication.SplitPolicy{None: "discard-younger-primary"}, -1, 'b'},
		{replication.SplitPolicy{None: "discard-older-primary"}, -1, 'c'},
		{replication.SplitPolicy{One: "discard-secondary"}, 0, 'b'},
		{replication.SplitPolicy{One: "discard-secondary"}, 1, 'c'},
		{replication.SplitPolicy{None: "discard-least-changes", One: "violently-as0p"}, 0, 'c'},
		{replication.SplitPolicy{None: "discard-least-changes", Two: "violently-as0p"}, 2, 'c'},
		{replication.SplitPolicy{None: "discard-zero-changes"}, -1, 0},
		{replication.SplitPolicy{None: "discard-least-changes", One: "consensus"}, 0, 0},
		{replication.SplitPolicy{None: "discard-least-changes", Two: "call-pri-lost-after-sb"}, 2, 0},
		{replication.SplitPolicy{None: "discard-least-changes"}, 2, 0},
	} {
		splitCluster(t, tc.policy, func(t *testing.T, c *Cluster) {
			for i, n := range c.Nodes {
				if i == tc.primary || tc.primary == 2 {
					continue
				}
				if err := n.Dev.Demote(timeout(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
			}
			c.Heal(0, 1)
			if tc.want == 0 {
				c.mustRefuse(t)
				return
			}
			for n := range c.Nodes {
				c.mustSync(t, n)
			}
			c.mustEqual(t)
			if got := c.first(0); got != tc.want {
				t.Errorf("%+v: %q stays, want %q\n%s", tc.policy, got, tc.want, c.Describe())
			}
		})
	}
}

// TestAPrimaryYieldsWhileItIsDemoted: it is then what it was to become.
func TestAPrimaryYieldsWhileItIsDemoted(t *testing.T) {
	o := three()
	o.Quorum, o.Delay = replication.QuorumPolicy{}, 20*time.Millisecond
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustSync(t, 1)
		c.Isolate(0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 8192)
		c.mustPromote(t, 1)
		c.Stall(1, 2, wire.Data) // what it has n2 make durable
		c.Rejoin(0)
		c.mustRefuse(t)
		c.mustDemote(t, 0)
		if err := c.Nodes[1].Dev.Demote(timeout(t, 10*time.Second)); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		if c.Nodes[1].told("role", "yielding the primary role") == 0 {
			t.Fatalf("it has not yielded\n%s", c.Describe())
		}
		c.Flow(1, 2, wire.Data)
		c.mustSync(t, 1)
		c.mustEqual(t)
	})
}

// threeApart is three nodes each of which was written while it was alone.
func threeApart(t *testing.T, c *Cluster) {
	t.Helper()
	for n := range 3 {
		c.mustSync(t, n)
	}
	for n := range 3 {
		c.Isolate(n)
	}
	for n := range 3 {
		c.mustPromote(t, n)
		c.mustWrite(t, n, 4096, byte('a'+n), 8192)
		c.mustDemote(t, n)
	}
}

// TestNothingIsDiscardedForAMixture: what a disk held is gone, and what it is to hold is
// not there yet.
func TestNothingIsDiscardedForAMixture(t *testing.T) {
	o := three()
	o.Quorum = replication.QuorumPolicy{}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		threeApart(t, c)
		c.Heal(0, 1)
		time.Sleep(2 * time.Second)
		c.Stall(1, 0, wire.Data)
		c.mustResolve(t, 0, true)
		time.Sleep(2 * time.Second)
		c.Heal(0, 2)
		time.Sleep(2 * time.Second)
		for _, x := range []struct {
			node    int
			discard bool
		}{{0, false}, {2, true}} {
			if err := c.Nodes[x.node].Dev.Resolve(timeout(t, time.Minute), x.discard); err == nil || !strings.Contains(err.Error(), "mixture") {
				t.Fatalf("n%d, discard=%v: %v\n%s", x.node, x.discard, err, c.Describe())
			}
		}
		c.mustResolve(t, 0, true)
		c.Flow(1, 0, wire.Data)
		c.Heal(1, 2)
		time.Sleep(2 * time.Second)
		c.mustResolve(t, 1, true)
		for n := range 3 {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
	})
}

// TestADiscardedDiskHasASourceThatStays: each of three nodes discards its changes for
// the next one's, and none knows of the others' choice when it can begin. Were all to
// begin, no disk would be complete any more.
func TestADiscardedDiskHasASourceThatStays(t *testing.T) {
	o := three()
	o.Quorum = replication.QuorumPolicy{}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		threeApart(t, c)
		next := func(n int) int { return (n + 1) % 3 }
		for n := range 3 {
			c.Heal(n, next(n))
			time.Sleep(2 * time.Second)
			c.Stall(next(n), n, wire.Meta) // nothing comes of it yet
			c.mustResolve(t, n, true)
			time.Sleep(2 * time.Second)
		}
		for n := range 3 {
			c.Flow(next(n), n, wire.Meta)
		}
		for range 10_000 {
			complete := 0
			for _, n := range c.Nodes {
				if n.Dev.Status().Disk > replication.Inconsistent {
					complete++
				}
			}
			if complete == 0 {
				t.Fatalf("no disk is complete\n%s", c.Describe())
			}
			time.Sleep(100 * time.Microsecond)
		}
		for n := range 3 { // what nobody said is to go may be left of two of them
			if c.Nodes[n].splitFrom() != 0 {
				c.mustResolve(t, n, false)
				time.Sleep(time.Minute)
			}
		}
		for n := range 3 {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
	})
}

// TestAReplicaGoesOverToAnotherPrimary by an administrator's word, and what the one that
// it followed writes from then on is not written to it.
func TestAReplicaGoesOverToAnotherPrimary(t *testing.T) {
	o := three()
	o.Quorum = replication.QuorumPolicy{}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		for n := range 3 {
			c.mustSync(t, n)
		}
		c.Isolate(1)
		c.mustPromote(t, 0)
		c.mustPromote(t, 1)
		c.mustWrite(t, 0, 4096, 'a', 8192)
		c.mustWrite(t, 1, 4096, 'b', 8192)
		c.Heal(1, 2)
		time.Sleep(2 * time.Second)
		c.Stall(1, 2, wire.Data) // the resync takes its time
		c.mustResolve(t, 2, true)
		for range 20 {
			c.mustWrite(t, 0, 64<<10, 'c', 8192)
			time.Sleep(time.Millisecond)
		}
		c.Flow(1, 2, wire.Data)
		time.Sleep(2 * time.Second)
		c.mustWrite(t, 0, 64<<10, 'd', 8192)
		time.Sleep(2 * time.Second)
		if off, same := c.Nodes[2].Disk.Equal(c.Nodes[1].Disk); !same {
			t.Fatalf("n2 is not what n1 is at %d\n%s", off, c.Describe())
		}
		if c.Nodes[0].splitFrom() != replication.Of(2) {
			t.Fatalf("n0 does not know that n2 has left it\n%s", c.Describe())
		}
	})
}

// TestTwoPrimariesOneWithoutADisk: no policy has one resynced that has no disk. They wait
// for one of them to be demoted.
func TestTwoPrimariesOneWithoutADisk(t *testing.T) {
	for _, one := range []string{"disconnect", "discard-secondary", "violently-as0p"} {
		o := disklessFirst(3)
		o.Quorum = replication.QuorumPolicy{}
		o.Split = replication.SplitPolicy{None: "discard-older-primary", One: one, Two: "violently-as0p"}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			c.Isolate(1)
			c.mustPromote(t, 1)
			c.mustWrite(t, 0, 0, 'b', 4096)
			c.mustWrite(t, 1, 4096, 'c', 4096)
			c.Rejoin(1)
			time.Sleep(5 * time.Second)
			for i, n := range c.Nodes[:2] {
				if r := n.Dev.Status().Peers[0].Refused; r == "" {
					t.Errorf("%s: node %d takes the other for agreed\n%s", one, i, c.Describe())
				}
			}
			c.mustDemote(t, 1)
			c.mustResolve(t, 1, true)
			c.mustAllSync(t)
			c.mustEqual(t)
			if got := c.first(1); got != 0 {
				t.Errorf("%s: what was discarded is there: %q", one, got)
			}
		})
	}
}
