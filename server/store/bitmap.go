package store

import (
	"iter"
	"math/bits"
	"sync"
	"unsafe"

	"github.com/lockstepd/lockstep/server/block"
)

// Bitmap says which units of a device may differ from one peer's. Its methods
// are safe for concurrent use, do no I/O, and ignore what lies beyond the end
// of the device. A device without differences costs next to no memory, one that
// differs everywhere neither; what costs are differences here and there, at
// most a bit per unit.
type Bitmap struct {
	slot int
	full *page // every bit set; shared between the bitmaps of a device

	// mu guards what is below. No I/O happens under it.
	mu     sync.Mutex
	units  int64
	groups []*group // a nil group has no bit set
	count  int64
}

// group is the bits that lie together in the file.
type group struct {
	pages [groupPages]*page
	dirty uint64 // pages that differ from the file's
	count int64
}

func newBitmap(slot int, full *page, size int64) *Bitmap {
	return &Bitmap{slot: slot, full: full, units: size / block.Unit}
}

func groupsOf(units int64) int { return int((units + groupUnits - 1) / groupUnits) }

// unitsTouched is the range of units that e touches, cut to the device.
func (b *Bitmap) unitsTouched(e block.Extent) (first, last int64) {
	if e.Len <= 0 {
		return 0, 0
	}
	return b.cut(e.Off/block.Unit, (e.End()+block.Unit-1)/block.Unit)
}

// unitsInside is the range of units that lie wholly in e, cut to the device.
func (b *Bitmap) unitsInside(e block.Extent) (first, last int64) {
	if e.Len <= 0 {
		return 0, 0
	}
	return b.cut((e.Off+block.Unit-1)/block.Unit, e.End()/block.Unit)
}

func (b *Bitmap) cut(first, last int64) (int64, int64) {
	return max(first, 0), min(last, b.units)
}

func unitsExtent(first, last int64) block.Extent {
	return block.Extent{Off: first * block.Unit, Len: (last - first) * block.Unit}
}

// Slot is the node id of the peer.
func (b *Bitmap) Slot() int { return b.slot }

// Set marks every unit that e touches and returns how many were not marked.
func (b *Bitmap) Set(e block.Extent) (changed int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.setUnits(b.unitsTouched(e))
}

// Clear unmarks every unit that lies wholly in e and returns how many were
// marked. A unit that was copied in part stays marked.
func (b *Bitmap) Clear(e block.Extent) (changed int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.clearUnits(b.unitsInside(e))
}

// SetAll marks the whole device.
func (b *Bitmap) SetAll() (changed int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.setUnits(0, b.units)
}

// ClearAll unmarks the whole device.
func (b *Bitmap) ClearAll() (changed int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.clearUnits(0, b.units)
}

// Count is how many units are marked.
func (b *Bitmap) Count() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.count
}

// Test reports whether any unit that e touches is marked.
func (b *Bitmap) Test(e block.Extent) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	first, last := b.unitsTouched(e)
	return first < last && b.find(first, last, true) < last
}

// Next returns the first run of marked units at or after unit from, at most
// limit units of it (all of it if limit is 0 or less).
func (b *Bitmap) Next(from, limit int64) (block.Extent, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.count == 0 {
		return block.Extent{}, false
	}
	first := b.find(max(from, 0), b.units, true)
	if first >= b.units {
		return block.Extent{}, false
	}
	end := b.units
	if limit > 0 && limit < end-first {
		end = first + limit
	}
	return unitsExtent(first, b.find(first, end, false)), true
}

// Runs yields the runs of marked units from unit from on, in order. What is
// marked or unmarked meanwhile, ahead of the last run, is seen.
func (b *Bitmap) Runs(from int64) iter.Seq[block.Extent] {
	return func(yield func(block.Extent) bool) {
		for {
			e, ok := b.Next(from, 0)
			if !ok || !yield(e) {
				return
			}
			from = e.End() / block.Unit
		}
	}
}

// Or marks all units that the runs touch and returns how many were not marked.
func (b *Bitmap) Or(runs iter.Seq[block.Extent]) (changed int64) {
	for e := range runs {
		changed += b.Set(e)
	}
	return changed
}

// CopyFrom makes b mark what src marks. Neither may be changed meanwhile by
// somebody who relies on the result being exact.
func (b *Bitmap) CopyFrom(src *Bitmap) {
	if b == src {
		return
	}
	at := int64(0)
	for e := range src.Runs(0) {
		b.Clear(block.Extent{Off: at, Len: e.Off - at})
		b.Set(e)
		at = e.End()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.clearUnits(at/block.Unit, b.units)
}

// memory is what the bitmap holds, in bytes.
func (b *Bitmap) memory() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := int64(cap(b.groups)) * int64(unsafe.Sizeof(uintptr(0)))
	for _, g := range b.groups {
		if g == nil {
			continue
		}
		n += int64(unsafe.Sizeof(*g))
		for _, p := range g.pages {
			if p != nil && p != b.full {
				n += int64(unsafe.Sizeof(*p))
			}
		}
	}
	return n
}

// group returns the group of index i, made if need be.
func (b *Bitmap) group(i int64) *group {
	if b.groups == nil {
		b.groups = make([]*group, groupsOf(b.units))
	}
	if b.groups[i] == nil {
		b.groups[i] = new(group)
	}
	return b.groups[i]
}

// peek returns the group of index i, or nil.
func (b *Bitmap) peek(i int64) *group {
	if i >= int64(len(b.groups)) {
		return nil
	}
	return b.groups[i]
}

