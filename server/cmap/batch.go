package cmap

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// opKind is what an Op does.
type opKind uint8

const (
	opSet opKind = iota
	opDelete
	opDeletePrefix
	opAdd
)

// Op is one step of a batch.
type Op struct {
	kind  opKind
	key   string // or prefix
	value Value
	delta int64
	line  int // of a batch file; 0 elsewhere
}

// SetOp sets a key.
func SetOp(key string, v Value) Op { return Op{kind: opSet, key: key, value: v} }

// DeleteOp deletes a key, which must be there.
func DeleteOp(key string) Op { return Op{kind: opDelete, key: key} }

// DeletePrefixOp deletes every key that begins with prefix, if any.
func DeletePrefixOp(prefix string) Op { return Op{kind: opDeletePrefix, key: prefix} }

// AddOp counts an integer up or down.
func AddOp(key string, delta int64) Op { return Op{kind: opAdd, key: key, delta: delta} }

// MaxBatch bounds the steps of one batch.
const MaxBatch = 65536

// ParseBatch reads a batch file: lines "KEY TYPE VALUE", "^KEY" to delete a
// key, "^^PREFIX" to delete a prefix; empty lines and lines that begin with #
// mean nothing. An error names the line.
func ParseBatch(text string) ([]Op, error) {
	var ops []Op
	n := 0
	for line := range strings.Lines(text) {
		n++
		line = strings.TrimRight(line, "\r\n")
		trimmed := strings.TrimLeft(line, " \t")
		if trimmed == "" || trimmed[0] == '#' {
			continue
		}
		op, err := parseLine(trimmed)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if len(ops) == MaxBatch {
			return nil, fmt.Errorf("line %d: %w: more than %d steps in a batch", n, ErrBadValue, MaxBatch)
		}
		op.line = n
		ops = append(ops, op)
	}
	return ops, nil
}

func parseLine(line string) (Op, error) {
	if prefix, ok := strings.CutPrefix(line, "^^"); ok {
		prefix = strings.TrimSpace(prefix)
		if prefix == "" {
			return Op{}, fmt.Errorf("%w: \"^^\" without a prefix would delete everything", ErrBadKey)
		}
		return DeletePrefixOp(prefix), nil
	}
	if key, ok := strings.CutPrefix(line, "^"); ok {
		key = strings.TrimSpace(key)
		return DeleteOp(key), CheckKey(key)
	}
	key, rest, _ := cutSpace(line)
	typ, value, given := cutSpace(rest)
	if typ == "" || !given && Type(typ) != Str {
		return Op{}, fmt.Errorf("%w: a line is KEY TYPE VALUE, ^KEY or ^^PREFIX", ErrBadValue)
	}
	if err := CheckKey(key); err != nil {
		return Op{}, err
	}
	v, err := ParseValue(typ, value)
	return SetOp(key, v), err
}

// cutSpace splits at the first blank, swallowing the ones that follow it.
func cutSpace(s string) (before, after string, found bool) {
	i := strings.IndexAny(s, " \t")
	if i < 0 {
		return s, "", false
	}
	return s[:i], strings.TrimLeft(s[i:], " \t"), true
}

// Commit carries out a batch as the engine: whole or not at all.
func (db *DB) Commit(ops ...Op) error {
	db.mu.Lock()
	defer db.mu.Unlock()
	changes, err := db.planLocked(ops, false)
	if err != nil {
		return err
	}
	db.commitLocked(changes)
	return nil
}

// Apply carries out a batch as a client: whole or not at all. It waits for
// other clients' batches until ctx ends.
func (db *DB) Apply(ctx context.Context, ops ...Op) error {
	select {
	case db.client <- struct{}{}:
		defer func() { <-db.client }()
	case <-ctx.Done():
		return fmt.Errorf("another batch is being applied: %w", context.Cause(ctx))
	}
	db.mu.RLock()
	changes, err := db.planLocked(ops, true)
	guards := slices.Clone(db.guards)
	db.mu.RUnlock()
	if err != nil {
		return err
	}
	if err := check(ctx, guards, changes); err != nil {
		return err
	}
	// The engine may have written meanwhile, so what changes is found anew.
	db.mu.Lock()
	defer db.mu.Unlock()
	if changes, err = db.planLocked(ops, true); err != nil {
		return err
	}
	db.commitLocked(changes)
	return nil
}

