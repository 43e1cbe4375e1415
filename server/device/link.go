package device

import (
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// handshake is how two nodes agree on what to do about a device. Each sends
// its facts (a hello, numbered), decides from both sides' facts, and says with
// which pair of hellos it agrees. The agreement holds when both agreed on the
// same pair. Whoever's facts change before that sends new ones.
type handshake struct {
	no       uint32 // of our last hello; 0: none sent on this session
	mine     replication.Facts
	peerNo   uint32
	theirs   replication.Facts
	sent     bool // we agreed with the pair (no, peerNo)
	got      bool
	held     bool      // our hello is not sent yet, see greetLocked
	begins   bool      // the peer says on the data link which agreement what follows is of:
	began    [2]uint32 // that of its hello, and ours
	config   uint64
	members  uint32
	protocol uint8
}

// SessionUp begins the device's part of a new session with a peer.
func (d *Device) SessionUp(s Session) { d.sessionUp(s, nil) }

// sessionUp is that where the peer has said hello before this node had the device. What
// it answers to our hello must find its own taken.
func (d *Device) sessionUp(s Session, said *wire.DeviceFacts) {
	d.mu.Lock()
	p := d.peers[s.PeerID()&(replication.MaxNodes-1)]
	if p == nil || d.closing {
		d.mu.Unlock()
		return
	}
	p.session, p.up = s, time.Now()
	p.hs = handshake{begins: p.speaks(wire.FeatureBegan)}
	p.handle, p.closed = 0, false
	if said != nil {
		d.HelloReceived(s, *said)
	}
	b := &block.Batch{}
	d.helloLocked(p, b)
	d.finishAsideLocked(b)
	d.mu.Unlock()
}

// finishAsideLocked finishes a batch on a goroutine of its own: what follows from a session
// that comes or goes may be work on the disk, and no disk is to hold up the others that
// hear of sessions, nor those that look for a device.
func (d *Device) finishAsideLocked(b *block.Batch) {
	if !d.stopped { // else nothing begins any more, and endWorkers may have waited
		d.done.Go(b.Finish)
	}
}

// SessionDown ends it. It returns when nothing of the session is awaited any
// more; what follows from the loss is under way.
func (d *Device) SessionDown(s Session, reason string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[s.PeerID()&(replication.MaxNodes-1)]
	if p == nil || p.session != s {
		return
	}
	if !d.stopped {
		d.straysOfLocked(p)
		b := &block.Batch{}
		d.contactLostLocked(p, reason, b)
		defer d.finishAsideLocked(b)
	}
	p.session = nil
	p.acks.count = 0
	p.handle = 0
	p.hs = handshake{}
}

// handshakeTimeout is how long a peer in contact is waited for like one that is about to
// tell what it has.
const handshakeTimeout = 5 * time.Second

// shakingLocked reports whether a handshake with a peer may be under way. A peer in
// contact that has closed the device, or has not said hello for a while, does not have it.
func (p *peer) shakingLocked() bool {
	return p.session != nil && !p.agreed && p.refused == "" && !p.closed && (p.hs.peerNo != 0 || time.Since(p.up) < handshakeTimeout)
}

// helloLocked sends our present facts to a peer; whatever was agreed on is
// void.
func (d *Device) helloLocked(p *peer, b *block.Batch) {
	if p.session == nil {
		return
	}
	no := p.hs.no + 1
	if p.agreed {
		d.partLocked(p, "a new handshake", b)
	}
	p.hs.no, p.hs.sent, p.hs.got, p.early = no, false, false, nil
	d.greetLocked(p, b)
}

// greetLocked tells a peer the facts, once the generation that this primary takes over is
// on its stable storage: a peer that is told that it is in force notes that, and where the
// primary dies first it is on no disk, and no disk would ever pass for current again.
func (d *Device) greetLocked(p *peer, b *block.Batch) {
	d.censusLocked()
	p.hs.mine = d.factsLocked(p)
	if p.hs.held = d.genHeld && !mutate.Is(mutate.TellUnsaved); p.hs.held {
		return
	}
	d.sendHelloLocked(p, b)
	d.decideLocked(p, b)
}

// greetHeldLocked tells those that were not told.
func (d *Device) greetHeldLocked(b *block.Batch) {
	for _, p := range d.peers {
		if p != nil && p.hs.held {
			d.greetLocked(p, b)
		}
	}
}

// rehelloLocked renews the facts with every peer with which agreement is
// wanting, and with those of again.
func (d *Device) rehelloLocked(again replication.NodeSet, b *block.Batch) {
	for _, p := range d.peers {
		if p != nil && p.hs.no > 0 && (!p.agreed || again.Has(p.id)) {
			d.helloLocked(p, b)
		}
	}
}

// forgetBeyondLocked drops marks beyond the end of the device: of room that was
// made for a resize that did not come about. Nothing was ever written there, and
// a peer without that room could not even be told of them.
func (d *Device) forgetBeyondLocked(id int) {
	if d.room > d.cfg.Size {
		d.meta.Bitmap(id).Clear(block.Extent{Off: d.cfg.Size, Len: d.room - d.cfg.Size})
	}
}

// followingLocked reports whether a primary in contact sends its writes here.
func (d *Device) followingLocked() bool {
	if d.primary < 0 || d.primary == d.cfg.Self || d.dstat != replication.UpToDate {
		return false
	}
	p := d.peers[d.primary]
	return p != nil && p.agreed && replication.NodeSet(p.state.Receives).Has(d.cfg.Self)
}

// HelloReceived takes a peer's facts about the device.
func (d *Device) HelloReceived(s Session, f wire.DeviceFacts) {
	d.work.do(func() {
		b := &block.Batch{}
		d.mu.Lock()
		if p := d.peers[s.PeerID()&(replication.MaxNodes-1)]; p != nil && p.session == s && !d.closing {
			d.helloReceivedLocked(p, &f, b)
		}
		d.mu.Unlock()
		b.Finish()
	})
}

func (d *Device) helloReceivedLocked(p *peer, f *wire.DeviceFacts, b *block.Batch) {
	// Another handle is another opening of the device at the peer, which counts
	// its hellos anew. What was known of the one before may have come while this
	// node did not have the device, and nobody told of its end.
	another := p.handle != 0 && f.Handle > p.handle
	if f.Handle < p.handle {
		return
	}
	if f.No <= p.hs.peerNo && !another {
		d.configReceivedLocked(p, f, b)
		return
	}
	p.handle, p.closed = f.Handle, p.closed || another
	if p.agreed {
		d.partLocked(p, "a new handshake", b)
	}
	d.censusLocked() // what this node knows without the peer
	p.hs.peerNo = f.No
	// The peer judges by our last hello. Where that is no longer true, or the
	// peer's device is a new one that never saw it, it gets another.
	d.learnSizeLocked(f.Size)
	theirs := factsOf(p.id, f)
	d.fitLocked(p, f, &theirs)
	d.learnVotesLocked(&theirs)
	p.hs.theirs = theirs
	p.hs.theirs.Ordered = d.orderedLocked()
	spent := p.closed || !d.toldLocked(p)
	p.closed = false
	spent = d.learnLocked(p, b) || spent
	p.hs.config, p.hs.members, p.hs.protocol = f.Config, f.Members, f.Protocol
	if spent {
		d.helloLocked(p, b)
		return
	}
	p.hs.sent, p.hs.got, p.early = false, false, nil
	d.decideLocked(p, b)
}

// learnLocked takes over what a peer knows of the generations in force, and
// reports whether that was news. A disk that has nothing of the newest is
// outdated, wherever that newest may be; but who has quorum without the peer
// knows better: what would have come into force at the peer's would be known
// in the quorum, though maybe not that it did.
func (d *Device) learnLocked(p *peer, b *block.Batch) bool {
	theirs := &p.hs.theirs
	if (d.meta == nil || d.unguidedLocked() && !mutate.Is(mutate.ForgetServed)) && d.overtakenLocked(theirs) {
		d.yieldLocked(p, b)
		return true
	}
	if d.witnessLocked() {
		// A primary that is to yield to a disk's word must not have taken it for known
		// by that of another witness.
		return (d.role != replication.Primary || d.quorum.Quorate || mutate.Is(mutate.ZombieTold)) && d.witnessLearnLocked(theirs)
	}
	if d.meta == nil || p.hs.mine.Foreign(theirs) || !theirs.Ordered || mutate.Is(mutate.DeafToFailed) && theirs.Disk == replication.Diskless && !p.diskless ||
		d.quorum.Quorate && !d.tied && d.dstat == replication.UpToDate && !(d.gens.Tentative() && theirs.Gens.Seen == d.gens.Current) {
		return false
	}
	if !d.gens.Learn(&theirs.Gens) {
		return false
	}
	if d.role == replication.Primary && d.passedLocked() {
		d.yieldLocked(p, b) // others went on without this node: what waits here is never answered
	}
	d.behindLocked(p.name + " knows of a newer generation in force")
	d.saveLocked(nil)
	return true
}

// overtakenLocked reports whether a generation has come into force that this
// primary without a disk, which lost quorum, knows nothing of: another was
// primary meanwhile. Where there is no quorum that tells, it is one that comes from the
// generation that this primary serves: without the peer that is in it nothing was answered
// in this one.
func (d *Device) overtakenLocked(theirs *replication.Facts) bool {
	if !d.orderedLocked() {
		served := d.servedLocked()
		return d.role == replication.Primary && theirs.Disk.HasData() && served != replication.NoGen && !within(&theirs.Gens, served) && theirs.Gens.Knows(served)
	}
	g := theirs.Gens.Seen
	return !mutate.Is(mutate.ZombieDiskless) && d.role == replication.Primary && !d.quorum.Quorate && theirs.Ordered && theirs.Disk.HasData() && g.After(d.gens.Seen) && g != d.genNew
}

// behindLocked: what the disk holds is no longer current if a generation is in
// force that it has nothing of.
func (d *Device) behindLocked(why string) {
	if d.dstat > replication.Outdated && d.passedLocked() {
		d.setDiskLocked(replication.Outdated, why)
	}
}

// passedLocked reports whether a generation is in force of which this disk has
// nothing.
func (d *Device) passedLocked() bool { return d.orderedLocked() && d.gens.Behind() }

// orderedLocked reports whether the generations in force are a chain.
func (d *Device) orderedLocked() bool { return d.cfg.Quorum.Ordered(d.disks.Len()) }

// decideLocked agrees with the pair of hellos at hand, if there is one and it
// lets us.
func (d *Device) decideLocked(p *peer, b *block.Batch) {
	if p.hs.peerNo == 0 || p.hs.no == 0 || p.hs.sent || p.hs.held || d.strays > 0 {
		return
	}
	if d.conceded.Has(p.id) && (p.hs.theirs.Discard || p.hs.theirs.Disk == replication.Inconsistent) {
		// Each has conceded by what it knew of the other's role, or the peer by an
		// administrator's word; or what it was conceded to is there no more: the peer
		// has itself conceded to a third. This side's concession is void.
		d.discard, d.conceded = d.discard.Without(p.id), d.conceded.Without(p.id)
		d.helloLocked(p, b)
		return
	}
	dec := d.verdictLocked(&p.hs.mine, &p.hs.theirs)
	if mutate.Is(mutate.DropEqual) && d.meta != nil && dec.Sync() && p.hs.mine.Gens.Current == p.hs.theirs.Gens.Current {
		d.meta.Bitmap(p.id).ClearAll()
		dec.Action = replication.InSync
	}
	if mutate.Is(mutate.ZombieDiskless) && dec.Action == replication.NoDisk {
		dec.Yields = 0
	}
	if p.hs.config != d.cfg.Fingerprint {
		dec = replication.Decision{Action: replication.Refuse, Rule: "configuration",
			Why: "the two nodes' configurations of this device differ in what must agree (size, nodes, protocol, quorum)"}
	}
	if dec.Action == replication.SplitBrain && d.contestedLocked(p) {
		return
	}
	changed := dec.Action != p.decision.Action || dec.Rule != p.decision.Rule
	p.decision = dec
	p.refused = ""
	switch dec.Action {
	case replication.SplitBrain, replication.Unrelated, replication.Refuse:
		p.refused = dec.Why
		if changed {
			typ := "replication"
			if dec.Action == replication.SplitBrain {
				typ = "split-brain"
			}
			d.eventLocked(typ, p, "not connected with %s: %s: %s", p.name, dec.Action, dec.Why)
			d.touchLocked()
		}
		return
	}
	if changed && dec.Resolved() {
		d.eventLocked("split-brain", p, "split brain with %s: %s", p.name, dec.Why)
	}
	if dec.Resolved() && !dec.Source() {
		// It stands, whatever else changes before the resync begins: a primary
		// that has yielded would come under another policy.
		d.discard, d.conceded = d.discard.With(p.id), d.conceded.With(p.id)
	}
	if dec.Chosen() && dec.Source() && d.dstat == replication.Outdated {
		d.setDiskLocked(replication.Consistent, "the changes of "+p.name+" are discarded for it")
	}
	d.log.Debug("decided", "peer", p.name, "action", dec.Action.String(), "rule", dec.Rule, "why", dec.Why)
	d.prepareAgreementLocked(p, dec, b)
}

// prepareAgreementLocked makes durable what must be before the peer may rely
// on our agreement, then agrees.
func (d *Device) prepareAgreementLocked(p *peer, dec replication.Decision, b *block.Batch) {
	yield := d.role == replication.Primary && dec.Yields.Has(d.cfg.Self)
	// A difference within one generation is in changes that were not answered:
	// neither side is behind.
	behind := dec.Outrun() || dec.Action == replication.SelfOutdated
	if d.role == replication.Primary && behind && d.dstat > replication.Outdated {
		yield = true // others went on without this node: what waits here is never answered
	}
	if yield {
		d.yieldLocked(p, b)
	}
	// That this disk's changes are discarded may yet be void, or another's may be
	// first; when the resync begins is early enough.
	behind = behind && d.dstat > replication.Outdated && !d.backedLocked(p) && !d.discard.Has(p.id)
	if behind {
		d.setDiskLocked(replication.Outdated, "the peer has newer data: "+dec.Why)
	}
	unsynced := d.role != replication.Primary && d.unsyncedLocked()
	if !behind && !unsynced && !d.votesNews {
		d.agreeLocked(p, b)
		return
	}
	no, peerNo, s := p.hs.no, p.hs.peerNo, p.session
	if unsynced {
		d.work.do(d.syncDisk)
	}
	d.saveLocked(func(err error, b *block.Batch) {
		if err == nil && p.session == s && p.hs.no == no && p.hs.peerNo == peerNo && !p.hs.sent {
			d.agreeLocked(p, b)
		}
	})
}

// unsyncedLocked reports whether changes reached the disk since syncDisk.
func (d *Device) unsyncedLocked() bool {
	if mutate.Is(mutate.VoteUnsynced) {
		return false
	}
	return d.disk != nil && d.applied != d.synced
}

// syncDisk makes what a replica holds durable. Its next primary counts on it:
// it knows what it has sent itself, and not what others sent before.
func (d *Device) syncDisk() {
	d.mu.Lock()
	disk, n := d.disk, d.applied
	d.mu.Unlock()
	if disk == nil {
		return
	}
	err := disk.Sync()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.diskFailedLocked(disk, "flush", err)
		return
	}
	if disk == d.disk {
		d.synced = max(d.synced, n)
	}
}

