package store_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// optionsOf are of a device of another size.
func optionsOf(size int64) store.MetaOptions {
	opts := testOptions()
	opts.Size, opts.ExtentBytes = size, 4*mib
	return opts
}

// modelBits is a bitmap that is plainly right.
type modelBits []bool

func (m modelBits) set(first, last int64, v bool) (changed int64) {
	for u := max(first, 0); u < min(last, int64(len(m))); u++ {
		if m[u] != v {
			m[u] = v
			changed++
		}
	}
	return changed
}

func (m modelBits) count() (n int64) {
	for _, v := range m {
		if v {
			n++
		}
	}
	return n
}

func (m modelBits) next(from, limit int64) (block.Extent, bool) {
	for u := max(from, 0); u < int64(len(m)); u++ {
		if !m[u] {
			continue
		}
		end := u
		for end < int64(len(m)) && m[end] && (limit <= 0 || end-u < limit) {
			end++
		}
		return ext(u*block.Unit, (end-u)*block.Unit), true
	}
	return block.Extent{}, false
}

// randomExtent is now small, now large, now beyond the end, never aligned to
// anything but by chance.
func randomExtent(rng *rand.Rand, size int64) block.Extent {
	off := rng.Int64N(size)
	n := rng.Int64N(1 << (1 + rng.IntN(31)))
	if rng.IntN(3) == 0 {
		off, n = off&^(block.Unit-1), n&^(block.Unit-1)
	}
	return ext(off, n)
}

func TestBitmapAgreesWithModel(t *testing.T) {
	size := 20*gib + 12*kib // into a third group of pages
	m, im := newMeta(t, optionsOf(size))
	b, model := m.Bitmap(3), make(modelBits, size/block.Unit)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 400 {
		e := randomExtent(rng, size)
		first, last := e.Off/block.Unit, (e.End()+block.Unit-1)/block.Unit
		switch rng.IntN(5) {
		case 0, 1:
			if e.Len == 0 {
				last = first
			}
			if got, want := b.Set(e), model.set(first, last, true); got != want {
				t.Fatalf("step %d: Set(%v) changed %d, want %d", i, e, got, want)
			}
		case 2, 3:
			first, last = (e.Off+block.Unit-1)/block.Unit, e.End()/block.Unit
			if got, want := b.Clear(e), model.set(first, last, false); got != want {
				t.Fatalf("step %d: Clear(%v) changed %d, want %d", i, e, got, want)
			}
		case 4:
			from, limit := rng.Int64N(size/block.Unit), rng.Int64N(100)
			got, ok := b.Next(from, limit)
			if want, wantOK := model.next(from, limit); got != want || ok != wantOK {
				t.Fatalf("step %d: Next(%d, %d) = %v, %v; want %v, %v", i, from, limit, got, ok, want, wantOK)
			}
		}
		if i%100 == 99 {
			checkBits(t, b, model)
			must(t, m.WriteBitmaps())
			m = openMeta(t, im, optionsOf(size))
			b = m.Bitmap(3)
			checkBits(t, b, model)
		}
	}
}

// checkBits compares all of a bitmap with the model.
func checkBits(t *testing.T, b *store.Bitmap, model modelBits) {
	t.Helper()
	if got, want := b.Count(), model.count(); got != want {
		t.Fatalf("%d bits, want %d", got, want)
	}
	at := int64(0)
	for e := range b.Runs(0) {
		want, _ := model.next(at, 0)
		if e != want {
			t.Fatalf("run %v, want %v", e, want)
		}
		at = e.End() / block.Unit
	}
	if e, ok := model.next(at, 0); ok {
		t.Fatalf("run %v is missing", e)
	}
}

