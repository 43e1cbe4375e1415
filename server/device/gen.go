package device

import (
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// startGenLocked begins a new generation: the set of disks that take part has
// changed. It is durable here and on all that take part before the changes
// that wait for it are let in or answered; else a crash could leave two disks
// that differ in an answered change under one name.
func (d *Device) startGenLocked() {
	if d.genBusy {
		d.genAgain = true
		return
	}
	if !d.quorum.Quorate || d.role != replication.Primary {
		return // never by a minority; evaluateLocked comes back to it
	}
	d.genBusy = true
	d.work.do(func() { d.makeGen() })
}

func (d *Device) makeGen() {
	d.mu.Lock()
	others := d.disks.Without(d.cfg.Self)
	old, away := d.gens.Current, others&^d.receives
	// Until all have confirmed, those that take part may be left in the old
	// generation too: their slots say so.
	d.genOld = old
	next := d.gens.Bump(newGen(), others)
	prev := d.gens
	d.gens = next
	stream := d.stream
	d.mu.Unlock()

	err := d.save()

	b := &block.Batch{}
	d.mu.Lock()
	defer func() {
		d.mu.Unlock()
		b.Finish()
	}()
	if err != nil && d.disk != nil {
		d.gens = prev
		d.genBusy = false
		return
	}
	if d.role != replication.Primary {
		d.genBusy = false
		return
	}
	d.stats.Generations++
	d.genNo++
	d.genWait = d.receives
	g := wire.Generation{No: d.genNo, Old: uint64(old), New: uint64(next.Current), Away: uint32(away), Stream: stream}
	if d.meta == nil {
		g.Old = 0 // a diskless primary names no past
	}
	for id := range d.genWait.All() {
		d.peers[id].send(wire.Header{Type: wire.NewGen}, g.Append(nil), nil, b)
	}
	d.eventLocked("generation", nil, "new generation %v", next.Current)
	d.rehelloLocked(0, b)
	d.genSettleLocked(b)
}

// genConfirmedLocked: a peer has the generation on stable storage.
func (d *Device) genConfirmedLocked(p *peer, no uint64, b *block.Batch) {
	if d.genBusy && no == d.genNo && d.genWait.Has(p.id) {
		d.genWait = d.genWait.Without(p.id)
		d.genSettleLocked(b)
	}
}

// genSettleLocked ends the making of a generation when all have it.
func (d *Device) genSettleLocked(b *block.Batch) {
	d.genWait &= d.receives
	if !d.genBusy || d.genWait != 0 {
		return
	}
	d.genBusy = false
	for id := range d.receives.All() {
		if d.gens.Bitmap[id] == d.genOld && d.peers[id].repl == replication.Established {
			d.gens = d.gens.FinishSync(id)
		}
		d.peers[id].told = false // to say that all have it
	}
	d.saveLocked(nil)
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
}

// genReceivedLocked takes over the primary's new generation; it confirms when
// it is durable.
func (d *Device) genReceivedLocked(p *peer, g wire.Generation) {
	if d.meta == nil || !p.agreed {
		return
	}
	confirm := func(err error, b *block.Batch) {
		if err == nil {
			p.send(wire.Header{Type: wire.NewGenAck, Arg: [3]uint64{g.No}}, nil, nil, b)
			d.rehelloLocked(0, b)
		}
	}
	next := replication.Gen(g.New)
	if d.gens.Current == next {
		d.saveLocked(confirm)
		return
	}
	if g.Old != 0 && d.gens.Current != replication.Gen(g.Old) && d.dstat != replication.Inconsistent {
		d.log.Warn("the primary's generation does not follow this one's", "peer", p.name,
			"here", d.gens.Current.String(), "its old", replication.Gen(g.Old).String())
		b := &block.Batch{}
		d.helloLocked(p, b)
		d.work.do(b.Finish)
		return
	}
	// Whether the others that take part have it is not known before the primary
	// says who is in sync once more.
	d.gens = d.gens.Bump(next, d.disks.Without(d.cfg.Self).Without(p.id))
	d.saveLocked(confirm)
}
