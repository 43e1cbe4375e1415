package store

import "github.com/lockstepd/lockstep/server/block"

// NewAccount returns an activity log of the same rules as that of metadata, kept
// in memory alone: what is hot is no more after a crash. It is for a primary
// without a disk. Its replicas keep logs, and can take what it sends only as
// long as that fits them: if each had filled its own with other extents, they
// would wait for each other. Of o the size of the log and Pressure count.
func NewAccount(o MetaOptions) *ActivityLog {
	l := &ActivityLog{log: unwritten{}, pressure: o.Pressure, turn: newTurn(), wake: make(chan struct{}, 1)}
	l.reset(o.session())
	return l
}

// unwritten is the writer of a log that is kept in memory.
type unwritten struct{}

func (unwritten) open() error                        { return nil }
func (unwritten) writeBitmaps([]block.Extent) error  { return nil }
func (unwritten) append([]logUpdate, []uint32) error { return nil }
func (unwritten) disable(bool) error                 { return nil }