func TestBitmapEdges(t *testing.T) {
	m, _ := newMeta(t, testOptions())
	b := m.Bitmap(1)
	tests := []struct {
		name    string
		do      func() int64
		changed int64
		runs    []block.Extent
	}{
		{"a byte marks its unit", func() int64 { return b.Set(ext(5000, 1)) }, 1, []block.Extent{unit(1)}},
		{"again changes nothing", func() int64 { return b.Set(ext(4096, 4096)) }, 0, []block.Extent{unit(1)}},
		{"a part does not unmark", func() int64 { return b.Clear(ext(4096, 4095)) }, 0, []block.Extent{unit(1)}},
		{"nothing marks nothing", func() int64 { return b.Set(ext(4096, 0)) }, 0, []block.Extent{unit(1)}},
		{"two bytes on a border mark two", func() int64 { return b.Set(ext(3*4096-1, 2)) }, 2, []block.Extent{ext(4096, 3*4096)}},
		{"only whole units are unmarked", func() int64 { return b.Clear(ext(4097, 3*4096)) }, 2, []block.Extent{unit(1)}},
		{"beyond the end is ignored", func() int64 { return b.Set(ext(64*mib-1, gib)) }, 1, []block.Extent{unit(1), ext(64*mib-4096, 4096)}},
		{"all", b.SetAll, 64*mib/4096 - 2, []block.Extent{ext(0, 64*mib)}},
		{"all but one", func() int64 { return b.Clear(unit(7)) }, 1, []block.Extent{ext(0, 7*4096), ext(8*4096, 64*mib-8*4096)}},
		{"none", b.ClearAll, 64*mib/4096 - 1, nil},
	}
	for _, tt := range tests {
		if got := tt.do(); got != tt.changed {
			t.Errorf("%s: changed %d, want %d", tt.name, got, tt.changed)
		}
		if got := slices.Collect(b.Runs(0)); !slices.Equal(got, tt.runs) {
			t.Errorf("%s: runs %v, want %v", tt.name, got, tt.runs)
		}
	}
}

func TestBitmapsCombine(t *testing.T) {
	m, _ := newMeta(t, optionsOf(20*gib))
	a, b := m.Bitmap(1), m.Bitmap(2)
	a.Set(ext(0, mib))
	a.Set(ext(9*gib, 8*gib))
	b.Set(ext(mib, mib))
	b.Set(ext(19*gib, mib))
	if n := b.Or(a.Runs(0)); n != a.Count() {
		t.Errorf("Or changed %d of %d", n, a.Count())
	}
	want := []block.Extent{ext(0, 2*mib), ext(9*gib, 8*gib), ext(19*gib, mib)}
	if got := slices.Collect(b.Runs(0)); !slices.Equal(got, want) {
		t.Errorf("after Or: %v", got)
	}
	b.CopyFrom(a)
	if got, want := slices.Collect(b.Runs(0)), slices.Collect(a.Runs(0)); !slices.Equal(got, want) {
		t.Errorf("after CopyFrom: %v, want %v", got, want)
	}
	b.CopyFrom(b)
	b.CopyFrom(m.Bitmap(3))
	if b.Count() != 0 {
		t.Errorf("a copy of an empty one has %d bits", b.Count())
	}
}

func TestEmptyPagesAreHoles(t *testing.T) {
	opts := optionsOf(100 * gib)
	m, im := newMeta(t, opts)
	empty := im.DataBytes()
	m.Bitmap(1).SetAll()
	must(t, m.WriteBitmaps())
	if n := im.DataBytes() - empty; n < 100*gib/block.Unit/8 {
		t.Errorf("a full bitmap takes %d bytes", n)
	}
	m.Bitmap(1).ClearAll()
	must(t, m.WriteBitmaps())
	if n := im.DataBytes() - empty; n != 0 {
		t.Errorf("an empty bitmap takes %d bytes", n)
	}
}

func TestResizeKeepsWhatLiesWithin(t *testing.T) {
	m, im := newMeta(t, optionsOf(40*gib))
	b := m.Bitmap(1)
	b.Set(ext(gib, mib))
	b.Set(ext(30*gib, mib))
	must(t, m.WriteBitmaps())
	must(t, m.Resize(20*gib))
	if got := slices.Collect(b.Runs(0)); !slices.Equal(got, []block.Extent{ext(gib, mib)}) {
		t.Errorf("after shrinking: %v", got)
	}
	for range 2 { // in this session, and in the next
		must(t, m.Resize(40*gib))
		if got := slices.Collect(b.Runs(0)); !slices.Equal(got, []block.Extent{ext(gib, mib)}) {
			t.Errorf("after growing: %v", got)
		}
		if n := m.Superblock().Size; n != 40*gib {
			t.Errorf("size %d", n)
		}
		must(t, m.Resize(20*gib))
		must(t, m.Close())
		m = openMeta(t, im, optionsOf(0))
		b = m.Bitmap(1)
	}
	if err := m.Resize(4097); err == nil {
		t.Error("an odd size was taken")
	}
	if err := m.Resize(1 << 60); err == nil {
		t.Error("a size beyond the format was taken")
	}
}

