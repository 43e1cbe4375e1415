package store

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/lockstepd/lockstep/server/block"
)

// activation is one call of Activate.
type activation struct {
	extents []block.Extent
	cold    []uint32   // extents it needs that are not hot, set by plan
	queued  bool       // guarded by ActivityLog.mu
	done    chan error // told once
}

// transaction is what one turn of the writer makes durable.
type transaction struct {
	served  []*activation
	updates []logUpdate
	evicted []logUpdate // slots with the extents that were in them
	state   []uint32    // of all slots before the updates
	fresh   map[uint32]int32
}

// Activate makes hot every extent that es touch, with as few transactions as
// can be, many callers sharing one, and takes a reference on each, for each of
// es. It waits for I/O, and where the log is full of extents in use, for End
// and SetStable: so it must not be called by a goroutine that they depend on.
// Either all of es are taken or, with an error, none.
func (l *ActivityLog) Activate(ctx context.Context, es []block.Extent) error {
	a := &activation{extents: es, done: make(chan error, 1)}
	done, err := l.enqueue(a)
	if done || err != nil {
		return err
	}
	select {
	case err := <-a.done:
		return err
	case <-ctx.Done():
		return l.giveUp(ctx, a)
	case l.turn <- struct{}{}:
		defer l.turn.release()
		return l.serve(ctx, a)
	}
}

// enqueue puts a in the queue unless what it needs is hot already.
func (l *ActivityLog) enqueue(a *activation) (done bool, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ready != nil {
		return false, l.ready
	}
	if l.disabled {
		return true, nil
	}
	if n := l.countExtents(a.extents); n > l.maxExtents() {
		return false, fmt.Errorf("%d extents of %d bytes: %w", n, l.session.extent, ErrTooManyExtents)
	}
	if len(l.queue) == 0 && l.allHot(a.extents) {
		l.takeHot(a.extents)
		return true, nil
	}
	l.stats.Misses++
	a.queued = true
	l.queue = append(l.queue, a)
	return false, nil
}

// countExtents is how many extents es touch, overlaps counted twice where es
// are not sorted; it stops counting when there are certainly too many.
func (l *ActivityLog) countExtents(es []block.Extent) int {
	n, next := 0, uint32(0)
	for _, e := range es {
		if e.Len <= 0 {
			continue
		}
		first, last := l.span(e)
		if n > 0 && first+1 == next {
			first++ // shared with the one before
		}
		if last >= first {
			n += int(last-first) + 1
		}
		next = last + 1
	}
	return n
}

func (l *ActivityLog) allHot(es []block.Extent) bool {
	for x := range l.each(es) {
		if _, ok := l.index[x]; !ok {
			return false
		}
	}
	return true
}

func (l *ActivityLog) takeHot(es []block.Extent) {
	for x := range l.each(es) {
		l.take(l.index[x])
	}
}

// each yields the extents that es touch, as often as they do.
func (l *ActivityLog) each(es []block.Extent) func(yield func(uint32) bool) {
	return func(yield func(uint32) bool) {
		for _, e := range es {
			if e.Len <= 0 {
				continue
			}
			first, last := l.span(e)
			for x := first; x <= last; x++ {
				if !yield(x) {
					return
				}
			}
		}
	}
}

// giveUp takes a out of the queue. Where it is part of a transaction already,
// its outcome is waited for, since it may hold references.
func (l *ActivityLog) giveUp(ctx context.Context, a *activation) error {
	if l.unqueue(a) {
		return fmt.Errorf("waiting for the activity log: %w", context.Cause(ctx))
	}
	return <-a.done
}

func (l *ActivityLog) unqueue(a *activation) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !a.queued {
		return false
	}
	a.queued = false
	l.queue = slices.DeleteFunc(l.queue, func(b *activation) bool { return a == b })
	l.notify()
	l.starving = false // the next in turn finds out anew
	return true
}

// serve writes transactions, for whoever waits, until a is served. The caller
// has the turn.
func (l *ActivityLog) serve(ctx context.Context, a *activation) error {
	asked := uint64(0)
	for {
		select {
		case err := <-a.done:
			return err
		default:
		}
		if tx := l.plan(); tx != nil {
			_ = l.commit(tx) // whom it serves is told
			continue
		}
		if epoch := l.unstable(); epoch > asked && l.pressure != nil {
			asked = epoch
			l.pressure(epoch)
		}
		select {
		case <-l.wake:
		case <-ctx.Done():
			return l.giveUp(ctx, a)
		}
	}
}

