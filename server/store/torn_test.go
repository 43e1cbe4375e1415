package store_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// atLastSync runs do and returns the image as it is before the last sync that
// do brings about, with all changes of that sync pending.
func atLastSync(t *testing.T, im *storetest.Image, do func()) (before func(storetest.Crash) *storetest.Image, pending []int64) {
	t.Helper()
	var frozen *storetest.Image
	im.OnOp(func(r storetest.Record) {
		if r.Op == storetest.OpSync {
			frozen, pending = im.Fork(), im.Pending()
		}
	})
	do()
	im.OnOp(nil)
	if frozen == nil {
		t.Fatal("nothing was synced")
	}
	return frozen.CrashClone, pending
}

// everyCut calls f with what is left when the only pending change is cut short
// at every byte.
func everyCut(t *testing.T, before func(storetest.Crash) *storetest.Image, pending []int64, f func(n int64, left *storetest.Image)) {
	t.Helper()
	if len(pending) != 1 {
		t.Fatalf("%d changes are pending, not 1", len(pending))
	}
	for n := range pending[0] + 1 {
		f(n, before(storetest.Crash{Exact: &storetest.Cut{Bytes: n}}))
	}
}

func TestSuperblockTornAtAnyByteIsOldOrNew(t *testing.T) {
	m, im := newMeta(t, testOptions())
	set := func(n uint64) func() {
		return func() { must(t, m.Update(func(s *store.Superblock) { s.Current, s.History[31] = n, n })) }
	}
	set(1)()
	before, pending := atLastSync(t, im, set(2))
	seen := map[uint64]int{}
	everyCut(t, before, pending, func(n int64, left *storetest.Image) {
		sb := openMeta(t, left, testOptions()).Superblock()
		if sb.Current != sb.History[31] {
			t.Fatalf("cut after %d bytes: a mixture of old and new", n)
		}
		seen[sb.Current]++
	})
	if seen[1] < 100 || seen[2] < 1 || len(seen) != 2 {
		t.Errorf("outcomes %v", seen)
	}
}

func TestLogTornAtAnyByteIsOldOrNew(t *testing.T) {
	m, im := newMeta(t, testOptions())
	activate := func(off int64) func() {
		return func() {
			e := ext(off, 1)
			must(t, m.AL().Activate(t.Context(), []block.Extent{e}))
			m.AL().End(e, 0)
		}
	}
	for i := range int64(8) {
		activate(i * 64 * kib)()
	}
	before, pending := atLastSync(t, im, activate(9*64*kib))
	seen := map[int64]int{}
	everyCut(t, before, pending, func(n int64, left *storetest.Image) {
		m := openMeta(t, left, testOptions())
		r, err := m.Recover()
		must(t, err)
		if r.Full || r.Extents != 8 {
			t.Fatalf("cut after %d bytes: %+v", n, r)
		}
		// The transaction evicts extent 0 for extent 9.
		old, fresh := m.Bitmap(1).Test(ext(0, 1)), m.Bitmap(1).Test(ext(9*64*kib, 1))
		if old == fresh {
			t.Fatalf("cut after %d bytes: a mixture of old and new", n)
		}
		seen[m.Bitmap(1).Count()]++
	})
}

func TestBitmapTornAtAnyByteLosesNoBit(t *testing.T) {
	m, im := newMeta(t, testOptions())
	for i := range int64(400) {
		m.Bitmap(1).Set(unit(i * 40))
	}
	must(t, m.WriteBitmaps())
	before, pending := atLastSync(t, im, func() {
		for i := range int64(400) {
			m.Bitmap(1).Set(unit(i*40 + 1))
			m.Bitmap(1).Clear(unit(i * 40))
		}
		must(t, m.WriteBitmaps())
	})
	everyCut(t, before, pending, func(n int64, left *storetest.Image) {
		m := openMeta(t, left, testOptions())
		for i := range int64(400) {
			if !m.Bitmap(1).Test(ext(i*40*block.Unit, 2*block.Unit)) {
				t.Fatalf("cut after %d bytes: neither unit %d nor the next is marked", n, i*40)
			}
		}
		if n%512 == 0 && len(m.Problems()) > 0 {
			t.Fatalf("cut after %d bytes, between sectors: %v", n, m.Problems())
		}
	})
}

