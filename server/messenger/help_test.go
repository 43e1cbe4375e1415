package messenger

import (
	"bytes"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// byHelper reports whether the caller was called by a goroutine that helps.
func byHelper() bool {
	var stack [4 << 10]byte
	return bytes.Contains(stack[:runtime.Stack(stack[:], false)], []byte("(*reading).help"))
}

// answers has a node answer every write on the meta link.
func (n *node) answers() {
	n.record(func() {
		n.frame = func(s *Session, f *wire.Frame, b *block.Batch) {
			if f.Type == wire.Write {
				s.Send(&wire.Header{Type: wire.WriteAck, Arg: [3]uint64{f.Arg[0]}}, nil, nil, b)
			}
		}
	})
}

// onAnswer calls do for every frame of the meta link.
func (n *node) onAnswer(do func(b *block.Batch)) {
	n.record(func() {
		n.frame = func(_ *Session, f *wire.Frame, b *block.Batch) {
			if f.Type == wire.WriteAck {
				do(b)
			}
		}
	})
}

// moment returns a condition that holds for a moment at most, and as long as
// more does.
func moment(more func() bool) func() bool {
	until := time.Now().Add(200 * time.Microsecond)
	return func() bool { return more() && time.Now().Before(until) }
}

func always() bool { return true }

// TestAnswersThatHelpersTakeArriveOnceAndInOrder: several goroutines help while
// the links are cut again and again.
func TestAnswersThatHelpersTakeArriveOnceAndInOrder(t *testing.T) {
	var c cutter
	a, b := pair(t, func(_ int, o *Options) { o.Dial = c.dial })
	b.answers()
	var helped, answered atomic.Int64
	a.onAnswer(func(*block.Batch) {
		if byHelper() {
			helped.Add(1)
		}
		answered.Add(1)
	})
	s := a.waitUp(1)
	const writes, cuts = 3000, 3
	over := make(chan struct{})
	var others sync.WaitGroup
	for range 2 {
		others.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
					a.Help(moment(always))
					runtime.Gosched()
				}
			}
		})
	}
	sent := int64(0)
	for sent < writes || helped.Load() == 0 && sent < 20*writes {
		sent++
		sendNumber(s, wire.Write, uint64(sent), pattern(500), nil)
		a.Help(moment(func() bool { return answered.Load() < sent }))
		if sent <= writes && sent%(writes/cuts) == 0 {
			c.cut()
		}
	}
	a.received(wire.Meta, int(sent))
	close(over)
	others.Wait()
	checkOrder(t, a.frames(wire.Meta), int(sent))
	if helped.Load() == 0 {
		t.Error("no answer was ever taken by a helper")
	}
}

// work notes who performs it.
type work struct{ helper, done *atomic.Int64 }

func (w work) TakenOver(*block.Batch) bool { return false }
func (w work) Performed(*block.Batch)      {}
func (w work) Late()                       {}
func (w work) Perform() {
	if byHelper() {
		w.helper.Add(1)
	}
	w.done.Add(1)
}

// TestAHelperPerformsNothing: what an answer entails may wait for a disk, and
// is the reader's.
func TestAHelperPerformsNothing(t *testing.T) {
	a, b := pair(t, nil)
	b.answers()
	var helped, byHelpers, performed, answered atomic.Int64
	a.onAnswer(func(b *block.Batch) {
		if byHelper() {
			helped.Add(1)
		}
		b.Defer(work{&byHelpers, &performed})
		answered.Add(1)
	})
	s := a.waitUp(1)
	sent := int64(0)
	for sent < 300 || helped.Load() == 0 && sent < 60000 {
		sent++
		sendNumber(s, wire.Write, uint64(sent), nil, nil)
		a.Help(moment(func() bool { return answered.Load() < sent }))
	}
	waitFor(t, "the work", func() bool { return performed.Load() == sent })
	if byHelpers.Load() > 0 || helped.Load() == 0 {
		t.Errorf("helpers took %d answers, and performed the work of %d of them", helped.Load(), byHelpers.Load())
	}
}

// TestTheEndOfAConnectionThatIsHelpedIsNoticed, though the reader, who is told
// of it, may not look.
func TestTheEndOfAConnectionThatIsHelpedIsNoticed(t *testing.T) {
	for range 20 {
		a, b := pair(t, nil)
		b.answers()
		s := a.waitUp(1)
		var down atomic.Bool
		a.record(func() { a.onDown = func(*Session, Reason) { down.Store(true) } })
		died := make(chan struct{})
		go func() {
			defer close(died)
			crash(b)
		}()
		for n := uint64(1); !down.Load(); n++ {
			sendNumber(s, wire.Write, n, nil, nil)
			a.Help(moment(func() bool { return !down.Load() }))
			runtime.Gosched()
		}
		<-died
		a.stop()
	}
}
