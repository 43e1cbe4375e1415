package messenger

import (
	"math/rand/v2"
	"time"
)

// Backoff of dials. The first retry is at once; then the wait doubles from
// minBackoff to maxBackoff. A node that comes back does not wait for it: it
// knocks.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// retry computes the waits between attempts. The zero value is ready.
type retry struct {
	failed int
	wait   time.Duration
}

// next is the wait before the attempt that follows a failure.
func (r *retry) next() time.Duration { return r.between(minBackoff, maxBackoff) }

// between is next where the waits grow from least to most. They are jittered
// by a quarter, so that the peers of a node which comes back do not all dial it
// in the same instant; never upwards, for no wait may outlast an attempt: a path
// that works for a moment must find one under way.
func (r *retry) between(least, most time.Duration) time.Duration {
	r.failed++
	switch {
	case r.failed == 1:
		r.wait = 0
	case r.wait == 0:
		r.wait = least
	default:
		r.wait = min(2*r.wait, maxBackoff)
	}
	r.wait = min(r.wait, most)
	if r.wait == 0 {
		return 0
	}
	return r.wait - rand.N(r.wait/4)
}

// reset makes the next retry immediate.
func (r *retry) reset() { *r = retry{} }
