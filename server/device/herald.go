package device

import (
	"context"
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// heralding is how a disk that is taken in makes known what it begins. It is the protocol
// of startGenLocked, of one who is no primary: those in contact note the generation, the
// disk takes it over, they note that it is in force. Until that they are as current as
// they were, lest a word that is never kept leaves all behind.
type heralding struct {
	alone bool // nobody has to know
	gen   replication.Gen
	no    uint64 // of the acknowledgements; 0: before the first step
	step  wire.Type

	wait, has replication.NodeSet // who is to note the step still, and who has; the device's mutex guards them
}

// herald has those in contact note one of the two steps, and returns when as many as
// quorum takes have.
func (d *Device) herald(ctx context.Context, h *heralding, step wire.Type) error {
	if h.alone {
		return nil
	}
	b := &block.Batch{}
	d.mu.Lock()
	to := d.notersLocked()
	if step == wire.NewGen {
		d.genNo++
		h.no = d.genNo
		d.gens.Noted = h.gen // who comes into contact meanwhile learns what this disk is about to bear
		d.rehelloLocked(0, b)
	} else {
		to &= h.has // who has come since does not know what it is about
	}
	h.step, h.wait, h.has = step, to, 0
	d.heralding = h
	head, payload := wire.Header{Type: step, Arg: [3]uint64{h.no, uint64(replication.Of(d.cfg.Self))}}, []byte(nil)
	if step == wire.NewGen {
		head.Arg = [3]uint64{d.beginsLocked(), wire.OnlyNote}
		g := wire.Generation{No: h.no, New: uint64(h.gen), Away: uint32(d.disks.Without(d.cfg.Self))}
		payload = g.Append(nil)
	}
	for id := range to.All() {
		d.peers[id].send(head, payload, nil, b)
	}
	d.mu.Unlock()
	b.Finish()
	defer func() {
		d.mu.Lock()
		d.heralding = nil
		d.mu.Unlock()
	}()
	return d.heralded(ctx, h)
}

// heralded waits until those that have noted the step are as many as quorum takes with
// this node, and those that are still to are gone. Before the first step it waits until
// there are as many in contact.
func (d *Device) heralded(ctx context.Context, h *heralding) error {
	if h.alone {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, voteTimeout)
	defer cancel()
	var v replication.Verdict
	closing := false
	err := d.wait(ctx, func() bool {
		seen := allNodes
		if h.no != 0 {
			h.wait &= d.notersLocked()
			seen = h.has
		}
		v = d.cfg.Quorum.Quorum(d.tallyAsLocked(replication.UpToDate, seen))
		closing = d.closing
		return v.Quorate && h.wait == 0 || closing
	})
	switch {
	case closing:
		return d.refuse("create", errClosing.Error(), "", false)
	case err == nil:
		return nil
	}
	if h.step == wire.GenCommit {
		return d.refuse("create", "this disk is the device's, but not all have noted it that have to: "+v.Why, "start or reconnect the other nodes before somebody is promoted among them", false)
	}
	return d.refuse("create", "those who have to know that the device begins with what this disk holds are not in reach: "+v.Why, "start or reconnect the other nodes, and try again", true)
}

// heraldedLocked: a peer has noted a step on stable storage.
func (d *Device) heraldedLocked(p *peer, no uint64, step wire.Type) bool {
	h := d.heralding
	if h == nil || no != h.no {
		return false
	}
	if step == h.step {
		h.wait, h.has = h.wait.Without(p.id), h.has.With(p.id)
		d.touchLocked()
	}
	return true
}

// hearLocked notes a generation that a disk is about to begin the device with.
func (d *Device) hearLocked(p *peer, g *wire.Generation) {
	next := replication.Gen(g.New)
	switch {
	case d.meta == nil || !p.agreed:
		return
	case !d.gens.MayNote(next):
		d.objectLocked(p, g, "its number is not above what this node has noted")
		return
	case d.objectionToBeginLocked() != "":
		d.objectLocked(p, g, d.objectionToBeginLocked())
		return
	}
	d.gens.Noted, p.hs.theirs.Gens.Noted = next, next
	d.genNoted, d.genNotedNo, d.genAway, d.genBy, d.announcer = next, g.No, replication.NodeSet(g.Away), nil, p.id
	d.confirmLocked(p, wire.Header{Type: wire.NewGenAck, Arg: [3]uint64{g.No}})
}

// objectionToBeginLocked is why the device must not begin with what a peer's disk holds; ""
// is nothing.
func (d *Device) objectionToBeginLocked() string {
	self := d.nodeName(d.cfg.Self)
	switch {
	case d.gens.HasPast():
		return self + " has its data"
	case d.beganLocked():
		return self + " knows that others have its data"
	case d.role == replication.Primary:
		return self + " is primary"
	case d.primary >= 0:
		return fmt.Sprintf("%s sees %s as primary", self, d.nodeName(d.primary))
	case d.change.tx != 0 || d.change.promised != 0 && time.Now().Before(d.change.until):
		return "somebody is being promoted"
	}
	return ""
}

// beganLocked reports whether the device is known to have begun, wherever its data is.
func (d *Device) beganLocked() bool {
	return d.gens.HasPast() || d.orderedLocked() && d.gens.Seen.After(replication.DayOne)
}

// unbegunLocked reports whether nothing was ever written, as far as is known in reach:
// before the first generation is in force nothing is.
func (d *Device) unbegunLocked() bool {
	for _, p := range d.peers {
		if p != nil && p.agreed && p.hs.theirs.Gens.HasPast() {
			return false
		}
	}
	return !d.beganLocked()
}
