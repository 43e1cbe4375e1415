package device

import (
	"maps"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/wire"
)

// A piece that is read for a target must not undo at the target what that has confirmed: of
// the primary's changes a source may lack those that have not come here yet, and those that
// its disk has failed.

// reachedLocked is how far the primary's stream has come here. Who joined it late
// has what is before by another way, and learns by the floor how far that goes.
func (d *Device) reachedLocked() uint64 { return max(d.received, d.floor) }

// lacksLocked reports whether a target that asks for a piece has more of the primary's
// stream than has come here, and the primary, which orders the writes, is there: what is
// read here now would undo at the target what it has confirmed. Where the primary is in
// contact with the target alone, it has to come into contact with this node first. That
// it is, the target's roll says in order with what it asks for; its state comes by the
// other link, and may be behind.
//
// Likewise where this disk has failed a change and stays, because there is no other
// with the data: the target may have made it, and the primary counts on it there.
func (d *Device) lacksLocked(o *op) bool {
	if d.primary == d.cfg.Self || o.from.session != o.session {
		return false
	}
	lacks := o.tag > d.reachedLocked()
	for seq := range d.unmade {
		lacks = lacks || o.tag >= seq
	}
	if !lacks {
		return false
	}
	at := o.from.state.Primary
	return d.primary >= 0 || o.from.roll != (roll{}) && !mutate.Is(mutate.DeafToRoll) || at != wire.NoNode && int(at) != d.cfg.Self
}

// madeLocked notes whether a change of the primary's is on this disk.
func (d *Device) madeLocked(o *op, err error, b *block.Batch) {
	switch {
	case o.session != o.from.session || o.disk != d.disk:
	case err != nil && o.given:
	case err != nil:
		if d.unmade == nil {
			d.unmade = map[uint64]bool{}
		}
		d.unmade[o.seq] = true
	case d.unmade[o.seq]:
		delete(d.unmade, o.seq)
		d.tagsReachedLocked(b)
	}
}

// mostGiven is more than a primary has under way.
const mostGiven = 1 << 16

// givenLocked reports whether a change that comes was given up, and forgets all up to
// floor: nothing of those is behind it on the link that the changes come by.
func (d *Device) givenLocked(seq, floor uint64) bool {
	if len(d.given) == 0 {
		return false
	}
	given := d.given[seq]
	maps.DeleteFunc(d.given, func(s uint64, _ bool) bool { return s <= floor })
	return given
}

// gaveUpLocked: a change that this disk has failed is on no other, and is not sent again.
// It may be about to fail it once more, or for the first time: what was under way to a disk
// that fails is sent again when it is tried again. That may even come after this, which
// is said on the other link.
func (d *Device) gaveUpLocked(seq uint64, b *block.Batch) {
	if !mutate.Is(mutate.GiveUpOnce) {
		for _, o := range d.ranges.ops {
			if o.kind == peerChange && o.seq == seq && o.session == o.from.session {
				o.given = true
			}
		}
		if d.given == nil {
			d.given = map[uint64]bool{}
		}
		if len(d.given) < mostGiven {
			d.given[seq] = true
		}
	}
	if d.unmade[seq] {
		delete(d.unmade, seq)
		d.tagsReachedLocked(b)
	}
}

// tagsReachedLocked starts source reads that waited for the primary's writes.
func (d *Device) tagsReachedLocked(b *block.Batch) {
	if len(d.tagged) == 0 {
		return
	}
	wait := d.tagged
	d.tagged = nil
	for _, o := range wait {
		if d.lacksLocked(o) {
			d.tagged = append(d.tagged, o)
			continue
		}
		d.beginReadLocked(o, b)
	}
}
