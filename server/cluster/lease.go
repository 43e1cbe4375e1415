package cluster

import (
	"sync"
	"sync/atomic"
	"time"
)

// Lease is how long a peer is bound to take this node for alive. A peer gives
// us up when it has heard nothing for the tick time that we promised, or
// longer: so whatever of ours it has certainly heard, and was sent at some
// time, binds it for the tick time from then on. That is known without the
// peer's help, and stays true while this process does not run: on waking,
// the lease has run out before anything else can have told of the pause.
//
// Times are a Clock's. A Lease is safe for concurrent use; the zero Lease has
// run out.
type Lease struct {
	until atomic.Int64 // Instant; 0: nothing is known

	// mu guards what follows. It is held for a few instructions only.
	mu      sync.Mutex
	tick    time.Duration // promised with the last ping
	grew    Instant       // when a longer tick time was first promised than before
	shorter time.Duration // the shortest promise of those before grew which may still hold
	grown   bool          // grew and shorter still matter
}

// drift is by how much the clocks of two hosts may differ in rate: one part in
// a hundred, which is a hundred times what the worst of them do.
const drift = 100

// Asked takes note that a ping which promises tick is about to be sent.
func (l *Lease) Asked(at Instant, tick time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case tick > l.tick:
		if !l.grown || l.tick < l.shorter {
			l.shorter = l.tick
		}
		l.grew, l.grown = at, true
	case tick < l.tick:
		// From when it hears of it the peer may judge by the shorter time.
		l.until.Store(min(l.until.Load(), int64(bound(at, tick))))
	}
	l.tick = tick
}

// Answered takes note that the peer has heard what was sent at the time given.
func (l *Lease) Answered(at Instant) {
	l.mu.Lock()
	defer l.mu.Unlock()
	tick := l.tick
	if l.grown && at < l.grew {
		tick = min(tick, l.shorter)
	} else {
		l.grown = false
	}
	if tick > 0 {
		l.until.Store(max(l.until.Load(), int64(bound(at, tick))))
	}
}

// Break ends the lease until the peer is heard to answer again.
func (l *Lease) Break() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.until.Store(0)
}

// Left is how much of the lease is left; nothing or less: it has run out.
func (l *Lease) Left(now Instant) time.Duration { return Instant(l.until.Load()) - now }

func bound(at Instant, tick time.Duration) Instant { return at + tick - tick/drift }

// Clock counts the time since it was made, that in which the host was
// suspended included, which the monotonic clock leaves out. It is safe for
// concurrent use.
type Clock struct {
	start     time.Time
	suspended func() time.Duration
	before    time.Duration // suspended before start

	// away is how long the host was suspended since start, as of when the wall
	// clock was ahead of the monotonic one by shift. While that is so there has
	// been no suspension since: asking for it costs a system call, and seeing
	// that there is no need to ask costs next to nothing.
	away, shift atomic.Int64
}

// NewClock returns a clock; suspended is how long the host has been suspended
// since it booted.
func NewClock(suspended func() time.Duration) *Clock {
	c := &Clock{start: time.Now(), suspended: suspended, before: suspended()}
	c.shift.Store(c.start.UnixNano())
	return c
}

// slack is what adjustments of the wall clock and the reading of two clocks
// one after the other may amount to before suspended is asked again.
const slack = int64(time.Millisecond)

// Now is the time since the clock was made. It is never 0, so that 0 means
// never.
func (c *Clock) Now() Instant {
	now := time.Now()
	mono := now.Sub(c.start)
	shift := now.UnixNano() - int64(mono)
	if d := shift - c.shift.Load(); d > slack || d < -slack {
		c.away.Store(int64(max(0, c.suspended()-c.before)))
		c.shift.Store(shift)
	}
	return mono + time.Duration(c.away.Load()) + 1
}
