package device

import (
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/wire"
)

// chooseSourceLocked begins to pull from the best peer that has what this disk
// lacks.
func (d *Device) chooseSourceLocked(b *block.Batch) {
	d.answerStaysLocked(b)
	if d.disk == nil || d.closing || d.keepsLocked() {
		return
	}
	var now, best *peer
	for _, p := range d.peers {
		switch {
		case p == nil:
		case p.sync.pulling:
			now = p
		case d.mayPullLocked(p) && betterSource(p, best):
			best = p
		}
	}
	if best == nil || now != nil && (best.role != replication.Primary || now.role == replication.Primary) {
		return
	}
	if now != nil {
		// The primary is back: it orders its own writes against the resync.
		d.giveUpLocked(now, b)
		d.setReplLocked(now, replication.PausedSyncT)
	}
	if d.changingLocked(best) {
		return // its next state is of that generation
	}
	if d.role == replication.Primary && d.genBusy {
		return // genDoneLocked comes back to it
	}
	f := d.factsLocked(best)
	f.Quorate = best.hs.mine.Quorate // which the agreement itself may have changed
	if !sameFacts(&f, &best.hs.mine, best.id, true) {
		d.helloLocked(best, b) // it was agreed on other data than this disk holds now
		return
	}
	if !d.staysLocked(best, b) {
		return
	}
	d.announceLocked(b) // the source of the last resync takes the next state for that of its end, see peer.ending
	d.beginPullLocked(best)
	if d.role == replication.Primary {
		d.evaluateLocked(b) // a generation may wait for that
	}
}

// pullsSoonLocked reports whether this primary's disk is about to take over a source's
// generations. It begins none of its own meanwhile, nor the other way round: else the disk
// would bear a name before what it lacks of that is marked, or what was agreed on with the
// source be about another generation, and be agreed on anew, in another one, for ever.
func (d *Device) pullsSoonLocked() bool {
	if d.disk == nil || d.dstat == replication.UpToDate {
		return false
	}
	soon := false
	for _, p := range d.peers {
		switch {
		case p == nil || !p.agreed:
		case p.sync.pulling:
			return !p.sync.adopted
		case p.repl == replication.PausedSyncT && time.Since(p.since) < handshakeTimeout:
			soon = soon || !p.heard || d.mayPullLocked(p)
		}
	}
	return soon
}

// changingLocked reports whether a primary's generation that this disk has noted may be
// about to come into force. A new handshake would keep it from that, and a resync that is
// shorter end in the one before; the primary would begin another without this disk, and so
// on for ever. One that is late may have been given up, and one that is in force by the
// primary's own facts changes nothing any more.
func (d *Device) changingLocked(p *peer) bool {
	return p.role == replication.Primary && d.announcer == p.id && d.genNoted.After(d.gens.Seen) && d.genNoted.After(p.hs.theirs.Gens.Seen) && time.Since(d.genNotedAt) < mostPatience
}

// mayPullLocked reports whether p has what this disk lacks, and is a source that
// will do.
func (d *Device) mayPullLocked(p *peer) bool {
	return p.agreed && p.heard && p.repl == replication.PausedSyncT && p.disk >= replication.Consistent && !p.syncingLocked() && d.sourceLocked(p) && !d.turnsLocked(p)
}

// sourceFailedLocked: a source cannot read a piece, nor heal its disk. If
// another has it, the resync goes on from there; else with the rest, and the
// blocks that cannot be read are asked for again after another handshake.
func (d *Device) sourceFailedLocked(p *peer, e block.Extent, b *block.Batch) {
	p.unread = time.Now()
	for _, q := range d.peers {
		if q != nil && q != p && !q.unreadLately() && d.mayPullLocked(q) {
			d.giveUpLocked(p, b)
			d.setReplLocked(p, replication.PausedSyncT)
			d.chooseSourceLocked(b)
			return
		}
	}
	if e.Len > block.Unit && len(p.sync.small) < mostSmall {
		p.sync.small = append(p.sync.small, e)
		return
	}
	p.sync.failed = true
}

// mostSmall bounds the pieces that are asked for block by block.
const mostSmall = 1024

