package device

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// A verify compares this disk with a peer's, block by block, while both are in
// use. The node that was asked leads: it reads a piece with its range held
// against changes and sends the checksums; the peer reads the same piece when
// it has applied what the leader had, compares, and names the blocks that
// differ. Who leads as the primary sends the checksums among its changes, so
// the two reads see the same ones. A secondary cannot know which changes the
// peer had that itself had not: where one came to the piece between its read
// and the answer's place in the primary's order, a difference means nothing,
// and the piece is compared again. So no write ever looks like a difference.
//
// Blocks that differ are marked and not touched: which side is right is for an
// administrator to say, by a resync.

// verifyState is a verify that this node leads with one peer, and what the last
// one found. The device's mutex guards it.
type verifyState struct {
	active    bool
	cursor    int64
	ops       map[uint64]*verifyPiece
	again     []block.Extent // to be compared once more
	tries     int
	done      int64
	allowance int64
	rate      float64
	lastDone  int64
	differ    int64  // bytes
	skipped   int64  // bytes that changed too often, or that one side could not read
	stream    uint64 // of the primary, when it began

	// As the peer's follower.
	served   int64 // end of the last piece that the peer asked for
	servedAt time.Time
}

// verifyPiece is a piece on its way.
type verifyPiece struct {
	ext      block.Extent
	changed  bool // a change came that the peer's read may have and ours has not
	answered bool
	at       uint64 // the peer's place in the primary's stream when it read
	differ   uint64 // blocks, a bit each
}

// Verified is the outcome of a verify.
type Verified struct {
	At      time.Time
	Differ  int64 // bytes that differ
	Skipped int64 // bytes that could not be compared
	Stopped string
}

const (
	verifyBlocks     = 64 // of a piece: as many as an answer has bits
	verifyPieceBytes = verifyBlocks * block.Unit
	verifySum        = 16 // bytes of a block's checksum
	verifyPieces     = 8
	verifyPiecesBusy = 2
	verifyTries      = 1000 // over all pieces
	verifyServed     = 5 * time.Second
)

// Verify begins to compare with a peer (with every peer if node is ""; on a
// secondary that has a primary, with that).
func (d *Device) Verify(node string) (with []string, err error) {
	b := &block.Batch{}
	d.mu.Lock()
	defer func() {
		d.mu.Unlock()
		b.Finish()
	}()
	set, err := d.chosenLocked("verify", node)
	if err != nil {
		return nil, err
	}
	if d.dstat != replication.UpToDate {
		return nil, d.refuse("verify", fmt.Sprintf("this disk is %v", d.dstat), "wait until it is in sync: lockstepctl device wait "+d.opts.Name, true)
	}
	for id := range set.All() {
		p := d.peers[id]
		if q := d.primary; q >= 0 && q != d.cfg.Self && q != id {
			// The primary's data is what its clients saw: who differs from it is wrong.
			if node != "" {
				return nil, d.refuse("verify", fmt.Sprintf("%s is primary, so its data is what this one and %s are to be compared with", d.nodeName(q), p.name),
					"run it with --node "+d.nodeName(q)+", or on "+d.nodeName(q), false)
			}
			continue
		}
		if !d.verifiableLocked(p) {
			if node != "" {
				return nil, d.refuse("verify", fmt.Sprintf("the disk of %s is %v, %v", p.name, p.disk, p.repl), "wait until it is in sync: lockstepctl device wait "+d.opts.Name, true)
			}
			continue
		}
		with = append(with, p.name)
		if !p.verify.active {
			p.verify = verifyState{active: true, ops: map[uint64]*verifyPiece{}, stream: d.stream}
			d.eventLocked("verify", p, "verify with %s: %s", p.name, block.Amount(d.cfg.Size))
			d.touchLocked()
			d.pumpVerifyLocked(p, b)
		}
	}
	if len(with) == 0 {
		return nil, d.refuse("verify", "no peer is in sync", "wait until one is: lockstepctl device wait "+d.opts.Name, true)
	}
	return with, nil
}

// StopVerify ends what Verify began. What was found stays marked.
func (d *Device) StopVerify(node string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	set, err := d.chosenLocked("stop the verify of", node)
	if err != nil {
		return err
	}
	for id := range set.All() {
		d.endVerifyLocked(d.peers[id], "an administrator stopped it")
	}
	return nil
}

