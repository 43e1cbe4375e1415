package events

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"
)

// Event is one entry of the stream. Once published it is shared by all
// readers: nobody changes it, its Data included.
type Event struct {
	Seq    uint64         `json:"seq"`
	Time   time.Time      `json:"time"`
	Type   string         `json:"type"`
	Node   string         `json:"node,omitempty"`
	Device string         `json:"device,omitempty"`
	Text   string         `json:"text"` // one sentence
	Data   map[string]any `json:"data,omitempty"`
}

// Lost stands for events that were gone from the log before they were read.
// They are counted whatever their type, also by readers of some types only.
type Lost struct {
	Count uint64 `json:"count"`
	From  uint64 `json:"from"` // first sequence number lost
	To    uint64 `json:"to"`   // last
}

// ErrClosed is what readers get when the log was closed and they have read
// what was left.
var ErrClosed = errors.New("the event stream has ended")

// DefaultCapacity is how many events are kept for readers that are behind:
// what 10,000 a second fill in under a second, in about 2 MiB.
const DefaultCapacity = 8192

// Log is the stream: a ring of the newest events. All methods may be called
// from any goroutine; none but Subscription.Read and Next waits.
type Log struct {
	id string // of this stream; never changes

	// mu guards all fields below. Nothing is called and nothing waits under it.
	mu     sync.Mutex
	ring   []Event // event seq is at (seq-1) % len
	seq    uint64  // of the newest event; 0 before the first
	counts map[Count]uint64
	closed bool
	wake   chan struct{} // closed at the next event; nil while nobody waits
}

// Count is what events are counted by: their type and the device that they are
// about, or the node where it is none.
type Count struct{ Type, Device, Node string }

// maxCounts bounds the counts: more are by type alone.
const maxCounts = 1 << 16

// NewLog makes a log that keeps the newest capacity events.
func NewLog(capacity int) *Log {
	return &Log{id: rand.Text(), ring: make([]Event, max(capacity, 1)), counts: map[Count]uint64{}}
}

// Stream names this log among those of other lives of the daemon: numbers mean
// something within one stream only.
func (l *Log) Stream() string { return l.id }

// FromStart as the number to subscribe after brings all that is kept.
const FromStart = math.MaxUint64

// Publish appends an event and returns its number. It sets Seq, and Time
// where that is zero. It never waits; after Close it does nothing.
func (l *Log) Publish(e Event) uint64 {
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return l.seq
	}
	l.seq++
	e.Seq = l.seq
	l.ring[l.slot(e.Seq)] = e
	l.countLocked(&e)
	l.wakeLocked()
	return e.Seq
}

func (l *Log) countLocked(e *Event) {
	of := Count{Type: e.Type, Device: e.Device}
	if e.Device == "" {
		of.Node = e.Node
	}
	if _, known := l.counts[of]; !known && len(l.counts) >= maxCounts {
		of = Count{Type: e.Type}
	}
	l.counts[of]++
}

// Counts returns how many events of each kind there were.
func (l *Log) Counts() map[Count]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.counts)
}

// Newest is the number of the newest event, 0 before the first.
func (l *Log) Newest() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.seq
}

// Close ends the stream: readers read what is left and then get ErrClosed.
func (l *Log) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	l.wakeLocked()
}

func (l *Log) wakeLocked() {
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

func (l *Log) slot(seq uint64) uint64 { return (seq - 1) % uint64(len(l.ring)) }

// oldestLocked is the number of the oldest event that is still kept.
func (l *Log) oldestLocked() uint64 {
	if n := uint64(len(l.ring)); l.seq > n {
		return l.seq - n + 1
	}
	return 1
}

// Subscription is a reader's place in the stream. It is no more than that: it
// need not be closed, and one that is not read costs nothing. It is used by
// one goroutine.
type Subscription struct {
	log    *Log
	next   uint64   // the event to read next
	types  []string // empty is all
	missed uint64
}

// Subscribe makes a reader of the events after the one numbered after; 0
// starts with the next event. A number that the log has not reached is of an
// earlier life of the daemon: the reader then gets all that is kept of this
// one. An unknown type is an error that lists the known ones.
func (l *Log) Subscribe(after uint64, types ...string) (*Subscription, error) {
	for _, t := range types {
		if !Known(t) {
			return nil, fmt.Errorf("there are no events of type %q; types are %s", t, strings.Join(Types(), ", "))
		}
	}
	if slices.Contains(types, Any) {
		types = nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &Subscription{log: l, next: after + 1, types: slices.Clone(types)}
	switch {
	case after == 0:
		s.next = l.seq + 1
	case after > l.seq:
		s.next = 1
	}
	if oldest := l.oldestLocked(); s.next < oldest {
		s.missed = oldest - s.next
	}
	return s, nil
}

// Missed is how many events after the one that was asked for were gone
// already when the subscription was made. Reading begins with their Lost.
func (s *Subscription) Missed() uint64 { return s.missed }

// Next returns the next event or, where the reader fell behind, what it lost.
// It waits until there is something, ctx ends, or the log is closed.
func (s *Subscription) Next(ctx context.Context) (Event, *Lost, error) {
	var one [1]Event
	n, lost, err := s.Read(ctx, one[:])
	if n == 0 {
		return Event{}, lost, err
	}
	return one[0], nil, nil
}

// Read fills dst with the events that there are, in order, and returns how
// many. It returns either events, or a Lost, or an error, and waits as Next
// does.
func (s *Subscription) Read(ctx context.Context, dst []Event) (int, *Lost, error) {
	for {
		n, lost, wait, err := s.poll(dst)
		if n > 0 || lost != nil || err != nil {
			return n, lost, err
		}
		select {
		case <-wait:
		case <-ctx.Done():
			return 0, nil, context.Cause(ctx)
		}
	}
}

// poll reads what is there, or returns a channel that closes when there may
// be more.
func (s *Subscription) poll(dst []Event) (n int, lost *Lost, wait <-chan struct{}, err error) {
	l := s.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if oldest := l.oldestLocked(); s.next < oldest {
		lost = &Lost{Count: oldest - s.next, From: s.next, To: oldest - 1}
		s.next = oldest
		return 0, lost, nil, nil
	}
	for ; s.next <= l.seq && n < len(dst); s.next++ {
		if e := &l.ring[l.slot(s.next)]; s.wants(e.Type) {
			dst[n] = *e
			n++
		}
	}
	if n > 0 {
		return n, nil, nil, nil
	}
	if l.closed {
		return 0, nil, nil, ErrClosed
	}
	if l.wake == nil {
		l.wake = make(chan struct{})
	}
	return 0, nil, l.wake, nil
}

func (s *Subscription) wants(t string) bool {
	return len(s.types) == 0 || slices.Contains(s.types, t)
}
