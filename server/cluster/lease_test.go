package cluster

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"
)

// TestALeaseRunsFromWhenThePeerWasSpokenTo: not from when it answered.
func TestALeaseRunsFromWhenThePeerWasSpokenTo(t *testing.T) {
	var l Lease
	if l.Left(0) > 0 {
		t.Error("a lease that nobody gave")
	}
	l.Answered(5 * time.Second) // before any promise
	if l.Left(5*time.Second) > 0 {
		t.Error("a lease without a promise")
	}
	l.Asked(10*time.Second, 4*time.Second)
	if l.Left(10*time.Second) > 0 {
		t.Error("a lease before the answer")
	}
	l.Answered(10 * time.Second)
	if left := l.Left(12 * time.Second); left < 1900*time.Millisecond || left >= 2*time.Second {
		t.Errorf("2 s into a tick time of 4 s there are %v left", left)
	}
	if l.Left(14*time.Second) > 0 {
		t.Error("the lease outlives the tick time")
	}
	l.Asked(11*time.Second, 4*time.Second)
	l.Answered(11 * time.Second)
	l.Answered(10 * time.Second) // late
	if l.Left(14*time.Second) <= 0 {
		t.Error("a late answer takes back what a newer one gave")
	}
	l.Break()
	if l.Left(11*time.Second) > 0 {
		t.Error("a broken lease holds")
	}
}

// TestNoLeaseOutlivesThePeersJudgement: random pings, answers and changes of
// the tick time, against a peer that judges by what it was last promised. The
// lease is never longer than the peer's patience.
func TestNoLeaseOutlivesThePeersJudgement(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		ticks := []time.Duration{time.Second, 3 * time.Second, 8 * time.Second}
		var l Lease
		type ping struct {
			at   Instant
			tick time.Duration
		}
		var there, back []ping // on their way to the peer, and the answers
		var heard Instant      // by the peer
		var judged time.Duration
		tick := ticks[rng.IntN(3)]
		renewed := 0
		for now := Instant(1); now < 200*time.Second; now += time.Duration(rng.IntN(300)) * time.Millisecond {
			switch rng.IntN(8) {
			case 0:
				tick = ticks[rng.IntN(3)]
				fallthrough
			case 1, 2:
				l.Asked(now, tick)
				there = append(there, ping{now, tick})
			case 3, 4, 5:
				if len(there) > 0 {
					heard, judged = now, there[0].tick
					back, there = append(back, there[0]), there[1:]
				}
			default:
				if len(back) > 0 {
					l.Answered(back[0].at)
					back = back[1:]
					renewed++
				}
			}
			// The peer may hear of any promise on its way at any later moment, and
			// then judge by it from that moment on.
			patience := heard + judged
			for _, p := range there {
				patience = min(patience, now+p.tick)
			}
			if left := l.Left(now); left > 0 && now+left > patience {
				t.Fatalf("seed %d: at %v the lease ends at %v, the peer's patience at %v", seed, now, now+left, patience)
			}
		}
		if renewed == 0 {
			t.Fatalf("seed %d: nothing was answered", seed)
		}
	}
}

// TestTheClockCountsSuspensions: and a wall clock that is set counts for
// nothing.
func TestTheClockCountsSuspensions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		total := 3 * time.Hour // before the process began
		asked := 0
		c := NewClock(func() time.Duration { asked++; return total })
		time.Sleep(time.Minute)
		if now := c.Now(); now != time.Minute+1 {
			t.Errorf("after a minute it is %v", now)
		}
		for range 100 {
			c.Now()
		}
		if asked != 1 {
			t.Errorf("asked for suspensions %d times though there was none", asked)
		}
		// An hour's suspension moves the wall clock and not the monotonic one;
		// the offset that is remembered moves the other way round here.
		total += time.Hour
		c.shift.Add(-int64(time.Hour))
		if now := c.Now(); now != time.Hour+time.Minute+1 {
			t.Errorf("after a suspension of an hour it is %v", now)
		}
		c.shift.Add(int64(24 * time.Hour)) // somebody set the date
		if now := c.Now(); now != time.Hour+time.Minute+1 {
			t.Errorf("after the date was set it is %v", now)
		}
	})
}

func BenchmarkClock(b *testing.B) {
	c := NewClock(func() time.Duration { return 0 })
	var l Lease
	for b.Loop() {
		_ = l.Left(c.Now())
	}
}
