package cmap

import (
	"context"
	"slices"
	"strings"
	"time"
)

// ChangeOp is what happened to a key.
type ChangeOp string

// The changes, by Corosync's names.
const (
	Create ChangeOp = "create"
	Modify ChangeOp = "modify"
	Delete ChangeOp = "delete"
)

// Change is one change of one key. Old is zero for a creation, New for a
// deletion. Seq counts all changes of the database; changes of computed keys
// have the number of the change that they were seen after.
type Change struct {
	Seq      uint64
	Op       ChangeOp
	Key      string
	Old, New Value
}

// Line is the change as it is printed: "modify> KEY (TYPE) = VALUE". For a
// deletion the value is the last one.
func (c Change) Line() string {
	v := c.New
	if c.Op == Delete {
		v = c.Old
	}
	return string(c.Op) + "> " + Entry{Key: c.Key, Value: v}.Line()
}

// Lost stands for changes that a tracker was too slow to read. Count counts
// changes of all keys, so it is the most that concerned the tracker.
type Lost struct {
	Count    uint64
	From, To uint64
}

// The bounds of the log of changes, which are those of all trackers together.
const (
	logChanges = 1 << 16
	logBytes   = 8 << 20
)

// changeLog is the newest changes. It is guarded by DB.mu.
type changeLog struct {
	list   []Change // list[head:] are kept
	head   int
	seq    uint64 // of the newest change
	bytes  int
	closed bool
	wake   chan struct{} // closed at the next change; nil while nobody waits
}

func (l *changeLog) add(c Change) {
	l.seq++
	c.Seq = l.seq
	l.list = append(l.list, c)
	l.bytes += c.size()
	for l.bytes > logBytes || len(l.list)-l.head > logChanges {
		l.bytes -= l.list[l.head].size()
		l.list[l.head] = Change{}
		l.head++
	}
	// Moving what is kept to the front costs as much as was dropped before.
	if l.head > 1024 && l.head > len(l.list)/2 {
		n := copy(l.list, l.list[l.head:])
		clear(l.list[n:])
		l.list, l.head = l.list[:n], 0
	}
}

func (c *Change) size() int { return 64 + len(c.Key) + c.Old.size() + c.New.size() }

// oldest is the number of the oldest change that is kept.
func (l *changeLog) oldest() uint64 { return l.seq - uint64(len(l.list)-l.head) + 1 }

func (l *changeLog) notify() {
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

func (l *changeLog) close() {
	l.closed = true
	l.notify()
}

// pollEvery is how often a tracker looks at computed keys.
const pollEvery = time.Second

// Tracker reads the changes of one key, or of all keys with a prefix, in the
// order in which they were made. It is used by one goroutine and need not be
// closed.
type Tracker struct {
	db     *DB
	key    string
	prefix bool
	next   uint64
	// Of computed keys: what was seen last, what is to be told, when to look
	// again. They cost their tracker alone.
	seen    map[string]Value
	pending []Change
	look    time.Time
}

// Track makes a tracker of the changes from now on: of one key, or of all keys
// that begin with key. The key need not exist.
func (db *DB) Track(key string, prefix bool) (*Tracker, error) {
	if !prefix {
		if err := CheckKey(key); err != nil {
			return nil, err
		}
	}
	db.mu.RLock()
	t := &Tracker{db: db, key: key, prefix: prefix, next: db.log.seq + 1, look: time.Now().Add(pollEvery)}
	providers := db.providers
	db.mu.RUnlock()
	t.seen = map[string]Value{}
	for _, e := range compute(providers, key, t.wants) {
		t.seen[e.Key] = e.Value
	}
	return t, nil
}

func (t *Tracker) wants(key string) bool {
	return key == t.key || t.prefix && strings.HasPrefix(key, t.key)
}

// Next returns the next change, or what was lost. It waits until there is
// something, ctx ends, or the database is closed.
func (t *Tracker) Next(ctx context.Context) (Change, *Lost, error) {
	for {
		if len(t.pending) > 0 {
			c := t.pending[0]
			t.pending = t.pending[1:]
			return c, nil, nil
		}
		c, lost, wake, providers, err := t.poll()
		if !c.New.IsZero() || !c.Old.IsZero() || lost != nil || err != nil {
			return c, lost, err
		}
		if err := t.wait(ctx, wake, providers); err != nil {
			return Change{}, nil, err
		}
	}
}

// poll takes the next stored change, or tells what to wait for.
func (t *Tracker) poll() (c Change, lost *Lost, wake <-chan struct{}, providers []prefixed[Provider], err error) {
	t.db.mu.Lock()
	defer t.db.mu.Unlock()
	l := &t.db.log
	if oldest := l.oldest(); t.next < oldest {
		lost = &Lost{Count: oldest - t.next, From: t.next, To: oldest - 1}
		t.next = oldest
		return c, lost, nil, nil, nil
	}
	for ; t.next <= l.seq; t.next++ {
		if kept := &l.list[l.head+int(t.next-l.oldest())]; t.wants(kept.Key) {
			t.next++
			return *kept, nil, nil, nil, nil
		}
	}
	if l.closed {
		return c, nil, nil, nil, ErrClosed
	}
	if l.wake == nil {
		l.wake = make(chan struct{})
	}
	return c, nil, l.wake, t.db.providers, nil
}

// wait waits for a stored change, and looks at computed keys from time to
// time where the tracker has any.
func (t *Tracker) wait(ctx context.Context, wake <-chan struct{}, providers []prefixed[Provider]) error {
	var tick <-chan time.Time
	if t.computed(providers) {
		timer := time.NewTimer(time.Until(t.look))
		defer timer.Stop()
		tick = timer.C
	}
	select {
	case <-wake:
	case <-tick:
		t.compare(providers)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return nil
}

func (t *Tracker) computed(providers []prefixed[Provider]) bool {
	for _, p := range providers {
		if strings.HasPrefix(t.key, p.prefix) || t.prefix && strings.HasPrefix(p.prefix, t.key) {
			return true
		}
	}
	return len(t.seen) > 0
}

// compare finds what has changed in the computed keys since the last look.
func (t *Tracker) compare(providers []prefixed[Provider]) {
	t.look = time.Now().Add(pollEvery)
	seq := t.next - 1
	now := map[string]Value{}
	for _, e := range compute(providers, t.key, t.wants) {
		now[e.Key] = e.Value
		if old, ok := t.seen[e.Key]; !ok {
			t.pending = append(t.pending, Change{seq, Create, e.Key, Value{}, e.Value})
		} else if old != e.Value {
			t.pending = append(t.pending, Change{seq, Modify, e.Key, old, e.Value})
		}
	}
	for key, old := range t.seen {
		if _, ok := now[key]; !ok {
			t.pending = append(t.pending, Change{seq, Delete, key, old, Value{}})
		}
	}
	slices.SortFunc(t.pending, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
	t.seen = now
}
