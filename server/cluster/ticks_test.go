package cluster

import (
	"math/rand/v2"
	"testing"
	"time"
)

// drive drives a Ticks through virtual time, waking it exactly when it asks.
type drive struct {
	k     *Ticks
	now   Instant
	next  Instant
	seen  map[int]Activity
	acts  []Action // all, with When
	when  []Instant
	reply bool // peers send something at once whenever they are pinged
}

func newDrive(p Promise, peers int) *drive {
	d := &drive{k: NewTicks(p), now: 1, seen: make(map[int]Activity)}
	for i := range peers {
		d.k.Watch(i, 1, p, d.now)
	}
	return d
}

func (d *drive) step(suspended time.Duration) {
	acts, next := d.k.Step(d.now, suspended, func(id int) Activity { return d.seen[id] }, nil)
	d.next = next
	for _, a := range acts {
		d.acts = append(d.acts, a)
		d.when = append(d.when, d.now)
		if a.Kind == Ping {
			s := d.seen[a.Peer]
			s.Sent = d.now
			if d.reply {
				s.Received = d.now
			}
			d.seen[a.Peer] = s
		}
	}
}

// run goes on until then.
func (d *drive) run(until Instant) {
	for d.step(0); d.next < until; d.step(0) {
		d.now = max(d.next, d.now+1)
	}
	d.now = until
}

func (d *drive) count(kind ActionKind) (n int) {
	for _, a := range d.acts {
		if a.Kind == kind {
			n++
		}
	}
	return n
}

func (d *drive) first(kind ActionKind) (Action, Instant) {
	for i, a := range d.acts {
		if a.Kind == kind {
			return a, d.when[i]
		}
	}
	return Action{}, -1
}

func TestSilenceIsFoundJustAfterTheTickTime(t *testing.T) {
	for _, p := range []Promise{{4 * time.Second, 4}, {time.Second, 10}, {100 * time.Millisecond, 2}, {time.Hour, 1000}} {
		for phase := range 10 {
			d := newDrive(p, 1)
			last := Instant(phase+1) * p.Interval() / 7
			d.seen[0] = Activity{Received: last}
			d.run(3 * p.Tick)
			a, at := d.first(Silent)
			if a.Peer != 0 || at <= last+p.Tick || at > last+p.Tick+p.Interval() {
				t.Errorf("%v: silence since %v was found at %v (%+v)", p, last, at, a)
			}
			if d.count(Silent) != 1 {
				t.Errorf("%v: %d times", p, d.count(Silent))
			}
		}
	}
}

func TestMissedPingsAreToldOneByOneBeforeTheEnd(t *testing.T) {
	d := newDrive(Promise{8 * time.Second, 4}, 1)
	d.run(20 * time.Second)
	var got []int
	for _, a := range d.acts {
		if a.Kind == Missed {
			got = append(got, a.Count)
		}
	}
	if len(got) != 3 || got[0] != 1 || got[1] != 2 || got[2] != 3 {
		t.Errorf("missed pings told: %v", got)
	}
}

func TestPingsAreSpreadAndRegular(t *testing.T) {
	p := Promise{8 * time.Second, 4}
	d := newDrive(p, 31)
	d.reply = true
	d.run(20 * time.Second)
	slots := make(map[Instant]int)
	for i, a := range d.acts {
		if a.Kind == Ping {
			slots[d.when[i]/(100*time.Millisecond)]++
		}
	}
	if n := d.count(Ping); n < 31*9 || n > 31*11 {
		t.Errorf("%d pings to 31 peers in 10 intervals", n)
	}
	for at, n := range slots {
		if n > 6 {
			t.Errorf("%d pings within the tenth of a second at %v", n, at*100*time.Millisecond)
		}
	}
	if d.count(Silent)+d.count(Missed) != 0 {
		t.Errorf("%d silent, %d missed", d.count(Silent), d.count(Missed))
	}
}

func TestWhatIsSentAnywayReplacesPings(t *testing.T) {
	d := newDrive(Promise{4 * time.Second, 4}, 1)
	for range 600 {
		d.seen[0] = Activity{Received: d.now, Sent: d.now}
		d.run(d.now + 100*time.Millisecond)
	}
	if n := d.count(Ping); n > 1 {
		t.Errorf("%d pings beside constant traffic", n)
	}
}

