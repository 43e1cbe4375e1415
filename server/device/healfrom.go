package device

import (
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// healFromLocked heals as a replica: it asks, and holds nothing.
func (d *Device) healFromLocked(h *healing, b *block.Batch) {
	p := d.healSourceLocked(h.tried)
	switch {
	case h.disk != d.disk:
		d.healedLocked(h, errHealVoid, false, b)
		return
	case p == nil && h.tried != 0:
		d.healedLocked(h, errHopeless, false, b)
		return
	case p == nil:
		d.healLaterLocked(h, b)
		return
	}
	h.from, h.basis = p, d.healBasisLocked(p)
	h.data = make([]byte, h.ext.Len)
	d.nextID++
	h.read = d.nextID
	d.remote[h.read] = &remoteRead{id: h.read, off: h.ext.Off, data: h.data, from: p, heal: h}
	p.send(wire.Header{Type: wire.ReadReq, Flags: wire.FlagSync, Arg: [3]uint64{uint64(h.ext.Off), h.read, uint64(h.ext.Len)}}, nil, nil, b)
}

func (d *Device) healBasisLocked(p *peer) healBasis {
	x := healBasis{session: p.session, no: p.hs.no, peerNo: p.hs.peerNo, primary: d.primary, stream: d.stream, current: d.gens.Current}
	if d.primary < 0 {
		x.received, x.any = d.received, d.survivesLocked(p)
	} else {
		x.current = 0 // the primary moves it on
	}
	return x
}

// healSourceLocked is the peer that a replica may ask.
func (d *Device) healSourceLocked(but replication.NodeSet) *peer {
	if d.role == replication.Primary || d.disk == nil || !d.wholesomeLocked() || d.pullingLocked() {
		return nil
	}
	var even *peer
	for _, p := range d.peers {
		switch {
		case p == nil || !p.agreed || but.Has(p.id) || !p.speaks(wire.FeatureHeal):
		case d.primary == p.id && d.followingLocked() && (p.repl == replication.Established || p.repl == replication.SyncSource || p.repl == replication.PausedSyncS):
			return p
		case d.primaryAboutLocked() || !p.heard || p.disk < replication.Consistent:
		case p.inSync && p.repl == replication.Established && !p.syncingLocked():
			return p
		case d.survivesLocked(p) && d.abreastLocked(p):
			even = p
		}
	}
	return even
}

// survivesLocked reports whether a peer is being resynced from this disk in
// changes of a primary that was lost, which were never answered: neither of the
// two has been down since, so each has all that were.
func (d *Device) survivesLocked(p *peer) bool {
	theirs := &p.hs.theirs
	return p.repl == replication.SyncSource && p.decision.Even && len(p.found) == 0 && theirs.Live && d.live &&
		theirs.Stream == d.stream && d.stream != 0 && d.stream != d.heals.ended && !d.primaryAboutLocked()
}

// unaskLocked: no answer is awaited any more.
func (d *Device) unaskLocked(h *healing) {
	delete(d.remote, h.read)
	delete(d.heals.questions, h.question)
	h.from, h.read, h.question = nil, 0, 0
}

// healLaterLocked tries again in a while, or not any more.
func (d *Device) healLaterLocked(h *healing, b *block.Batch) {
	d.unaskLocked(h)
	h.data = nil
	if h.tries++; h.tries > healTries || !d.wholesomeLocked() || h.disk != d.disk {
		d.healedLocked(h, errNoCopy, false, b)
		return
	}
	h.running = false
	d.heals.running--
	h.next = time.Now().Add(healPause << h.tries)
}

// healReadLocked: the peer has answered a replica.
func (d *Device) healReadLocked(h *healing, ok bool, b *block.Batch) {
	p := h.from
	h.read = 0
	if !ok {
		h.tried = h.tried.With(p.id)
		d.healFromLocked(h, b)
		return
	}
	if !d.healStandsLocked(h) {
		d.healLaterLocked(h, b)
		return
	}
	if h.basis.primary == p.id {
		d.takeHealLocked(h, b)
		return
	}
	d.nextID++
	h.question = d.nextID
	if d.heals.questions == nil {
		d.heals.questions = map[uint64]*healing{}
	}
	d.heals.questions[h.question] = h
	p.send(wire.Header{Type: wire.FactsReq, Arg: [3]uint64{h.question}}, nil, nil, b)
}

// healStandsLocked reports whether all is still as it was when the peer was
// asked.
func (d *Device) healStandsLocked(h *healing) bool {
	return h.disk == d.disk && d.healSourceLocked(^h.from.bit()) == h.from && d.healBasisLocked(h.from) == h.basis
}

// healFactsLocked: what another replica has had, by its word of after it was
// read from.
func (d *Device) healFactsLocked(p *peer, h *healing, f *wire.DeviceFacts, b *block.Batch) {
	h.question = 0
	stands := h.from == p && d.healStandsLocked(h) && idle(f)
	switch {
	case stands && h.basis.any && replication.Gen(f.Current) == d.gens.Current:
		d.forAllLocked(h)
	case stands && !h.basis.any && d.evenLocked(p, f):
		d.takeHealLocked(h, b)
	default:
		d.healLaterLocked(h, b)
		if stands && !h.basis.any && f.Dirty == 0 && !d.markedLocked(p.id) {
			// Nothing differs, and neither can tell by what it has had: one of the two
			// has begun to follow a primary, since they agreed, that was lost at once.
			// Nobody else will have them agree anew.
			d.helloLocked(p, b)
		}
	}
}

// forAllLocked: this disk is about to hold another version of what was never
// answered. All others are to get that, which is noted before it is done.
func (d *Device) forAllLocked(h *healing) {
	d.missLocked(d.disks.Without(d.cfg.Self), h.ext)
	meta, p := d.meta, h.from
	d.work.do(func() {
		err := meta.WriteBitmaps()
		b := &block.Batch{}
		d.mu.Lock()
		switch {
		case err != nil:
			d.metaFailedLocked(meta, "metadata write", err)
		case h.from != p || h.filled:
		case d.healStandsLocked(h):
			d.takeHealLocked(h, b)
		default:
			d.healLaterLocked(h, b)
		}
		var again replication.NodeSet
		for _, q := range d.peers {
			if q != nil && q.agreed && !q.diskless && q.repl == replication.Established {
				again = again.With(q.id)
			}
		}
		d.rehelloLocked(again, b)
		d.mu.Unlock()
		b.Finish()
	})
}

// idle reports whether by a peer's facts it follows no primary.
func idle(f *wire.DeviceFacts) bool {
	return replication.Role(f.Role) != replication.Primary && f.Primary == wire.NoNode && replication.DiskState(f.Disk) >= replication.Consistent
}

// evenLocked reports whether a peer in sync with this disk has had no change
// that this one has not, now that there is no primary: both are at the end of the
// same stream; or neither has had anything since they agreed that they are in
// sync.
func (d *Device) evenLocked(p *peer, f *wire.DeviceFacts) bool {
	theirs := factsOf(p.id, f)
	if theirs.Dirty > 0 || d.meta.Bitmap(p.id).Count() > 0 {
		return false
	}
	if ended := d.stream == d.heals.ended; theirs.Stream == d.stream && d.stream != 0 {
		switch {
		case d.leader == p.id || d.leader == d.cfg.Self: // so the one has all that the other can have
			if ended {
				return true
			}
		case theirs.Received == d.received, ended && theirs.Received <= d.reachedLocked():
			return true // who joined late, or was restarted, got the rest by a resync
		}
	}
	then, mine, had := &p.hs.theirs, &p.hs.mine, d.received
	if mine.Role == replication.Primary {
		had = d.window.head // as a primary's facts have it
	}
	return theirs.Stream == then.Stream && theirs.Received == then.Received && mine.Stream == d.stream && mine.Received == had
}

// takeHealLocked writes what a replica was given.
func (d *Device) takeHealLocked(h *healing, b *block.Batch) {
	h.fillLocked(h.data)
	o := d.newOpLocked()
	o.kind, o.what, o.granted = mend, block.Write, true
	o.ext, o.data, o.heal = h.ext, h.data, h
	d.beginLocked(o, b)
}

// healsPartLocked: nothing more comes of what a peer was asked.
func (d *Device) healsPartLocked(p *peer, b *block.Batch) {
	for _, h := range append([]*healing(nil), d.heals.list...) {
		if h.from == p && !h.filled {
			d.healLaterLocked(h, b)
		}
	}
}
