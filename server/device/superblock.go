package device

import (
	"encoding/binary"
	"fmt"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
)

// saveLocked makes the present generations and flags durable, on the worker,
// then calls then with the mutex held.
func (d *Device) saveLocked(then func(error, *block.Batch)) {
	d.work.do(func() {
		b := &block.Batch{}
		err := d.save()
		d.mu.Lock()
		if then != nil {
			then(err, b)
		}
		d.mu.Unlock()
		b.Finish()
	})
}

// noteMarksLocked makes what this disk's bitmaps say durable, on the worker, then
// calls then, if there is any, with the mutex held. Where they cannot be written
// the disk is dealt with as one whose metadata has failed; then, and where it is
// another disk by that time, then is not called.
func (d *Device) noteMarksLocked(then func(*block.Batch)) {
	meta := d.meta
	d.work.do(func() {
		err := meta.WriteBitmaps()
		b := &block.Batch{}
		d.mu.Lock()
		switch {
		case err != nil:
			d.metaFailedLocked(meta, "metadata write", err)
		case then != nil && meta == d.meta:
			then(b)
		}
		d.mu.Unlock()
		b.Finish()
	})
}

func (d *Device) saveGensLater() { d.saveLocked(nil) }

// save writes the superblock as state is when its turn comes: of two that save at once the
// one that is later must not write what was so before the other.
func (d *Device) save() error {
	d.mu.Lock()
	meta := d.meta
	d.mu.Unlock()
	if meta == nil || mutate.Is(mutate.Unsaved) {
		return nil
	}
	var votes replication.Votes
	err := meta.Update(func(sb *store.Superblock) {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.meta == meta { // else it was put away, with what is to be in it
			votes = d.votes
			d.superblockLocked()(sb)
		}
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.metaFailedLocked(meta, "metadata write", err)
		return fmt.Errorf("device %s: cannot write metadata: %w", d.opts.Name, err)
	}
	if meta == d.meta {
		for id, n := range votes {
			d.votesKept.Note(id, n)
		}
	}
	return nil
}

// superblockLocked captures what is to be written.
func (d *Device) superblockLocked() func(*store.Superblock) {
	gens, dstat, role, crashed, stream, began, size := d.gens, d.dstat, d.role, d.crashed, d.stream, d.began, d.cfg.Size
	members, origin, votes, self, newcomer, member := uint32(d.disks), d.origin, d.votes, d.cfg.Self, d.newcomer, d.member
	former, moved, pulling := d.former, d.moved, d.pullingLocked()
	if d.taken != nil {
		gens, dstat, newcomer = d.takenLocked(), replication.Consistent, false
	}
	return func(sb *store.Superblock) {
		sb.Ext = binary.LittleEndian.AppendUint64(nil, stream)
		putGens(sb, &gens)
		set := func(f store.Flags, on bool) {
			if on {
				sb.Flags |= f
			} else {
				sb.Flags &^= f
			}
		}
		if dstat.HasData() {
			set(store.Consistent, dstat != replication.Inconsistent)
			if dstat != replication.Consistent || !pulling { // else what there was, until that is over
				set(store.WasUpToDate, dstat >= replication.Consistent)
			}
		}
		set(store.PrimaryInd, role == replication.Primary)
		set(store.CrashedPrimary, crashed)
		set(store.Newcomer, newcomer)
		set(store.Member, member)
		set(store.JustCreated, gens.Current == replication.DayOne)
		sb.Members = members
		putOrigin(sb, origin)
		putVotes(sb, &votes, self)
		putFormer(sb, former, moved)
		binary.LittleEndian.PutUint64(sb.Ext[extBegan:], uint64(began))
		binary.LittleEndian.PutUint64(sb.Ext[extSize:], uint64(size))
	}
}

func gensOf(sb *store.Superblock) replication.Gens {
	g := replication.Gens{Current: replication.Gen(sb.Current), Base: replication.Gen(sb.Current), Noted: replication.Gen(sb.Current)}
	if len(sb.Ext) >= extLen {
		g.Base = replication.Gen(binary.LittleEndian.Uint64(sb.Ext[extBase:]))
		g.Seen = replication.Gen(binary.LittleEndian.Uint64(sb.Ext[extSeen:]))
		g.Noted = replication.Gen(binary.LittleEndian.Uint64(sb.Ext[extNoted:]))
	}
	for i := range g.Bitmap {
		g.Bitmap[i] = replication.Gen(sb.Bitmap[i])
		g.History[i] = replication.Gen(sb.History[i])
	}
	return g
}

// Layout of the superblock's extension: the stream; Base, Seen and Noted of
// Gens; when this node last became primary; the size; and, not in the oldest,
// the origin and the votes; and, not in older ones, what there was before the
// device's disks changed.
const (
	extBase  = 8
	extSeen  = 16
	extNoted = 24
	extBegan = 32
	extSize  = 40
	extLen   = 48 // of the oldest

	extOrigin = 48
	extVotes  = 56
	extWhole  = extVotes + 4*replication.MaxNodes

	extMoved  = extWhole
	extFormer = extMoved + 8
	extAll    = extFormer + 4*maxFormer
)

// originOf is the origin that a superblock speaks of.
func originOf(sb *store.Superblock) uint64 {
	if len(sb.Ext) < extWhole {
		return replication.NoOrigin
	}
	return binary.LittleEndian.Uint64(sb.Ext[extOrigin:])
}

// putOrigin comes after putGens, which makes the room.
func putOrigin(sb *store.Superblock, origin uint64) {
	binary.LittleEndian.PutUint64(sb.Ext[extOrigin:], origin)
}

func votesOf(sb *store.Superblock) (v replication.Votes) {
	if len(sb.Ext) >= extWhole {
		for id := range v {
			v[id] = binary.LittleEndian.Uint32(sb.Ext[extVotes+4*id:])
		}
	}
	return v
}

// putVotes comes after putGens. The flags say the same, for people.
func putVotes(sb *store.Superblock, v *replication.Votes, self int) {
	sb.Flags &^= store.Left
	for id, n := range v {
		binary.LittleEndian.PutUint32(sb.Ext[extVotes+4*id:], n)
		sb.PeerFlags[id] &^= store.PeerLeft
		switch {
		case !v.Given(id):
		case id == self:
			sb.Flags |= store.Left
		default:
			sb.PeerFlags[id] |= store.PeerLeft
		}
	}
}

func putGens(sb *store.Superblock, g *replication.Gens) {
	sb.Current = uint64(g.Current)
	ext := make([]byte, extAll)
	copy(ext, sb.Ext)
	binary.LittleEndian.PutUint64(ext[extBase:], uint64(g.Base))
	binary.LittleEndian.PutUint64(ext[extSeen:], uint64(g.Seen))
	binary.LittleEndian.PutUint64(ext[extNoted:], uint64(g.Noted))
	sb.Ext = ext
	for i := range g.Bitmap {
		sb.Bitmap[i] = uint64(g.Bitmap[i])
		sb.History[i] = uint64(g.History[i])
	}
}