// backedLocked reports whether this node is in sync with the primary, which is
// not p. Marks between two replicas are then left over from before one of them
// was resynced; the primary's word settles them, and neither is behind.
func (d *Device) backedLocked(p *peer) bool {
	if d.primary < 0 || d.primary == p.id || d.primary == d.cfg.Self || d.dstat != replication.UpToDate {
		return false
	}
	q := d.peers[d.primary]
	if q == nil || !q.agreed || q.repl != replication.Established {
		return false
	}
	if !q.disk.HasData() {
		if !replication.NodeSet(q.state.Receives).Has(d.cfg.Self) {
			return false
		}
		// Whenever somebody comes or goes, nobody is in sync by its word until it has heard
		// from all. What it serves is not behind meanwhile.
		return replication.NodeSet(q.state.InSync).Has(d.cfg.Self) || d.servesAsLocked(q)
	}
	return q.disk == replication.UpToDate
}

func (d *Device) agreeLocked(p *peer, b *block.Batch) {
	p.hs.sent = true
	if p.hs.begins {
		p.send(wire.Header{Type: wire.Began, Arg: [3]uint64{uint64(p.hs.no), uint64(p.hs.peerNo)}}, nil, nil, b)
	}
	p.send(wire.Header{Type: wire.DevAgree, Arg: [3]uint64{uint64(p.hs.no), uint64(p.hs.peerNo), uint64(p.decision.Action)}}, nil, nil, b)
	d.concludeLocked(p, b)
}

