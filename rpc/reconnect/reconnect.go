// Package reconnect decides when to connect, probe and give up a connection
// that is to be kept. It is Open vSwitch's state machine, rule for rule, as a
// pure function of events and time: it opens nothing, logs nothing and has no
// clock.
//
// The owner of an FSM tells it what happened (Connecting, ConnectSucceeded,
// Activity, Disconnected, …), asks Run what to do now, does it, and comes back at the
// time that Deadline names or when something happens, whichever is first:
//
//	VOID ──Enable──▶ BACKOFF ──Run: Connect──▶ CONNECTING ──Succeeded──▶ ACTIVE ◀─Activity─ IDLE
//	                    ▲                          │                       │ └─Run: Probe──▶ │
//	                    └──────── Disconnected, ConnectFailed ─────────────┴────────────────┘
//
// A passive FSM listens: LISTENING stands where the attempts of an active one
// would.
package reconnect

import (
	"fmt"
	"time"
)

// The defaults of a new FSM, and the least that backoff (but see SetFloor) and
// probe interval may be.
const (
	DefaultMinBackoff    = 1 * time.Second
	DefaultMaxBackoff    = 8 * time.Second
	DefaultProbeInterval = 5 * time.Second

	leastBackoff = 1 * time.Second
	leastProbe   = 1 * time.Second
)

// Forever as a number of tries sets no limit.
const Forever = -1

// State is what the FSM believes about the connection.
type State uint8

// The states. Connected are Active and Idle.
const (
	Void       State = iota // disabled, or out of tries
	Backoff                 // waiting before the next attempt
	Connecting              // an attempt is under way
	Active                  // connected, and something was received lately
	Idle                    // connected; a probe was sent and not answered yet
	Reconnect               // what there is, a connection or an attempt, is to be closed now
	Listening               // waiting for the peer to connect

	states = iota
)

var stateNames = [states]string{"VOID", "BACKOFF", "CONNECTING", "ACTIVE", "IDLE", "RECONNECT", "LISTENING"}

// String returns Open vSwitch's name of the state.
func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// Connected reports whether there is a connection in this state.
func (s State) Connected() bool { return s == Active || s == Idle }

// Action is what Run asks its caller to do.
type Action uint8

// The actions. After Connect the caller reports Connecting, ConnectSucceeded or
// ConnectFailed (Listening or ListenError where it is passive), after
// Disconnect it closes and reports Disconnected, after Probe it sends
// something that the peer must answer.
const (
	Nothing Action = iota
	Connect
	Disconnect
	Probe
)

// String names the action.
func (a Action) String() string {
	switch a {
	case Connect:
		return "connect"
	case Disconnect:
		return "disconnect"
	case Probe:
		return "probe"
	}
	return "nothing"
}

// FSM is the state machine of one connection. It is not safe for concurrent
// use: it belongs to the goroutine that keeps the connection.
type FSM struct {
	floor                  time.Duration // of the two
	minBackoff, maxBackoff time.Duration
	probeInterval          time.Duration // 0: no probes
	passive                bool
	maxTries               int // Forever, or how many are left
	freeTries              int // attempts without backoff
	jitter                 func(time.Duration) time.Duration

	state        State
	stateEntered time.Time
	backoff      time.Duration
	drawn        time.Duration // backoff with jitter, which is what is waited

	created          time.Time
	lastActivity     time.Time
	lastConnected    time.Time // zero: never
	lastDisconnected time.Time // zero: never
	lastReceive      time.Time // when receiving was last tried
	receiveUnknown   bool      // the caller does not report when it tries

	connected  time.Duration // in all, without the present connection
	attempted  uint64
	successful uint64
	seqno      uint64
}

// New returns an FSM that is disabled.
func New(now time.Time) *FSM {
	return &FSM{
		floor: leastBackoff, minBackoff: DefaultMinBackoff, maxBackoff: DefaultMaxBackoff, probeInterval: DefaultProbeInterval,
		maxTries:     Forever,
		stateEntered: now, created: now, lastActivity: now, lastReceive: now,
	}
}

// State returns the present state.
func (f *FSM) State() State { return f.state }

// Connected reports whether there is a connection.
func (f *FSM) Connected() bool { return f.state.Connected() }

// Enabled reports whether the FSM is enabled and has not run out of tries.
func (f *FSM) Enabled() bool { return f.state != Void }

// Passive reports whether the FSM waits for the peer to connect.
func (f *FSM) Passive() bool { return f.passive }

// TriesLeft returns how many attempts are left, or Forever.
func (f *FSM) TriesLeft() int { return f.maxTries }

// SetMaxTries limits the attempts that will be made from now on; Forever sets
// no limit. With none left the FSM becomes Void on the next disconnection.
func (f *FSM) SetMaxTries(n int) { f.maxTries = max(n, Forever) }

// SetFreeTries sets how many attempts are made without backoff: with several
// addresses each is tried once before any waiting.
func (f *FSM) SetFreeTries(n int) { f.freeTries = max(n, 0) }

