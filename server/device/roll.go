package device

import (
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// A roll names the set of those who receive a primary's changes, its own disk
// among them, for as long as it is in force. The primary's word on its receivers
// bears it, on the data link: behind all that was changed, and marked, under the
// one before. A replica's word on who is in sync with it bears the roll that it
// has heard of. While a roll is in force nothing comes to differ between two of
// its set, so two words that bear it are of one time. The zero roll is that of a
// node that knows of none.
type roll struct {
	stream uint32 // the lower half of the primary's
	no     uint32
}

// rollLocked is the roll that this node's word bears.
func (d *Device) rollLocked() roll {
	if d.role == replication.Primary {
		return roll{uint32(d.stream), d.rolls + 1}
	}
	if d.primary < 0 {
		return roll{}
	}
	return d.roll
}

// put writes a roll to where the sets of a word on the receivers leave room.
func (r roll) put(h *wire.Header) {
	h.Arg[0] |= uint64(r.no) << 32
	h.Arg[1] |= uint64(r.stream) << 32
}

func rollOf(h *wire.Header) roll { return roll{uint32(h.Arg[1] >> 32), uint32(h.Arg[0] >> 32)} }

// knowsRollLocked reports whether what p said of who is in sync with it was said
// in the knowledge of all that this node knows.
func (d *Device) knowsRollLocked(p *peer) bool {
	r := d.rollLocked()
	return r != roll{} && p.roll == r
}

// agreeingLocked is the largest set of receivers that are in sync with each
// other by their own words. A primary without a disk has compared itself with
// nobody: without this nobody would tell the replicas which marks are void, and
// one that lacks something of two others would be resynced from each in turn.
func (d *Device) agreeingLocked() (most replication.NodeSet) {
	var who replication.NodeSet
	for id := range d.receives.All() {
		if p := d.peers[id]; p.agreed && p.disk == replication.UpToDate && d.knowsRollLocked(p) {
			who = who.With(id)
		}
	}
	for left := who; left != 0; {
		var s replication.NodeSet
		for id := range left.All() {
			s = replication.Of(id)
			break
		}
		for grown := true; grown; {
			grown = false
			for id := range (left &^ s).All() {
				mutual := replication.NodeSet(d.peers[id].state.InSync) & s
				for other := range mutual.All() {
					if replication.NodeSet(d.peers[other].state.InSync).Has(id) {
						s, grown = s.With(id), true
						break
					}
				}
			}
		}
		if left &^= s; s.Len() > most.Len() {
			most = s
		}
	}
	return most
}
