package device

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// followed is a device in sync with its primary, which is node 1 of three.
func followed(t *testing.T) (*Device, *wireTap) {
	t.Helper()
	return followedWith(t, replication.QuorumMajority)
}

func followedWith(t *testing.T, kind replication.QuorumKind) (*Device, *wireTap) {
	t.Helper()
	const size = 1 << 20
	d, primary := withQuorum(t, t.TempDir(), size, 3, kind), tap(1)
	d.SessionUp(primary)
	facts := freshFacts(size)
	facts.Role, facts.Disk, facts.Stream = uint8(replication.Primary), uint8(replication.UpToDate), 99
	d.HelloReceived(primary, facts)
	synctest.Wait()
	handle(d, primary, primary.yes())
	return d, primary
}

// announced is a primary's word on a generation after the first.
func announced(no uint64, g replication.Gen) *wire.Frame {
	w := wire.Generation{No: no, Old: uint64(replication.DayOne), New: uint64(g), Stream: 99}
	return &wire.Frame{Header: wire.Header{Type: wire.NewGen, Dev: 1}, Payload: w.Append(nil)}
}

// TestABitmapReachesBackToWhoMissedAGeneration: a node was to take part in a generation
// and was lost before it had noted it. It is left in the one of before, and the bitmap of
// what it lacks is known to go back to that.
func TestABitmapReachesBackToWhoMissedAGeneration(t *testing.T) {
	const next = replication.Gen(7 << 48)
	for what, x := range map[string]struct {
		have uint64
		slot replication.Gen
	}{
		"all have it":          {0b111, replication.NoGen},
		"node 2 was lost":      {0b011, replication.DayOne},
		"an earlier version's": {0, replication.NoGen},
	} {
		synctest.Test(t, func(t *testing.T) {
			d, primary := followed(t)
			defer d.Abandon()
			handle(d, primary, announced(5, next))
			handle(d, primary, &wire.Frame{Header: wire.Header{Type: wire.GenCommit, Dev: 1, Arg: [3]uint64{5, x.have}}})
			g := d.Status().Gens
			if g.Current != next || g.Base != next || g.Bitmap[2] != x.slot {
				t.Errorf("%s: in generation %v, in force %v, node 2 was left in %v, want %v", what, g.Current, g.Base, g.Bitmap[2], x.slot)
			}
		})
	}
}

// TestANotedGenerationOutlivesTheBeginningOfAResync: a disk has noted a generation for
// its primary, and takes over its source's, who told them before it noted that one. The
// primary counts on the disk to bear it, for as long as the two are in contact.
func TestANotedGenerationOutlivesTheBeginningOfAResync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const before, next = replication.Gen(6 << 48), replication.Gen(7 << 48)
		d, primary := followed(t)
		defer d.Abandon()
		handle(d, primary, announced(5, next))
		src := replication.Gens{Current: before, Base: before, Seen: before, Noted: before}
		takeOver := func() replication.Gens {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.keepNotedLocked(d.gens.AdoptSource(&src, 0, 2))
		}
		if g := takeOver(); g.Current != next || !g.Tentative() || !g.Knows(before) || g.Bitmap[2] != before {
			t.Errorf("noted, in the generations %+v", g)
		}
		handle(d, primary, &wire.Frame{Header: wire.Header{Type: wire.GenCommit, Dev: 1, Arg: [3]uint64{5, 0b111}}})
		if g := takeOver(); g.Current != next || g.Tentative() || !g.Knows(before) {
			t.Errorf("in force, in the generations %+v", g)
		}
		src.Current, src.Base = next, next
		if g := takeOver(); g.Current != next || g.Bitmap[2] != next {
			t.Errorf("a source that has noted it: in the generations %+v", g)
		}
		src.Current, src.Base = before, before
		d.SessionDown(primary, "the test says so")
		if g := takeOver(); g.Current != before {
			t.Errorf("without the primary, in the generations %+v", g)
		}
	})
}

