package device

import (
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// A primary without a disk keeps no marks: who lacks a change of its is in its memory.

// missedLocked notes, on a primary without a disk, who does not have a change that
// is being answered, or is going to be.
func (d *Device) missedLocked(o *op) {
	if d.disk != nil || d.role != replication.Primary {
		return
	}
	for id := range o.miss.Without(d.cfg.Self).All() {
		d.peers[id].missed = true
	}
}

// missedFailedLocked is that for a change whose client is told of an error, and may still
// read it, and not the old again then. But where no complete disk has it nobody reads it,
// and those that have it are behind until they are mixtures in a later generation: they
// know by then what they differ in from the others.
func (d *Device) missedFailedLocked(o *op) {
	if d.disk != nil || d.role != replication.Primary || !o.acked && o.wait == 0 || mutate.Is(mutate.ForgetFailed) {
		return
	}
	has := d.disks.Without(d.cfg.Self) &^ o.miss
	if d.anyCompleteLocked(has) {
		d.missedLocked(o)
		return
	}
	for id := range has.All() {
		d.peers[id].undo = max(d.gens.Current, d.genNew)
	}
}

// overLocked tells those that have failed a change, of which the client is told so, that
// no complete disk has it: it is not going to be sent again, and what they hold in its
// place is what there is.
func (d *Device) overLocked(o *op, b *block.Batch) {
	if d.disk != nil || d.role != replication.Primary || o.acked && d.anyCompleteLocked(d.disks.Without(d.cfg.Self)&^o.miss) {
		return
	}
	for id := range o.miss.Without(d.cfg.Self).All() {
		if p := d.peers[id]; p.agreed {
			p.send(wire.Header{Type: wire.WriteNak, Arg: [3]uint64{o.seq}}, nil, nil, b)
		}
	}
}

// anyCompleteLocked reports whether the disk of a peer of a set is complete.
func (d *Device) anyCompleteLocked(set replication.NodeSet) bool {
	for id := range set.All() {
		if d.peers[id].disk > replication.Inconsistent {
			return true
		}
	}
	return false
}