// unstable is the highest epoch that holds up an extent that nobody refers to.
func (l *ActivityLog) unstable() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	epoch := uint64(0)
	for i := l.idle.head; i >= 0; i = l.slots[i].next {
		epoch = max(epoch, l.slots[i].epoch)
	}
	if epoch <= l.stable {
		return 0
	}
	return epoch
}

// newTransaction remembers what all slots held before.
func (l *ActivityLog) newTransaction() *transaction {
	tx := &transaction{fresh: make(map[uint32]int32), state: make([]uint32, len(l.slots))}
	for i := range l.slots {
		tx.state[i] = l.slots[i].extent
	}
	return tx
}

// plan chooses whom the next transaction serves and what it evicts. It returns
// nil if the first of the queue has to wait, and then no extent is given to
// anybody else before: without that, a busy set of extents as large as the log
// would keep all others out for ever.
func (l *ActivityLog) plan() *transaction {
	l.mu.Lock()
	defer l.mu.Unlock()
	tx := l.newTransaction()
	for len(l.queue) > 0 && l.admit(tx, l.queue[0]) {
		l.queue[0].queued = false
		tx.served = append(tx.served, l.queue[0])
		l.queue = l.queue[1:]
	}
	if len(tx.served) > 0 {
		l.starving = false
		return tx
	}
	if !l.starving {
		l.starving = true
		l.stats.Starved++
	}
	return nil
}

// admit adds a to the transaction, with its references, if there is room for
// all it needs.
func (l *ActivityLog) admit(tx *transaction, a *activation) bool {
	a.cold = a.cold[:0]
	for x := range l.each(a.extents) {
		if i, ok := l.index[x]; ok {
			l.take(i) // so that it is not evicted
		} else if _, ok := tx.fresh[x]; !ok && !slices.Contains(a.cold, x) {
			a.cold = append(a.cold, x)
		}
	}
	victims := l.victims(len(a.cold) - len(l.free))
	if len(a.cold) > len(l.free)+len(victims) || len(tx.updates)+len(a.cold) > maxBatchUpdates {
		l.release(a)
		return false
	}
	for _, i := range victims {
		l.evict(tx, i)
	}
	for _, x := range a.cold {
		l.place(tx, x)
	}
	for x := range l.each(a.extents) {
		if i, ok := tx.fresh[x]; ok {
			l.slots[i].refs++
		}
	}
	return true
}

// release takes back the references that admit took on hot extents. It does
// not touch their epochs.
func (l *ActivityLog) release(a *activation) {
	for x := range l.each(a.extents) {
		if i, ok := l.index[x]; ok {
			if s := &l.slots[i]; s.refs > 1 {
				s.refs--
			} else {
				s.refs = 0
				l.idle.push(l.slots, i)
			}
		}
	}
}

// victims finds up to n slots that can be evicted, the longest idle first.
func (l *ActivityLog) victims(n int) []int32 {
	var out []int32
	for i := l.idle.head; i >= 0 && len(out) < n; i = l.slots[i].next {
		if l.slots[i].epoch <= l.stable {
			out = append(out, i)
		}
	}
	return out
}

// evict takes the extent of slot i out of the set. Nobody can begin a write in
// it from now on; on stable storage it stays hot until the transaction.
func (l *ActivityLog) evict(tx *transaction, i int32) {
	x := l.slots[i].extent
	l.idle.remove(l.slots, i)
	delete(l.index, x)
	l.free = append(l.free, i)
	tx.evicted = append(tx.evicted, logUpdate{int(i), x})
}

// place gives a free slot to extent x.
func (l *ActivityLog) place(tx *transaction, x uint32) {
	i := l.free[len(l.free)-1]
	l.free = l.free[:len(l.free)-1]
	l.slots[i] = logSlot{extent: x, prev: -1, next: -1}
	tx.fresh[x] = i
	tx.updates = append(tx.updates, logUpdate{int(i), x})
}

// commit makes a transaction durable and tells whom it serves.
func (l *ActivityLog) commit(tx *transaction) error {
	written, err := l.write(tx)
	l.mu.Lock()
	switch {
	case err == nil:
		l.finish(tx)
	case written:
		// Another block with the same number must never follow: if parts of
		// this one are there, the two together would make a false story.
		l.ready = err
		l.abandon(tx)
	default:
		l.abandon(tx)
		l.restore(tx)
	}
	l.mu.Unlock()
	for _, a := range tx.served {
		a.done <- err
	}
	return err
}

