package device

import (
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// syncDoneReceivedLocked ends a resync: first at the source, which may have
// more by now, then at the target, which takes over what the source's
// generations have become.
func (d *Device) syncDoneReceivedLocked(p *peer, b *block.Batch) {
	switch {
	case p.repl == replication.SyncSource:
		d.sourceDoneLocked(p)
	case p.sync.pulling:
		d.targetDoneLocked(p)
	}
	_ = b
}

func (d *Device) sourceDoneLocked(p *peer) {
	s := p.session
	if d.meta == nil {
		return
	}
	if d.meta.Bitmap(p.id).Count() > 0 || len(p.sync.sent) > 0 {
		d.sendBitsLocked(p, fromSource)
		return
	}
	if d.mayMissLocked(p) {
		p.sync.over = true
		return
	}
	p.sync.over = false
	d.gens = d.gens.FinishSync(p.id)
	d.saveLocked(func(err error, b *block.Batch) {
		if err != nil || p.session != s || p.repl != replication.SyncSource {
			return
		}
		facts := d.factsLocked(p)
		f := wireFacts(&facts)
		f.Name, f.No, f.Handle, f.Whole = d.opts.Name, p.hs.no, d.opts.Handle, p.speaks(wire.FeatureVotes)
		p.sync, p.found = syncState{}, nil
		p.inSync, p.ending, p.fence.spared = true, true, false
		d.crashed = false
		p.send(wire.Header{Type: wire.SyncDone}, f.Append(nil), nil, b)
		d.setReplLocked(p, replication.Established)
		d.eventLocked("resync", p, "resync of %s is complete", p.name)
		d.evaluateLocked(b)
		d.chooseSourceLocked(b) // it may have waited for that
	})
}

// mayMissLocked reports whether a target may miss changes of the primary, which
// is another node, without its noticing: as far as has come here, it does not
// send the target any. In contact with it or not, the target would bear the
// generation in force, and lack what is answered in it from there on. What the
// primary sends here meanwhile is marked, and comes before its word that it
// sends the target its changes.
func (d *Device) mayMissLocked(p *peer) bool {
	if mutate.Is(mutate.EndUnreached) {
		return false
	}
	for _, q := range d.peers {
		// Not only that which this node follows: of two it may be the wrong one.
		primary := q != nil && q != p && (q.id == d.primary || q.agreed && q.role == replication.Primary)
		if primary && !replication.NodeSet(q.state.Receives).Has(p.id) {
			return true
		}
	}
	return false
}

// endOverLocked ends the resyncs that waited for the primary.
func (d *Device) endOverLocked() {
	for _, p := range d.peers {
		if p != nil && p.sync.over && p.repl == replication.SyncSource && !d.mayMissLocked(p) {
			p.sync.over = false
			d.sourceDoneLocked(p)
		}
	}
}

func (d *Device) targetDoneLocked(p *peer) {
	f := p.doneFacts
	if f == nil {
		return
	}
	p.doneFacts = nil
	src := factsOf(p.id, f)
	// That is what the source knew when it finished: a generation that the
	// primary has announced since is newer. And a primary makes its own.
	switch {
	case d.role == replication.Primary:
	case d.gens.Knows(src.Gens.Current):
		d.gens = d.gens.Inherit(&src.Gens)
	default:
		d.gens = d.gens.AdoptSource(&src.Gens, d.cfg.Self, p.id)
	}
	d.gens = d.gens.FinishSync(p.id)
	d.inheritMarksLocked(p)
	d.crashed = false
	from := p.sync
	p.sync, p.found = syncState{}, nil
	d.pulls = d.pullingLocked()
	p.inSync = true
	d.setReplLocked(p, replication.Established)
	d.best = d.best || src.Best // of equal data the one knows what the other does
	d.setDiskLocked(max(src.Disk, replication.Outdated), "resync from "+p.name+" is complete")
	d.eventLocked("resync", p, "resync from %s is complete: %s in %v", p.name, block.Amount(from.done), time.Since(from.began).Round(time.Millisecond))
	s := p.session
	d.saveLocked(func(err error, b *block.Batch) {
		if err != nil || p.session != s {
			return
		}
		d.evaluateLocked(b)
		d.regardOthersLocked(p, b)
		d.chooseSourceLocked(b)
	})
}

// inheritMarksLocked: this disk is now what its source's is, so it differs from
// no disk from which that does not differ. Without this two sources would have
// it resynced from each in turn.
func (d *Device) inheritMarksLocked(p *peer) {
	in := replication.NodeSet(p.state.InSync)
	if d.primary >= 0 && d.primary != p.id {
		// A third node orders the writes: what it no longer sends to all may be
		// marked here already, and not in the source's word.
		if d.primary == d.cfg.Self || !d.knowsRollLocked(p) {
			return
		}
		in &= replication.NodeSet(d.peers[d.primary].state.Receives)
	}
	for id := range in.All() {
		if id != d.cfg.Self && id != p.id && d.disks.Has(id) {
			d.meta.Bitmap(id).ClearAll()
		}
	}
}

// regardOthersLocked: what was agreed with other peers was agreed on data that
// this disk no longer holds. A primary that lacks what this disk had before, and is being
// resynced itself, agrees anew when that ends: to do so now would be to lose it, and what
// that had this disk miss would have to be resynced in turn, and so on until then.
func (d *Device) regardOthersLocked(p *peer, b *block.Batch) {
	d.settleLocked(p, b)
	var again replication.NodeSet
	for _, q := range d.peers {
		if q != nil && q != p && q.agreed && !q.inSync && !q.diskless && !d.pullsElsewhereLocked(q) {
			again = again.With(q.id)
		}
	}
	if again != 0 {
		d.rehelloLocked(again, b)
	}
}

// pullsElsewhereLocked reports whether a peer is this node's primary, and a third resyncs it.
func (d *Device) pullsElsewhereLocked(q *peer) bool {
	return q.id == d.primary && q.disk == replication.Inconsistent && q.repl != replication.SyncSource && q.state.Flags&wire.DevFlagSyncing != 0
}

// giveUpLocked tells a source that this node no longer pulls from it.
func (d *Device) giveUpLocked(p *peer, b *block.Batch) {
	d.syncPartLocked(p)
	p.stay = stay{}
	p.send(wire.Header{Type: wire.SyncDone, Flags: wire.FlagError}, nil, nil, b)
}

// targetGaveUpLocked: the target pulls from somebody else, or lacks nothing.
func (d *Device) targetGaveUpLocked(p *peer) {
	p.stay, p.fence.spared = stay{}, false
	if p.repl == replication.SyncSource {
		d.syncPartLocked(p)
		d.setReplLocked(p, replication.PausedSyncS)
	}
}

// syncPartLocked ends a resync that has not completed. What was not confirmed
// is marked again.
func (d *Device) syncPartLocked(p *peer) {
	sy := p.sync
	p.sync = syncState{full: sy.full}
	for _, e := range sy.sent {
		if d.meta != nil {
			d.meta.Bitmap(p.id).Set(e)
		}
	}
	for _, o := range sy.ops {
		if !o.granted {
			d.freeOpLocked(o)
		}
	}
	d.pulls = d.pullingLocked()
}

// renegotiateLocked gives a pair that is neither in sync nor on its way there
// another handshake: whatever happened in the meantime, it decides anew. The
// pauses between such attempts grow; many a pair waits for good reason.
func (d *Device) renegotiateLocked(p *peer, now time.Time, b *block.Batch) {
	ahead := p.role == replication.Primary || d.dstat == replication.Outdated && p.disk == replication.UpToDate
	behind := ahead && p.heard && d.meta != nil && p.state.Current != uint64(d.gens.Current)
	marked := d.markedLocked(p.id) && len(p.found) == 0 // what a verify found waits for an administrator's word
	calm := p.inSync && !behind && !marked || p.diskless || d.disk == nil || !p.disk.HasData() || len(p.sync.sent) > 0 || d.getsLocked(now) || d.pullsElsewhereLocked(p) || p.sync.done != p.sync.seen
	p.sync.seen = p.sync.done
	if calm {
		p.restless, p.patience = time.Time{}, 0
		return
	}
	if p.restless.IsZero() {
		p.restless = now
		p.patience = max(p.patience, firstPatience)
	}
	patience := p.patience
	if behind && p.inSync && !marked && d.primary == p.id && d.gens.Current == d.genNoted {
		patience = mostPatience // a generation is on the way, at the pace of whoever's metadata is the slowest
	}
	if now.Sub(p.restless) < patience {
		return
	}
	p.restless = time.Time{}
	p.patience = min(2*p.patience, mostPatience)
	d.log.Debug("another handshake: neither in sync nor on the way", "peer", p.name)
	d.helloLocked(p, b)
}

// getsLocked reports whether pieces of a resync are on their way to this disk. What it is
// to others they agree on when it has all, unless nothing comes any more.
func (d *Device) getsLocked(now time.Time) bool {
	for _, p := range d.peers {
		if p != nil && len(p.sync.ops) > 0 && now.Sub(p.sync.came) < mostPatience {
			return true
		}
	}
	return false
}

const (
	firstPatience = 3 * time.Second
	mostPatience  = time.Minute
)
