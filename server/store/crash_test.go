package store_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// app is the model of a device on one node: it writes, loses peers, resyncs and
// flushes as package store asks, and knows at every instant which blocks may
// differ from which peer's.
type app struct {
	t     *testing.T
	rng   *rand.Rand
	im    *storetest.Image
	m     *store.Meta
	units int64

	differs  map[int]map[int64]bool // per peer: units that must be covered
	away     map[int]bool
	unstable map[int64]uint64 // units, with the epoch of the newest write
	epoch    uint64
	underWay []int64 // units with a write begun and not ended

	told    uint64 // Superblock.Current that an Update has returned
	telling uint64 // that an Update has begun
	crashes int
}

func newApp(t *testing.T, seed uint64) *app {
	opts := testOptions()
	opts.Size, opts.Extents = 2*mib, 4
	m, im := newMeta(t, opts)
	a := &app{
		t: t, rng: rand.New(rand.NewPCG(seed, 1)), im: im, m: m, units: opts.Size / block.Unit,
		differs: map[int]map[int64]bool{1: {}, 2: {}}, away: map[int]bool{}, unstable: map[int64]uint64{}, epoch: 1,
	}
	im.OnOp(func(r storetest.Record) {
		if r.Op == storetest.OpWrite || r.Op == storetest.OpSync || r.Op == storetest.OpPunch {
			a.crash()
		}
	})
	return a
}

func unit(u int64) block.Extent { return ext(u*block.Unit, block.Unit) }

// step does one thing at random.
func (a *app) step() {
	switch n := a.rng.IntN(100); {
	case n < 40:
		a.begin(a.rng.Int64N(a.units))
	case n < 65:
		a.end()
	case n < 75:
		a.flush()
	case n < 80:
		a.lose(1 + a.rng.IntN(2))
	case n < 90:
		a.resync(1 + a.rng.IntN(2))
	case n < 93:
		must(a.t, a.m.WriteBitmaps())
	case n < 95:
		must(a.t, a.m.AL().Cool(a.t.Context()))
	default:
		a.update()
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// begin submits a write: from now on any replica may or may not have it.
func (a *app) begin(u int64) {
	for !a.m.AL().TryBegin(unit(u)) {
		if len(a.underWay) >= 3 {
			a.end() // the log has four slots: leave one
			continue
		}
		a.flush()
		must(a.t, a.m.AL().Activate(a.t.Context(), []block.Extent{unit(u)}))
		break
	}
	a.underWay = append(a.underWay, u)
	for p := range a.differs {
		a.differs[p][u] = true
	}
}

// end completes a write. It is not durable everywhere before the next flush.
func (a *app) end() {
	if len(a.underWay) == 0 {
		return
	}
	u := a.underWay[0]
	a.underWay = a.underWay[1:]
	for p := range a.away {
		a.m.Bitmap(p).Set(unit(u))
	}
	a.unstable[u] = a.epoch
	a.m.AL().End(unit(u), a.epoch)
}

// flush makes durable everywhere what was completed.
func (a *app) flush() {
	for u := range a.unstable {
		for p := range a.differs {
			if !a.away[p] && !a.m.Bitmap(p).Test(unit(u)) && !a.isUnderWay(u) {
				delete(a.differs[p], u)
			}
		}
	}
	clear(a.unstable)
	a.m.AL().SetStable(a.epoch)
	a.epoch++
}

func (a *app) isUnderWay(u int64) bool {
	return slices.Contains(a.underWay, u)
}

// lose loses a peer: what it may not have gets bits.
func (a *app) lose(p int) {
	a.away[p] = true
	for u := range a.unstable {
		a.m.Bitmap(p).Set(unit(u))
	}
}

// resync brings a peer back and copies some of what differs.
func (a *app) resync(p int) {
	delete(a.away, p)
	from := a.rng.Int64N(a.units)
	if e, ok := a.m.Bitmap(p).Next(from, 1+a.rng.Int64N(4)); ok {
		for u := e.Off / block.Unit; u < e.End()/block.Unit; u++ {
			if _, fresh := a.unstable[u]; !fresh && !a.isUnderWay(u) {
				delete(a.differs[p], u)
				a.m.Bitmap(p).Clear(unit(u))
			}
		}
	}
}

func (a *app) update() {
	a.telling++
	now := a.telling
	must(a.t, a.m.Update(func(s *store.Superblock) { s.Current = now }))
	a.told = now
}

// crash checks what several crashes at this instant would leave.
func (a *app) crash() {
	a.crashes++
	crashes := []storetest.Crash{
		{Lost: 1}, {Lost: 0},
		{Lost: 0.5, Seed: a.rng.Uint64()}, {Lost: 0.5, Seed: a.rng.Uint64(), Sector: 4096},
	}
	if pending := a.im.Pending(); len(pending) > 0 {
		i := a.rng.IntN(len(pending))
		cut := storetest.Cut{Changes: i, Bytes: a.rng.Int64N(pending[i] + 1)}
		crashes = append(crashes, storetest.Crash{Exact: &cut})
	}
	for _, c := range crashes {
		a.check(a.im.CrashClone(c), fmt.Sprintf("crash %d %+v", a.crashes, c))
	}
}

// check reopens what a crash left and holds it against the model.
func (a *app) check(left *storetest.Image, what string) {
	a.t.Helper()
	opts := testOptions()
	opts.Create = false
	m, err := store.OpenMetaFile(left.File(), "r0.meta", opts)
	if err != nil {
		a.t.Fatalf("%s: %v", what, err)
	}
	r, err := m.Recover()
	if err != nil {
		a.t.Fatalf("%s: %v", what, err)
	}
	if r.Full {
		a.t.Fatalf("%s: everything is in doubt: %s", what, r.Reason)
	}
	if cur := m.Superblock().Current; cur < a.told || cur > a.telling {
		a.t.Fatalf("%s: superblock says %d, was told %d, was being told %d", what, cur, a.told, a.telling)
	}
	for p, units := range a.differs {
		for u := range units {
			if !m.Bitmap(p).Test(unit(u)) {
				a.t.Fatalf("%s: unit %d may differ from peer %d's and is not covered; recovery %+v", what, u, p, r)
			}
		}
	}
}

// TestEveryCrashLeavesDifferencesCovered crashes before every write and sync of
// a random history, in several ways each, and asserts the invariant of the
// package doc and that no superblock that was promised is lost.
func TestEveryCrashLeavesDifferencesCovered(t *testing.T) {
	for seed := range uint64(10) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			a := newApp(t, seed)
			for range 120 {
				a.step()
			}
			if a.crashes < 50 {
				t.Errorf("only %d crash points", a.crashes)
			}
		})
	}
}