// SetBackoff sets the bounds of the backoff. Neither is ever under the floor,
// which is a second; a max of 0 is the default; a max under min becomes min.
func (f *FSM) SetBackoff(least, most time.Duration) {
	f.minBackoff = max(least, f.floor)
	f.maxBackoff = DefaultMaxBackoff
	if most > 0 {
		f.maxBackoff = max(most, f.floor)
	}
	f.maxBackoff = max(f.maxBackoff, f.minBackoff)
	if f.state == Backoff && f.backoff > f.maxBackoff {
		f.setBackoff(f.maxBackoff)
	}
}

// SetFloor sets what the bounds given to SetBackoff from now on are raised to,
// for peers on a fast network to which a second is long. It is an addition of
// ours: Open vSwitch's floor is a second, and so is that of a new FSM. Nothing
// else goes by it; an attempt is given a second whatever the floor.
func (f *FSM) SetFloor(d time.Duration) { f.floor = max(d, time.Millisecond) }

// SetProbeInterval sets after how much silence a probe is sent, and after how
// much more the connection is given up. 0 turns probes off; any other interval
// is at least a second.
func (f *FSM) SetProbeInterval(d time.Duration) {
	if d > 0 {
		d = max(d, leastProbe)
	}
	f.probeInterval = max(d, 0)
}

// SetJitter makes the FSM wait for draw(backoff) in place of backoff, so that
// many clients of one server do not come back all at once. draw must return
// less than or as much as it is given. Without one there is no jitter, and
// the FSM's behaviour is that of Open vSwitch to the millisecond.
func (f *FSM) SetJitter(draw func(backoff time.Duration) time.Duration) { f.jitter = draw }

func (f *FSM) setBackoff(d time.Duration) {
	f.backoff, f.drawn = d, d
	if f.jitter != nil && d > 0 {
		f.drawn = min(max(f.jitter(d), 0), d)
	}
}

// SetPassive makes the FSM wait for the peer to connect, or stop doing so. A
// connection that is up stays.
func (f *FSM) SetPassive(passive bool, now time.Time) {
	if f.passive == passive {
		return
	}
	f.passive = passive
	if passive && (f.state == Connecting || f.state == Reconnect) ||
		!passive && f.state == Listening && f.mayRetry() {
		f.enter(Backoff, now)
		f.setBackoff(0)
	}
}

// Enable lets attempts begin, at once, if any are left.
func (f *FSM) Enable(now time.Time) {
	if f.state == Void && f.mayRetry() {
		f.enter(Backoff, now)
		f.setBackoff(0)
	}
}

// Disable ends attempts. The caller closes the connection if there is one.
func (f *FSM) Disable(now time.Time) {
	if f.state != Void {
		f.enter(Void, now)
	}
}

// ForceReconnect makes Run ask for Disconnect at once where there is a
// connection or an attempt.
func (f *FSM) ForceReconnect(now time.Time) {
	if f.state == Connecting || f.state == Active || f.state == Idle {
		f.enter(Reconnect, now)
	}
}

// Connecting reports that an attempt is under way.
func (f *FSM) Connecting(now time.Time) {
	if f.state != Connecting {
		f.enter(Connecting, now)
	}
}

// ConnectSucceeded reports that there is a connection now. Where no attempt was
// reported it counts as one.
func (f *FSM) ConnectSucceeded(now time.Time) {
	if f.state.Connected() {
		return
	}
	f.Connecting(now)
	f.enter(Active, now)
	f.lastConnected = now
}

// ConnectFailed reports that an attempt failed.
func (f *FSM) ConnectFailed(now time.Time) {
	f.Connecting(now)
	f.Disconnected(now)
}

// Listening reports that the caller waits for the peer to connect.
func (f *FSM) Listening(now time.Time) {
	if f.state != Listening {
		f.enter(Listening, now)
	}
}

// ListenError reports that accepting a connection failed.
func (f *FSM) ListenError(now time.Time) {
	if f.state == Listening {
		f.Disconnected(now)
	}
}

// Activity reports that something was received, or that what had piled up to
// be sent went out.
func (f *FSM) Activity(now time.Time) {
	if f.state == Idle {
		f.enter(Active, now)
	}
	f.lastActivity = now
}

// ReceiveAttempted reports that receiving was tried, whether anything was there
// or not. Silence counts against the peer only if somebody listened: a probe
// interval that passed while the caller was busy elsewhere does not expire
// before the caller has tried to receive.
func (f *FSM) ReceiveAttempted(now time.Time) { f.lastReceive = now }

// ReceivesContinuously tells that receiving never pauses (a goroutine does
// nothing else), so that ReceiveAttempted need not be called.
func (f *FSM) ReceivesContinuously() { f.receiveUnknown = true }

