package nbd

import (
	"sync"
	"sync/atomic"

	"github.com/lockstepd/lockstep/server/block"
)

// maxRounds bounds how long one flush goes on for others who complete
// meanwhile; then the connection's own writer takes over.
const maxRounds = 8

// outbox gathers completed ops and sends their replies. Any goroutine
// completes; the first that flushes becomes the sender and sends for all until
// nothing is left, so that many replies share a system call and nobody waits
// for anybody. If the socket would block, the role of the sender passes to
// the connection's writer goroutine, which may wait.
//
// Only the sender touches sender. Nothing is sent, released or logged with mu
// held.
type outbox struct {
	// mu guards the fields below.
	mu      sync.Mutex
	changed sync.Cond // recycled, sending, dead, or hurry changed
	ready   []*op     // completed, in order of completion
	free    *op       // recycled
	sending bool      // somebody is the sender
	dead    bool      // replies are dropped
	hurry   bool      // the reader must not wait for room
	waiting int       // goroutines that wait for changed

	// recycled counts ops that are done with, bytes their weight. Both are
	// totals, and written under mu.
	recycled, bytes atomic.Int64

	sender sender
}

// sender is the state of the one who sends.
type sender struct {
	ops     []*op // taken from ready
	encoded int   // ops[:encoded] are in bufs or sent
	bufs    [][]byte
	bufsMem [][]byte // bufs from its first element on
	headers []byte   // what bufs refer to
	piece   int      // where in headers the last of bufs begins; -1: it is data
}

// push adds a completed op; false means that the connection is dead.
func (o *outbox) push(p *op) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !p.pending {
		panic("nbd: request completed twice")
	}
	p.pending = false
	if o.dead {
		return false
	}
	o.ready = append(o.ready, p)
	return true
}

// begin makes the caller the sender, if there is something to send and nobody
// else is.
func (o *outbox) begin() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sending || len(o.ready) == 0 {
		return false
	}
	o.sending = true
	o.take()
	return true
}

// take moves what is ready to the sender. It is called with mu held.
func (o *outbox) take() {
	o.sender.ops, o.ready = o.ready, o.sender.ops[:0]
	o.sender.encoded = 0
}

// settle recycles the first n of the sender's ops, and if none are left takes
// what completed meanwhile. If there is nothing either, the caller is no
// longer the sender, and it returns false.
func (o *outbox) settle(n int) bool {
	s := &o.sender
	for _, p := range s.ops[:n] {
		p.drop()
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, p := range s.ops[:n] {
		o.recycle(p)
	}
	if n < len(s.ops) {
		s.ops = s.ops[:copy(s.ops, s.ops[n:])]
		s.encoded = 0
	} else {
		clear(s.ops)
		o.take()
	}
	o.sending = len(s.ops) > 0
	o.tell()
	return o.sending
}

// recycle puts p on the free list. It is called with mu held.
func (o *outbox) recycle(p *op) {
	if p.weight > 0 {
		o.bytes.Add(p.weight)
		p.c.srv.held.Add(-p.weight)
	}
	o.recycled.Add(1)
	p.next, o.free = o.free, p
}

// tell wakes who waits for a change. It is called with mu held.
func (o *outbox) tell() {
	if o.waiting > 0 {
		o.changed.Broadcast()
	}
}

// wait sleeps until something changed. It is called with mu held.
func (o *outbox) wait() {
	o.waiting++
	o.changed.Wait()
	o.waiting--
}

// discard recycles an op that completed when the connection was dead.
func (o *outbox) discard(p *op) {
	p.drop()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.recycle(p)
	o.tell()
}

// kill makes the outbox drop everything from now on; it returns false if it
// was dead before.
func (o *outbox) kill() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.dead {
		return false
	}
	o.dead = true
	o.tell()
	return true
}

// Flush sends what has completed, as far as the socket takes it at once.
func (c *conn) Flush(*block.Batch) {
	if !c.out.begin() {
		return
	}
	for range maxRounds {
		more, blocked := c.send(false)
		if blocked {
			break
		}
		if !more {
			return
		}
	}
	c.kick <- struct{}{} // there is room: only the sender kicks, and it was not the writer
}

// writer finishes what would have blocked others.
func (c *conn) writer() {
	for {
		select {
		case <-c.kick:
			for more := true; more; {
				more, _ = c.send(true)
			}
		case <-c.ended:
			return
		}
	}
}

// send sends one round of replies. More says that there are others, and that
// the caller still is the sender; blocked, that the socket took no more.
func (c *conn) send(wait bool) (more, blocked bool) {
	s := &c.out.sender
	if len(s.bufs) == 0 {
		c.encode()
	}
	for len(s.bufs) > 0 {
		n, err := c.sock.write(s.bufs, wait)
		if err != nil {
			c.kill(err)
			clear(s.bufs)
			s.bufs = nil
			s.encoded = len(s.ops)
			break
		}
		c.stats.sent(n)
		if s.advance(n); len(s.bufs) > 0 && !wait {
			return true, true
		}
	}
	return c.out.settle(s.encoded), false
}

// advance forgets the first n bytes of what is to be sent.
func (s *sender) advance(n int) {
	for n > 0 && n >= len(s.bufs[0]) {
		n -= len(s.bufs[0])
		s.bufs[0] = nil
		s.bufs = s.bufs[1:]
	}
	if n > 0 {
		s.bufs[0] = s.bufs[0][n:]
	}
}
