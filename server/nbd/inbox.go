package nbd

import "github.com/lockstepd/lockstep/server/block"

const (
	// slabSize holds one payload of 1 MiB with its header, and a little, so
	// that a stream of such writes is not moved around: what is read beyond
	// the first of them is what must be copied to the next slab.
	slabSize = 1<<20 + 4096
	// minRead is the least room worth reading into.
	minRead = 64 << 10
)

// inbox is where a connection's reader reads to. It belongs to the reader.
//
// The reader holds one reference on every slab that it keeps; writes in
// flight hold more. So a slab of which the reader is the sole holder is free
// to be filled again. When limit slabs are in use by writes that take long,
// the inbox goes on with a private one, and payloads are copied out of it:
// what a stuck request pins is then its own payload and nothing beside it.
type inbox struct {
	pool  *block.Pool
	limit int
	kept  []*block.Buf // shared slabs, cur among them unless it is private
	cur   *block.Buf
	// private: cur's payloads must be copied, not shared.
	private    bool
	head, tail int // cur.B[head:tail] was read and not yet consumed
}

// unread is what was read and not yet consumed.
func (in *inbox) unread() []byte {
	if in.cur == nil {
		return nil
	}
	return in.cur.B[in.head:in.tail]
}

// space returns where to read to, such that the need bytes from head on come
// to lie in one piece.
func (in *inbox) space(need int) []byte {
	if in.head == in.tail && (in.cur == nil || in.private || !in.cur.Sole()) {
		in.renew()
	}
	if in.head == in.tail && in.cur.Sole() {
		in.head, in.tail = 0, 0
	}
	if in.head+need > len(in.cur.B) || len(in.cur.B)-in.tail < minRead {
		in.move()
	}
	return in.cur.B[in.tail:]
}

// renew is called with nothing unread: it replaces a slab that is private, or
// nearly full, by a better one.
func (in *inbox) renew() {
	if in.cur == nil || in.private || len(in.cur.B)-in.tail < minRead {
		in.swap()
	}
}

// move puts the unread bytes at the front of a slab.
func (in *inbox) move() {
	old, unread := in.cur, in.unread()
	if old.Sole() {
		in.tail = copy(old.B, unread)
		in.head = 0
		return
	}
	// Only shared slabs have other holders, so old stays kept while we copy.
	in.swap()
	in.tail = copy(in.cur.B, unread)
}

// swap makes cur an empty slab: one of those kept that is free again, a new
// one, or the private one. What was unread in the old one is the caller's.
func (in *inbox) swap() {
	next := in.free()
	if next == nil && len(in.kept) < in.limit {
		next = in.pool.Get()
		in.kept = append(in.kept, next)
	}
	in.head, in.tail = 0, 0
	switch {
	case next != nil:
		in.dropPrivate()
		in.cur = next
	case !in.private:
		in.cur, in.private = in.pool.Get(), true
	}
}

func (in *inbox) free() *block.Buf {
	for _, s := range in.kept {
		if s.Sole() {
			return s
		}
	}
	return nil
}

func (in *inbox) dropPrivate() {
	if in.private {
		in.cur.Release()
		in.cur, in.private = nil, false
	}
}

// share returns the slab that holds the unread bytes with one more holder, or
// nil if its content must be copied.
func (in *inbox) share() *block.Buf {
	if in.private {
		return nil
	}
	in.cur.Retain()
	return in.cur
}

// rest lets go of the slabs that nobody uses, before the reader sleeps.
func (in *inbox) rest() {
	if in.head != in.tail {
		return
	}
	if in.private {
		in.dropPrivate()
		in.head, in.tail = 0, 0
	}
	kept := in.kept[:0]
	for _, s := range in.kept {
		switch {
		case !s.Sole():
			kept = append(kept, s)
			continue
		case s == in.cur:
			in.cur, in.head, in.tail = nil, 0, 0
		}
		s.Release()
	}
	clear(in.kept[len(kept):])
	in.kept = kept
}

// close lets go of everything.
func (in *inbox) close() {
	in.dropPrivate()
	for _, s := range in.kept {
		s.Release()
	}
	in.kept, in.cur, in.head, in.tail = nil, nil, 0, 0
}
