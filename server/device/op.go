package device

import (
	"sync/atomic"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
)

// opKind says whose operation an op is.
type opKind uint8

const (
	appChange   opKind = iota // the application's, on the primary
	peerChange                // the primary's, on a replica
	syncPull                  // a range that a resync target has asked for
	syncRead                  // a range that a resync source reads for a target
	readHere                  // a local read that had to wait
	readAfter                 // a read whose answer waits for the changes that were under way
	readThere                 // a peer's read
	verifyHere                // a range that this node compares with a peer's
	verifyThere               // a range that a peer compares with this node's
	mend                      // a range that the disk cannot read and a peer can
	readRelayed               // a peer's read that another peer answers
)

// op is one change on its way, or a range held against changes. It is pooled
// by its device; nothing outside the device keeps one.
type op struct {
	d     *Device
	kind  opKind
	what  block.Op
	flags block.Flags
	ext   block.Extent
	data  []byte
	buf   *block.Buf // owner of data where it is shared; retained
	req   *block.Request
	group *group // of the parts of a large request
	from  *peer  // peerChange, syncPull, syncRead
	seq   uint64 // position in the primary's stream; request id of a sync
	tag   uint64 // syncRead: what must have been applied before the read
	shift uint64 // of a change: see epochOfLocked

	// need is who must be heard of before the application is answered, wait
	// before the op is done; they differ under protocols A and B.
	need, wait replication.NodeSet
	miss       replication.NodeSet // who is not sent this change
	acked      bool                // some peer has it
	took       bool                // a peer's complete disk has it
	passed     error               // how this disk failed it, until it is known whether a complete one takes it
	local      bool                // the local disk has not finished
	localOK    bool
	answered   bool
	granted    bool    // syncPull, mend: the data has come; readThere: it is for healing
	pull       pull    // syncPull
	session    Session // syncRead, peerChange, readThere, verify: on which it came
	stray      bool    // peerChange: that session ended while it was on the way to the disk
	era        uint64  // syncRead: of the resync
	given      bool    // peerChange: the primary has given it up
	finished   bool
	log        *store.ActivityLog // holds references in it, unless nil
	queued     bool               // FUA: a flush is to come behind it
	synced     bool               // FUA: that has completed
	landed     bool               // it is everywhere, and out of the window
	err        error
	ioErr      error      // of local I/O that is done and not judged yet
	heal       *healing   // mend
	tries      int        // how often the disk has failed it
	disk       store.Disk // on which local I/O is done: not one attached later
	att        *attachment

	slot       int // in the range set
	blockers   int // earlier overlapping ops
	dependents []*op
}

// group completes a request that was cut into parts.
type group struct {
	req  *block.Request
	left int
	err  error
	// again: a part of a read found nobody to answer it, but may later; the read is
	// made anew when that is to be.
	again bool
}

func (d *Device) newOpLocked() *op {
	if n := len(d.free); n > 0 {
		o := d.free[n-1]
		d.free[n-1] = nil
		d.free = d.free[:n-1]
		return o
	}
	return &op{d: d}
}

func (d *Device) freeOpLocked(o *op) {
	deps := o.dependents[:0]
	*o = op{d: d, dependents: deps}
	if len(d.free) < maxFreeOps {
		d.free = append(d.free, o)
	}
}

// maxFreeOps bounds what a burst leaves behind.
const maxFreeOps = 4096

// ranges is the interval lock: which ranges are being changed or held, in the
// order in which they came. An op waits for every earlier one that it
// overlaps, so overlapping changes are carried out in the order of arrival and
// others do not meet. It is guarded by the device's mutex.
//
// A scan over a flat slice beats a tree at the depths that clients use: 32
// entries are four cache lines.
type ranges struct {
	ext []block.Extent
	ops []*op
	// changes is how many of ops are the application's; readers look at it
	// without the mutex.
	changes atomic.Int32
}

// changing reports whether a change of the application's that is not answered
// yet overlaps with e.
func (r *ranges) changing(e block.Extent) bool {
	for i := range r.ext {
		if o := r.ops[i]; o.kind == appChange && !o.answered && r.ext[i].Overlaps(e) {
			return true
		}
	}
	return false
}

