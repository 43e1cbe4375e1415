package simtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestPolicies is the torture under the other quorums of which any two share a
// node: all nodes, or a number that is more than half of them. Faults pile up, as
// under -wild, in every other history. A seed is replayed with -run Policies -seed
// SEED -seeds 1.
func TestPolicies(t *testing.T) {
	for i := range uint64(*seeds) {
		seed := *first + i
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { policies(t, seed) })
		})
	}
}

func policies(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 31))
	nodes := disksOf(seed, 2+rng.IntN(4))
	q := replication.QuorumPolicy{Kind: replication.QuorumAll}
	if rng.IntN(3) > 0 {
		q = replication.QuorumPolicy{Kind: replication.QuorumCount, N: nodes/2 + 1 + rng.IntN((nodes+1)/2)}
	}
	h := policyHistory(t, rng, Options{
		Nodes: nodes, Size: 4 * mib, Quorum: q, Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond,
		Seed: seed, Extents: 8, ExtentBytes: 64 << 10, Log: testLog(), FailIO: rng.IntN(2) == 0,
	})
	defer h.c.killAll()
	t.Logf("quorum %v of %d nodes", q, nodes)
	for range 4 {
		if seed%2 == 0 {
			for range 4 {
				h.act()
			}
		} else {
			h.write()
			h.fault()
			h.write()
			h.write()
		}
		h.heal()
	}
}

func policyHistory(t *testing.T, rng *rand.Rand, o Options) *history {
	h := &history{t: t, c: New(o), rng: rng, l: newLedger()}
	h.owner = func(int64) *ledger { return h.l }
	if err := h.c.StartAll(); err != nil {
		t.Fatal(err)
	}
	return h
}

func (c *Cluster) killAll() {
	for _, n := range c.Nodes {
		n.Kill()
	}
}

// TestQuorumOff lets nodes go on without each other, which quorum off and quorums
// of half the nodes allow. Where both sides have changed something they say so and
// stay apart, or the policy for that decides; what is discarded in the end is all
// of one side's, and nothing is lost where nobody has spoken of a split brain. A
// seed is replayed with -run QuorumOff -seed SEED -seeds 1.
func TestQuorumOff(t *testing.T) {
	split := 0
	for i := range uint64(*seeds) {
		seed := *first + i
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { split += goApart(t, seed) })
		})
	}
	t.Logf("%d split brains", split)
	if *seeds >= 12 && split == 0 {
		t.Error("there was no split brain")
	}
}

// goApart is one such history. It returns how many split brains were met.
func goApart(t *testing.T, seed uint64) (split int) {
	rng := rand.New(rand.NewPCG(seed, 37))
	o := Options{
		Nodes: 2, Size: 4 * mib, Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond,
		Seed: seed, Extents: 8, ExtentBytes: 64 << 10, Log: testLog(),
	}
	pick := func(words ...string) string { return words[rng.IntN(len(words))] }
	if rng.IntN(2) == 0 {
		o.Split = replication.SplitPolicy{
			None: pick("disconnect", "discard-younger-primary", "discard-older-primary", "discard-zero-changes", "discard-least-changes"),
			One:  pick("disconnect", "consensus", "discard-secondary", "call-pri-lost-after-sb", "violently-as0p"),
			Two:  pick("disconnect", "call-pri-lost-after-sb", "violently-as0p"),
		}
	}
	h := policyHistory(t, rng, o)
	defer h.c.killAll()
	h.synced() // what never met is two devices
	t.Logf("policies %+v", o.Split)
	for range 4 {
		before := h.c.spoken()
		for range 4 {
			h.actApart()
		}
		if h.rng.IntN(2) == 0 {
			h.demoteAll()
		}
		split += h.meet(before)
	}
	return split
}

// actApart does something to the cluster, and writes through any node that lets it.
func (h *history) actApart() {
	n := h.node()
	switch h.rng.IntN(6) {
	case 0:
		n.Kill()
	case 1, 2:
		if n.Dev == nil {
			h.start(n)
		}
	case 3:
		h.c.Isolate(n.ID)
	case 4:
		h.c.Rejoin(n.ID)
	}
	if n = h.node(); n.Dev == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if n.Dev.Promote(ctx, false) != nil {
		return
	}
	for range h.rng.IntN(8) {
		wctx, wcancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		h.l.write(wctx, n, int64(h.rng.IntN(tortureBlocks)))
		wcancel()
	}
}