// check asks the guards about the changes of a batch, and lets the one that
// puts them into effect do so when all agree.
func check(ctx context.Context, guards []prefixed[Guard], changes []Change) error {
	type job struct {
		prefixed[Guard]
		mine []Change
	}
	var jobs []job
	for _, g := range guards {
		var mine []Change
		for _, c := range changes {
			if strings.HasPrefix(c.Key, g.prefix) {
				mine = append(mine, c)
			}
		}
		if len(mine) == 0 {
			continue
		}
		if g.what.Check != nil {
			if err := g.what.Check(mine); err != nil {
				return err
			}
		}
		if g.what.Apply != nil {
			jobs = append(jobs, job{g, mine})
		}
	}
	if len(jobs) > 1 {
		return fmt.Errorf("%w: one batch cannot change both %s* and %s*; make two of it", ErrBadKey, jobs[0].prefix, jobs[1].prefix)
	}
	for _, j := range jobs {
		return j.what.Apply(ctx, j.mine)
	}
	return nil
}

// plan is a batch being worked out over the database, without changing it.
type plan struct {
	db      *DB
	client  bool
	over    map[string]Value // what the batch has changed so far; zero is deleted
	changes []Change
	keys    int // how many keys and bytes more there will be
	bytes   int
}

// planLocked works out what a batch changes, or why it cannot be carried out.
func (db *DB) planLocked(ops []Op, client bool) ([]Change, error) {
	p := &plan{db: db, client: client, over: map[string]Value{}}
	for _, op := range ops {
		if err := p.step(op); err != nil {
			if op.line > 0 {
				err = fmt.Errorf("line %d: %w", op.line, err)
			}
			return nil, err
		}
	}
	if client && p.keys > 0 && len(db.values)+p.keys > MaxKeys {
		return nil, fmt.Errorf("%w: it holds %d keys and no more", ErrFull, MaxKeys)
	}
	if client && p.bytes > 0 && db.bytes+p.bytes > MaxBytes {
		return nil, fmt.Errorf("%w: it holds %d bytes and no more", ErrFull, MaxBytes)
	}
	return p.changes, nil
}

func (p *plan) get(key string) Value {
	if v, ok := p.over[key]; ok {
		return v
	}
	return p.db.values[key]
}

func (p *plan) step(op Op) error {
	if op.kind == opDeletePrefix {
		return p.deletePrefix(op.key)
	}
	if err := CheckKey(op.key); err != nil {
		return err
	}
	if err := p.mayWrite(op.key); err != nil {
		return err
	}
	old := p.get(op.key)
	switch {
	case op.kind == opSet:
		return p.set(op.key, old, op.value)
	case old.IsZero():
		return fmt.Errorf("%w: %s", ErrNotExist, op.key)
	case op.kind == opAdd:
		v, err := old.add(op.delta)
		if err != nil {
			return fmt.Errorf("%s: %w", op.key, err)
		}
		return p.set(op.key, old, v)
	}
	p.change(op.key, old, Value{})
	return nil
}

func (p *plan) mayWrite(key string) error {
	if p.db.providerLocked(key) != nil || p.client && p.db.readOnlyLocked(key) {
		return fmt.Errorf("%w: %s", ErrReadOnly, key)
	}
	return nil
}

func (p *plan) set(key string, old, v Value) error {
	if v.IsZero() || len(v.str) > MaxValueBytes {
		return fmt.Errorf("%w for %s: a value has a type and at most %d bytes", ErrBadValue, key, MaxValueBytes)
	}
	if p.client && !old.IsZero() && old.typ != v.typ {
		return fmt.Errorf("%w: %s is of type %s, not %s; delete it first to change its type", ErrBadValue, key, old.typ, v.typ)
	}
	if old != v {
		p.change(key, old, v)
	}
	return nil
}

func (p *plan) deletePrefix(prefix string) error {
	var keys []string
	for key := range p.db.values {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	for key := range p.over {
		if _, known := p.db.values[key]; !known && strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	for _, key := range keys {
		if err := p.mayWrite(key); err != nil {
			return err
		}
		if old := p.get(key); !old.IsZero() {
			p.change(key, old, Value{})
		}
	}
	return nil
}

func (p *plan) change(key string, old, v Value) {
	c := Change{Op: Modify, Key: key, Old: old, New: v}
	switch {
	case old.IsZero():
		c.Op = Create
		p.keys++
		p.bytes += len(key) + v.size()
	case v.IsZero():
		c.Op = Delete
		p.keys--
		p.bytes -= len(key) + old.size()
	default:
		p.bytes += v.size() - old.size()
	}
	p.over[key] = v
	p.changes = append(p.changes, c)
}

// commitLocked makes the changes, numbers them, and wakes the trackers once.
func (db *DB) commitLocked(changes []Change) {
	for _, c := range changes {
		switch c.Op {
		case Delete:
			delete(db.values, c.Key)
			db.stale = true
			db.bytes -= len(c.Key) + c.Old.size()
		case Create:
			db.values[c.Key] = c.New
			db.stale = true
			db.bytes += len(c.Key) + c.New.size()
		default:
			db.values[c.Key] = c.New
			db.bytes += c.New.size() - c.Old.size()
		}
		db.log.add(c)
	}
	if len(changes) > 0 {
		db.log.notify()
	}
}
