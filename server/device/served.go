package device

import (
	"fmt"

	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
)

// A primary without a disk serves what others have. Where generations in force are a chain
// the peers' words tell which of their disks are current. Elsewhere two disks that are out of
// contact with each other may both pass for that, and a generation of this primary's would
// make them pass for equal. So it serves one generation: that which all disks in reach were
// in when it was promoted, and then its own.

// unguidedLocked reports whether this node is such a primary, and has nothing but the
// generations that disks are in to tell which are current. A disk of its own that does not
// have yet what is served tells no more than none.
func (d *Device) unguidedLocked() bool {
	return d.role == replication.Primary && d.dstat != replication.UpToDate && !d.orderedLocked()
}

// apartLocked reports whether a peer's disk is in another generation than those that this
// primary, which has none itself, began with, or has been in since. The disks may be out
// of contact with each other, so that nobody else sees it.
func (d *Device) apartLocked(p *peer) bool {
	served, in := d.servedLocked(), p.inGen()
	switch {
	case served == replication.NoGen, in == served, in == d.genNew && (!d.lags || in != d.gens.Current):
		return false
	case p.confirmed == served && served.After(in):
		return false // its word of that is on the way
	}
	return in != p.hs.theirs.Gens.Current || !within(&p.hs.theirs.Gens, served)
}

// within reports whether a disk is in a generation, or has noted one that was to follow it
// and, as far as it knows, is not in force: nothing was answered in that.
func within(gens *replication.Gens, g replication.Gen) bool {
	return gens.Current == g || gens.Tentative() && gens.Base == g
}

// movedOnLocked reports whether a disk in reach has come to be in a generation that this
// primary, which has none itself, does not know: it was resynced from one that went on
// elsewhere. What that means the peer's facts tell.
func (d *Device) movedOnLocked(p *peer) bool {
	return d.unguidedLocked() && replication.DiskState(p.state.Disk).HasData() && replication.Gen(p.state.Current) != p.hs.theirs.Gens.Current && d.apartLocked(p)
}

// servedLocked is the generation that this primary, whose own disk does not have it, serves.
func (d *Device) servedLocked() replication.Gen {
	if d.genStint && !d.lags {
		return d.gens.Current
	}
	return d.served
}

// inGen is the generation that a peer's disk is in by its last word.
func (p *peer) inGen() replication.Gen {
	if p.heard {
		return replication.Gen(p.state.Current)
	}
	return p.hs.theirs.Gens.Current
}

// newestLocked is the peer in reach whose disk passes for current and is in the newest
// generation; nil: there is none.
func (d *Device) newestLocked() (newest *peer) {
	for _, p := range d.peers {
		if p != nil && !p.diskless && p.agreed && p.disk == replication.UpToDate && (newest == nil || p.inGen() > newest.inGen()) {
			newest = p
		}
	}
	return newest
}

// disagreeLocked names two peers in reach whose disks are in different generations, and
// neither of which is known to be behind; a is the newest, also where there is no b.
func (d *Device) disagreeLocked() (a, b *peer) {
	if a = d.newestLocked(); a == nil {
		return nil, nil
	}
	for _, p := range d.peers {
		if p == nil || p.diskless || !p.agreed || p.disk < replication.Consistent || p.inGen() == a.inGen() {
			continue
		}
		if p.disk == replication.UpToDate || !a.hs.theirs.Gens.Knows(p.inGen()) {
			return a, p
		}
	}
	return a, nil
}

// unservableLocked refuses to promote this node where it has no disk, and what the disks in
// reach hold is not to be served: they differ, or are of the past. Where generations in force
// are a chain the peers' words tell that.
func (d *Device) unservableLocked() *RefusedError {
	if d.disk != nil || d.orderedLocked() {
		return nil
	}
	a, b := d.disagreeLocked()
	switch {
	case b != nil:
		return d.refuse("promote", fmt.Sprintf("the disks of %s and %s differ, and this node has none to tell which is current", a.name, b.name),
			"connect the two with each other; lockstepctl device why, on them, tells what is in the way", true)
	case a != nil && d.outlivedLocked(a):
		return d.refuse("promote", fmt.Sprintf("the disk of %s is behind what this node has seen since, and this node has none itself", a.name),
			"connect the nodes that have gone on, or attach the disk of this node", true)
	}
	return nil
}

// outlivedLocked reports whether what a peer's disk holds is of the past for this node, which
// has none itself: it has seen what was made of it, as the primary, or by the disk that it
// had. DRBD compares the UUID of the data that a node without a disk was exposed to.
func (d *Device) outlivedLocked(p *peer) bool {
	in := p.inGen()
	return in != d.gens.Current && in != d.gens.Base && d.gens.Knows(in) && !mutate.Is(mutate.ServePast)
}

// outliveLocked recalls what this node's generation, which it has begun without a disk, has
// come from: that which it served, and all that those disks had come from.
func (d *Device) outliveLocked(served replication.Gen) {
	for id := range (d.receives & d.genHas).All() {
		if theirs := &d.peers[id].hs.theirs.Gens; theirs.Current == served {
			d.gens = d.gens.Inherit(theirs)
		}
	}
	d.gens = d.gens.Recall(served)
}

// barrenLocked reports whether this primary has no data to serve: no disk, nor one in
// reach. Where no quorum decides between it and another primary, that does.
func (d *Device) barrenLocked() bool {
	return d.unguidedLocked() && !d.remoteDataLocked()
}

// servesAsLocked reports whether this disk is in the very generation that a peer serves
// which is primary and has no disk, or has noted one that was to follow it. That peer has
// answered nothing without this disk, or it would be in another; and where it has lost
// others it answers nothing before the fence-peer handler lets it. Where generations in
// force are a chain that is known without it.
func (d *Device) servesAsLocked(p *peer) bool {
	return !d.orderedLocked() && d.fencesPeersLocked() && p.role == replication.Primary && !p.disk.HasData() &&
		within(&d.gens, p.inGen()) && p.inGen() != replication.NoGen
}
