package block

import (
	"sync"
	"sync/atomic"
)

// Buf is a refcounted slab of memory. A socket reader reads into one and hands
// out slices of it; each holder beyond the reader retains it, and the last one
// to release returns it to its pool. So a payload is read once and sent to any
// number of peers without a copy.
type Buf struct {
	B    []byte
	refs atomic.Int32
	pool *Pool
}

// Retain adds a holder.
func (b *Buf) Retain() { b.refs.Add(1) }

// Release drops a holder; the last one gives the memory back. Releasing more
// often than retaining is a bug that would hand one piece of memory to two
// owners, so it panics.
func (b *Buf) Release() {
	switch n := b.refs.Add(-1); {
	case n == 0:
		if b.pool != nil {
			b.pool.put(b)
		}
	case n < 0:
		panic("block: buffer released more often than retained")
	}
}

// Sole reports whether the caller is the only holder: it may then reuse B.
func (b *Buf) Sole() bool { return b.refs.Load() == 1 }

// Pool hands out buffers of one size.
type Pool struct {
	size    int
	pool    sync.Pool
	out     atomic.Int64
	waiting atomic.Int32
	freed   chan struct{} // capacity 1: a buffer came back while somebody waited
}

// NewPool returns a pool of buffers of size bytes.
func NewPool(size int) *Pool {
	p := &Pool{size: size, freed: make(chan struct{}, 1)}
	p.pool.New = func() any { return &Buf{B: make([]byte, size), pool: p} }
	return p
}

// Get returns a buffer with one holder, the caller. Its content is anything.
func (p *Pool) Get() *Buf {
	b := p.pool.Get().(*Buf)
	b.refs.Store(1)
	p.out.Add(1)
	return b
}

// Out is how many buffers are held now.
func (p *Pool) Out() int64 { return p.out.Load() }

// Size is the size of the pool's buffers.
func (p *Pool) Size() int { return p.size }

func (p *Pool) put(b *Buf) {
	p.out.Add(-1)
	p.pool.Put(b)
	if p.waiting.Load() > 0 {
		select {
		case p.freed <- struct{}{}:
		default:
		}
	}
}

// Wait waits until fewer than most buffers are held, and reports false if stop
// was closed first. One goroutine at a time may wait.
func (p *Pool) Wait(most int64, stop <-chan struct{}) bool {
	p.waiting.Add(1)
	defer p.waiting.Add(-1)
	for p.out.Load() >= most {
		select {
		case <-p.freed:
		case <-stop:
			return false
		}
	}
	return true
}
