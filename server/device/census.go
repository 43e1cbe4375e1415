package device

import (
	"time"

	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
)

// censusLocked counts who is in reach and applies the quorum policy.
func (d *Device) censusLocked() {
	c := d.tallyLocked(^replication.NodeSet(0))
	v := d.cfg.Quorum.Quorum(c)
	d.tied = v.Quorate && d.tiedLocked(c)
	if v.Quorate != d.quorum.Quorate {
		d.since["quorum"] = time.Now()
		word := "lost"
		if v.Quorate {
			word = "gained"
		}
		d.eventLocked("quorum", nil, "quorum %s: %s", word, v.Why)
		d.touchLocked()
	}
	d.quorum = v
	if d.role == replication.Primary && !v.Quorate && (d.cfg.OnNoQuorum == SuspendIO || d.settlingLocked()) {
		d.hold |= holdNoQuorum
	} else {
		d.hold &^= holdNoQuorum
	}
	d.weighLocked()
}

// weighLocked holds answers while as many disks as quorum takes are not sent the
// changes, although they are in reach, or could be: when the disks that are sent
// them are gone for good, the rest would be a majority that lacks what was answered.
// DRBD counts a disk from when it is in reach, and so answers while it waits for its
// resync. Those that have given up their votes cannot go on by themselves.
func (d *Device) weighLocked() {
	lacking := 0
	for id := range (d.disks &^ d.sendReceivesLocked()).All() {
		if p := d.peers[id]; !d.votes.Given(id) && (p == nil || p.agreed || !p.fence.done) {
			lacking++
		}
	}
	few := !mutate.Is(mutate.AnswerAlone) && !d.unbegunLocked() && d.role == replication.Primary && d.quorum.Quorate && d.cfg.Quorum.PassesOver(lacking, d.disks.Len())
	if few == (d.hold&holdFew != 0) {
		return
	}
	d.hold ^= holdFew
	d.touchLocked()
}

// settlingLocked reports whether a disk in reach has failed a moment ago: whether
// there is quorum without it is about to be known.
func (d *Device) settlingLocked() bool {
	if d.dstat == replication.Failed {
		return true
	}
	for _, p := range d.peers {
		if p != nil && p.agreed && p.disk == replication.Failed && p.failsUntil.IsZero() {
			return true
		}
	}
	return false
}

// tallyLocked counts the disks as this node sees them, if of the others it
// sees those of the set seen.
func (d *Device) tallyLocked(seen replication.NodeSet) replication.Census {
	return d.tallyAsLocked(d.dstat, seen)
}

// tallyAsLocked is that if this node's own disk were in the state own.
func (d *Device) tallyAsLocked(own replication.DiskState, seen replication.NodeSet) (c replication.Census) {
	c = replication.Census{Had: d.quorum.Quorate}
	regrouped := !mutate.Is(mutate.TrustRegrouped)
	switch {
	case !d.disks.Has(d.cfg.Self):
		c.TiebreakersPresent++ // which it keeps as a witness, see witness.go
	case len(d.former) > 0 && own.HasData() && regrouped:
		c.Unknown++
		c.Regrouped++
	default:
		d.countOwnLocked(own, &c)
	}
	for _, p := range d.peers {
		switch {
		case p == nil:
		case !p.former || !p.agreed || !seen.Has(p.id) || !p.disk.HasData() || !regrouped:
			d.countPeerLocked(p, seen.Has(p.id), &c)
		case d.votes.Given(p.id):
			c.Outdated++ // as while it was away: it takes part no more than then
		default:
			c.Unknown++
			c.Regrouped++
		}
	}
	if mutate.Is(mutate.TrustNewcomers) {
		c.Newcomers = 0
	}
	if mutate.Is(mutate.CountLeft) {
		c.Voteless = 0
	}
	return c
}

// countOwnLocked counts this node's disk, if it is in the state own.
func (d *Device) countOwnLocked(own replication.DiskState, c *replication.Census) {
	switch {
	case own >= replication.Consistent:
		c.UpToDate++
	case own >= replication.Inconsistent:
		c.Present++
	case !d.votes.Given(d.cfg.Self):
		c.Idle++
		return
	default:
		c.Outdated++
		return
	}
	if d.votes.Given(d.cfg.Self) {
		c.Voteless++
	}
	if d.newcomer {
		c.Newcomers++
	}
}

func (d *Device) countDataLocked(p *peer, c *replication.Census) {
	current := p.disk == replication.UpToDate || p.disk == replication.Consistent && p.repl == replication.Established
	if current && !d.witnessedAgainstLocked(p) {
		c.UpToDate++
	} else {
		c.Present++
	}
}

func (d *Device) countPeerLocked(p *peer, seen bool, c *replication.Census) {
	switch {
	case p.diskless && p.steady && p.agreed && seen:
		c.TiebreakersPresent++
	case p.diskless:
		c.TiebreakersMissing++
	case p.fence.done && !p.agreed || d.votes.Given(p.id) && (!p.agreed || !seen && p.given):
		c.Outdated++
	case !seen:
		c.Unknown++
	case p.agreed && p.disk.HasData():
		d.countDataLocked(p, c)
		if p.voteless() {
			c.Voteless++
		}
		if p.newcomer {
			c.Newcomers++
		}
	case p.agreed && d.votes.Given(p.id):
		c.Outdated++
	case p.agreed:
		c.Idle++
	case mutate.Is(mutate.CountAbsent):
		c.Present++
	default:
		c.Unknown++
	}
}
