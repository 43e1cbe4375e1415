package messenger

import (
	"math/rand/v2"
	"time"

	"github.com/lockstepd/lockstep/rpc/reconnect"
)

// Backoff of dials. The first retry is at once; then the wait doubles from
// minBackoff to maxBackoff. A node that comes back does not wait for it: it
// knocks.
const (
	minBackoff = 100 * time.Millisecond
	maxBackoff = 5 * time.Second
)

// freeTries as the free tries of an FSM makes the retry that follows the next
// failure immediate, and the backoff begin anew after it.
const freeTries = 2

// newFSM returns the state machine of something that is to be kept connected.
// It has no probes: that a peer is silent is for the monitor to say.
func newFSM(least, most time.Duration) *reconnect.FSM {
	f := reconnect.New(time.Now())
	f.SetFloor(least)
	f.SetBackoff(least, most)
	f.SetProbeInterval(0)
	f.SetJitter(jitter)
	f.SetFreeTries(freeTries)
	return f
}

// jitter shortens a wait by up to a quarter, so that the peers of a node which
// comes back do not all dial it in the same instant. It never draws it out, for
// no wait may outlast an attempt: a path that works for a moment must find one
// under way.
func jitter(wait time.Duration) time.Duration { return wait - rand.N(max(wait/4, 1)) }

// failed tells f that its connection was lost or an attempt failed, and returns
// when the next attempt is due. The wait counts from the moment given, which
// may be when the attempt began.
func failed(f *reconnect.FSM, from time.Time) time.Time {
	if f.Connected() {
		f.Disconnected(from)
	} else {
		f.ConnectFailed(from)
	}
	at, _ := f.Deadline(from)
	return at
}

// atOnce makes the next attempt of f immediate where one is waited for, and the
// retry after it too.
func atOnce(f *reconnect.FSM, now time.Time) {
	f.SetFreeTries(freeTries)
	if f.State() == reconnect.Backoff {
		f.Disable(now)
		f.Enable(now)
	}
}
