package replication

import (
	"cmp"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

// anyFacts draws facts from a small world, so that all relations come up.
func anyFacts(r *rand.Rand, node int) *Facts {
	gen := func() Gen { return []Gen{NoGen, DayOne, 10, 11, 12, 2<<randomBits + 1}[r.IntN(6)] }
	f := &Facts{
		Node: node, Size: 1 << 20, Disk: []DiskState{Diskless, Inconsistent, Outdated, Consistent, UpToDate}[r.IntN(5)],
		Role: Role(r.IntN(2)), Dirty: int64(r.IntN(2)), Crashed: r.IntN(3) == 0, Live: r.IntN(2) == 0,
		Following: r.IntN(3) == 0, Stream: uint64(r.IntN(3)), Received: uint64(r.IntN(3)), Quorate: r.IntN(2) == 0,
		Primary: r.IntN(3) - 1, Best: r.IntN(4) == 0, Discard: r.IntN(8) == 0, Origin: uint64(max(0, r.IntN(8)-5)),
	}
	if f.Primary == 1-node {
		f.Primary = NoPrimary // a node leaves it to the other to say that it is primary
	}
	f.Gens.Current, f.Gens.Seen = gen(), gen()
	f.Gens.Base = f.Gens.Current
	if r.IntN(4) == 0 {
		f.Gens.Base = gen()
	}
	for i := range 3 {
		f.Gens.Bitmap[i] = gen()
		f.Gens.History[i] = gen()
	}
	f.Gens.Bitmap[node] = NoGen
	return f
}

// TestBothSidesComeToTheSameEnd: a decision needs no further word because the
// other side's is its mirror image.
func TestBothSidesComeToTheSameEnd(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 400_000 {
		a, b := anyFacts(r, 0), anyFacts(r, 1)
		a.Ordered = r.IntN(2) == 0
		b.Ordered = a.Ordered
		da, db := Decide(a, b), Decide(b, a)
		if da.Action != db.Action.Mirror() || da.Yields != db.Yields {
			t.Fatalf("a: %v\nb: %v\n%+v\n%+v", da, db, a, b)
		}
		if da.Sync() && !da.Full() && a.Gens.Current == b.Gens.Current && da.Action == InSync && a.Dirty+b.Dirty > 0 {
			t.Fatalf("differences within a generation are dropped: %v\n%+v\n%+v", da, a, b)
		}
	}
}

// TestNobodyWaitsInACircle: among nodes of one generation the direction is an
// order, so one of them is a target of none.
func TestNobodyWaitsInACircle(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	for range 100_000 {
		var n [3]*Facts
		for i := range n {
			n[i] = anyFacts(r, i)
			n[i].Gens = Gens{Current: 10}
			n[i].Primary = NoPrimary
		}
		first := func(i, j int) bool { s, _ := direction(n[i], n[j]); return s == i }
		if first(0, 1) == first(1, 2) && first(1, 2) == first(2, 0) {
			t.Fatalf("a circle: %+v %+v %+v", n[0], n[1], n[2])
		}
	}
}

// decideRow is a situation of two nodes, 0 and 1, and what node 0 concludes. Node
// 1 has to conclude the mirror image, by the rule there; "": by the same.
type decideRow struct {
	name  string
	set   func(me, peer *Facts)
	want  Action
	rule  string
	there string
}

// apart has both sides written since they were in sync.
func apart(m, p *Facts) {
	m.Gens.Current, p.Gens.Current, m.Gens.Bitmap[1], p.Gens.Bitmap[0] = 11, 12, 9, 9
}

func inOrder(m, p *Facts) { m.Ordered, p.Ordered = true, true }

var decideRows = []decideRow{
	// What cannot be compared.
	{"no disk", func(_, p *Facts) { p.Disk = Diskless }, NoDisk, "no-disk", ""},
	{"no disk on a primary", func(_, p *Facts) { p.Disk, p.Role = Diskless, Primary }, NoDisk, "no-disk", ""},
	{"two primaries, one without a disk", func(m, p *Facts) { m.Role, p.Role, p.Disk = Primary, Primary, Diskless }, SplitBrain, "two-primaries", ""},
	{"two primaries, the one without a disk lost quorum", func(m, p *Facts) { m.Role, p.Role, p.Disk, m.Quorate = Primary, Primary, Diskless, true }, NoDisk, "no-disk", ""},
	{"two primaries, the one with a disk lost quorum", func(m, p *Facts) { m.Role, p.Role, p.Disk, p.Quorate = Primary, Primary, Diskless, true }, NoDisk, "no-disk", ""},
	{"two primaries without quorum, of which the order chooses", func(m, p *Facts) {
		inOrder(m, p)
		m.Role, p.Role, p.Disk, m.Gens.Base = Primary, Primary, Diskless, 10
		p.Gens.Current = NoGen
	}, NoDisk, "no-disk", ""},
	{"without a disk, and following a primary without quorum", func(m, p *Facts) { m.Role, m.Quorate, p.Disk, p.Primary = Primary, true, Diskless, 2 }, Refuse, "rival", ""},
	{"another size", func(_, p *Facts) { p.Size = 8192 }, Refuse, "size", ""},
	{"another origin", func(m, p *Facts) { m.Origin, p.Origin, m.Gens.Base, p.Gens.Base = 1, 2, 10, 10 }, Unrelated, RuleOrigin, ""},
	{"another origin, and the peer has quorum and is later", func(m, p *Facts) {
		inOrder(m, p)
		m.Gens.Base, m.Origin, p.Origin, p.Quorate, p.Role, p.Gens.Current, p.Gens.Base = 10, 1, 2, true, Primary, 99, 99
	}, Unrelated, RuleOrigin, ""},
	{"another origin, and an administrator discards there", func(m, p *Facts) { m.Origin, p.Origin, m.Gens.Base, p.Gens.Base, p.Discard = 1, 2, 10, 10, true }, SourceFull, "discard", ""},
	{"another origin, and an administrator discards here", func(m, p *Facts) { m.Origin, p.Origin, m.Gens.Base, p.Gens.Base, m.Discard = 1, 2, 10, 10, true }, TargetFull, "discard", ""},
	{"another origin, bitmaps of one name, and an administrator discards", func(m, p *Facts) {
		apart(m, p)
		m.Origin, p.Origin, m.Gens.Base, p.Gens.Base, p.Discard = 1, 2, 10, 10, true
	}, SourceFull, "discard", ""},
	{"another origin, and an administrator would discard a primary's", func(m, p *Facts) {
		m.Origin, p.Origin, m.Gens.Base, p.Gens.Base, p.Discard, p.Role = 1, 2, 10, 10, true, Primary
	}, Unrelated, RuleOrigin, ""},
	{"another origin, of a disk that was never written", func(m, p *Facts) { m.Origin, p.Origin, p.Gens.Current = 1, 2, DayOne }, SourceFull, "fresh", ""},
	{"an origin that is not known", func(m, _ *Facts) { m.Origin = 1 }, InSync, "equal", ""},

	// Two primaries.
	{"two primaries", func(m, p *Facts) { m.Role, p.Role = Primary, Primary }, SplitBrain, "two-primaries", ""},
	{"a primary, and one that follows another", func(m, p *Facts) { m.Role, p.Primary = Primary, 2 }, SplitBrain, "two-primaries", ""},
	{"a primary, and one that follows another whose changes are discarded", func(m, p *Facts) {
		apart(m, p)
		m.Role, p.Primary, p.Discard = Primary, 2, true
	}, SourceBits, "discard", ""},
	{"two primaries, and one's changes would be discarded", func(m, p *Facts) { m.Role, p.Role, p.Discard = Primary, Primary, true }, SplitBrain, "two-primaries", ""},
	{"two primaries of one generation, one with quorum", func(m, p *Facts) { m.Role, p.Role, p.Quorate = Primary, Primary, true }, InSync, "equal", ""},
	{"two primaries of one generation, the one without quorum has marks", func(m, p *Facts) { m.Role, p.Role, p.Quorate, m.Dirty = Primary, Primary, true, 1 }, TargetBits, ruleEqual, ""},
	{"two primaries that moved on, one with quorum, quorums not being ordered", func(m, p *Facts) { apart(m, p); m.Role, p.Role, p.Quorate = Primary, Primary, true }, SplitBrain, "two-primaries", ""},
	{"the primary with quorum, quorums not being ordered, is behind the other", func(m, p *Facts) {
		m.Role, p.Role, m.Quorate, p.Gens.Current, p.Gens.Bitmap[0] = Primary, Primary, true, 11, 10
	}, SplitBrain, "two-primaries", ""},
	{"the primary with quorum is behind by number only", func(m, p *Facts) {
		inOrder(m, p)
		m.Role, p.Role, m.Quorate, p.Gens.Current, p.Gens.Base, p.Gens.Bitmap[0] = Primary, Primary, true, 11, 11, 10
	}, SourceFull, "yielding", ""},
	{"two primaries without quorum: the later one goes on", func(m, p *Facts) {
		inOrder(m, p)
		m.Role, p.Role, p.Gens.Current, p.Gens.Base, p.Gens.Bitmap[0] = Primary, Primary, 11, 11, 10
	}, TargetBits, "peer-moved-on", "moved-on"},
	{"two primaries without quorum, of one generation", func(m, p *Facts) { inOrder(m, p); m.Role, p.Role, p.Live = Primary, Primary, true }, InSync, "equal", ""},
	{"a primary without quorum, and one without that follows another", func(m, p *Facts) { inOrder(m, p); p.Role, m.Primary = Primary, 2 }, Refuse, "rival", ""},
	{"the one with quorum is primary, the other follows another", func(m, p *Facts) { m.Role, m.Quorate, p.Primary = Primary, true, 2 }, Refuse, "rival", ""},
	{"the primary lost quorum, the other has it and follows another", func(m, p *Facts) { m.Role, p.Quorate, p.Primary = Primary, true, 2 }, InSync, "equal", ""},

	// Disks that were never written.
	{"two disks of which nothing is known", func(m, p *Facts) { m.Gens.Current, p.Gens.Current = NoGen, NoGen }, NoDisk, "both-unknown", ""},
	{"one of which nothing is known, and a blank one", func(m, p *Facts) { m.Gens.Current, p.Gens.Current = NoGen, DayOne }, NoDisk, "existing", ""},
	{"a disk of which nothing is known", func(_, p *Facts) { p.Gens.Current = NoGen }, SourceFull, "unknown", ""},
	{"a new disk", func(_, p *Facts) { p.Gens.Current = DayOne }, SourceFull, "fresh", ""},
	{"two new disks", func(m, p *Facts) { m.Gens.Current, p.Gens.Current = DayOne, DayOne }, InSync, "equal", ""},
	{"a new disk in the place of one that was left behind by the first generation", func(m, p *Facts) { p.Gens.Current, m.Gens.Bitmap[1], p.Newcomer = DayOne, DayOne, true }, SourceFull, "fresh", ""},
	{"likewise, and it has heard of nothing yet", func(m, p *Facts) { p.Gens.Current, m.Gens.Bitmap[1], m.Origin, p.Origin = DayOne, DayOne, 1, 2 }, SourceFull, "fresh", ""},
	{"a disk as new as this one was", func(m, p *Facts) { p.Gens.Current, m.Gens.Bitmap[1] = DayOne, DayOne }, SourceBits, "moved-on", "peer-moved-on"},

	// One generation.
	{"one generation, nothing dirty", func(_, _ *Facts) {}, InSync, "equal", ""},
	{"one generation, a side stopped with nothing under way", func(m, _ *Facts) { m.Crashed = true }, InSync, "equal-clean", ""},
	{"one generation, dirty here: never dropped", func(m, _ *Facts) { m.Dirty = 1 }, SourceBits, ruleEqual, ""},
	{"one generation, dirty there: never dropped", func(_, p *Facts) { p.Dirty = 1 }, SourceBits, ruleEqual, ""},
	{"dirty, and this side is outdated", func(m, p *Facts) { inOrder(m, p); m.Dirty, m.Disk = 1, Outdated }, TargetBits, ruleEqual, ""},
	{"dirty, and the peer is primary", func(m, p *Facts) { m.Dirty, p.Role = 1, Primary }, TargetBits, ruleEqual, ""},
	{"dirty, and the peer follows the primary", func(m, p *Facts) { m.Dirty, p.Following = 1, true }, TargetBits, ruleEqual, ""},
	{"a crashed primary yields to a survivor", func(m, p *Facts) { m.Dirty, m.Crashed, p.Live = 1, true, true }, TargetBits, ruleEqual, ""},
	{"both stopped: the crashed primary sends", func(_, p *Facts) { p.Dirty, p.Crashed = 1, true }, TargetBits, ruleEqual, ""},
	{"survivors of different primaries", func(m, p *Facts) { m.Dirty, m.Stream, p.Stream, m.Received = 1, 7, 8, 3 }, TargetBits, ruleEqual, ""},
	{"survivors: who received more sends", func(m, p *Facts) { m.Dirty, m.Stream, p.Stream, p.Received = 1, 7, 7, 3 }, TargetBits, ruleEqual, ""},
	{"the peer's resync was interrupted", func(_, p *Facts) { p.Disk = Inconsistent }, SourceBits, "peer-inconsistent", "self-inconsistent"},
	{"two mixtures", func(m, p *Facts) { m.Disk, p.Disk = Inconsistent, Inconsistent }, NoDisk, "both-inconsistent", ""},
	{"one generation, the peer knows of newer data, and this one was told otherwise", func(m, p *Facts) { m.Best, p.Disk = true, Outdated }, InSync, "equal", ""},
	{"one generation, and the peer knows of newer data", func(_, p *Facts) { p.Disk = Outdated }, SelfOutdated, "equal-outdated", ""},
	{"one generation, the peer takes itself for outdated, and there is quorum here", func(m, p *Facts) { p.Disk, m.Quorate = Outdated, true }, InSync, "equal", ""},
	{"one generation, and the peer was left behind: quorum here, where another may have one, tells nothing", func(m, p *Facts) { p.Disk, m.Quorate, p.Gens.Noted = Outdated, true, 2<<randomBits }, SelfOutdated, "equal-outdated", ""},
	{"one generation, and the peer was left behind by this very primary", func(m, p *Facts) { p.Disk, m.Role, m.Stream, p.Stream, p.Dirty = Outdated, Primary, 7, 7, 1 }, SourceBits, ruleEqual, ""},
	{"one generation, outdated, where what one has heard of both have", func(m, p *Facts) { inOrder(m, p); p.Disk = Outdated }, InSync, "equal", ""},

	// Generations of which one comes from the other.
	{"the primary announced what the peer has noted", func(m, p *Facts) { m.Role, m.Announced, p.Gens.Current = Primary, 11, 11 }, SourceBits, "announced", ""},
	{"the peer moved on", func(_, p *Facts) { p.Gens.Current, p.Gens.Bitmap[0] = 11, 10 }, TargetBits, "peer-moved-on", "moved-on"},
	{"in the past, no bitmap", func(_, p *Facts) { p.Gens.Current, p.Gens.History[0] = 12, 10 }, TargetFull, "peer-history", "history"},
	{"a bitmap kept for another node", func(_, p *Facts) { p.Gens.Current, p.Gens.Bitmap[5] = 12, 10 }, TargetFull, "peer-history", "history"},
	{"in the past, and the bitmap is of before it", func(m, p *Facts) {
		m.Gens.Current, p.Gens.Current, p.Gens.History[0], p.Gens.Bitmap[0] = numbered(2, 7), numbered(3, 7), numbered(2, 7), numbered(1, 7)
	}, TargetBits, "peer-reaches-back", "reaches-back"},
	{"in the past, and the bitmap is of day one", func(m, p *Facts) {
		m.Gens.Current, p.Gens.Current, p.Gens.History[0], p.Gens.Bitmap[0] = numbered(2, 7), numbered(3, 7), numbered(2, 7), DayOne
	}, TargetBits, "peer-reaches-back", "reaches-back"},
	{"in the past, and the bitmap is of after it", func(m, p *Facts) {
		m.Gens.Current, p.Gens.Current, p.Gens.History[0], p.Gens.Bitmap[0] = numbered(1, 7), numbered(3, 7), numbered(1, 7), numbered(2, 7)
	}, TargetFull, "peer-history", "history"},
	{"in the past, and the bitmap is of another of its number", func(m, p *Facts) {
		m.Gens.Current, p.Gens.Current, p.Gens.History[0], p.Gens.Bitmap[0] = numbered(2, 7), numbered(3, 7), numbered(2, 7), numbered(2, 6)
	}, TargetFull, "peer-history", "history"},
	{"each in the other's past", func(m, p *Facts) { p.Gens.Current, p.Gens.History[0], m.Gens.History[0] = 12, 10, 12 }, SplitBrain, "crossed", ""},
	{"each the other's slot", func(m, p *Facts) { p.Gens.Current, p.Gens.Bitmap[0], m.Gens.Bitmap[1] = 12, 10, 12 }, SplitBrain, "crossed", ""},
	{"both moved on, quorum off", apart, SplitBrain, "diverged", ""},
	{"both moved on, and remember whence", func(m, p *Facts) {
		m.Gens.Current, p.Gens.Current, m.Gens.History[0], p.Gens.History[3] = 11, 12, 9, 9
	}, SplitBrain, "diverged", ""},
	{"both moved on, one of them in what never came into force", func(m, p *Facts) { apart(m, p); m.Gens.Base, p.Gens.Base = 9, 12 }, TargetBits, "tentative", ""},
	{"both moved on, one of them in what never came into force, and no bitmap is shared", func(m, p *Facts) {
		apart(m, p)
		m.Gens.Base, p.Gens.Base, m.Gens.Bitmap[1], m.Gens.History[0] = 11, 9, 8, 9
	}, SourceFull, "tentative", ""},
	{"both moved on, one of them in what never came into force, from what the other has nothing of", func(m, p *Facts) {
		apart(m, p)
		m.Gens.Base, p.Gens.Base = 10, 12
	}, SplitBrain, "diverged", ""},
	{"both moved on, one of them in what never came into force, from what the other is in", func(m, p *Facts) {
		apart(m, p)
		m.Gens.Base, p.Gens.Base = 12, 12
	}, TargetBits, "tentative", ""},
	{"both moved on, in what never came into force, from one that did", func(m, p *Facts) {
		apart(m, p)
		m.Gens.Base, p.Gens.Base = 9, 9
	}, TargetBits, "both-tentative", ""},
	{"both moved on, in what never came into force, and one is outdated", func(m, p *Facts) {
		apart(m, p)
		m.Gens.Base, p.Gens.Base, p.Disk = 9, 9, Outdated
	}, SourceBits, "both-tentative", ""},
	{"both moved on, in what never came into force, and one is primary", func(m, p *Facts) {
		apart(m, p)
		m.Gens.Base, p.Gens.Base, m.Role = 9, 9, Primary
	}, SourceBits, "both-tentative", ""},
	{"both moved on, in what never came into force, and one is a mixture", func(m, p *Facts) {
		apart(m, p)
		m.Gens.Base, p.Gens.Base, m.Disk, p.Disk = 9, 9, Outdated, Inconsistent
	}, SourceBits, "both-tentative", ""},
	{"both moved on, in what never came into force, before anything was written", func(m, p *Facts) {
		apart(m, p)
		m.Gens.Base, p.Gens.Base, m.Gens.Bitmap[1], p.Gens.Bitmap[0] = DayOne, DayOne, DayOne, DayOne
	}, TargetBits, "both-tentative", ""},
	{"both moved on, in what never came into force, from different ones", func(m, p *Facts) {
		apart(m, p)
		m.Gens.Base, p.Gens.Base = 9, 8
	}, SplitBrain, "diverged", ""},
	{"both moved on, the peer has quorum, quorums not being ordered", func(m, p *Facts) { apart(m, p); p.Quorate = true }, SplitBrain, "diverged", ""},
	{"a divergence, and what is to be discarded is a mixture", func(m, p *Facts) { apart(m, p); p.Discard, p.Disk = true, Inconsistent }, SourceBits, "discard", ""},
	{"a divergence, and what is to stay is a mixture", func(m, p *Facts) { apart(m, p); p.Discard, m.Disk = true, Inconsistent }, SplitBrain, "diverged", ""},
	{"a divergence that an administrator resolved", func(m, p *Facts) { apart(m, p); p.Discard = true }, SourceBits, "discard", ""},
	{"a divergence that an administrator resolved on both sides", func(m, p *Facts) { apart(m, p); m.Discard, p.Discard = true, true }, SplitBrain, "diverged", ""},
	{"nothing in common", func(_, p *Facts) { p.Gens.Current = 99 }, Unrelated, "unrelated", ""},
	{"nothing in common, and an administrator discards here", func(m, p *Facts) { m.Discard, p.Gens.Current = true, 99 }, TargetFull, "discard", ""},

	// Where the generations in force are a chain.
	{"in order: the peer moved on", func(m, p *Facts) {
		inOrder(m, p)
		m.Gens.Base, p.Gens.Current, p.Gens.Base, p.Gens.Bitmap[0] = 10, 11, 11, 10
	}, TargetBits, "peer-moved-on", "moved-on"},
	{"in order: both moved on, and the peer's came into force later", func(m, p *Facts) {
		inOrder(m, p)
		apart(m, p)
		m.Gens.Base, p.Gens.Base = 9, 12
	}, TargetBits, "later", ""},
	{"in order: both moved on, and neither came into force", func(m, p *Facts) {
		inOrder(m, p)
		apart(m, p)
		m.Gens.Base, p.Gens.Base = 9, 9
	}, TargetBits, "later", ""},
	{"in order: both moved on, neither came into force, and this one is primary", func(m, p *Facts) {
		inOrder(m, p)
		apart(m, p)
		m.Gens.Base, p.Gens.Base, m.Role = 9, 9, Primary
	}, SourceBits, "later", ""},
	{"in order: what the peer moved on to is not in force, and this one's is newer", func(m, p *Facts) {
		inOrder(m, p)
		p.Gens.Current, p.Gens.Bitmap[0], m.Gens.Base, p.Gens.Base = 11, 10, 10, 9
	}, SourceFull, "later", ""},

	// Sources that are mixtures.
	{"behind a mixture", func(_, p *Facts) { p.Disk, p.Gens.Current, p.Gens.Bitmap[0] = Inconsistent, 11, 10 }, SelfOutdated, "peer-moved-on-mixture", "moved-on-mixture"},
	{"behind a mixture, with quorum", func(m, p *Facts) {
		p.Disk, p.Gens.Current, p.Gens.Bitmap[0], m.Quorate = Inconsistent, 11, 10, true
	}, SourceFull, "last-complete", ""},
	{"behind a mixture, and every disk was asked", func(m, p *Facts) {
		p.Disk, p.Gens.Current, p.Gens.Bitmap[0], m.Best, m.Disk = Inconsistent, 11, 10, true, Consistent
	}, SourceFull, "last-complete", ""},
	{"behind a mixture of what never came into force", func(m, p *Facts) {
		p.Disk, p.Gens.Current, p.Gens.Bitmap[0], m.Gens.Base, p.Gens.Base = Inconsistent, 11, 10, 10, 10
	}, SourceFull, "last-complete", ""},
	{"in order: behind a mixture of what never came into force", func(m, p *Facts) {
		inOrder(m, p)
		p.Disk, p.Gens.Current, p.Gens.Bitmap[0] = Inconsistent, 11, 10
		m.Gens.Base, p.Gens.Base, m.Gens.Seen, p.Gens.Seen = 10, 10, 10, 10
	}, SourceFull, "last-complete", ""},
	{"in order: behind a mixture", func(m, p *Facts) {
		inOrder(m, p)
		g := numbered(1, 1)
		p.Disk, p.Gens.Current, p.Gens.Base, p.Gens.Seen, p.Gens.Bitmap[0] = Inconsistent, g, g, g, 10
		m.Gens.Base, m.Gens.Seen = 10, 10
	}, SelfOutdated, "peer-moved-on-mixture", "moved-on-mixture"},
	{"a mixture that is ahead", func(m, _ *Facts) { m.Disk, m.Gens.Current, m.Gens.Bitmap[1] = Inconsistent, 11, 10 }, PeerOutdated, "moved-on-mixture", "peer-moved-on-mixture"},
	{"two mixtures of which one is behind the other", func(m, p *Facts) {
		m.Disk, p.Disk, p.Gens.Current, p.Gens.Bitmap[0] = Inconsistent, Inconsistent, 11, 10
	}, NoDisk, "both-inconsistent", ""},
	{"a mixture that is behind", func(m, p *Facts) { m.Disk, p.Gens.Current, p.Gens.Bitmap[0] = Inconsistent, 11, 10 }, TargetBits, "peer-moved-on", "moved-on"},
}

// facts are those of the row.
func (row *decideRow) facts() (me, peer *Facts) {
	f := func(node int) *Facts {
		return &Facts{Node: node, Size: 4096, Disk: UpToDate, Primary: NoPrimary, Gens: Gens{Current: 10}}
	}
	me, peer = f(0), f(1)
	row.set(me, peer)
	return me, peer
}

func TestDecide(t *testing.T) {
	for _, row := range decideRows {
		t.Run(row.name, func(t *testing.T) {
			me, peer := row.facts()
			if d := Decide(me, peer); d.Action != row.want || d.Rule != row.rule {
				t.Errorf("%v, want %v by %s", d, row.want, row.rule)
			}
			if d := Decide(peer, me); d.Action != row.want.Mirror() || d.Rule != cmp.Or(row.there, row.rule) {
				t.Errorf("on the other side %v, want %v by %s", d, row.want.Mirror(), cmp.Or(row.there, row.rule))
			}
		})
	}
}

// TestYields: of two primaries one yields, and the word on it is the same on
// both sides.
func TestYields(t *testing.T) {
	for _, row := range decideRows {
		me, peer := row.facts()
		here, there := Decide(me, peer), Decide(peer, me)
		two := me.Role == Primary && peer.Role == Primary
		if here.Yields != there.Yields {
			t.Errorf("%s: %v here, %v there", row.name, here.Yields, there.Yields)
		}
		if together := here.Action != SplitBrain && here.Action != Unrelated && here.Action != Refuse; two && together != (here.Yields.Len() == 1) {
			t.Errorf("%s: both are primary, %v, and %v yield", row.name, here.Action, here.Yields)
		}
		if loser := here.Yields; loser != 0 && !(loser.Has(0) && me.Role == Primary || loser.Has(1) && peer.Role == Primary) {
			t.Errorf("%s: %v yield and are no primaries", row.name, loser)
		}
	}
}

// TestEveryRuleHasARow: a rule that is added to the source without a row in the
// table fails.
func TestEveryRuleHasARow(t *testing.T) {
	named, suffixes := rulesIn(t, "decide.go")
	rows := map[string]bool{}
	for _, row := range decideRows {
		rows[row.rule], rows[cmp.Or(row.there, row.rule)] = true, true
	}
	for rule := range named {
		if !rows[rule] {
			t.Errorf("no row of the table is decided by rule %q", rule)
		}
	}
	used := map[string]bool{}
	for rule := range rows {
		base := rule
		for _, s := range suffixes {
			if b, ok := strings.CutSuffix(rule, s); ok {
				base, used[s] = b, true
			}
		}
		if !named[base] {
			t.Errorf("the table has rule %q, and the source has not", rule)
		}
	}
	for _, s := range suffixes {
		if !used[s] {
			t.Errorf("no row of the table is decided by a rule that ends in %q", s)
		}
	}
}

// rulesIn is every name of a rule in a source file, and every ending that is put
// to one.
func rulesIn(t *testing.T, file string) (named map[string]bool, suffixes []string) {
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	text := func(e ast.Expr) string {
		lit, ok := e.(*ast.BasicLit)
		if !ok {
			t.Fatalf("the name of a rule is neither a literal nor a constant: %#v", e)
		}
		s, err := strconv.Unquote(lit.Value)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	consts := map[string]ast.Expr{}
	ast.Inspect(f, func(n ast.Node) bool {
		if v, ok := n.(*ast.ValueSpec); ok && len(v.Values) == len(v.Names) {
			for i, name := range v.Names {
				consts[name.Name] = v.Values[i]
			}
		}
		return true
	})
	named = map[string]bool{}
	ast.Inspect(f, func(n ast.Node) bool {
		kv, ok := n.(*ast.KeyValueExpr)
		if !ok {
			return true
		}
		if key, ok := kv.Key.(*ast.Ident); !ok || key.Name != "Rule" {
			return true
		}
		switch v := kv.Value.(type) {
		case *ast.Ident:
			named[text(consts[v.Name])] = true
		case *ast.BinaryExpr:
			suffixes = append(suffixes, text(v.Y))
		default:
			named[text(v)] = true
		}
		return true
	})
	return named, suffixes
}

func TestQuorum(t *testing.T) {
	majority := QuorumPolicy{Kind: QuorumMajority}
	for _, tt := range []struct {
		name string
		p    QuorumPolicy
		c    Census
		want bool
	}{
		{"2 of 3", majority, Census{UpToDate: 2, Unknown: 1}, true},
		{"1 of 3", majority, Census{UpToDate: 1, Unknown: 2}, false},
		{"1 of 2", majority, Census{UpToDate: 1, Unknown: 1}, false},
		{"1 of 2 and a tiebreaker that keeps", majority, Census{UpToDate: 1, Unknown: 1, TiebreakersPresent: 1, Had: true}, true},
		{"1 of 2 and a tiebreaker that cannot give", majority, Census{UpToDate: 1, Unknown: 1, TiebreakersPresent: 1}, false},
		{"one of two, and the other's node without its disk", majority, Census{UpToDate: 1, Idle: 1}, true},
		{"one of three, and the others' nodes without theirs", majority, Census{UpToDate: 1, Idle: 2}, false},
		{"two of four, and the others' nodes without theirs", majority, Census{UpToDate: 2, Idle: 2}, true},
		{"two of four, one away and one without its disk", majority, Census{UpToDate: 2, Idle: 1, Unknown: 1}, false},
		{"one of three, one has left and one is without its disk", majority, Census{UpToDate: 1, Idle: 1, Outdated: 1}, false},
		{"the last one standing", majority, Census{UpToDate: 1, Outdated: 2}, true},
		{"a stale one and a new one", majority, Census{UpToDate: 1, Present: 1, Newcomers: 1, Unknown: 1}, false},
		{"two and a new one", majority, Census{UpToDate: 2, Newcomers: 1, Unknown: 1}, false},
		{"two of three, and the third is new", majority, Census{UpToDate: 2, Present: 1, Newcomers: 1}, true},
		{"three of five, one of them new", majority, Census{UpToDate: 2, Present: 1, Newcomers: 1, Unknown: 2}, false},
		{"four of five, one of them new", majority, Census{UpToDate: 3, Present: 1, Newcomers: 1, Unknown: 1}, true},
		{"a new one, in whose predecessor's favour the other has left", majority, Census{UpToDate: 1, Newcomers: 1, Outdated: 1}, false},
		{"a new one and one that stayed", majority, Census{UpToDate: 2, Newcomers: 1, Outdated: 1}, true},
		{"two that left, without the one that stayed", majority, Census{UpToDate: 2, Voteless: 2, Unknown: 1}, false},
		{"one that left, and one that stayed", majority, Census{UpToDate: 2, Voteless: 1, Unknown: 1}, true},
		{"all that there are, though all have left", majority, Census{UpToDate: 3, Voteless: 3}, true},
		{"many, none current", majority, Census{Present: 3}, false},
		{"off", QuorumPolicy{}, Census{Unknown: 2}, true},
		{"all", QuorumPolicy{Kind: QuorumAll}, Census{UpToDate: 2, Unknown: 1}, false},
		{"a number", QuorumPolicy{Kind: QuorumCount, N: 1}, Census{UpToDate: 1, Unknown: 2}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if v := tt.p.Quorum(tt.c); v.Quorate != tt.want {
				t.Errorf("%v (%s), want %v", v.Quorate, v.Why, tt.want)
			}
		})
	}
}

func TestPassesOver(t *testing.T) {
	for _, tt := range []struct {
		policy     string
		lacking, n int
		want       bool
	}{
		{"majority", 1, 3, false}, {"majority", 2, 3, true}, {"majority", 1, 2, false}, {"majority", 2, 4, false}, {"majority", 3, 4, true},
		{"all", 2, 3, false}, {"2", 2, 3, true}, {"1", 2, 3, false}, {"2", 2, 4, false}, {"off", 2, 3, false},
	} {
		p, err := ParseQuorum(tt.policy)
		if err != nil {
			t.Fatal(err)
		}
		if got := p.PassesOver(tt.lacking, tt.n); got != tt.want {
			t.Errorf("%s: %d of %d that lack a change pass it over: %v", tt.policy, tt.lacking, tt.n, got)
		}
	}
}
