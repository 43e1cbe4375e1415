package device

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
)

// crew carries out a device's local changes while its disk is slow. A disk
// that answers at once is given them by whoever finishes the batch that they
// came with, one after the other and without a hand-off. When one of them turns
// out to be late, those behind it go to the crew's goroutines: so many are on
// the disk at a time, as a disk with a queue likes it, and none keeps a link or
// another device. When the disk answers at once again, so does the device.
//
// What comes here holds its range already (ranges), so the order in which it is
// carried out does not matter.
type crew struct {
	// delay is over 0 while the crew is in charge: see paceLocked. It is written
	// with mu held, and read without.
	delay atomic.Int32

	mu      sync.Mutex    // guards what is below; Device.mu may be held, and is not taken
	freed   chan struct{} // closed when there is room again; nil: nobody waits
	queue   []*op         // queue[head:] waits
	head    int
	working int
	ops     int   // that wait or are being carried out
	bytes   int64 // of theirs
}

// Tuning. One connection of a client has at most 1024 requests and 64 MiB in
// flight, and a resync eight pieces of 512 KiB: what a disk that hangs leaves
// unanswered fits, so that the links go on. More than that comes of several
// connections, or of protocols A and B, which answer before the disk does; then
// a link that brings some is not read on when what one read brought, up to 1 MiB,
// is taken in: its other end queues, up to its own limit. Short payloads are copied; long ones stay in the
// link's slabs, which messenger.Options.MaxHeld bounds.
const (
	crewWorkers = 16 // system calls at a time; disks gain little beyond that
	crewOps     = 4096
	crewBytes   = 96 << 20
	// copyMost is the longest payload that is copied out of its slab, so that
	// what waits does not pin what other devices were sent beside it.
	copyMost = 256 << 10
)

// Pace: a change is brisk if it takes no longer than brisk, and longer by 4 ns
// for each byte (256 MB/s). Each that is brisk takes one off the delay, each
// that is not adds to it: so the crew is in charge until that many more have
// been brisk.
const (
	brisk     = 100 * time.Microsecond
	lateCosts = 32
	mostDelay = 256
)

// late puts the crew in charge.
func (c *crew) late() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.delay.Store(min(c.delay.Load()+lateCosts, mostDelay))
}

// take takes over an op, if the crew is in charge.
func (c *crew) take(o *op, b *block.Batch) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.delay.Load() == 0 {
		return false
	}
	o.unpin()
	c.ops++
	c.bytes += int64(len(o.data))
	if c.fullLocked() {
		b.Full(c)
	}
	c.putLocked(o)
	if c.working < crewWorkers {
		c.working++
		go c.work()
	}
	return true
}

func (c *crew) fullLocked() bool { return c.ops >= crewOps || c.bytes >= crewBytes }

// Await implements block.Room.
func (c *crew) Await(stop <-chan struct{}) bool {
	for {
		c.mu.Lock()
		if !c.fullLocked() {
			c.mu.Unlock()
			return true
		}
		if c.freed == nil {
			c.freed = make(chan struct{})
		}
		freed := c.freed
		c.mu.Unlock()
		select {
		case <-freed:
		case <-stop:
			return false
		}
	}
}

func (c *crew) putLocked(o *op) {
	if c.head > len(c.queue)/2 {
		n := copy(c.queue, c.queue[c.head:])
		clear(c.queue[n:])
		c.queue, c.head = c.queue[:n], 0
	}
	c.queue = append(c.queue, o)
}

// work is a goroutine of the crew. It ends when nothing is left to do.
func (c *crew) work() {
	b := &block.Batch{}
	for o := c.next(); o != nil; o = c.next() {
		n := int64(len(o.data))
		start := time.Now()
		o.Perform()
		took := time.Since(start)
		o.Performed(b)
		b.Finish()
		c.done(n, took)
	}
}

// next is the op to carry out next; nil ends the goroutine.
func (c *crew) next() *op {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.head == len(c.queue) {
		c.working--
		return nil
	}
	o := c.queue[c.head]
	c.queue[c.head] = nil
	c.head++
	return o
}

// done: a change of n bytes was carried out.
func (c *crew) done(n int64, took time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ops--
	c.bytes -= n
	if took <= brisk+time.Duration(4*n) {
		c.delay.Store(max(c.delay.Load()-1, 0))
	} else {
		c.delay.Store(min(c.delay.Load()+lateCosts, mostDelay))
	}
	if c.freed != nil && !c.fullLocked() {
		close(c.freed)
		c.freed = nil
	}
}

// inHand is how many changes wait for the crew, or are being carried out by it.
func (c *crew) inHand() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ops
}

// unpin copies a payload that a peer sent, where it is short beside the slab
// that it came in.
func (o *op) unpin() {
	if o.from == nil || o.buf == nil || len(o.data) > copyMost {
		return
	}
	o.data = append([]byte(nil), o.data...)
	o.buf.Release()
	o.buf = nil
}

// TakenOver implements block.Deferred.
func (o *op) TakenOver(b *block.Batch) bool {
	c := &o.d.crew
	return c.delay.Load() > 0 && c.take(o, b)
}

// Perform implements block.Deferred: the op's local I/O, without the mutex.
func (o *op) Perform() { o.ioErr = o.d.perform(o) }

// Performed implements block.Deferred.
func (o *op) Performed(b *block.Batch) { o.d.localDone(o, b) }

// Late implements block.Deferred.
func (o *op) Late() { o.d.crew.late() }