func TestRotIsNeverTakenForClean(t *testing.T) {
	opts := testOptions()
	m, im := newMeta(t, opts)
	var es []block.Extent
	for i := range int64(5) {
		es = append(es, ext(i*64*kib, 64*kib))
	}
	must(t, m.AL().Activate(t.Context(), es[:2]))
	must(t, m.AL().Activate(t.Context(), es[2:4]))
	must(t, m.AL().Activate(t.Context(), es[4:]))
	m.Bitmap(2).Set(ext(40*mib, 4*kib))
	must(t, m.WriteBitmaps())
	must(t, m.Update(func(s *store.Superblock) { s.Current = 9 }))

	data := im.CrashClone(storetest.Crash{})
	var b [1]byte
	for off := int64(0); off < 9*mib; off += 61 {
		if next, _, err := data.File().NextData(off); err != nil {
			break
		} else if next > off {
			off = next
		}
		if data.Peek(b[:], off); b[0] == 0 && off%4096 > 600 {
			continue // mostly emptiness
		}
		left := data.Fork()
		left.Poke([]byte{b[0] ^ 0x10}, off)
		m, err := store.OpenMetaFile(left.File(), "r0.meta", opts)
		if err != nil {
			if _, ok := errors.AsType[*store.ErrCorrupt](err); !ok {
				t.Fatalf("byte %d: %v", off, err)
			}
			continue
		}
		if _, err := m.Recover(); err != nil {
			t.Fatalf("byte %d: %v", off, err)
		}
		stale := m.Superblock().Current != 9 // as after a torn write
		for i, e := range es {
			// The newest block is as if torn too: nothing tells the two apart.
			if !m.Bitmap(1).Test(e) && i < 4 {
				t.Fatalf("byte %d: extent %v is forgotten (stale: %v)", off, e, stale)
			}
		}
		if !m.Bitmap(2).Test(ext(40*mib, 1)) {
			t.Fatalf("byte %d: a bit is forgotten", off)
		}
	}
}