// add enters o and reports whether it may start.
func (r *ranges) add(o *op) bool {
	for i := range r.ext {
		if r.ext[i].Overlaps(o.ext) && !mutate.Is(mutate.Unordered) {
			o.blockers++
			r.ops[i].dependents = append(r.ops[i].dependents, o)
		}
	}
	if o.kind == appChange {
		r.changes.Add(1)
	}
	o.slot = len(r.ops)
	r.ext = append(r.ext, o.ext)
	r.ops = append(r.ops, o)
	return o.blockers == 0
}

// remove takes o out and appends those that may start now to ready.
func (r *ranges) remove(o *op, ready []*op) []*op {
	if o.kind == appChange {
		r.changes.Add(-1)
	}
	last := len(r.ops) - 1
	if o.slot != last {
		r.ops[o.slot] = r.ops[last]
		r.ext[o.slot] = r.ext[last]
		r.ops[o.slot].slot = o.slot
	}
	r.ops[last] = nil
	r.ops = r.ops[:last]
	r.ext = r.ext[:last]
	for i, dep := range o.dependents {
		o.dependents[i] = nil
		dep.blockers--
		if dep.blockers == 0 {
			ready = append(ready, dep)
		}
	}
	o.dependents = o.dependents[:0]
	return ready
}

// window holds the primary's changes by sequence number, from the first that
// is not done. It is guarded by the device's mutex.
type window struct {
	ops   []*op // a ring; its length is a power of two
	floor uint64
	head  uint64 // last number given out
}

// push gives o the next number.
func (w *window) push(o *op) {
	w.head++
	if w.head-w.floor > uint64(len(w.ops)) {
		w.grow()
	}
	o.seq = w.head
	w.ops[o.seq&uint64(len(w.ops)-1)] = o
}

func (w *window) grow() {
	ops := make([]*op, max(64, 2*len(w.ops)))
	for s := w.floor + 1; s < w.head; s++ {
		ops[s&uint64(len(ops)-1)] = w.ops[s&uint64(len(w.ops)-1)]
	}
	w.ops = ops
}

// get is the op with number seq, nil if it is done or never was.
func (w *window) get(seq uint64) *op {
	if seq <= w.floor || seq > w.head {
		return nil
	}
	return w.ops[seq&uint64(len(w.ops)-1)]
}

// done takes seq out and moves the floor.
func (w *window) done(seq uint64) {
	m := uint64(len(w.ops) - 1)
	w.ops[seq&m] = nil
	for w.floor < w.head && w.ops[(w.floor+1)&m] == nil {
		w.floor++
	}
}

// all yields what is not done, in order.
func (w *window) all(yield func(*op) bool) {
	for s := w.floor + 1; s <= w.head; s++ {
		if o := w.ops[s&uint64(len(w.ops)-1)]; o != nil && !yield(o) {
			return
		}
	}
}

// recent remembers which ranges were changed lately, with their sequence
// numbers, in ascending order. On the primary it tells what a peer that lost
// its cache may have lost; on a replica, what of a lost primary's stream the
// other replicas may not have. It is guarded by the device's mutex.
type recent struct {
	list []changed
	head int
	// over counts ranges that were forgotten for lack of room: then the
	// activity log, whose extents stay hot until the changes are stable, is
	// asked instead.
	over uint64
}

type changed struct {
	seq uint64
	ext block.Extent
}

// maxRecent bounds the list: 24 bytes each, 6 MiB.
const maxRecent = 1 << 18

func (r *recent) add(seq uint64, e block.Extent) {
	if len(r.list)-r.head >= maxRecent {
		r.over = max(r.over, r.list[r.head].seq)
		r.head++
	}
	if r.head > 1024 && r.head > len(r.list)/2 {
		n := copy(r.list, r.list[r.head:])
		r.list = r.list[:n]
		r.head = 0
	}
	r.list = append(r.list, changed{seq, e})
}

// trim forgets everything up to seq.
func (r *recent) trim(seq uint64) {
	for r.head < len(r.list) && r.list[r.head].seq <= seq {
		r.head++
	}
	if r.head == len(r.list) {
		r.list, r.head = r.list[:0], 0
	}
	if r.over <= seq {
		r.over = 0
	}
}

// after yields the ranges changed after seq; complete is false if some of them
// were forgotten.
func (r *recent) after(seq uint64) (list []changed, complete bool) {
	l := r.list[r.head:]
	for len(l) > 0 && l[0].seq <= seq {
		l = l[1:]
	}
	return l, r.over <= seq
}

func (r *recent) len() int { return len(r.list) - r.head }

func (r *recent) reset() { r.list, r.head, r.over = r.list[:0], 0, 0 }
