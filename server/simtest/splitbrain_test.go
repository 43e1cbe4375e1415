package simtest

import (
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
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
			if err := c.Nodes[at].Dev.Resolve(timeout(t, time.Minute), discard); err != nil {
				t.Fatalf("%v\n%s", err, c.Describe())
			}
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
