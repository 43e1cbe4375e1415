package messenger

import (
	"cmp"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/wire"
)

// maxHelped is how many peers' answers one goroutine waits for: beyond that it
// is not the waking up that takes the time.
const maxHelped = 4

// helped are the readings of meta links that others than their own goroutine
// may do for a moment.
type helped struct {
	mu  sync.Mutex // serializes changes of all
	all atomic.Pointer[[]*reading]
}

func (h *helped) list() []*reading {
	if all := h.all.Load(); all != nil {
		return *all
	}
	return nil
}

func (h *helped) add(r *reading) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := append(slices.Clip(h.list()), r)
	h.all.Store(&all)
}

func (h *helped) remove(r *reading) {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := slices.DeleteFunc(slices.Clone(h.list()), func(x *reading) bool { return x == r })
	h.all.Store(&all)
}

// Help lends the calling goroutine to the meta links: it calls while, and as
// long as that returns true handles what peers answer to what they were sent.
// Who waits for such an answer is spared two wake-ups, each of which takes
// longer than what it is for. Nothing that handlers defer is performed here.
//
// It does not sleep; so while is to end it soon. Where there is nothing to
// help with it is a loop over while.
func (m *Messenger) Help(while func() bool) {
	var with [maxHelped]*reading
	n := 0
	for _, r := range m.helped.list() {
		if n == len(with) {
			break
		}
		if r.l.s.links[wire.Data].queued.Load() > 0 && r.st.rd.mu.TryLock() {
			with[n] = r
			n++
		}
	}
	for while() {
		for i, r := range with[:n] {
			if r != nil && !r.help() {
				r.release()
				with[i] = nil
			}
		}
	}
	for _, r := range with[:n] {
		if r != nil {
			r.release()
		}
	}
}

// help handles what has come. It reports false if the reader goroutine is to
// see to the rest. Its caller has the right to read, and the reader is parked,
// or about to look at rd.again.
func (r *reading) help() bool {
	rd := &r.st.rd
	if rd.again {
		return false
	}
	if err := r.st.raw.Control(rd.try); err != nil {
		return false // closed: the reader knows
	}
	if rd.err == errAgain {
		return true
	}
	if rd.err != nil || rd.n == 0 {
		r.fault, rd.again = cmp.Or(rd.err, io.EOF), true
		return false
	}
	r.took(rd.n)
	performed := r.batch.Flush()
	if r.fault == nil {
		r.fault = r.settle(r.n)
	}
	r.l.busy.Store(false)
	if rd.again = !performed || r.fault != nil || r.in.wants(); rd.again {
		return false
	}
	rd.p = r.in.space()
	return true
}

// release gives the right to read back to the reader goroutine.
func (r *reading) release() {
	rd := &r.st.rd
	for {
		again := rd.again
		rd.mu.Unlock()
		if again {
			_ = r.st.c.SetReadDeadline(past) // a closed connection wakes its reader by itself
			return
		}
		if !rd.missed.Swap(false) || !rd.mu.TryLock() {
			return
		}
		r.help()
	}
}

var past = time.Unix(1, 0)
