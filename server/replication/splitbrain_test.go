package replication

import (
	"math/rand/v2"
	"strings"
	"testing"
)

// split is the facts of two sides that were written since they were in sync.
func split(roles [2]Role, dirty, began [2]int64) (me, peer *Facts) {
	fs := [2]*Facts{}
	for i := range fs {
		f := &Facts{Node: i, Size: 1 << 20, Disk: UpToDate, Role: roles[i], Dirty: dirty[i], Began: began[i], Primary: NoPrimary, Quorate: true}
		f.Gens.Current = Gen(100 + i)
		f.Gens.Bitmap[1-i] = 50
		fs[i] = f
	}
	return fs[0], fs[1]
}

func TestSplitPolicies(t *testing.T) {
	const S, P = Secondary, Primary
	for _, c := range []struct {
		policy       SplitPolicy
		roles        [2]Role
		dirty, began [2]int64
		loser        int // -1: nobody
		why          string
	}{
		{SplitPolicy{}, [2]Role{S, S}, [2]int64{1, 9}, [2]int64{1, 2}, -1, ""},
		{SplitPolicy{None: "discard-zero-changes"}, [2]Role{S, S}, [2]int64{0, 9}, [2]int64{}, 0, "discard-zero-changes"},
		{SplitPolicy{None: "discard-zero-changes"}, [2]Role{S, S}, [2]int64{3, 9}, [2]int64{}, -1, "both sides have changes"},
		{SplitPolicy{None: "discard-least-changes"}, [2]Role{S, S}, [2]int64{3, 2}, [2]int64{}, 1, ""},
		{SplitPolicy{None: "discard-least-changes"}, [2]Role{S, S}, [2]int64{3, 3}, [2]int64{}, 1, ""},
		{SplitPolicy{None: "discard-younger-primary"}, [2]Role{S, S}, [2]int64{3, 3}, [2]int64{5, 7}, 1, ""},
		{SplitPolicy{None: "discard-older-primary"}, [2]Role{S, S}, [2]int64{3, 3}, [2]int64{5, 7}, 0, ""},
		{SplitPolicy{None: "discard-older-primary"}, [2]Role{S, S}, [2]int64{3, 3}, [2]int64{5, 0}, -1, "not known"},
		{SplitPolicy{None: "discard-least-changes"}, [2]Role{P, S}, [2]int64{3, 2}, [2]int64{}, -1, ""},
		{SplitPolicy{One: "discard-secondary"}, [2]Role{P, S}, [2]int64{1, 9}, [2]int64{}, 1, ""},
		{SplitPolicy{None: "discard-least-changes", One: "consensus"}, [2]Role{P, S}, [2]int64{9, 1}, [2]int64{}, 1, ""},
		{SplitPolicy{None: "discard-least-changes", One: "consensus"}, [2]Role{P, S}, [2]int64{1, 9}, [2]int64{}, -1, "would not discard the secondary"},
		{SplitPolicy{None: "discard-least-changes", One: "violently-as0p"}, [2]Role{P, S}, [2]int64{1, 9}, [2]int64{}, 0, ""},
		{SplitPolicy{None: "discard-least-changes", One: "call-pri-lost-after-sb"}, [2]Role{P, S}, [2]int64{1, 9}, [2]int64{}, -1, "demote it"},
		{SplitPolicy{None: "discard-least-changes", One: "call-pri-lost-after-sb"}, [2]Role{P, S}, [2]int64{9, 1}, [2]int64{}, 1, ""},
		{SplitPolicy{None: "discard-least-changes"}, [2]Role{P, P}, [2]int64{1, 9}, [2]int64{}, -1, ""},
		{SplitPolicy{None: "discard-least-changes", Two: "violently-as0p"}, [2]Role{P, P}, [2]int64{1, 9}, [2]int64{}, 0, ""},
		{SplitPolicy{None: "discard-least-changes", Two: "call-pri-lost-after-sb"}, [2]Role{P, P}, [2]int64{1, 9}, [2]int64{}, -1, "demote it"},
	} {
		me, peer := split(c.roles, c.dirty, c.began)
		d := Decide(me, peer)
		if d.Action != SplitBrain {
			t.Fatalf("no split brain: %v", d)
		}
		got := c.policy.Resolve(me, peer, d)
		want, yields := SplitBrain, NodeSet(0)
		if c.loser >= 0 {
			want = SourceBits
			if c.loser == 0 {
				want = TargetBits
			}
			if c.roles[c.loser] == Primary {
				yields = Of(c.loser)
			}
		}
		if got.Action != want || got.Yields != yields || !strings.Contains(got.Why, c.why) {
			t.Errorf("%+v %v dirty %v began %v: %v, yields %b", c.policy, c.roles, c.dirty, c.began, got, got.Yields)
		}
	}
}

