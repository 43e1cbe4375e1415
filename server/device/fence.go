package device

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
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

const (
	fenceTimeout = 2 * time.Minute // for the handler
	fenceRetry   = time.Minute     // after which a handler that failed is asked again
)

// fencing is what a primary knows of a peer that may have to be fenced.
type fencing struct {
	busy    bool      // the handler is at work
	done    bool      // by its word the peer's disk is outdated
	failed  bool      // it has failed,
	ended   time.Time // then
	strayed time.Time // since when the peer is to be fenced; zero: it is not
	// spared: the peer need not be fenced. By its own durable word it is behind, or quorum
	// or an administrator says so.
	spared bool
	// client: it has no disk, and was primary when it was lost. It goes on with any disk
	// that has what it wrote, whatever was promoted without it.
	client bool
	// contested is since when it seems that both sides were written; zero: it does not.
	contested time.Time
}

// fencesLocked has the handler fence those that a primary has lost, and that could be
// promoted and not know of it. Until it has answered nothing is answered that they have
// not confirmed, and nothing is read. While a handshake is under way, that is waited for.
func (d *Device) fencesLocked() {
	held := d.hold&holdFence != 0
	d.hold &^= holdFence
	for _, p := range d.peers {
		if p == nil {
			continue
		}
		if !d.strayedLocked(p) {
			p.fence.strayed = time.Time{}
			continue
		}
		d.hold |= holdFence
		if p.fence.strayed.IsZero() {
			p.fence.strayed = time.Now()
		}
		waits := p.fence.failed && time.Since(p.fence.ended) < fenceRetry ||
			p.shakingLocked() && p.fence.contested.IsZero() && time.Since(p.fence.strayed) < handshakeTimeout
		if !waits {
			d.askHandlerLocked(p)
		}
	}
	if held && d.hold&holdFence == 0 && d.genBusy {
		d.work.do(d.settleGen)
	}
}

// strayedLocked reports whether a peer is to be fenced. Who stops, and has nothing to
// answer any more, needs nobody fenced.
func (d *Device) strayedLocked(p *peer) bool {
	return d.role == replication.Primary && d.fencesPeersLocked() && (!d.closing || d.window.floor != d.window.head) &&
		!p.diskless && !p.agreed && !p.fence.done && !p.fence.spared && !d.votes.Given(p.id)
}

// strayedNamesLocked names those whose fencing is waited for.
func (d *Device) strayedNamesLocked() (names []string) {
	for _, p := range d.peers {
		if p != nil && d.strayedLocked(p) {
			names = append(names, p.name)
		}
	}
	return names
}

// spareLostLocked, as a peer is lost: where generations in force are a chain, one that was
// not in sync is outvoted, or quorum is lost without it. Elsewhere only its own durable
// word will do that it is behind; see concludeLocked, genConfirmedLocked.
func (d *Device) spareLostLocked(p *peer) {
	if d.orderedLocked() || mutate.Is(mutate.FenceInSync) {
		p.fence.spared = p.repl != replication.Established || p.disk != replication.UpToDate
	}
}

// unnotedLocked reports whether a disk in reach is not sent changes, and has not noted
// that it is behind: out of reach it could be promoted, and not know of it.
func (d *Device) unnotedLocked(p *peer) bool {
	return !d.orderedLocked() && d.fencesPeersLocked() && p.agreed && p.disk.HasData() && !p.fence.spared && !d.receives.Has(p.id)
}

// fencesPeersLocked reports whether there is a handler.
func (d *Device) fencesPeersLocked() bool { return d.opts.Fence != nil && len(d.cfg.FencePeer) > 0 }

