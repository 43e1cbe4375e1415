package replication

import (
	"math/rand/v2"
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

func TestDecide(t *testing.T) {
	base := func() (*Facts, *Facts) {
		f := func(node int) *Facts {
			return &Facts{Node: node, Size: 4096, Disk: UpToDate, Primary: NoPrimary, Gens: Gens{Current: 10}}
		}
		return f(0), f(1)
	}
	tests := []struct {
		name string
		set  func(me, peer *Facts)
		want Action
		rule string
	}{
		{"one generation, nothing dirty", func(_, _ *Facts) {}, InSync, "equal"},
		{"one generation, dirty here: never dropped", func(m, _ *Facts) { m.Dirty = 1 }, SourceBits, ruleEqual},
		{"one generation, dirty there: never dropped", func(_, p *Facts) { p.Dirty = 1 }, SourceBits, ruleEqual},
		{"dirty, and the peer is primary", func(m, p *Facts) { m.Dirty, p.Role = 1, Primary }, TargetBits, ruleEqual},
		{"a crashed primary yields to a survivor", func(m, p *Facts) { m.Dirty, m.Crashed, p.Live = 1, true, true }, TargetBits, ruleEqual},
		{"both stopped: the crashed primary sends", func(m, p *Facts) { p.Dirty, p.Crashed = 1, true }, TargetBits, ruleEqual},
		{"survivors: who received more sends", func(m, p *Facts) { m.Dirty, m.Stream, p.Stream, p.Received = 1, 7, 7, 3 }, TargetBits, ruleEqual},
		{"the peer's resync was interrupted", func(_, p *Facts) { p.Disk = Inconsistent }, SourceBits, "peer-inconsistent"},
		{"two mixtures", func(m, p *Facts) { m.Disk, p.Disk = Inconsistent, Inconsistent }, NoDisk, "both-inconsistent"},
		{"the peer moved on", func(_, p *Facts) { p.Gens.Current, p.Gens.Bitmap[0] = 11, 10 }, TargetBits, "peer-moved-on"},
		{"this node moved on", func(m, _ *Facts) { m.Gens.Current, m.Gens.Bitmap[1] = 11, 10 }, SourceBits, "moved-on"},
		{"in the past, no bitmap", func(_, p *Facts) { p.Gens.Current, p.Gens.History[0] = 12, 10 }, TargetFull, "peer-history"},
		{"a bitmap kept for another node", func(_, p *Facts) { p.Gens.Current, p.Gens.Bitmap[5] = 12, 10 }, TargetFull, "peer-history"},
		{"in the past, and the bitmap is of before it", func(m, p *Facts) {
			m.Gens.Current, p.Gens.Current, p.Gens.History[0], p.Gens.Bitmap[0] = numbered(2, 7), numbered(3, 7), numbered(2, 7), numbered(1, 7)
		}, TargetBits, "peer-reaches-back"},
		{"this node's past, and the bitmap is of before it", func(m, p *Facts) {
			p.Gens.Current, m.Gens.Current, m.Gens.History[0], m.Gens.Bitmap[1] = numbered(2, 7), numbered(3, 7), numbered(2, 7), DayOne
		}, SourceBits, "reaches-back"},
		{"in the past, and the bitmap is of after it", func(m, p *Facts) {
			m.Gens.Current, p.Gens.Current, p.Gens.History[0], p.Gens.Bitmap[0] = numbered(1, 7), numbered(3, 7), numbered(1, 7), numbered(2, 7)
		}, TargetFull, "peer-history"},
		{"both moved on, quorum off", func(m, p *Facts) {
			m.Gens.Current, p.Gens.Current, m.Gens.Bitmap[1], p.Gens.Bitmap[0] = 11, 12, 9, 9
		}, SplitBrain, "diverged"},
		{"both moved on, the peer has quorum", func(m, p *Facts) {
			m.Gens.Current, p.Gens.Current, m.Gens.Bitmap[1], p.Gens.Bitmap[0], p.Quorate = 11, 12, 9, 9, true
		}, TargetBits, "yielding"},
		{"a divergence that an administrator resolved", func(m, p *Facts) {
			m.Gens.Current, p.Gens.Current, m.Gens.Bitmap[1], p.Gens.Bitmap[0], p.Discard = 11, 12, 9, 9, true
		}, SourceBits, "discard"},
		{"nothing in common", func(_, p *Facts) { p.Gens.Current = 99 }, Unrelated, "unrelated"},
		{"a new disk", func(_, p *Facts) { p.Gens.Current = DayOne }, SourceFull, "fresh"},
		{"two primaries", func(m, p *Facts) { m.Role, p.Role = Primary, Primary }, SplitBrain, "two-primaries"},
		{"behind a mixture", func(_, p *Facts) { p.Disk, p.Gens.Current, p.Gens.Bitmap[0] = Inconsistent, 11, 10 }, SelfOutdated, "peer-moved-on-mixture"},
		{"another origin", func(m, p *Facts) { m.Origin, p.Origin, m.Gens.Base, p.Gens.Base = 1, 2, 10, 10 }, Unrelated, RuleOrigin},
		{"another origin, and the peer has quorum and is later", func(m, p *Facts) {
			m.Gens.Base, m.Origin, p.Origin, m.Ordered, p.Ordered, p.Quorate, p.Role, p.Gens.Current, p.Gens.Base = 10, 1, 2, true, true, true, Primary, 99, 99
		}, Unrelated, RuleOrigin},
		{"another origin, and an administrator discards there", func(m, p *Facts) { m.Origin, p.Origin, m.Gens.Base, p.Gens.Base, p.Discard = 1, 2, 10, 10, true }, SourceFull, "discard"},
		{"another origin, of a disk that was never written", func(m, p *Facts) { m.Origin, p.Origin, p.Gens.Current = 1, 2, DayOne }, SourceFull, "fresh"},
		{"an origin that is not known", func(m, _ *Facts) { m.Origin = 1 }, InSync, "equal"},
		{"another size", func(_, p *Facts) { p.Size = 8192 }, Refuse, "size"},
		{"no disk", func(_, p *Facts) { p.Disk = Diskless }, NoDisk, "no-disk"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			me, peer := base()
			tt.set(me, peer)
			if d := Decide(me, peer); d.Action != tt.want || d.Rule != tt.rule {
				t.Errorf("%v, want %v by %s", d, tt.want, tt.rule)
			}
		})
	}
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
