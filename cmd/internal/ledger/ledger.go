package ledger

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"sync"
)

// Device is what is written to: an NBD connection.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Flush() error
	Close() error
}

// Ledger remembers what was written to one device.
type Ledger struct {
	Seed uint64
	Size int64 // bytes, a multiple of Unit

	mu    sync.Mutex // guards the slices, which have an entry per block
	last  []uint32   // the last generation that was given out: none is given out twice
	tried []uint32   // the newest generation that the block may have
	acked []uint32   // the oldest: the last that was acknowledged, or seen
}

// New returns the ledger of a device of size bytes that reads as zeroes.
func New(seed uint64, size int64) *Ledger {
	n := size / Unit
	return &Ledger{Seed: seed, Size: n * Unit, last: make([]uint32, n), tried: make([]uint32, n), acked: make([]uint32, n)}
}

// Write writes len(buf) bytes of new blocks at off; both are multiples of
// Unit. Nobody else may be writing there. An error leaves the blocks as ones
// that may have been written or not.
func (l *Ledger) Write(d io.WriterAt, buf []byte, off int64) error {
	first := off / Unit
	gens := l.try(first, int64(len(buf))/Unit)
	for i, gen := range gens {
		stamp(buf[i*Unit:(i+1)*Unit], l.Seed, first+int64(i), gen)
	}
	if _, err := d.WriteAt(buf, off); err != nil {
		return fmt.Errorf("write %d bytes at %d: %w", len(buf), off, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	copy(l.acked[first:], gens)
	return nil
}

// try gives each of n blocks its next generation.
func (l *Ledger) try(first, n int64) []uint32 {
	l.mu.Lock()
	defer l.mu.Unlock()
	gens := make([]uint32, n)
	for i := range gens {
		unit := first + int64(i)
		l.last[unit]++
		l.tried[unit] = l.last[unit]
		gens[i] = l.last[unit]
	}
	return gens
}

// Read reads len(buf) bytes at off and checks them. Nobody may be writing
// there. What was seen stays: no write that was tried before may change it any
// more, since whoever sent it has given up.
func (l *Ledger) Read(d io.ReaderAt, buf []byte, off int64) error {
	if err := readAt(d, buf, off); err != nil {
		return err
	}
	err := l.check(buf, off)
	if err == nil {
		return nil
	}
	// Whether the answer alone was wrong, or the disk is, leads to different places.
	again := "and cannot be read again"
	if readAt(d, buf, off) == nil {
		again = "and again when it is read once more"
		if l.check(buf, off) == nil {
			again = "but right when it is read once more"
		}
	}
	return &Violation{fmt.Errorf("%w, %s", err, again)}
}

// readAt fills buf. A reader may say at its end that it is at its end; a
// connection that is lost says the same and has read nothing.
func readAt(d io.ReaderAt, buf []byte, off int64) error {
	n, err := d.ReadAt(buf, off)
	if n < len(buf) {
		return fmt.Errorf("read %d bytes at %d: %w", len(buf), off, cmp.Or(err, io.ErrUnexpectedEOF))
	}
	return nil
}

// check checks what was read at off, and takes note of it.
func (l *Ledger) check(buf []byte, off int64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := 0; i < len(buf); i += Unit {
		unit := (off + int64(i)) / Unit
		gen, err := read(buf[i:i+Unit], l.Seed, unit)
		if err != nil {
			return err
		}
		if gen < l.acked[unit] || gen > l.tried[unit] {
			return fmt.Errorf("block %d has generation %d; %d was acknowledged last, %d tried last",
				unit, gen, l.acked[unit], l.tried[unit])
		}
		l.acked[unit], l.tried[unit] = gen, gen
	}
	return nil
}

// Violation is a broken promise of the device: it is never to be retried or excused.
type Violation struct{ err error }

func (v *Violation) Error() string { return "acknowledged data is wrong: " + v.err.Error() }
func (v *Violation) Unwrap() error { return v.err }

// Verify reads the whole device and checks it against the ledger.
func (l *Ledger) Verify(d io.ReaderAt) error {
	buf := make([]byte, 1<<20)
	for off := int64(0); off < l.Size; off += int64(len(buf)) {
		n := min(int64(len(buf)), l.Size-off)
		if err := l.Read(d, buf[:n], off); err != nil {
			return err
		}
	}
	return nil
}

// VerifyFile checks a disk that belongs to the device.
func (l *Ledger) VerifyFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := l.Verify(f); err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// Written returns how many bytes of the device hold acknowledged data.
func (l *Ledger) Written() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := int64(0)
	for _, gen := range l.acked {
		if gen > 0 {
			n += Unit
		}
	}
	return n
}
