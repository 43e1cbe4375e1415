package storetest

import (
	"bytes"
	"errors"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
)

// TestDisk holds a Disk against what store.Disk promises. open returns a new
// disk of size bytes of zeroes; holes says whether it is one that can have
// holes.
func TestDisk(t *testing.T, size int64, holes bool, open func(t *testing.T) store.Disk) {
	t.Run("reads what was written", func(t *testing.T) { testContent(t, size, open(t)) })
	t.Run("zeroes and trims any range", func(t *testing.T) { testZero(t, size, open(t)) })
	t.Run("refuses what is out of range", func(t *testing.T) { testRange(t, size, open(t)) })
	t.Run("maps data and holes", func(t *testing.T) { testExtents(t, size, holes, open(t)) })
	t.Run("fails after Close", func(t *testing.T) { testClosed(t, open(t)) })
}

func fill(t *testing.T, d store.Disk, rng *rand.Rand, model []byte, off int64) {
	t.Helper()
	for i := range model {
		model[i] = byte(1 + rng.IntN(255))
	}
	if n, err := d.WriteAt(model, off); n != len(model) || err != nil {
		t.Fatalf("wrote %d: %v", n, err)
	}
}

func expect(t *testing.T, d store.Disk, want []byte, off int64) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := d.ReadAt(got, off); n != len(got) || err != nil {
		t.Fatalf("read %d of %d: %v", n, len(got), err)
	}
	if !bytes.Equal(got, want) {
		t.Fatal("it reads other than what was written")
	}
}

// expectAround looks at a range of model and a little of what is next to it.
func expectAround(t *testing.T, d store.Disk, model []byte, off, n int64) {
	t.Helper()
	first, last := max(0, off-8192), min(int64(len(model)), off+n+8192)
	expect(t, d, model[first:last], first)
}

func testContent(t *testing.T, size int64, d store.Disk) {
	defer d.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	model := make([]byte, size)
	expect(t, d, model, 0)
	for range 50 {
		off := rng.Int64N(size)
		n := rng.Int64N(min(size-off, 100000) + 1)
		fill(t, d, rng, model[off:off+n], off)
	}
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	expect(t, d, model, 0)
	if d.Size() != size || d.Path() == "" {
		t.Errorf("size %d, path %q", d.Size(), d.Path())
	}
}

func testZero(t *testing.T, size int64, d store.Disk) {
	defer d.Close()
	rng := rand.New(rand.NewPCG(2, 1))
	model := make([]byte, size)
	fill(t, d, rng, model, 0)
	ways := map[string]func(off, n int64) error{
		"trim":      d.Trim,
		"zero":      func(off, n int64) error { return d.Zero(off, n, 0) },
		"no hole":   func(off, n int64) error { return d.Zero(off, n, block.NoHole) },
		"fast":      func(off, n int64) error { return d.Zero(off, n, block.FastZero) },
		"fast kept": func(off, n int64) error { return d.Zero(off, n, block.FastZero|block.NoHole) },
	}
	for i := range 30 {
		off := rng.Int64N(size)
		n := rng.Int64N(min(size-off, 200000) + 1)
		if i%2 == 0 {
			off, n = off&^4095, n&^4095
		}
		for name, zero := range ways {
			err := zero(off, n)
			if errors.Is(err, block.ErrNotSupported) && name[:4] == "fast" {
				expectAround(t, d, model, off, n)
				continue
			}
			if err != nil {
				t.Fatalf("%s %d+%d: %v", name, off, n, err)
			}
			clear(model[off : off+n])
			expectAround(t, d, model, off, n)
			fill(t, d, rng, model[off:off+n], off)
		}
	}
	expect(t, d, model, 0)
}

func testRange(t *testing.T, size int64, d store.Disk) {
	defer d.Close()
	p := make([]byte, 4096)
	const most = math.MaxInt64
	for _, off := range []int64{-1, -4096, size - 4095, size, size + 1, most, most - 4095} {
		_, rerr := d.ReadAt(p, off)
		_, werr := d.WriteAt(p, off)
		_, eerr := d.Extents(off, 4096, 1)
		for i, err := range []error{rerr, werr, eerr, d.Trim(off, 4096), d.Zero(off, 4096, 0)} {
			if !errors.Is(err, block.ErrRange) {
				t.Errorf("operation %d at %d: %v", i, off, err)
			}
		}
	}
	if err := d.Trim(4096, most); !errors.Is(err, block.ErrRange) {
		t.Errorf("an endless trim: %v", err)
	}
	if err := d.Zero(0, -1, 0); !errors.Is(err, block.ErrRange) {
		t.Errorf("a negative zero: %v", err)
	}
	if n, err := d.ReadAt(nil, size); n != 0 || err != nil {
		t.Errorf("nothing, at the end: %d, %v", n, err)
	}
}

func testExtents(t *testing.T, size int64, holes bool, d store.Disk) {
	defer d.Close()
	const quarter = 256 << 10
	if size < 4*quarter {
		t.Fatalf("a disk of %d bytes is too small for this", size)
	}
	data := bytes.Repeat([]byte{1}, quarter)
	for _, off := range []int64{0, 2 * quarter} {
		if _, err := d.WriteAt(data, off); err != nil {
			t.Fatal(err)
		}
	}
	all, err := d.Extents(1000, size-2000, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	at, sawHole := int64(1000), false
	for _, e := range all {
		if e.Off != at || e.Len <= 0 {
			t.Fatalf("extent %v follows %d", e, at)
		}
		if e.Hole {
			sawHole = true
			expect(t, d, make([]byte, e.Len), e.Off)
		}
		at = e.End()
	}
	if at != size-1000 || sawHole != holes {
		t.Errorf("%d extents end at %d, holes: %v", len(all), at, sawHole)
	}
	if few, err := d.Extents(1000, size-2000, 2); err != nil || len(few) != min(2, len(all)) {
		t.Errorf("of %d at most 2: %v, %v", len(all), few, err)
	}
	if none, err := d.Extents(0, 0, 5); err != nil || len(none) != 0 {
		t.Errorf("of nothing: %v, %v", none, err)
	}
}

func testClosed(t *testing.T, d store.Disk) {
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 512)
	_, rerr := d.ReadAt(p, 0)
	_, werr := d.WriteAt(p, 0)
	_, eerr := d.Extents(0, 512, 1)
	for i, err := range []error{rerr, werr, eerr, d.Sync(), d.Trim(0, 4096), d.Zero(0, 4096, 0)} {
		if !errors.Is(err, store.ErrClosed) || !errors.Is(err, block.ErrIO) || errors.Is(err, io.EOF) {
			t.Errorf("operation %d: %v", i, err)
		}
	}
	if err := d.Close(); err != nil {
		t.Errorf("a second Close: %v", err)
	}
}
