package storetest

import (
	"sync/atomic"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
)

// Disk is an image used as a disk.
type Disk struct {
	im     *Image
	path   string
	size   atomic.Int64
	closed atomic.Bool
}

var _ interface {
	store.Disk
	store.Resizer
} = (*Disk)(nil)

// Disk opens the image as a disk that calls itself path. It may be opened again
// after a Close.
func (im *Image) Disk(path string) *Disk { return im.DiskOf(path, im.Size()) }

// DiskOf is Disk of which size bytes are used, as with store.OpenDisk.
func (im *Image) DiskOf(path string, size int64) *Disk {
	d := &Disk{im: im, path: path}
	d.size.Store(size)
	return d
}

// Size is how large the image is.
func (im *Image) Size() int64 {
	im.mu.Lock()
	defer im.mu.Unlock()
	return im.now.size
}

// NewDisk returns a disk of size bytes of zeroes.
func NewDisk(path string, size int64) *Disk { return NewImage(size).Disk(path) }

// Image is the storage under the disk.
func (d *Disk) Image() *Image { return d.im }

// Path implements store.Disk.
func (d *Disk) Path() string { return d.path }

// Size implements store.Disk.
func (d *Disk) Size() int64 { return d.size.Load() }

func (d *Disk) begin(op Op, off, n int64) (Record, int64, error) {
	if d.closed.Load() {
		return Record{}, 0, store.ErrClosed
	}
	if size := d.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return Record{}, 0, block.ErrRange
	}
	return d.im.begin(op, off, n)
}

// wrap gives an error the form that a real disk's has.
func (d *Disk) wrap(op string, off, n int64, err error) error {
	return store.WrapIO(op, d.path, off, n, err)
}

// ReadAt implements store.Disk.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	r, _, err := d.begin(OpRead, off, int64(len(p)))
	if err != nil {
		return 0, d.wrap("read", off, int64(len(p)), err)
	}
	n, err := d.im.read(r, p)
	return n, d.wrap("read", off, int64(len(p)), err)
}

// WriteAt implements store.Disk.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	r, done, err := d.begin(OpWrite, off, int64(len(p)))
	n, err := d.im.write(r, p, done, err)
	return n, d.wrap("write", off, int64(len(p)), err)
}

// Sync implements store.Disk.
func (d *Disk) Sync() error {
	s, _, err := d.im.beginSync(d.closed.Load())
	return d.wrap("sync", 0, 0, d.im.finishSync(s, err))
}

// Trim implements store.Disk.
func (d *Disk) Trim(off, n int64) error {
	r, _, err := d.begin(OpPunch, off, n)
	return d.wrap("trim", off, n, d.im.do(r, change{op: OpPunch, off: off, n: n}, err))
}

// Zero implements store.Disk.
func (d *Disk) Zero(off, n int64, flags block.Flags) error {
	r, _, err := d.begin(OpPunch, off, n)
	ch := change{op: OpPunch, off: off, n: n}
	if flags&block.NoHole != 0 {
		ch.op, ch.data = OpWrite, make([]byte, n)
	}
	return d.wrap("zero", off, n, d.im.do(r, ch, err))
}

// Extents implements store.Disk.
func (d *Disk) Extents(off, n int64, max int) ([]store.DataExtent, error) {
	r, _, err := d.begin(OpMap, off, n)
	if err != nil {
		return nil, d.wrap("map", off, n, err)
	}
	d.im.mu.Lock()
	defer d.im.mu.Unlock()
	d.im.end(r, nil)
	var out []store.DataExtent
	for end := off + n; off < end && len(out) < max; {
		start, stop, err := d.im.now.nextData(off)
		hole := err != nil || start > off
		switch {
		case err != nil:
			stop = end
		case hole:
			stop = start
		}
		stop = min(stop, end)
		out = append(out, store.DataExtent{Extent: block.Extent{Off: off, Len: stop - off}, Hole: hole})
		off = stop
	}
	return out, nil
}

// Resize implements store.Resizer. As a file, the image does not shrink.
func (d *Disk) Resize(size int64) error {
	r, _, err := d.im.begin(OpTruncate, size, 0)
	err = d.im.do(r, change{op: OpTruncate, off: max(size, d.im.Size())}, err)
	if err == nil {
		d.size.Store(size)
	}
	return d.wrap("resize", 0, size, err)
}

// Close implements store.Disk.
func (d *Disk) Close() error {
	d.closed.Store(true)
	return nil
}
