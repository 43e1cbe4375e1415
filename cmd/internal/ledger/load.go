package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
)

// Load is a running mix of writes, reads and flushes. Its counters may be read
// at any time.
type Load struct {
	Writes, Reads, Flushes atomic.Int64
	Errors                 atomic.Int64 // failed I/Os and lost connections
	Dials                  atomic.Int64 // connections made

	mu       sync.Mutex // guards failures
	failures []error
}

// Failures returns the first failures of I/Os and connections, at most a hundred.
func (c *Load) Failures() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.failures)
}

func (c *Load) failed(err error) {
	c.Errors.Add(1)
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.failures) < 100 {
		c.failures = append(c.failures, err)
	}
}

// Run loads the device until ctx ends, with workers that each have a
// connection and a part of the device of their own. A worker whose connection
// is lost, or whose I/O fails, makes a new one. Only a broken promise of the
// device is an error.
func (l *Ledger) Run(ctx context.Context, c *Load, workers int, dial func(context.Context) (Device, error)) error {
	g, ctx := errgroup.WithContext(ctx)
	for w := range workers {
		wk := &worker{
			l: l, c: c, dial: dial,
			rng:   rand.New(rand.NewPCG(l.Seed, uint64(w))),
			first: l.Size / Unit * int64(w) / int64(workers),
			end:   l.Size / Unit * int64(w+1) / int64(workers),
			buf:   make([]byte, maxUnits*Unit),
		}
		g.Go(func() error { return wk.run(ctx) })
	}
	return g.Wait()
}

// maxUnits is the most blocks that one I/O of the load covers.
const maxUnits = 32

// worker owns the blocks from first up to end: nobody else writes or reads there.
type worker struct {
	l          *Ledger
	c          *Load
	dial       func(context.Context) (Device, error)
	rng        *rand.Rand
	first, end int64
	buf        []byte
}

// run keeps a connection and does I/O on it until ctx ends.
func (w *worker) run(ctx context.Context) error {
	for ctx.Err() == nil {
		d, err := w.dial(ctx)
		if err != nil {
			if ctx.Err() == nil {
				w.c.failed(fmt.Errorf("connect: %w", err))
			}
			pause(ctx)
			continue
		}
		w.c.Dials.Add(1)
		err = w.use(ctx, d)
		if _, ok := errors.AsType[*Violation](err); ok {
			return err
		}
	}
	return nil
}

// pause waits a little before the next attempt to connect.
func pause(ctx context.Context) {
	t := time.NewTimer(20 * time.Millisecond)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// use does I/O on a connection until it fails or ctx ends. An I/O that hangs
// when ctx ends is cut off by closing the connection, and then is no failure.
func (w *worker) use(ctx context.Context, d Device) error {
	stop := context.AfterFunc(ctx, func() { d.Close() })
	defer func() {
		if stop() {
			d.Close()
		}
	}()
	for ctx.Err() == nil {
		if err := w.io(d); err != nil {
			if ctx.Err() == nil {
				w.c.failed(err)
			}
			return err
		}
	}
	return nil
}

// io does one I/O at a random place: mostly writes, some reads, few flushes.
func (w *worker) io(d Device) error {
	n := min(1+w.rng.Int64N(maxUnits), w.end-w.first)
	if w.rng.IntN(2) == 0 {
		n = 1
	}
	off := (w.first + w.rng.Int64N(w.end-w.first-n+1)) * Unit
	buf := w.buf[:n*Unit]
	switch k := w.rng.IntN(64); {
	case k == 0:
		w.c.Flushes.Add(1)
		return d.Flush()
	case k < 16:
		w.c.Reads.Add(1)
		return w.l.Read(d, buf, off)
	default:
		w.c.Writes.Add(1)
		return w.l.Write(d, buf, off)
	}
}
