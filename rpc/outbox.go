package rpc

import (
	"errors"
	"net"
	"sync"
	"time"
)

// ErrFull says that a connection's queue has no room for a notification: its
// client does not read. The notification was dropped; nothing waited.
var ErrFull = errors.New("the client does not read: its queue is full")

// ErrGone says that the connection is closed.
var ErrGone = errors.New("the client is gone")

// writeChunk is what must be taken within one write deadline, so that a slow
// client gets through a large answer as long as it keeps reading.
const writeChunk = 64 << 10

// outbox is the queue of bytes to one client, with a goroutine that writes
// them. Replies wait for room; notifications do not.
type outbox struct {
	limit int // bytes held before a reply waits or a notification is refused

	mu      sync.Mutex
	change  sync.Cond // of anything below
	queue   []byte    // whole messages, guarded by mu
	writing bool      // run is writing what it took from queue; guarded by mu
	closing bool      // nothing more is taken; run ends when all is written; guarded by mu
	failed  error     // run has ended before all was written; guarded by mu

	room chan struct{} // nil, or closed when a queue that has refused a notification is emptied; guarded by mu
}

func newOutbox(limit int) *outbox {
	o := &outbox{limit: limit}
	o.change.L = &o.mu
	return o
}

// push queues a message, waiting until the queue is below its limit. One
// message may go over it: a result has to fit somewhere.
func (o *outbox) push(msg []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	for len(o.queue) >= o.limit && !o.over() {
		o.change.Wait()
	}
	return o.addLocked(msg)
}

// try queues n messages, in order, as far as there is room now, and returns how
// many.
func (o *outbox) try(n int, msg func(i int) []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range n {
		m := msg(i)
		if len(o.queue)+len(m) > o.limit && len(o.queue) > 0 && !o.over() {
			if o.room == nil {
				o.room = make(chan struct{})
			}
			return i, ErrFull
		}
		if err := o.addLocked(m); err != nil {
			return i, err
		}
	}
	return n, nil
}

func (o *outbox) over() bool { return o.closing || o.failed != nil }

func (o *outbox) addLocked(msg []byte) error {
	if o.over() {
		return ErrGone
	}
	o.queue = append(o.queue, msg...)
	o.change.Broadcast()
	return nil
}

// run writes what is queued until close was called and all is written, or a
// write fails or times out.
func (o *outbox) run(nc net.Conn, timeout time.Duration) error {
	var spare []byte
	for {
		batch, ok := o.take(spare)
		if !ok {
			return nil
		}
		if err := writeAll(nc, batch, timeout); err != nil {
			o.fail(err)
			return err
		}
		if spare = batch[:0]; cap(spare) > writeChunk {
			spare = nil
		}
	}
}

// take returns all that is queued, leaving spare in its place.
func (o *outbox) take(spare []byte) ([]byte, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.writing = false
	for len(o.queue) == 0 {
		o.change.Broadcast()
		if o.over() {
			return nil, false
		}
		o.change.Wait()
	}
	batch := o.queue
	o.queue, o.writing = spare, true
	o.wakeLocked()
	o.change.Broadcast()
	return batch, true
}

// wakeLocked tells whoever waits for room.
func (o *outbox) wakeLocked() {
	if o.room != nil {
		close(o.room)
		o.room = nil
	}
}

// hasRoom returns a channel that is closed once a queue that has refused a
// notification was emptied; if it has refused none since, at once.
func (o *outbox) hasRoom() <-chan struct{} {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.room != nil {
		return o.room
	}
	room := make(chan struct{})
	close(room)
	return room
}

func writeAll(nc net.Conn, b []byte, timeout time.Duration) error {
	for len(b) > 0 {
		n := min(len(b), writeChunk)
		if err := nc.SetWriteDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		if _, err := nc.Write(b[:n]); err != nil {
			return err
		}
		b = b[n:]
	}
	return nil
}

func (o *outbox) fail(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.failed, o.queue, o.writing = err, nil, false
	o.wakeLocked()
	o.change.Broadcast()
}

// close lets run end once all is written.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closing = true
	o.change.Broadcast()
}

// flush waits until what is queued is written, or never will be.
func (o *outbox) flush() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for (len(o.queue) > 0 || o.writing) && o.failed == nil {
		o.change.Wait()
	}
}
