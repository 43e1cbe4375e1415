package device

import (
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// A primary whose own disk cannot is asked for data all the same, by a replica
// that heals a bad block: only its answer stands in order with its changes. It
// holds the range, has another replica answer, and passes that on.

// mostRelays bounds them, and their memory.
const mostRelays = 16

// relaysLocked reports whether a read is one for another replica to answer.
func (d *Device) relaysLocked(e block.Extent) bool {
	return d.role == replication.Primary && (d.disk == nil || d.dstat != replication.UpToDate) && d.relays < mostRelays && e.Len <= mendPiece
}

// relayLocked has its range: it asks the others.
func (d *Device) relayLocked(o *op, b *block.Batch) {
	if d.role != replication.Primary {
		d.relayedLocked(o, block.ErrDropped, b)
		return
	}
	o.data = make([]byte, o.ext.Len)
	d.nextID++
	d.askLocked(&remoteRead{id: d.nextID, off: o.ext.Off, data: o.data, relay: o, tried: o.from.bit()}, b)
}

// relayedLocked passes the answer on.
func (d *Device) relayedLocked(o *op, err error, b *block.Batch) {
	d.relays--
	if err != nil || !d.givesLocked(o) {
		d.unansweredLocked(o, false, b)
	} else {
		o.from.send(wire.Header{Type: wire.ReadReply, Arg: [3]uint64{uint64(o.ext.Off), o.seq, uint64(o.ext.Len)}}, o.data, nil, b)
	}
	d.releaseLocked(o, b)
}

// givesLocked reports whether a peer may have what was read for it: from a
// primary only who is sent its changes, from a replica only while it is current.
func (d *Device) givesLocked(o *op) bool {
	if o.from.session != o.session || o.session == nil {
		return false
	}
	if d.role == replication.Primary {
		return d.receives.Has(o.from.id)
	}
	return d.dstat == replication.UpToDate || o.granted && d.wholesomeLocked()
}

// mendsPartLocked: this node is primary no longer, so what it holds for healing
// is in nobody's order.
func (d *Device) mendsPartLocked(b *block.Batch) {
	for id, rr := range d.remote {
		switch {
		case rr.mend != nil:
			delete(d.remote, id)
			d.mendEndsLocked(rr.mend, errHealVoid, false, b)
		case rr.relay != nil:
			delete(d.remote, id)
			d.relayedLocked(rr.relay, block.ErrDropped, b)
		}
	}
}
