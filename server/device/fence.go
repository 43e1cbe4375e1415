package device

import (
	"context"
	"fmt"
	"slices"
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
	if !d.fencesPeersLocked() || d.closing {
		return
	}
	d.hold |= holdFence
	d.askHandlerLocked(p)
}

// fencesPeersLocked reports whether there is a handler.
func (d *Device) fencesPeersLocked() bool { return d.opts.Fence != nil && len(d.cfg.FencePeer) > 0 }

// askHandlerLocked has the handler fence a peer. It may take longer than whoever wants it
// waits: what comes of it stands until the peer is back, or this node is demoted.
func (d *Device) askHandlerLocked(p *peer) {
	handler := d.cfg.FencePeer
	if p.fencing || d.closing {
		return // it answers for this, too
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
		word = "it cannot be reached"
		outdated = d.role == replication.Primary && d.dstat == replication.UpToDate // else that is no news
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
		fenced := "is fenced"
		if !outdated {
			fenced = "is not fenced"
		}
		d.eventLocked("fence", p, "%s %s: %s", p.name, fenced, word)
	case d.role != replication.Primary:
		d.eventLocked("fence", p, "the fence-peer handler for %s failed: %s", p.name, word)
	default:
		p.unfenced = true
		d.eventLocked("fence", p, "the fence-peer handler for %s failed, so requests wait until %s is back: %s", p.name, p.name, word)
	}
	d.fencesLocked()
	d.evaluateLocked(b)
	d.touchLocked()
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
	if !d.fencesPeersLocked() || d.orderedLocked() && d.quorum.Quorate || d.disk != nil && d.dstat < replication.Consistent {
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
	why := away[0].name + " is out of reach, and not fenced"
	if away[0].fencing {
		why = away[0].name + " is out of reach, and the fence-peer handler is at work on it"
	}
	err := d.refuse("promote", why, "start or reconnect it, or see what the fence-peer handler says of it: lockstepctl events", true)
	err.fence = func(ctx context.Context) {
		d.mu.Lock()
		for _, p := range away {
			d.askHandlerLocked(p)
		}
		d.mu.Unlock()
		_ = d.wait(ctx, func() bool { return !slices.ContainsFunc(away, func(p *peer) bool { return p.fencing }) || d.closing })
	}
	return err
}

// forgetFencedLocked: who was fenced for this stint as primary may be anything in the next.
func (d *Device) forgetFencedLocked() {
	for _, p := range d.peers {
		if p != nil {
			p.fenced = false
		}
	}
}
