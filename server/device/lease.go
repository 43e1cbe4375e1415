package device

import (
	"cmp"
	"slices"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
)

// Quorum is known from what peers said some time ago. A primary that was
// paused, or cut off a moment ago, believes in a quorum which others may have
// formed without it since. So what is answered on the strength of quorum is
// answered only while enough peers to make it are bound by a lease: after the
// data was read or the change was made, and before the consumer is told. Where
// the leases have run out the answer waits, for a fraction of the tick time,
// until peers are heard again or are found to be gone.

// A Leaser is a Session that knows for how much longer its peer is certain to
// take this node for alive; nothing or less: the peer may have given it up.
// The peer of a Session that is no Leaser is taken to be certain while the
// session lasts.
type Leaser interface {
	LeaseLeft() time.Duration
}

// leaseSet is peers that together with this node make quorum.
type leaseSet []Leaser

// leased reports whether quorum is certain at this moment, as far as the set
// that was chosen last tells. It takes no lock.
func (d *Device) leased() bool {
	if mutate.Is(mutate.TrustStale) {
		return true
	}
	set := d.leases.Load()
	if set == nil {
		return false
	}
	for _, l := range *set {
		if l.LeaseLeft() <= 0 {
			return false
		}
	}
	return true
}

// leasedLocked is leased, after another look for a set that will do. Where
// there is none, answers are held until there is.
func (d *Device) leasedLocked() bool {
	if d.leased() {
		return true
	}
	d.leases.Store(d.leaseSetLocked())
	if d.leased() {
		return true
	}
	d.hold |= holdLease
	return false
}

// leaseSetLocked finds the peers with the longest leases that make quorum; nil
// if those that hold one do not.
func (d *Device) leaseSetLocked() *leaseSet {
	if d.cfg.Quorum.Kind == replication.QuorumOff {
		return &leaseSet{} // nobody promised that there is no other primary
	}
	type bound struct {
		id   int
		l    Leaser
		left time.Duration
	}
	var held []bound
	for _, p := range d.peers {
		if p == nil || !p.agreed {
			continue
		}
		if l, ok := p.session.(Leaser); !ok {
			held = append(held, bound{p.id, nil, 1<<63 - 1})
		} else if left := l.LeaseLeft(); left > 0 {
			held = append(held, bound{p.id, l, left})
		}
	}
	slices.SortFunc(held, func(a, b bound) int { return cmp.Compare(b.left, a.left) })
	var set leaseSet
	var seen replication.NodeSet
	for i := 0; ; i++ {
		if d.cfg.Quorum.Quorum(d.tallyLocked(seen)).Quorate {
			return &set
		}
		if i == len(held) {
			return nil
		}
		seen = seen.With(held[i].id)
		if held[i].l != nil {
			set = append(set, held[i].l)
		}
	}
}

// renewLeasesLocked looks again whether what was held for want of leases may
// be answered. Without quorum it is the quorum policy that decides.
func (d *Device) renewLeasesLocked() {
	d.leases.Store(nil)
	if d.hold&holdLease == 0 {
		return
	}
	d.hold &^= holdLease
	if d.quorum.Quorate {
		d.leasedLocked()
	}
}

// mayAnswerRead reports whether a read, whose data was just read, may be
// answered. Where it may not it is dealt with.
func (d *Device) mayAnswerRead(r *block.Request, b *block.Batch) bool {
	if d.leased() && d.ranges.changes.Load() == 0 {
		return true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mayAnswerReadLocked(r, b)
}

func (d *Device) mayAnswerReadLocked(r *block.Request, b *block.Batch) bool {
	return d.certainLocked(r, b) && !d.deferReadLocked(r, b)
}

// deferReadLocked holds a read, whose data was just read, until the changes that
// were under way in its range are answered: what they wrote may be in it, on this
// disk and on no other, and what has been read must stay. It reports whether
// there were any.
func (d *Device) deferReadLocked(r *block.Request, b *block.Batch) bool {
	e := block.Extent{Off: r.Off, Len: r.Len}
	if d.ranges.changes.Load() == 0 || mutate.Is(mutate.ReadTail) || !d.ranges.changing(e) {
		return false
	}
	o := d.newOpLocked()
	o.kind, o.what, o.req, o.ext = readAfter, block.Read, r, e
	d.beginLocked(o, b)
	return true
}

// readAfterLocked answers a read that was deferred: what was under way is done.
func (d *Device) readAfterLocked(o *op, b *block.Batch) {
	r := o.req
	d.releaseLocked(o, b)
	if d.certainLocked(r, b) {
		finish(r, nil, b)
	}
}

// certainLocked reports whether this node is primary beyond doubt, as far as a
// read is concerned. Where it is not the read is dealt with.
func (d *Device) certainLocked(r *block.Request, b *block.Batch) bool {
	switch {
	case d.closing || d.role != replication.Primary:
		finish(r, block.ErrDropped, b)
	case d.quorum.Quorate && d.leasedLocked():
		return true
	case d.gate == gateFail:
		finish(r, block.ErrIO, b)
	default:
		d.parked = append(d.parked, r)
	}
	return false
}