// TestAGenerationThatIsGivenUpIsReplaced: the primary announces a generation, gives it up,
// and announces another, which follows the same one. Whether a replica had noted the first
// or not, it bears the second, and the one of before is what others may be left in.
func TestAGenerationThatIsGivenUpIsReplaced(t *testing.T) {
	const first, second = replication.Gen(6 << 48), replication.Gen(7 << 48)
	synctest.Test(t, func(t *testing.T) {
		d, primary := followed(t)
		defer d.Abandon()
		handle(d, primary, announced(5, first))
		if g := d.Status().Gens; g.Current != first {
			t.Fatalf("in generation %v", g.Current)
		}
		handle(d, primary, announced(6, second))
		if g := d.Status().Gens; g.Current != second || g.Bitmap[2] != replication.DayOne || g.Knows(first) {
			t.Errorf("in generation %v, node 2 may be in %v, came from the one given up: %t", g.Current, g.Bitmap[2], g.Knows(first))
		}
		handle(d, primary, &wire.Frame{Header: wire.Header{Type: wire.GenCommit, Dev: 1, Arg: [3]uint64{6, 0b111}}})
		if g := d.Status().Gens; g.Base != second || g.Bitmap[2] != replication.NoGen {
			t.Errorf("in force %v, node 2 may be in %v", g.Base, g.Bitmap[2])
		}
	})
}

// TestASlotEndsWithAGenerationThatItsNodeNotes: a primary is lost before all have noted
// its first generation, and the next one's comes after that. Nothing is said any more of
// the one before the first, in which nobody is that has noted the second.
func TestASlotEndsWithAGenerationThatItsNodeNotes(t *testing.T) {
	const first, second = replication.Gen(6 << 48), replication.Gen(7 << 48)
	for what, primary := range map[string]func(*testing.T, *Device, *wireTap){
		"a replica": func(t *testing.T, d *Device, next *wireTap) {
			w := wire.Generation{No: 8, Old: uint64(first), New: uint64(second), Stream: 98}
			handle(d, next, &wire.Frame{Header: wire.Header{Type: wire.NewGen, Dev: 1}, Payload: w.Append(nil)})
			handle(d, next, &wire.Frame{Header: wire.Header{Type: wire.GenCommit, Dev: 1, Arg: [3]uint64{8, 0b101}}})
		},
		"the primary": func(t *testing.T, d *Device, next *wireTap) {
			handle(d, next, stateFrame(wire.DeviceState{Role: uint8(replication.Secondary), Disk: uint8(replication.UpToDate), Current: uint64(first), InSync: 0b101, Sees: 0b1, Primary: wire.NoNode}))
			done := make(chan error, 1)
			go func() { done <- d.Promote(t.Context(), false) }()
			synctest.Wait()
			handle(d, next, next.vote())
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			b := &block.Batch{}
			d.Submit(&block.Request{Op: block.Write, Len: block.Unit, Data: make([]byte, block.Unit), Done: &waiter{ch: make(chan struct{})}}, b)
			b.Finish()
			synctest.Wait()
			handle(d, next, next.noted())
		},
	} {
		t.Run(what, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				d, one := followed(t)
				defer d.Abandon()
				next := tap(2)
				d.SessionUp(next)
				d.HelloReceived(next, freshFacts(1<<20))
				synctest.Wait()
				handle(d, next, next.yes())
				handle(d, one, announced(5, first))
				if g := d.Status().Gens; g.Current != first || g.Bitmap[2] != replication.DayOne {
					t.Fatalf("in generation %v, node 2 may be in %v", g.Current, g.Bitmap[2])
				}
				d.SessionDown(one, "the test says so")
				primary(t, d, next)
				if g := d.Status().Gens; !g.Current.After(first) || g.Bitmap[2] != replication.NoGen {
					t.Errorf("in generation %v, node 2 may be in %v", g.Current, g.Bitmap[2])
				}
			})
		})
	}
}

