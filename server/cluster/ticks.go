package cluster

import (
	"fmt"
	"time"
)

// Limits of the tick time and the ping count.
const (
	MinTick      = 100 * time.Millisecond
	MaxTick      = time.Hour
	MinPingCount = 2
	MaxPingCount = 1000

	// DefaultTransition is how long a change of the tick time takes where
	// nothing else is said: every node must have begun it by then.
	DefaultTransition = 60 * time.Second
)

// Instant is a point on the monotonic clock, counted from any fixed start.
type Instant = time.Duration

// Promise is what a node says of its own pings: at least one every Tick/Pings.
type Promise struct {
	Tick  time.Duration
	Pings int
}

// Interval is the longest silence that the promise allows while all is well.
func (p Promise) Interval() time.Duration { return p.Tick / time.Duration(max(p.Pings, 1)) }

// Check says what is wrong with p, in terms of the configuration.
func (p Promise) Check() error {
	if p.Tick < MinTick || p.Tick > MaxTick {
		return fmt.Errorf("tick time %v is out of range: allowed are %v to %v", p.Tick, MinTick, MaxTick)
	}
	if p.Pings < MinPingCount || p.Pings > MaxPingCount {
		return fmt.Errorf("max ping count %d is out of range: allowed are %d to %d", p.Pings, MinPingCount, MaxPingCount)
	}
	return nil
}

// clamp makes what a peer promised usable, whatever it promised: a hostile
// value may harm its sender's own liveness only.
func (p Promise) clamp() Promise {
	return Promise{min(max(p.Tick, MinTick), MaxTick), min(max(p.Pings, MinPingCount), MaxPingCount)}
}

// Activity is when a peer was last heard, and last spoken to on the meta link.
type Activity struct {
	Received, Sent Instant
}

// ActionKind is what the owner of Ticks has to do.
type ActionKind uint8

// The actions.
const (
	// Ping asks for a ping to the peer.
	Ping ActionKind = iota + 1
	// Missed tells that the peer has missed Count pings in a row.
	Missed
	// Heard tells that a peer which had missed pings is heard again.
	Heard
	// Silent tells that the peer is down: nothing came For so long. The peer is
	// watched no longer.
	Silent
	// Paused tells that this process did not run For so long.
	Paused
	// Changed tells that a change of the tick time is complete.
	Changed
)

// Action is one thing to do, in the order returned.
type Action struct {
	Kind  ActionKind
	Peer  int
	Epoch uint64 // as given to Watch
	Count int
	For   time.Duration
}

// SetResult is the answer to a change of the tick time.
type SetResult uint8

// The answers.
const (
	Unchanged SetResult = iota
	ChangeInitiated
	OngoingChangeTo
)

func (r SetResult) String() string {
	switch r {
	case ChangeInitiated:
		return "change_initiated"
	case OngoingChangeTo:
		return "ongoing_change_to"
	}
	return "unchanged"
}

// TickInfo is what tick/get shows. Target is 0 unless a change is under way.
type TickInfo struct {
	Tick      time.Duration
	Pings     int
	Target    time.Duration
	Remaining time.Duration
}

// Ticks is the machine of pings and silence. Its methods are told the time and
// do nothing but compute; it is not safe for concurrent use.
//
// A change of the tick time has two halves. When T is lengthened, our own
// judgement becomes lenient at once but pings keep their old rate until the
// transition ends, for peers that have not heard of it. When T is shortened,
// pings come at the new rate at once but our judgement keeps the old T until
// the end, for peers that do not ping faster yet.
type Ticks struct {
	tick   time.Duration // judged by, and promised
	pings  int
	change *change
	peers  map[int]*watch
	wakeAt Instant // what the last Step asked for; 0: nothing
}

// change is a transition under way: pings go out every interval, whatever else
// was sent, until end.
type change struct {
	target   time.Duration
	interval time.Duration
	end      Instant
}

// watch is one peer under observation.
type watch struct {
	epoch   uint64
	promise Promise
	floor   Instant // silence counts from here where that is later than the last frame
	pingAt  Instant
	missed  int
}

