package store

import (
	"maps"
	"slices"
	"sync"

	"github.com/lockstepd/lockstep/server/block"
)

// ActivityLog keeps a bounded set of extents hot: listed on stable storage as
// "may differ from any peer". Writes go to hot extents only; after a crash what
// is hot is resynced. Its methods are safe for concurrent use.
type ActivityLog struct {
	log      logWriter
	pressure func(epoch uint64)
	turn     turn // whoever holds it plans and writes transactions

	// mu guards what is below. No I/O happens under it.
	mu       sync.Mutex
	session  logSession
	slots    []logSlot
	index    map[uint32]int32 // hot extents, which are so durably, to slots
	free     []int32          // slots without an extent
	idle     logList          // slots that nobody refers to, longest idle first
	stable   uint64           // epochs up to it are durable wherever that matters
	queue    []*activation    // waiting for a transaction, first come first served
	starving bool             // the first of the queue needs slots that are in use: TryBegin holds back
	closed   bool
	disabled bool
	ready    error         // why nothing can become hot; nil if it can
	wake     chan struct{} // told, while starving, that a slot may have become idle
	stats    LogStats
}

// logWriter is what the log needs of the metadata file.
type logWriter interface {
	// open marks the metadata as in use; a stop from now on is unclean.
	open() error
	// writeBitmaps makes the bits of the extents durable.
	writeBitmaps(extents []block.Extent) error
	// append makes a transaction durable; state is the extents of all slots
	// before it. After a failure it may or may not have happened.
	append(updates []logUpdate, state []uint32) error
	// disable records that writes are not logged, or are again.
	disable(off bool) error
}

// logSlot is one place of the log. Its extent is what the newest transaction
// says; noExtent where that is none or in doubt.
type logSlot struct {
	extent     uint32
	refs       int32
	prev, next int32 // in the idle list, -1 at its ends
	epoch      uint64
}

// LogStats says how an activity log fares.
type LogStats struct {
	ExtentBytes  int64  // size of an extent
	Slots        int    // extents that can be hot
	Hot          int    // extents that are
	Referenced   int    // of those, with a write under way
	Unstable     int    // of the rest, not yet durable everywhere
	HotBytes     int64  // what a crash now would have resynced
	Misses       uint64 // writes that waited for a transaction
	Transactions uint64
	Evictions    uint64
	Starved      uint64 // times that the log was full of extents in use
}

func (l *ActivityLog) reset(session logSession) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.session = session
	l.slots = make([]logSlot, session.slots)
	l.index = make(map[uint32]int32, session.slots)
	l.free = make([]int32, 0, session.slots)
	l.idle = logList{head: -1, tail: -1}
	for i := session.slots - 1; i >= 0; i-- {
		l.slots[i] = logSlot{extent: noExtent, prev: -1, next: -1}
		l.free = append(l.free, int32(i))
	}
}

// span is the first and last extent that e touches.
func (l *ActivityLog) span(e block.Extent) (first, last uint32) {
	return uint32(e.Off / l.session.extent), uint32((e.End() - 1) / l.session.extent)
}

// TryBegin takes a reference on every extent that e touches, if all are hot,
// and reports whether it did. It does no I/O and does not wait. Where it did
// not, Activate is to be called, by a goroutine that may block.
func (l *ActivityLog) TryBegin(e block.Extent) bool {
	if e.Len <= 0 {
		return true
	}
	l.mu.Lock()
	ok := l.tryBegin(e)
	l.mu.Unlock()
	return ok
}

func (l *ActivityLog) tryBegin(e block.Extent) bool {
	if l.starving || l.closed {
		return false
	}
	if l.disabled {
		return true
	}
	first, last := l.span(e)
	i, ok := l.index[first]
	if !ok {
		return false
	}
	if first == last {
		l.take(i)
		return true
	}
	for x := first + 1; x <= last; x++ {
		if _, ok := l.index[x]; !ok {
			return false
		}
	}
	for x := first; x <= last; x++ {
		l.take(l.index[x])
	}
	return true
}

