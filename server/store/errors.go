package store

import (
	"errors"
	"fmt"
	"io"
	"syscall"

	"github.com/lockstepd/lockstep/server/block"
)

// Errors of opening a disk or a metadata file; the returned error wraps one of
// them and says which file, and what to do.
var (
	ErrInUse     = errors.New("in use")
	ErrTooSmall  = errors.New("too small")
	ErrWrongType = errors.New("neither a regular file nor a block device")
	ErrMismatch  = errors.New("metadata of something else")
	ErrTooNew    = errors.New("written by a newer version")
	// ErrClosed is what everything returns after Close.
	ErrClosed = errors.New("closed")
	// ErrNotRecovered is returned by the activity log of a metadata file that
	// was not closed cleanly, until Meta.Recover was called.
	ErrNotRecovered = errors.New("the metadata was not closed cleanly and has not been recovered yet")
	// ErrTooManyExtents is returned by Activate for more than the log can hold
	// at once; ActivityLog.MaxSpan says how much that is.
	ErrTooManyExtents = errors.New("touches more extents than the activity log takes at once")
)

// ErrCorrupt is returned for metadata that cannot be trusted. It is never
// repaired by itself: what it held decides who has the newer data.
type ErrCorrupt struct {
	Path   string
	Reason string
}

func (e *ErrCorrupt) Error() string {
	return fmt.Sprintf("metadata %s is damaged: %s; move the file away to have this node's copy rebuilt from a peer,"+
		" or put back a copy of it made while the device was down", e.Path, e.Reason)
}

// OpenError says why a disk cannot be used and what would change that.
type OpenError struct {
	Path    string
	Problem string
	Hint    string
	Err     error
}

func (e *OpenError) Error() string {
	return fmt.Sprintf("cannot use disk %s: %s (%s)", e.Path, e.Problem, e.Hint)
}

func (e *OpenError) Unwrap() error { return e.Err }

// IOError is a failed operation on a disk or metadata file. It is both the
// block error that a consumer is to be told and the system's own.
type IOError struct {
	Op   string
	Path string
	Off  int64
	Len  int64
	Kind error // block.ErrNoSpace, block.ErrNotSupported, block.ErrRange or block.ErrIO
	Err  error
}

func (e *IOError) Error() string {
	if e.Len == 0 {
		return fmt.Sprintf("%s %s: %v", e.Op, e.Path, e.Err)
	}
	return fmt.Sprintf("%s %s: %d bytes at %d: %v", e.Op, e.Path, e.Len, e.Off, e.Err)
}

// Unwrap makes both errors known to errors.Is.
func (e *IOError) Unwrap() []error { return []error{e.Kind, e.Err} }

// WrapIO gives an error of an operation on a disk the form that all have; nil
// stays nil. It is for other implementations of Disk.
func WrapIO(op, path string, off, n int64, err error) error { return ioError(op, path, off, n, err) }

// ioError wraps err, or returns nil.
func ioError(op, path string, off, n int64, err error) error {
	if err == nil {
		return nil
	}
	return &IOError{Op: op, Path: path, Off: off, Len: n, Kind: kindOf(err), Err: plain(err)}
}

// kindOf maps the system's error to the one a consumer is told.
func kindOf(err error) error {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return block.ErrNoSpace
	case errors.Is(err, syscall.EOPNOTSUPP), errors.Is(err, syscall.ENOSYS):
		return block.ErrNotSupported
	case errors.Is(err, block.ErrRange):
		return block.ErrRange
	case errors.Is(err, block.ErrInvalid):
		return block.ErrInvalid
	}
	return block.ErrIO
}

// plain drops the operation and path that package os puts before an error,
// since ours says them better, and names the end of a file for what it is.
func plain(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the file is shorter than it was when it was opened: %w", io.ErrUnexpectedEOF)
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}