// verifiableLocked reports whether the two disks are supposed to be equal.
func (d *Device) verifiableLocked(p *peer) bool {
	return p.agreed && p.repl == replication.Established && p.disk == replication.UpToDate && d.disk != nil && d.dstat == replication.UpToDate
}

// tickVerifyLocked paces the verifies, and ends those whose disks are not
// supposed to be equal any more.
func (d *Device) tickVerifyLocked(now time.Time, b *block.Batch) {
	for _, p := range d.peers {
		if p == nil {
			continue
		}
		v := &p.verify
		if !v.servedAt.IsZero() && now.Sub(v.servedAt) > verifyServed {
			v.servedAt = time.Time{}
			d.touchLocked()
		}
		if !v.active {
			continue
		}
		v.rate += (float64(v.done-v.lastDone)*10 - v.rate) / 10
		v.lastDone = v.done
		if r := d.cfg.ResyncRate; r > 0 {
			v.allowance = min(v.allowance+r/10, r/5)
		}
		switch {
		case v.stream != d.stream:
			d.endVerifyLocked(p, primaryChanged)
			continue
		case !d.verifiableLocked(p):
			d.endVerifyLocked(p, fmt.Sprintf("%s is %v, %v; this disk is %v", p.name, p.disk, p.repl, d.dstat))
			continue
		}
		d.pumpVerifyLocked(p, b)
	}
}

const primaryChanged = "the primary has changed"

// pumpVerifyLocked begins as many pieces as the window lets. Once the disks are
// not supposed to be equal any more, or this one is detached, it begins none:
// the next tick ends the verify and says why.
func (d *Device) pumpVerifyLocked(p *peer, b *block.Batch) {
	v := &p.verify
	if !d.verifiableLocked(p) {
		return
	}
	limit := verifyPieces
	if d.busy {
		limit = verifyPiecesBusy
	}
	for v.active && len(v.ops) < limit && (d.cfg.ResyncRate == 0 || v.allowance > 0) {
		var e block.Extent
		switch n := len(v.again); {
		case n > 0:
			e, v.again = v.again[n-1], v.again[:n-1]
		case v.cursor < d.cfg.Size:
			e = block.Extent{Off: v.cursor, Len: min(verifyPieceBytes, d.cfg.Size-v.cursor)}
			v.cursor = e.End()
		case len(v.ops) == 0:
			d.endVerifyLocked(p, "")
			return
		default:
			return
		}
		v.allowance -= e.Len
		o := d.newOpLocked()
		o.kind, o.from, o.disk, o.session = verifyHere, p, d.disk, p.session
		o.ext = e
		d.nextID++
		o.seq = d.nextID
		v.ops[o.seq] = &verifyPiece{ext: e}
		d.beginLocked(o, b)
	}
}

// sums is the checksums of a piece's blocks, one behind the other.
func sums(dst, data []byte) []byte {
	for at := 0; at < len(data); at += block.Unit {
		s := sha256.Sum256(data[at : at+block.Unit])
		dst = append(dst, s[:verifySum]...)
	}
	return dst
}

// verifyRead reads a piece, as the leader or for one; the range is held.
func (d *Device) verifyRead(o *op, b *block.Batch) {
	buf := d.buffers.Get()
	data := buf.B[:o.ext.Len]
	bad, err := d.readFor(o, data)
	var got []byte
	if err == nil {
		got = sums(nil, data)
	}
	buf.Release()
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.unreadLocked(o, bad, err, b)
		return
	}
	if o.from.session == o.session && o.session != nil {
		if o.kind == verifyHere {
			d.verifySentLocked(o, got, b)
		} else {
			d.verifyComparedLocked(o, got, b)
		}
	}
	d.releaseLocked(o, b)
}

// verifySentLocked sends the checksums of a piece. Its range is still held: a
// primary's later changes come behind it on the link.
func (d *Device) verifySentLocked(o *op, got []byte, b *block.Batch) {
	p := o.from
	v := &p.verify
	piece := v.ops[o.seq]
	if piece == nil {
		return
	}
	if got == nil {
		delete(v.ops, o.seq)
		v.skipped += o.ext.Len
		v.done += o.ext.Len
		d.pumpVerifyLocked(p, b)
		return
	}
	var tag uint64
	if d.primary >= 0 && d.primary != p.id && d.primary != d.cfg.Self {
		tag = d.received // a third node writes to both
	}
	payload := binary.LittleEndian.AppendUint64(make([]byte, 0, 8+len(got)), tag)
	p.send(wire.Header{Type: wire.VerifyReq, Arg: [3]uint64{uint64(o.ext.Off), o.seq, uint64(o.ext.Len)}}, append(payload, got...), nil, b)
}

