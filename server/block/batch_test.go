package block

import (
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
)

// step is work that says what became of it.
type step struct {
	log    *[]string
	name   string
	during func() // within Perform
}

func (s *step) TakenOver(*Batch) bool { return false }
func (s *step) Perform() {
	if s.during != nil {
		s.during()
	}
}
func (s *step) Performed(*Batch) { *s.log = append(*s.log, s.name) }
func (s *step) Late()            { *s.log = append(*s.log, s.name+" is late") }

// TestARelievedHolderLeavesTheRest: the successor goes on where the holder was
// kept, nothing is done twice, and a look that is out of date relieves nobody.
func TestARelievedHolderLeavesTheRest(t *testing.T) {
	var log []string
	var b Batch
	var p Post
	for i := range 4 {
		s := &step{log: &log, name: fmt.Sprint(i)}
		if i == 1 {
			s.during = func() {
				at, inside := p.Look()
				if !inside || p.Relieve(at-2) || !p.Relieve(at) || p.Relieve(at) {
					t.Error("not relieved once, or by a look from before")
				}
				if !b.FinishOn(&p) {
					t.Error("the successor does not hold the post")
				}
			}
		}
		b.Defer(s)
	}
	if b.FinishOn(&p) {
		t.Error("the holder was not told")
	}
	if want := []string{"0", "1 is late", "2", "3", "1"}; !slices.Equal(log, want) {
		t.Errorf("%q, want %q", log, want)
	}
	if at, inside := p.Look(); inside || p.Relieve(at) {
		t.Error("somebody is inside, or was relieved while outside")
	}
}

type nothing struct{}

func (nothing) TakenOver(*Batch) bool { return false }
func (nothing) Perform()              {}
func (nothing) Performed(*Batch)      {}
func (nothing) Late()                 {}
func (nothing) Flush(*Batch)          {}

// TestABatchAllocatesNothing, on a post or not, once its memory is there.
func TestABatchAllocatesNothing(t *testing.T) {
	var asleep atomic.Bool
	for _, p := range []*Post{nil, {}, {Asleep: &asleep}} {
		var b Batch
		if n := testing.AllocsPerRun(1000, func() {
			for range 8 {
				b.Defer(nothing{})
			}
			b.Touch(nothing{})
			b.FinishOn(p)
		}); n != 0 {
			t.Errorf("%v allocations", n)
		}
	}
}

// BenchmarkFinish is what a batch of one piece of work costs beside the work.
func BenchmarkFinish(b *testing.B) {
	var asleep atomic.Bool
	for name, p := range map[string]*Post{"without": nil, "on a post": {Asleep: &asleep}} {
		b.Run(name, func(b *testing.B) {
			var x Batch
			b.ReportAllocs()
			for b.Loop() {
				x.Defer(nothing{})
				x.FinishOn(p)
			}
		})
	}
}