func TestSetAnswersAsDocumented(t *testing.T) {
	k := NewTicks(Promise{4 * time.Second, 4})
	for _, c := range []struct {
		tick, transition time.Duration
		want             SetResult
		target           time.Duration
		fails            bool
	}{
		{4 * time.Second, time.Second, Unchanged, 4 * time.Second, false},
		{0, time.Second, Unchanged, 4 * time.Second, true},
		{-time.Second, time.Second, Unchanged, 4 * time.Second, true},
		{99 * time.Millisecond, 0, Unchanged, 4 * time.Second, true},
		{time.Hour + 1, 0, Unchanged, 4 * time.Second, true},
		{time.Second, -1, Unchanged, 4 * time.Second, true},
		{16 * time.Second, 6 * time.Second, ChangeInitiated, 16 * time.Second, false},
		{2 * time.Second, 6 * time.Second, OngoingChangeTo, 16 * time.Second, false},
		{4 * time.Second, 0, OngoingChangeTo, 16 * time.Second, false},
	} {
		res, target, err := k.Set(c.tick, c.transition, 0)
		if res != c.want || target != c.target || (err != nil) != c.fails {
			t.Errorf("set %v in %v: %v %v %v, want %v %v", c.tick, c.transition, res, target, err, c.want, c.target)
		}
	}
	if i := k.Get(time.Second); i.Tick != 16*time.Second || i.Target != 16*time.Second || i.Remaining != 5*time.Second {
		t.Errorf("during the change: %+v", i)
	}
}

// TestATransitionLastsWholePings: ceil(TP / MTTI) * MTTI, MTTI = min/I.
func TestATransitionLastsWholePings(t *testing.T) {
	for _, c := range []struct{ from, to, transition, want time.Duration }{
		{60 * time.Second, 8 * time.Second, 4 * time.Second, 4 * time.Second},
		{9 * time.Second, 20 * time.Second, 5 * time.Second, 6750 * time.Millisecond},
		{9 * time.Second, 20 * time.Second, 0, 0},
	} {
		d := newDrive(Promise{c.from, 4}, 1)
		d.reply = true
		d.run(time.Second)
		start := d.now
		if _, _, err := d.k.Set(c.to, c.transition, d.now); err != nil {
			t.Fatal(err)
		}
		shorter, during := c.to < c.from, c.from
		if !shorter || c.transition == 0 {
			during = c.to
		}
		if got := d.k.Get(d.now).Tick; got != during {
			t.Errorf("%v to %v: judged by %v during the change, want %v", c.from, c.to, got, during)
		}
		d.run(start + time.Minute)
		if got := d.k.Get(d.now); got.Tick != c.to || got.Target != 0 {
			t.Errorf("%v to %v: %+v in the end", c.from, c.to, got)
		}
		if _, at := d.first(Changed); c.want > 0 && at-start != c.want {
			t.Errorf("%v to %v: took %v, want %v", c.from, c.to, at-start, c.want)
		}
	}
}

// TestLengthenedPingsKeepTheOldRateUntilTheEnd for peers that have not heard.
func TestLengthenedPingsKeepTheOldRateUntilTheEnd(t *testing.T) {
	d := newDrive(Promise{4 * time.Second, 4}, 1)
	d.reply = true
	d.run(5 * time.Second)
	if _, _, err := d.k.Set(40*time.Second, 20*time.Second, d.now); err != nil {
		t.Fatal(err)
	}
	before := d.count(Ping)
	d.run(25 * time.Second)
	if n := d.count(Ping) - before; n < 20 || n > 22 {
		t.Errorf("%d pings in the 20 s of the transition, want one a second", n)
	}
	before = d.count(Ping)
	d.run(65 * time.Second)
	if n := d.count(Ping) - before; n < 3 || n > 5 {
		t.Errorf("%d pings in the 40 s after it, want 4", n)
	}
}

func TestAPeerIsJudgedByWhatItPromised(t *testing.T) {
	d := newDrive(Promise{time.Second, 4}, 1)
	d.k.Promised(0, Promise{20 * time.Second, 4}, d.now)
	d.seen[0] = Activity{Received: d.now}
	d.run(19 * time.Second)
	if d.count(Silent) != 0 || d.count(Missed) < 1 {
		t.Errorf("within its promise: %d silent, %d missed", d.count(Silent), d.count(Missed))
	}
	d.run(30 * time.Second)
	if _, at := d.first(Silent); at < 20*time.Second || at > 25*time.Second {
		t.Errorf("found silent at %v", at)
	}
	// A hostile promise does not make a peer immortal.
	d = newDrive(Promise{time.Second, 4}, 1)
	d.k.Promised(0, Promise{1 << 60, 0}, d.now)
	d.run(3 * time.Hour)
	if d.count(Silent) != 1 {
		t.Error("a peer that promised nonsense is never found silent")
	}
}

// TestAShorterPromiseIsNoSilence: the frame that brings it comes after this node has looked
// when the peer was heard, and before it judges by that.
func TestAShorterPromiseIsNoSilence(t *testing.T) {
	d := newDrive(Promise{8 * time.Second, 4}, 1)
	d.seen[0] = Activity{Received: d.now}
	d.run(2 * time.Second)
	if _, _, err := d.k.Set(200*time.Millisecond, 0, d.now); err != nil {
		t.Fatal(err)
	}
	d.k.Promised(0, Promise{200 * time.Millisecond, 4}, d.now)
	d.step(0)
	if d.count(Silent) != 0 {
		t.Error("the peer that has just promised is found silent")
	}
	d.run(3 * time.Second)
	if d.count(Silent) != 1 {
		t.Error("a peer that says nothing after that is not found silent")
	}
}

