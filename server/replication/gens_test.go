package replication

import (
	"math/rand/v2"
	"testing"
)

func numbered(n uint64, random uint64) Gen { return Gen(n<<randomBits | random) }

func TestANewGenerationIsAboveAllThatAreKnown(t *testing.T) {
	known := []Gen{NoGen, DayOne, numbered(7, 3), numbered(2, 1<<randomBits-1)}
	g := NextGen(^uint64(0), known...)
	for _, k := range known {
		if !g.After(k) {
			t.Errorf("%v is not after %v", g, k)
		}
	}
	if first := NextGen(0); !first.After(DayOne) || first == NoGen {
		t.Errorf("the first generation is %v", first)
	}
}

func TestAReplicaNotesNothingTwiceUnderOneNumber(t *testing.T) {
	g := Gens{Current: numbered(3, 1), Base: numbered(3, 1), Noted: numbered(5, 1)}
	for _, tt := range []struct {
		name string
		g    Gen
		want bool
	}{
		{"what it noted", numbered(5, 1), true},
		{"another of that number", numbered(5, 2), false},
		{"a lower one", numbered(4, 1), false},
		{"its own generation", numbered(3, 1), false},
		{"a higher one", numbered(6, 1), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := g.MayNote(tt.g); got != tt.want {
				t.Errorf("MayNote(%v) = %v", tt.g, got)
			}
		})
	}
}

func TestBehind(t *testing.T) {
	five, six, seven := numbered(5, 1), numbered(6, 1), numbered(7, 1)
	for _, tt := range []struct {
		name string
		g    Gens
		want bool
	}{
		{"nothing newer is known", Gens{Current: five, Base: five, Seen: five}, false},
		{"a newer one is in force elsewhere", Gens{Current: five, Base: five, Seen: six}, true},
		{"the newer one is what it noted as tentative", Gens{Current: six, Base: five, Seen: six}, false},
		{"its tentative one is built on the newer one", Gens{Current: seven, Base: five, Seen: six, History: [HistoryLen]Gen{six}}, false},
		{"its tentative one went apart from the newer one", Gens{Current: seven, Base: five, Seen: six}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.g.Behind(); got != tt.want {
				t.Errorf("Behind() = %v, want %v", got, tt.want)
			}
		})
	}
}

func TestLearnTellsWhatIsInForce(t *testing.T) {
	five, six := numbered(5, 1), numbered(6, 1)
	g := Gens{Current: six, Base: five, Seen: five}
	if g.Learn(&Gens{Current: five, Base: five, Seen: five}) {
		t.Error("learnt something from one who knows less")
	}
	if !g.Learn(&Gens{Current: six, Base: six, Seen: six}) || g.Tentative() || g.Seen != six {
		t.Errorf("a peer's word that the generation is in force is not taken: %+v", g)
	}
}

// TestATargetKeepsWhatItKnowsToBeInForce, where its source, which is in the same generation,
// has not heard of that yet.
func TestATargetKeepsWhatItKnowsToBeInForce(t *testing.T) {
	five, six := numbered(5, 1), numbered(6, 1)
	src := Gens{Current: six, Base: five, Seen: five}
	for _, tt := range []struct {
		name string
		g    Gens
		want Gen
	}{
		{"it is in it, and knows", Gens{Current: six, Base: six, Seen: six}, six},
		{"it is in an older one, and has heard", Gens{Current: five, Base: five, Seen: six}, six},
		{"it does not know either", Gens{Current: six, Base: five, Seen: five}, five},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.g.AdoptSource(&src, 0, 1); got.Current != six || got.Base != tt.want {
				t.Errorf("it is in %v, and in force is %v, not %v", got.Current, got.Base, tt.want)
			}
		})
	}
}