// nextSmall is the next block of a piece that could not be read as a whole.
func (sy *syncState) nextSmall(bm *store.Bitmap) (e block.Extent, ok bool) {
	for len(sy.small) > 0 {
		from := &sy.small[0]
		e, ok = bm.Next(from.Off/block.Unit, 1)
		if ok && e.Off < from.End() {
			*from = block.Extent{Off: e.End(), Len: from.End() - e.End()}
			return e, true
		}
		sy.small = sy.small[1:]
	}
	return block.Extent{}, false
}

// unreadLately reports whether the peer could not read a piece as a source.
func (p *peer) unreadLately() bool { return !p.unread.IsZero() && time.Since(p.unread) < time.Minute }

// turnsLocked reports whether p would take turns with another as the source of
// this disk: the two do not see each other, or have not found out yet what they differ
// in, so each can only find again what the other has left, though all of it was never
// answered. This disk is in sync with that other, and stays so until the two have met.
// Without this, n disks that lost their primary would resync each other n² times.
//
// Of several that are in sync with each other the one of the lowest id does not wait for
// those that see p, so that not all wait for each other.
func (d *Device) turnsLocked(p *peer) bool {
	if p.role == replication.Primary || !p.decision.Even {
		return false // nobody else is a source, or there is more to it
	}
	sees, inSync := replication.NodeSet(p.state.Sees), replication.NodeSet(p.state.InSync)
	for _, q := range d.peers {
		if q == nil || q == p || !q.agreed || !q.inSync || q.diskless {
			continue
		}
		if !sees.Has(q.id) || !inSync.Has(q.id) && q.id < d.cfg.Self && time.Since(q.since) < meetTime {
			return true
		}
	}
	return false
}

// meetTime is how long a disk that is in sync with one of two sources which see each
// other waits for these to meet. Something may keep them from it that this node does not
// know; retellLocked then has the source chosen anew.
const meetTime = 2 * time.Second

// syncingLocked reports whether p's disk is itself being resynced, which makes
// it no source, complete or not. A primary's own writes make it one.
func (p *peer) syncingLocked() bool {
	return p.state.Flags&wire.DevFlagSyncing != 0 && p.role != replication.Primary
}

func betterSource(p, best *peer) bool {
	if best != nil && p.unreadLately() != best.unreadLately() {
		return best.unreadLately()
	}
	return best == nil || p.role == replication.Primary || best.role != replication.Primary && p.disk > best.disk
}

// sourceLocked reports whether p will do as a source: the primary; or, where
// its own disk cannot, or there is none, any other. A node that hears of a
// primary only from others waits for contact with it.
func (d *Device) sourceLocked(p *peer) bool {
	if p.role == replication.Primary || d.role == replication.Primary {
		return true
	}
	if d.primary >= 0 {
		q := d.peers[d.primary]
		return q != nil && q.disk != replication.UpToDate && p.disk == replication.UpToDate
	}
	return !d.primaryAboutLocked() && p.disk >= replication.Consistent
}

// wholeLocked reports whether this disk stays complete while it is resynced
// from p: the two differ only in changes that were not answered, each of which
// may be there or not, and nobody makes new ones. Were it a mixture, all
// survivors of a lost primary could come to hang on one.
func (d *Device) wholeLocked(p *peer) bool {
	theirs := &p.hs.theirs
	return p.decision.Even && theirs.Gens.Current == d.gens.Current && theirs.Live && d.live && !d.primaryAboutLocked()
}

// primaryAboutLocked reports whether this node knows of a primary.
func (d *Device) primaryAboutLocked() bool {
	if d.primary >= 0 || d.role == replication.Primary {
		return true
	}
	for _, q := range d.peers {
		if q != nil && q.agreed && q.state.Primary != wire.NoNode {
			return true
		}
	}
	return false
}

// mixLocked: with a primary, the source has changes that this disk gets only
// in part.
func (d *Device) mixLocked() {
	if d.dstat > replication.Inconsistent && d.pullingLocked() && d.primaryAboutLocked() {
		d.setDiskLocked(replication.Inconsistent, "there is a primary, and the resync is not complete")
		d.saveLocked(nil)
	}
}
