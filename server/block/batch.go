package block

// Flusher is something that gathers output and sends it when flushed: a link
// to a peer, the replies of an NBD connection, a run of acks. Flush must not
// block on a slow receiver; what the receiver does not take at once is the
// flusher's own goroutine's work.
type Flusher interface {
	Flush(b *Batch)
}

// Deferred is work put off until the links of a batch were flushed: the local
// write goes on while peers already receive theirs.
type Deferred interface {
	RunDeferred(b *Batch)
}

// Batch is what one reader goroutine gathers while it handles the requests or
// frames that one read from its socket brought. It belongs to that goroutine
// alone. After the last one the reader calls Finish, which turns many small
// outputs into one system call per receiver:
//
//	for each frame in the buffer { handle(frame, b) }
//	b.Finish()
//
// A Batch may be reused after Finish; its memory stays, so that the steady
// state allocates nothing.
type Batch struct {
	touched  []Flusher
	deferred []Deferred
	next     int // touched[:next] were flushed already
}

// Touch asks for f to be flushed when the batch finishes. Touching twice is
// one flush; touching while Finish runs is another.
func (b *Batch) Touch(f Flusher) {
	for i := len(b.touched) - 1; i >= b.next; i-- {
		if b.touched[i] == f {
			return
		}
	}
	b.touched = append(b.touched, f)
}

// Defer runs d after everything touched so far was flushed.
func (b *Batch) Defer(d Deferred) { b.deferred = append(b.deferred, d) }

// Finish flushes what was touched, runs what was deferred, and again, until
// there is nothing left.
func (b *Batch) Finish() {
	for {
		for b.next < len(b.touched) {
			f := b.touched[b.next]
			b.next++
			f.Flush(b)
		}
		b.resetTouched()
		if len(b.deferred) == 0 {
			return
		}
		for i := 0; i < len(b.deferred); i++ {
			d := b.deferred[i]
			b.deferred[i] = nil
			d.RunDeferred(b)
		}
		b.deferred = b.deferred[:0]
	}
}

func (b *Batch) resetTouched() {
	clear(b.touched)
	b.touched = b.touched[:0]
	b.next = 0
}
