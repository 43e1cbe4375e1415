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
		p := d.peers[id]
		if o.err == nil && d.leftOutLocked(p) {
			p.lacks = p.outOf
		} else {
			p.missed = true
		}
	}
}

// leftOutLocked reports whether the present generation began without a peer, and who is in
// it has all that was answered, or there is a later one: generations are a chain, and what
// is answered all that take part have written.
func (d *Device) leftOutLocked(p *peer) bool {
	return p.outOf != replication.NoGen && p.outOf == d.gens.Current && d.orderedLocked() && d.cfg.Protocol == replication.ProtocolC
}

// lacksOursLocked reports whether a peer's disk lacks a change of this primary's that was
// answered. One that was left out of a generation, and is in that now, was resynced by
// another that was in it, and that had lost this primary.
func (d *Device) lacksOursLocked(p *peer) bool {
	return p.missed || p.undo != replication.NoGen || p.lacks != replication.NoGen && p.inGen() != d.gens.Current
}

// missedFailedLocked is that for a change whose client is told of an error, and may still
// read it, and not the old again then. But where no current disk has it nobody reads it,
// and those that have it are behind until they are mixtures in a later generation: they
// know by then what they differ in from the others.
func (d *Device) missedFailedLocked(o *op) {
	if d.disk != nil || d.role != replication.Primary || !o.acked && o.wait == 0 || mutate.Is(mutate.ForgetFailed) {
		return
	}
	has := d.disks.Without(d.cfg.Self) &^ o.miss
	if d.anyCurrentLocked(has) {
		d.missedLocked(o)
		return
	}
	for id := range has.All() {
		d.peers[id].undo = max(d.gens.Current, d.genNew)
	}
}

// overLocked tells those that have failed a change, of which the client is told so, that
// no current disk has it: it is not going to be sent again, and what they hold in its
// place is what there is.
func (d *Device) overLocked(o *op, b *block.Batch) {
	if d.disk != nil || d.role != replication.Primary || o.acked && d.anyCurrentLocked(d.disks.Without(d.cfg.Self)&^o.miss) {
		return
	}
	for id := range o.miss.Without(d.cfg.Self).All() {
		if p := d.peers[id]; p.agreed {
			p.send(wire.Header{Type: wire.WriteNak, Arg: [3]uint64{o.seq}}, nil, nil, b)
		}
	}
}

// anyCurrentLocked reports whether the disk of a peer of a set may be read.
func (d *Device) anyCurrentLocked(set replication.NodeSet) bool {
	for id := range set.All() {
		if d.peers[id].disk > replication.Outdated {
			return true
		}
	}
	return false
}
