package store

import (
	"fmt"
	"math/bits"

	"github.com/lockstepd/lockstep/server/block"
)

// WriteBitmaps makes all bits of all bitmaps durable as they are now.
func (m *Meta) WriteBitmaps() error {
	for _, b := range m.bitmaps {
		for _, g := range m.toWrite(b) {
			if err := m.writePages(b, g, ^uint64(0)); err != nil {
				return err
			}
		}
	}
	return m.vol.sync()
}

// toWrite lists the groups of b that are not in the file as they are. It looks
// while nobody writes: pages that are being written are not dirty and not there
// yet either.
func (m *Meta) toWrite(b *Bitmap) []int64 {
	m.pages.take()
	defer m.pages.release()
	return b.dirtyGroups()
}

// writeBitmaps makes the bits of extents durable, and does nothing where they
// are.
func (m *Meta) writeBitmaps(extents []block.Extent) error {
	for _, b := range m.bitmaps {
		if b.untouched() {
			continue
		}
		for _, e := range extents {
			if err := m.writeExtent(b, e); err != nil {
				return err
			}
		}
	}
	if len(extents) == 0 {
		return nil
	}
	// Even where this wrote nothing: somebody else may have written the pages
	// and not have synced them yet.
	return m.vol.sync()
}

// writeExtent writes the pages of b that cover e.
func (m *Meta) writeExtent(b *Bitmap, e block.Extent) error {
	first := e.Off / block.Unit / pageUnits
	last := (e.End() - 1) / block.Unit / pageUnits
	for first <= last {
		g, mask := first/groupPages, uint64(0)
		for ; first <= last && first/groupPages == g; first++ {
			mask |= 1 << (first % groupPages)
		}
		if err := m.writePages(b, g, mask); err != nil {
			return err
		}
	}
	return nil
}

// writePages writes the dirty ones among the pages of a group that mask names.
// Only one goroutine at a time does, so that an older page never overwrites a
// newer one.
func (m *Meta) writePages(b *Bitmap, g int64, mask uint64) error {
	m.pages.take()
	defer m.pages.release()
	if m.pageBuf == nil {
		m.pageBuf = make([]byte, slotBytes)
	}
	taken, empty := b.takeDirty(g, mask, m.pageBuf)
	if err := m.writeRuns(b.slot, g, taken, empty); err != nil {
		b.markDirty(g, taken)
		return fmt.Errorf("saving the bitmap of node id %d: %w", b.slot, err)
	}
	return nil
}

// writeRuns writes runs of pages with bits, and punches runs of those without.
func (m *Meta) writeRuns(slot int, g int64, pages, empty uint64) error {
	for pages != 0 {
		first := bits.TrailingZeros64(pages)
		kind := pages & empty
		if empty&(1<<first) == 0 {
			kind = pages &^ empty
		}
		n := bits.TrailingZeros64(^(kind >> first))
		off := pagePlace(slot, g*groupPages+int64(first))
		var err error
		if empty&(1<<first) != 0 {
			err = m.vol.punch(off, int64(n)*pageBytes)
		} else {
			err = m.vol.write(m.pageBuf[first*pageBytes:(first+n)*pageBytes], off)
		}
		if err != nil {
			return err
		}
		pages &^= (^uint64(0) >> (64 - n)) << first
	}
	return nil
}

// pagePlace is where in the file a page of a peer's bitmap is.
func pagePlace(slot int, index int64) int64 {
	return bitmapOff + index/groupPages*groupBytes + int64(slot)*slotBytes + index%groupPages*pageBytes
}

// open begins a session of the activity log. The ring is wiped first, so that
// whatever is found in it later was written in this session.
func (m *Meta) open() error {
	if m.session != nil {
		return nil
	}
	next := m.want
	next.gen = m.sb.Load().log.gen + 1
	if err := m.vol.write(make([]byte, next.blocks()*logBlockBytes), logOff); err != nil {
		return err
	}
	if err := m.vol.sync(); err != nil {
		return err
	}
	err := m.update(func(s *Superblock) {
		s.Flags &^= ALClean
		s.log = next
	})
	if err != nil {
		return err
	}
	m.session, m.lastSeq = &next, 0
	return nil
}