// NewTicks returns the machine for a node that keeps the promise p.
func NewTicks(p Promise) *Ticks {
	return &Ticks{tick: p.Tick, pings: p.Pings, peers: make(map[int]*watch)}
}

// Promise is what this node promises at present.
func (k *Ticks) Promise() Promise { return Promise{k.tick, k.pings} }

// Watch begins to watch a peer that has just come up. The first ping of each
// peer falls on its own part of the interval, so that many peers are not
// pinged in one burst.
func (k *Ticks) Watch(peer int, epoch uint64, p Promise, now Instant) {
	const golden = 0.6180339887498949
	share := float64(peer+1) * golden
	share -= float64(int(share))
	first := time.Duration(share * float64(k.interval()))
	k.peers[peer] = &watch{epoch: epoch, promise: p.clamp(), floor: now, pingAt: now + first}
	k.wakeAt = 0
}

// Unwatch forgets a peer, if it is still watched under that epoch.
func (k *Ticks) Unwatch(peer int, epoch uint64) {
	if w := k.peers[peer]; w != nil && w.epoch == epoch {
		delete(k.peers, peer)
	}
}

// Promised takes note of what a peer promises now. It was heard by that, whatever Step
// is told: what that is told may be from just before, and a shorter promise would make
// the silence until then too long after the fact.
func (k *Ticks) Promised(peer int, p Promise, now Instant) {
	if w := k.peers[peer]; w != nil {
		w.promise, w.floor = p.clamp(), max(w.floor, now)
	}
}

// PeerPromise is what a watched peer promised.
func (k *Ticks) PeerPromise(peer int) (Promise, bool) {
	if w := k.peers[peer]; w != nil {
		return w.promise, true
	}
	return Promise{}, false
}

// MissedPings is how many pings in a row a peer has missed.
func (k *Ticks) MissedPings(peer int) int {
	if w := k.peers[peer]; w != nil {
		return w.missed
	}
	return 0
}

// Get tells the tick time, and of a change under way.
func (k *Ticks) Get(now Instant) TickInfo {
	info := TickInfo{Tick: k.tick, Pings: k.pings}
	if c := k.change; c != nil {
		info.Target, info.Remaining = c.target, max(0, c.end-now)
	}
	return info
}

// Set begins a change of the tick time. During a change another one is not
// begun, whatever it asks for: the target of the one under way is returned.
func (k *Ticks) Set(tick, transition time.Duration, now Instant) (SetResult, time.Duration, error) {
	if err := (Promise{tick, k.pings}).Check(); err != nil {
		return Unchanged, k.tick, err
	}
	if transition < 0 || transition > MaxTick {
		return Unchanged, k.tick, fmt.Errorf("transition %v is out of range: allowed are 0s to %v", transition, MaxTick)
	}
	if k.change != nil {
		return OngoingChangeTo, k.change.target, nil
	}
	if tick == k.tick {
		return Unchanged, k.tick, nil
	}
	interval := min(tick, k.tick) / time.Duration(k.pings)
	rounds := (transition + interval - 1) / interval
	k.change = &change{target: tick, interval: interval, end: now + rounds*interval}
	if tick > k.tick {
		k.tick = tick
	}
	if rounds == 0 {
		k.finishChange()
	}
	k.pingAllAt(now)
	return ChangeInitiated, tick, nil
}

// SetPings changes the ping count. It takes effect at once: the interval is
// announced with the ping that goes out now.
func (k *Ticks) SetPings(n int, now Instant) error {
	if err := (Promise{k.tick, n}).Check(); err != nil {
		return err
	}
	if k.pings != n {
		k.pings = n
		k.pingAllAt(now)
	}
	return nil
}

func (k *Ticks) finishChange() {
	k.tick = k.change.target
	k.change = nil
}

func (k *Ticks) pingAllAt(now Instant) {
	for _, w := range k.peers {
		w.pingAt = now
	}
	k.wakeAt = 0
}

