package events

import (
	"context"
	"errors"
	"maps"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func publish(l *Log, types ...string) {
	for _, t := range types {
		l.Publish(Event{Type: t, Text: t + " happened"})
	}
}

func subscribe(t *testing.T, l *Log, after uint64, types ...string) *Subscription {
	t.Helper()
	s, err := l.Subscribe(after, types...)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// seqs reads what is there and returns the numbers; a loss is negative.
func seqs(t *testing.T, s *Subscription) []int {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var out []int
	for {
		e, lost, err := s.Next(ctx)
		switch {
		case lost != nil:
			if lost.To-lost.From+1 != lost.Count {
				t.Errorf("inconsistent: %+v", lost)
			}
			out = append(out, -int(lost.Count))
		case errors.Is(err, context.Canceled):
			return out
		case err != nil:
			t.Fatal(err)
		default:
			out = append(out, int(e.Seq))
		}
	}
}

func TestReadersGetEventsInOrder(t *testing.T) {
	for _, tc := range []struct {
		name     string
		capacity int
		before   int // events published before the subscription
		after    uint64
		types    []string
		then     []string
		missed   uint64
		want     []int
	}{
		{name: "from now on", capacity: 8, before: 3, then: []string{NodeUp, Role}, want: []int{4, 5}},
		{name: "after a number", capacity: 8, before: 3, after: 1, then: []string{Role}, want: []int{2, 3, 4}},
		{name: "after the newest", capacity: 8, before: 3, after: 3, then: []string{Role}, want: []int{4}},
		{name: "by type", capacity: 8, before: 3, types: []string{Role, Disk}, then: []string{NodeUp, Role, NodeUp, Disk}, want: []int{5, 7}},
		{name: "by any", capacity: 8, types: []string{Any}, then: []string{NodeUp, Role}, want: []int{1, 2}},
		{name: "what is gone is told", capacity: 4, before: 10, after: 2, missed: 4, want: []int{-4, 7, 8, 9, 10}},
		{name: "falling behind is told", capacity: 4, before: 1, then: []string{Role, Role, Role, Role, Role, Role}, want: []int{-2, 4, 5, 6, 7}},
		{name: "from an earlier life", capacity: 8, before: 2, after: 500, then: []string{Role}, want: []int{1, 2, 3}},
		{name: "from an earlier life, long ago", capacity: 2, before: 5, after: 500, missed: 3, want: []int{-3, 4, 5}},
		{name: "nothing", capacity: 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l := NewLog(tc.capacity)
			for range tc.before {
				publish(l, NodeUp)
			}
			s := subscribe(t, l, tc.after, tc.types...)
			if s.Missed() != tc.missed {
				t.Errorf("missed %d, not %d", s.Missed(), tc.missed)
			}
			publish(l, tc.then...)
			got := seqs(t, s)
			if len(got) != len(tc.want) {
				t.Fatalf("read %v, not %v", got, tc.want)
			}
			for i := range got {
				if got[i] != tc.want[i] {
					t.Fatalf("read %v, not %v", got, tc.want)
				}
			}
		})
	}
}

func TestAnUnknownTypeIsRefused(t *testing.T) {
	_, err := NewLog(1).Subscribe(0, "nodeupp")
	if err == nil || !strings.HasPrefix(err.Error(), `there are no events of type "nodeupp"; types are nodeup, `) {
		t.Error(err)
	}
}

func TestAReaderWakesForItsEventAndForTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(4)
		s := subscribe(t, l, 0, Role)
		var got []uint64
		var end error
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				e, _, err := s.Next(t.Context())
				if err != nil {
					end = err
					return
				}
				got = append(got, e.Seq)
			}
		})
		synctest.Wait()
		publish(l, NodeUp)
		synctest.Wait()
		publish(l, Role)
		synctest.Wait()
		l.Close()
		wg.Wait()
		if len(got) != 1 || got[0] != 2 || !errors.Is(end, ErrClosed) {
			t.Errorf("read %v, then %v", got, end)
		}
		publish(l, Role)
		if l.Newest() != 2 {
			t.Error("published after the end")
		}
	})
}

