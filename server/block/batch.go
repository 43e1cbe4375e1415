package block

import "slices"

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
	// TakenOver reports whether somebody else does the work: then nothing more
	// is called. Whoever has enough now says so by b.Full.
	TakenOver(b *Batch) bool
	// Perform does the work, which may take long.
	Perform()
	// Performed goes on with what follows from it. It must not block.
	Performed(b *Batch)
	// Late is called while Perform takes long, on another goroutine, at most
	// once. It must not wait for Perform.
	Late()
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
	begun    int // deferred[:begun] were begun already
	full     []Room
}

// Room is where work is taken over, as far as there is room.
type Room interface {
	// Await waits until there is room again, and reports false if stop was
	// closed first.
	Await(stop <-chan struct{}) bool
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

// Full says that whoever reads for the batch should wait for r before it reads
// on: what it has read already is taken in all the same.
func (b *Batch) Full(r Room) {
	if !slices.Contains(b.full, r) {
		b.full = append(b.full, r)
	}
}

// AwaitRoom waits for all that is full, and reports false if stop was closed
// first. waits is called before it does.
func (b *Batch) AwaitRoom(stop <-chan struct{}, waits func()) bool {
	for len(b.full) > 0 {
		waits()
		last := len(b.full) - 1
		if !b.full[last].Await(stop) {
			return false
		}
		b.full = b.full[:last]
	}
	return true
}

// Finish flushes what was touched, runs what was deferred, and again, until
// there is nothing left.
func (b *Batch) Finish() { b.FinishOn(nil) }

// FinishOn is Finish for the holder of a post. It returns false if the caller
// was relieved while it performed something: what followed from that is done,
// and the post and the batch are the successor's, who goes on with FinishOn.
func (b *Batch) FinishOn(p *Post) bool {
	for {
		b.flush()
		for b.begun < len(b.deferred) {
			d := b.deferred[b.begun]
			b.deferred[b.begun] = nil
			b.begun++
			if !b.perform(d, p) {
				return false
			}
		}
		b.deferred, b.begun = b.deferred[:0], 0
		if len(b.touched) == 0 {
			return true
		}
	}
}

// Flush flushes what was touched, and reports whether that was all: if not,
// Finish has something to perform.
func (b *Batch) Flush() bool {
	b.flush()
	return b.begun == len(b.deferred)
}

func (b *Batch) flush() {
	for b.next < len(b.touched) {
		f := b.touched[b.next]
		b.next++
		f.Flush(b)
	}
	b.resetTouched()
}

// perform performs d, and reports whether the caller still holds the post.
func (b *Batch) perform(d Deferred, p *Post) bool {
	if d.TakenOver(b) {
		return true
	}
	if p == nil {
		d.Perform()
		d.Performed(b)
		return true
	}
	at := p.enter(d)
	d.Perform()
	if p.leave(at) {
		d.Performed(b)
		return true
	}
	own := &Batch{}
	d.Performed(own)
	own.Finish()
	return false
}

func (b *Batch) resetTouched() {
	clear(b.touched)
	b.touched = b.touched[:0]
	b.next = 0
}