// TestAPauseOfOurOwnIsNobodysSilence: SIGSTOP for twenty seconds.
func TestAPauseOfOurOwnIsNobodysSilence(t *testing.T) {
	p := Promise{4 * time.Second, 4}
	for _, silentBefore := range []time.Duration{0, 2 * time.Second, 3900 * time.Millisecond} {
		d := newDrive(p, 3)
		d.reply = true
		d.run(10 * time.Second)
		d.reply = false
		for i := range 3 {
			d.seen[i] = Activity{Received: d.now, Sent: d.now}
		}
		d.run(d.now + silentBefore)
		d.acts, d.when = nil, nil
		d.now += 20 * time.Second
		woke := d.now
		d.step(0)
		a, _ := d.first(Paused)
		if a.For < 19*time.Second || d.count(Silent) != 0 {
			t.Errorf("silent for %v before: paused %v, %d found silent on waking", silentBefore, a.For, d.count(Silent))
		}
		d.run(woke + 10*time.Second)
		if _, at := d.first(Silent); at-woke < p.Interval() || at-woke > p.Tick+p.Interval() {
			t.Errorf("silent for %v before: found silent %v after waking", silentBefore, at-woke)
		}
	}
}

func TestASuspendedHostIsToldOf(t *testing.T) {
	d := newDrive(Promise{4 * time.Second, 4}, 1)
	d.reply = true
	d.run(10 * time.Second)
	d.step(time.Hour)
	if a, _ := d.first(Paused); a.For != time.Hour {
		t.Errorf("paused for %v", a.For)
	}
	if d.count(Silent) != 0 {
		t.Error("a peer is down because we were suspended")
	}
}

func TestWakingALittleLateIsNoPause(t *testing.T) {
	d := newDrive(Promise{4 * time.Second, 4}, 1)
	d.reply = true
	for range 100 {
		d.step(0)
		d.now = d.next + 40*time.Millisecond
	}
	if d.count(Paused)+d.count(Silent)+d.count(Missed) != 0 {
		t.Errorf("%d pauses, %d silent", d.count(Paused), d.count(Silent))
	}
}

func TestUnwatchOfAnOldEpochDoesNothing(t *testing.T) {
	k := NewTicks(Promise{time.Second, 4})
	k.Watch(3, 7, Promise{time.Second, 4}, 0)
	k.Unwatch(3, 6)
	if _, ok := k.PeerPromise(3); !ok {
		t.Error("the new session's watch was ended")
	}
	k.Unwatch(3, 7)
	if _, ok := k.PeerPromise(3); ok {
		t.Error("the watch goes on")
	}
}

// TestNoDropDuringAnyChange lets pairs of nodes with staggered changes, each
// judging the other by its pings, run for a while at random.
func TestNoDropDuringAnyChange(t *testing.T) {
	for seed := range uint64(300) {
		rng := rand.New(rand.NewPCG(seed, 3))
		randTick := func() time.Duration { return time.Duration(100+rng.IntN(20_000)) * time.Millisecond }
		var nodes [2]*Ticks
		var seen [2]Activity
		var next [2]Instant
		for i := range nodes {
			p := Promise{randTick(), 2 + rng.IntN(8)}
			nodes[i] = NewTicks(p)
		}
		for i := range nodes {
			nodes[i].Watch(1-i, 1, nodes[1-i].Promise(), 0)
		}
		changeAt := Instant(rng.IntN(5000)) * time.Millisecond
		for now := Instant(1); now < 5*time.Minute; {
			for i := range nodes {
				if now < next[i] {
					continue
				}
				var acts []Action
				acts, next[i] = nodes[i].Step(now, 0, func(int) Activity { return seen[i] }, nil)
				for _, a := range acts {
					switch a.Kind {
					case Ping:
						seen[i].Sent, seen[1-i].Received = now, now+time.Millisecond
						nodes[1-i].Promised(i, nodes[i].Promise(), now)
					case Silent, Paused:
						t.Fatalf("seed %d: %+v at %v", seed, a, now)
					}
				}
			}
			if now >= changeAt {
				i := rng.IntN(2)
				_, _, _ = nodes[i].Set(randTick(), time.Duration(rng.IntN(10_000))*time.Millisecond, now)
				next[i] = now
				changeAt = now + Instant(rng.IntN(40_000))*time.Millisecond
				continue
			}
			now = max(now+1, min(next[0], next[1], changeAt))
		}
	}
}

func FuzzPromise(f *testing.F) {
	f.Add(int64(time.Second), 4)
	f.Fuzz(func(t *testing.T, tick int64, pings int) {
		p := Promise{time.Duration(tick), pings}
		if err := p.clamp().Check(); err != nil {
			t.Fatalf("%v clamped is refused: %v", p, err)
		}
		if p.Check() == nil && p.clamp() != p {
			t.Fatalf("%v is changed by the clamp", p)
		}
	})
}
