package device

import (
	"encoding/binary"
	"fmt"
	"slices"

	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
)

// The nodes that have a disk of a device change with its configuration, while it is
// closed. A disk remembers which they were:
//
//   - What was answered is on a quorum of those, and a quorum of others need not know
//     of it. So a disk has no say among others before it has met a majority of each set
//     that there was since it was last in one (former); and it takes nobody's word for
//     that who has not met his.
//   - Nobody marks what a disk misses while it is taken out. So what comes in is given
//     everything, and nothing is written in the generation that there was, in which
//     one that is given back may be still (moved).

// maxFormer is how many sets of disks can wait to be met.
const maxFormer = 8

// regroup notes that the configuration gives the device to other disks than before.
// Nothing is said to a peer, and nothing written, before that is durable.
func regroup(meta *store.Meta, o Options) error {
	now := o.disks()
	sb := meta.Superblock()
	was := replication.NodeSet(sb.Members)
	if was == now {
		return nil
	}
	former, gens := formerOf(&sb), gensOf(&sb)
	// One that was never current was part of it, too, once it had some of the data: others
	// may have counted on it. One that is new and has met nobody was part of nothing.
	if (sb.Flags&store.Member != 0 || gens.HasPast()) && was != 0 && !slices.Contains(former, was) {
		former = append(former, was)
	}
	if len(former) >= maxFormer && !slices.Contains(former, now) { // there has to be room for it
		return fmt.Errorf("device %s: its nodes have been changed %d times, and no majority of those before has been in reach since;"+
			" put back the nodes that it was on, and start them", o.Name, len(former))
	}
	if gens.HasPast() {
		for id := range (now &^ was).Without(o.Self).All() {
			meta.Bitmap(id).SetAll()
		}
		if err := meta.WriteBitmaps(); err != nil {
			return fmt.Errorf("device %s: cannot write metadata: %w", o.Name, err)
		}
	}
	err := meta.Update(func(sb *store.Superblock) {
		for id := range ((now &^ was) | (was &^ now)).Without(o.Self).All() {
			gens = gens.FinishSync(id)
		}
		putGens(sb, &gens)
		putFormer(sb, former, gens.Current)
		sb.Members = uint32(now)
	})
	if err != nil {
		return fmt.Errorf("device %s: cannot write metadata: %w", o.Name, err)
	}
	return nil
}

// formerOf is the sets of disks that are to be met first.
func formerOf(sb *store.Superblock) (sets []replication.NodeSet) {
	if len(sb.Ext) < extAll {
		return nil
	}
	for i := range maxFormer {
		if s := binary.LittleEndian.Uint32(sb.Ext[extFormer+4*i:]); s != 0 {
			sets = append(sets, replication.NodeSet(s))
		}
	}
	return sets
}

// movedOf is the generation that was the current one when the disks changed.
func movedOf(sb *store.Superblock) replication.Gen {
	if len(sb.Ext) < extAll {
		return replication.NoGen
	}
	return replication.Gen(binary.LittleEndian.Uint64(sb.Ext[extMoved:]))
}

// putFormer comes after putGens, which makes the room.
func putFormer(sb *store.Superblock, sets []replication.NodeSet, moved replication.Gen) {
	binary.LittleEndian.PutUint64(sb.Ext[extMoved:], uint64(moved))
	clear(sb.Ext[extFormer:extAll])
	for i, s := range sets {
		binary.LittleEndian.PutUint32(sb.Ext[extFormer+4*i:], uint32(s))
	}
}

// recallLocked takes over what a disk has had part in.
func (d *Device) recallLocked(sb *store.Superblock) {
	d.newcomer, d.member = sb.Flags&store.Newcomer != 0, sb.Flags&store.Member != 0
	d.former, d.met, d.moved = formerOf(sb), false, movedOf(sb)
}

// regroupLocked gives this disk its say as soon as it has met those that it was among.
func (d *Device) regroupLocked() {
	if len(d.former) == 0 || d.meta == nil || d.ctx == nil {
		return
	}
	d.met = d.metLocked(false)
	if d.met && d.metLocked(true) || !d.orderedLocked() {
		d.endRegroupLocked("a majority of those that it was on before is in reach")
	}
}

// forceRegroupLocked ends it by an administrator's word.
func (d *Device) forceRegroupLocked() { d.endRegroupLocked("an administrator says so") }

// endRegroupLocked: this disk counts as one of those that the device is on now.
func (d *Device) endRegroupLocked(why string) {
	if len(d.former) == 0 {
		return
	}
	d.former, d.met = nil, false
	d.eventLocked("quorum", nil, "the device is on %d disks now: %s", d.disks.Len(), why)
	d.saveLocked(nil)
}

// disksSinceLocked are the nodes that have a disk of the device, and those that had one
// in a set that is to be met: who has stayed when this node left may be one of them.
func (d *Device) disksSinceLocked() replication.NodeSet {
	all := d.disks
	if mutate.Is(mutate.ForgetStayed) {
		return all
	}
	for _, set := range d.former {
		all |= set
	}
	return all
}

// metLocked reports whether a majority of each former set is in reach; with certain,
// counting those alone that have met their own. A majority shares a disk with whatever
// was a quorum of the set, by this policy or another: all of them, say.
func (d *Device) metLocked(certain bool) bool {
	policy := replication.QuorumPolicy{Kind: replication.QuorumMajority}
	for _, set := range d.former {
		var c replication.Census
		for id := range set.All() {
			p := d.peers[id]
			switch {
			case id == d.cfg.Self:
				d.countOwnLocked(d.dstat, &c)
			case p != nil && !p.diskless:
				d.countPeerLocked(p, !certain || !p.former || p.met, &c)
			case d.votes.Given(id):
				c.Outdated++
			default:
				c.Unknown++
			}
		}
		// A node without its disk may have been started anew, and know nothing.
		c.Unknown, c.Idle = c.Unknown+c.Idle, 0
		// Whoever has the current data need not be of the set: what this one knows of, that
		// disk has, or it would be behind.
		if c.UpToDate == 0 && c.Present > 0 && d.currentInReachLocked() {
			c.UpToDate, c.Present = 1, c.Present-1
		}
		if !policy.Quorum(c).Quorate {
			return false
		}
	}
	return true
}

// currentInReachLocked reports whether a complete disk that is not behind is in reach.
func (d *Device) currentInReachLocked() bool {
	var c replication.Census
	for _, p := range d.peers {
		if p != nil && p.agreed && p.disk.HasData() {
			d.countDataLocked(p, &c)
		}
	}
	return c.UpToDate > 0 || d.dstat >= replication.Consistent
}

// movedLocked reports whether the disks have changed within the generation of this one.
func (d *Device) movedLocked() bool {
	return d.moved != replication.NoGen && d.moved == d.gens.Current
}

// regroupedLocked reports whether the generation of this disk, or of one that is in
// agreement with it, is one that a disk may be in which was taken out.
func (d *Device) regroupedLocked() bool {
	if mutate.Is(mutate.WriteOn) {
		return false
	}
	if d.movedLocked() {
		return true
	}
	for _, p := range d.peers {
		if p != nil && p.agreed && p.regrouped && !d.genStint {
			return true
		}
	}
	return false
}