// agreeReceivedLocked: the peer agreed with a pair of hellos, its own first.
func (d *Device) agreeReceivedLocked(p *peer, peerNo, no uint32, action replication.Action, b *block.Batch) {
	if peerNo != p.hs.peerNo || no != p.hs.no {
		return // newer facts are under way
	}
	if want := p.decision.Action.Mirror(); p.hs.sent && action != want {
		p.refused = fmt.Sprintf("the peer concludes %v where this node concludes %v", action, want)
		d.eventLocked("replication", p, "not connected with %s: %s", p.name, p.refused)
		return
	}
	p.hs.got = true
	d.concludeLocked(p, b)
}

// concludeLocked enters the agreement when both sides stand by it.
func (d *Device) concludeLocked(p *peer, b *block.Batch) {
	if p.agreed || !p.hs.sent || !p.hs.got {
		return
	}
	if !d.toldLocked(p) {
		d.helloLocked(p, b) // this node does not stand by it any more
		return
	}
	p.agreed = true
	d.freeVoteLocked(p)
	p.given, p.parting, p.newcomer = p.hs.theirs.Votes.Given(p.id), false, p.hs.theirs.Newcomer
	p.former, p.met, p.regrouped = p.hs.theirs.Former, p.hs.theirs.Met, p.hs.theirs.Regrouped
	d.pollVoidLocked("somebody came into reach meanwhile")
	d.unfenceLocked(p)
	p.told, p.heard, p.ending = false, false, false
	p.held = false // it says so again
	if p.hold {
		d.tellHoldLocked(p, b)
	}
	p.role, p.disk = p.hs.theirs.Role, d.creditLocked(p, p.hs.theirs.Disk)
	p.state = wire.DeviceState{Role: uint8(p.role), Disk: uint8(p.disk), Primary: wire.NoNode}
	if dec := p.decision; dec.Yields.Has(p.id) {
		p.role = replication.Secondary
	}
	if p.role == replication.Primary && d.role != replication.Primary && p.hs.theirs.Stream != 0 {
		p.state.Primary = uint8(p.id)
		if d.stream != p.hs.theirs.Stream || d.primary != p.id {
			d.followLocked(p, p.hs.theirs.Stream)
		}
	}
	p.stable = 0
	if d.role == replication.Primary {
		p.stable = d.window.head // what is before was marked when it left
	}
	dec := p.decision
	switch {
	case dec.Action == replication.InSync:
		d.enterInSyncLocked(p)
	case dec.Sync() && dec.Source():
		p.fence.spared = !dec.Even && !dec.Chosen() && !p.hs.theirs.Discard // it has noted that it is behind, see prepareAgreementLocked
		d.enterSourceLocked(p, dec)
	case dec.Sync():
		d.setReplLocked(p, replication.PausedSyncT)
		p.sync = syncState{full: dec.Full()}
	default:
		d.setReplLocked(p, replication.Established)
		p.fence.spared = dec.Action == replication.PeerOutdated // likewise
		if p.fence.spared && p.disk > replication.Outdated {
			p.disk = replication.Outdated
		}
		if d.dstat == replication.Outdated && d.servesAsLocked(p) {
			d.setDiskLocked(replication.UpToDate, "it is what "+p.name+" serves")
			d.saveLocked(nil)
		}
	}
	d.log.Info("agreed", "peer", p.name, "action", dec.Action.String(), "rule", dec.Rule, "peer_disk", p.disk.String())
	d.evaluateLocked(b)
	d.chooseSourceLocked(b)
	d.askAgainLocked(p, b)
	early := p.early
	p.early = nil
	for _, f := range early {
		f(b)
	}
}