// TestSplitPoliciesAreSymmetric over random facts; and nobody is resynced that has no disk.
func TestSplitPoliciesAreSymmetric(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	none := []string{"disconnect", "discard-younger-primary", "discard-older-primary", "discard-zero-changes", "discard-least-changes"}
	one := []string{"disconnect", "consensus", "discard-secondary", "call-pri-lost-after-sb", "violently-as0p"}
	resolved := 0
	for range 200_000 {
		a, b := anyFacts(r, 0), anyFacts(r, 1)
		a.Began, b.Began = int64(r.IntN(3)), int64(r.IntN(3))
		p := SplitPolicy{None: none[r.IntN(5)], One: one[r.IntN(5)], Two: []string{"disconnect", "call-pri-lost-after-sb", "violently-as0p"}[r.IntN(3)]}
		da, db := p.Resolve(a, b, Decide(a, b)), p.Resolve(b, a, Decide(b, a))
		if da.Action != db.Action.Mirror() || da.Yields != db.Yields {
			t.Fatalf("%+v\na: %v\nb: %v\n%+v\n%+v", p, da, db, a, b)
		}
		if da.Sync() && (!a.Disk.HasData() || !b.Disk.HasData()) {
			t.Fatalf("%+v\nwithout a disk: %v\n%+v\n%+v", p, da, a, b)
		}
		if da.Resolved() {
			resolved++
		}
	}
	if resolved < 1000 {
		t.Fatalf("only %d were resolved", resolved)
	}
}

// TestAPolicyDiscardsNothingForAMixture: what a disk held whose resync is under way
// has gone already, for something that it has not got yet.
func TestAPolicyDiscardsNothingForAMixture(t *testing.T) {
	for _, c := range []struct {
		name  string
		roles [2]Role
		disks [2]DiskState
		loser int // -1: nobody
	}{
		{"the policy's choice is complete", [2]Role{Secondary, Secondary}, [2]DiskState{UpToDate, Inconsistent}, 1},
		{"the policy's choice is a mixture", [2]Role{Secondary, Secondary}, [2]DiskState{Inconsistent, Outdated}, 0},
		{"a primary's, which has its data elsewhere", [2]Role{Primary, Secondary}, [2]DiskState{Inconsistent, UpToDate}, -1},
		{"both", [2]Role{Secondary, Secondary}, [2]DiskState{Inconsistent, Inconsistent}, -1},
	} {
		me, peer := split(c.roles, [2]int64{9, 1}, [2]int64{})
		me.Disk, peer.Disk = c.disks[0], c.disks[1]
		p := SplitPolicy{None: "discard-least-changes", One: "discard-secondary"}
		got, there := p.Resolve(me, peer, Decide(me, peer)), p.Resolve(peer, me, Decide(peer, me))
		want := map[int]Action{-1: SplitBrain, 0: TargetBits, 1: SourceBits}[c.loser]
		if got.Action != want || there.Action != want.Mirror() {
			t.Errorf("%s: %v, and there %v; want %v", c.name, got, there, want)
		}
		if why := "which is a mixture"; want == SplitBrain && !strings.Contains(got.Why, why) {
			t.Errorf("%s: %q says nothing of %q", c.name, got.Why, why)
		}
	}
}

// TestAPolicyCountsWhatIsKnown: where a third has come between two, what is marked is not
// what either has changed.
func TestAPolicyCountsWhatIsKnown(t *testing.T) {
	for _, policy := range []string{"discard-zero-changes", "discard-least-changes"} {
		me, peer := split([2]Role{}, [2]int64{0, 9}, [2]int64{})
		me.Gens.Bitmap[1], me.Gens.History[0] = 60, 50
		got := SplitPolicy{None: policy}.Resolve(me, peer, Decide(me, peer))
		if why := "is not known"; got.Action != SplitBrain || !strings.Contains(got.Why, why) {
			t.Errorf("%s: %v", policy, got)
		}
	}
}

// TestAPolicyLeavesAFollowerToItsPrimary: between two primaries that are apart it would
// else be resynced from each in turn, for good.
func TestAPolicyLeavesAFollowerToItsPrimary(t *testing.T) {
	me, peer := split([2]Role{Secondary, Primary}, [2]int64{1, 9}, [2]int64{})
	me.Primary = 2
	got := SplitPolicy{One: "discard-secondary"}.Resolve(me, peer, Decide(me, peer))
	if why := "node 0 follows node 2"; got.Action != SplitBrain || !strings.Contains(got.Why, why) {
		t.Errorf("%v", got)
	}
	me.Primary = peer.Node
	if got := (SplitPolicy{One: "discard-secondary"}).Resolve(me, peer, Decide(me, peer)); got.Action != TargetBits {
		t.Errorf("it follows no other: %v", got)
	}
}

// TestAPolicyDiscardsNothingWithoutADisk: of two primaries one has no disk. Neither has
// anything that could be discarded for the other's.
func TestAPolicyDiscardsNothingWithoutADisk(t *testing.T) {
	p := SplitPolicy{None: "discard-older-primary", Two: "violently-as0p"}
	for _, without := range []int{0, 1} {
		me, peer := split([2]Role{Primary, Primary}, [2]int64{3, 3}, [2]int64{5, 7})
		[]*Facts{me, peer}[without].Disk = Diskless
		d := Decide(me, peer)
		if d.Action != SplitBrain {
			t.Fatalf("no split brain: %v", d)
		}
		if got := p.Resolve(me, peer, d); got.Action != SplitBrain {
			t.Errorf("without the disk of %d: %v", without, got)
		}
	}
}
