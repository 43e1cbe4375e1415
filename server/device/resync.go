package device

import (
	"bytes"
	"encoding/binary"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// A resync is driven by its target. It marks itself inconsistent, unless all
// that differs was never answered (see wholeLocked), sends its bitmap, gets the
// source's in return, and then asks for what either marks, piece by piece, while
// it takes the primary's writes as they come. A reply must never land on
// something newer. From a source that is the primary it cannot: reply and writes
// come over one link, in the order in which the source carried them out. From any
// other source a write may overtake a reply; then what it touched of that is dropped and
// asked for again, see piece.go. (To hold the range against writes instead would let the
// two sides wait for each other.)
//
// The source takes its mark off before it reads a piece and puts it back if the
// target is lost; the target takes its own off when the piece is on stable
// storage. So at every instant a stable mark on one of the two covers it.

// syncState is a resync with one peer. The device's mutex guards it.
type syncState struct {
	full    bool
	pulling bool      // this node is the target, and p is its source
	adopted bool      // its generations are that source's
	ready   bool      // both bitmaps are joined: pieces may be asked for
	round   uint64    // chosen by the target: the source's answer names the asking that it answers
	cursor  int64     // in units
	came    time.Time // when the last piece did
	ops     map[uint64]*op
	fresh   []block.Extent // written, not yet on stable storage
	freshN  int64
	syncing bool           // fresh is being made durable
	spoilt  []block.Extent // failed since that began, or the source lacks it
	small   []block.Extent // the source cannot read these as a whole
	failed  bool           // there is a block that it cannot read at all

	sent map[uint64]block.Extent // source: asked for, not confirmed
	over bool                    // source: the target has all, and what the primary sends it is awaited
	era  uint64                  // source: tells requests of one resync from those of another

	total, done int64
	began       time.Time
	rate        float64 // bytes per second, a moving average
	lastDone    int64
	seen        int64
	allowance   int64
}

// Pieces and windows. Eight pieces in flight fill a loopback and a 10 Gbit/s
// link with 1 ms of delay; while the application writes, two leave it room.
const (
	syncPiece      = 512 << 10
	syncPieces     = 8
	syncPiecesBusy = 2
	syncStable     = 32 << 20 // how much is written before it is made durable
	bitsPayload    = 48 << 10
)

func (d *Device) enterSourceLocked(p *peer, dec replication.Decision) {
	d.setReplLocked(p, replication.PausedSyncS)
	p.sync = syncState{full: dec.Full()}
	if dec.Full() {
		d.meta.Bitmap(p.id).SetAll()
	}
	d.forgetBeyondLocked(p.id)
	if d.gens.Bitmap[p.id] == replication.NoGen {
		d.gens.Bitmap[p.id] = d.gens.Current
		d.saveLocked(nil)
	}
}

// pullingLocked reports whether this disk is being resynced.
func (d *Device) pullingLocked() bool {
	for _, p := range d.peers {
		if p != nil && p.sync.pulling {
			return true
		}
	}
	return false
}

// beginPullLocked: the disk becomes a mixture, durably, before anything of the
// source's is written to it, unless it stays complete.
func (d *Device) beginPullLocked(p *peer) {
	s := p.session
	for _, q := range d.peers {
		if q != nil && q != p {
			q.inSync = false // this disk is about to change
		}
		if q != nil && q.repl == replication.SyncSource {
			// A mixture is no source.
			d.syncPartLocked(q)
			d.setReplLocked(q, replication.PausedSyncS)
		}
	}
	d.discard, d.conceded = 0, 0 // it is being done; the next split brain is another matter
	d.nextID++
	p.sync = syncState{full: p.sync.full, pulling: true, round: d.nextID, ops: map[uint64]*op{}, began: time.Now()}
	d.pulls = true
	clear(d.unmade) // it gets all that it lacks, or is no source
	d.setReplLocked(p, replication.SyncTarget)
	if d.wholeLocked(p) {
		d.setDiskLocked(replication.Consistent, "resync from "+p.name+" of what was never answered")
	} else {
		d.setDiskLocked(replication.Inconsistent, "resync from "+p.name)
	}
	if !p.sync.full || mutate.Is(mutate.BearUnmarked) {
		d.adoptLocked(p, s)
		return
	}
	// What this disk lacks of the generation that it is about to bear nobody else
	// may know: it has to be marked against all of them first, durably.
	for id := range d.disks.Without(d.cfg.Self).All() {
		d.meta.Bitmap(id).SetAll()
		d.forgetBeyondLocked(id)
	}
	round := p.sync.round
	d.noteMarksLocked(func(*block.Batch) {
		if p.session == s && p.sync.pulling && p.sync.round == round && p.agreed {
			d.adoptLocked(p, s)
		}
	})
}

// adoptLocked has this disk, which is a mixture from now on, bear its source's
// generations, and asks the source to begin when that is durable.
func (d *Device) adoptLocked(p *peer, s Session) {
	p.sync.adopted = true
	src := &p.hs.theirs.Gens
	gens := d.gens.AdoptSource(src, d.cfg.Self, p.id)
	if !d.orderedLocked() {
		gens.Noted = src.Noted // what this disk noted may be of changes that are discarded now
	}
	d.gens = d.keepNotedLocked(gens)
	d.ofOriginLocked(p)
	d.voidLogLocked(p)
	if (p.role != replication.Primary || p.hs.theirs.Stream != d.logStream) && !mutate.Is(mutate.VoidForeign) {
		d.logStream = 0 // from now on this disk has what that primary may not have
	}
	round := p.sync.round
	d.saveLocked(func(err error, b *block.Batch) {
		if err == nil && p.session == s && p.sync.pulling && p.sync.round == round && p.agreed {
			d.announceLocked(b)
			d.sendBitsLocked(p, fromTarget)
		}
	})
}

// voidLogLocked: marks that stem from this replica's own activity log are void
// against the very primary whose writes it was applying, if that has run on
// since: it marked all that this node may lack, and this node has nothing that
// it has not. Where this disk lacks everything, no mark is void.
func (d *Device) voidLogLocked(p *peer) {
	if p.sync.full || p.role != replication.Primary || d.logStream == 0 || p.hs.theirs.Stream != d.logStream || d.beforeLog[p.id] == nil {
		return
	}
	bm := d.meta.Bitmap(p.id)
	bm.ClearAll()
	for _, e := range d.beforeLog[p.id] {
		bm.Set(e)
	}
	d.beforeLog[p.id] = nil
}

// Who sends a bitmap.
const (
	fromTarget = 0 // it asks to be served
	fromSource = 1 // it serves
)

// sendBitsLocked sends our bitmap for a peer, a frame at a time, and marks the
// last, unless it is another asking's turn before that.
func (d *Device) sendBitsLocked(p *peer, who uint64) {
	s, round, at := p.session, p.sync.round, uint64(0)
	more := func() bool {
		b := &block.Batch{}
		defer b.Finish()
		d.mu.Lock()
		defer d.mu.Unlock()
		if p.session != s || !p.agreed || d.meta == nil || p.sync.round != round {
			return false
		}
		from, payload, last := at, []byte(nil), true
		for e := range d.meta.Bitmap(p.id).Runs(int64(at)) {
			off, n := uint64(e.Off)/block.Unit, uint64(e.Len)/block.Unit
			payload = wire.AppendRun(payload, off-at, n)
			at = off + n
			if len(payload) >= bitsPayload {
				last = false
				break
			}
		}
		h := wire.Header{Type: wire.Bits, Arg: [3]uint64{0, from, who | round<<1}}
		if last {
			h.Arg[0] = 1
		}
		p.send(h, payload, nil, b)
		return !last
	}
	d.work.do(func() {
		for more() {
		}
	})
}

// bitsReceivedLocked joins the peer's bitmap with ours.
func (d *Device) bitsReceivedLocked(p *peer, h *wire.Header, payload []byte, b *block.Batch) {
	who, round := h.Arg[2]&1, h.Arg[2]>>1
	if !p.agreed || d.meta == nil || who == fromSource && (!p.sync.pulling || p.sync.round != round) {
		return // or it answers what was given up meanwhile
	}
	bm := d.meta.Bitmap(p.id)
	_, err := wire.Runs(payload, h.Arg[1], d.cfg.Size, func(e block.Extent) { bm.Set(e) })
	if !d.decodedLocked(p, h.Type, err) || h.Arg[0] != 1 {
		return
	}
	if who == fromSource {
		d.joinedLocked(p)
		return
	}
	// The target knows best whether it lacks something: it may have begun before
	// it heard that it does not.
	if d.disk == nil || p.repl == replication.Off || d.dstat < replication.Outdated || d.pullingLocked() && d.role != replication.Primary {
		return
	}
	p.sync.round = round
	d.serveLocked(p, b)
}

// serveLocked begins to be the source: from here on the target gets the
// writes that come, and our bitmap says what it lacks of those before.
func (d *Device) serveLocked(p *peer, b *block.Batch) {
	if p.sync.sent == nil {
		d.eras++
		p.sync.sent, p.sync.era = map[uint64]block.Extent{}, d.eras
		p.sync.began = time.Now()
	}
	p.inSync = false
	d.setReplLocked(p, replication.SyncSource)
	d.evaluateLocked(b)
	p.sync.total = max(p.sync.total, p.sync.done+d.meta.Bitmap(p.id).Count()*block.Unit)
	told := p.hs.mine.Gens.Current // the target has taken that over
	if d.gens.Bitmap[p.id] == told || mutate.Is(mutate.ServeUnnoted) {
		d.sendBitsLocked(p, fromSource)
		return
	}
	d.gens = d.gens.BeginSync(p.id, told)
	s, round := p.session, p.sync.round
	d.saveLocked(func(err error, _ *block.Batch) {
		if err == nil && p.session == s && p.repl == replication.SyncSource && p.sync.round == round {
			d.sendBitsLocked(p, fromSource)
		}
	})
}

// joinedLocked: the target has both bitmaps; once they are stable it pulls.
func (d *Device) joinedLocked(p *peer) {
	s, round := p.session, p.sync.round
	// What is about to change here changes against every other disk too.
	for e := range d.meta.Bitmap(p.id).Runs(0) {
		d.missLocked(d.disks.Without(d.cfg.Self).Without(p.id), e)
	}
	d.noteMarksLocked(func(b *block.Batch) {
		if p.session != s || !p.sync.pulling || p.sync.round != round {
			return
		}
		p.sync.ready = true
		p.sync.cursor, p.sync.came = 0, time.Now()
		left := d.meta.Bitmap(p.id).Count() * block.Unit
		p.sync.total = p.sync.done + left
		d.eventLocked("resync", p, "resync from %s: %s", p.name, block.Amount(left))
		d.pumpLocked(p, b)
	})
}

// pumpLocked asks for as many pieces as the window lets.
func (d *Device) pumpLocked(p *peer, b *block.Batch) {
	sy := &p.sync
	if !sy.ready || sy.syncing || d.disk == nil || p.paused() { // whose metadata may be given up later
		return
	}
	limit := syncPieces
	if d.busy {
		limit = syncPiecesBusy
	}
	for len(sy.ops) < limit && (d.cfg.ResyncRate == 0 || sy.allowance > 0) && sy.freshN < syncStable {
		e, ok := sy.nextSmall(d.meta.Bitmap(p.id))
		if !ok {
			if e, ok = d.meta.Bitmap(p.id).Next(sy.cursor, syncPiece/block.Unit); !ok {
				break
			}
			sy.cursor = e.End() / block.Unit
		}
		sy.allowance -= e.Len
		o := d.newOpLocked()
		o.kind, o.ext, o.from = syncPull, e, p
		d.nextID++
		o.seq = d.nextID
		sy.ops[o.seq] = o
		d.askPieceLocked(o, b)
	}
	if len(sy.ops) > 0 {
		return
	}
	_, more := d.meta.Bitmap(p.id).Next(sy.cursor, 1)
	if sy.freshN >= syncStable || !more {
		d.makeStableLocked(p)
	}
}

// askPieceLocked asks the source for a piece.
func (d *Device) askPieceLocked(o *op, b *block.Batch) {
	p := o.from
	var tag [8]byte
	if d.primary >= 0 && d.primary != p.id && d.primary != d.cfg.Self {
		// A third node writes to both: the source must have what we have.
		binary.LittleEndian.PutUint64(tag[:], d.received)
	}
	p.send(wire.Header{Type: wire.SyncReq, Arg: [3]uint64{uint64(o.ext.Off), o.seq, uint64(o.ext.Len)}}, tag[:], nil, b)
}

// syncRequestedLocked takes a target's request for a piece.
func (d *Device) syncRequestedLocked(p *peer, f *wire.Frame, b *block.Batch) {
	off, length := int64(f.Arg[0]), int64(f.Arg[2])
	if off < 0 || length <= 0 || length > wire.MaxPayload || off > d.cfg.Size-length || off%block.Unit != 0 || length%block.Unit != 0 ||
		d.disk == nil || p.repl != replication.SyncSource || len(f.Payload) != 8 {
		h := wire.Header{Type: wire.SyncData, Flags: wire.FlagError, Arg: f.Arg}
		p.send(h, nil, nil, b)
		return
	}
	o := d.newOpLocked()
	o.kind, o.from, o.seq, o.disk = syncRead, p, f.Arg[1], d.disk
	o.ext = block.Extent{Off: off, Len: length}
	o.session, o.era = p.session, p.sync.era
	o.tag = binary.LittleEndian.Uint64(f.Payload)
	if d.lacksLocked(o) {
		d.tagged = append(d.tagged, o)
		return
	}
	d.beginReadLocked(o, b)
}

// beginReadLocked takes the marks off a piece and reads it once its range is free. What is
// changed before that is in it. What is marked from here on may not be: a change of the
// primary's, say, that the target misses is marked when it comes, and then waits for the
// range. Between now and the end of the piece at the target it is the target's marks that
// tell what it lacks.
func (d *Device) beginReadLocked(o *op, b *block.Batch) {
	if d.servesReadLocked(o) && !mutate.Is(mutate.ClearBehind) {
		o.from.sync.sent[o.seq] = o.ext
		d.meta.Bitmap(o.from.id).Clear(o.ext)
	}
	d.beginLocked(o, b)
}

// servesReadLocked reports whether a target that asked for a piece still waits for it.
func (d *Device) servesReadLocked(o *op) bool {
	p := o.from
	return p.session == o.session && p.sync.era == o.era && p.repl == replication.SyncSource && o.disk == d.disk
}

// syncRead reads a piece for a target; its range is held, so what it reads and
// where the reply stands among the writes on the link agree.
func (d *Device) syncRead(o *op, b *block.Batch) {
	buf := d.buffers.Get()
	data := buf.B[:o.ext.Len]
	bad, err := d.readFor(o, data)
	zero := err == nil && allZero(data)
	d.mu.Lock()
	if err != nil {
		d.unreadLocked(o, bad, err, b)
		d.mu.Unlock()
		buf.Release()
		return
	}
	p := o.from
	h := wire.Header{Type: wire.SyncData, Arg: [3]uint64{uint64(o.ext.Off), o.seq, uint64(o.ext.Len)}}
	if d.servesReadLocked(o) {
		if mutate.Is(mutate.ClearBehind) {
			p.sync.sent[o.seq] = o.ext
			d.meta.Bitmap(p.id).Clear(o.ext)
		}
		if zero {
			h.Flags = wire.FlagTrim
			d.stats.ResyncZeroBytes += uint64(o.ext.Len)
			p.send(h, nil, nil, b)
		} else {
			d.stats.ResyncBytes += uint64(o.ext.Len)
			p.send(h, data, buf, b)
		}
	}
	d.releaseLocked(o, b)
	d.mu.Unlock()
	buf.Release()
}

var zeroes [64 << 10]byte

func allZero(p []byte) bool {
	for len(p) > 0 {
		n := min(len(p), len(zeroes))
		if !bytes.Equal(p[:n], zeroes[:n]) {
			return false
		}
		p = p[n:]
	}
	return true
}

// syncAckedLocked: the target has, or has not, written a piece.
func (d *Device) syncAckedLocked(p *peer, f *wire.Frame, _ *block.Batch) {
	e, ok := p.sync.sent[f.Arg[1]]
	if !ok {
		return
	}
	delete(p.sync.sent, f.Arg[1])
	if f.Flags&wire.FlagError != 0 && d.meta != nil {
		d.meta.Bitmap(p.id).Set(e)
		return
	}
	p.sync.done += e.Len
}

// makeStableLocked makes the pieces written so far durable, takes their marks
// off, and goes on, or ends.
func (d *Device) makeStableLocked(p *peer) {
	sy := &p.sync
	if sy.syncing {
		return
	}
	sy.syncing = true
	fresh, s, disk := sy.fresh, p.session, d.disk
	sy.fresh, sy.freshN = nil, 0
	d.work.do(func() {
		var err error
		if !mutate.Is(mutate.ClearEarly) {
			err = disk.Sync()
		}
		b := &block.Batch{}
		d.mu.Lock()
		if err != nil {
			d.diskFailedLocked(disk, "flush", err)
		}
		if err == nil && disk == d.disk && p.session == s && p.sync.pulling {
			bm := d.meta.Bitmap(p.id)
			for _, e := range fresh {
				bm.Clear(e)
			}
			for _, e := range p.sync.spoilt {
				bm.Set(e)
			}
			p.sync.syncing, p.sync.spoilt = false, nil
			d.pulledLocked(p, b)
		}
		d.mu.Unlock()
		b.Finish()
	})
}

// pulledLocked goes on after a part was made durable.
func (d *Device) pulledLocked(p *peer, b *block.Batch) {
	bm := d.meta.Bitmap(p.id)
	if bm.Count() > 0 {
		if _, more := bm.Next(p.sync.cursor, 1); !more {
			p.sync.cursor = 0
			if p.sync.failed {
				p.sync.ready = false
				d.eventLocked("resync", p, "resync from %s: all but %s is here, which it cannot read; it is asked again", p.name, block.Amount(bm.Count()*block.Unit))
				return
			}
		}
		d.pumpLocked(p, b)
		return
	}
	p.sync.ready = false
	p.send(wire.Header{Type: wire.SyncDone}, nil, nil, b)
}

// tickSyncLocked paces the resync.
func (d *Device) tickSyncLocked(now time.Time, b *block.Batch) {
	writes := d.stats.PeerWrites + d.stats.Writes
	d.busy, d.changes = writes != d.changes, writes
	for _, p := range d.peers {
		if p == nil || !p.agreed {
			continue
		}
		d.renegotiateLocked(p, now, b)
		sy := &p.sync
		if sy.began.IsZero() {
			continue
		}
		sy.rate += (float64(sy.done-sy.lastDone)*10 - sy.rate) / 10
		sy.lastDone = sy.done
		if r := d.cfg.ResyncRate; r > 0 {
			sy.allowance = min(sy.allowance+r/10, r/5)
		}
		if sy.pulling {
			d.pumpLocked(p, b)
		}
	}
}
