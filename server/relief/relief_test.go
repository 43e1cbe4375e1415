package relief_test

import (
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/relief"
)

// desk is a holder whose goroutines finish the batches that they are given, one
// after the other.
type desk struct {
	post    block.Post
	batch   block.Batch
	given   chan []block.Deferred
	most    int // goroutines that may be away
	closing chan struct{}
	wg      sync.WaitGroup

	mu   sync.Mutex // guards what is below
	away int
	log  []string
}

func (d *desk) MayRelieve() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.away < d.most
}

func (d *desk) Relieved() {
	d.mu.Lock()
	d.away++
	d.mu.Unlock()
	d.wg.Go(func() { d.run(true) })
}

func (d *desk) run(instead bool) {
	for {
		if !instead {
			select {
			case work := <-d.given:
				for _, w := range work {
					d.batch.Defer(w)
				}
			case <-d.closing:
				return
			}
		}
		instead = false
		if !d.batch.FinishOn(&d.post) {
			d.mu.Lock()
			d.away--
			d.mu.Unlock()
			return
		}
	}
}

func (d *desk) note(format string, args ...any) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.log = append(d.log, fmt.Sprintf(format, args...))
}

func (d *desk) noted() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.log)
}

// work takes its time and is then followed by others.
type work struct {
	d     *desk
	name  string
	takes time.Duration
	taken bool // by somebody else
	next  []*work
}

func (w *work) TakenOver(*block.Batch) bool { return w.taken }
func (w *work) Perform() {
	if w.takes > 0 {
		<-time.After(w.takes)
	}
}

func (w *work) Performed(b *block.Batch) {
	w.d.note("%s", w.name)
	for _, n := range w.next {
		b.Defer(n)
	}
	b.Touch(w)
}

func (w *work) Late()              { w.d.note("%s is late", w.name) }
func (w *work) Flush(*block.Batch) { w.d.note("%s flushed", w.name) }

// bench starts a desk and its watch, and ends them with the bubble.
func bench(t *testing.T, most int, f func(d *desk)) {
	synctest.Test(t, func(t *testing.T) {
		w := relief.NewWatch()
		d := &desk{given: make(chan []block.Deferred), most: most, closing: make(chan struct{})}
		w.Add(&d.post, d)
		d.wg.Go(func() { d.run(false) })
		go w.Run(t.Context())
		f(d)
		close(d.closing)
		d.wg.Wait()
		w.Remove(&d.post)
	})
}

func TestLateWorkKeepsNothingElse(t *testing.T) {
	bench(t, 4, func(d *desk) {
		after := &work{d: d, name: "after slow"}
		d.given <- []block.Deferred{
			&work{d: d, name: "first"},
			&work{d: d, name: "slow", takes: time.Second, next: []*work{after}},
			&work{d: d, name: "another's", taken: true},
			&work{d: d, name: "third"},
		}
		d.given <- []block.Deferred{&work{d: d, name: "of the next batch"}}
		<-time.After(500 * time.Millisecond)
		want := []string{"first", "slow is late", "first flushed", "third", "third flushed", "of the next batch", "of the next batch flushed"}
		if got := d.noted(); !slices.Equal(got, want) {
			t.Errorf("after half of the time: %q, want %q", got, want)
		}
		<-time.After(time.Second)
		want = append(want, "slow", "slow flushed", "after slow", "after slow flushed")
		if got := d.noted(); !slices.Equal(got, want) {
			t.Errorf("in the end: %q, want %q", got, want)
		}
	})
}

func TestWorkThatTakesLessThanALookIsNotLate(t *testing.T) {
	bench(t, 4, func(d *desk) {
		var all []block.Deferred
		for range 100 {
			all = append(all, &work{d: d, name: "quick", takes: relief.Interval - 1})
		}
		d.given <- all
		<-time.After(time.Second)
		for _, line := range d.noted() {
			if line == "quick is late" {
				t.Fatal(line)
			}
		}
	})
}

func TestNoMoreAreRelievedThanMayBe(t *testing.T) {
	bench(t, 2, func(d *desk) {
		for i := range 3 {
			d.given <- []block.Deferred{&work{d: d, name: fmt.Sprint(i), takes: time.Second}}
			<-time.After(10 * time.Millisecond)
		}
		select {
		case d.given <- nil:
			t.Error("a third was relieved")
		case <-time.After(500 * time.Millisecond):
		}
		<-time.After(time.Second)
		d.given <- nil // they are back
	})
}

// TestASleepingWatchIsWoken: after a long time with nothing to look at, late
// work is found as soon as ever.
func TestASleepingWatchIsWoken(t *testing.T) {
	bench(t, 4, func(d *desk) {
		for range 3 {
			<-time.After(time.Hour)
			began := time.Now()
			d.given <- []block.Deferred{&work{d: d, name: "slow", takes: time.Minute}}
			d.given <- nil
			if took := time.Since(began); took > 3*relief.Interval {
				t.Errorf("the batch behind it waited for %v", took)
			}
		}
	})
}