// interval is the time between our pings.
func (k *Ticks) interval() time.Duration {
	if k.change != nil {
		return k.change.interval
	}
	return k.Promise().Interval()
}

// limit is the silence after which a peer is down.
func (k *Ticks) limit(w *watch) time.Duration { return max(k.tick, w.promise.Tick) }

// expected is the silence that is normal for a peer: the slower of what it
// promised and what the limit and its count amount to.
func (k *Ticks) expected(w *watch) time.Duration {
	return k.limit(w) / time.Duration(max(w.promise.Pings, MinPingCount))
}

// lateness is how much later than asked a Step may come before the time in
// between counts as a pause of this process.
func (k *Ticks) lateness() time.Duration { return max(k.interval()/2, 50*time.Millisecond) }

// Step computes what is due now and when to call again; seen tells of a peer's
// activity. suspended is time that passed without the monotonic clock counting
// it. The actions are appended to acts.
func (k *Ticks) Step(now Instant, suspended time.Duration, seen func(peer int) Activity, acts []Action) ([]Action, Instant) {
	acts = k.notePause(now, suspended, seen, acts)
	if k.change != nil && now >= k.change.end {
		k.finishChange()
		acts = append(acts, Action{Kind: Changed, For: k.tick})
	}
	next := now + k.interval()
	if k.change != nil {
		next = min(next, k.change.end)
	}
	for id, w := range k.peers {
		a := seen(id)
		var due Instant
		if acts, due = k.stepPeer(id, w, a, now, acts); due > 0 {
			next = min(next, due)
		}
	}
	k.wakeAt = next
	return acts, next
}

// notePause finds out whether this process was away since the last Step, and
// if so takes that time out of every peer's silence. At least one interval is
// left to each, for its frames that wait in our socket buffers to be read.
func (k *Ticks) notePause(now Instant, suspended time.Duration, seen func(int) Activity, acts []Action) []Action {
	late := time.Duration(0)
	if k.wakeAt > 0 {
		late = now - k.wakeAt
	}
	if late <= k.lateness() {
		late = 0
	}
	if late == 0 && suspended <= k.lateness() {
		return acts
	}
	for id, w := range k.peers {
		last := max(seen(id).Received, w.floor)
		silent := max(0, now-late-last)
		silent = min(silent, k.limit(w)-k.expected(w))
		w.floor = max(w.floor, now-silent)
	}
	return append(acts, Action{Kind: Paused, For: late + suspended})
}

// stepPeer does one peer and returns when to look at it again.
func (k *Ticks) stepPeer(id int, w *watch, a Activity, now Instant, acts []Action) ([]Action, Instant) {
	last := max(a.Received, w.floor)
	silent := now - last
	limit, expected := k.limit(w), k.expected(w)
	if silent > limit {
		delete(k.peers, id)
		return append(acts, Action{Kind: Silent, Peer: id, Epoch: w.epoch, For: silent}), 0
	}
	missed := max(0, int((silent-expected/2)/expected))
	switch {
	case missed > w.missed:
		acts = append(acts, Action{Kind: Missed, Peer: id, Epoch: w.epoch, Count: missed, For: silent})
	case missed == 0 && w.missed > 0:
		acts = append(acts, Action{Kind: Heard, Peer: id, Epoch: w.epoch, Count: w.missed})
	}
	w.missed = missed
	if k.pingDue(w, a, now) {
		acts = append(acts, Action{Kind: Ping, Peer: id, Epoch: w.epoch})
		w.pingAt = now + k.interval()
	}
	// One nanosecond past the limit is "more than T".
	due := min(w.pingAt, last+limit+1, last+expected/2+time.Duration(missed+1)*expected)
	return acts, max(due, now+1)
}

// pingDue reports whether to ping now. What was sent on the meta link since
// postpones the ping, except during a change, when pings carry the news.
func (k *Ticks) pingDue(w *watch, a Activity, now Instant) bool {
	if k.change == nil && a.Sent > 0 {
		w.pingAt = max(w.pingAt, a.Sent+k.interval())
	}
	return now >= w.pingAt
}
