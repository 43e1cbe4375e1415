package store

import (
	"errors"
	"io"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// File is what a metadata file is kept in: a file of the system, or one in
// memory that can fail and crash. Its methods are safe for concurrent use.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Sync returns when everything that was written before is durable.
	Sync() error
	Truncate(size int64) error
	// Punch makes a range read as zeroes and gives its space back where it can.
	Punch(off, n int64) error
	// NextData returns the first run of what may be other than zeroes at or
	// after off; io.EOF when there is none.
	NextData(off int64) (start, end int64, err error)
	Size() (int64, error)
	Close() error
}

// osFile is a File of the system.
type osFile struct{ fd *descriptor }

func (f osFile) ReadAt(p []byte, off int64) (int, error)  { return f.fd.f.ReadAt(p, off) }
func (f osFile) WriteAt(p []byte, off int64) (int, error) { return f.fd.f.WriteAt(p, off) }
func (f osFile) Sync() error                              { return f.fd.datasync() }
func (f osFile) Truncate(size int64) error                { return f.fd.f.Truncate(size) }
func (f osFile) Close() error                             { return f.fd.f.Close() }

func (f osFile) NextData(off int64) (start, end int64, err error) { return f.fd.nextData(off) }

func (f osFile) Size() (int64, error) {
	info, err := f.fd.f.Stat()
	if err != nil {
		return 0, err
	}
	return info.Size(), nil
}

// Punch writes zeroes where the file system has no holes.
func (f osFile) Punch(off, n int64) error {
	err := f.fd.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		return err
	}
	zeroes := make([]byte, min(n, slotBytes))
	for n > 0 {
		w, err := f.WriteAt(zeroes[:min(n, slotBytes)], off)
		if err != nil {
			return err
		}
		off, n = off+int64(w), n-int64(w)
	}
	return nil
}

var _ File = osFile{}

func newOSFile(f *os.File) File { return osFile{newDescriptor(f)} }

// volume is the metadata file as the parts of Meta write it: errors name the
// file, and the first failed sync is final, since nobody knows what it lost.
type volume struct {
	file File
	path string

	// mu guards what is below.
	mu      sync.Mutex
	written uint64 // writes that completed
	synced  uint64 // of those, known to be durable
	failed  error
}

// err is the failure after which nothing more is written.
func (v *volume) err() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.failed
}

func (v *volume) fail(err error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.failed == nil {
		v.failed = err
	}
	return err
}

func (v *volume) write(p []byte, off int64) error {
	if err := v.err(); err != nil {
		return err
	}
	_, err := v.file.WriteAt(p, off)
	v.wrote()
	return ioError("write", v.path, off, int64(len(p)), err)
}

func (v *volume) punch(off, n int64) error {
	if err := v.err(); err != nil {
		return err
	}
	err := v.file.Punch(off, n)
	v.wrote()
	return ioError("punch", v.path, off, n, err)
}

// truncate makes the file at least size bytes long.
func (v *volume) truncate(size int64) error {
	if err := v.err(); err != nil {
		return err
	}
	has, err := v.file.Size()
	if err == nil && has < size {
		err = v.file.Truncate(size)
		v.wrote()
	}
	return ioError("extend", v.path, 0, size, err)
}

// wrote counts a write, even a failed one: it may have written a part.
func (v *volume) wrote() {
	v.mu.Lock()
	v.written++
	v.mu.Unlock()
}

// sync makes every write that completed before durable; it does nothing where
// that is so already.
func (v *volume) sync() error {
	v.mu.Lock()
	upTo, done, failed := v.written, v.synced == v.written, v.failed
	v.mu.Unlock()
	if failed != nil || done {
		return failed
	}
	if err := v.file.Sync(); err != nil {
		return v.fail(ioError("sync", v.path, 0, 0, err))
	}
	v.mu.Lock()
	v.synced = max(v.synced, upTo)
	v.mu.Unlock()
	return nil
}

// turn lets one goroutine in at a time, for I/O of which two must not mix. It
// is a channel and not a mutex so that waiting can be given up, and so that
// virtual time goes on while somebody waits.
type turn chan struct{}

func newTurn() turn     { return make(turn, 1) }
func (t turn) take()    { t <- struct{}{} }
func (t turn) release() { <-t }
