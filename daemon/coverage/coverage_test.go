package coverage

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

var start = time.Unix(1e9, 0)

func TestTextLooksLikeOpenVSwitchs(t *testing.T) {
	r := NewRegistry()
	r.Counter("never_one")
	r.Counter("never_two")
	c := r.Counter("nbd_write")
	r.Attach("attached", func() uint64 { return 7 })
	r.Tick(start)
	c.Add(30)
	r.Tick(start.Add(Interval))
	want := []string{
		"attached                   1.4/sec     0.117/sec        0.0019/sec   total: 7",
		"nbd_write                  6.0/sec     0.500/sec        0.0083/sec   total: 30",
		"2 events never hit",
	}
	lines := strings.Split(strings.TrimSpace(r.Text()), "\n")
	if !strings.HasPrefix(lines[0], "Event coverage, avg rate over last: 5 seconds, last minute, last hour,  hash=") || len(lines[0]) != 86 {
		t.Errorf("heading %q", lines[0])
	}
	if got := strings.Join(lines[1:], "\n"); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

func TestRead(t *testing.T) {
	r := NewRegistry()
	r.Counter("x").Inc()
	r.Counter("x").Inc()
	if n, err := r.Read("x"); n != 2 || err != nil {
		t.Errorf("%d %v", n, err)
	}
	if _, err := r.Read("y"); err == nil || err.Error() != "No such counter" {
		t.Error(err)
	}
	var none *Counter
	none.Inc()
	if none.Value() != 0 {
		t.Error("the nil counter counts")
	}
}

// TestWindows lets a counter run at one event a second, then stop.
func TestWindows(t *testing.T) {
	r := NewRegistry()
	c := r.Counter("x")
	now := start
	r.Tick(now)
	tick := func(n uint64) Rate {
		c.Add(n)
		now = now.Add(Interval)
		r.Tick(now)
		return r.List()[0]
	}
	var got Rate
	for range 12 * 60 {
		got = tick(5)
	}
	if got.Per5s != 1 || got.PerMinute != 1 || got.PerHour < 0.98 || got.PerHour > 1.02 {
		t.Errorf("steady: %+v", got)
	}
	if got = tick(0); got.Per5s != 0 || got.PerMinute != 55.0/60 {
		t.Errorf("5 s after the end: %+v", got)
	}
	for range 11 {
		got = tick(0)
	}
	if got.PerMinute != 0 || got.PerHour == 0 {
		t.Errorf("a minute after the end: %+v", got)
	}
	for range 12 * 60 {
		got = tick(0)
	}
	if got.PerHour != 0 || got.Total != 12*60*5 {
		t.Errorf("an hour after the end: %+v", got)
	}
}

func TestGapsAreSpread(t *testing.T) {
	r := NewRegistry()
	c := r.Counter("x")
	r.Tick(start)
	c.Add(60)
	r.Tick(start.Add(time.Minute))
	if got := r.List()[0]; got.Per5s != 1 || got.PerMinute != 1 {
		t.Errorf("after a minute without ticks: %+v", got)
	}
	c.Add(1)
	r.Tick(start.Add(1000 * time.Hour))
	if got := r.List()[0]; got.Total != 61 || got.PerHour > 0.1 {
		t.Errorf("after weeks without ticks: %+v", got)
	}
	r.Tick(start) // a clock that goes back changes nothing
	if got := r.List()[0]; got.Total != 61 {
		t.Errorf("%+v", got)
	}
}

func TestAReaderThatGoesDownDoesNoHarm(t *testing.T) {
	r := NewRegistry()
	n := uint64(100)
	r.Attach("x", func() uint64 { return n })
	r.Tick(start)
	r.Tick(start.Add(Interval))
	n = 5
	r.Tick(start.Add(2 * Interval))
	if got := r.List()[0]; got.Per5s != 0 || got.Total != 5 {
		t.Errorf("%+v", got)
	}
}

func TestHash(t *testing.T) {
	a := []Rate{{Name: "x", Total: 5}, {Name: "y"}}
	if Hash(a) != Hash([]Rate{{Name: "x", Total: 6}, {Name: "y"}}) {
		t.Error("similar situations differ")
	}
	if Hash(a) == Hash([]Rate{{Name: "x", Total: 5}, {Name: "y", Total: 1}}) {
		t.Error("different situations are the same")
	}
}

func TestRunTicks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := NewRegistry()
		c := r.Counter("x")
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { r.Run(ctx) })
		synctest.Wait()
		c.Add(10)
		time.Sleep(Interval) // virtual
		synctest.Wait()
		if got := r.List()[0].Per5s; got != 2 {
			t.Errorf("%v a second", got)
		}
		cancel()
		wg.Wait()
	})
}

// BenchmarkInc is the price of an event.
func BenchmarkInc(b *testing.B) {
	c := NewRegistry().Counter("x")
	b.ReportAllocs()
	for b.Loop() {
		c.Inc()
	}
}
