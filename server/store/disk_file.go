package store

import (
	"errors"
	"io"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/server/block"
)

func (d *fileDisk) Path() string { return d.path }

func (d *fileDisk) Size() int64 { return d.size.Load() }

func (d *fileDisk) wrap(op string, off, n int64, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, os.ErrClosed) {
		err = ErrClosed
	}
	return ioError(op, d.path, off, n, err)
}

func (d *fileDisk) check(op string, off, n int64) error {
	return d.wrap(op, off, n, inRange(off, n, d.Size()))
}

func (d *fileDisk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.check("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := d.fd.f.ReadAt(p, off)
	return n, d.wrap("read", off, int64(len(p)), err)
}

func (d *fileDisk) WriteAt(p []byte, off int64) (int, error) {
	if err := d.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	n, err := d.fd.f.WriteAt(p, off)
	return n, d.wrap("write", off, int64(len(p)), err)
}

func (d *fileDisk) Sync() error {
	d.syncer.note()
	return d.syncer.sync(d.doSync)
}

func (d *fileDisk) datasync() error { return d.wrap("sync", 0, 0, d.fd.datasync()) }

func (d *fileDisk) Trim(off, n int64) error {
	if err := d.check("trim", off, n); err != nil {
		return err
	}
	return d.wrap("trim", off, n, d.zero(off, n, 0))
}

func (d *fileDisk) Zero(off, n int64, flags block.Flags) error {
	if err := d.check("zero", off, n); err != nil {
		return err
	}
	return d.wrap("zero", off, n, d.zero(off, n, flags))
}

// zero asks the kernel to zero whole sectors and writes what is left over at
// either end by hand.
func (d *fileDisk) zero(off, n int64, flags block.Flags) error {
	first := (off + d.align - 1) / d.align * d.align
	last := (off + n) / d.align * d.align
	if first >= last {
		return d.writeZeroes(off, n)
	}
	if err := d.zeroAligned(first, last-first, flags); err != nil {
		return err
	}
	if err := d.writeZeroes(off, first-off); err != nil {
		return err
	}
	return d.writeZeroes(last, off+n-last)
}

func (d *fileDisk) zeroAligned(off, n int64, flags block.Flags) error {
	for _, try := range d.ways(flags) {
		if err := try(off, n); !errors.Is(err, unix.EOPNOTSUPP) {
			return err
		}
	}
	if flags&block.FastZero != 0 {
		return unix.EOPNOTSUPP
	}
	return d.writeZeroes(off, n)
}

// ways are the kernel's ways of zeroing that fit flags, the best one first.
//
// On a block device a punched hole is zeroed by the device itself or not at
// all, and may be unmapped; zeroing a range keeps it mapped but may write
// zeroes block by block, which is not fast.
func (d *fileDisk) ways(flags block.Flags) []func(off, n int64) error {
	noHole, fast := flags&block.NoHole != 0, flags&block.FastZero != 0
	switch {
	case noHole && d.device && fast:
		return nil
	case noHole && d.device:
		return []func(off, n int64) error{d.zeroRange}
	case noHole:
		return []func(off, n int64) error{d.zeroRange, d.reallocate}
	case d.device && !fast:
		return []func(off, n int64) error{d.punch, d.zeroRange}
	}
	return []func(off, n int64) error{d.punch}
}

func (d *fileDisk) punch(off, n int64) error {
	return d.fd.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (d *fileDisk) zeroRange(off, n int64) error {
	return d.fd.fallocate(unix.FALLOC_FL_ZERO_RANGE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// reallocate is zeroRange for file systems that have only its halves.
func (d *fileDisk) reallocate(off, n int64) error {
	if err := d.punch(off, n); err != nil {
		return err
	}
	return d.fd.fallocate(unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (d *fileDisk) writeZeroes(off, n int64) error {
	zeroes := make([]byte, min(n, 256<<10))
	for n > 0 {
		w, err := d.fd.f.WriteAt(zeroes[:min(n, int64(len(zeroes)))], off)
		if err != nil {
			return err
		}
		off, n = off+int64(w), n-int64(w)
	}
	return nil
}

func (d *fileDisk) Extents(off, n int64, max int) ([]DataExtent, error) {
	if err := d.check("map", off, n); err != nil {
		return nil, err
	}
	if n == 0 || max <= 0 {
		return nil, nil
	}
	if d.device {
		// Asked for its end only to find out whether it is still open.
		if _, _, err := d.fd.allData(0); err != nil {
			return nil, d.wrap("map", off, n, err)
		}
		return []DataExtent{{Extent: block.Extent{Off: off, Len: n}}}, nil
	}
	out, err := extents(d.fd, off, n, max)
	return out, d.wrap("map", off, n, err)
}

// extents walks data and holes in turn. A file system that cannot tell has all
// data.
func extents(fd *descriptor, off, n int64, max int) ([]DataExtent, error) {
	var out []DataExtent
	for end := off + n; off < end && len(out) < max; {
		data, next, err := fd.nextData(off)
		switch {
		case errors.Is(err, io.EOF):
			return append(out, DataExtent{block.Extent{Off: off, Len: end - off}, true}), nil
		case err != nil:
			return nil, err
		case data > off:
			data = min(data, end)
			out = append(out, DataExtent{block.Extent{Off: off, Len: data - off}, true})
			off = data
		default:
			next = min(next, end)
			out = append(out, DataExtent{block.Extent{Off: off, Len: next - off}, false})
			off = next
		}
	}
	return out, nil
}

// Resize changes how much of the disk is used. A file is made larger where it
// has to be, never smaller: what is beyond the end is given back by hand.
func (d *fileDisk) Resize(size int64) error {
	if size <= 0 || size%block.Unit != 0 {
		return d.wrap("resize", 0, size, block.ErrInvalid)
	}
	has, err := d.fd.f.Seek(0, io.SeekEnd)
	if err != nil {
		return d.wrap("resize", 0, size, err)
	}
	if has < size {
		if d.device {
			return checkSize(d.path, has, size, "make it larger first (to %d bytes)")
		}
		if err := d.grow(size); err != nil {
			return err
		}
	}
	d.size.Store(size)
	return nil
}

func (d *fileDisk) grow(size int64) error {
	if err := d.fd.f.Truncate(size); err != nil {
		return d.wrap("resize", 0, size, err)
	}
	return d.wrap("resize", 0, size, d.fd.f.Sync())
}

func (d *fileDisk) Close() error {
	err := d.fd.close()
	if errors.Is(err, os.ErrClosed) {
		return nil
	}
	return d.wrap("close", 0, 0, err)
}

// descriptor is an open file with the system calls that package os lacks. They
// hold a reference to the file while they run, so that Close cannot have them
// hit another file that got the same number; and they do not allocate.
type descriptor struct {
	f     *os.File
	conn  syscall.RawConn
	calls chan *call
}

// call is one system call with its arguments and result.
type call struct {
	run    func(fd uintptr) // bound to do, once
	op     callOp
	mode   uint32
	off, n int64
	ret    int64
	err    error
}

type callOp uint8

const (
	callDatasync callOp = iota
	callFallocate
	callSeek
)

// keptCalls is how many idle calls a descriptor keeps: as many as are commonly
// under way at once.
const keptCalls = 8

func newDescriptor(f *os.File) *descriptor {
	d := &descriptor{f: f, calls: make(chan *call, keptCalls)}
	conn, err := f.SyscallConn()
	if err != nil {
		panic("store: an open file has no system calls: " + err.Error())
	}
	d.conn = conn
	return d
}

// close gives up the file's lock, if it has one, and closes it. Else the lock would
// last as long as a read that is under way, or a child that was forked and is not
// another program yet, and who opens the file next would be refused.
func (d *descriptor) close() error {
	_ = d.conn.Control(func(fd uintptr) { _ = unix.Flock(int(fd), unix.LOCK_UN) })
	return d.f.Close()
}

func (d *descriptor) do(op callOp, mode uint32, off, n int64) (int64, error) {
	var c *call
	select {
	case c = <-d.calls:
	default:
		c = new(call)
		c.run = c.do
	}
	c.op, c.mode, c.off, c.n = op, mode, off, n
	err := os.ErrClosed // all that Control can fail with
	if d.conn.Control(c.run) == nil {
		err = c.err
	}
	ret := c.ret
	select {
	case d.calls <- c:
	default:
	}
	return ret, err
}

func (c *call) do(fd uintptr) {
	for {
		switch c.op {
		case callDatasync:
			c.err = unix.Fdatasync(int(fd))
		case callFallocate:
			c.err = unix.Fallocate(int(fd), c.mode, c.off, c.n)
		case callSeek:
			c.ret, c.err = unix.Seek(int(fd), c.off, int(c.mode))
		}
		if !errors.Is(c.err, unix.EINTR) {
			return
		}
	}
}

func (d *descriptor) datasync() error {
	_, err := d.do(callDatasync, 0, 0, 0)
	return err
}

func (d *descriptor) fallocate(mode uint32, off, n int64) error {
	if n == 0 {
		return nil
	}
	_, err := d.do(callFallocate, mode, off, n)
	return err
}

// nextData returns the next run of data at or after off; io.EOF when there is
// none. Where the file system does not know, everything up to the end is data.
func (d *descriptor) nextData(off int64) (start, end int64, err error) {
	start, err = d.do(callSeek, unix.SEEK_DATA, off, 0)
	if errors.Is(err, unix.ENXIO) {
		return 0, 0, io.EOF
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return d.allData(off)
	}
	if err != nil {
		return 0, 0, err
	}
	end, err = d.do(callSeek, unix.SEEK_HOLE, start, 0)
	if errors.Is(err, unix.ENXIO) {
		// Punched or cut between the two questions.
		return 0, 0, io.EOF
	}
	return start, end, err
}

func (d *descriptor) allData(off int64) (start, end int64, err error) {
	end, err = d.do(callSeek, io.SeekEnd, 0, 0)
	if err == nil && off >= end {
		err = io.EOF
	}
	return off, end, err
}
