package cmap

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"sync"
)

// Limits of what clients may put into a database. The engine's own keys count
// but are never refused.
const (
	MaxKeys  = 1 << 18
	MaxBytes = 64 << 20
)

// Entry is one key with its value.
type Entry struct {
	Key   string
	Value Value
	RO    bool
}

// Line is the entry as it is printed: "KEY (TYPE) = VALUE".
func (e Entry) Line() string {
	return fmt.Sprintf("%s (%s) = %s", e.Key, e.Value.Type(), e.Value.Text())
}

// Provider computes the values of keys below its prefix when they are read.
// It may be called by several goroutines and must not wait, nor write to the
// database.
type Provider interface {
	// Get is the value of one key, false where there is no such key.
	Get(key string) (Value, bool)
	// All yields every key of the provider.
	All() iter.Seq2[string, Value]
}

// Guard decides about what clients change below a prefix.
type Guard struct {
	// Check refuses changes by an error; it changes nothing.
	Check func(changes []Change) error
	// Apply, where there is one, puts checked changes into effect before they
	// are committed, and may refuse too. It may write to the database as the
	// engine. A batch may touch one guard with Apply at most, so that it
	// stays all or nothing.
	Apply func(ctx context.Context, changes []Change) error
}

// DB is the object database. All methods may be called from any goroutine.
type DB struct {
	// client is held while a client's batch is checked and applied, so that
	// guards see one batch at a time. The engine's writes do not take it.
	client chan struct{}

	// mu guards the fields below. No guard and no provider is called under it.
	mu        sync.RWMutex
	values    map[string]Value
	sorted    []string // the keys in order, unless stale
	stale     bool
	bytes     int
	readOnly  []string
	guards    []prefixed[Guard]
	providers []prefixed[Provider]
	log       changeLog
}

type prefixed[T any] struct {
	prefix string
	what   T
}

// New makes an empty database.
func New() *DB {
	return &DB{client: make(chan struct{}, 1), values: map[string]Value{}}
}

// ReadOnly makes every key that begins with one of the prefixes read-only to
// clients. A guard of a longer prefix makes its keys writable again.
func (db *DB) ReadOnly(prefixes ...string) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.readOnly = append(db.readOnly, prefixes...)
}

// EnginePrefixes are the keys that the engine writes and clients only read.
// With a guard of "config." clients may set those, too.
func EnginePrefixes() []string {
	return []string{"cluster.", "config.", "devices.", "events.", "nodes.", "runtime.", "services.", "stats."}
}

// Guard lets g decide about the keys that begin with prefix.
func (db *DB) Guard(prefix string, g Guard) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, o := range db.guards {
		if strings.HasPrefix(prefix, o.prefix) || strings.HasPrefix(o.prefix, prefix) {
			return fmt.Errorf("cannot guard %q: %q is guarded", prefix, o.prefix)
		}
	}
	db.guards = append(db.guards, prefixed[Guard]{prefix, g})
	return nil
}

// Provide lets p compute the keys that begin with prefix, until remove is
// called.
func (db *DB) Provide(prefix string, p Provider) (remove func(), err error) {
	db.mu.Lock()
	defer db.mu.Unlock()
	for _, o := range db.providers {
		if strings.HasPrefix(prefix, o.prefix) || strings.HasPrefix(o.prefix, prefix) {
			return nil, fmt.Errorf("cannot provide %q: %q is provided", prefix, o.prefix)
		}
	}
	db.providers = append(slices.Clone(db.providers), prefixed[Provider]{prefix, p})
	return func() {
		db.mu.Lock()
		defer db.mu.Unlock()
		db.providers = slices.DeleteFunc(slices.Clone(db.providers), func(o prefixed[Provider]) bool { return o.prefix == prefix })
	}, nil
}

// Get reads a key.
func (db *DB) Get(key string) (Value, error) {
	if err := CheckKey(key); err != nil {
		return Value{}, err
	}
	db.mu.RLock()
	v, ok := db.values[key]
	p := db.providerLocked(key)
	db.mu.RUnlock()
	if p != nil {
		v, ok = p.Get(key)
	}
	if !ok {
		return Value{}, fmt.Errorf("%w: %s", ErrNotExist, key)
	}
	return v, nil
}