func (h *history) demoteAll() {
	for _, n := range h.c.Nodes {
		if n.Dev != nil {
			ctx, cancel := context.WithTimeout(context.Background(), time.Second)
			_ = n.Dev.Demote(ctx)
			cancel()
		}
	}
}

// splitNow reports whether a node says that it is split from a peer.
func (n *Node) splitNow() bool {
	for _, p := range n.Dev.Status().Peers {
		if p.Refused != "" && p.Decision.Action == replication.SplitBrain {
			return true
		}
	}
	return false
}

// spoken is how many events of a split brain there were so far.
func (c *Cluster) spoken() (k int) {
	for _, n := range c.Nodes {
		n.mu.Lock()
		for _, e := range n.events {
			if e.Type == "split-brain" {
				k++
			}
		}
		n.mu.Unlock()
	}
	return k
}

// meet brings all nodes together, ends a split brain that is left to a person, and
// holds the disks to what they held before. Of a split brain somebody has spoken
// since there were so many events of that.
func (h *history) meet(before int) (split int) {
	var was []*storetest.Image
	for _, n := range h.c.Nodes {
		if n.Dev == nil {
			h.start(n)
		}
		was = append(was, n.Disk.Fork())
	}
	h.c.Heal(0, 1)
	time.Sleep(5 * time.Second)
	a, b := h.c.Nodes[0], h.c.Nodes[1]
	if a.splitNow() != b.splitNow() {
		h.t.Fatalf("one side knows of a split brain and the other does not\n%s", h.c.Describe())
	}
	winner := -1
	if a.splitNow() {
		if h.c.spoken() == before {
			h.t.Fatalf("nobody has spoken of the split brain\n%s", h.c.Describe())
		}
		winner = h.resolve(h.rng.IntN(2))
	}
	h.synced()
	h.settle()
	h.synced()
	h.compare()
	if winner >= 0 || h.c.spoken() > before {
		h.mustBeOneOf(winner, was)
		h.adopt()
		return 1
	}
	if err := h.l.check(func(off int64, p []byte) { a.Disk.Peek(p, off) }); err != nil {
		h.t.Fatalf("nobody spoke of a split brain, and %v\n%s", err, h.c.Describe())
	}
	h.adopt()
	return 0
}

// resolve discards what one node has, by the word of either. It returns the
// winner, or -1 where there was no need.
func (h *history) resolve(stays int) (winner int) {
	n, loser := h.c.Nodes[stays], h.c.Nodes[1-stays]
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := loser.Dev.Demote(ctx); err != nil {
		h.t.Fatalf("demote: %v\n%s", err, h.c.Describe())
	}
	time.Sleep(time.Second)
	if !loser.splitNow() {
		return -1 // one side had nothing to discard, or the policy for one primary fewer has decided
	}
	discard := false
	if h.rng.IntN(2) == 0 {
		n, discard = loser, true
	}
	if err := n.Dev.Resolve(ctx, discard); err != nil {
		h.t.Fatalf("resolve: %v\n%s", err, h.c.Describe())
	}
	return stays
}

// mustBeOneOf: the disks are what that of the winner was, or of either where a
// policy chose; never some of both.
func (h *history) mustBeOneOf(winner int, was []*storetest.Image) {
	for i, im := range was {
		if _, same := im.Equal(h.c.Nodes[0].Disk); same && (winner < 0 || i == winner || h.c.opts.Split != replication.SplitPolicy{}) {
			return
		}
	}
	h.t.Fatalf("after a split brain the disks are neither side's as it was\n%s", h.c.Describe())
}

// adopt begins the account anew with what there is.
func (h *history) adopt() {
	l := newLedger()
	l.next = h.l.next
	for blk := range int64(tortureBlocks) {
		p := make([]byte, 8)
		h.c.Nodes[0].Disk.Peek(p, blk*7*4096)
		l.acked[blk] = uint64(p[0]) | uint64(p[1])<<8 | uint64(p[2])<<16 | uint64(p[3])<<24
	}
	h.l = l
}