// askHandlerLocked has the handler fence a peer. It may take longer than whoever wants it
// waits: what comes of it stands until the peer is back, or this node is demoted.
func (d *Device) askHandlerLocked(p *peer) {
	handler := d.cfg.FencePeer
	if p.fence.busy || d.closing {
		return // it answers for this, too
	}
	p.fence.busy, p.fence.failed = true, false
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
	p.fence.busy, p.fence.ended = false, time.Now()
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
		outdated = d.role == replication.Primary && (d.dstat == replication.UpToDate || d.remoteDataLocked()) // else that is no news
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
		p.fence.done, p.fence.failed = outdated, !outdated && d.role == replication.Primary
		fenced := "is fenced"
		if !outdated {
			fenced = "is not fenced"
		}
		d.eventLocked("fence", p, "%s %s: %s", p.name, fenced, word)
	case d.role != replication.Primary:
		d.eventLocked("fence", p, "the fence-peer handler for %s failed: %s", p.name, word)
	default:
		p.fence.failed = true
		d.eventLocked("fence", p, "the fence-peer handler for %s failed, so requests wait until %s is back, or it succeeds: %s", p.name, p.name, word)
	}
	if !p.fence.contested.IsZero() {
		d.helloLocked(p, b) // it is decided
	}
	d.evaluateLocked(b)
	d.touchLocked()
}

// contestedLocked reports whether what would be a split brain with a peer may be but the
// end of a fencing: of two primaries one is about to learn that it is none, and has
// answered nothing that the other lacks. Those that follow it may see that, too.
func (d *Device) contestedLocked(p *peer) bool {
	if !d.fencesPeersLocked() {
		return false
	}
	if p.fence.contested.IsZero() {
		p.fence.contested = time.Now()
	}
	d.fencesLocked() // now the handler is asked, if it is to be
	return p.fence.busy || time.Since(p.fence.contested) < handshakeTimeout
}

// tickFencesLocked looks again at what the clock decides.
func (d *Device) tickFencesLocked(now time.Time, b *block.Batch) {
	for _, p := range d.peers {
		if p != nil && !p.fence.busy && !p.fence.contested.IsZero() && now.Sub(p.fence.contested) >= handshakeTimeout {
			d.decideLocked(p, b)
			p.fence.contested = time.Time{}
		}
	}
	if d.hold&holdFence != 0 {
		d.evaluateLocked(b)
	}
}

// unfenceLocked: the peer is in contact again, and speaks for itself.
func (d *Device) unfenceLocked(p *peer) {
	p.fence = fencing{busy: p.fence.busy}
}

// beginFencingLocked: those that are away as a node becomes primary are fenced, or quorum
// or an administrator says that it may be that without them.
func (d *Device) beginFencingLocked() {
	for _, p := range d.peers {
		if p != nil {
			p.fence.spared, p.fence.failed = !p.agreed, false
		}
	}
}

// handlerChangedLocked: peers that the handler before failed to fence are the new one's.
// Where there was none, whoever is lost has been let go.
func (d *Device) handlerChangedLocked(had bool) {
	for _, p := range d.peers {
		if p != nil {
			p.fence.failed = false
			p.fence.spared = p.fence.spared || !had && !p.agreed
		}
	}
}

// unfencedRefusalLocked: where there is a fence-peer handler, and quorum does not speak
// for those in reach, a disk out of reach may be a primary's. As with DRBD a disk that
// cannot tell is promoted only when the handler has fenced the others; unlike there, also
// a primary without a disk that was lost.
func (d *Device) unfencedRefusalLocked() *RefusedError {
	if !d.fencesPeersLocked() || d.orderedLocked() && d.quorum.Quorate || d.disk != nil && d.dstat < replication.Consistent {
		return nil
	}
	var away []*peer
	for _, p := range d.peers {
		if p != nil && (!p.diskless || p.fence.client) && !p.agreed && !p.shakingLocked() && !p.fence.done && !d.votes.Given(p.id) {
			away = append(away, p)
		}
	}
	if len(away) == 0 {
		return nil
	}
	why := away[0].name + " is out of reach, and not fenced"
	if away[0].fence.busy {
		why = away[0].name + " is out of reach, and the fence-peer handler is at work on it"
	}
	err := d.refuse("promote", why, "start or reconnect it, or see what the fence-peer handler says of it: lockstepctl events", true)
	err.fence = func(ctx context.Context) {
		d.mu.Lock()
		for _, p := range away {
			d.askHandlerLocked(p)
		}
		d.mu.Unlock()
		_ = d.wait(ctx, func() bool {
			return !slices.ContainsFunc(away, func(p *peer) bool { return p.fence.busy }) || d.closing
		})
	}
	return err
}

// forgetFencedLocked: who was fenced for this stint as primary may be anything in the next.
func (d *Device) forgetFencedLocked() {
	for _, p := range d.peers {
		if p != nil {
			p.fence.done = false
		}
	}
}