// write does the I/O of a transaction, and says whether it may have reached
// the log.
func (l *ActivityLog) write(tx *transaction) (written bool, err error) {
	if len(tx.updates) == 0 {
		return false, nil // another one made it all hot meanwhile
	}
	if err := l.usable(); err != nil {
		return false, err
	}
	if err := l.log.open(); err != nil {
		return false, err
	}
	evicted := make([]block.Extent, len(tx.evicted))
	for i, u := range tx.evicted {
		evicted[i] = l.session.extentAt(u.extent)
	}
	if err := l.log.writeBitmaps(evicted); err != nil {
		return false, fmt.Errorf("saving the bitmaps of what leaves the activity log: %w", err)
	}
	if err := l.log.append(tx.updates, tx.state); err != nil {
		return true, fmt.Errorf("writing the activity log: %w", err)
	}
	return true, nil
}

// usable is nil unless something happened after which nothing can become hot.
func (l *ActivityLog) usable() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ready
}

func (l *ActivityLog) finish(tx *transaction) {
	maps.Copy(l.index, tx.fresh)
	for _, u := range tx.updates {
		if u.extent == noExtent {
			l.free = append(l.free, int32(u.slot))
		}
	}
	if len(tx.updates) > 0 {
		l.stats.Transactions++
		l.stats.Evictions += uint64(len(tx.evicted))
	}
}

// abandon undoes a transaction in memory: what it was to make hot is not, and
// its slots are free. On stable storage they may list the old extents or the
// new ones; both is more than is needed.
func (l *ActivityLog) abandon(tx *transaction) {
	for _, u := range tx.updates {
		l.slots[u.slot] = logSlot{extent: noExtent, prev: -1, next: -1}
		l.free = append(l.free, int32(u.slot))
	}
	for _, a := range tx.served {
		l.release(a)
	}
}

// restore makes hot again what a transaction that never reached the log was to
// evict.
func (l *ActivityLog) restore(tx *transaction) {
	for _, u := range tx.evicted {
		i := int32(u.slot)
		l.free = slices.DeleteFunc(l.free, func(f int32) bool { return f == i })
		l.slots[i] = logSlot{extent: u.extent, prev: -1, next: -1}
		l.index[u.extent] = i
		l.idle.push(l.slots, i)
	}
}

// Cool makes cold what can be: every extent without a write under way whose
// epochs are stable. A crash then costs no resync of it. It is for times of
// rest, after a demotion or when nothing was written for a while.
func (l *ActivityLog) Cool(ctx context.Context) error {
	select {
	case l.turn <- struct{}{}:
		defer l.turn.release()
	case <-ctx.Done():
		return fmt.Errorf("waiting for the activity log: %w", context.Cause(ctx))
	}
	for {
		tx := l.planCooling()
		if len(tx.updates) == 0 {
			return nil
		}
		if err := l.commit(tx); err != nil {
			return err
		}
	}
}

// planCooling plans a transaction that serves nobody.
func (l *ActivityLog) planCooling() *transaction {
	l.mu.Lock()
	defer l.mu.Unlock()
	tx := l.newTransaction()
	for _, i := range l.victims(maxBatchUpdates) {
		l.evict(tx, i)
		l.free = l.free[:len(l.free)-1]
		l.slots[i] = logSlot{extent: noExtent, prev: -1, next: -1}
		tx.updates = append(tx.updates, logUpdate{int(i), noExtent})
	}
	return tx
}

// Disable stops logging: every write may begin at once, and an unclean stop
// from now on costs a full resync. It is for measuring what the log costs. No
// write may be under way.
func (l *ActivityLog) Disable() error { return l.setDisabled(true) }

// Enable undoes Disable. No write may be under way, and all that were are
// durable everywhere.
func (l *ActivityLog) Enable() error { return l.setDisabled(false) }

func (l *ActivityLog) setDisabled(off bool) error {
	l.turn.take()
	defer l.turn.release()
	if err := l.usable(); err != nil {
		return err
	}
	if n := l.Stats().Referenced; n > 0 {
		return fmt.Errorf("the activity log cannot be switched: %d of its extents have a write under way", n)
	}
	if err := l.log.disable(off); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.disabled = off
	return nil
}
