package store

import (
	"github.com/lockstepd/lockstep/server/block"
)

// Disk is a backing file or block device. Its methods are safe for concurrent
// use; overlapping concurrent writes leave any mixture. Ranges beyond Size fail
// with block.ErrRange and touch nothing. Errors are IOErrors. Close waits for
// nothing: what is under way goes on, what comes after fails.
type Disk interface {
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	// Sync returns when every write that completed before is durable. Once it
	// failed, content is unknown and it fails for ever.
	Sync() error
	// Trim gives the space back. The range reads as zeroes afterwards.
	Trim(off, n int64) error
	// Zero makes the range read as zeroes: with block.NoHole the space stays
	// allocated; with block.FastZero it fails with block.ErrNotSupported rather
	// than write zeroes one by one.
	Zero(off, n int64, flags block.Flags) error
	// Extents says what of the range is data and what are holes, which read as
	// zeroes: in order, without gaps, from off on, at most max of them.
	Extents(off, n int64, max int) ([]DataExtent, error)
	// Size is how much of the disk is used: the size it was opened with.
	Size() int64
	Path() string
	Close() error
}

// Resizer is a Disk that can be made larger, or smaller, while it is in use.
type Resizer interface {
	// Resize makes the disk hold size bytes. New space reads as zeroes where
	// the disk is a file; a block device must already be large enough.
	Resize(size int64) error
}

// DataExtent is a run of data, or a hole.
type DataExtent struct {
	block.Extent
	Hole bool
}

// DiskOptions say how to open a disk.
type DiskOptions struct {
	// Create makes a sparse file of zeroes where there is none. An empty file
	// is as good as none.
	Create bool
}

// inRange checks an access against a size without overflowing.
func inRange(off, n, size int64) error {
	if off < 0 || n < 0 || off > size || n > size-off {
		return block.ErrRange
	}
	return nil
}
