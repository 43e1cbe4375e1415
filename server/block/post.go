package block

import (
	"sync"
	"sync/atomic"
)

// Post is a place that one goroutine at a time holds, such as that of the
// reader of a link. While its holder performs deferred work of the batch that
// goes with the post (Batch.FinishOn), somebody who looks at it from time to
// time may relieve the holder: then the post, the batch and all that goes with
// them belong to a successor, and the old holder ends when its work does. So
// work that takes no time is done on the spot, without a hand-off, and work
// that hangs keeps nobody but who waits for it.
//
//	outside ─enter→ inside ─leave→ outside       the holder
//	                inside ─Relieve→ outside     somebody else; leave then fails
//
// A holder pays two atomic operations for each piece of work, and reads no
// clock.
type Post struct {
	// state counts what was entered and left: it is odd while the holder is
	// inside. No value comes twice.
	state atomic.Uint64
	work  Deferred // that the holder is inside; the holder's own
	// Asleep, if not nil, says that nobody looks at the post; Wake is called
	// then by a holder that goes inside.
	Asleep *atomic.Bool
	Wake   func()

	late sync.Mutex // held while Late is called
}

// Look returns a number that changes whenever the holder goes inside or comes
// out, and whether it is inside.
func (p *Post) Look() (at uint64, inside bool) {
	at = p.state.Load()
	return at, at&1 == 1
}

// Relieve takes the post from a holder that is still inside what it was inside
// when Look returned at, tells the work that it is late, and reports whether it
// did.
func (p *Post) Relieve(at uint64) bool {
	p.late.Lock()
	defer p.late.Unlock()
	if at&1 == 0 || !p.state.CompareAndSwap(at, at+1) {
		return false
	}
	p.work.Late()
	return true
}

// enter says that the holder goes inside d, and returns what leave is to be
// given.
func (p *Post) enter(d Deferred) uint64 {
	p.work = d
	at := p.state.Add(1)
	// The state first: whoever falls asleep looks at it once more afterwards.
	if p.Asleep != nil && p.Asleep.Load() {
		p.Wake()
	}
	return at
}

// leave says that the holder is out again; false: it holds the post no longer.
func (p *Post) leave(at uint64) bool {
	if p.state.CompareAndSwap(at, at+1) {
		return true
	}
	// What was performed must not be gone while it is told that it is late.
	p.late.Lock()
	defer p.late.Unlock()
	return false
}
