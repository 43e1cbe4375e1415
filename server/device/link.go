package device

import (
	"cmp"
	"fmt"
	"slices"
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
	config   uint64
	members  uint32
	protocol uint8
}

// SessionUp begins the device's part of a new session with a peer.
func (d *Device) SessionUp(s Session) {
	d.mu.Lock()
	p := d.peers[s.PeerID()&(replication.MaxNodes-1)]
	if p == nil || d.closing {
		d.mu.Unlock()
		return
	}
	p.session = s
	p.hs = handshake{}
	p.handle, p.closed = 0, false
	b := &block.Batch{}
	d.helloLocked(p, b)
	d.mu.Unlock()
	b.Finish()
}

// SessionDown ends it. It returns when nothing of the session is awaited any
// more; what follows from the loss is under way.
func (d *Device) SessionDown(s Session, reason string) {
	d.mu.Lock()
	p := d.peers[s.PeerID()&(replication.MaxNodes-1)]
	b := &block.Batch{}
	if p != nil && p.session == s {
		d.straysOfLocked(p)
		d.contactLostLocked(p, reason, b)
		p.session = nil
		p.acks.count = 0
		p.handle = 0
		p.hs = handshake{}
	}
	d.mu.Unlock()
	b.Finish()
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
	d.censusLocked()
	p.hs.mine = d.factsLocked(p)
	d.sendHelloLocked(p, b)
	d.decideLocked(p, b)
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

func (d *Device) factsLocked(p *peer) replication.Facts {
	f := replication.Facts{
		Node: d.cfg.Self, Role: d.role, Disk: d.dstat, Size: d.cfg.Size, Gens: d.gens,
		Crashed: d.crashed, Live: d.live, Following: d.followingLocked(), Best: d.best, Stream: d.stream, Received: d.received,
		Quorate: d.quorum.Quorate, Discard: d.discard.Has(p.id),
		Primary: d.primary, Ordered: d.orderedLocked(), Began: d.began, Origin: d.origin, Votes: d.votes, Newcomer: d.newcomer, Member: d.member,
	}
	if d.role == replication.Primary && d.genNew != d.gens.Current && d.dstat == replication.UpToDate {
		f.Announced = d.genNew
	}
	if d.primary < 0 && d.change.promised != 0 {
		f.Primary = d.change.promisedTo // it has our vote
	}
	if f.Primary == p.id {
		f.Primary = replication.NoPrimary // the peer knows best
	}
	if d.role == replication.Primary {
		f.Received = d.window.head
	}
	if d.meta != nil {
		d.forgetBeyondLocked(p.id)
		f.Dirty = d.meta.Bitmap(p.id).Count()
	}
	return f
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
	d.learnVotesLocked(&theirs)
	now := d.factsLocked(p)
	spent := p.closed || !sameFacts(&now, &p.hs.mine, d.primary >= 0)
	p.closed = false
	p.hs.theirs = theirs
	p.hs.theirs.Ordered = d.orderedLocked()
	spent = d.learnLocked(p, b) || spent
	p.hs.config, p.hs.members, p.hs.protocol = f.Config, f.Members, f.Protocol
	if spent {
		d.helloLocked(p, b)
		return
	}
	p.hs.sent, p.hs.got = false, false
	d.decideLocked(p, b)
}

// learnLocked takes over what a peer knows of the generations in force, and
// reports whether that was news. A disk that has nothing of the newest is
// outdated, wherever that newest may be; but who has quorum without the peer
// knows better: what would have come into force at the peer's would be known
// in the quorum.
func (d *Device) learnLocked(p *peer, b *block.Batch) bool {
	theirs := &p.hs.theirs
	if d.meta == nil || p.hs.mine.Foreign(theirs) || !theirs.Ordered || theirs.Disk == replication.Diskless || d.quorum.Quorate && d.dstat == replication.UpToDate {
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

// sameFacts reports whether two sets of our facts lead to the same decision.
// How many units are dirty does not matter, whether there are any does; how
// much of a stream was received matters when its primary is gone.
func sameFacts(a, b *replication.Facts, primary bool) bool {
	x, y := *a, *b
	x.Dirty, y.Dirty = min(x.Dirty, 1), min(y.Dirty, 1)
	if primary {
		x.Received, y.Received = 0, 0
	}
	return x == y
}

// decideLocked agrees with the pair of hellos at hand, if there is one and it
// lets us.
func (d *Device) decideLocked(p *peer, b *block.Batch) {
	if p.hs.peerNo == 0 || p.hs.no == 0 || p.hs.sent || d.strays > 0 {
		return
	}
	dec := d.verdictLocked(&p.hs.mine, &p.hs.theirs)
	if mutate.Is(mutate.DropEqual) && d.meta != nil && dec.Sync() && p.hs.mine.Gens.Current == p.hs.theirs.Gens.Current {
		d.meta.Bitmap(p.id).ClearAll()
		dec.Action = replication.InSync
	}
	if p.hs.config != d.cfg.Fingerprint {
		dec = replication.Decision{Action: replication.Refuse, Rule: "configuration",
			Why: "the two nodes' configurations of this device differ in what must agree (size, nodes, protocol, quorum)"}
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
		d.discard = d.discard.With(p.id)
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
	behind := dec.Sync() && !dec.Source() && !dec.Even || dec.Action == replication.SelfOutdated
	if d.role == replication.Primary && behind && d.dstat > replication.Outdated {
		yield = true // others went on without this node: what waits here is never answered
	}
	if yield {
		d.yieldLocked(p, b)
	}
	behind = behind && d.dstat > replication.Outdated && !d.backedLocked(p)
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
	return q != nil && q.agreed && q.repl == replication.Established && q.disk == replication.UpToDate
}

func (d *Device) agreeLocked(p *peer, b *block.Batch) {
	p.hs.sent = true
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
	if p.decision.Action == replication.InSync && d.meta != nil && d.meta.Bitmap(p.id).Count() > 0 {
		d.helloLocked(p, b) // not any more
		return
	}
	p.agreed = true
	p.given, p.parting, p.newcomer = p.hs.theirs.Votes.Given(p.id), false, p.hs.theirs.Newcomer
	d.pollVoidLocked("somebody came into reach meanwhile")
	d.unfenceLocked(p)
	p.told, p.heard = false, false
	p.held = false // it says so again
	if p.hold {
		d.tellHoldLocked(p, b)
	}
	p.role, p.disk = p.hs.theirs.Role, p.hs.theirs.Disk
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
		d.enterSourceLocked(p, dec)
	case dec.Sync():
		d.setReplLocked(p, replication.PausedSyncT)
		p.sync = syncState{full: dec.Full()}
	default:
		d.setReplLocked(p, replication.Established)
		if dec.Action == replication.PeerOutdated && p.disk > replication.Outdated {
			p.disk = replication.Outdated
		}
	}
	d.log.Info("agreed", "peer", p.name, "action", dec.Action.String(), "rule", dec.Rule, "peer_disk", p.disk.String())
	d.evaluateLocked(b)
	d.chooseSourceLocked(b)
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

// contactLostLocked: the device's agreement with a peer ended with its contact.
func (d *Device) contactLostLocked(p *peer, reason string, b *block.Batch) {
	if p.hs.no == 0 && !p.agreed {
		return
	}
	was := p.agreed
	if was {
		if d.role == replication.Primary && !p.diskless && p.repl == replication.Established && p.disk == replication.UpToDate {
			d.fenceLocked(p)
		}
		d.partLocked(p, reason, b)
	}
	p.hs.sent, p.hs.got, p.hs.peerNo = false, false, 0
	p.role, p.disk = replication.UnknownRole, replication.DUnknown
	p.refused = ""
	d.voteLostLocked(p, b)
	d.flush.lostLocked(d, p, b)
	d.readsLostLocked(p, b)
	d.evaluateLocked(b)
	if was {
		d.chooseSourceLocked(b)
	}
}

// partLocked ends an agreement: what the peer may not have is marked, and
// nothing more is awaited of it.
func (d *Device) partLocked(p *peer, reason string, b *block.Batch) {
	inSync := p.repl == replication.Established && p.disk == replication.UpToDate
	p.agreed, p.inSync, p.early = false, false, nil
	d.endVerifyLocked(p, reason)
	d.pollPartedLocked(p)
	p.hs.sent, p.hs.got = false, false
	d.genHas = d.genHas.Without(p.id)
	if d.genBusy && d.genWait.Has(p.id) {
		// It takes part no longer; if it comes back, in another generation.
		d.genWait = d.genWait.Without(p.id)
		d.genAgain = true
		d.work.do(d.settleGen)
	}
	d.syncPartLocked(p)
	d.setReplLocked(p, replication.Off)
	if d.receives.Has(p.id) {
		d.receives = d.receives.Without(p.id)
		d.excludeLocked(p, inSync, reason, b)
	}
	if d.primary == p.id {
		d.primaryLostLocked(p, reason, b)
	}
	p.state = wire.DeviceState{Primary: wire.NoNode}
}

// excludeLocked: as the primary, go on without a peer. What it did not
// confirm, and what it confirmed but may still lose, is marked; and where it
// had been in sync, the marks get a generation of their own, which is durable
// before any change that missed the peer is answered.
func (d *Device) excludeLocked(p *peer, inSync bool, reason string, b *block.Batch) {
	doubtful := d.missSinceLocked(p, p.stable)
	if inSync || d.needsGenLocked() {
		d.needGen = true
		d.genAgain = d.genBusy
	}
	waiting := false
	for o := range d.window.all {
		if o.wait.Has(p.id) {
			waiting = true
			break
		}
	}
	if waiting && d.needGen && !mutate.Is(mutate.AnswerEarly) {
		d.hold |= holdGeneration
	}
	// Quorum first: whether these may be answered depends on it.
	d.censusLocked()
	for o := range d.window.all {
		if !o.wait.Has(p.id) {
			continue
		}
		if !mutate.Is(mutate.ForgetMissed) {
			d.missLocked(p.bit(), o.ext)
		}
		doubtful = append(doubtful, o.ext)
		o.miss = o.miss.With(p.id)
		o.wait &^= p.bit()
		o.need &^= p.bit()
		d.progressLocked(o, b)
	}
	// Before the generation, on the same link: when that is confirmed, the other
	// replicas know what the lost one may lack.
	d.shareMarksLocked(p.id, doubtful, b)
	if d.needGen && waiting {
		d.startGenLocked()
	}
	d.log.Info("going on without a peer", "peer", p.name, "reason", reason)
}

// missSinceLocked marks what was changed after seq as out of sync with a peer,
// and returns it.
func (d *Device) missSinceLocked(p *peer, seq uint64) (marked []block.Extent) {
	list, complete := d.recent.after(seq)
	for _, c := range list {
		marked = append(marked, c.ext)
	}
	if d.meta == nil || mutate.Is(mutate.ForgetMissed) || mutate.Is(mutate.ForgetUnflushed) {
		return marked
	}
	if !complete {
		marked = append(marked, d.meta.AL().Hot()...)
	}
	bm := d.meta.Bitmap(p.id)
	for _, e := range marked {
		bm.Set(e)
	}
	return marked
}

// shareMarksLocked tells the replicas what another, or the primary's own disk,
// may lack although it was sent it: they have taken it for one that has
// everything.
func (d *Device) shareMarksLocked(id int, es []block.Extent, b *block.Batch) {
	if len(es) == 0 || d.receives == 0 || mutate.Is(mutate.KeepMarks) {
		return
	}
	slices.SortFunc(es, func(x, y block.Extent) int { return cmp.Compare(x.Off, y.Off) })
	var payload []byte
	first, at := uint64(0), uint64(0)
	send := func() {
		h := wire.Header{Type: wire.Marks, Arg: [3]uint64{uint64(id), first}}
		for to := range d.receives.All() {
			d.peers[to].send(h, payload, nil, b)
		}
		payload, first = payload[:0], at
	}
	for _, e := range es {
		u := e.Units()
		off, end := max(uint64(u.Off)/block.Unit, at), min(uint64(u.End()), uint64(d.cfg.Size))/block.Unit
		if off >= end {
			continue
		}
		payload = wire.AppendRun(payload, off-at, end-off)
		at = end
		if len(payload) >= bitsPayload {
			send()
		}
	}
	if len(payload) > 0 {
		send()
	}
}

// marksReceivedLocked takes the primary's word on what another replica may lack.
func (d *Device) marksReceivedLocked(p *peer, f *wire.Frame) {
	id := int(f.Arg[0])
	if d.meta == nil || id >= replication.MaxNodes || id == d.cfg.Self || !d.disks.Has(id) {
		return
	}
	bm := d.meta.Bitmap(id)
	_, err := wire.Runs(f.Payload, f.Arg[1], d.cfg.Size, func(e block.Extent) { bm.Set(e) })
	d.decodedLocked(p, f.Type, err)
}

// primaryLostLocked: the primary is out of contact. What of its last changes
// the other replicas may not have is marked against all of them; those in
// contact then compare notes.
func (d *Device) primaryLostLocked(p *peer, reason string, b *block.Batch) {
	d.primary = -1
	if d.unsyncedLocked() {
		d.work.do(d.syncDisk) // before any vote or handshake
	}
	if d.meta != nil && d.recent.len() > 0 && !mutate.Is(mutate.SkipReconcile) {
		list, complete := d.recent.after(d.floor)
		others := d.disks.Without(d.cfg.Self)
		for _, c := range list {
			d.missLocked(others, c.ext)
		}
		if !complete {
			for _, e := range d.meta.AL().Hot() {
				d.missLocked(others, e)
			}
		}
		d.saveLocked(nil)
		meta := d.meta
		d.work.do(func() {
			if err := meta.WriteBitmaps(); err != nil {
				d.log.Error("cannot write the bitmaps", "err", err)
			}
		})
		d.log.Info("the primary is gone", "peer", p.name, "reason", reason, "unconfirmed", len(list))
		var again replication.NodeSet
		for _, q := range d.peers {
			if q != nil && q != p && !q.diskless {
				again = again.With(q.id)
			}
		}
		d.work.do(func() {
			b := &block.Batch{}
			d.mu.Lock()
			if d.primary < 0 {
				d.rehelloLocked(again, b)
			}
			d.mu.Unlock()
			b.Finish()
		})
	}
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

// wireFacts and factsOf translate facts to and from the wire.
func wireFacts(f *replication.Facts) wire.DeviceFacts {
	w := wire.DeviceFacts{
		Origin: f.Origin, Votes: f.Votes,
		Role: uint8(f.Role), Disk: uint8(f.Disk), Size: f.Size, Dirty: f.Dirty,
		Stream: f.Stream, Received: f.Received, Current: uint64(f.Gens.Current), Base: uint64(f.Gens.Base), Seen: uint64(f.Gens.Seen), Noted: uint64(f.Gens.Noted), Primary: wire.NoNode, Announced: uint64(f.Announced), Began: f.Began,
	}
	if f.Primary >= 0 {
		w.Primary = uint8(f.Primary)
	}
	for i, g := range f.Gens.Bitmap {
		w.Bitmap[i] = uint64(g)
	}
	for i, g := range f.Gens.History {
		w.History[i] = uint64(g)
	}
	for flag, on := range map[uint16]bool{
		wire.DevFlagCrashed: f.Crashed, wire.DevFlagLive: f.Live, wire.DevFlagFollowing: f.Following,
		wire.DevFlagDiscard: f.Discard, wire.DevFlagQuorate: f.Quorate, wire.DevFlagBest: f.Best, wire.DevFlagNewcomer: f.Newcomer, wire.DevFlagMember: f.Member,
	} {
		if on {
			w.Flags |= flag
		}
	}
	return w
}

func factsOf(node int, w *wire.DeviceFacts) replication.Facts {
	f := replication.Facts{
		Origin: w.Origin, Votes: w.Votes,
		Node: node, Role: replication.Role(w.Role), Disk: replication.DiskState(w.Disk), Size: w.Size,
		Dirty: w.Dirty, Stream: w.Stream, Received: w.Received, Began: w.Began,
		Crashed: w.Flags&wire.DevFlagCrashed != 0, Live: w.Flags&wire.DevFlagLive != 0, Following: w.Flags&wire.DevFlagFollowing != 0,
		Discard: w.Flags&wire.DevFlagDiscard != 0, Quorate: w.Flags&wire.DevFlagQuorate != 0,
		Best: w.Flags&wire.DevFlagBest != 0, Newcomer: w.Flags&wire.DevFlagNewcomer != 0, Member: w.Flags&wire.DevFlagMember != 0, Primary: replication.NoPrimary, Announced: replication.Gen(w.Announced),
	}
	if w.Primary < replication.MaxNodes {
		f.Primary = int(w.Primary)
	}
	f.Gens.Current, f.Gens.Noted = replication.Gen(w.Current), replication.Gen(w.Noted)
	f.Gens.Base, f.Gens.Seen = replication.Gen(w.Base), replication.Gen(w.Seen)
	for i, g := range w.Bitmap {
		f.Gens.Bitmap[i] = replication.Gen(g)
	}
	for i, g := range w.History {
		f.Gens.History[i] = replication.Gen(g)
	}
	return f
}
