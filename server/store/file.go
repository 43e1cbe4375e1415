package store

import (
	"errors"
	"io"
	"os"

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
func (f osFile) Close() error                             { return f.fd.close() }

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
// file, and nothing is written after a sync failed.
type volume struct {
	file   File
	path   string
	syncer *syncer
}

func (v *volume) write(p []byte, off int64) error {
	if err := v.syncer.err(); err != nil {
		return err
	}
	_, err := v.file.WriteAt(p, off)
	v.syncer.note() // even where it failed: a part may be written
	return ioError("write", v.path, off, int64(len(p)), err)
}

func (v *volume) punch(off, n int64) error {
	if err := v.syncer.err(); err != nil {
		return err
	}
	err := v.file.Punch(off, n)
	v.syncer.note() // even where it failed: a part may be written
	return ioError("punch", v.path, off, n, err)
}

// truncate makes the file at least size bytes long.
func (v *volume) truncate(size int64) error {
	if err := v.syncer.err(); err != nil {
		return err
	}
	has, err := v.file.Size()
	if err == nil && has < size {
		err = v.file.Truncate(size)
		v.syncer.note()
	}
	return ioError("extend", v.path, 0, size, err)
}

// sync makes every write that completed before durable; it does nothing where
// that is so already.
func (v *volume) sync() error {
	return v.syncer.sync(func() error { return ioError("sync", v.path, 0, 0, v.file.Sync()) })
}