// Disconnected reports that the connection dropped or the attempt failed, and
// sets the backoff:
//   - none while free tries are left;
//   - the least (none in passive mode) after a connection over which something
//     was still received when it was older than the last backoff;
//   - twice the last one, up to the most, otherwise.
func (f *FSM) Disconnected(now time.Time) {
	if f.state == Backoff || f.state == Void {
		return
	}
	up := f.state == Active || f.state == Idle
	if up {
		f.lastDisconnected = now
	}
	if !f.mayRetry() {
		f.enter(Void, now)
		return
	}
	f.setBackoff(f.nextBackoff(up))
	f.enter(Backoff, now)
}

func (f *FSM) nextBackoff(up bool) time.Duration {
	switch {
	case f.freeTries > 1:
		f.freeTries--
		return 0
	case up && f.passive:
		return 0
	case up && f.lastActivity.Sub(f.lastConnected) >= f.backoff:
		return f.minBackoff
	case f.backoff < f.minBackoff:
		return f.minBackoff
	case f.backoff < f.maxBackoff/2:
		return 2 * f.backoff
	}
	return f.maxBackoff
}

// mayRetry takes one of the tries that are left.
func (f *FSM) mayRetry() bool {
	switch {
	case f.maxTries == Forever:
		return true
	case f.maxTries == 0:
		return false
	}
	f.maxTries--
	return true
}

// enter is the only place where the state changes. It keeps the counts.
func (f *FSM) enter(s State, now time.Time) {
	if f.state == Connecting {
		f.attempted++
		if s == Active {
			f.successful++
		}
	}
	if f.state.Connected() != s.Connected() {
		if f.state.Connected() {
			f.connected += now.Sub(f.lastConnected)
		}
		f.seqno++
	}
	f.state, f.stateEntered = s, now
}

// Deadline returns when Run will have something to do if nothing happens
// before; false if it never will.
func (f *FSM) Deadline(now time.Time) (time.Time, bool) {
	switch f.state {
	case Backoff:
		return f.stateEntered.Add(f.drawn), true
	case Connecting:
		return f.stateEntered.Add(max(leastBackoff, f.backoff)), true
	case Active:
		return f.expiry(f.quietSince(), now)
	case Idle:
		return f.expiry(f.stateEntered, now)
	case Reconnect:
		return f.stateEntered, true
	}
	return time.Time{}, false
}

func (f *FSM) quietSince() time.Time {
	if f.lastActivity.After(f.stateEntered) {
		return f.lastActivity
	}
	return f.stateEntered
}

// expiry returns when the probe interval that began at since expires. One that
// has passed with nobody trying to receive is put off a little.
func (f *FSM) expiry(since, now time.Time) (time.Time, bool) {
	if f.probeInterval == 0 {
		return time.Time{}, false
	}
	end := since.Add(f.probeInterval)
	if now.Before(end) || f.receiveUnknown || !f.lastReceive.Before(end) {
		return end, true
	}
	return now.Add(time.Millisecond), true
}

// Timeout returns how long to wait before calling Run if nothing happens
// before; false: for ever.
func (f *FSM) Timeout(now time.Time) (time.Duration, bool) {
	at, ok := f.Deadline(now)
	return max(0, at.Sub(now)), ok
}

// Run returns what is to be done now.
func (f *FSM) Run(now time.Time) Action {
	at, ok := f.Deadline(now)
	if !ok || now.Before(at) {
		return Nothing
	}
	switch f.state {
	case Backoff:
		return Connect
	case Active:
		f.enter(Idle, now)
		return Probe
	}
	return Disconnect // the attempt timed out, the probe was not answered, or it was asked for
}

// Stats is a snapshot for display.
type Stats struct {
	State                State
	StateFor             time.Duration
	Created              time.Time
	LastActivity         time.Time
	LastConnected        time.Time     // zero: never
	LastDisconnected     time.Time     // zero: never
	SinceConnect         time.Duration // -1: never
	SinceDisconnect      time.Duration // -1: never
	TotalConnected       time.Duration
	Backoff              time.Duration
	Connected            bool
	Seqno                uint64 // counts both connections and disconnections
	AttemptedConnections uint64
	SuccessfulConns      uint64
	TriesLeft            int
}

// Stats returns a snapshot.
func (f *FSM) Stats(now time.Time) Stats {
	s := Stats{
		State: f.state, StateFor: now.Sub(f.stateEntered), Created: f.created,
		LastActivity: f.lastActivity, LastConnected: f.lastConnected, LastDisconnected: f.lastDisconnected,
		SinceConnect: since(f.lastConnected, now), SinceDisconnect: since(f.lastDisconnected, now),
		TotalConnected: f.connected, Backoff: f.backoff, Connected: f.Connected(), Seqno: f.seqno,
		AttemptedConnections: f.attempted, SuccessfulConns: f.successful, TriesLeft: f.maxTries,
	}
	if f.Connected() {
		s.TotalConnected += s.SinceConnect
	}
	return s
}

func since(t, now time.Time) time.Duration {
	if t.IsZero() {
		return -1
	}
	return now.Sub(t)
}
