package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
)

// Where things are in the metadata file.
const (
	sbOff     = 0
	sbSlots   = 2
	logOff    = 16 << 10
	bitmapOff = 1 << 20
)

// Tuning of the activity log.
const (
	// DefaultExtentBytes is small enough for a crash to cost little, large
	// enough for a working set of gigabytes to stay hot.
	DefaultExtentBytes = 4 << 20
	// DefaultExtents times DefaultExtentBytes, just under 5 GB, is what a crash
	// costs at most. (A prime, for no better reason than habit.)
	DefaultExtents = 1237
)

// MetaOptions say how to open or create metadata.
type MetaOptions struct {
	Device string // must be the metadata's
	NodeID int    // must be the metadata's

	// Create makes the metadata if there is none, of a device of Size bytes.
	// Init fills in the rest of what is in it from its first moment on.
	Create  bool
	Size    int64
	Created time.Time
	Init    func(*Superblock)

	// ExtentBytes and Extents are the activity log's extent size and how many
	// can be hot; 0 for the defaults. They take effect at the next clean start.
	ExtentBytes int64
	Extents     int
	// Pressure is called when the log is full of extents whose epochs are not
	// stable: the owner is to make everything up to epoch durable and then call
	// SetStable. It must not block. It may be nil.
	Pressure func(epoch uint64)
	// Wrap, if not nil, is put around the file before anything is done with it.
	Wrap func(File) File
}

func (o MetaOptions) session() logSession {
	s := logSession{extent: o.ExtentBytes, slots: o.Extents}
	if s.extent == 0 {
		s.extent = DefaultExtentBytes
	}
	if s.slots == 0 {
		s.slots = DefaultExtents
	}
	return s
}

// Meta is a device's metadata: superblock, bitmaps, activity log. Its methods
// are safe for concurrent use. An error of a write may pass; after a failed
// sync nothing is written any more, and what is on stable storage is what the
// next open finds.
type Meta struct {
	vol     *volume
	want    logSession // from the options, for the next session
	al      *ActivityLog
	bitmaps [Peers]*Bitmap
	full    *page

	sb      atomic.Pointer[Superblock] // what is durable; replaced, never changed
	sbTurn  turn                       // whoever holds it writes the superblock
	pages   turn                       // whoever holds it writes bitmap pages
	pageBuf []byte                     // belongs to who has pages

	// The ring's end; belongs to who has al.turn.
	session *logSession // nil until the first transaction since opening
	lastSeq uint64

	problems []string   // found on opening
	ring     logState   // found on opening, if the stop was unclean
	closing  sync.Once  // makes Close and Abandon happen once
	closed   error      // outcome of that
	mu       sync.Mutex // guards updates
	updates  []*update  // waiting for the superblock's writer
}

// OpenMeta opens the metadata at path, and locks it against other users.
func OpenMeta(path string, opts MetaOptions) (*Meta, error) {
	f, err := openMetaFile(path, opts)
	if err != nil {
		return nil, err
	}
	m, err := OpenMetaFile(newOSFile(f), path, opts)
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return m, nil
}