// End gives back what TryBegin or Activate took for e. Extents stay hot at
// least until epoch is stable; 0 is always. Bits of peers that missed the write
// are set before.
func (l *ActivityLog) End(e block.Extent, epoch uint64) {
	if e.Len <= 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.disabled {
		return
	}
	first, last := l.span(e)
	for x := first; x <= last; x++ {
		l.drop(l.mustIndex(x), epoch)
	}
}

// mustIndex is the slot of an extent that somebody refers to.
func (l *ActivityLog) mustIndex(x uint32) int32 {
	i, ok := l.index[x]
	if !ok {
		panic("store: End of an extent that is not hot: every End needs a TryBegin or Activate of the same range")
	}
	return i
}

// SetStable says that everything up to epoch is durable on every replica that
// counts as in sync, and that those that do not have their bits set.
func (l *ActivityLog) SetStable(epoch uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if epoch > l.stable {
		l.stable = epoch
		l.notify()
	}
}

// Hot lists the extents that are hot.
func (l *ActivityLog) Hot() []block.Extent {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]block.Extent, 0, len(l.index))
	for _, x := range slices.Sorted(maps.Keys(l.index)) {
		out = append(out, l.session.extentAt(x))
	}
	return out
}

// Stats returns figures for people.
func (l *ActivityLog) Stats() LogStats {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := l.stats
	st.ExtentBytes, st.Slots, st.Hot = l.session.extent, l.session.slots, len(l.index)
	st.HotBytes = int64(st.Hot) * st.ExtentBytes
	for _, i := range l.index {
		switch s := &l.slots[i]; {
		case s.refs > 0:
			st.Referenced++
		case s.epoch > l.stable:
			st.Unstable++
		}
	}
	return st
}

// MaxSpan is how many bytes, wherever they begin, one Activate takes at once.
// What is larger, a trim of half the disk, is done in parts.
func (l *ActivityLog) MaxSpan() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return max(1, int64(l.maxExtents()-1)) * l.session.extent
}

func (l *ActivityLog) maxExtents() int { return min(len(l.slots), maxBatchUpdates) }

// quiet reports whether an unclean stop now would lose nothing: no write is
// under way and all that were are durable everywhere.
func (l *ActivityLog) quiet() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, i := range l.index {
		if s := &l.slots[i]; s.refs > 0 || s.epoch > l.stable {
			return false
		}
	}
	return !l.disabled
}

// stop lets nothing become hot any more, and waits for the transaction under
// way.
func (l *ActivityLog) stop() {
	l.Halt()
	l.turn.take()
	l.turn.release()
}

// Halt lets nothing become hot any more: who waits for that gets ErrClosed.
func (l *ActivityLog) Halt() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ready, l.closed = ErrClosed, true
	for _, a := range l.queue {
		a.queued = false
		a.done <- ErrClosed
	}
	l.queue = nil
	l.notify()
	l.starving = false
}

// take adds a reference to slot i.
func (l *ActivityLog) take(i int32) {
	s := &l.slots[i]
	if s.refs == 0 {
		l.idle.remove(l.slots, i)
	}
	s.refs++
}

// drop takes a reference from slot i.
func (l *ActivityLog) drop(i int32, epoch uint64) {
	s := &l.slots[i]
	if s.refs == 0 {
		panic("store: an extent of the activity log was ended more often than begun")
	}
	s.refs--
	s.epoch = max(s.epoch, epoch)
	if s.refs == 0 {
		l.idle.push(l.slots, i)
		l.notify()
	}
}

// notify tells the goroutine that waits for slots to look again.
func (l *ActivityLog) notify() {
	if !l.starving {
		return
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// logList is a list of slots through their prev and next.
type logList struct{ head, tail int32 }

func (q *logList) push(slots []logSlot, i int32) {
	slots[i].prev, slots[i].next = q.tail, -1
	if q.tail >= 0 {
		slots[q.tail].next = i
	} else {
		q.head = i
	}
	q.tail = i
}

func (q *logList) remove(slots []logSlot, i int32) {
	s := &slots[i]
	if s.prev >= 0 {
		slots[s.prev].next = s.next
	} else {
		q.head = s.next
	}
	if s.next >= 0 {
		slots[s.next].prev = s.prev
	} else {
		q.tail = s.prev
	}
	s.prev, s.next = -1, -1
}
