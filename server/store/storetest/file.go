package storetest

import (
	"io"
	"sync/atomic"
	"syscall"

	"github.com/lockstepd/lockstep/server/store"
)

// File is an image used as a metadata file.
type File struct {
	im     *Image
	closed atomic.Bool
}

var _ store.File = (*File)(nil)

// File opens the image as a file. It may be opened again after a Close.
func (im *Image) File() *File { return &File{im: im} }

// Image is the storage under the file.
func (f *File) Image() *Image { return f.im }

func (f *File) begin(op Op, off, n int64) (Record, int64, error) {
	if f.closed.Load() {
		return Record{}, 0, store.ErrClosed
	}
	return f.im.begin(op, off, n)
}

// ReadAt implements store.File.
func (f *File) ReadAt(p []byte, off int64) (int, error) {
	r, _, err := f.begin(OpRead, off, int64(len(p)))
	if err != nil {
		return 0, err
	}
	return f.im.read(r, p)
}

// WriteAt implements store.File.
func (f *File) WriteAt(p []byte, off int64) (int, error) {
	r, done, err := f.begin(OpWrite, off, int64(len(p)))
	return f.im.write(r, p, done, err)
}

// Sync implements store.File.
func (f *File) Sync() error {
	r, _, err := f.im.beginSync(f.closed.Load())
	return f.im.finishSync(r, err)
}

// Truncate implements store.File.
func (f *File) Truncate(size int64) error {
	r, _, err := f.begin(OpTruncate, size, 0)
	return f.im.do(r, change{op: OpTruncate, off: size}, err)
}

// Punch implements store.File.
func (f *File) Punch(off, n int64) error {
	r, _, err := f.begin(OpPunch, off, n)
	return f.im.do(r, change{op: OpPunch, off: off, n: n}, err)
}

// NextData implements store.File.
func (f *File) NextData(off int64) (start, end int64, err error) {
	r, _, err := f.begin(OpMap, off, 0)
	if err != nil {
		return 0, 0, err
	}
	f.im.mu.Lock()
	defer f.im.mu.Unlock()
	f.im.end(r, nil)
	return f.im.now.nextData(off)
}

// Size implements store.File.
func (f *File) Size() (int64, error) {
	f.im.mu.Lock()
	defer f.im.mu.Unlock()
	return f.im.now.size, nil
}

// Close implements store.File.
func (f *File) Close() error {
	f.closed.Store(true)
	return nil
}

func (im *Image) read(r Record, p []byte) (int, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.now.unreadable(r.Off, int64(len(p))) {
		im.end(r, syscall.EIO)
		return 0, syscall.EIO
	}
	im.end(r, nil)
	n := max(0, min(int64(len(p)), im.now.size-r.Off))
	im.now.read(p[:n], r.Off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

// write writes p, or with an error only its first done bytes.
func (im *Image) write(r Record, p []byte, done int64, err error) (int, error) {
	im.mu.Lock()
	defer im.mu.Unlock()
	if im.crashed {
		done = 0
	}
	if err == nil && im.now.spares(r.Off, int64(len(p))) {
		err = syscall.EIO
	}
	if err = im.alive(err); err != nil {
		p = p[:min(done, int64(len(p)))]
	}
	im.end(r, err)
	if len(p) > 0 {
		im.change(change{op: OpWrite, off: r.Off, n: int64(len(p)), data: p})
	}
	return len(p), err
}

// alive is err, or ErrCrashed where the image crashed since the operation
// began. The caller holds im.mu.
func (im *Image) alive(err error) error {
	if im.crashed && err == nil {
		return ErrCrashed
	}
	return err
}

func (im *Image) do(r Record, ch change, err error) error {
	im.mu.Lock()
	defer im.mu.Unlock()
	if err == nil && im.now.spares(ch.off, ch.n) {
		err = syscall.EIO
	}
	err = im.alive(err)
	im.end(r, err)
	if err == nil {
		im.change(ch)
	}
	return err
}

// syncing is a sync under way. It covers what was written before it began.
type syncing struct {
	Record
	pin *pin
}

func (im *Image) beginSync(closed bool) (s syncing, done int64, err error) {
	if closed {
		return s, 0, store.ErrClosed
	}
	im.mu.Lock()
	s.pin = &pin{upTo: len(im.pending)}
	im.pins[s.pin] = true
	im.mu.Unlock()
	s.Record, done, err = im.begin(OpSync, 0, 0)
	return s, done, err
}

func (im *Image) finishSync(s syncing, err error) error {
	if s.pin == nil {
		return err
	}
	im.mu.Lock()
	defer im.mu.Unlock()
	err = im.alive(err)
	im.end(s.Record, err)
	delete(im.pins, s.pin)
	if err == nil {
		im.settle(s.pin.upTo)
	}
	return err
}
