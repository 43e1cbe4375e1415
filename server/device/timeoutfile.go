package device

import (
	"bytes"

	"github.com/lockstepd/lockstep/server/store"
)

// limitedFile is a metadata file with a limiter: metadata that hangs is as good
// as a disk that does, for what cannot be noted cannot be promised.
type limitedFile struct {
	store.File
	*limiter
}

// ReadAt implements store.File.
func (l limitedFile) ReadAt(p []byte, off int64) (n int, err error) {
	if l.unlimited() {
		return l.File.ReadAt(p, off)
	}
	data, got := make([]byte, len(p)), make(chan int, 1)
	err = l.do("read", func() error {
		n, err := l.File.ReadAt(data, off)
		got <- n
		return err
	})
	select {
	case n = <-got: // with an error, too, some may have been read
		copy(p, data[:n])
	default:
	}
	return n, err
}

// WriteAt implements store.File.
func (l limitedFile) WriteAt(p []byte, off int64) (int, error) {
	if l.unlimited() {
		return l.File.WriteAt(p, off)
	}
	data := bytes.Clone(p)
	err := l.do("write", func() error {
		_, err := l.File.WriteAt(data, off)
		return err
	})
	if err != nil {
		return 0, err
	}
	return len(p), nil
}

// Sync implements store.File.
func (l limitedFile) Sync() error { return l.do("flush", l.File.Sync) }

// Truncate implements store.File.
func (l limitedFile) Truncate(size int64) error {
	return l.do("resize", func() error { return l.File.Truncate(size) })
}

// Punch implements store.File.
func (l limitedFile) Punch(off, n int64) error {
	return l.do("punch", func() error { return l.File.Punch(off, n) })
}

// NextData implements store.File.
func (l limitedFile) NextData(off int64) (start, end int64, err error) {
	got := make(chan [2]int64, 1)
	err = l.do("map", func() error {
		start, end, err := l.File.NextData(off)
		got <- [2]int64{start, end}
		return err
	})
	if err != nil {
		return 0, 0, err
	}
	run := <-got
	return run[0], run[1], nil
}
