// Package coverage counts events: how often each has happened, and its rate
// over the last five seconds, minute and hour, as Open vSwitch's coverage
// counters do. Counting costs one atomic addition; everything else is paid by
// whoever asks, and by Tick every few seconds.
package coverage

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/bits"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// The windows of the rates: a ring of slots for the minute, one for the hour.
const (
	Interval    = 5 * time.Second // one slot of the minute
	minuteSlots = 12
	hourSlots   = 60
)

// Counter counts one kind of event. It is safe for concurrent use; the nil
// Counter counts nothing.
type Counter struct{ n atomic.Uint64 }

// Add counts n events.
func (c *Counter) Add(n uint64) {
	if c != nil {
		c.n.Add(n)
	}
}

// Inc counts one event.
func (c *Counter) Inc() { c.Add(1) }

// Value is the number of events so far.
func (c *Counter) Value() uint64 {
	if c == nil {
		return 0
	}
	return c.n.Load()
}

// entry is one name in the registry with its history.
type entry struct {
	counter *Counter      // nil for an attached reader
	read    func() uint64 // current total
	total   uint64        // at the last tick
	minute  [minuteSlots]float64
	hour    [hourSlots]float64
}

// Registry holds the counters of a program.
type Registry struct {
	mu      sync.Mutex // guards all below; never held while a counter is incremented
	entries map[string]*entry
	ticks   int       // finished slots of the minute ring
	last    time.Time // when the last slot was finished
}

// NewRegistry returns an empty registry.
func NewRegistry() *Registry { return &Registry{entries: map[string]*entry{}} }

// Counter returns the counter of the given name, made on first use.
func (r *Registry) Counter(name string) *Counter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e := r.entries[name]; e != nil && e.counter != nil {
		return e.counter
	}
	c := &Counter{}
	r.entries[name] = &entry{counter: c, read: c.Value}
	return c
}

// Attach shows, under the given name, a total that is counted elsewhere. read
// must be quick, safe for concurrent use, and never go down.
func (r *Registry) Attach(name string, read func() uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.entries[name] = &entry{read: read}
}

// Run ticks until ctx ends.
func (r *Registry) Run(ctx context.Context) {
	t := time.NewTicker(Interval)
	defer t.Stop()
	r.Tick(time.Now())
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			r.Tick(now)
		}
	}
}

// Tick finishes the slots that have passed since the last tick. Events of a
// longer gap (a suspended machine, a starved process) are spread over its slots.
func (r *Registry) Tick(now time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last.IsZero() {
		r.last = now
		return
	}
	slots := int(now.Sub(r.last) / Interval)
	if slots <= 0 {
		return
	}
	r.last = r.last.Add(time.Duration(slots) * Interval)
	for _, e := range r.entries {
		e.fold(r.ticks, slots)
	}
	r.ticks += slots
}

// fold spreads what happened since the last tick over slots, of which the first is number first.
func (e *entry) fold(first, slots int) {
	now := e.read()
	var delta uint64
	if now > e.total { // a reader that goes down is wrong; its history stays
		delta = now - e.total
	}
	e.total = now
	share := float64(delta) / float64(slots)
	// Slots older than the longest window would be overwritten at once.
	skip := max(0, slots-minuteSlots*hourSlots)
	for i := first + skip; i < first+slots; i++ {
		e.minute[i%minuteSlots] = share
		h := i / minuteSlots % hourSlots
		if i%minuteSlots == 0 {
			e.hour[h] = 0
		}
		e.hour[h] += share
	}
}

// Rate is one counter as a person or a program reads it.
type Rate struct {
	Name      string  `json:"name"`
	Total     uint64  `json:"total"`
	Per5s     float64 `json:"per_second_5s"` // events a second over the last five seconds
	PerMinute float64 `json:"per_second_1m"`
	PerHour   float64 `json:"per_second_1h"`
}

// List returns all counters, sorted by name.
func (r *Registry) List() []Rate {
	r.mu.Lock()
	defer r.mu.Unlock()
	rates := make([]Rate, 0, len(r.entries))
	for name, e := range r.entries {
		rates = append(rates, e.rate(name, r.ticks))
	}
	slices.SortFunc(rates, func(a, b Rate) int { return strings.Compare(a.Name, b.Name) })
	return rates
}

func (e *entry) rate(name string, ticks int) Rate {
	rate := Rate{Name: name, Total: e.read(), PerMinute: sum(e.minute[:]) / 60, PerHour: sum(e.hour[:]) / 3600}
	if ticks > 0 {
		rate.Per5s = e.minute[(ticks-1)%minuteSlots] / Interval.Seconds()
	}
	return rate
}

func sum(v []float64) (s float64) {
	for _, x := range v {
		s += x
	}
	return s
}

// Read returns the total of one counter, up to the moment.
func (r *Registry) Read(name string) (uint64, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := r.entries[name]
	if e == nil {
		return 0, ErrNoCounter
	}
	return e.read(), nil
}

// ErrNoCounter is Read's error, in the words of Open vSwitch.
var ErrNoCounter = noCounter{}

type noCounter struct{}

func (noCounter) Error() string { return "No such counter" }

// Text renders the counters as Open vSwitch's coverage/show does.
func (r *Registry) Text() string { return Render(r.List()) }

// Render is Text for counters that were listed before.
func Render(rates []Rate) string {
	var b strings.Builder
	fmt.Fprintf(&b, "Event coverage, avg rate over last: %d seconds, last minute, last hour,  hash=%08x:\n",
		int(Interval.Seconds()), Hash(rates))
	never := 0
	for _, c := range rates {
		if c.Total == 0 {
			never++
			continue
		}
		fmt.Fprintf(&b, "%-24s %5.1f/sec %9.3f/sec %13.4f/sec   total: %d\n", c.Name, c.Per5s, c.PerMinute, c.PerHour, c.Total)
	}
	fmt.Fprintf(&b, "%d events never hit\n", never)
	return b.String()
}

// Hash tells similar situations from different ones: it depends on which
// counters have counted, and on the magnitude of each.
func Hash(rates []Rate) uint32 {
	h := fnv.New32a()
	for _, c := range rates {
		if c.Total > 0 {
			fmt.Fprintf(h, "%s/%d;", c.Name, bits.Len64(c.Total))
		}
	}
	return h.Sum32()
}
