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

// unfencedRefusalLocked: where there is a fence-peer handler, and quorum does not speak
// for those in reach, a disk out of reach may be a primary's. As with DRBD a disk that
// cannot tell is promoted only when the handler has fenced the others.
func (d *Device) unfencedRefusalLocked() *RefusedError {
	if d.opts.Fence == nil || len(d.cfg.FencePeer) == 0 || d.orderedLocked() && d.quorum.Quorate || d.disk != nil && d.dstat < replication.Consistent {
		return nil
	}
	var away []*peer
	for _, p := range d.peers {
		if p != nil && !p.diskless && !p.agreed && p.session == nil && !p.fenced && !d.votes.Given(p.id) {
			away = append(away, p)
		}
	}
	if len(away) == 0 {
		return nil
	}
	err := d.refuse("promote", away[0].name+" is out of reach, and not fenced", "start or reconnect it, or see what the fence-peer handler says of it: lockstepctl events", true)
	err.fence = func(ctx context.Context) {
		for _, p := range away {
			d.fenceBefore(ctx, p)
		}
	}
	return err
}

// fenceBefore has the handler fence a peer before this node is promoted.
func (d *Device) fenceBefore(ctx context.Context, p *peer) {
	d.mu.Lock()
	handler := d.cfg.FencePeer
	d.eventLocked("fence", p, "the handler is to fence %s before this node is promoted", p.name)
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, fenceTimeout)
	defer cancel()
	status, err := d.opts.Fence(ctx, handler, p.name)
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.closing:
		return
	case p.session != nil:
		// It is back; what it has is known better.
	case err != nil:
		d.eventLocked("fence", p, "the fence-peer handler for %s failed: %v", p.name, err)
	case status == fencedInconsistent || status == fencedOutdated || status == fencedStonith:
		p.fenced = true
		d.eventLocked("fence", p, "%s is fenced: exit status %d", p.name, status)
	case status == fencedPrimary:
		d.eventLocked("fence", p, "%s cannot be fenced: it is primary", p.name)
		if d.dstat > replication.Outdated {
			d.setDiskLocked(replication.Outdated, p.name+" is primary, by the word of the fence-peer handler")
			d.saveLocked(nil)
		}
	default: // that it cannot be reached is no news
		d.eventLocked("fence", p, "%s is not fenced: exit status %d", p.name, status)
	}
	b := &block.Batch{}
	d.evaluateLocked(b)
	d.work.do(b.Finish)
}

// forgetFencedLocked: who was fenced for this stint as primary may be anything in the next.
func (d *Device) forgetFencedLocked() {
	for _, p := range d.peers {
		if p != nil {
			p.fenced = false
		}
	}
}
