package device

import (
	"math/rand/v2"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// startGenLocked begins a new generation: the set of disks that take part has
// changed. It comes into force in two steps, and only then are the changes
// that wait for it let in or answered; else a crash could leave two disks that
// differ in an answered change under one name, or two generations of which
// nobody can tell which counts.
//
//  1. Every replica that takes part notes the generation as tentative, then
//     the primary takes it over.
//  2. Every replica notes that it is in force.
//
// A primary announces only while it has quorum, so of two generations that go
// apart at most one ever came into force.
func (d *Device) startGenLocked() {
	if d.genBusy {
		d.genAgain = true
		return
	}
	if !d.leadsLocked() {
		return // never by a minority; evaluateLocked comes back to it
	}
	if !d.borneLocked(d.receives) {
		return // likewise: it would leave the only current disk behind that is about to return
	}
	if d.pullsSoonLocked() {
		return // chooseSourceLocked comes back to it
	}
	b := &block.Batch{}
	d.genBusy, d.committing, d.genOwed = true, false, false
	d.genNo++
	d.genOld, d.genNew = d.gens.Current, d.nextGenLocked()
	d.genAway = d.disks&^d.sendReceivesLocked() | d.unheardLocked()
	// Those in contact that do not take part note that they are outdated: else
	// they could pass for current among themselves.
	d.genWait, d.genHas = d.notersLocked(), 0
	g := wire.Generation{No: d.genNo, Old: uint64(d.genOld), New: uint64(d.genNew), Away: uint32(d.genAway), Stream: d.stream}
	if d.disk == nil || d.dstat < replication.UpToDate && !d.pullingLocked() {
		g.Old = 0 // what this disk holds, if there is one, is not what goes on
	}
	payload := g.Append(nil)
	origin := d.beginsLocked()
	for id := range d.genWait.All() {
		d.peers[id].send(wire.Header{Type: wire.NewGen, Arg: [3]uint64{origin}}, payload, nil, b)
	}
	no := d.genNo
	d.work.do(func() {
		b.Finish()
		nb := &block.Batch{}
		d.mu.Lock()
		if d.genNo == no {
			d.genSettleLocked(nb)
		}
		d.mu.Unlock()
		nb.Finish()
	})
}

// leadsLocked reports whether this primary may begin a generation: it has quorum, and
// nobody of whom it does not know whether he was promoted.
func (d *Device) leadsLocked() bool {
	return d.role == replication.Primary && d.quorum.Quorate && d.hold&holdFence == 0
}

// nextGenLocked is a generation after all that anybody in reach has noted.
func (d *Device) nextGenLocked() replication.Gen {
	known := append([]replication.Gen{d.genNew, d.gens.Noted}, d.gens.Bitmap[:]...)
	for _, p := range d.peers {
		if p != nil {
			known = append(known, p.hs.theirs.Gens.Noted, replication.Gen(p.state.Current))
		}
	}
	return replication.NextGen(rand.Uint64(), known...)
}

// settleGen is genSettleLocked on the worker.
func (d *Device) settleGen() {
	b := &block.Batch{}
	d.mu.Lock()
	d.genSettleLocked(b)
	d.mu.Unlock()
	b.Finish()
}

// withDataLocked is who in contact has a disk with data.
func (d *Device) withDataLocked() (s replication.NodeSet) {
	for _, p := range d.peers {
		if p != nil && p.agreed && !p.diskless && p.disk.HasData() {
			s = s.With(p.id)
		}
	}
	return s
}

// genConfirmedLocked: a peer has noted a step on stable storage.
func (d *Device) genConfirmedLocked(p *peer, no uint64, second bool, b *block.Batch) {
	if step := wire.NewGen; d.heralding != nil {
		if second {
			step = wire.GenCommit
		}
		if d.heraldedLocked(p, no, step) {
			return
		}
	}
	if d.genBusy && no == d.genNo && second == d.committing && d.genWait.Has(p.id) {
		d.genWait = d.genWait.Without(p.id)
		d.genHas = d.genHas.With(p.id)
		if d.receives.Has(p.id) {
			p.confirmed = d.genNew
		} else if d.genAway.Has(p.id) {
			p.fence.spared = true
		}
		d.genSettleLocked(b)
	}
}

// genSettleLocked goes on when everybody who takes part has confirmed a step.
// Who is lost meanwhile takes part no longer, and wants another generation
// after this one.
func (d *Device) genSettleLocked(b *block.Batch) {
	d.genWait &= d.notersLocked()
	if !d.genBusy || d.genWait != 0 || d.genHeld {
		return
	}
	d.censusLocked() // who is lost may have taken quorum along
	switch {
	case d.role != replication.Primary:
		d.genBusy, d.committing = false, false
	case d.quorum.Quorate && d.hold&holdFence != 0:
		return // fencesLocked comes back to it
	case !d.quorum.Quorate, !d.committing && !d.borneLocked(d.receives&d.genHas):
		// Abandoned; it never came into force.
		d.genBusy, d.committing = false, false
		d.needGen, d.genAgain = true, false
		d.genOwed = true // some have noted it: they need one that is in force
	case d.committing:
		d.genDoneLocked(b)
	case !d.cfg.Quorum.Quorum(d.tallyLocked(^(d.notersLocked() &^ d.genHas))).Quorate:
		// What makes quorum has come since it was announced, and has not noted it.
		// Abandoned likewise, for one that all note.
		d.genBusy, d.needGen, d.genAgain, d.genOwed = false, true, false, true
		d.startGenLocked()
	default:
		d.takeGenLocked()
	}
}

// borneLocked reports whether a disk with the current data, this node's own or one
// of a set of others, is going to be in the generation that is announced. Those that
// were to be may be lost since, before they have noted it; nobody else has the data
// that it would name, and all would take themselves for outdated by it, though it is
// nowhere. On a mixture alone it is nowhere, too.
func (d *Device) borneLocked(others replication.NodeSet) bool {
	if d.disk != nil && d.dstat == replication.UpToDate {
		return true
	}
	for id := range others.All() {
		if d.peers[id].disk == replication.UpToDate {
			return true
		}
	}
	return false
}

// takeGenLocked is the end of the first step: the primary takes it over.
func (d *Device) takeGenLocked() {
	d.committing = true
	was, served := d.gens, d.servedLocked()
	if d.disk == nil || d.dstat == replication.UpToDate || d.pullingLocked() {
		// Who has come since the first step is in the old one still.
		d.gens = d.gens.Bump(d.genNew, d.disks.Without(d.cfg.Self)&^(d.receives&d.genHas))
		for id := range (d.receives & d.genHas).All() {
			if d.peers[id].inSync {
				d.arrivedLocked(id)
			}
		}
	} // else what this disk holds is older, and must not bear the name
	if d.disk == nil {
		d.outliveLocked(served)
	}
	d.gens = d.gens.InForce(d.genNew)
	d.genHeld = true // nobody's confirmation ends it before we have it
	no := d.genNo
	d.saveLocked(func(err error, b *block.Batch) {
		d.genHeld = false
		defer d.greetHeldLocked(b)
		if !d.genBusy || d.genNo != no || err != nil && d.disk != nil {
			return
		}
		if err != nil && !d.borneLocked(d.receives&d.genHas) {
			// It was to be on this disk alone, which is lost, and is on none.
			d.gens = d.gens.Undo(d.genNew, &was)
			d.genBusy, d.committing = false, false
			d.needGen, d.genAgain, d.genOwed = true, false, true
			return
		}
		d.stats.Generations++
		d.genStint = true
		for id := range (d.disks.Without(d.cfg.Self) &^ d.receives).All() {
			d.peers[id].outOf = d.genNew
		}
		if d.lags {
			d.served = d.genNew
		}
		d.eventLocked("generation", nil, "new generation %v", d.genNew)
		d.genWait = d.notersLocked()
		if late := d.genWait &^ d.genHas; late != 0 {
			// Who has come since knows nothing of this one.
			d.genWait &= d.genHas
			d.genAgain = true
		}
		have := d.sendReceivesLocked() & (d.genHas | replication.Of(d.cfg.Self))
		for id := range d.genWait.All() {
			d.peers[id].send(wire.Header{Type: wire.GenCommit, Arg: [3]uint64{no, uint64(have)}}, nil, nil, b)
		}
		d.rehelloLocked(0, b)
		d.genSettleLocked(b)
	})
}

// genDoneLocked: the generation is in force everywhere.
func (d *Device) genDoneLocked(b *block.Batch) {
	d.genBusy, d.committing = false, false
	d.needGen = d.genAgain
	if d.genAgain {
		d.genAgain = false
		if d.hold&holdGeneration != 0 || len(d.parked) > 0 {
			d.startGenLocked()
			return
		}
	}
	d.hold &^= holdGeneration
	d.evaluateLocked(b)
	d.chooseSourceLocked(b)
}

// genReceivedLocked takes over the primary's new generation; it confirms when
// it is durable. It is tentative until the primary says that all have it.
func (d *Device) genReceivedLocked(p *peer, g wire.Generation, origin uint64) {
	if !d.disks.Has(d.cfg.Self) {
		// The primary counts on it as a witness. That this node does not yet, or no
		// longer, is a quorum that nodes are given one after the other.
		if origin != replication.NoOrigin {
			d.begins = origin
		}
		d.witnessGenLocked(p, g)
		return
	}
	if d.meta == nil || !p.agreed {
		return
	}
	if base := d.gens.Base; (p.diskless || !p.disk.HasData()) && base != replication.NoGen && base != replication.DayOne {
		origin = replication.NoOrigin // this disk knows better what its data began as
	}
	next := replication.Gen(g.New)
	if d.dstat > replication.Inconsistent && d.pullingLocked() {
		d.setDiskLocked(replication.Inconsistent, p.name+" goes on, and the resync is not complete")
	}
	if d.orderedLocked() && !d.gens.MayNote(next) {
		d.objectLocked(p, &g, "its number is not above what this node has noted")
		return
	}
	d.gens.Noted = next
	away := replication.NodeSet(g.Away)
	if !away.Has(d.cfg.Self) {
		d.forgoLocked(p, &g)
	}
	d.genNoted, d.genNotedNo, d.genAway, d.genBy, d.genStream, d.announcer = next, g.No, away, nil, g.Stream, p.id
	d.genNotedAt = time.Now()
	if away.Has(d.cfg.Self) {
		if d.dstat > replication.Outdated {
			d.setDiskLocked(replication.Outdated, p.name+" goes on without this disk")
		}
		if d.dstat == replication.Inconsistent && d.gens.Current != next && d.gens.Current != replication.NoGen {
			// A mixture takes the name: whoever meets it learns that there is newer
			// data than it has. One of which nothing is known is no mixture of this
			// device's data: nobody marks what it lacks, so it has to stay nameless.
			d.gens = d.comeFromLocked(p, &g, d.gens.Bump(next, d.disks.Without(d.cfg.Self)))
			d.genOld = replication.NoGen
			d.beginsAsLocked(origin)
		}
		d.confirmLocked(p, wire.Header{Type: wire.NewGenAck, Arg: [3]uint64{g.No}})
		return
	}
	if g.Old != 0 && d.gens.Current != replication.Gen(g.Old) && d.gens.Current != next && d.dstat != replication.Inconsistent {
		d.objectLocked(p, &g, "it does not follow this one's")
		return
	}
	d.genBy = p
	if d.gens.Current != next {
		d.gens = d.comeFromLocked(p, &g, d.bearLocked(d.gens))
		d.beginsAsLocked(origin)
	}
	d.confirmLocked(p, wire.Header{Type: wire.NewGenAck, Arg: [3]uint64{g.No}})
}

// forgoLocked has the generation that this node noted last for p not have begun, where g
// follows the same one: that was given up, and g comes in its place. Where p was promoted
// anew since, without a disk, it goes on from what this disk was in.
func (d *Device) forgoLocked(p *peer, g *wire.Generation) {
	if d.genBy == p && replication.Gen(g.New) != d.genNoted && (g.Old == 0 && g.Stream == d.genStream || replication.Gen(g.Old) == d.genOld) {
		d.gens = d.gens.Forgo(d.genNoted, d.genOld)
	}
}

// bearLocked has gens go on in the generation that the primary has announced. Until
// that says that all have it, others that take part may be left in the one of before, and
// so may the primary itself.
func (d *Device) bearLocked(gens replication.Gens) replication.Gens {
	d.genOld = gens.Current
	return gens.Bump(d.genNoted, d.disks.Without(d.cfg.Self))
}

// keepNotedLocked is gens, which this disk takes over from a source, in the generation
// that the disk bore before, if its primary counts on it for that: the source may have
// told what it bears before it noted it.
func (d *Device) keepNotedLocked(gens replication.Gens) replication.Gens {
	if d.genBy == nil || d.gens.Current != d.genNoted || !d.genNoted.After(gens.Current) {
		return gens
	}
	kept := d.bearLocked(gens)
	if !d.gens.Tentative() {
		kept = kept.InForce(d.genNoted)
	}
	return kept
}

// comeFromLocked has gens, which bear the generation g of p's from now on, recall what a
// mixture may have missed before it: the generation that g follows and, by p's facts
// where p was in that one when it told them, all that this one came from.
func (d *Device) comeFromLocked(p *peer, g *wire.Generation, gens replication.Gens) replication.Gens {
	src, old := &p.hs.theirs.Gens, replication.Gen(g.Old)
	if d.dstat == replication.Inconsistent && old != replication.NoGen && src.Current == old {
		gens = gens.Inherit(src)
	}
	return gens.Recall(old)
}

// beginsLocked is the origin of this primary's generations. Without a disk it takes
// that of one which has data, or of a primary before it; and where nothing was ever
// written, of the first that receives, and stands by it: the others may not have met
// each other yet.
func (d *Device) beginsLocked() uint64 {
	if d.origin != replication.NoOrigin && (d.disk != nil || d.gens.HasPast() && d.begins == replication.NoOrigin) {
		return d.origin // else that is a disk's which was detached before anything was written
	}
	for id := range d.receives.All() {
		theirs := &d.peers[id].hs.theirs
		if theirs.Origin != replication.NoOrigin && (theirs.Gens.HasPast() || d.begins == replication.NoOrigin) {
			d.begins = theirs.Origin
			if theirs.Gens.HasPast() {
				break
			}
		}
	}
	return d.begins
}

// beginsAsLocked: a generation is of its primary's origin.
func (d *Device) beginsAsLocked(origin uint64) {
	if origin != replication.NoOrigin {
		d.origin = origin
	}
}

// objectLocked answers a generation that does not fit with our facts, so that
// the primary learns what it did not know.
func (d *Device) objectLocked(p *peer, g *wire.Generation, why string) {
	d.log.Warn("not noting the primary's generation: "+why, "peer", p.name, "here", d.gens.Current.String(),
		"in force", d.gens.Seen.String(), "its old", replication.Gen(g.Old).String(), "its new", replication.Gen(g.New).String())
	b := &block.Batch{}
	d.helloLocked(p, b)
	d.work.do(b.Finish)
}

// leftBehindLocked tells those that the primary went on without, and that may
// be in contact with this node and not with the primary: they would take
// themselves for current.
func (d *Device) leftBehindLocked(primary *peer) {
	away := d.genAway
	d.work.do(func() {
		b := &block.Batch{}
		d.mu.Lock()
		for id := range away.All() {
			if q := d.peers[id]; q != nil && q != primary && q.agreed && d.gens.Seen.After(q.hs.theirs.Gens.Seen) {
				d.helloLocked(q, b)
			}
		}
		d.mu.Unlock()
		b.Finish()
	})
}

// genCommitLocked: all have noted the generation, so it is in force. Who has a disk in
// it is told by have; 0 is an earlier version's, and means all that were to. The others
// were lost meanwhile, and have to find a bitmap that reaches back to where they are.
func (d *Device) genCommitLocked(p *peer, no uint64, have replication.NodeSet) {
	if d.meta == nil && d.disks.Has(d.cfg.Self) || !p.agreed {
		return
	}
	if d.genNotedNo != no || d.announcer != p.id {
		// Of a contact that is over; or the primary counts on this node though it
		// came too late to note the generation: it learns so from our facts.
		b := &block.Batch{}
		d.helloLocked(p, b)
		d.work.do(b.Finish)
		return
	}
	if d.gens.Current == d.genNoted && d.genOld != replication.NoGen { // in force by a third's word it may be already
		if have == 0 {
			have = d.disks
		}
		for id := range d.disks.Without(d.cfg.Self).All() {
			switch {
			case d.genAway.Has(id) || !have.Has(id):
			case d.gens.Bitmap[id] == d.genOld:
				d.gens = d.gens.FinishSync(id)
			default:
				d.arrivedLocked(id)
			}
		}
	}
	d.gens = d.gens.InForce(d.genNoted)
	d.behindLocked(p.name + " goes on without this disk")
	d.confirmLocked(p, wire.Header{Type: wire.GenDone, Arg: [3]uint64{no}})
	d.leftBehindLocked(p)
}

// arrivedLocked: a node has noted the present generation. Its slot may be one of another
// generation before, which never came into force: others had noted it, maybe not this one.
// Nothing is marked against it; and nobody marks what it gets, so that a disk which turns
// up where the slot says, a new one, would be taken for one that lacks next to nothing.
func (d *Device) arrivedLocked(id int) {
	if d.gens.Bitmap[id] != replication.NoGen && d.meta != nil && d.meta.Bitmap(id).Count() == 0 {
		d.gens = d.gens.FinishSync(id)
	}
}

// confirmLocked answers the primary once our state is durable, with what we were
// told that others may lack.
func (d *Device) confirmLocked(p *peer, h wire.Header) {
	s := p.session
	if d.meta != nil && d.disks.Len() <= 2 { // else the activity log covers it
		d.noteMarksLocked(nil)
	}
	d.saveLocked(func(err error, b *block.Batch) {
		if err == nil && p.session == s && p.agreed {
			p.send(h, nil, nil, b)
			d.rehelloLocked(0, b)
		}
	})
}