// TestADisklessPrimaryStandsByTheOriginThatItBegan: its own disk was detached before anything
// was written, and the generations that it began since are of the origin of the disks that
// were there.
func TestADisklessPrimaryStandsByTheOriginThatItBegan(t *testing.T) {
	const own, others = 5, 7
	there := &peer{id: 1}
	there.hs.theirs.Origin = others
	d := &Device{origin: own, receives: replication.Of(1)}
	d.peers[1] = there
	d.gens.Current = replication.DayOne
	for _, next := range []replication.Gen{7 << 48, 8 << 48} {
		if o := d.beginsLocked(); o != others {
			t.Errorf("in %v it begins %d, want %d", d.gens.Current, o, others)
		}
		d.gens.Current = next
	}
}

// TestOnlyItsOwnStintGivesAGenerationUp: a primary announces another generation in place of
// one that it gave up. Promoted anew, without a disk, it goes on from that one, in which
// its replica was, and which it takes for one in force; with a disk it says which it
// follows.
func TestOnlyItsOwnStintGivesAGenerationUp(t *testing.T) {
	const first, next = replication.Gen(7 << 48), replication.Gen(8 << 48)
	for what, x := range map[string]struct {
		stream  uint64
		old     replication.Gen
		recalls bool
	}{
		"the same stint":          {99, replication.NoGen, false},
		"another, without a disk": {100, replication.NoGen, true},
		"another, with its own":   {100, replication.DayOne, false},
	} {
		synctest.Test(t, func(t *testing.T) {
			d, primary := followed(t)
			defer d.Abandon()
			handle(d, primary, announced(5, first))
			w := wire.Generation{No: 6, Old: uint64(x.old), New: uint64(next), Stream: x.stream}
			handle(d, primary, &wire.Frame{Header: wire.Header{Type: wire.NewGen, Dev: 1}, Payload: w.Append(nil)})
			if g := d.Status().Gens; g.Current != next || g.Knows(first) != x.recalls {
				t.Errorf("%s: %+v", what, g)
			}
		})
	}
}

// TestWhoHasAGenerationIsToldByItsPrimary: a third says that it is in force before the
// primary does. Only by the primary's word it is known who has it, and was not left behind.
func TestWhoHasAGenerationIsToldByItsPrimary(t *testing.T) {
	const next = replication.Gen(7 << 48)
	synctest.Test(t, func(t *testing.T) {
		d, primary := followedWith(t, replication.QuorumAll)
		defer d.Abandon()
		handle(d, primary, announced(5, next))
		third := tap(2)
		d.SessionUp(third)
		facts := freshFacts(1 << 20)
		facts.Current, facts.Base, facts.Seen, facts.Noted = uint64(next), uint64(next), uint64(next), uint64(next)
		d.HelloReceived(third, facts)
		synctest.Wait()
		if g := d.Status().Gens; g.Base != next || g.Bitmap[2] != replication.DayOne {
			t.Fatalf("before the primary's word: %+v", g)
		}
		handle(d, primary, &wire.Frame{Header: wire.Header{Type: wire.GenCommit, Dev: 1, Arg: [3]uint64{5, 0b111}}})
		if g := d.Status().Gens; g.Bitmap[2] != replication.NoGen {
			t.Errorf("node 2 has it, and was left in %v", g.Bitmap[2])
		}
	})
}

// TestAGenerationThatIsInForceIsNotWaitedFor: a target has noted its primary's generation, and
// the word that it is in force was lost. The primary's facts say so as well.
func TestAGenerationThatIsInForceIsNotWaitedFor(t *testing.T) {
	const next = replication.Gen(7 << 48)
	synctest.Test(t, func(t *testing.T) {
		p := &peer{id: 1, role: replication.Primary}
		d := &Device{genNoted: next, announcer: 1, genNotedAt: time.Now()}
		if !d.changingLocked(p) {
			t.Error("it is taken for in force, and nobody has said so")
		}
		p.hs.theirs.Gens.Seen = next
		if d.changingLocked(p) {
			t.Error("it is waited for, and the primary has said that it is in force")
		}
	})
}
