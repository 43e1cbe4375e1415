package device

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// A Group is the devices of a consistency group on one node. They share one
// order of writes: what a client has waited for before it wrote to another
// device of the group is there wherever that write is. Three things make it so.
//
//   - All that goes to a peer goes over one link, in the order in which it was
//     sent: a replica's devices are, together, at one point of that order.
//   - They are promoted together on one node, or not at all: each is then
//     current, its last primary's changes have been applied, and none is about
//     to be resynced from a peer that has more; so none is ahead of another. They
//     yield together, too.
//   - While I/O of one waits, or fails, it does so for all; and it waits until
//     the generation of each is in force. Else a node that was away could have
//     one device resynced from it, on which this primary has only read, and not
//     another, on which it has written since.
//
// They are of protocol C: under A and B a replica that stops, or is resynced,
// may have acknowledged for one device what it has not written for another.
// The order is that of what was acknowledged. Where power is lost, what was not
// flushed may be lost out of order, as on any disk.
//
// Lock order: Device.mu of the members by their names, then Group.mu.
type Group struct {
	name string

	mu      sync.Mutex       // guards what follows
	members []*Device        // by name
	stalled map[*Device]gate // gateSuspend or gateFail, of a member's own
}

// NewGroup returns a group without members.
func NewGroup(name string) *Group { return &Group{name: name, stalled: map[*Device]gate{}} }

// Join makes a device a member. It is called before the device is promoted.
func (g *Group) Join(d *Device) {
	g.mu.Lock()
	g.members = append(g.members, d)
	slices.SortFunc(g.members, func(a, b *Device) int { return strings.Compare(a.Name(), b.Name()) })
	g.mu.Unlock()
	d.group.Store(g)
	d.reconsider()
}

// Leave takes a device out that is closed.
func (g *Group) Leave(d *Device) {
	g.mu.Lock()
	g.members = slices.DeleteFunc(slices.Clone(g.members), func(m *Device) bool { return m == d })
	delete(g.stalled, d)
	others := g.members
	g.mu.Unlock()
	for _, m := range others {
		m.reconsider()
	}
}

// all is the members as they are now.
func (g *Group) all() []*Device {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.members)
}

// reconsider has a device draw its conclusions anew, soon.
func (d *Device) reconsider() {
	d.work.do(func() {
		b := &block.Batch{}
		d.mu.Lock()
		d.evaluateLocked(b)
		d.mu.Unlock()
		b.Finish()
	})
}

// stallLocked tells the group what becomes of I/O of d for reasons of its own, and
// reports what becomes of it for those of others: it waits, or fails, where theirs
// does.
func (d *Device) stallLocked(own gate) gate {
	g := d.group.Load()
	if g == nil {
		return own
	}
	stalls := own == gateFail || own == gateSuspend && d.frozen == 0
	g.mu.Lock()
	defer g.mu.Unlock()
	if was, is := g.stalled[d]; is != stalls || is && was != own {
		if stalls {
			g.stalled[d] = own
		} else {
			delete(g.stalled, d)
		}
		for _, m := range g.members {
			if m != d {
				m.reconsider()
			}
		}
	}
	if own != gateOpen {
		return own
	}
	for m, theirs := range g.stalled {
		if m != d && (own == gateOpen || theirs == gateFail) {
			own = theirs
		}
	}
	return own
}

// stalledFor names a member other than d whose I/O is suspended.
func (g *Group) stalledFor(d *Device) string {
	for _, m := range g.members {
		if _, is := g.stalled[m]; is && m != d {
			return m.Name()
		}
	}
	return ""
}

