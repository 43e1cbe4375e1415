package simtest

import (
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestPolicies is the torture under the other quorums of which any two share a
// node: all nodes, or a number that is more than half of them. Faults pile up, as
// under -wild, in every other history. A seed is replayed with -run Policies -seed
// SEED -seeds 1.
func TestPolicies(t *testing.T) {
	histories(t, *seeds, policies)
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
		Seed: seed, Uneven: unevenOf(seed), Extents: 8, ExtentBytes: 64 << 10, Log: testLog(), FailIO: rng.IntN(2) == 0,
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
	if o.Protocol != 0 && o.Protocol != replication.ProtocolC {
		h.early = rand.New(rand.NewPCG(o.Seed, 73))
	}
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
	histories(t, *seeds, func(t *testing.T, seed uint64) { split += goApart(t, seed) })
	t.Logf("%d split brains", split)
	if *seeds >= 12 && split == 0 {
		t.Error("there was no split brain")
	}
}

// goApart is one such history. It returns how many split brains were met.
func goApart(t *testing.T, seed uint64) (split int) {
	rng := rand.New(rand.NewPCG(seed, 37))
	o := Options{
		Nodes: max(2, rng.IntN(5)), Size: 4 * mib, Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond,
		Seed: seed, Uneven: unevenOf(seed), Extents: 8, ExtentBytes: 64 << 10, Log: testLog(),
	}
	if *disks > 0 {
		o.Nodes = *disks
	}
	if o.Nodes%2 == 0 && rng.IntN(2) == 0 {
		o.Quorum = replication.QuorumPolicy{Kind: replication.QuorumCount, N: o.Nodes / 2}
	}
	pick := func(words ...string) string { return words[rng.IntN(len(words))] }
	if rng.IntN(2) == 0 {
		o.Split = replication.SplitPolicy{
			None: pick("disconnect", "discard-younger-primary", "discard-older-primary", "discard-zero-changes", "discard-least-changes"),
			One:  pick("disconnect", "consensus", "discard-secondary", "call-pri-lost-after-sb", "violently-as0p"),
			Two:  pick("disconnect", "call-pri-lost-after-sb", "violently-as0p"),
		}
	}
	if seed%4 == 1 { // a client without a disk
		o.Diskless = replication.Of(o.Nodes)
		o.Nodes++
	}
	early(&o)
	h := policyHistory(t, rng, o)
	defer h.c.killAll()
	h.synced() // what never met is two devices
	t.Logf("quorum %v, policies %+v, protocol %v", o.Quorum, o.Split, o.Protocol)
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
	h.slip()
	switch h.rng.IntN(10) {
	case 0:
		n.Kill()
	case 1, 2:
		h.begin(n)
	case 3:
		h.c.Isolate(n.ID)
	case 4:
		h.c.Rejoin(n.ID)
	case 5:
		if m := h.node(); m != n {
			h.c.Cut(n.ID, m.ID)
		}
	case 6:
		h.c.regroup(n, h.rng, (*Node).Kill, h.begin, func(thirds int) { h.wait(50 * thirds) })
	case 7:
		if n.Disk != nil && h.followed(n) {
			n.Kill()
			n.EmptyDisk(n.Disk.Size())
		}
	}
	h.writeThrough(h.node())
}

// writeThrough promotes a node and, if it lets that, writes a little. It reports whether
// the node is primary.
func (h *history) writeThrough(n *Node) bool {
	if n.Dev == nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if n.Dev.Promote(ctx, false) != nil {
		return false
	}
	h.slip()
	for range h.rng.IntN(8) {
		wctx, wcancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		h.l.write(wctx, n, int64(h.rng.IntN(tortureBlocks)))
		wcancel()
	}
	if h.early != nil && h.early.IntN(3) == 0 {
		fctx, fcancel := context.WithTimeout(context.Background(), 2*time.Second)
		h.l.flush(fctx, n)
		fcancel()
	}
	return true
}

// early draws protocol A or B for a quarter of the histories.
func early(o *Options) {
	if rng := rand.New(rand.NewPCG(o.Seed, 71)); rng.IntN(4) == 0 {
		o.Protocol = []replication.Protocol{replication.ProtocolA, replication.ProtocolB}[rng.IntN(2)]
	}
}

// slip is before a fault, after a promotion, and in the end; see ledger.slip.
func (h *history) slip() {
	if h.early != nil {
		h.l.slip()
	}
}

// begin starts a node that has a disk of the device.
func (h *history) begin(n *Node) {
	if n.Dev == nil && !h.c.without.Has(n.ID) {
		h.start(n)
	}
}

func (h *history) wait(ms int) { time.Sleep(spell(h.rng, time.Duration(ms)*time.Millisecond)) }

// followed reports whether a primary has all that a node's disk has.
func (h *history) followed(n *Node) bool {
	if !h.c.allHeard() || n.Dev == nil || n.Dev.Status().Role == replication.Primary {
		return false
	}
	for _, m := range h.c.Nodes {
		if m == n || m.Dev == nil || !hasAll(m.Dev.Status()) {
			continue
		}
		for _, p := range m.Dev.Status().Peers {
			if p.ID == n.ID && p.Repl == replication.Established {
				return true
			}
		}
	}
	return false
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

// splitFrom is the peers that a node says it is split from, or, for its disk was replaced
// and used alone, that it has nothing in common with.
func (n *Node) splitFrom() (s replication.NodeSet) {
	for _, p := range n.Dev.Status().Peers {
		if p.Refused != "" && (p.Decision.Action == replication.SplitBrain || p.Decision.Action == replication.Unrelated) {
			s = s.With(p.ID)
		}
	}
	return s
}

// spoken is how many events there were so far of nodes that are apart.
func (c *Cluster) spoken() (sum int) {
	for _, n := range c.Nodes {
		sum += n.told("split-brain", "") + n.told("replication", replication.Unrelated.String()+": ")
	}
	return sum
}

// split is the nodes between which there is a split brain. Both sides of each say so.
func (h *history) split() (s replication.NodeSet) {
	with := make([]replication.NodeSet, len(h.c.Nodes))
	for i, n := range h.c.Nodes {
		with[i] = n.splitFrom()
	}
	for i, w := range with {
		for id := range w.All() {
			if !with[id].Has(i) {
				h.t.Fatalf("%s knows of a split brain with %s, which does not\n%s", h.c.Nodes[i].Name, h.c.Nodes[id].Name, h.c.Describe())
			}
			s = s.With(id)
		}
	}
	return s
}

// rest waits until nothing is resynced.
func (h *history) rest() {
	busy := func(n *Node) bool {
		return slices.ContainsFunc(n.Dev.Status().Peers, func(p device.PeerStatus) bool {
			return p.Repl == replication.SyncTarget || p.Repl == replication.SyncSource
		})
	}
	for range 60 {
		time.Sleep(5 * time.Second)
		if !slices.ContainsFunc(h.c.Nodes, busy) {
			return
		}
	}
	h.t.Fatalf("the resyncs come to no end\n%s", h.c.Describe())
}

// meet brings all nodes together, ends a split brain that is left to a person, and
// holds the disks to what they held before. Of a split brain somebody has spoken
// since there were so many events of that.
func (h *history) meet(before int) (split int) {
	h.c.giveBack((*Node).Kill)
	time.Sleep(longestUnheard) // what is under way still changes the disks
	var was []*storetest.Image
	for _, n := range h.c.Nodes {
		if n.Dev != nil {
			if st := n.Dev.Status(); n.Disk == nil || st.Suspended || st.InHand > 0 || st.InFlight > 0 || st.Parked > 0 {
				n.Kill() // what waits for quorum would be made when it is there; and a client alone has nothing to resolve
			}
		}
		if h.begin(n); n.Disk != nil {
			was = append(was, n.Disk.Fork())
		}
	}
	for i := range h.c.Nodes {
		h.c.Rejoin(i)
	}
	h.rest()
	served := false
	if h.split() != 0 {
		if h.c.spoken() == before {
			h.t.Fatalf("nobody has spoken of the split brain\n%s", h.c.Describe())
		}
		var held *storetest.Image
		held, served = h.resolve()
		if held != nil {
			was = []*storetest.Image{held}
		}
	}
	h.synced()
	h.settle()
	h.synced()
	h.compare()
	if h.c.spoken() > before && !served {
		h.mustBeOneOf(was)
		h.adopt(h.c.Nodes[0].Disk)
		return 1
	}
	if served {
		split = 1
	}
	h.slip()
	if err := h.l.check(func(off int64, p []byte) { h.c.Nodes[0].Disk.Peek(p, off) }); err != nil {
		h.t.Fatalf("a client was served to the end, and %v\n%s", err, h.c.Describe())
	}
	h.adopt(h.c.Nodes[0].Disk)
	return split
}

// resolve ends a split brain by the word of one of the nodes that are apart, which
// stays, or of those that it is apart from. It returns what that one held, or nil where
// others may have decided it, or that the one that stays has served a client all the
// while: then the ledger has what it held, and what it answered.
func (h *history) resolve() (held *storetest.Image, served bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	stays := -1
	for range h.c.Nodes { // two whose changes are discarded may be apart, too
		apart := h.split()
		if apart == 0 {
			return held, served
		}
		ids := slices.DeleteFunc(slices.Collect(apart.All()), func(id int) bool {
			return h.c.Nodes[id].Dev.Status().Disk == replication.Inconsistent
		})
		if len(ids) == 0 {
			break
		}
		if !slices.Contains(ids, stays) {
			stays = ids[h.rng.IntN(len(ids))]
		}
		held, served = nil, false
		n := h.c.Nodes[stays]
		for id := range apart.Without(stays).All() {
			if err := h.c.Nodes[id].Dev.Demote(ctx); err != nil {
				h.t.Fatalf("demote: %v\n%s", err, h.c.Describe())
			}
		}
		h.rest()
		from := n.splitFrom()
		if from == 0 {
			continue // one side had nothing to discard, or the policy for one primary fewer has decided
		}
		stop := func() {}
		if h.c.opts.Split == (replication.SplitPolicy{}) {
			held = n.Disk.Fork()
			if h.rng.IntN(2) == 0 {
				pctx, pcancel := context.WithTimeout(ctx, 10*time.Second) // as long as it is told to come again
				if n.Dev.Promote(pctx, false) == nil {
					stop, served = h.serve(n), true
				}
				pcancel()
			}
		}
		if h.rng.IntN(2) == 0 {
			h.discard(ctx, n, false)
		} else {
			for id := range from.All() {
				if m := h.c.Nodes[id]; m.splitFrom() != 0 { // it may have been in sync with one before
					h.discard(ctx, m, true)
				}
			}
		}
		h.rest()
		stop()
	}
	h.t.Fatalf("what is resolved stays apart\n%s", h.c.Describe())
	return nil, false
}

// serve has a client write through a primary, from now on until it is stopped, and begins
// the account anew with what that one's disk holds.
func (h *history) serve(n *Node) (stop func()) {
	h.adopt(n.Disk)
	rng, over := rand.New(rand.NewPCG(h.rng.Uint64(), 41)), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Duration(rng.IntN(20)) * time.Millisecond):
			}
			ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
			h.l.write(ctx, n, int64(rng.IntN(tortureBlocks)))
			cancel()
		}
	})
	return func() {
		close(over)
		wg.Wait()
		h.t.Logf("%d writes were answered while it was resolved", h.l.writes)
	}
}

func (h *history) discard(ctx context.Context, n *Node, own bool) {
	if err := n.Dev.Resolve(ctx, own); err != nil {
		h.t.Fatalf("resolve: %v\n%s", err, h.c.Describe())
	}
}

// mustBeOneOf: the disks are what one of them was, never some of two.
func (h *history) mustBeOneOf(was []*storetest.Image) {
	for _, im := range was {
		if _, same := im.Equal(h.c.Nodes[0].Disk); same {
			return
		}
	}
	h.t.Fatalf("after a split brain the disks are no side's as it was\n%s", h.c.Describe())
}

// adopt begins the account anew with what a disk holds.
func (h *history) adopt(im *storetest.Image) {
	l := newLedger()
	l.next = h.l.next
	for blk := range int64(tortureBlocks) {
		p := make([]byte, 8)
		im.Peek(p, blk*7*4096)
		l.acked[blk] = uint64(p[0]) | uint64(p[1])<<8 | uint64(p[2])<<16 | uint64(p[3])<<24
	}
	maps.Copy(l.durable, l.acked)
	h.l = l
}
