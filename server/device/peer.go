package device

import (
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// peer is what this node knows of a device on one other node. All of it is
// guarded by the device's mutex.
type peer struct {
	d        *Device
	id       int
	name     string
	diskless bool // configured without a disk

	session Session   // nil: no contact
	up      time.Time // when that began
	// out is the header of the frame being sent. Here it costs no memory a frame.
	out    wire.Header
	handle uint32 // of the device at the peer; 0: it has not said hello
	hs     handshake
	agreed bool // the handshake is complete: frames of the device flow

	role       replication.Role
	disk       replication.DiskState
	repl       replication.ReplState
	state      wire.DeviceState // as last announced
	decision   replication.Decision
	since      time.Time       // repl was entered
	inSync     bool            // nothing differs
	missed     bool            // a change of ours that was answered was not sent to it; see creditLocked
	outOf      replication.Gen // the last generation of ours that began without it
	lacks      replication.Gen // likewise missed, while that one was in force: who comes to be in it has all
	undo       replication.Gen // in which its disk, a mixture, took a change of ours that no complete one has; NoGen: never
	fails      int             // changes of ours that its disk has failed, one after the other
	failsUntil time.Time       // until then its disk is not tried again
	restless   time.Time       // since when neither in sync nor on the way
	patience   time.Duration
	refused    string // why the peer is not worked with

	stable    uint64 // our changes up to here are durable at the peer
	acks      ackRun
	sync      syncState
	stay      stay
	lastSt    wire.DeviceState // what we last announced to it
	lastRoll  roll             // and with which roll
	roll      roll             // with which it said last who is in sync with it
	told      bool
	heard     bool              // it has announced its state since we agreed
	doneFacts *wire.DeviceFacts // the source's, at the end of a resync
	ending    bool              // it has all of ours, and may not have heard yet that its resync is over
	// early are frames on the data link of an agreement that we stand by and of whose
	// other half we have not heard yet: the two links are not ordered against each other.
	early    []func(*block.Batch)
	fence    fencing
	asking   *asking // for its facts
	verify   verifyState
	verified *Verified      // the outcome of the last verify led here
	found    []block.Extent // that verifies found to differ, since the last resync
	hold     bool           // we pause the resync with it
	held     bool           // it pauses the resync with us
	unread   time.Time      // when, as our source, it last could not read a piece
	closed   bool           // the peer closed the device: its next hello is a new one's

	confirmed replication.Gen // of ours, the last that it has noted as one that takes part
	steady    bool            // diskless: in contact since there was quorum without tiebreakers
	newcomer  bool            // by its own word, see replication.Census
	former    bool            // likewise: it has disks to meet, see regroup.go; met: and has
	met       bool
	regrouped bool // its generation began among other disks
	given     bool // by its own word it has given its vote up
	parting   bool // it is about to: nobody counts on its vote any more
}

// bit is the peer's id as a set.
func (p *peer) bit() replication.NodeSet { return replication.Of(p.id) }

// voteless reports whether a peer in reach has no vote.
func (p *peer) voteless() bool { return p.given || p.parting }

// speaks reports whether both nodes' versions have a feature.
func (p *peer) speaks(feature uint64) bool {
	s, ok := p.session.(interface{ Features() uint64 })
	return ok && s.Features()&feature != 0
}

// send queues a frame about the device for the peer.
func (p *peer) send(h wire.Header, payload []byte, buf *block.Buf, b *block.Batch) {
	if p.session == nil {
		return
	}
	p.out = h
	p.out.Dev = p.handle
	p.session.Send(&p.out, payload, buf, b)
}

// ackRun gathers acks of consecutive changes into one frame. It is a
// block.Flusher; the device's mutex guards it.
type ackRun struct {
	p     *peer
	first uint64
	count uint64
}

// addLocked acks seq to the peer.
func (a *ackRun) addLocked(seq uint64, b *block.Batch) {
	b.Touch(a)
	if a.count > 0 && seq == a.first+a.count {
		a.count++
		return
	}
	a.emitLocked(b)
	a.first, a.count = seq, 1
}

func (a *ackRun) emitLocked(b *block.Batch) {
	if a.count > 0 {
		a.p.send(wire.Header{Type: wire.WriteAck, Arg: [3]uint64{a.first, a.count}}, nil, nil, b)
		a.count = 0
	}
}

// Flush sends the gathered acks.
func (a *ackRun) Flush(b *block.Batch) {
	a.p.d.mu.Lock()
	a.emitLocked(b)
	a.p.d.mu.Unlock()
}

// HandleFrame takes a frame about this device from a peer. It runs on the
// goroutine that reads the link and does not block.
func (d *Device) HandleFrame(s Session, f *wire.Frame, b *block.Batch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	p := d.peers[s.PeerID()&(replication.MaxNodes-1)]
	if p == nil || p.session != s || d.stopped || d.closing && f.Type != wire.WriteAck && f.Type != wire.FlushAck && f.Type != wire.ReadReply {
		return // of a session that is over, or of no member
	}
	if !d.currentLocked(p, f) {
		return
	}
	switch f.Type {
	case wire.Write, wire.Zero:
		d.peerChangeLocked(p, f, b)
	case wire.WriteAck:
		d.ackedLocked(p, f.Arg[0], f.Arg[1], true, b)
	case wire.RecvAck:
		d.ackedLocked(p, f.Arg[0], f.Arg[1], false, b)
	case wire.WriteNak:
		if p.id == d.primary {
			d.gaveUpLocked(f.Arg[0], b)
		} else {
			d.nakedLocked(p, f.Arg[0], b)
		}
	case wire.FlushReq:
		d.flush.requestedLocked(d, p, f.Arg[0], f.Arg[1], b)
	case wire.FlushAck:
		d.flush.ackedLocked(d, p, f.Arg[0], f.Flags&wire.FlagError == 0, b)
	case wire.Began:
		p.hs.began = [2]uint32{uint32(f.Arg[0]), uint32(f.Arg[1])}
	case wire.Receivers:
		// At once where that can be: it is ordered against the writes behind it.
		if p.agreed {
			d.receiversLocked(p, &f.Header, b)
		} else {
			d.controlLocked(p, f)
		}
	case wire.Marks:
		d.marksReceivedLocked(p, f)
	case wire.PeerFloor:
		d.floorLocked(p, f.Arg[0])
		d.tagsReachedLocked(b)
	case wire.ReadReq:
		d.readRequestedLocked(p, f, b)
	case wire.ReadReply:
		d.readRepliedLocked(p, f, b)
	case wire.SyncReq:
		d.syncRequestedLocked(p, f, b)
	case wire.SyncData:
		d.syncDataLocked(p, f, b)
	case wire.SyncAck:
		d.syncAckedLocked(p, f, b)
	case wire.VerifyReq:
		d.verifyRequestedLocked(p, f, b)
	case wire.VerifyReply:
		d.verifyRepliedLocked(p, f, b)
	default:
		d.controlLocked(p, f)
	}
}

// currentLocked reports whether a frame is of the present agreement with a peer, or
// of the one that we stand by, as far as its link tells. A peer can have agreed with
// our last hello but one, and sent what follows from that, before it hears of our
// last: taken now, that would be a word, or a write, of a time that is over. What is
// asked, and its answer, is of any time.
func (d *Device) currentLocked(p *peer, f *wire.Frame) bool {
	switch f.Type {
	case wire.Write, wire.Zero, wire.Receivers, wire.Marks, wire.NewGen, wire.Bits, wire.SyncReq, wire.SyncData:
	default:
		return true
	}
	return !p.hs.begins || p.hs.peerNo != 0 && p.hs.began == [2]uint32{p.hs.peerNo, p.hs.no}
}

// controlLocked hands frames that change state to the worker, in order. Their
// payload is copied: it lies in the link's buffer.
func (d *Device) controlLocked(p *peer, f *wire.Frame) {
	s, h, no, peerNo := p.session, f.Header, p.hs.no, p.hs.peerNo
	payload := append([]byte(nil), f.Payload...)
	d.work.do(func() {
		b := &block.Batch{}
		d.mu.Lock()
		if p.session == s && (h.Type.Link() != wire.Data || p.hs.no == no && p.hs.peerNo == peerNo) {
			d.controlFrameLocked(p, &h, payload, b)
		}
		d.mu.Unlock()
		b.Finish()
	})
}

func (d *Device) controlFrameLocked(p *peer, h *wire.Header, payload []byte, b *block.Batch) {
	if h.Type == wire.Commit || h.Type == wire.Abort {
		// The end of a plan has nothing to do with the agreement.
		var c wire.Change
		if c.Decode(payload) == nil && c.Kind != wire.ChangePromote {
			d.changeFrameLocked(p, h.Type, c, b)
			return
		}
	}
	switch h.Type {
	case wire.FactsReq:
		d.factsRequestedLocked(p, h.Arg[0], b)
		return
	case wire.FactsReply:
		f := new(wire.DeviceFacts)
		if d.decodedLocked(p, h.Type, f.Decode(payload)) {
			d.factsToldLocked(p, h.Arg[0], f, b)
		}
		return
	}
	if !p.agreed && p.hs.sent && h.Type != wire.DevAgree && h.Type != wire.DevClosed {
		// On the link of the agree, what comes before it is of another agreement.
		if h.Type.Link() == wire.Data && len(p.early) < maxEarly {
			p.early = append(p.early, func(b *block.Batch) { d.controlFrameLocked(p, h, payload, b) })
		}
		return
	}
	switch h.Type {
	case wire.DevAgree:
		d.agreeReceivedLocked(p, uint32(h.Arg[0]), uint32(h.Arg[1]), replication.Action(h.Arg[2]), b)
	case wire.DevState:
		var st wire.DeviceState
		if d.decodedLocked(p, h.Type, st.Decode(payload)) {
			d.stateReceivedLocked(p, st, b)
		}
	case wire.DevClosed:
		d.eventLocked("disk", p, "%s no longer serves the device: %s", p.name, payload)
		p.closed = true // and no handshake is waited for
		d.contactLostLocked(p, "the peer closed the device: "+string(payload), b)
	case wire.NewGen:
		var g wire.Generation
		switch {
		case !d.decodedLocked(p, h.Type, g.Decode(payload)):
		case h.Arg[1] == wire.OnlyNote && d.disks.Has(d.cfg.Self):
			d.hearLocked(p, &g)
		default:
			d.genReceivedLocked(p, g, h.Arg[0])
		}
	case wire.NewGenAck:
		d.genConfirmedLocked(p, h.Arg[0], false, b)
	case wire.GenCommit:
		d.genCommitLocked(p, h.Arg[0], replication.NodeSet(h.Arg[1]))
	case wire.GenDone:
		d.genConfirmedLocked(p, h.Arg[0], true, b)
	case wire.Receivers:
		d.receiversLocked(p, h, b)
	case wire.Prepare, wire.Vote, wire.Commit, wire.Abort:
		var c wire.Change
		if d.decodedLocked(p, h.Type, c.Decode(payload)) {
			d.changeFrameLocked(p, h.Type, c, b)
		}
	case wire.Bits:
		d.bitsReceivedLocked(p, h, payload, b)
	case wire.StayReq, wire.StayAck:
		d.stayReceivedLocked(p, h, b)
	case wire.SyncHold:
		d.heldLocked(p, h.Arg[0] == 1, b)
	case wire.SyncDone:
		if h.Flags&wire.FlagError != 0 {
			d.targetGaveUpLocked(p)
			return
		}
		if len(payload) > 0 {
			var f wire.DeviceFacts
			if !d.decodedLocked(p, h.Type, f.Decode(payload)) {
				return
			}
			p.doneFacts = &f
		}
		d.syncDoneReceivedLocked(p, b)
	default:
		d.log.Warn("unexpected frame", "peer", p.name, "type", h.Type.String())
	}
}

// maxEarly bounds what is kept for a peer that never completes an agreement.
const maxEarly = 4096

func (d *Device) decodedLocked(p *peer, t wire.Type, err error) bool {
	if err != nil {
		d.log.Warn("cannot decode a frame", "peer", p.name, "type", t.String(), "err", err)
	}
	return err == nil
}

// ackedLocked notes that a peer has written (or received) count changes from
// first on.
func (d *Device) ackedLocked(p *peer, first, count uint64, written bool, b *block.Batch) {
	if count > uint64(len(d.window.ops)) {
		d.log.Warn("acks for more changes than are in flight", "peer", p.name, "first", first, "count", count)
		return
	}
	somewhere := false
	for seq := first; seq < first+count; seq++ {
		o := d.window.get(seq)
		if o == nil || !o.wait.Has(p.id) {
			continue
		}
		o.need &^= p.bit()
		if written {
			somewhere = somewhere || o.finished && d.nowhereLocked(o)
			o.wait &^= p.bit()
			o.acked = true
			o.took = o.took || d.servesLocked(p)
			if o.passed != nil && o.took {
				o.passed = nil
				d.mixedLocked(o.ext)
			}
			p.fails = 0
		}
		d.progressLocked(o, b)
	}
	if somewhere {
		d.releaseHeldLocked(b) // that it was on no disk yet is why it was held
	}
}

// nakedLocked: the peer could not write a change. Its disk takes part no longer,
// and before the change is answered that is noted everywhere; the state that
// the peer tells next says more.
func (d *Device) nakedLocked(p *peer, seq uint64, b *block.Batch) {
	o := d.window.get(seq)
	if o == nil || !o.wait.Has(p.id) {
		return
	}
	d.missLocked(p.bit(), o.ext)
	if p.fails++; p.fails > 1 {
		// It was tried again as soon as the peer stood by its disk, in vain.
		p.failsUntil = time.Now().Add(min(firstFailWait<<min(p.fails-2, 10), mostFailWait))
	}
	d.peerDiskLocked(p, replication.Failed, b)
	if o = d.window.get(seq); o != nil && o.wait.Has(p.id) {
		o.need &^= p.bit()
		o.wait &^= p.bit()
		d.progressLocked(o, b)
	}
}

// The pauses between attempts to write to a peer's disk that fails them.
const (
	firstFailWait = 100 * time.Millisecond
	mostFailWait  = 10 * time.Second
)

// tickFailsLocked has peers' disks tried again that have failed a while ago.
func (d *Device) tickFailsLocked(now time.Time, b *block.Batch) {
	for _, p := range d.peers {
		if p == nil || p.failsUntil.IsZero() || now.Before(p.failsUntil) {
			continue
		}
		p.failsUntil = time.Time{}
		if p.agreed && p.disk == replication.Failed {
			d.peerDiskLocked(p, d.creditLocked(p, replication.DiskState(p.state.Disk)), b)
			d.evaluateLocked(b)
		}
	}
}

// tellFloorLocked tells the replicas which changes are everywhere, when no
// further change has told them.
func (d *Device) tellFloorLocked(b *block.Batch) {
	if d.role != replication.Primary || d.floorSent == d.window.floor {
		return
	}
	d.floorSent = d.window.floor
	for id := range d.receives.All() {
		d.peers[id].send(wire.Header{Type: wire.PeerFloor, Arg: [3]uint64{d.window.floor}}, nil, nil, b)
	}
}

// floorLocked: every change of the primary's stream up to seq is everywhere.
func (d *Device) floorLocked(p *peer, seq uint64) {
	if d.primary == p.id && seq > d.floor {
		d.floor = seq
		d.recent.trim(seq)
		if d.pressed != 0 {
			d.pressed = 0
			d.Pressure(d.epochLocked(seq))
		}
	}
}
