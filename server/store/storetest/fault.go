package storetest

import (
	"slices"
	"sync"
	"time"

	"github.com/lockstepd/lockstep/server/block"
)

// Fault is what goes wrong with some operations. It is in force from
// Image.Inject until it is used up or lifted.
type Fault struct {
	Ops   Op           // which operations; all if 0
	Range block.Extent // touching this; anywhere if empty (a sync is everywhere)
	Skip  int          // leave this many alone first
	Count int          // then hit this many; all that follow if 0
	Err   error        // fail with it; if nil, only wait
	Done  int64        // of a failed write, this many bytes are written all the same
	Hang  bool         // wait for Release, then fail with Err or go on
	Delay time.Duration
	// DelayFunc, if not nil, is asked for the delay of each operation.
	DelayFunc func(Record) time.Duration
}

// Injection is a fault in force.
type Injection struct {
	Fault

	mu       sync.Mutex // guards what is below
	seen     int
	hits     int
	waiting  int
	released chan struct{}
	changed  chan struct{} // closed and replaced when waiting changes
}

// Inject puts a fault in force.
func (im *Image) Inject(f Fault) *Injection {
	in := &Injection{Fault: f, released: make(chan struct{}), changed: make(chan struct{})}
	im.mu.Lock()
	defer im.mu.Unlock()
	im.faults = append(im.faults, in)
	return in
}

// Lift takes a fault away. What hangs in it goes on hanging until Release.
func (im *Image) Lift(f *Injection) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.faults = slices.DeleteFunc(im.faults, func(g *Injection) bool { return f == g })
}

// Release lets go on what hangs, and what would hang from now on.
func (f *Injection) Release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	select {
	case <-f.released:
	default:
		close(f.released)
	}
}

// Hits is how many operations the fault has hit.
func (f *Injection) Hits() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hits
}

// Await waits until n operations hang in the fault.
func (f *Injection) Await(n int) {
	for {
		f.mu.Lock()
		waiting, changed := f.waiting, f.changed
		f.mu.Unlock()
		if waiting >= n {
			return
		}
		<-changed
	}
}

// hit reports whether the fault strikes an operation, and counts it.
func (f *Injection) hit(r Record) bool {
	if f.Ops != 0 && f.Ops&r.Op == 0 {
		return false
	}
	if f.Range.Len > 0 && r.Op != OpSync && !f.Range.Overlaps(block.Extent{Off: r.Off, Len: r.Len}) {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.seen++
	if f.seen <= f.Skip || f.Count > 0 && f.seen > f.Skip+f.Count {
		return false
	}
	f.hits++
	return true
}

// wait is the fault's delay or hang.
func (f *Injection) wait(r Record) {
	delay := f.Delay
	if f.DelayFunc != nil {
		delay += f.DelayFunc(r)
	}
	if delay > 0 {
		<-time.After(delay)
	}
	if f.Hang {
		f.count(1)
		<-f.released
		f.count(-1)
	}
}

func (f *Injection) count(n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.waiting += n
	close(f.changed)
	f.changed = make(chan struct{})
}

// begin counts an operation and lets faults strike it. With an error it returns
// how many bytes are to be written all the same.
func (im *Image) begin(op Op, off, n int64) (r Record, done int64, err error) {
	im.mu.Lock()
	im.ops++
	r = Record{N: im.ops, Op: op, Off: off, Len: n}
	hook, faults := im.onOp, slices.Clone(im.faults)
	im.mu.Unlock()
	if hook != nil {
		hook(r)
	}
	for _, f := range faults {
		if !f.hit(r) {
			continue
		}
		f.wait(r)
		if f.Err != nil && err == nil {
			err, done = f.Err, f.Done
		}
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.crashed {
		return r, 0, ErrCrashed
	}
	return r, done, err
}

// end logs an operation. The caller holds im.mu.
func (im *Image) end(r Record, err error) {
	if im.keepLog {
		r.Err = err
		im.journal = append(im.journal, r)
	}
}

// OnOp has f called before every operation takes effect. f may make crash
// clones of the image.
func (im *Image) OnOp(f func(Record)) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.onOp = f
}

// KeepLog begins a new log of operations.
func (im *Image) KeepLog() {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.keepLog, im.journal = true, nil
}

// Log returns what was done since KeepLog.
func (im *Image) Log() []Record {
	im.mu.Lock()
	defer im.mu.Unlock()
	return slices.Clone(im.journal)
}
