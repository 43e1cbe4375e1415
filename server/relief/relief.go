// Package relief keeps the readers of links out of the way of disks. A reader
// carries out what it is sent on the spot, which is the fastest where a disk
// answers at once; a Watch notices the one whose disk does not, and has another
// goroutine go on reading in its place.
package relief

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
)

// Interval is how often posts are looked at. Work that is seen at two looks in
// a row is late: it has taken one to two intervals. A hand-off costs a few
// microseconds, which is little beside that.
const Interval = time.Millisecond

// idleLooks is how many looks in a row see nothing happen before the watch
// sleeps: an idle node does not wake a thousand times a second.
const idleLooks = 50

// Holder is whoever holds a post: what a goroutine does is its business, and
// goes on in another when it is relieved.
type Holder interface {
	// MayRelieve reports whether another goroutine may be begun: there is a
	// bound on how many wait for disks.
	MayRelieve() bool
	// Relieved goes on with the post's work on a goroutine of its own. The
	// former one ends by itself.
	Relieved()
}

// Watch looks at posts. Its methods are safe for concurrent use.
type Watch struct {
	asleep atomic.Bool
	wake   chan struct{}

	mu    sync.Mutex // guards what is below
	posts map[*block.Post]*watched
}

type watched struct {
	holder Holder
	at     uint64 // where the post was at the last look
}

// NewWatch returns a watch; Run must follow.
func NewWatch() *Watch {
	return &Watch{wake: make(chan struct{}, 1), posts: make(map[*block.Post]*watched)}
}

// Add has the watch look at a post until it is removed. Nobody may be inside
// yet.
func (w *Watch) Add(p *block.Post, h Holder) {
	p.Asleep, p.Wake = &w.asleep, w.rouse
	w.mu.Lock()
	defer w.mu.Unlock()
	w.posts[p] = &watched{holder: h}
}

// Remove ends Add. Its caller holds the post and is not inside.
func (w *Watch) Remove(p *block.Post) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.posts, p)
}

func (w *Watch) rouse() {
	if w.asleep.CompareAndSwap(true, false) {
		w.wake <- struct{}{} // never blocks: who sleeps takes it before it sleeps again
	}
}

// Run looks until ctx ends.
func (w *Watch) Run(ctx context.Context) {
	t := time.NewTicker(Interval)
	defer t.Stop()
	idle := 0
	for {
		select {
		case <-t.C:
		case <-ctx.Done():
			return
		}
		if w.look() {
			idle = 0
			continue
		}
		if idle++; idle < idleLooks {
			continue
		}
		idle = 0
		t.Stop()
		w.asleep.Store(true)
		if w.look() {
			w.rouse() // unless who went inside meanwhile has done it
		}
		select {
		case <-w.wake:
		case <-ctx.Done():
			return
		}
		t.Reset(Interval)
	}
}

// look looks at every post once and reports whether anything goes on there.
func (w *Watch) look() (busy bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for p, x := range w.posts {
		at, inside := p.Look()
		late := inside && at == x.at
		busy = busy || inside || at != x.at
		x.at = at
		if late && x.holder.MayRelieve() && p.Relieve(at) {
			x.holder.Relieved()
		}
	}
	return busy
}
