package device

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
)

// Backing says where a device's data and metadata are.
type Backing struct {
	Disk, Meta string // paths
	// Extents and ExtentBytes size the activity log; 0 for the defaults.
	Extents     int
	ExtentBytes int64
}

// Open opens, or makes, the disk and metadata of a device and returns the
// device, not started. A disk that lockstep makes is zero on every node, so a
// device of such disks is in sync from the start.
func Open(o Options, bk Backing) (*Device, error) {
	if bk.Disk == "" {
		o.LogExtents, o.LogExtentBytes = bk.Extents, bk.ExtentBytes
		return New(o)
	}
	return Assemble(o, bk,
		func() (store.Disk, bool, error) {
			return store.OpenDisk(bk.Disk, o.Size, store.DiskOptions{Create: true})
		},
		func(mo store.MetaOptions) (*store.Meta, error) { return store.OpenMeta(bk.Meta, mo) })
}

// source is where a device's disk and metadata come from, once or again.
type source struct {
	bk       Backing
	openDisk func() (d store.Disk, created bool, err error)
	openMeta func(store.MetaOptions) (*store.Meta, error)
}

// opened is what a source gave.
type opened struct {
	disk store.Disk
	meta *store.Meta
	// After an unclean stop: the stream that was followed, and the marks before
	// those of the activity log were added.
	stream uint64
	before *[replication.MaxNodes][]block.Extent
	limit  *limiter // of the metadata
}

// Assemble is Open with ways to open the disk, which says whether it is new
// and zero, and the metadata.
func Assemble(o Options, bk Backing, openDisk func() (store.Disk, bool, error), openMeta func(store.MetaOptions) (*store.Meta, error)) (*Device, error) {
	src := &source{bk, openDisk, openMeta}
	var d *Device
	got, err := src.open(o, func(epoch uint64) { d.Pressure(epoch) })
	if err != nil {
		return nil, err
	}
	o.Disk, o.Meta = got.disk, got.meta
	o.LogExtents, o.LogExtentBytes = bk.Extents, bk.ExtentBytes
	if d, err = New(o); err != nil {
		return nil, errors.Join(err, got.meta.Abandon(), got.disk.Close())
	}
	d.source = src
	d.recovered(&got)
	return d, nil
}

// recovered takes over what was found after an unclean stop.
func (d *Device) recovered(got *opened) {
	d.metaLimit = got.limit
	d.metaLimit.limit.Store(int64(d.cfg.DiskTimeout))
	d.logStream, d.beforeLog = got.stream, [replication.MaxNodes][]block.Extent{}
	if got.before != nil {
		d.beforeLog = *got.before
	}
}

func (s *source) open(o Options, pressure func(uint64)) (got opened, err error) {
	disk, created, err := s.openDisk()
	if err != nil {
		return got, fmt.Errorf("device %s: %w", o.Name, err)
	}
	limit := newLimiter(s.bk.Meta, o.DiskTimeout)
	meta, err := s.openMeta(store.MetaOptions{
		Wrap:   func(f store.File) store.File { return limitedFile{f, limit} },
		Device: o.Name, NodeID: o.Self, Create: true, Size: o.Size,
		Init:        func(sb *store.Superblock) { initial(sb, o, created) },
		Extents:     s.bk.Extents,
		ExtentBytes: s.bk.ExtentBytes,
		Pressure:    pressure,
	})
	if err != nil {
		return got, errors.Join(fmt.Errorf("device %s: %w", o.Name, err), disk.Close())
	}
	if err := checkMeta(meta, created, o); err != nil {
		return got, errors.Join(err, meta.Abandon(), disk.Close())
	}
	if err := fit(disk, meta, o); err != nil {
		return got, errors.Join(err, meta.Abandon(), disk.Close())
	}
	got = opened{disk: disk, meta: meta, limit: limit}
	if got.before, err = recoverLog(meta, o); err != nil {
		return opened{}, errors.Join(fmt.Errorf("device %s: %w", o.Name, err), meta.Abandon(), disk.Close())
	}
	if err := regroup(meta, o); err != nil {
		return opened{}, errors.Join(err, meta.Abandon(), disk.Close())
	}
	if sb := meta.Superblock(); got.before != nil && len(sb.Ext) >= 8 {
		got.stream = binary.LittleEndian.Uint64(sb.Ext)
	}
	return got, nil
}

// fit makes the disk as large as the metadata covers, which is where the device
// has grown to or room that was made for it to, and refuses a size that the
// metadata does not cover.
func fit(disk store.Disk, meta *store.Meta, o Options) error {
	sb := meta.Superblock()
	if sb.Size < o.Size {
		return fmt.Errorf("device %s: the configuration says %d bytes, but the metadata %s is of a device of %d;"+
			" put the size back and run \"lockstepctl device resize %s\"", o.Name, o.Size, meta.Path(), sb.Size, o.Name)
	}
	if disk.Size() < sb.Size { // it was opened with the size that the device began with
		if err := resizeDisk(disk, sb.Size); err != nil {
			return fmt.Errorf("device %s has grown to %d bytes: %w", o.Name, sb.Size, err)
		}
	}
	return nil
}

// initial fills in the metadata of a device that is new on this node.
func initial(sb *store.Superblock, o Options, created bool) {
	sb.Members = uint32(o.disks())
	defer func() { putOrigin(sb, randomID()) }()
	if created {
		putGens(sb, &replication.Gens{Current: replication.DayOne, Base: replication.DayOne})
		sb.Flags |= store.Consistent | store.WasUpToDate | store.JustCreated
		return
	}
	// Content that nothing is known of: a mixture until it is resynced, or somebody
	// says what it is worth (Create).
	putGens(sb, &replication.Gens{Current: replication.NoGen})
}

// checkMeta refuses metadata whose disk has gone.
func checkMeta(meta *store.Meta, created bool, o Options) error {
	sb := meta.Superblock()
	if created && sb.Flags&store.JustCreated == 0 {
		return fmt.Errorf("device %s: the disk was missing and has been made anew, but its metadata %s speaks of data;"+
			" put the disk back, or move the metadata away to have this node's copy rebuilt from a peer", o.Name, meta.Path())
	}
	return nil
}

// recoverLog turns what was hot at an unclean stop into marks, and returns the
// marks as they were before; nil after a clean stop.
func recoverLog(meta *store.Meta, o Options) (*[replication.MaxNodes][]block.Extent, error) {
	for _, p := range meta.Problems() {
		if o.Log != nil {
			o.Log.Warn(p, "device", o.Name)
		}
	}
	if !meta.Unclean() {
		return nil, nil
	}
	before := new([replication.MaxNodes][]block.Extent)
	for _, n := range o.Nodes {
		if n.ID == o.Self || n.Diskless {
			continue
		}
		before[n.ID] = []block.Extent{}
		for e := range meta.Bitmap(n.ID).Runs(0) {
			before[n.ID] = append(before[n.ID], e)
		}
	}
	r, err := meta.Recover()
	if err != nil {
		return nil, fmt.Errorf("cannot recover the activity log: %w", err)
	}
	if o.Log != nil {
		o.Log.Info("recovered after an unclean stop", "device", o.Name, "recovery", fmt.Sprintf("%+v", r))
	}
	return before, nil
}
