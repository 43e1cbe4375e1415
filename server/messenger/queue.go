package messenger

import (
	"errors"
	"fmt"
	"iter"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// Limits of one gathering: what one system call takes.
const (
	maxSegments    = 1000 // below the kernel's 1024, with room for a frame's last pieces
	maxGatherBytes = 1 << 20
	firstSlots     = 64
)

var errAck = errors.New("the peer acknowledged frames that were never sent to it")

// queue is the outgoing side of one link: every frame that the peer has not
// acked, in order. The frame with sequence number i+1 lies in slot i&mask.
//
//	head ≤ next ≤ tail
//	[head, next) sent, kept for the case of a cut; [next, tail) not sent yet
//
// Urgent bytes (whole frames outside the stream) go ahead of all that, but
// never into the middle of a frame.
//
// The link's lock guards it. The memory of headers and payloads that Gather
// handed out stays as it is until Advance, which the same goroutine calls: so
// the system call in between needs no lock.
type queue struct {
	slots []slot
	hdrs  []byte // the header of slot i at i*HeaderSize: neighbours are contiguous
	macs  []byte // likewise, where frames are signed
	mask  uint64

	head, next, tail uint64
	gathered         uint64 // end of what was ever handed to a system call
	acked            uint64 // what the peer has; entries up to min(acked, next) are released
	off              int    // how much of frame next was sent
	bytes            int64  // of [head, tail)

	urgent  []byte
	urgeOff int // how much of urgent was sent
}

// slot is one frame's payload; its header is in hdrs.
type slot struct {
	payload []byte
	tail    []byte // a keyed MAC, or nothing
	buf     *block.Buf
}

func (e *slot) size() int { return wire.HeaderSize + len(e.payload) + len(e.tail) }

func (q *queue) header(i uint64) []byte {
	at := (i & q.mask) * wire.HeaderSize
	return q.hdrs[at : at+wire.HeaderSize : at+wire.HeaderSize]
}

// nextSeq is the number that the next pushed frame will have.
func (q *queue) nextSeq() uint64 { return q.tail + 1 }

// frames is how many frames are kept.
func (q *queue) frames() int { return int(q.tail - q.head) }

// push appends a frame whose header is complete and whose Seq is nextSeq. sign
// may be nil.
func (q *queue) push(h *wire.Header, payload []byte, buf *block.Buf, sign *signer) {
	if q.tail-q.head == uint64(len(q.slots)) {
		q.grow()
	}
	h.Put(q.header(q.tail))
	e := &q.slots[q.tail&q.mask]
	*e = slot{payload: payload, buf: buf}
	if sign != nil {
		e.tail = q.mac(q.tail)
		sign.sum(e.tail, q.header(q.tail), payload, 0)
	}
	q.tail++
	q.bytes += int64(e.size())
}

// mac is where the MAC of frame i lies.
func (q *queue) mac(i uint64) []byte {
	if q.macs == nil {
		q.macs = make([]byte, len(q.slots)*wire.FrameMACSize)
	}
	at := (i & q.mask) * wire.FrameMACSize
	return q.macs[at : at+wire.FrameMACSize : at+wire.FrameMACSize]
}

// grow doubles the ring. A system call that runs meanwhile goes on reading the
// old memory, whose content is the same.
func (q *queue) grow() {
	n := max(firstSlots, 2*len(q.slots))
	old := *q
	q.slots, q.hdrs, q.macs, q.mask = make([]slot, n), make([]byte, n*wire.HeaderSize), nil, uint64(n-1)
	for i := q.head; i < q.tail; i++ {
		e := &q.slots[i&q.mask]
		*e = old.slots[i&old.mask]
		copy(q.header(i), old.header(i))
		if e.tail != nil {
			e.tail = q.mac(i)
			copy(e.tail, old.mac(i))
		}
	}
}

// gather appends to segs what is to be sent next, up to the limits of one
// system call.
func (q *queue) gather(segs [][]byte) [][]byte {
	i, total := q.next, 0
	if q.off > 0 {
		segs, total = q.appendRest(segs, i, q.off)
		i++
	}
	if rest := q.urgent[q.urgeOff:]; len(rest) > 0 {
		segs = append(segs, rest)
		total += len(rest)
	}
	run := false // the last segment is made of whole headers up to slot i-1
	for ; i < q.tail && len(segs) < maxSegments && total < maxGatherBytes; i++ {
		e := &q.slots[i&q.mask]
		if run && i&q.mask != 0 {
			last := segs[len(segs)-1]
			segs[len(segs)-1] = last[:len(last)+wire.HeaderSize]
		} else {
			at := (i & q.mask) * wire.HeaderSize
			segs = append(segs, q.hdrs[at:at+wire.HeaderSize])
		}
		if run = len(e.payload)+len(e.tail) == 0; !run {
			segs = appendNonEmpty(appendNonEmpty(segs, e.payload), e.tail)
		}
		total += e.size()
	}
	q.gathered = max(q.gathered, i)
	return segs
}

// appendRest appends what is left of frame i behind off bytes.
func (q *queue) appendRest(segs [][]byte, i uint64, off int) ([][]byte, int) {
	e := &q.slots[i&q.mask]
	total := e.size() - off
	for _, part := range [...][]byte{q.header(i), e.payload, e.tail} {
		skip := min(off, len(part))
		segs = appendNonEmpty(segs, part[skip:])
		off -= skip
	}
	return segs, total
}

func appendNonEmpty(segs [][]byte, p []byte) [][]byte {
	if len(p) == 0 {
		return segs
	}
	return append(segs, p)
}

// advance takes note that n bytes of what gather returned were sent, and
// returns how many frames of the stream that completed.
func (q *queue) advance(n int) (frames int) {
	if q.off > 0 {
		if n, frames = q.advanceFrame(n, frames); q.off > 0 {
			return frames
		}
	}
	if rest := len(q.urgent) - q.urgeOff; rest > 0 {
		if n < rest {
			q.urgeOff += n
			return frames
		}
		n -= rest
		q.urgent, q.urgeOff = q.urgent[:0], 0
	}
	for n > 0 {
		n, frames = q.advanceFrame(n, frames)
	}
	q.release()
	return frames
}

func (q *queue) advanceFrame(n, frames int) (int, int) {
	rest := q.slots[q.next&q.mask].size() - q.off
	if n < rest {
		q.off += n
		return 0, frames
	}
	q.next, q.off = q.next+1, 0
	return n - rest, frames + 1
}

// ack takes note that the peer has every frame up to seq.
func (q *queue) ack(seq uint64) error {
	if seq > q.gathered {
		return fmt.Errorf("%w (frame %d of %d)", errAck, seq, q.gathered)
	}
	if seq > q.acked {
		q.acked = seq
		q.release()
	}
	return nil
}

// release frees the frames that are both acked and no longer being written.
func (q *queue) release() {
	for end := min(q.acked, q.next); q.head < end; q.head++ {
		e := &q.slots[q.head&q.mask]
		q.bytes -= int64(e.size())
		if e.buf != nil {
			e.buf.Release()
		}
		*e = slot{}
	}
}

// resume prepares the queue for a new connection to a peer that has every
// frame up to received: the rest is sent again. Urgent bytes are not. Where
// the old connection went on while the new one was made, acks tell of more.
func (q *queue) resume(received uint64) error {
	if received > q.gathered {
		return fmt.Errorf("%w (it says it has %d, it was sent %d)", errAck, received, q.gathered)
	}
	q.acked = max(q.acked, received)
	q.next, q.off = q.acked, 0
	q.urgent, q.urgeOff = q.urgent[:0], 0
	q.release()
	return nil
}

// unacked yields the frames that the peer has not acked, oldest first.
func (q *queue) unacked() iter.Seq2[*wire.Header, []byte] {
	return func(yield func(*wire.Header, []byte) bool) {
		for i := max(q.head, q.acked); i < q.tail; i++ {
			var h wire.Header
			if h.Decode(q.header(i), 0) != nil || !yield(&h, q.slots[i&q.mask].payload) {
				return
			}
		}
	}
}

// discard drops everything.
func (q *queue) discard() {
	q.acked, q.next, q.gathered, q.off = q.tail, q.tail, q.tail, 0
	q.release()
	*q = queue{head: q.tail, next: q.tail, tail: q.tail, acked: q.tail, gathered: q.tail}
}