// eachPage calls f for the part [a,z) of every page in the range of units.
func eachPage(first, last int64, f func(group int64, page, a, z int)) {
	for first < last {
		p := first / pageUnits
		end := min(last, (p+1)*pageUnits)
		f(p/groupPages, int(p%groupPages), int(first-p*pageUnits), int(end-p*pageUnits))
		first = end
	}
}

func (b *Bitmap) setUnits(first, last int64) (changed int64) {
	eachPage(first, last, func(i int64, p, a, z int) {
		g := b.group(i)
		n := b.setInPage(g, p, a, z)
		g.note(p, n)
		b.count += n
		changed += n
	})
	return changed
}

func (b *Bitmap) setInPage(g *group, p, a, z int) (changed int64) {
	pg := g.pages[p]
	switch {
	case pg == b.full:
		return 0
	case z-a == pageUnits:
		changed = pageUnits
		if pg != nil {
			changed -= int64(pg.set)
		}
		g.pages[p] = b.full
		return changed
	case pg == nil:
		pg = new(page)
		g.pages[p] = pg
	}
	changed = pg.setRange(a, z)
	if pg.set == pageUnits {
		g.pages[p] = b.full
	}
	return changed
}

func (b *Bitmap) clearUnits(first, last int64) (changed int64) {
	eachPage(first, last, func(i int64, p, a, z int) {
		g := b.peek(i)
		if g == nil || g.pages[p] == nil {
			return
		}
		n := b.clearInPage(g, p, a, z)
		g.note(p, -n)
		b.count -= n
		changed += n
	})
	return changed
}

func (b *Bitmap) clearInPage(g *group, p, a, z int) (changed int64) {
	pg := g.pages[p]
	if z-a == pageUnits {
		g.pages[p] = nil
		return int64(pg.set)
	}
	if pg == b.full {
		own := *pg
		pg = &own
		g.pages[p] = pg
	}
	// A page that has become empty is let go when it is written: until then it
	// is likely to be wanted again.
	return pg.clearRange(a, z)
}

// note records that page p changed by n bits.
func (g *group) note(p int, n int64) {
	if n != 0 {
		g.count += n
		g.dirty |= 1 << p
	}
}

// find returns the first unit in [from,end) that is as wanted, or end.
func (b *Bitmap) find(from, end int64, wanted bool) int64 {
	for from < end {
		g := b.peek(from / groupUnits)
		if g == nil || g.count == 0 {
			if !wanted {
				return from
			}
			from = (from/groupUnits + 1) * groupUnits
			continue
		}
		index := from / pageUnits
		at := b.findInPage(g.pages[index%groupPages], int(from-index*pageUnits), wanted)
		if at < pageUnits {
			return min(end, index*pageUnits+int64(at))
		}
		from = (index + 1) * pageUnits
	}
	return end
}

func (b *Bitmap) findInPage(p *page, i int, wanted bool) int {
	empty := p == nil || p.set == 0
	switch {
	case empty && wanted, p == b.full && !wanted:
		return pageUnits
	case empty, p == b.full:
		return i
	}
	return p.find(i, wanted)
}

// resize fits the bitmap to a device of another size. New units are unmarked;
// units beyond the end are forgotten.
func (b *Bitmap) resize(size int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	units := size / block.Unit
	b.clearUnits(units, b.units)
	if b.groups != nil {
		groups := make([]*group, groupsOf(units))
		copy(groups, b.groups)
		b.groups = groups
	}
	b.units = units
}

// load puts a page that was read from the file in place; what of it lies beyond
// the device is dropped.
func (b *Bitmap) load(index int64, p *page, differs bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p == nil || int(index/groupPages) >= groupsOf(b.units) {
		return
	}
	if index*pageUnits >= b.units {
		b.group(index / groupPages).dirty |= 1 << (index % groupPages)
		return
	}
	if end := b.units - index*pageUnits; end < pageUnits {
		differs = p.clearRange(int(end), pageUnits) > 0 || differs
	}
	g := b.group(index / groupPages)
	if p.set == pageUnits {
		p = b.full
	}
	g.pages[index%groupPages] = p
	g.count += int64(p.set)
	b.count += int64(p.set)
	if differs {
		g.dirty |= 1 << (index % groupPages)
	}
}

// takeDirty encodes the dirty pages of group i that mask names into out, marks
// them as written, and returns which they are and which of them have no bits.
func (b *Bitmap) takeDirty(i int64, mask uint64, out []byte) (taken, empty uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	g := b.peek(i)
	if g == nil {
		return 0, 0
	}
	taken = g.dirty & mask
	g.dirty &^= taken
	for left := taken; left != 0; left &= left - 1 {
		p := bits.TrailingZeros64(left)
		if g.pages[p] == nil || g.pages[p].set == 0 {
			g.pages[p] = nil
			empty |= 1 << p
		}
		g.pages[p].encode(pageID{b.slot, i*groupPages + int64(p)}, out[p*pageBytes:])
	}
	return taken, empty
}

// markDirty takes back what takeDirty did, for pages that could not be written.
func (b *Bitmap) markDirty(i int64, pages uint64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if pages != 0 && int(i) < groupsOf(b.units) {
		b.group(i).dirty |= pages
	}
}

// untouched reports whether no bit was ever set or read.
func (b *Bitmap) untouched() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.groups == nil
}

// dirtyGroups lists the groups that have pages to write.
func (b *Bitmap) dirtyGroups() []int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []int64
	for i, g := range b.groups {
		if g != nil && g.dirty != 0 {
			out = append(out, int64(i))
		}
	}
	return out
}
