package storetest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/lockstepd/lockstep/server/block"
)

const pageSize = 4096

// ErrCrashed is what every operation of a crashed image returns.
var ErrCrashed = errors.New("the simulated machine has crashed")

// content is bytes of some length, sparse. Pages are never changed once they
// are in place, so that copies of the map are copies of the content.
type content struct {
	size  int64
	pages map[int64]*[pageSize]byte
	bad   map[int64]bool // pages that cannot be read until they are written whole
}

func (c *content) clone() content { return content{c.size, maps.Clone(c.pages), maps.Clone(c.bad)} }

// unreadable reports whether a range touches a bad page.
func (c *content) unreadable(off, n int64) bool {
	for i := range c.bad {
		if i*pageSize < off+n && off < (i+1)*pageSize {
			return true
		}
	}
	return false
}

// spares reports whether a change leaves a part of a bad page as it is: a disk
// would have to read that to write the rest.
func (c *content) spares(off, n int64) bool {
	return n > 0 && (off%pageSize != 0 && c.bad[off/pageSize] || (off+n)%pageSize != 0 && c.bad[(off+n)/pageSize])
}

func (c *content) read(p []byte, off int64) {
	for len(p) > 0 {
		n := min(len(p), int(pageSize-off%pageSize))
		if pg := c.pages[off/pageSize]; pg != nil {
			copy(p[:n], pg[off%pageSize:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+int64(n)
	}
}

func (c *content) write(p []byte, off int64) {
	c.size = max(c.size, off+int64(len(p)))
	for len(p) > 0 {
		n := min(len(p), int(pageSize-off%pageSize))
		pg := new([pageSize]byte)
		if old := c.pages[off/pageSize]; old != nil && n < pageSize {
			*pg = *old
		}
		copy(pg[off%pageSize:], p[:n])
		c.pages[off/pageSize] = pg
		if n == pageSize {
			delete(c.bad, off/pageSize)
		}
		p, off = p[n:], off+int64(n)
	}
}

// punch makes a range zeroes; whole pages become holes.
func (c *content) punch(off, n int64) {
	n = min(n, c.size-off)
	for n > 0 {
		part := min(n, pageSize-off%pageSize)
		if part == pageSize {
			delete(c.pages, off/pageSize)
			delete(c.bad, off/pageSize)
		} else if c.pages[off/pageSize] != nil {
			c.write(make([]byte, part), off)
		}
		off, n = off+part, n-part
	}
}

func (c *content) truncate(size int64) {
	if size < c.size {
		c.punch(size, c.size-size)
		maps.DeleteFunc(c.pages, func(i int64, _ *[pageSize]byte) bool { return i*pageSize >= size })
		maps.DeleteFunc(c.bad, func(i int64, _ bool) bool { return i*pageSize >= size })
	}
	c.size = size
}

func (c *content) apply(ch change) {
	switch ch.op {
	case OpWrite:
		c.write(ch.data, ch.off)
	case OpPunch:
		c.punch(ch.off, ch.n)
	case OpTruncate:
		c.truncate(ch.off)
	}
}

// nextData is the first run of pages at or after off.
func (c *content) nextData(off int64) (start, end int64, err error) {
	first := int64(-1)
	for i := range c.pages {
		if (i+1)*pageSize > off && (first < 0 || i < first) {
			first = i
		}
	}
	if first < 0 || off >= c.size {
		return 0, 0, io.EOF
	}
	last := first
	for c.pages[last+1] != nil {
		last++
	}
	return max(off, first*pageSize), min(c.size, (last+1)*pageSize), nil
}

// change is one operation that changed content.
type change struct {
	op   Op
	off  int64
	n    int64
	data []byte
}

// pieces cuts a change at multiples of sector, since that much is written whole
// or not at all.
func (ch change) pieces(sector int64) []change {
	if ch.op == OpTruncate {
		return []change{ch}
	}
	var out []change
	for at := ch.off; at < ch.off+ch.n; {
		end := min(ch.off+ch.n, (at/sector+1)*sector)
		piece := change{op: ch.op, off: at, n: end - at}
		if ch.data != nil {
			piece.data = ch.data[at-ch.off : end-ch.off]
		}
		out = append(out, piece)
		at = end
	}
	return out
}

// Image is storage in memory: what is durable, and what was written since the
// last sync. Its methods are safe for concurrent use.
type Image struct {
	mu      sync.Mutex // guards all below; nothing waits under it
	durable content
	now     content
	pending []change // since durable, in order
	pins    map[*pin]bool
	faults  []*Injection
	journal []Record
	keepLog bool
	onOp    func(Record)
	crashed bool
	ops     int
}

// NewImage returns an image of size bytes of zeroes.
func NewImage(size int64) *Image {
	empty := content{size: size, pages: make(map[int64]*[pageSize]byte)}
	return &Image{durable: empty, now: empty.clone(), pins: make(map[*pin]bool)}
}

// NewImageFrom returns an image with the given content, all of it durable.
func NewImageFrom(data []byte) *Image {
	im := NewImage(int64(len(data)))
	im.durable.write(data, 0)
	im.now = im.durable.clone()
	return im
}

// pin marks how much of pending a sync that is under way covers.
type pin struct{ upTo int }

// settle makes the first n pending changes durable.
func (im *Image) settle(n int) {
	for _, ch := range im.pending[:n] {
		im.durable.apply(ch)
	}
	im.pending = slices.Delete(im.pending, 0, n)
	for p := range im.pins {
		p.upTo = max(0, p.upTo-n)
	}
}

func (im *Image) change(ch change) {
	if ch.data != nil {
		ch.data = slices.Clone(ch.data)
	}
	im.now.apply(ch)
	im.pending = append(im.pending, ch)
}

// Crash says what of the unsynced changes survives.
type Crash struct {
	Seed   uint64
	Lost   float64 // share of sectors that are lost, 0 to 1
	Sector int64   // what is written whole or not at all; 512 if 0

	// Exact, if not nil, replaces chance: the first Changes unsynced changes
	// survive whole, and the first Bytes bytes of the next.
	Exact *Cut
}

// Cut is an exact point in the unsynced changes.
type Cut struct {
	Changes int
	Bytes   int64
}

// CrashClone returns what a crash now would leave. The image itself goes on.
func (im *Image) CrashClone(c Crash) *Image {
	im.mu.Lock()
	left := im.durable.clone()
	pending := slices.Clone(im.pending)
	im.mu.Unlock()
	if c.Exact != nil {
		cutShort(&left, pending, *c.Exact)
	} else {
		lose(&left, pending, c)
	}
	return &Image{durable: left, now: left.clone(), pins: make(map[*pin]bool)}
}

// Fork returns a copy of the image, what is not synced included, without its
// faults, hooks and log.
func (im *Image) Fork() *Image {
	im.mu.Lock()
	defer im.mu.Unlock()
	return &Image{
		durable: im.durable.clone(), now: im.now.clone(), pending: slices.Clone(im.pending), pins: make(map[*pin]bool),
	}
}

func cutShort(left *content, pending []change, cut Cut) {
	for i, ch := range pending {
		switch {
		case i < cut.Changes:
			left.apply(ch)
		case i == cut.Changes && ch.op != OpTruncate && cut.Bytes > 0:
			ch.n = min(ch.n, cut.Bytes)
			if ch.data != nil {
				ch.data = ch.data[:ch.n]
			}
			left.apply(ch)
		}
	}
}

func lose(left *content, pending []change, c Crash) {
	if c.Sector == 0 {
		c.Sector = 512
	}
	rng := rand.New(rand.NewPCG(c.Seed, 0))
	for _, ch := range pending {
		for _, piece := range ch.pieces(c.Sector) {
			if rng.Float64() >= c.Lost {
				left.apply(piece)
			}
		}
	}
}

// Pending lists the sizes of the unsynced changes, for tests that cut at every
// byte.
func (im *Image) Pending() []int64 {
	im.mu.Lock()
	defer im.mu.Unlock()
	out := make([]int64, len(im.pending))
	for i, ch := range im.pending {
		out[i] = ch.n
	}
	return out
}

// Crash makes every operation from now on fail with ErrCrashed, those that hang
// included, so that nothing that still runs changes the image.
func (im *Image) Crash() {
	im.mu.Lock()
	im.crashed = true
	faults := slices.Clone(im.faults)
	im.mu.Unlock()
	for _, f := range faults {
		f.Release()
	}
}

// Bytes returns the content as it reads now, all of it.
func (im *Image) Bytes() []byte {
	im.mu.Lock()
	defer im.mu.Unlock()
	out := make([]byte, im.now.size)
	im.now.read(out, 0)
	return out
}

// Peek reads without being an operation: no fault, no log.
func (im *Image) Peek(p []byte, off int64) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.now.read(p, off)
}

// Poke changes durable content behind everybody's back, as rot does.
func (im *Image) Poke(p []byte, off int64) {
	im.mu.Lock()
	defer im.mu.Unlock()
	im.durable.write(p, off)
	im.now.write(p, off)
}

// Spoil makes the blocks of a range bad, as they go bad on a real disk: what
// they held is gone, and reading them fails until they are written whole. A
// crash does not mend them.
func (im *Image) Spoil(e block.Extent) {
	im.mu.Lock()
	defer im.mu.Unlock()
	e = e.Units()
	rot := bytes.Repeat([]byte("rot!"), int(e.Len)/4)
	for _, c := range []*content{&im.durable, &im.now} {
		if c.bad == nil {
			c.bad = map[int64]bool{}
		}
		c.write(rot, e.Off)
		for at := e.Off; at < e.End(); at += pageSize {
			c.bad[at/pageSize] = true
		}
	}
}

// Bad lists the blocks that cannot be read.
func (im *Image) Bad() (es []block.Extent) {
	im.mu.Lock()
	defer im.mu.Unlock()
	for _, i := range slices.Sorted(maps.Keys(im.now.bad)) {
		es = append(es, block.Extent{Off: i * pageSize, Len: pageSize})
	}
	return es
}

// DataBytes is how much is not holes.
func (im *Image) DataBytes() int64 {
	im.mu.Lock()
	defer im.mu.Unlock()
	return int64(len(im.now.pages)) * pageSize
}

// Equal reports whether two images read the same, and where they first differ.
func (im *Image) Equal(other *Image) (block.Extent, bool) {
	im.mu.Lock()
	a := im.now.clone()
	im.mu.Unlock()
	other.mu.Lock()
	b := other.now.clone()
	other.mu.Unlock()
	touched := slices.Sorted(maps.Keys(a.pages))
	touched = slices.AppendSeq(touched, maps.Keys(b.pages))
	slices.Sort(touched)
	var pa, pb [pageSize]byte
	for _, i := range touched {
		a.read(pa[:], i*pageSize)
		b.read(pb[:], i*pageSize)
		if pa != pb {
			return block.Extent{Off: i * pageSize, Len: pageSize}, false
		}
	}
	return block.Extent{}, a.size == b.size
}

// Op is a kind of operation.
type Op uint8

// The operations.
const (
	OpRead Op = 1 << iota
	OpWrite
	OpPunch
	OpTruncate
	OpSync
	OpMap
	OpAny Op = 1<<iota - 1
)

func (o Op) String() string {
	names := map[Op]string{OpRead: "read", OpWrite: "write", OpPunch: "punch", OpTruncate: "truncate", OpSync: "sync", OpMap: "map"}
	if n, ok := names[o]; ok {
		return n
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Record is one operation that was done.
type Record struct {
	N   int // counts all operations of the image, from 1
	Op  Op
	Off int64
	Len int64
	Err error
}

func (r Record) String() string {
	s := r.Op.String()
	if r.Op != OpSync {
		s += fmt.Sprintf(" %d+%d", r.Off, r.Len)
	}
	if r.Err != nil {
		s += ": " + r.Err.Error()
	}
	return s
}