// append writes the blocks of a transaction and makes them durable together.
func (m *Meta) append(updates []logUpdate, state []uint32) error {
	seq, sbSeq := m.lastSeq, m.sb.Load().Seq
	buf := make([]byte, logBlockBytes)
	for len(updates) > 0 {
		n := min(len(updates), logUpdates)
		seq++
		b := &logBlock{
			gen: m.session.gen, seq: seq, durable: m.lastSeq, sbSeq: sbSeq, slots: m.session.slots,
			updates: updates[:n], start: m.session.windowStart(seq),
		}
		for _, u := range b.updates {
			state[u.slot] = u.extent
		}
		b.window = state[b.start:min(b.start+logWindow, len(state))]
		b.encode(buf)
		if err := m.vol.write(buf, m.session.place(seq)); err != nil {
			return err
		}
		updates = updates[n:]
	}
	if err := m.vol.sync(); err != nil {
		return err
	}
	m.lastSeq = seq
	return nil
}

func (m *Meta) disable(off bool) error {
	return m.update(func(s *Superblock) {
		switch {
		case off:
			s.Flags = s.Flags&^ALClean | ALDisabled
		case m.session == nil:
			s.Flags = s.Flags&^ALDisabled | ALClean
		default:
			s.Flags &^= ALDisabled
		}
	})
}

// Recovery says what an unclean stop costs.
type Recovery struct {
	Unclean bool   // there was something to recover
	Extents int    // that were hot
	Bytes   int64  // that will be compared or copied, per peer
	Peers   []int  // node ids whose bitmaps got bits
	Full    bool   // all of the device is marked
	Reason  string // why all of it is
}

// String is a recovery in words.
func (r Recovery) String() string {
	switch {
	case !r.Unclean:
		return "nothing to recover"
	case r.Full:
		return fmt.Sprintf("all %d bytes are in doubt for node ids %v: %s", r.Bytes, r.Peers, r.Reason)
	}
	return fmt.Sprintf("%d hot extents, %d bytes, are in doubt for node ids %v", r.Extents, r.Bytes, r.Peers)
}

// Unclean reports whether Recover has something to do.
func (m *Meta) Unclean() bool { return m.sb.Load().Flags&ALClean == 0 }

// Recover is called after opening, before anything else changes. Where the last
// stop was not clean, it marks in the bitmaps of all peers what was hot, and
// makes that durable. If it is cut short, the next one does it all again.
func (m *Meta) Recover() (Recovery, error) {
	if !m.Unclean() {
		return Recovery{}, nil
	}
	r := m.recovery()
	for _, id := range r.Peers {
		m.markLost(m.bitmaps[id], r.Full)
	}
	if err := m.WriteBitmaps(); err != nil {
		return r, fmt.Errorf("cannot save what an unclean stop left in doubt: %w", err)
	}
	err := m.update(func(s *Superblock) { s.Flags = s.Flags&^ALDisabled | ALClean })
	if err != nil {
		return r, fmt.Errorf("cannot mark the metadata as recovered: %w", err)
	}
	m.al.recovered()
	return r, nil
}

func (m *Meta) recovery() Recovery {
	sb := m.sb.Load()
	r := Recovery{Unclean: true, Extents: len(m.ring.hot), Peers: sb.peers()}
	for _, x := range m.ring.hot {
		e := sb.log.extentAt(x)
		r.Bytes += max(0, min(e.End(), sb.Size)-e.Off)
	}
	switch {
	case sb.Flags&ALDisabled != 0:
		r.Full, r.Reason = true, "the activity log was switched off"
	case m.ring.damage != "":
		r.Full, r.Reason = true, "the activity log is damaged: "+m.ring.damage
	}
	if r.Full {
		r.Bytes = sb.Size
	}
	return r
}

func (m *Meta) markLost(b *Bitmap, full bool) {
	if full {
		b.SetAll()
		return
	}
	session := m.sb.Load().log
	for _, x := range m.ring.hot {
		b.Set(session.extentAt(x))
	}
}

// recovered lets extents become hot.
func (l *ActivityLog) recovered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ready == ErrNotRecovered {
		l.ready = nil
	}
}
