package device

import (
	"cmp"
	"slices"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// contactLostLocked: the device's agreement with a peer ended with its contact.
func (d *Device) contactLostLocked(p *peer, reason string, b *block.Batch) {
	if p.hs.no == 0 && !p.agreed {
		return
	}
	was := p.agreed
	if was {
		d.partLocked(p, reason, b)
	}
	p.hs.sent, p.hs.got, p.hs.peerNo = false, false, 0
	p.role, p.disk = replication.UnknownRole, replication.DUnknown
	p.refused = ""
	p.steady, p.confirmed = false, replication.NoGen
	d.voteLostLocked(p, b)
	d.flush.lostLocked(d, p, b)
	d.readsLostLocked(p, b)
	d.evaluateLocked(b)
	if was {
		d.chooseSourceLocked(b)
	}
}

// partLocked ends an agreement: what the peer may not have is marked, and
// nothing more is awaited of it.
func (d *Device) partLocked(p *peer, reason string, b *block.Batch) {
	d.spareLostLocked(p)
	p.agreed, p.inSync, p.early = false, false, nil
	d.fencesLocked() // before anything that the peer has missed is answered
	d.endVerifyLocked(p, reason)
	d.pollPartedLocked(p)
	d.voteVoidLocked(p)
	p.hs.sent, p.hs.got = false, false
	d.genHas = d.genHas.Without(p.id)
	if d.genBy == p {
		d.genBy = nil
	}
	if d.genBusy && d.genWait.Has(p.id) {
		// It takes part no longer; if it comes back, in another generation.
		d.genWait = d.genWait.Without(p.id)
		d.genAgain = true
		d.work.do(d.settleGen)
	}
	d.syncPartLocked(p)
	d.setReplLocked(p, replication.Off)
	if d.receives.Has(p.id) {
		d.receives = d.receives.Without(p.id)
		d.excludeLocked(p, reason, b)
	}
	if d.primary == p.id {
		p.fence.client = p.diskless && !p.closed && !mutate.Is(mutate.SpareClients)
		d.primaryLostLocked(p, reason, b)
	}
	p.state, p.roll = wire.DeviceState{Primary: wire.NoNode}, roll{}
}

// excludeLocked: as the primary, go on without a peer. What it did not
// confirm, and what it confirmed but may still lose, is marked; and the marks get a
// generation of their own, which is durable before any change that missed the peer is
// answered. That is so for a mixture, too: another node that resyncs it may end that
// before it hears that the peer is lost, and neither would know what the disk lacks.
func (d *Device) excludeLocked(p *peer, reason string, b *block.Batch) {
	// The replicas mark what it misses, from the very next change on, which may
	// be one that waited for a range.
	d.announceLocked(b)
	d.rolls++
	doubtful := d.missSinceLocked(p, p.stable)
	if p.disk != replication.Inconsistent || !mutate.Is(mutate.EndUnheard) {
		d.needGen = true
		d.genAgain = d.genBusy
	}
	waiting := false
	for o := range d.window.all {
		if o.wait.Has(p.id) || d.unacksLocked(o, p) {
			waiting = true
			break
		}
	}
	if waiting && d.needGen && !mutate.Is(mutate.AnswerEarly) {
		d.hold |= holdGeneration
	}
	// Quorum first: whether these may be answered depends on it.
	d.censusLocked()
	for o := range d.window.all {
		if !o.wait.Has(p.id) {
			if d.unacksLocked(o, p) {
				d.unackLocked(o, p)
			}
			continue
		}
		if !mutate.Is(mutate.ForgetMissed) {
			d.missLocked(p.bit(), o.ext)
		}
		doubtful = append(doubtful, o.ext)
		o.miss = o.miss.With(p.id)
		o.wait &^= p.bit()
		o.need &^= p.bit()
		d.progressLocked(o, b)
	}
	// Before the generation, on the same link: when that is confirmed, the other
	// replicas know what the lost one may lack.
	d.shareMarksLocked(p.id, doubtful, b)
	if d.needGen && waiting {
		d.startGenLocked()
	}
	d.log.Info("going on without a peer", "peer", p.name, "reason", reason)
}

// unacksLocked: what is not on its own disk a primary counts as missing on a disk that
// took it and is gone, unless it is answered. What that disk has of it may be undone
// by the others before it is back; it is sent again then. Until the others have noted
// that they go on without that disk it is not answered: else they could choose it for
// a source, which this primary cannot take for current.
func (d *Device) unacksLocked(o *op, p *peer) bool {
	return !o.local && !o.localOK && o.err == nil && !o.answered && !o.miss.Has(p.id)
}

func (d *Device) unackLocked(o *op, p *peer) {
	o.miss = o.miss.With(p.id)
	if d.disks.Without(d.cfg.Self)&^(o.miss|o.wait) == 0 {
		o.acked = false
	}
}

// missSinceLocked marks what was changed after seq as out of sync with a peer,
// and returns it.
func (d *Device) missSinceLocked(p *peer, seq uint64) (marked []block.Extent) {
	list, complete := d.recent.after(seq)
	for _, c := range list {
		marked = append(marked, c.ext)
	}
	if mutate.Is(mutate.ForgetMissed) || mutate.Is(mutate.ForgetUnflushed) {
		return marked
	}
	if l := d.activityLocked(); !complete && l != nil {
		marked = append(marked, l.Hot()...)
	}
	if d.meta == nil {
		return marked // the replicas note it
	}
	bm := d.meta.Bitmap(p.id)
	for _, e := range marked {
		bm.Set(e)
	}
	return marked
}

// shareMarksLocked tells the replicas what another, or the primary's own disk,
// may lack although it was sent it: they have taken it for one that has
// everything.
func (d *Device) shareMarksLocked(id int, es []block.Extent, b *block.Batch) {
	if len(es) == 0 || d.receives == 0 || mutate.Is(mutate.KeepMarks) {
		return
	}
	slices.SortFunc(es, func(x, y block.Extent) int { return cmp.Compare(x.Off, y.Off) })
	var payload []byte
	first, at := uint64(0), uint64(0)
	send := func() {
		h := wire.Header{Type: wire.Marks, Arg: [3]uint64{uint64(id), first}}
		for to := range d.receives.All() {
			d.peers[to].send(h, payload, nil, b)
		}
		payload, first = payload[:0], at
	}
	for _, e := range es {
		u := e.Units()
		off, end := max(uint64(u.Off)/block.Unit, at), min(uint64(u.End()), uint64(d.cfg.Size))/block.Unit
		if off >= end {
			continue
		}
		payload = wire.AppendRun(payload, off-at, end-off)
		at = end
		if len(payload) >= bitsPayload {
			send()
		}
	}
	if len(payload) > 0 {
		send()
	}
}

// marksReceivedLocked takes the primary's word on what another replica may lack.
func (d *Device) marksReceivedLocked(p *peer, f *wire.Frame) {
	id := int(f.Arg[0])
	if d.meta == nil || id >= replication.MaxNodes || id == d.cfg.Self || !d.disks.Has(id) {
		return
	}
	bm := d.meta.Bitmap(id)
	_, err := wire.Runs(f.Payload, f.Arg[1], d.cfg.Size, func(e block.Extent) { bm.Set(e) })
	d.decodedLocked(p, f.Type, err)
}

// primaryLostLocked: the primary is out of contact. What of its last changes
// the other replicas may not have is marked against all of them; those in
// contact then compare notes.
func (d *Device) primaryLostLocked(p *peer, reason string, b *block.Batch) {
	d.primary = -1
	if d.unsyncedLocked() {
		d.work.do(d.syncDisk) // before any vote or handshake
	}
	d.rivalLeftLocked()
	if n, marked := d.unconfirmedLocked(); marked {
		d.log.Info("the primary is gone", "peer", p.name, "reason", reason, "unconfirmed", n)
		var again replication.NodeSet
		for _, q := range d.peers {
			if q != nil && q != p && !q.diskless {
				again = again.With(q.id)
			}
		}
		d.work.do(func() {
			b := &block.Batch{}
			d.mu.Lock()
			if d.primary < 0 {
				d.rehelloLocked(again, b)
			}
			d.mu.Unlock()
			b.Finish()
		})
	}
}

// unconfirmedLocked marks against all others what of the last changes of the primary
// that was followed they may not have, and returns how many those are.
func (d *Device) unconfirmedLocked() (n int, marked bool) {
	if d.meta == nil || d.recent.len() == 0 || mutate.Is(mutate.SkipReconcile) {
		return 0, false
	}
	list, complete := d.recent.after(d.floor)
	others := d.disks.Without(d.cfg.Self)
	for _, c := range list {
		d.missLocked(others, c.ext)
	}
	if !complete {
		for _, e := range d.meta.AL().Hot() {
			d.missLocked(others, e)
		}
		for _, o := range d.ranges.ops {
			if o.kind == peerChange { // it may wait for room in the log
				d.missLocked(others, o.ext)
			}
		}
	}
	d.saveLocked(nil)
	// With all that is marked nothing needs the log, nor room in it, any more.
	// Nobody else would make any.
	at := d.epochLocked(d.received)
	d.noteMarksLocked(func(*block.Batch) { d.meta.AL().SetStable(at) })
	return len(list), true
}

// rivalLeftLocked: the primary that was followed is that no longer. Where another in
// contact takes itself for it, nobody knows from when on its changes were followed: it
// is agreed with anew.
func (d *Device) rivalLeftLocked() {
	for _, q := range d.peers {
		if q == nil || !q.agreed || q.role != replication.Primary || q.id == d.primary {
			continue
		}
		no := q.hs.no
		d.work.do(func() {
			b := &block.Batch{}
			d.mu.Lock()
			if q.agreed && q.hs.no == no && q.role == replication.Primary && d.primary != q.id && d.role != replication.Primary {
				d.helloLocked(q, b)
			}
			d.mu.Unlock()
			b.Finish()
		})
	}
}
