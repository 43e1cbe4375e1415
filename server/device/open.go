package device

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
)

// Backing says where a device's data and metadata are.
type Backing struct {
	Disk, Meta string // paths
	// FromExisting takes a disk that existed before as this device's data;
	// without it such a disk is refused.
	FromExisting bool
	// Extents and ExtentBytes size the activity log; 0 for the defaults.
	Extents     int
	ExtentBytes int64
}

// Open opens, or makes, the disk and metadata of a device and returns the
// device, not started. A disk that lockstep makes is zero on every node, so a
// device of such disks is in sync from the start.
func Open(o Options, bk Backing) (*Device, error) {
	if bk.Disk == "" {
		return New(o)
	}
	disk, created, err := store.OpenDisk(bk.Disk, o.Size, store.DiskOptions{Create: true})
	if err != nil {
		return nil, fmt.Errorf("device %s: %w", o.Name, err)
	}
	return Assemble(o, disk, created, bk, func(mo store.MetaOptions) (*store.Meta, error) { return store.OpenMeta(bk.Meta, mo) })
}

// Assemble is Open on a disk that is open already, with a way to open the
// metadata. created says that the disk is new and zero. The disk is closed on
// error.
func Assemble(o Options, disk store.Disk, created bool, bk Backing, openMeta func(store.MetaOptions) (*store.Meta, error)) (*Device, error) {
	var d *Device
	meta, err := openMeta(store.MetaOptions{
		Device: o.Name, NodeID: o.Self, Create: true, Size: o.Size,
		Init:        func(sb *store.Superblock) { initial(sb, o, created, bk.FromExisting) },
		Extents:     bk.Extents,
		ExtentBytes: bk.ExtentBytes,
		Pressure:    func(epoch uint64) { d.Pressure(epoch) },
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("device %s: %w", o.Name, err), disk.Close())
	}
	if err := checkMeta(meta, created, o); err != nil {
		return nil, errors.Join(err, meta.Abandon(), disk.Close())
	}
	o.Disk, o.Meta = disk, meta
	before, err := recoverLog(meta, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("device %s: %w", o.Name, err), meta.Abandon(), disk.Close())
	}
	if d, err = New(o); err != nil {
		return nil, errors.Join(err, meta.Abandon(), disk.Close())
	}
	if before != nil {
		d.beforeLog = *before
		sb := meta.Superblock()
		if len(sb.Ext) >= 8 {
			d.logStream = binary.LittleEndian.Uint64(sb.Ext)
		}
	}
	return d, nil
}

// initial fills in the metadata of a device that is new on this node.
func initial(sb *store.Superblock, o Options, created, existing bool) {
	for _, n := range o.Nodes {
		if !n.Diskless {
			sb.Members |= 1 << n.ID
		}
	}
	switch {
	case created:
		putGens(sb, &replication.Gens{Current: replication.DayOne, Base: replication.DayOne})
		sb.Flags |= store.Consistent | store.WasUpToDate | store.JustCreated
	case existing:
		// Its content is the device's: a generation that nobody else has, come
		// from the first day, so that all others are resynced from here.
		g := replication.Gens{Current: replication.DayOne}
		all := replication.NodeSet(sb.Members).Without(o.Self)
		g = g.Bump(replication.NextGen(rand.Uint64()), all)
		g.Base = g.Current
		putGens(sb, &g)
		sb.Flags |= store.Consistent | store.WasUpToDate
	default:
		// Content of unknown origin: a mixture until it is resynced.
		sb.Current = uint64(replication.NoGen)
	}
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