// stalledByLocked names a device of the group for whose sake the primary's I/O
// is suspended; "" is none.
func (d *Device) stalledByLocked() string {
	g := d.group.Load()
	if g == nil || d.role != replication.Primary {
		return ""
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stalledFor(d)
}

// markAuto notes, for all of the group, whether it was promoted for a client.
func (d *Device) markAuto(on bool) {
	for _, m := range d.comrades() {
		m.mu.Lock()
		m.autoPromoted = on
		m.touchLocked()
		m.mu.Unlock()
	}
}

// groupUnused reports whether no client has a device of the group open.
func (d *Device) groupUnused() bool {
	for _, m := range d.comrades() {
		m.mu.Lock()
		n := m.opens
		m.mu.Unlock()
		if n > 0 {
			return false
		}
	}
	return true
}

// genEagerLocked reports whether a generation is wanted that does not wait for
// the next change, where there is current data for it: of a group; and where
// quorum orders generations, before the first read of a stint is answered. For
// what the last primary had under way when it was lost may be on some disks and
// not on others. What of it is read must stay: so the disks that do not take
// part are left behind first.
func (d *Device) genEagerLocked() bool {
	if mutate.Is(mutate.ReadTail) && d.group.Load() == nil {
		return false
	}
	first := d.orderedLocked() && !d.genStint && d.gens.HasPast()
	return d.needGen && (first || d.group.Load() != nil) && (d.disk != nil && d.dstat == replication.UpToDate || d.remoteDataLocked())
}

// comrades is the devices that change their role together with d, by name.
func (d *Device) comrades() []*Device {
	if g := d.group.Load(); g != nil && !mutate.Is(mutate.PromoteApart) {
		return g.all()
	}
	return []*Device{d}
}

// lockAll locks many devices, by their names.
func lockAll(ds []*Device) (unlock func()) {
	for _, d := range ds {
		d.mu.Lock()
	}
	return func() {
		for _, d := range ds {
			d.mu.Unlock()
		}
	}
}

// mayTogetherLocked is mayPromoteLocked for a device that may be of a group,
// whose members are all locked.
func (d *Device) mayTogetherLocked(force bool) error {
	g := d.group.Load()
	if err := d.mayPromoteLocked(force); err != nil || g == nil || force {
		return err
	}
	for _, p := range d.peers {
		if p != nil && p.agreed && d.disk != nil && p.disk >= replication.Consistent &&
			(p.repl == replication.PausedSyncT || p.repl == replication.SyncTarget) {
			// Members of which one has caught up and another has not would be at two
			// points of the order.
			return d.refuse("promote", fmt.Sprintf("its disk is about to be resynced from %s, and the devices of group %q have to be at one point", p.name, g.name),
				"wait until it is in sync: lockstepctl device wait "+d.opts.Name, true)
		}
	}
	return nil
}

// absent names a device of d's group that is not open on this node; "" is none.
func (d *Device) absent(members []*Device) string {
	d.mu.Lock()
	names := d.cfg.Together
	d.mu.Unlock()
	for _, name := range names {
		if !slices.ContainsFunc(members, func(m *Device) bool { return m.Name() == name }) {
			return name
		}
	}
	return ""
}

// promoteOnce makes d, and all of its group with it, primary here, by the
// agreement of all that are in reach; or none of them.
func (d *Device) promoteOnce(ctx context.Context, force bool) error {
	members := d.comrades()
	if name := d.absent(members); name != "" && !force && !mutate.Is(mutate.PromoteApart) {
		return d.refuse("promote", fmt.Sprintf("%s, of the same group, is not open on this node", name), "see: lockstepctl service list", true)
	}
	var asked []ballot
	var err error
	for _, m := range members {
		var bt ballot
		if bt, err = m.askVotes(force); err != nil {
			break
		}
		if bt.tx != 0 {
			asked = append(asked, bt)
		}
	}
	vctx, cancel := context.WithTimeout(ctx, voteTimeout)
	defer cancel()
	for i := range asked {
		if err == nil {
			asked[i].waited = asked[i].await(vctx)
		}
	}
	return d.concludePromotion(asked, force, err)
}

// ballot is the votes on one device's promotion.
type ballot struct {
	d      *Device
	tx     uint64
	waited error
}

// askVotes begins a promotion; tx is 0 where there is nothing to do.
func (d *Device) askVotes(force bool) (bt ballot, err error) {
	b := &block.Batch{}
	d.mu.Lock()
	defer func() {
		d.mu.Unlock()
		b.Finish()
	}()
	bt.d = d
	if d.role == replication.Primary {
		if force {
			d.countAllLocked(b)
		}
		return bt, nil
	}
	if err := d.mayTogetherLocked(force); err != nil {
		return bt, err
	}
	bt.tx = randomID()
	d.change = changeState{tx: bt.tx}
	c := wire.Change{Tx: bt.tx, Kind: wire.ChangePromote, Node: uint8(d.cfg.Self), Force: force}
	d.ballotLocked(wire.Prepare, c, b)
	return bt, nil
}

func (bt *ballot) await(ctx context.Context) error {
	d := bt.d
	return d.wait(ctx, func() bool { return d.change.tx != bt.tx || d.change.wait == 0 || d.change.no != "" })
}

// concludePromotion commits or aborts after the votes, for all alike.
func (d *Device) concludePromotion(asked []ballot, force bool, err error) error {
	b := &block.Batch{}
	members := make([]*Device, len(asked))
	for i := range asked {
		members[i] = asked[i].d
	}
	unlock := lockAll(members)
	defer func() {
		unlock()
		b.Finish()
	}()
	// Every ballot is closed before anything is looked at: one's own promotion
	// is in nobody's way.
	closed := make([]changeState, len(asked))
	for i, m := range members {
		closed[i] = m.change
		if m.change.tx == asked[i].tx {
			m.change.tx, m.change.wait, m.change.no = 0, 0, ""
		}
	}
	for i, m := range members {
		if err == nil {
			err = m.outcomeLocked(&asked[i], &closed[i], force)
		}
	}
	typ := wire.Commit
	if err != nil {
		typ = wire.Abort
	}
	for i, m := range members {
		m.ballotLocked(typ, wire.Change{Tx: asked[i].tx, Kind: wire.ChangePromote, Node: uint8(m.cfg.Self), Force: force}, b)
	}
	if err != nil {
		return d.ofGroup(err)
	}
	for _, m := range members {
		m.becomePrimaryLocked(force, b)
	}
	return nil
}

// outcomeLocked says whether a device may be promoted after the votes.
func (d *Device) outcomeLocked(bt *ballot, ch *changeState, force bool) error {
	switch {
	case ch.tx != bt.tx:
		return d.refuse("promote", "another promotion came in between", "", true)
	case ch.no != "":
		return d.refuse("promote", ch.no, "", ch.again)
	case bt.waited != nil:
		return d.refuse("promote", "not everybody in reach has voted in time", "see: lockstepctl node list", true)
	}
	return d.mayTogetherLocked(force)
}

// ofGroup says of a refusal on account of another member of the group that it
// is so.
func (d *Device) ofGroup(err error) error {
	r, ok := err.(*RefusedError)
	if !ok || strings.HasSuffix(r.What, " "+d.opts.Name) {
		return err
	}
	verb, other, _ := strings.Cut(r.What, " ")
	return &RefusedError{What: verb + " " + d.opts.Name, Why: fmt.Sprintf("%s, of the same group, is in the way: %s", other, r.Why), Do: r.Do, Again: r.Again}
}

// demoteTogether makes d, and all of its group with it, secondary; or none of
// them.
func (d *Device) demoteTogether(ctx context.Context) error {
	if !d.isPrimary() {
		return nil
	}
	members := slices.DeleteFunc(d.comrades(), func(m *Device) bool { return !m.isPrimary() })
	for _, m := range members {
		if err := m.mayDemote(); err != nil {
			return d.ofGroup(err)
		}
	}
	for _, m := range members {
		if err := m.calm(ctx); err != nil {
			return err
		}
	}
	b := &block.Batch{}
	unlock := lockAll(members)
	var err error
	for _, m := range members {
		if err == nil {
			err = m.quietLocked()
		}
	}
	if err == nil {
		for _, m := range members {
			m.becomeSecondaryLocked(b)
		}
	}
	unlock()
	b.Finish()
	if err != nil {
		return d.ofGroup(err)
	}
	for _, m := range members {
		if err := m.noteDemotion(); err != nil {
			return err
		}
	}
	return nil
}

// yieldTogetherLocked has the group's other devices yield on this node, too: of two
// primaries one may be behind with one device and the other with another, and each
// would keep what the other needs.
func (d *Device) yieldTogetherLocked(p *peer) {
	g := d.group.Load()
	if g == nil {
		return
	}
	to := p.id
	d.work.do(func() {
		for _, m := range g.all() {
			if m != d {
				m.yieldWith(to)
			}
		}
	})
}

func (d *Device) yieldWith(to int) {
	b := &block.Batch{}
	d.mu.Lock()
	if p := d.peers[to]; d.role == replication.Primary && p != nil && !d.stopped && !d.closing {
		d.yieldLocked(p, b)
		d.evaluateLocked(b)
	}
	d.mu.Unlock()
	b.Finish()
}
