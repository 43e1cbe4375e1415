package device

import (
	"context"
	"fmt"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// Resolve ends a split brain: with discard this node's changes go, else those
// of the peers that it is split from, which are asked to discard theirs. What
// either side changed since the split is then resynced from the side that
// stays.
func (d *Device) Resolve(ctx context.Context, discard bool) error {
	const what = "resolve"
	if err := d.begin(what); err != nil {
		return err
	}
	defer d.end()
	d.mu.Lock()
	split := d.splitFromLocked()
	var err error
	switch {
	case split == 0:
		err = d.refuse(what, "it is split from no peer in reach", "see: lockstepctl device why "+d.opts.Name, false)
	case !discard && d.dstat == replication.Inconsistent:
		err = d.refuse(what, "the disk here is a mixture until its resync is complete, so nothing can be discarded for it",
			"go on with what is complete: lockstepctl device resolve "+d.opts.Name+" --discard-local", false)
	case discard && d.role == replication.Primary:
		err = d.refuse(what, "this node is primary, so its changes cannot be discarded", "first: lockstepctl device demote "+d.opts.Name, false)
	case discard && d.mixturesLocked(split) == split:
		err = d.refuse(what, "what it is split from are mixtures until their resyncs are complete, and nothing can be discarded for them",
			"see: lockstepctl device show "+d.opts.Name, false)
	}
	d.mu.Unlock()
	if err != nil {
		return err
	}
	if discard {
		d.discardAgainst(split)
		return nil
	}
	commit, err := d.plan(ctx, wire.Change{Kind: wire.ChangeDiscard}, split)
	if err != nil {
		return err
	}
	commit(true)
	return nil
}

// splitFromLocked is the peers with which there is a split brain.
func (d *Device) splitFromLocked() (s replication.NodeSet) {
	for _, p := range d.peers {
		if p != nil && p.session != nil && p.refused != "" && (p.decision.Action == replication.SplitBrain || p.decision.Action == replication.Unrelated) {
			s = s.With(p.id)
		}
	}
	return s
}

// mixturesLocked is those of a set of peers whose disks are not complete.
func (d *Device) mixturesLocked(set replication.NodeSet) (s replication.NodeSet) {
	for id := range set.All() {
		if p := d.peers[id]; p != nil && p.hs.theirs.Disk == replication.Inconsistent {
			s = s.With(id)
		}
	}
	return s
}

// discardAgainst has this node's changes thrown away where they differ from
// those of peers.
func (d *Device) discardAgainst(with replication.NodeSet) {
	b := &block.Batch{}
	d.mu.Lock()
	d.discardLocked(with, b)
	d.mu.Unlock()
	b.Finish()
}

func (d *Device) discardLocked(with replication.NodeSet, b *block.Batch) {
	d.discard, d.conceded = d.discard|with, d.conceded&^with
	for id := range with.All() {
		p := d.peers[id]
		if p == nil || p.hs.no == 0 {
			continue
		}
		d.eventLocked("split-brain", p, "the changes made here are discarded in favour of those on %s", p.name)
		d.helloLocked(p, b)
	}
}

// verdict is what two sides' facts lead to under the device's policies.
func (d *Device) verdictLocked(mine, theirs *replication.Facts) replication.Decision {
	return d.cfg.AfterSplit.Resolve(mine, theirs, replication.Decide(mine, theirs))
}

// Handshake is what a handshake with a peer would decide now.
type Handshake struct {
	Decision replication.Decision
	Agreed   bool  // the two have agreed on something already
	Mine     int64 // bytes that this node's bitmap marks for the peer
	Theirs   int64 // bytes that the peer's marks for this node
}

// asking is a question for a peer's facts. The device's mutex guards it.
type asking struct {
	id    uint64
	facts *wire.DeviceFacts
}

// DryHandshake asks a peer for its facts and tells what both would decide from
// them and from this node's. Nothing is done.
func (d *Device) DryHandshake(ctx context.Context, node string) (Handshake, error) {
	const what = "try the handshake of"
	var p *peer
	b := &block.Batch{}
	d.mu.Lock()
	for _, q := range d.peers {
		if q != nil && q.name == node {
			p = q
		}
	}
	switch {
	case p == nil:
		d.mu.Unlock()
		return Handshake{}, d.refuse(what, fmt.Sprintf("%q is no peer of it", node), "see: lockstepctl device show "+d.opts.Name, false)
	case p.session == nil || p.handle == 0:
		d.mu.Unlock()
		return Handshake{}, d.refuse(what, node+" is not in reach, so nothing is known of what it has now",
			fmt.Sprintf("look there: lockstepctl device dump-md %s; and here: lockstepctl node why %s", d.opts.Name, node), false)
	}
	d.nextID++
	ask := &asking{id: d.nextID}
	p.asking = ask
	p.send(wire.Header{Type: wire.FactsReq, Arg: [3]uint64{ask.id}}, nil, nil, b)
	d.mu.Unlock()
	b.Finish()
	err := d.wait(ctx, func() bool { return ask.facts != nil || p.asking != ask || p.session == nil })
	d.mu.Lock()
	defer d.mu.Unlock()
	if p.asking == ask {
		p.asking = nil
	}
	if ask.facts == nil {
		if err == nil {
			err = fmt.Errorf("the contact was lost, or somebody else asked")
		}
		return Handshake{}, d.refuse(what, node+" has not told its facts: "+err.Error(), "try again", true)
	}
	mine, theirs := d.factsLocked(p), factsOf(p.id, ask.facts)
	return Handshake{Decision: d.verdictLocked(&mine, &theirs), Agreed: p.agreed, Mine: mine.Dirty * block.Unit, Theirs: theirs.Dirty * block.Unit}, nil
}

// factsRequestedLocked tells a peer our facts, as a hello would.
func (d *Device) factsRequestedLocked(p *peer, id uint64, b *block.Batch) {
	facts := d.factsLocked(p)
	f := wireFacts(&facts)
	f.Name, f.No, f.Handle = d.opts.Name, p.hs.no, d.opts.Handle
	f.Protocol, f.Members, f.Config, f.Whole = uint8(d.cfg.Protocol), uint32(d.disks), d.cfg.Fingerprint, p.speaks(wire.FeatureVotes)
	p.send(wire.Header{Type: wire.FactsReply, Arg: [3]uint64{id}}, f.Append(nil), nil, b)
}

func (d *Device) factsToldLocked(p *peer, id uint64, f *wire.DeviceFacts, b *block.Batch) {
	if h := d.heals.questions[id]; h != nil {
		delete(d.heals.questions, id)
		d.healFactsLocked(p, h, f, b)
		return
	}
	if p.asking != nil && p.asking.id == id {
		p.asking.facts = f
		d.touchLocked()
	}
}