// verifyRequestedLocked takes a leader's checksums.
func (d *Device) verifyRequestedLocked(p *peer, f *wire.Frame, b *block.Batch) {
	off, length := int64(f.Arg[0]), int64(f.Arg[2])
	bad := off < 0 || length <= 0 || length > verifyPieceBytes || off > d.cfg.Size-length || off%block.Unit != 0 || length%block.Unit != 0 ||
		int64(len(f.Payload)) != 8+length/block.Unit*verifySum
	if bad || d.disk == nil || d.dstat != replication.UpToDate || !p.agreed {
		p.send(wire.Header{Type: wire.VerifyReply, Flags: wire.FlagError, Arg: [3]uint64{f.Arg[0], f.Arg[1]}}, nil, nil, b)
		return
	}
	p.verify.served, p.verify.servedAt = off+length, time.Now()
	o := d.newOpLocked()
	o.kind, o.from, o.seq, o.disk, o.session = verifyThere, p, f.Arg[1], d.disk, p.session
	o.ext = block.Extent{Off: off, Len: length}
	o.tag = binary.LittleEndian.Uint64(f.Payload)
	o.data = append([]byte(nil), f.Payload[8:]...)
	if o.tag > d.reachedLocked() && d.primary >= 0 && d.primary != d.cfg.Self {
		d.tagged = append(d.tagged, o)
		return
	}
	d.beginLocked(o, b)
}

// verifyComparedLocked answers a leader.
func (d *Device) verifyComparedLocked(o *op, got []byte, b *block.Batch) {
	h := wire.Header{Type: wire.VerifyReply, Arg: [3]uint64{uint64(o.ext.Off), o.seq, d.received}}
	if d.role == replication.Primary {
		h.Arg[2] = d.window.head
	}
	var differ uint64
	for i := 0; i*verifySum < len(got); i++ {
		if string(got[i*verifySum:(i+1)*verifySum]) != string(o.data[i*verifySum:(i+1)*verifySum]) {
			differ |= 1 << i
		}
	}
	o.from.send(h, binary.LittleEndian.AppendUint64(nil, differ), nil, b)
}

// verifyRepliedLocked takes a follower's answer.
func (d *Device) verifyRepliedLocked(p *peer, f *wire.Frame, b *block.Batch) {
	v := &p.verify
	piece := v.ops[f.Arg[1]]
	if piece == nil || piece.answered {
		return
	}
	if f.Flags&wire.FlagError != 0 && f.Flags&wire.FlagAgain != 0 && v.tries < verifyTries {
		delete(v.ops, f.Arg[1]) // the peer has healed a bad block meanwhile
		v.tries++
		v.again = append(v.again, piece.ext)
		d.pumpVerifyLocked(p, b)
		return
	}
	if f.Flags&wire.FlagError != 0 || len(f.Payload) != 8 {
		delete(v.ops, f.Arg[1])
		v.skipped += piece.ext.Len
		v.done += piece.ext.Len
		d.pumpVerifyLocked(p, b)
		return
	}
	piece.answered, piece.at, piece.differ = true, f.Arg[2], binary.LittleEndian.Uint64(f.Payload)
	d.judgeLocked(p, f.Arg[1], piece, b)
}

// judgeLocked settles an answered piece, unless changes that the peer had and
// that may explain a difference are still on their way here.
func (d *Device) judgeLocked(p *peer, id uint64, piece *verifyPiece, b *block.Batch) {
	v := &p.verify
	if v.stream != d.stream {
		d.endVerifyLocked(p, primaryChanged) // whose numbers mean something else
		return
	}
	leads := d.role == replication.Primary
	if piece.differ != 0 && !leads && d.primary >= 0 && d.received < piece.at {
		return // verifyMovedLocked comes back to it
	}
	delete(v.ops, id)
	if piece.differ != 0 && !leads && piece.changed {
		if v.tries++; v.tries <= verifyTries {
			v.again = append(v.again, piece.ext)
		} else {
			v.skipped += piece.ext.Len
			v.done += piece.ext.Len
		}
		d.pumpVerifyLocked(p, b)
		return
	}
	for i := range verifyBlocks {
		if piece.differ>>i&1 == 0 {
			continue
		}
		e := block.Extent{Off: piece.ext.Off + int64(i)*block.Unit, Len: block.Unit}
		d.foundLocked(p, e)
	}
	v.done += piece.ext.Len
	d.pumpVerifyLocked(p, b)
}

