// Package nbdtest has backends to test the NBD server and its clients with: a
// disk in memory and one in a file. Both complete a request before Submit
// returns, unless told to hold it.
package nbdtest

import (
	"context"
	"fmt"
	"slices"
	"sync"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd"
)

// Disk carries out requests.
type Disk interface {
	Info() nbd.Info
	Do(r *block.Request) error
	Extents(off, length int64, max int) ([]nbd.Extent, error)
}

// Backend exports disks by name.
type Backend struct {
	// Hook, if set before the server starts, sees every request first; true
	// means that it takes care of its completion.
	Hook func(r *block.Request, b *block.Batch) bool
	// OnOpen, if set, may refuse or delay an open.
	OnOpen func(ctx context.Context, name string, c nbd.ClientInfo) error
	// OnClose, if set, is called when a handle is closed.
	OnClose func(name string) error

	disks map[string]Disk

	// mu guards open.
	mu   sync.Mutex
	open map[string]int
}

// NewBackend exports disks under the names in their Info.
func NewBackend(disks ...Disk) *Backend {
	b := &Backend{disks: make(map[string]Disk), open: make(map[string]int)}
	for _, d := range disks {
		b.disks[d.Info().Name] = d
	}
	return b
}

// List names the disks.
func (b *Backend) List() []string {
	var names []string
	for name := range b.disks {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

// Info describes a disk.
func (b *Backend) Info(name string) (nbd.Info, error) {
	if d := b.disks[name]; d != nil {
		return d.Info(), nil
	}
	return nbd.Info{}, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
}

// Open opens a disk.
func (b *Backend) Open(ctx context.Context, name string, c nbd.ClientInfo) (nbd.Handle, error) {
	d := b.disks[name]
	if d == nil {
		return nil, fmt.Errorf("%w: %q", nbd.ErrUnknownExport, name)
	}
	if b.OnOpen != nil {
		if err := b.OnOpen(ctx, name, c); err != nil {
			return nil, err
		}
	}
	b.count(name, 1)
	return &handle{b, d, name}, nil
}

func (b *Backend) count(name string, by int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.open[name] += by
}

// Opened is how many handles of a disk are open.
func (b *Backend) Opened(name string) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.open[name]
}

type handle struct {
	b *Backend
	Disk
	name string
}

// Submit carries out r at once, or leaves it to the hook.
func (h *handle) Submit(r *block.Request, b *block.Batch) {
	if h.b.Hook != nil && h.b.Hook(r, b) {
		return
	}
	r.Err = h.Do(r)
	r.Done.Complete(r, b)
}

// Close closes the handle.
func (h *handle) Close() error {
	var err error
	if h.b.OnClose != nil {
		err = h.b.OnClose(h.name)
	}
	h.b.count(h.name, -1)
	return err
}

// Memory is a disk in memory, allocated in blocks of 4 KiB.
type Memory struct {
	info nbd.Info

	// mu guards the fields below.
	mu        sync.RWMutex
	data      []byte
	allocated []bool
}

// NewMemory returns an empty disk.
func NewMemory(name string, size int64) *Memory {
	return &Memory{
		info: nbd.Info{
			Name: name, Size: size, Description: "a disk in memory",
			Trim: true, Zeroes: true, FastZero: true, Cache: true, MultiConn: true,
		},
		data:      make([]byte, size),
		allocated: make([]bool, (size+block.Unit-1)/block.Unit),
	}
}

// Change changes how the disk describes itself. It is called before the disk
// is exported.
func (m *Memory) Change(f func(*nbd.Info)) *Memory {
	f(&m.info)
	return m
}

// Info describes the disk.
func (m *Memory) Info() nbd.Info {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.info
}

// Grow makes the disk larger.
func (m *Memory) Grow(size int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.data = append(m.data, make([]byte, size-int64(len(m.data)))...)
	m.allocated = append(m.allocated, make([]bool, int((size+block.Unit-1)/block.Unit)-len(m.allocated))...)
	m.info.Size = size
}

// Do carries out r.
func (m *Memory) Do(r *block.Request) error {
	if r.Op == block.Read {
		m.mu.RLock()
		defer m.mu.RUnlock()
		copy(r.Data, m.data[r.Off:])
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	switch r.Op {
	case block.Write:
		copy(m.data[r.Off:], r.Data)
		m.mark(r.Extent().Units(), true)
	case block.Trim, block.WriteZeroes:
		clear(m.data[r.Off:r.Extent().End()])
		if e := r.Extent(); r.Flags&block.NoHole != 0 {
			m.mark(e.Units(), true)
		} else if e == e.Units() {
			m.mark(e, false)
		}
	}
	return nil
}

func (m *Memory) mark(e block.Extent, allocated bool) {
	for i := e.Off / block.Unit; i < min(e.End()/block.Unit, int64(len(m.allocated))); i++ {
		m.allocated[i] = allocated
	}
}

// Extents says what was written.
func (m *Memory) Extents(off, length int64, most int) ([]nbd.Extent, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var all []nbd.Extent
	for at := off; at < off+length; {
		n := min(block.Unit-at%block.Unit, off+length-at)
		hole := !m.allocated[at/block.Unit]
		if last := len(all) - 1; last >= 0 && all[last].Hole == hole {
			all[last].Len += n
		} else if len(all) == most {
			break
		} else {
			all = append(all, nbd.Extent{Off: at, Len: n, Hole: hole, Zero: hole})
		}
		at += n
	}
	return all, nil
}

// Content is a copy of the disk.
func (m *Memory) Content() []byte {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return slices.Clone(m.data)
}
