package device

import (
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// Two halves of a device's disks share none, so where tiebreakers keep quorum
// for a half it is the tiebreakers that both halves would share, and that have
// to tell who has gone on. So a tiebreaker is a witness: it takes note, in
// memory, of each generation, as the disks in contact do, and nothing is
// answered in a generation before it has. Those whom the generation leaves
// behind it tells so: they have no quorum by it any more. A half counts only
// those tiebreakers that have been in contact since it had quorum without them,
// so one that was restarted, and has forgotten, serves neither.

// witnessLocked reports whether this node, which has no disk, takes note of
// generations. Only a number of disks that can be halved needs tiebreakers.
func (d *Device) witnessLocked() bool { return !d.disks.Has(d.cfg.Self) && d.halvableLocked() }

func (d *Device) halvableLocked() bool {
	return d.cfg.Quorum.Kind == replication.QuorumMajority && d.disks.Len()%2 == 0
}

// tiedLocked reports whether what a census has for quorum rests on tiebreakers.
// Where it does not, those in contact are noted as such that it may rest on.
func (d *Device) tiedLocked(c replication.Census) bool {
	c.TiebreakersPresent = 0
	if !d.cfg.Quorum.Quorum(c).Quorate {
		return true
	}
	for _, p := range d.peers {
		if p != nil && p.diskless && p.agreed {
			p.steady = p.speaks(wire.FeatureWitness)
		}
	}
	return false
}

// notersLocked is who has to note a generation: those that take part, those in
// contact that it leaves behind, and the witnesses.
func (d *Device) notersLocked() replication.NodeSet {
	s := d.receives | d.withDataLocked()
	for _, p := range d.peers {
		if p != nil && d.noterLocked(p) {
			s = s.With(p.id)
		}
	}
	return s
}

func (d *Device) noterLocked(p *peer) bool {
	return p.diskless && p.agreed && d.halvableLocked() && p.speaks(wire.FeatureWitness)
}

// unheardLocked is the witnesses that will not hear of a generation from this
// node.
func (d *Device) unheardLocked() (s replication.NodeSet) {
	for _, p := range d.peers {
		if p != nil && p.diskless && d.halvableLocked() && !d.noterLocked(p) {
			s = s.With(p.id)
		}
	}
	return s
}

// witnessGenLocked takes note of a generation that a primary has announced.
func (d *Device) witnessGenLocked(p *peer, g wire.Generation) {
	next := replication.Gen(g.New)
	if !p.agreed || d.role == replication.Primary {
		return
	}
	if !d.gens.MayNote(next) {
		d.objectLocked(p, &g, "its number is not above what this node has noted")
		return
	}
	if mutate.Is(mutate.Unwitnessed) {
		d.confirmLocked(p, wire.Header{Type: wire.NewGenAck, Arg: [3]uint64{g.No}})
		return
	}
	d.gens.Noted = next
	d.genNoted, d.genNotedNo, d.genAway, d.announcer = next, g.No, replication.NodeSet(g.Away), p.id
	d.confirmLocked(p, wire.Header{Type: wire.NewGenAck, Arg: [3]uint64{g.No}})
}

// witnessLearnLocked takes a peer's word on what is in force.
func (d *Device) witnessLearnLocked(theirs *replication.Facts) bool {
	if !theirs.Ordered || !theirs.Gens.Seen.After(d.gens.Seen) {
		return false
	}
	d.gens.Seen = theirs.Gens.Seen
	d.gens.Noted = max(d.gens.Noted, theirs.Gens.Noted)
	return true
}

// witnessedAgainstLocked reports whether this node, as a witness, knows of a
// generation in force that a peer's disk is not in. One that no disk is in, all of
// them being in contact, is nobody's: its primary's disk was lost before it bore it.
func (d *Device) witnessedAgainstLocked(p *peer) bool {
	if !d.witnessLocked() || p.diskless || !d.gens.Seen.After(p.bears()) {
		return false
	}
	for id := range d.disks.All() {
		q := d.peers[id]
		if q == nil || !q.agreed || !q.disk.HasData() || q.newcomer || !d.gens.Seen.After(q.bears()) {
			return true
		}
	}
	return false
}

// bears is the newest generation that a peer's disk is known to be in.
func (p *peer) bears() replication.Gen {
	return max(p.hs.theirs.Gens.Current, replication.Gen(p.state.Current), p.confirmed)
}