// mostTold bounds how many differences are told one by one.
const mostTold = 10

// foundLocked marks a block that was found to differ.
func (d *Device) foundLocked(p *peer, e block.Extent) {
	p.verify.differ += e.Len
	if d.meta == nil {
		return
	}
	d.meta.Bitmap(p.id).Set(e)
	p.found = appendFound(p.found, e)
	if p.verify.differ <= mostTold*block.Unit {
		d.eventLocked("verify", p, "the disks here and on %s differ in %d bytes at %d", p.name, e.Len, e.Off)
	}
}

// mostFound bounds what is kept of differences.
const mostFound = 1 << 14

// appendFound adds a block to those that were found to differ. Beyond a bound
// what lies between is counted in: a mark too many costs a resync of a block.
func appendFound(found []block.Extent, e block.Extent) []block.Extent {
	if n := len(found); n > 0 {
		last := &found[n-1]
		if last.End() == e.Off || n >= mostFound {
			off := min(last.Off, e.Off)
			*last = block.Extent{Off: off, Len: max(last.End(), e.End()) - off}
			return found
		}
	}
	return append(found, e)
}

// remarkLocked marks again what a verify has found. Marks between replicas are
// void by the primary's word that both are in sync; but that is what the verify
// has disproved.
func (d *Device) remarkLocked(p *peer) {
	for _, e := range p.found {
		d.meta.Bitmap(p.id).Set(e)
	}
}

// verifyChangedLocked: a change has come, that a piece under comparison lacks.
func (d *Device) verifyChangedLocked(e block.Extent) {
	for _, p := range d.peers {
		if p == nil || !p.verify.active {
			continue
		}
		for _, piece := range p.verify.ops {
			if piece.ext.Overlaps(e) {
				piece.changed = true
			}
		}
	}
}

// verifyMovedLocked goes on with the pieces that wait for the primary's changes.
func (d *Device) verifyMovedLocked(b *block.Batch) {
	for _, p := range d.peers {
		if p == nil || !p.verify.active {
			continue
		}
		for id, piece := range p.verify.ops {
			if piece.answered {
				d.judgeLocked(p, id, piece, b)
			}
		}
	}
}

// endVerifyLocked ends a verify and tells what it found.
func (d *Device) endVerifyLocked(p *peer, stopped string) {
	v := &p.verify
	if !v.active {
		return
	}
	v.active = false
	p.verified = &Verified{At: time.Now(), Differ: v.differ, Skipped: v.skipped, Stopped: stopped}
	end := "is complete"
	if stopped != "" {
		end = "was stopped: " + stopped
	}
	d.eventLocked("verify", p, "verify with %s %s: %s differ, %s could not be compared", p.name, end, block.Amount(v.differ), block.Amount(v.skipped))
	if v.differ > 0 {
		d.eventLocked("out-of-sync", p, "%s differ between the disks here and on %s; \"lockstepctl device resync %s --node %s\" mends them",
			block.Amount(v.differ), p.name, d.opts.Name, p.name)
		if d.meta != nil {
			d.noteMarksLocked(nil)
		}
	}
	v.ops = nil
	d.touchLocked()
}

// verifyProgressLocked is how far a verify with a peer has come, and who leads.
func (d *Device) verifyProgressLocked(p *peer) (state replication.ReplState, g *Progress) {
	v := &p.verify
	switch {
	case p.repl != replication.Established:
		return p.repl, nil
	case v.active:
		g = &Progress{Done: v.done, Total: d.cfg.Size, Rate: int64(v.rate)}
		if g.Rate > 0 {
			g.Left = time.Duration(float64(g.Total-g.Done) / v.rate * float64(time.Second))
		}
		return replication.VerifyS, g
	case !v.servedAt.IsZero() && v.served < d.cfg.Size:
		return replication.VerifyT, &Progress{Done: v.served, Total: d.cfg.Size}
	}
	return p.repl, nil
}

// WaitVerified blocks until no verify is led here.
func (d *Device) WaitVerified(ctx context.Context) error {
	return d.wait(ctx, func() bool { return d.everyPeer(func(p *peer) bool { return !p.verify.active }) })
}