func TestCorruptMetadataIsRefused(t *testing.T) {
	use := func(t *testing.T, m *store.Meta) {
		must(t, m.Update(func(s *store.Superblock) { s.Current = 1 }))
		must(t, m.AL().Activate(t.Context(), []block.Extent{ext(0, 1)}))
		must(t, m.Update(func(s *store.Superblock) { s.Current = 2 }))
		must(t, m.AL().Activate(t.Context(), []block.Extent{ext(mib, 1)}))
	}
	garbage := []byte("garbage")
	tests := []struct {
		name  string
		spoil func(*storetest.Image)
		want  string
	}{
		{"both superblocks", func(im *storetest.Image) { im.Poke(garbage, 100); im.Poke(garbage, 4196) }, "neither superblock"},
		{"the newest superblock, though the log knows it", func(im *storetest.Image) { im.Poke(garbage, 100) }, "newest superblock is lost"},
		{"wiped", func(im *storetest.Image) { im.Poke(make([]byte, 8192), 0) }, "neither superblock"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, im := newMeta(t, testOptions())
			use(t, m)
			left := im.CrashClone(storetest.Crash{})
			tt.spoil(left)
			_, err := store.OpenMetaFile(left.File(), "/state/r0.meta", testOptions())
			if _, ok := errors.AsType[*store.ErrCorrupt](err); !ok {
				t.Fatalf("got %v", err)
			}
			for _, want := range []string{tt.want, "/state/r0.meta", "move the file away"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
	t.Run("cut off", func(t *testing.T) {
		_, im := newMeta(t, testOptions())
		must(t, im.File().Truncate(2*mib))
		_, err := store.OpenMetaFile(im.File(), "r0.meta", testOptions())
		if err == nil || !strings.Contains(err.Error(), "cut off") {
			t.Errorf("got %v", err)
		}
	})
}

func TestDamagedLogPutsEverythingInDoubt(t *testing.T) {
	m, im := newMeta(t, testOptions())
	for i := range int64(4) {
		must(t, m.AL().Activate(t.Context(), []block.Extent{ext(i*mib, 1)}))
	}
	left := im.CrashClone(storetest.Crash{})
	left.Poke([]byte("rot"), 16*kib+900) // block 3 of 4, in a ring of three
	m = openMeta(t, left, testOptions())
	r, err := m.Recover()
	must(t, err)
	if !r.Full || r.Bytes != 64*mib || m.Bitmap(1).Count() != 64*mib/block.Unit {
		t.Errorf("recovered %+v, %d bits", r, m.Bitmap(1).Count())
	}
	if len(m.Problems()) == 0 {
		t.Error("nothing was said about it")
	}
}

func TestCrashDuringRecoveryIsRecoveredFrom(t *testing.T) {
	m, im := newMeta(t, testOptions())
	for i := range int64(4) {
		must(t, m.AL().Activate(t.Context(), []block.Extent{ext(i*mib, 1)}))
	}
	left := im.CrashClone(storetest.Crash{})
	m = openMeta(t, left, testOptions())
	points := 0
	left.OnOp(func(storetest.Record) {
		for _, lost := range []float64{0, 0.5, 1} {
			points++
			again := openMeta(t, left.CrashClone(storetest.Crash{Lost: lost, Seed: uint64(points)}), testOptions())
			if _, err := again.Recover(); err != nil {
				t.Fatal(err)
			}
			for i := range int64(4) {
				if !again.Bitmap(1).Test(ext(i*mib, 1)) || !again.Bitmap(2).Test(ext(i*mib, 1)) {
					t.Fatalf("point %d: extent %d is forgotten", points, i)
				}
			}
		}
	})
	if _, err := m.Recover(); err != nil {
		t.Fatal(err)
	}
	if points < 12 {
		t.Errorf("only %d points", points)
	}
}

// TestTornLogOfThePastIsNoDamage: what a session leaves torn in the ring must
// not be held against a later one.
func TestTornLogOfThePastIsNoDamage(t *testing.T) {
	opts := testOptions()
	opts.Extents = 0 // for a long ring
	m, im := newMeta(t, opts)
	for i := range int64(14) {
		activate(t, m.AL(), i%8)
		m.AL().End(extentNo(i%8), 0)
		must(t, m.AL().Cool(t.Context()))
	}
	before, _ := atLastSync(t, im, func() { activate(t, m.AL(), 20) })
	left := before(storetest.Crash{Exact: &storetest.Cut{Bytes: 300}})
	for session := range int64(5) {
		m := openMeta(t, left, opts)
		r, err := m.Recover()
		must(t, err)
		if r.Full || r.Extents != int(min(session, 1)) {
			t.Fatalf("session %d: recovered %+v, %v", session, r, m.Problems())
		}
		activate(t, m.AL(), session)
		left = left.CrashClone(storetest.Crash{Lost: 1})
	}
}

// TestTransactionOfManyBlocksIsAllOrNothing loses any sectors of transactions
// that take several blocks: what they were to permit may be lost, what was hot
// and in use before may not, and no loss looks like damage.
func TestTransactionOfManyBlocksIsAllOrNothing(t *testing.T) {
	opts := testOptions()
	opts.Extents = 300
	m, im := newMeta(t, opts)
	l := m.AL()
	var held []block.Extent
	points := uint64(0)
	im.OnOp(func(r storetest.Record) {
		if r.Op != storetest.OpSync {
			return
		}
		for _, sector := range []int64{512, 4096, 4096, 4096} {
			points++
			left := openMeta(t, im.CrashClone(storetest.Crash{Lost: 0.4, Seed: points, Sector: sector}), opts)
			rec, err := left.Recover()
			must(t, err)
			if rec.Full {
				t.Fatalf("point %d: %v", points, rec)
			}
			for _, e := range held {
				if !left.Bitmap(1).Test(e) {
					t.Fatalf("point %d: %v is forgotten", points, e)
				}
			}
		}
	})
	for i := range int64(40) {
		e := ext(i*97%800*64*kib, (1+i*53%200)*64*kib)
		must(t, l.Activate(t.Context(), []block.Extent{e}))
		held = append(held, e)
		if i%2 == 0 {
			l.End(held[0], 0)
			held = held[1:]
		}
		if len(held) > 1 {
			l.End(held[0], 0)
			held = held[1:]
		}
	}
	if points < 100 {
		t.Errorf("only %d points", points)
	}
}

func TestRecoveryInWords(t *testing.T) {
	tests := []struct {
		r    store.Recovery
		want string
	}{
		{store.Recovery{}, "nothing to recover"},
		{store.Recovery{Unclean: true, Extents: 2, Bytes: 128 << 10, Peers: []int{1, 2}},
			"2 hot extents, 131072 bytes, are in doubt for node ids [1 2]"},
		{store.Recovery{Unclean: true, Full: true, Bytes: 4096, Peers: []int{1}, Reason: "the activity log was switched off"},
			"all 4096 bytes are in doubt for node ids [1]: the activity log was switched off"},
	}
	for _, tt := range tests {
		if got := tt.r.String(); got != tt.want {
			t.Errorf("%q, want %q", got, tt.want)
		}
	}
}