// providerLocked is who computes the key, or nil.
func (db *DB) providerLocked(key string) Provider {
	for _, p := range db.providers {
		if strings.HasPrefix(key, p.prefix) {
			return p.what
		}
	}
	return nil
}

// Dump returns all keys that begin with prefix, in order, as they were at one
// moment; computed ones as of the moments in which they were read.
func (db *DB) Dump(prefix string) []Entry {
	out, providers := db.stored(prefix)
	computed := compute(providers, prefix, func(string) bool { return true })
	if len(computed) == 0 {
		return out
	}
	out = append(out, computed...)
	slices.SortFunc(out, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
	return out
}

// stored copies the kept keys below prefix, and tells who computes others.
func (db *DB) stored(prefix string) ([]Entry, []prefixed[Provider]) {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.sortLocked()
	var out []Entry
	at, _ := slices.BinarySearch(db.sorted, prefix)
	for _, key := range db.sorted[at:] {
		if !strings.HasPrefix(key, prefix) {
			break
		}
		out = append(out, Entry{key, db.values[key], db.readOnlyLocked(key)})
	}
	return out, db.providers
}

// sortLocked brings sorted up to date after keys came or went.
func (db *DB) sortLocked() {
	if !db.stale {
		return
	}
	db.sorted = db.sorted[:0]
	for key := range db.values {
		db.sorted = append(db.sorted, key)
	}
	slices.Sort(db.sorted)
	db.stale = false
}

// compute asks the providers for the keys below prefix that want takes. Keys
// that a provider has no right to are left out.
func compute(providers []prefixed[Provider], prefix string, want func(key string) bool) []Entry {
	var out []Entry
	for _, p := range providers {
		if !strings.HasPrefix(p.prefix, prefix) && !strings.HasPrefix(prefix, p.prefix) {
			continue
		}
		for key, v := range p.what.All() {
			if strings.HasPrefix(key, prefix) && strings.HasPrefix(key, p.prefix) && want(key) {
				out = append(out, Entry{key, v, true})
			}
		}
	}
	return out
}

// readOnlyLocked reports whether clients may not change the key.
func (db *DB) readOnlyLocked(key string) bool {
	if db.providerLocked(key) != nil {
		return true
	}
	ro, guarded := -1, -1
	for _, p := range db.readOnly {
		if strings.HasPrefix(key, p) {
			ro = max(ro, len(p))
		}
	}
	for _, g := range db.guards {
		if strings.HasPrefix(key, g.prefix) {
			guarded = len(g.prefix)
		}
	}
	return ro > guarded
}

// Put writes a key as the engine does.
func (db *DB) Put(key string, v Value) error { return db.Commit(SetOp(key, v)) }

// Remove deletes a key as the engine does; one that is not there is no error.
func (db *DB) Remove(key string) error {
	if err := db.Commit(DeleteOp(key)); !errors.Is(err, ErrNotExist) {
		return err
	}
	return nil
}

// RemovePrefix deletes every key that begins with prefix, as the engine does.
func (db *DB) RemovePrefix(prefix string) error { return db.Commit(DeletePrefixOp(prefix)) }

// Set writes a key as a client does.
func (db *DB) Set(ctx context.Context, key string, v Value) error {
	return db.Apply(ctx, SetOp(key, v))
}

// Delete deletes a key as a client does.
func (db *DB) Delete(ctx context.Context, key string) error { return db.Apply(ctx, DeleteOp(key)) }

// Add counts an integer up or down as a client does, and returns the result.
func (db *DB) Add(ctx context.Context, key string, delta int64) (Value, error) {
	if err := db.Apply(ctx, AddOp(key, delta)); err != nil {
		return Value{}, err
	}
	return db.Get(key)
}

// Len is how many keys are kept; computed ones are not among them.
func (db *DB) Len() int {
	db.mu.RLock()
	defer db.mu.RUnlock()
	return len(db.values)
}

// Close ends all trackers.
func (db *DB) Close() {
	db.mu.Lock()
	defer db.mu.Unlock()
	db.log.close()
}
