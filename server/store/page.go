package store

import (
	"encoding/binary"
	"hash/crc32"
	"math/bits"
)

// Format constants of bitmap pages.
const (
	sectorBytes  = 512
	sectorWords  = 63 // the 64th holds the checksum
	pageBytes    = 4096
	pageSectors  = pageBytes / sectorBytes
	pageWords    = sectorWords * pageSectors
	pageUnits    = pageWords * 64
	groupPages   = 64 // pages of one peer that lie together in the file
	groupUnits   = groupPages * pageUnits
	slotBytes    = groupPages * pageBytes // one peer's part of a group
	groupBytes   = Peers * slotBytes
	sectorSealed = sectorWords * 8
)

// castagnoli is built once; hash/crc32 hands out one shared table.
func castagnoli() *crc32.Table { return crc32.MakeTable(crc32.Castagnoli) }

// page is the bits of pageUnits units in memory. A page that is nil has no bit
// set; the page `full` of a bitmap, shared and never changed, has all.
type page struct {
	words [pageWords]uint64
	set   int32
}

// newFullPage returns a page with every bit set.
func newFullPage() *page {
	p := &page{set: pageUnits}
	for i := range p.words {
		p.words[i] = ^uint64(0)
	}
	return p
}

// wordMask is the bits of word w that lie in [a,b).
func wordMask(w, a, b int) uint64 {
	m := ^uint64(0)
	if lo := a - w*64; lo > 0 {
		m &= ^uint64(0) << lo
	}
	if hi := b - w*64; hi < 64 {
		m &= ^uint64(0) >> (64 - hi)
	}
	return m
}

// setRange sets the bits [a,b) and returns how many were not.
func (p *page) setRange(a, b int) int64 {
	changed := 0
	for w := a / 64; w <= (b-1)/64; w++ {
		m := wordMask(w, a, b)
		changed += bits.OnesCount64(m &^ p.words[w])
		p.words[w] |= m
	}
	p.set += int32(changed)
	return int64(changed)
}

// clearRange clears the bits [a,b) and returns how many were set.
func (p *page) clearRange(a, b int) int64 {
	changed := 0
	for w := a / 64; w <= (b-1)/64; w++ {
		m := wordMask(w, a, b)
		changed += bits.OnesCount64(m & p.words[w])
		p.words[w] &^= m
	}
	p.set -= int32(changed)
	return int64(changed)
}

// find returns the first bit at or after i that is as wanted, or pageUnits.
func (p *page) find(i int, wanted bool) int {
	flip := ^uint64(0)
	if wanted {
		flip = 0
	}
	for w := i / 64; w < pageWords; w++ {
		v := p.words[w] ^ flip
		if w == i/64 {
			v &= ^uint64(0) << (i % 64)
		}
		if v != 0 {
			return w*64 + bits.TrailingZeros64(v)
		}
	}
	return pageUnits
}

// pageID is where a page belongs. It is part of each sector's checksum, so that
// a sector that was written to the wrong place is not taken for a right one.
type pageID struct {
	slot  int
	index int64
}

func sectorSum(id pageID, sector int, words []byte) uint32 {
	var where [16]byte
	binary.LittleEndian.PutUint32(where[0:], uint32(id.slot))
	binary.LittleEndian.PutUint64(where[4:], uint64(id.index))
	binary.LittleEndian.PutUint32(where[12:], uint32(sector))
	return crc32.Update(crc32.Checksum(words, castagnoli()), castagnoli(), where[:])
}

// encode writes p, which may be nil, to the pageBytes of out.
func (p *page) encode(id pageID, out []byte) {
	clear(out[:pageBytes])
	if p == nil {
		return
	}
	for s := range pageSectors {
		sector := out[s*sectorBytes:][:sectorBytes]
		any := uint64(0)
		for i, w := range p.words[s*sectorWords:][:sectorWords] {
			binary.LittleEndian.PutUint64(sector[i*8:], w)
			any |= w
		}
		if any != 0 {
			binary.LittleEndian.PutUint32(sector[sectorSealed:], sectorSum(id, s, sector[:sectorSealed]))
		}
	}
}

// decodePage reads a page. Sectors that are not what was written there read as
// all ones: a bit too many costs a little resync, a bit too few costs data. It
// returns nil for a page without bits, and how many sectors were bad.
func decodePage(id pageID, in []byte) (p *page, damaged int) {
	p = new(page)
	for s := range pageSectors {
		sector := in[s*sectorBytes:][:sectorBytes]
		words := p.words[s*sectorWords:][:sectorWords]
		if ok := decodeSector(id, s, sector, words); !ok {
			damaged++
			for i := range words {
				words[i] = ^uint64(0)
			}
		}
		for _, w := range words {
			p.set += int32(bits.OnesCount64(w))
		}
	}
	if p.set == 0 {
		return nil, damaged
	}
	return p, damaged
}

func decodeSector(id pageID, s int, sector []byte, words []uint64) bool {
	any := uint64(0)
	for i := range words {
		words[i] = binary.LittleEndian.Uint64(sector[i*8:])
		any |= words[i]
	}
	seal := binary.LittleEndian.Uint64(sector[sectorSealed:])
	if any == 0 {
		return seal == 0
	}
	return seal == uint64(sectorSum(id, s, sector[:sectorSealed]))
}
