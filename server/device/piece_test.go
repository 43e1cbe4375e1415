package device

import (
	"testing"

	"github.com/lockstepd/lockstep/server/block"
)

// TestUnitsOfAPiece: which a change touches, and of which it leaves nothing.
func TestUnitsOfAPiece(t *testing.T) {
	const u = block.Unit
	piece := block.Extent{Off: 4 * u, Len: 128 * u}
	set := func(from, to int64) (s units) { s.add(from, to); return s }
	for _, c := range []struct {
		name              string
		e                 block.Extent
		touched, replaced units
	}{
		{"one unit", block.Extent{Off: 5 * u, Len: u}, set(1, 2), set(1, 2)},
		{"all", piece, set(0, 128), set(0, 128)},
		{"more than all", block.Extent{Off: 0, Len: 1000 * u}, set(0, 128), set(0, 128)},
		{"a sector", block.Extent{Off: 5*u + 512, Len: 512}, set(1, 2), units{}},
		{"parts of two", block.Extent{Off: 5*u + 512, Len: u}, set(1, 3), units{}},
		{"one and parts of its neighbours", block.Extent{Off: 5*u - 512, Len: u + 1024}, set(0, 3), set(1, 2)},
		{"over the beginning", block.Extent{Off: 3 * u, Len: 2*u + 1}, set(0, 2), set(0, 1)},
		{"over the end", block.Extent{Off: 131*u - 1, Len: 9 * u}, set(126, 128), set(127, 128)},
		{"across the words", block.Extent{Off: 67 * u, Len: 3 * u}, set(63, 66), set(63, 66)},
		{"before", block.Extent{Off: 3 * u, Len: u}, units{}, units{}},
		{"behind", block.Extent{Off: 132 * u, Len: u}, units{}, units{}},
	} {
		if got := touched(piece, c.e); got != c.touched {
			t.Errorf("%s: touches %x, want %x", c.name, got, c.touched)
		}
		if got := replaced(piece, c.e); got != c.replaced {
			t.Errorf("%s: replaces %x, want %x", c.name, got, c.replaced)
		}
	}
}
