package device

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
)

// errDiskTimeout means that a disk did not do what it was asked within
// disk_timeout. What it does later on touches nothing that matters.
var errDiskTimeout = errors.New("the disk did not answer within disk_timeout")

// limiter bounds how long each operation of a disk, or of a metadata file, may
// take, as far as there is a limit, which may change at any time. Once one took
// too long, all fail at once. An operation that comes back late finds only
// memory of its own: what is written is copied first, and what is read is
// copied when it came in time.
type limiter struct {
	name  string
	limit atomic.Int64 // a time.Duration, for operations that begin; 0: as long as it likes
	dead  atomic.Bool

	mu    sync.Mutex // guards under
	none  *sync.Cond // under has become 0
	under int        // operations, those included that were given up on
}

// limitedPiece is how much memory one operation's copy takes at most; larger
// ones are cut.
const limitedPiece = 1 << 20

func newLimiter(name string, limit time.Duration) *limiter {
	l := &limiter{name: name}
	l.limit.Store(int64(limit))
	l.none = sync.NewCond(&l.mu)
	return l
}

// limitedDisk is a disk with a limiter.
type limitedDisk struct {
	store.Disk
	*limiter
	bufs *block.Pool
}

func limitDisk(d store.Disk, limit time.Duration) *limitedDisk {
	return &limitedDisk{Disk: d, limiter: newLimiter(d.Path(), limit), bufs: block.NewPool(limitedPiece)}
}

func (l *limiter) count(n int) {
	l.mu.Lock()
	l.under += n
	if l.under == 0 {
		l.none.Broadcast()
	}
	l.mu.Unlock()
}

// do performs f, and waits for it as long as it may take.
func (l *limiter) do(what string, f func() error) error {
	if l.dead.Load() {
		return fmt.Errorf("%s %s: %w", what, l.name, errDiskTimeout)
	}
	limit := time.Duration(l.limit.Load())
	if limit <= 0 {
		return f()
	}
	done := make(chan error, 1)
	l.count(1)
	go func() {
		done <- f()
		l.count(-1)
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-t.C:
		l.dead.Store(true)
		return fmt.Errorf("%s %s: %w (%v)", what, l.name, errDiskTimeout, limit)
	}
}

// unlimited reports whether operations may go to the disk as they are.
func (l *limiter) unlimited() bool { return l.limit.Load() <= 0 && !l.dead.Load() }

// pieces cuts [0,n) for the copies.
func pieces(n int, f func(at, end int) error) error {
	for at := 0; at < n; at += limitedPiece {
		if err := f(at, min(at+limitedPiece, n)); err != nil {
			return err
		}
	}
	return nil
}

// ReadAt implements store.Disk.
func (l *limitedDisk) ReadAt(p []byte, off int64) (int, error) {
	if l.unlimited() {
		return l.Disk.ReadAt(p, off)
	}
	err := pieces(len(p), func(at, end int) error {
		buf := l.bufs.Get()
		defer buf.Release()
		buf.Retain() // the reader's
		data := buf.B[:end-at]
		err := l.do("read", func() error {
			defer buf.Release()
			_, err := l.Disk.ReadAt(data, off+int64(at))
			return err
		})
		if err == nil {
			copy(p[at:end], data)
		}
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt implements store.Disk.
func (l *limitedDisk) WriteAt(p []byte, off int64) (int, error) {
	if l.unlimited() {
		return l.Disk.WriteAt(p, off)
	}
	err := pieces(len(p), func(at, end int) error {
		buf := l.bufs.Get()
		data := buf.B[:end-at]
		copy(data, p[at:end])
		return l.do("write", func() error {
			defer buf.Release()
			_, err := l.Disk.WriteAt(data, off+int64(at))
			return err
		})
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Sync implements store.Disk.
func (l *limitedDisk) Sync() error { return l.do("flush", l.Disk.Sync) }

// Trim implements store.Disk.
func (l *limitedDisk) Trim(off, n int64) error {
	return l.do("trim", func() error { return l.Disk.Trim(off, n) })
}

// Zero implements store.Disk.
func (l *limitedDisk) Zero(off, n int64, flags block.Flags) error {
	return l.do("zero", func() error { return l.Disk.Zero(off, n, flags) })
}

// Extents implements store.Disk.
func (l *limitedDisk) Extents(off, n int64, most int) (es []store.DataExtent, err error) {
	got := make(chan []store.DataExtent, 1)
	err = l.do("map", func() error {
		es, err := l.Disk.Extents(off, n, most)
		got <- es
		return err
	})
	if err != nil {
		return nil, err
	}
	return <-got, nil
}

// Resize implements store.Resizer.
func (l *limitedDisk) Resize(size int64) error { return resizeDisk(l.Disk, size) }

func resizeDisk(d store.Disk, size int64) error {
	r, ok := d.(store.Resizer)
	if !ok {
		return errors.New("its disk cannot be resized")
	}
	return r.Resize(size)
}

// limitersLocked are those of the disk and of its metadata, as far as there are any.
func (d *Device) limitersLocked() (ls [2]*limiter) {
	if l, ok := d.disk.(*limitedDisk); ok {
		ls = [2]*limiter{l.limiter, d.metaLimit}
	}
	return ls
}

// tickDeadLocked detaches a disk that took too long for something that nobody answers
// for: to make room, say. Nothing else would find out before there is something to
// write, and quorum would count on it until then.
func (d *Device) tickDeadLocked() {
	for _, l := range d.limitersLocked() {
		if l != nil && l.dead.Load() {
			d.diskFailedLocked(d.disk, "an operation of "+l.name, errDiskTimeout)
			return
		}
	}
}

// settle waits until nothing is under way any more, late or not.
func (l *limiter) settle() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.under > 0 {
		l.none.Wait()
	}
}
