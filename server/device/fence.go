package device

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
)

// What the fence-peer handler's exit status says, as DRBD has it.
const (
	fencedInconsistent = 3 // the peer's disk is no more than inconsistent
	fencedOutdated     = 4 // the peer's disk was, or is now, outdated
	fencedUnreachable  = 5 // the peer cannot be reached
	fencedPrimary      = 6 // the peer is primary, and refuses
	fencedStonith      = 7 // the peer was shot
)

// fenceTimeout is how long the handler may take.
const fenceTimeout = 2 * time.Minute

// fenceLocked has the handler fence a peer that was in sync and is lost by this
// primary. Until it has answered nothing that the peer missed is answered: the
// peer could be promoted and not know of it.
func (d *Device) fenceLocked(p *peer) {
	handler := d.cfg.FencePeer
	if d.opts.Fence == nil || len(handler) == 0 || d.closing {
		return
	}
	d.hold |= holdFence
	if p.fencing {
		return // it answers for this loss too
	}
	p.fencing, p.unfenced = true, false
	d.eventLocked("fence", p, "the handler is to fence %s", p.name)
	d.done.Go(func() {
		ctx, cancel := context.WithTimeout(d.ctx, fenceTimeout)
		defer cancel()
		status, err := d.opts.Fence(ctx, handler, p.name)
		b := &block.Batch{}
		d.mu.Lock()
		if !d.closing {
			d.fencedLocked(p, status, err, b)
		}
		d.mu.Unlock()
		b.Finish()
	})
}

// fencedLocked takes the handler's word.
func (d *Device) fencedLocked(p *peer, status int, err error, b *block.Batch) {
	p.fencing = false
	word, outdated := fmt.Sprintf("exit status %d means nothing", status), false
	switch {
	case err != nil:
		word = err.Error()
	case status == fencedInconsistent:
		word, outdated = "its disk is inconsistent", true
	case status == fencedOutdated:
		word, outdated = "its disk is outdated", true
	case status == fencedStonith:
		word, outdated = "it was shot", true
	case status == fencedUnreachable:
		word, outdated = "it cannot be reached", d.dstat == replication.UpToDate
	case status == fencedPrimary:
		word = "it is primary"
	}
	known := err == nil && status >= fencedInconsistent && status <= fencedStonith
	switch {
	case p.agreed:
		// It is back; what it has is known better.
	case known && status == fencedPrimary:
		d.eventLocked("fence", p, "%s cannot be fenced: %s", p.name, word)
		if d.role == replication.Primary {
			d.yieldLocked(p, b)
		}
		if d.dstat > replication.Outdated {
			d.setDiskLocked(replication.Outdated, p.name+" is primary, by the word of the fence-peer handler")
			d.saveLocked(nil)
		}
	case known:
		p.fenced = outdated
		d.eventLocked("fence", p, "%s is fenced: %s", p.name, word)
	default:
		p.unfenced = true
		d.eventLocked("fence", p, "the fence-peer handler for %s failed, so requests wait until %s is back: %s", p.name, p.name, word)
	}
	d.fencesLocked()
	d.evaluateLocked(b)
}

// fencesLocked lets go on what no fencing holds up any more.
func (d *Device) fencesLocked() {
	for _, p := range d.peers {
		if p != nil && (p.fencing || p.unfenced) {
			return
		}
	}
	d.hold &^= holdFence
}

// unfenceLocked: the peer is in contact again, and speaks for itself.
func (d *Device) unfenceLocked(p *peer) {
	p.fenced, p.unfenced = false, false
	d.fencesLocked()
}

// handlerChangedLocked: peers that the handler before failed to fence are the
// new one's, or nobody's if there is none any more.
func (d *Device) handlerChangedLocked() {
	for _, p := range d.peers {
		if p != nil && p.unfenced {
			p.unfenced = false
			d.fenceLocked(p)
		}
	}
	d.fencesLocked()
}
