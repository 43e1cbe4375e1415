package device

import (
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

func (d *Device) factsLocked(p *peer) replication.Facts {
	f := replication.Facts{
		Node: d.cfg.Self, Role: d.role, Disk: d.dstat, Size: d.cfg.Size, Gens: d.gens,
		Crashed: d.crashed, Live: d.live, Following: d.followingLocked(), Best: d.best, Stream: d.stream, Received: d.received,
		Quorate: d.quorum.Quorate && !d.barrenLocked(), Discard: d.discard.Has(p.id),
		Primary: d.primary, Ordered: d.orderedLocked(), Began: d.began, Origin: d.origin, Votes: d.votes, Newcomer: d.newcomer, Member: d.member,
		Former: len(d.former) > 0, Met: d.met, Regrouped: d.movedLocked(),
	}
	if d.role == replication.Primary && d.genNew.After(d.gens.Current) && d.dstat == replication.UpToDate {
		f.Announced = d.genNew
	}
	if d.primary < 0 && d.change.promised != 0 {
		f.Primary = d.change.promisedTo // it has our vote
	}
	if f.Primary == p.id {
		f.Primary = replication.NoPrimary // the peer knows best
	}
	if d.role == replication.Primary {
		f.Received = d.window.head
	}
	if d.unguidedLocked() && d.disk == nil {
		f.Gens.Current = d.servedLocked() // not what a disk of its own was in that it had
	}
	if d.meta != nil {
		d.forgetBeyondLocked(p.id)
		f.Dirty = d.meta.Bitmap(p.id).Count()
	}
	return f
}

// toldLocked reports whether what a peer was told last leads to the decision that
// this node's facts lead to now. Who comes and goes in the midst of many handshakes
// changes whether there is quorum; where that decides nothing it is no news, or each
// handshake could void another, for ever.
func (d *Device) toldLocked(p *peer) bool {
	now, mine := d.factsLocked(p), &p.hs.mine
	if now.Quorate != mine.Quorate {
		then := now
		then.Quorate = mine.Quorate
		if d.verdictLocked(&then, &p.hs.theirs) == d.verdictLocked(&now, &p.hs.theirs) {
			now = then
		}
	}
	return sameFacts(&now, mine, p.id, d.primary >= 0)
}

// sameFacts reports whether two sets of our facts lead to the same decision with
// a peer. How many units are dirty does not matter, whether there are any does; how
// much of a stream was received matters when its primary is gone; and that another
// differs from us within our generation does not matter at all.
func sameFacts(a, b *replication.Facts, peer int, primary bool) bool {
	x, y := *a, *b
	x.Dirty, y.Dirty = min(x.Dirty, 1), min(y.Dirty, 1)
	if primary {
		x.Received, y.Received = 0, 0
	}
	for id := range x.Gens.Bitmap {
		if id != peer {
			forgetPresent(&x.Gens, id)
			forgetPresent(&y.Gens, id)
		}
	}
	return x == y
}

func forgetPresent(g *replication.Gens, id int) {
	if g.Bitmap[id] == g.Current {
		g.Bitmap[id] = replication.NoGen
	}
}

// wireFacts and factsOf translate facts to and from the wire.
func wireFacts(f *replication.Facts) wire.DeviceFacts {
	w := wire.DeviceFacts{
		Origin: f.Origin, Votes: f.Votes,
		Role: uint8(f.Role), Disk: uint8(f.Disk), Size: f.Size, Dirty: f.Dirty,
		Stream: f.Stream, Received: f.Received, Current: uint64(f.Gens.Current), Base: uint64(f.Gens.Base), Seen: uint64(f.Gens.Seen), Noted: uint64(f.Gens.Noted), Primary: wire.NoNode, Announced: uint64(f.Announced), Began: f.Began,
	}
	if f.Primary >= 0 {
		w.Primary = uint8(f.Primary)
	}
	for i, g := range f.Gens.Bitmap {
		w.Bitmap[i] = uint64(g)
	}
	for i, g := range f.Gens.History {
		w.History[i] = uint64(g)
	}
	for flag, on := range map[uint16]bool{
		wire.DevFlagCrashed: f.Crashed, wire.DevFlagLive: f.Live, wire.DevFlagFollowing: f.Following,
		wire.DevFlagDiscard: f.Discard, wire.DevFlagQuorate: f.Quorate, wire.DevFlagBest: f.Best, wire.DevFlagNewcomer: f.Newcomer, wire.DevFlagMember: f.Member,
		wire.DevFlagFormer: f.Former, wire.DevFlagMet: f.Met, wire.DevFlagRegrouped: f.Regrouped,
	} {
		if on {
			w.Flags |= flag
		}
	}
	return w
}

func factsOf(node int, w *wire.DeviceFacts) replication.Facts {
	f := replication.Facts{
		Origin: w.Origin, Votes: w.Votes,
		Node: node, Role: replication.Role(w.Role), Disk: replication.DiskState(w.Disk), Size: w.Size,
		Dirty: w.Dirty, Stream: w.Stream, Received: w.Received, Began: w.Began,
		Crashed: w.Flags&wire.DevFlagCrashed != 0, Live: w.Flags&wire.DevFlagLive != 0, Following: w.Flags&wire.DevFlagFollowing != 0,
		Discard: w.Flags&wire.DevFlagDiscard != 0, Quorate: w.Flags&wire.DevFlagQuorate != 0,
		Best: w.Flags&wire.DevFlagBest != 0, Newcomer: w.Flags&wire.DevFlagNewcomer != 0, Member: w.Flags&wire.DevFlagMember != 0,
		Former: w.Flags&wire.DevFlagFormer != 0, Met: w.Flags&wire.DevFlagMet != 0, Regrouped: w.Flags&wire.DevFlagRegrouped != 0, Primary: replication.NoPrimary, Announced: replication.Gen(w.Announced),
	}
	if w.Primary < replication.MaxNodes {
		f.Primary = int(w.Primary)
	}
	f.Gens.Current, f.Gens.Noted = replication.Gen(w.Current), replication.Gen(w.Noted)
	f.Gens.Base, f.Gens.Seen = replication.Gen(w.Base), replication.Gen(w.Seen)
	for i, g := range w.Bitmap {
		f.Gens.Bitmap[i] = replication.Gen(g)
	}
	for i, g := range w.History {
		f.Gens.History[i] = replication.Gen(g)
	}
	return f
}