func openMetaFile(path string, opts MetaOptions) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) && opts.Create {
		if err := createMeta(path, opts); err != nil {
			return nil, fmt.Errorf("cannot create metadata %s: %w", path, err)
		}
		f, err = os.OpenFile(path, os.O_RDWR, 0)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open metadata %s: %w", path, plain(err))
	}
	if err := flock(f); err != nil {
		err = fmt.Errorf("cannot lock metadata %s: %w: stop the other daemon first (%w)", path, ErrInUse, err)
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// createMeta makes a whole metadata file under another name and then gives it
// its own, so that a crash leaves all of it or nothing.
func createMeta(path string, opts MetaOptions) error {
	tmp := path + ".new"
	f, err := os.OpenFile(tmp, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(FormatMeta(newOSFile(f), opts), f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// FormatMeta writes the metadata of a new device to an empty file. The places
// of superblock and log are written, not left as holes, so that a full file
// system later cannot keep them from being written again.
func FormatMeta(f File, opts MetaOptions) error {
	sb := &Superblock{
		Device: opts.Device, NodeID: opts.NodeID, Size: opts.Size, Created: opts.Created,
		Flags: ALClean, log: opts.session(),
	}
	if opts.Init != nil {
		opts.Init(sb)
		sb.Flags = sb.Flags&^ALDisabled | ALClean
	}
	if err := sb.validate(); err != nil {
		return err
	}
	head := make([]byte, logOff+sb.log.blocks()*logBlockBytes)
	sb.Seq = 1
	sb.encode(head[sbPlace(sb.Seq):])
	if _, err := f.WriteAt(head, 0); err != nil {
		return err
	}
	if err := f.Truncate(metaBytes(sb.Size)); err != nil {
		return err
	}
	return f.Sync()
}

// sbPlace is where the superblock with a sequence number goes.
func sbPlace(seq uint64) int64 { return sbOff + int64(seq%sbSlots)*sbBytes }

// OpenMetaFile is OpenMeta for a file that is open already, and named path in
// messages. An empty one is formatted if opts.Create says so.
func OpenMetaFile(f File, path string, opts MetaOptions) (*Meta, error) {
	if opts.Wrap != nil {
		f = opts.Wrap(f)
	}
	if size, err := f.Size(); err != nil {
		return nil, ioError("size", path, 0, 0, err)
	} else if size == 0 && opts.Create {
		if err := FormatMeta(f, opts); err != nil {
			return nil, fmt.Errorf("cannot create metadata %s: %w", path, plain(err))
		}
	}
	if err := opts.session().validate(); err != nil {
		return nil, err
	}
	if err := migrate(f, path, Level, migrations()); err != nil {
		return nil, err
	}
	img, err := readImage(f, path)
	if err != nil {
		return nil, err
	}
	if err := belongs(img.sb, path, opts); err != nil {
		return nil, err
	}
	next := img.sb.clone()
	if next.log = opts.session(); next.validate() != nil {
		return nil, fmt.Errorf("metadata %s: %w", path, next.validate())
	}
	return newMeta(f, path, img, opts), nil
}

// belongs checks that metadata is of the device and node that it is opened for.
func belongs(sb *Superblock, path string, opts MetaOptions) error {
	switch {
	case sb.Device != opts.Device:
		return fmt.Errorf("metadata %s belongs to device %q, not %q: %w; look for a copied or renamed file",
			path, sb.Device, opts.Device, ErrMismatch)
	case sb.NodeID != opts.NodeID:
		return fmt.Errorf("metadata %s was written by node id %d, this node is %d: %w; look for a state directory that"+
			" was moved between nodes, or a changed id", path, sb.NodeID, opts.NodeID, ErrMismatch)
	}
	return nil
}

func newMeta(f File, path string, img *image, opts MetaOptions) *Meta {
	m := &Meta{
		vol: &volume{file: f, path: path, syncer: newSyncer()}, want: opts.session(), full: img.full, bitmaps: img.bitmaps,
		sbTurn: newTurn(), pages: newTurn(), problems: img.problems, ring: img.ring,
	}
	m.sb.Store(img.sb)
	m.al = &ActivityLog{log: m, pressure: opts.Pressure, turn: newTurn(), wake: make(chan struct{}, 1)}
	m.al.reset(m.want)
	if m.Unclean() {
		m.al.ready = ErrNotRecovered
	}
	return m
}

// Path names the file, for messages.
func (m *Meta) Path() string { return m.vol.path }

// Superblock returns what is durable now.
func (m *Meta) Superblock() Superblock { return *m.sb.Load().clone() }

// Bitmap returns the bitmap of the peer with a node id.
func (m *Meta) Bitmap(peer int) *Bitmap { return m.bitmaps[peer] }

// AL returns the activity log.
func (m *Meta) AL() *ActivityLog { return m.al }

// Problems lists what was found on opening and mended or made up for, for the
// log.
func (m *Meta) Problems() []string { return m.problems }

// MemoryUsage is what the bitmaps take, in bytes.
func (m *Meta) MemoryUsage() int64 {
	n := int64(0)
	for _, b := range m.bitmaps {
		n += b.memory()
	}
	return n
}

// Close saves the bitmaps and closes the file. Where no write is under way and
// all that were are durable everywhere, the next start has nothing to recover;
// otherwise the hot extents are what it finds. It waits for I/O under way.
func (m *Meta) Close() error {
	m.closing.Do(func() {
		m.al.stop()
		m.closed = errors.Join(m.save(), m.shut())
	})
	return m.closed
}

// Abandon closes the file and writes nothing: what is on stable storage counts.
// It is for metadata whose storage failed or hangs, and waits for nothing.
func (m *Meta) Abandon() error {
	m.closing.Do(func() {
		m.al.Halt()
		m.closed = m.shut()
	})
	return m.closed
}

func (m *Meta) save() error {
	if err := m.WriteBitmaps(); err != nil {
		return err
	}
	if m.session == nil || !m.al.quiet() {
		return nil
	}
	return m.update(func(s *Superblock) { s.Flags |= ALClean })
}

func (m *Meta) shut() error {
	m.vol.syncer.fail(fmt.Errorf("metadata %s: %w", m.vol.path, ErrClosed))
	return ioError("close", m.vol.path, 0, 0, m.vol.file.Close())
}

// Resize changes the size of the device. New units are unmarked; what was known
// of units beyond the end is forgotten. No write may be under way.
func (m *Meta) Resize(size int64) error {
	old := m.sb.Load().Size
	if size > old {
		// What a larger device once left beyond the end must be gone before it
		// counts again.
		if err := m.extend(old, size); err != nil {
			return err
		}
	}
	if err := m.update(func(s *Superblock) { s.Size = size }); err != nil {
		return err
	}
	for _, b := range m.bitmaps {
		b.resize(size)
	}
	return nil
}

// extend makes the file as long as a device of a larger size needs, and empties
// it beyond the group that holds the old end. In that group, what is beyond the
// end is dropped on reading, and marked to be written.
func (m *Meta) extend(from, to int64) error {
	if to > MaxSize {
		return fmt.Errorf("metadata %s: a device has at most %d bytes, not %d", m.vol.path, int64(MaxSize), to)
	}
	m.pages.take()
	defer m.pages.release()
	off, end := metaBytes(from), metaBytes(to)
	if off == end {
		return nil
	}
	if err := m.vol.truncate(end); err != nil {
		return err
	}
	if err := m.vol.punch(off, end-off); err != nil {
		return err
	}
	return m.vol.sync()
}

// metaBytes is how long the metadata file of a device of size bytes is. Most of
// it is a hole. It may be longer, if the device was larger once.
func metaBytes(size int64) int64 {
	return bitmapOff + int64(groupsOf(size/block.Unit))*groupBytes
}