// heapOf is how much memory make keeps.
func heapOf(build func() any) int64 {
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	kept := build()
	runtime.GC()
	runtime.ReadMemStats(&after)
	runtime.KeepAlive(kept)
	return int64(after.HeapAlloc) - int64(before.HeapAlloc)
}

func TestMemoryOfOneTebibyte(t *testing.T) {
	opts := optionsOf(1 << 40)
	opts.Extents = 0
	tests := []struct {
		name  string
		limit int64
		fill  func(m *store.Meta)
	}{
		{"clean", mib, func(*store.Meta) {}},
		{"all of it dirty for two peers", mib, func(m *store.Meta) { m.Bitmap(1).SetAll(); m.Bitmap(2).SetAll() }},
		{"a block in every page dirty for a peer", 36 * mib, func(m *store.Meta) {
			for off := int64(0); off < opts.Size; off += 64 * mib {
				m.Bitmap(1).Set(ext(off, 1))
			}
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var m *store.Meta
			n := heapOf(func() any {
				im := storetest.NewImage(0)
				m = openMeta(t, im, opts)
				tt.fill(m)
				return m
			})
			t.Logf("%d KiB, of bitmaps %d KiB", n/kib, m.MemoryUsage()/kib)
			if n > tt.limit || m.MemoryUsage() > tt.limit {
				t.Errorf("it takes %d bytes, bitmaps %d", n, m.MemoryUsage())
			}
		})
	}
}

func BenchmarkBitmapSetClear(b *testing.B) {
	m, _ := newMeta(b, optionsOf(1<<40))
	bm, rng := m.Bitmap(1), rand.New(rand.NewPCG(1, 1))
	offs := make([]int64, 4096)
	for i := range offs {
		offs[i] = rng.Int64N(gib) &^ 4095
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e := ext(offs[i%len(offs)], 4096)
		bm.Set(e)
		bm.Clear(e)
	}
}

func BenchmarkBitmapNext(b *testing.B) {
	for _, every := range []int64{16 * kib, 16 * mib, 16 * gib} {
		b.Run(fmt.Sprintf("one in %d KiB", every/kib), func(b *testing.B) {
			m, _ := newMeta(b, optionsOf(1<<40))
			bm := m.Bitmap(1)
			for off := int64(0); off < min(1<<40, 4096*every); off += every {
				bm.Set(ext(off, 1))
			}
			from := int64(0)
			for b.Loop() {
				e, ok := bm.Next(from, 256)
				from = e.End() / block.Unit
				if !ok {
					from = 0
				}
			}
		})
	}
}

func TestBitsThatCouldNotBeWrittenAreWrittenLater(t *testing.T) {
	m, im := newMeta(t, testOptions())
	m.Bitmap(1).Set(unit(5))
	full := im.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.ENOSPC})
	if err := m.WriteBitmaps(); !errors.Is(err, block.ErrNoSpace) || !strings.Contains(err.Error(), "bitmap of node id 1") {
		t.Errorf("got %v", err)
	}
	im.Lift(full)
	must(t, m.WriteBitmaps())
	if !openMeta(t, im.CrashClone(storetest.Crash{Lost: 1}), testOptions()).Bitmap(1).Test(unit(5)) {
		t.Error("a bit is lost")
	}
}

func TestBitsBeyondTheEndAreDropped(t *testing.T) {
	m, im := newMeta(t, testOptions())
	m.Bitmap(1).Set(ext(30*mib, 20*mib))
	must(t, m.WriteBitmaps())
	must(t, m.Resize(40*mib)) // in the middle of a page, which is not written
	m = openMeta(t, im.CrashClone(storetest.Crash{Lost: 1}), testOptions())
	want := []block.Extent{ext(30*mib, 10*mib)}
	if got := slices.Collect(m.Bitmap(1).Runs(0)); !slices.Equal(got, want) || m.Bitmap(1).Count() != 10*mib/block.Unit {
		t.Errorf("%v, %d bits", got, m.Bitmap(1).Count())
	}
	must(t, m.WriteBitmaps())
	must(t, m.Resize(64*mib))
	m = openMeta(t, im.CrashClone(storetest.Crash{Lost: 1}), testOptions())
	if got := slices.Collect(m.Bitmap(1).Runs(0)); !slices.Equal(got, want) {
		t.Errorf("after growing again: %v", got)
	}
}