// enterInSyncLocked: nothing differs; whoever knows that the data is current
// tells the other by it.
func (d *Device) enterInSyncLocked(p *peer) {
	p.inSync = true
	d.gens = d.gens.FinishSync(p.id)
	if d.origin == replication.NoOrigin {
		d.ofOriginLocked(p)
	}
	best := inSyncState(&p.hs.mine, &p.hs.theirs)
	d.best = d.best || p.hs.theirs.Best // of equal data the one knows what the other does
	if d.passedLocked() && !d.best {
		best = min(best, replication.Outdated)
	}
	d.setDiskLocked(best, "same data as "+p.name)
	p.disk = best
	d.crashed = false
	d.saveGensLater()
	d.setReplLocked(p, replication.Established)
}

// inSyncState is what two disks are that hold the same: as good as the better
// of the two, unless one knows that newer data exists and the other could not
// know. Who is primary, or has quorum without the other, could.
func inSyncState(a, b *replication.Facts) replication.DiskState {
	lo, hi := a, b
	if lo.Disk > hi.Disk {
		lo, hi = hi, lo
	}
	if lo.Disk <= replication.Outdated && !lo.Ordered && !hi.KnowsBetter(lo) {
		return lo.Disk
	}
	return hi.Disk
}

func (d *Device) setReplLocked(p *peer, s replication.ReplState) {
	if p.repl == s {
		return
	}
	old := p.repl
	p.repl, p.since = s, time.Now()
	d.eventLocked("replication", p, "replication with %s: %v -> %v", p.name, old, s)
	d.touchLocked()
}
