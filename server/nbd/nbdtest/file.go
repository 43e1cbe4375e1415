package nbdtest

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd"
)

// File is a disk in a regular file.
type File struct {
	f    *os.File
	fd   int
	info nbd.Info
}

// OpenFile opens a disk in an existing file.
func OpenFile(name, path string) (*File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &File{f, int(f.Fd()), nbd.Info{
		Name: name, Size: st.Size(), Description: path,
		Trim: true, Zeroes: true, Cache: true, MultiConn: true,
	}}, nil
}

// CreateFile makes a disk in a new, sparse file.
func CreateFile(name, path string, size int64) (*File, error) {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return nil, err
	}
	if err := os.Truncate(path, size); err != nil {
		return nil, err
	}
	return OpenFile(name, path)
}

// Close closes the file.
func (d *File) Close() error { return d.f.Close() }

// Info describes the disk.
func (d *File) Info() nbd.Info { return d.info }

// Do carries out r.
func (d *File) Do(r *block.Request) error {
	if err := d.do(r); err != nil {
		return fmt.Errorf("%v %v: %w: %w", r.Op, r.Extent(), block.ErrIO, err)
	}
	if r.Flags&block.FUA != 0 {
		return unix.Fdatasync(d.fd)
	}
	return nil
}

func (d *File) do(r *block.Request) error {
	const punch = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE
	switch r.Op {
	case block.Read:
		return all(r.Data, r.Off, func(p []byte, off int64) (int, error) { return unix.Pread(d.fd, p, off) })
	case block.Write:
		return all(r.Data, r.Off, func(p []byte, off int64) (int, error) { return unix.Pwrite(d.fd, p, off) })
	case block.Flush:
		return unix.Fdatasync(d.fd)
	case block.Trim:
		return unix.Fallocate(d.fd, punch, r.Off, r.Len)
	case block.WriteZeroes:
		if err := unix.Fallocate(d.fd, punch, r.Off, r.Len); err != nil || r.Flags&block.NoHole == 0 {
			return err
		}
		return unix.Fallocate(d.fd, 0, r.Off, r.Len)
	}
	return nil
}

func all(p []byte, off int64, do func([]byte, int64) (int, error)) error {
	for len(p) > 0 {
		n, err := do(p, off)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return errors.New("the file ends too soon")
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Extents asks the file system for holes.
func (d *File) Extents(off, length int64, most int) ([]nbd.Extent, error) {
	var found []nbd.Extent
	for at, end := off, off+length; at < end && len(found) < most; {
		data, err := unix.Seek(d.fd, at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			data, err = end, nil // no data behind at
		}
		if err != nil {
			return nil, err
		}
		next, hole := min(data, end), true
		if data == at {
			hole = false
			if next, err = unix.Seek(d.fd, at, unix.SEEK_HOLE); err != nil {
				return nil, err
			}
			next = min(next, end)
		}
		found = append(found, nbd.Extent{Off: at, Len: next - at, Hole: hole, Zero: hole})
		at = next
	}
	return found, nil
}