// TestNoneIsLostOrOutOfOrder has writers and readers side by side: each
// reader accounts for every number, as an event or as lost.
func TestNoneIsLostOrOutOfOrder(t *testing.T) {
	const writers, each, readers = 4, 2000, 8
	l := NewLog(64)
	var wg sync.WaitGroup
	for range readers {
		s := subscribe(t, l, 0)
		wg.Go(func() {
			var buf [16]Event
			next := uint64(1)
			for next <= writers*each {
				n, lost, err := s.Read(t.Context(), buf[:])
				if err != nil {
					t.Error(err)
					return
				}
				if lost != nil {
					if lost.From != next {
						t.Errorf("lost from %d, expected %d", lost.From, next)
					}
					next = lost.To + 1
				}
				for _, e := range buf[:n] {
					if e.Seq != next {
						t.Errorf("read %d, expected %d", e.Seq, next)
					}
					next = e.Seq + 1
				}
			}
		})
	}
	for range writers {
		wg.Go(func() {
			for range each {
				publish(l, Role)
			}
		})
	}
	wg.Wait()
}

// TestAStoppedReaderCostsNothing publishes far more than the ring holds to
// subscriptions that nobody reads.
func TestAStoppedReaderCostsNothing(t *testing.T) {
	l := NewLog(128)
	var stopped []*Subscription
	for range 64 {
		stopped = append(stopped, subscribe(t, l, 0))
	}
	text := strings.Repeat("x", 1000)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for range 50_000 {
		l.Publish(Event{Type: Role, Text: text + "y"})
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 4<<20 {
		t.Errorf("the heap grew by %d bytes", grown)
	}
	for _, s := range stopped {
		if got := seqs(t, s); len(got) != 129 || got[0] != -(50_000-128) {
			t.Fatalf("a stopped reader gets %d things, first %d", len(got), got[0])
		}
	}
}

func TestPublishSetsTheTimeOnlyWhereThereIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(2)
		s := subscribe(t, l, 0)
		then := time.Now().Add(-time.Hour)
		l.Publish(Event{Type: Role})
		l.Publish(Event{Type: Role, Time: then})
		a, _, _ := s.Next(t.Context())
		b, _, _ := s.Next(t.Context())
		if !a.Time.Equal(time.Now()) || !b.Time.Equal(then) {
			t.Errorf("%v, %v", a.Time, b.Time)
		}
	})
}

func TestRevisionWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Revision
		if r.Bump() != 1 || r.Current() != 1 {
			t.Fatal("a bump is one")
		}
		for _, seen := range []uint64{0, 7} { // long ago, and of an earlier life
			if now, err := r.Wait(t.Context(), seen); now != 1 || err != nil {
				t.Errorf("after %d: %d, %v", seen, now, err)
			}
		}
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				if now, err := r.Wait(t.Context(), 1); now != 2 || err != nil {
					t.Errorf("woke with %d, %v", now, err)
				}
			})
		}
		synctest.Wait()
		r.Bump()
		wg.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 25*time.Second)
		defer cancel()
		if now, err := r.Wait(ctx, 2); now != 2 || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("timed out with %d, %v", now, err)
		}
	})
}

// BenchmarkPublish is what an event costs its publisher beside 64 readers.
func BenchmarkPublish(b *testing.B) {
	l := NewLog(DefaultCapacity)
	var wg sync.WaitGroup
	for range 64 {
		s, err := l.Subscribe(0)
		if err != nil {
			b.Fatal(err)
		}
		wg.Go(func() {
			var buf [64]Event
			for {
				if _, _, err := s.Read(context.Background(), buf[:]); err != nil {
					return
				}
			}
		})
	}
	b.ReportAllocs()
	for b.Loop() {
		l.Publish(Event{Type: Role, Node: "beta", Text: "x", Time: time.Unix(1, 0)})
	}
	l.Close()
	wg.Wait()
}

func TestEventsAreCountedByWhatTheyAreAbout(t *testing.T) {
	l := NewLog(4)
	for range 6 {
		l.Publish(Event{Type: QuorumLost, Device: "r0", Node: "beta"})
	}
	l.Publish(Event{Type: NodeDown, Node: "beta"})
	l.Publish(Event{Type: Config})
	want := map[Count]uint64{{Type: QuorumLost, Device: "r0"}: 6, {Type: NodeDown, Node: "beta"}: 1, {Type: Config}: 1}
	if got := l.Counts(); !maps.Equal(got, want) {
		t.Errorf("%v", got)
	}
	for i := range maxCounts + 10 {
		l.Publish(Event{Type: IOError, Device: strconv.Itoa(i)})
	}
	if got := l.Counts(); len(got) > maxCounts+1 || got[Count{Type: IOError}] != 13 {
		t.Errorf("%d counts, and %d events without a name", len(got), got[Count{Type: IOError}])
	}
}
