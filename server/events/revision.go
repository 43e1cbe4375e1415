package events

import (
	"context"
	"sync"
)

// Revision counts the changes of what "status" shows, and lets callers wait
// for the next. The zero value is ready and at 0.
type Revision struct {
	// mu guards the fields below; nothing waits under it.
	mu   sync.Mutex
	now  uint64
	wake chan struct{} // closed at the next change; nil while nobody waits
}

// Bump notes a change and returns the new revision.
func (r *Revision) Bump() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now++
	if r.wake != nil {
		close(r.wake)
		r.wake = nil
	}
	return r.now
}

// Current is the revision now.
func (r *Revision) Current() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.now
}

// Wait returns the revision as soon as it is another one than seen: at once
// where it is already, also where seen is of an earlier life of the daemon
// and so greater. When ctx ends first it returns seen and ctx's cause.
func (r *Revision) Wait(ctx context.Context, seen uint64) (uint64, error) {
	for {
		now, wake := r.poll(seen)
		if now != seen {
			return now, nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return seen, context.Cause(ctx)
		}
	}
}

func (r *Revision) poll(seen uint64) (uint64, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.now == seen && r.wake == nil {
		r.wake = make(chan struct{})
	}
	return r.now, r.wake
}