// TestNoDivergenceWithQuorum: where generations in force are a chain, one of
// any two sides is the later one, and among three nobody waits in a circle.
func TestNoDivergenceWithQuorum(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 200_000 {
		var n [3]*Facts
		for i := range n {
			n[i] = anyFacts(r, i)
			n[i].Ordered = true
			n[i].Disk = []DiskState{Outdated, Consistent, UpToDate}[r.IntN(3)]
			n[i].Role, n[i].Primary = Secondary, NoPrimary
			n[i].Gens.Current = numbered(1+r.Uint64N(3), r.Uint64N(2))
			n[i].Gens.Base = n[i].Gens.Current
			if r.IntN(3) == 0 {
				n[i].Gens.Base = numbered(1, r.Uint64N(2))
			}
			n[i].Gens.Bitmap[i] = NoGen
			n[i].Origin = NoOrigin // of one device, as far as is known
		}
		if n[0].Gens.Current == n[1].Gens.Current || n[1].Gens.Current == n[2].Gens.Current || n[2].Gens.Current == n[0].Gens.Current {
			continue
		}
		first := func(i, j int) bool {
			d := Decide(n[i], n[j])
			if !d.Sync() {
				t.Fatalf("two complete disks, and nobody is to send: %v\n%+v\n%+v", d, n[i], n[j])
			}
			return d.Source()
		}
		if first(0, 1) == first(1, 2) && first(1, 2) == first(2, 0) {
			t.Fatalf("a circle: %+v %+v %+v", n[0], n[1], n[2])
		}
	}
}

// TestADiskThatCaughtUpKnowsWhatItMissed: a disk that was told of the latest
// generations only, while it was resynced, has come from those before all the same.
func TestADiskThatCaughtUpKnowsWhatItMissed(t *testing.T) {
	g := [...]Gen{NextGen(1), NextGen(2, NextGen(1)), 0, 0, 0}
	for i := 2; i < len(g); i++ {
		g[i] = NextGen(uint64(i), g[i-1])
	}
	first := Gens{Current: g[0], Base: g[0]}
	left := first.Bump(g[1], Of(2)).InForce(g[1]) // node 0, cut off after that
	source := left.Bump(g[2], Of(0, 2)).InForce(g[2]).Bump(g[3], Of(0)).InForce(g[3])
	target := first.Bump(g[3], Of(0, 1)).Recall(g[2]).Bump(g[4], Of(0))
	me, peer := Facts{Node: 2, Disk: UpToDate, Primary: NoPrimary}, Facts{Node: 0, Disk: UpToDate, Primary: NoPrimary, Gens: left}
	me.Gens = target.Inherit(&source)
	if d := Decide(&me, &peer); !d.Sync() || !d.Source() {
		t.Errorf("it concludes %v", d)
	}
	if again := me.Gens.Inherit(&source); again != me.Gens {
		t.Errorf("once more changes %v to %v", me.Gens, again)
	}
	me.Gens = target
	if d := Decide(&me, &peer); d.Action == SourceBits || d.Action == SourceFull {
		t.Errorf("without, it concludes %v", d)
	}
}

// TestAMixtureThatMissedGenerations: it is told of a generation by a primary that has
// come through several of which it knows nothing. By the primary's facts it knows a disk
// that was left in one of those for one that is behind, and by the generation before
// alone it would take it for one that went its own way.
func TestAMixtureThatMissedGenerations(t *testing.T) {
	g := [...]Gen{NextGen(1), 0, 0, 0, 0, 0}
	for i := 1; i < len(g); i++ {
		g[i] = NextGen(uint64(i), g[i-1])
	}
	first := Gens{Current: g[0], Base: g[0]}
	mixture := first.Bump(g[1], Of(0, 1)).InForce(g[1]) // node 2, then cut off
	both := first.Bump(g[1], Of(2)).InForce(g[1]).Bump(g[2], Of(2)).InForce(g[2])
	left := both.Bump(g[3], Of(2)).InForce(g[3])       // node 1, cut off after that
	primary := left.Bump(g[4], Of(1, 2)).InForce(g[4]) // node 0
	told := mixture.Bump(g[5], Of(0, 1)).InForce(g[5]) // by node 0
	me := Facts{Node: 2, Disk: Inconsistent, Primary: NoPrimary}
	peer := Facts{Node: 1, Disk: UpToDate, Primary: NoPrimary, Gens: left}
	for _, c := range []struct {
		gens Gens
		want Action
	}{
		{told.Inherit(&primary), PeerOutdated},
		{told.Recall(g[4]), SplitBrain}, // which a primary without a disk leaves it at
	} {
		me.Gens = c.gens
		if d := Decide(&me, &peer); d.Action != c.want {
			t.Errorf("it concludes %v", d)
		}
		if d := Decide(&peer, &me); d.Action != c.want.Mirror() {
			t.Errorf("the other concludes %v", d)
		}
	}
}
