package messenger

import "sync"

// mailbox takes functions for one goroutine to call in order. Posting never
// blocks: what can be posted is bounded by who posts (two readers and two
// dials a session, one end, offers that were let in, commands that wait).
type mailbox struct {
	ready chan struct{} // capacity 1

	// mu guards the two.
	mu     sync.Mutex
	queue  []func()
	closed bool
}

func newMailbox() *mailbox { return &mailbox{ready: make(chan struct{}, 1)} }

// post appends f, and reports false if nobody will call it.
func (b *mailbox) post(f func()) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	b.queue = append(b.queue, f)
	select {
	case b.ready <- struct{}{}:
	default:
	}
	return true
}

// take returns what is there.
func (b *mailbox) take() []func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.queue
	b.queue = nil
	return q
}

// close refuses further posts and returns what had been posted.
func (b *mailbox) close() []func() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	q := b.queue
	b.queue = nil
	return q
}

// postUpTo is post for a queue that may hold most entries.
func (b *mailbox) postUpTo(most int, f func()) bool {
	b.mu.Lock()
	full := len(b.queue) >= most
	b.mu.Unlock()
	return !full && b.post(f)
}
