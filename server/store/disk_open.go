package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/server/block"
)

// OpenDisk opens the disk of a device of size bytes and locks it against other
// users. It reports whether it created the file: such a disk is all zeroes.
func OpenDisk(path string, size int64, opts DiskOptions) (d Disk, created bool, err error) {
	if size <= 0 || size%block.Unit != 0 {
		return nil, false, refuse(path, fmt.Sprintf("a size of %d bytes is not possible", size),
			fmt.Sprintf("sizes are multiples of %d bytes, at least one", block.Unit), block.ErrInvalid)
	}
	info, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist) && opts.Create:
		d, err = createDisk(path, size)
		return d, err == nil, err
	case err != nil:
		return nil, false, explainOpen(path, err)
	case info.Mode().IsRegular():
		return openRegular(path, size, opts.Create)
	case info.Mode()&fs.ModeDevice != 0 && info.Mode()&fs.ModeCharDevice == 0:
		d, err = openBlockDevice(path, size)
		return d, false, err
	case info.IsDir():
		return nil, false, refuse(path, "it is a directory", "name a file in it, or a block device", ErrWrongType)
	}
	return nil, false, refuse(path, "it is "+ErrWrongType.Error(), "name a regular file or a block device", ErrWrongType)
}

func refuse(path, problem, hint string, err error) error {
	return &OpenError{Path: path, Problem: problem, Hint: hint, Err: err}
}

// explainOpen says what to do about an error of opening or looking at a path.
func explainOpen(path string, err error) error {
	hint := "look into the kernel's log"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		hint = "create it, or correct the path"
	case errors.Is(err, fs.ErrPermission):
		hint = "give the daemon's user read and write permission, or run it as another user"
	case errors.Is(err, syscall.EROFS):
		hint = "the file system is mounted read-only: mount it read-write"
	case errors.Is(err, syscall.EBUSY):
		return refuse(path, "it is in use", "unmount it, or stop what holds it", fmt.Errorf("%w: %w", ErrInUse, err))
	case errors.Is(err, syscall.EFBIG), errors.Is(err, syscall.ENOSPC):
		hint = "its file system cannot hold a file of that size"
		err = fmt.Errorf("%w: %w", block.ErrNoSpace, err)
	case errors.Is(err, syscall.ENOTDIR):
		hint = "a part of the path is not a directory"
	}
	return refuse(path, plain(err).Error(), hint, err)
}

func createDisk(path string, size int64) (Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, explainOpen(path, err)
	}
	if err := fillNew(f, size); err != nil {
		// Nobody has seen the file: leave no half-made one behind.
		return nil, errors.Join(err, f.Close(), os.Remove(path))
	}
	return newFileDisk(f, size, false)
}

// fillNew locks an empty file, gives it its size, and makes both it and its
// name durable.
func fillNew(f *os.File, size int64) error {
	if err := lockDisk(f); err != nil {
		return err
	}
	if err := f.Truncate(size); err != nil {
		return explainOpen(f.Name(), err)
	}
	if err := f.Sync(); err != nil {
		return explainOpen(f.Name(), err)
	}
	return syncDir(filepath.Dir(f.Name()))
}

func openRegular(path string, size int64, create bool) (Disk, bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, false, explainOpen(path, err)
	}
	created, err := prepareRegular(f, size, create)
	if err != nil {
		return nil, false, errors.Join(err, f.Close())
	}
	d, err := newFileDisk(f, size, false)
	return d, created, err
}

// prepareRegular locks an existing file and checks its size. An empty file
// where one may be created is what a crash during creation leaves.
func prepareRegular(f *os.File, size int64, create bool) (created bool, err error) {
	if err := lockDisk(f); err != nil {
		return false, err
	}
	has, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return false, explainOpen(f.Name(), err)
	}
	if has == 0 && create {
		return true, fillNew(f, size)
	}
	return false, checkSize(f.Name(), has, size, "make it larger (truncate -s %d), or the device smaller")
}

func openBlockDevice(path string, size int64) (Disk, error) {
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_EXCL, 0)
	if err != nil {
		return nil, explainOpen(path, err)
	}
	has, err := f.Seek(0, io.SeekEnd)
	if err == nil {
		err = checkSize(path, has, size, "make it larger (to %d bytes), or the device smaller")
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return newFileDisk(f, size, true)
}

func checkSize(path string, has, want int64, hint string) error {
	if has >= want {
		return nil
	}
	return refuse(path, fmt.Sprintf("it holds %d bytes, the device needs %d", has, want), fmt.Sprintf(hint, want), ErrTooSmall)
}

// lockDisk takes the lock that keeps two daemons off one file. It goes with
// the descriptor, so no crash leaves it behind.
func lockDisk(f *os.File) error {
	err := flock(f)
	if errors.Is(err, syscall.EWOULDBLOCK) {
		return refuse(f.Name(), "another process has locked it",
			"stop the other daemon, or give this device a disk of its own", fmt.Errorf("%w: %w", ErrInUse, err))
	}
	if err != nil {
		return explainOpen(f.Name(), err)
	}
	return nil
}

func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("cannot open directory %s to make its entries durable: %w", dir, plain(err))
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("cannot make the entries of directory %s durable: %w", dir, plain(err))
	}
	return nil
}

func newFileDisk(f *os.File, size int64, device bool) (Disk, error) {
	d := &fileDisk{fd: newDescriptor(f), path: f.Name(), device: device, align: 1, syncer: newSyncer()}
	d.doSync = d.datasync
	d.size.Store(size)
	if device {
		n, err := unix.IoctlGetInt(int(f.Fd()), unix.BLKSSZGET)
		if err != nil {
			return nil, errors.Join(explainOpen(d.path, err), f.Close())
		}
		d.align = int64(n)
	}
	return d, nil
}

var _ interface {
	Disk
	Resizer
} = (*fileDisk)(nil)

// fileDisk is a Disk on a regular file or a block device.
type fileDisk struct {
	fd     *descriptor
	path   string
	device bool
	align  int64 // what the kernel's zeroing needs: a device's sector, 1 for files
	size   atomic.Int64
	syncer *syncer
	doSync func() error // datasync, bound once
}
