package device

import (
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device/mutate"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// gate says what becomes of a change that asks for admission.
type gate uint8

const (
	gateShut    gate = iota // not primary: refused
	gateOpen                // admitted
	gateSuspend             // parked until the gate opens
	gateFail                // fails: no quorum, and the policy says so
)

// holdReason says why changes that are finished are not answered yet.
type holdReason uint8

const (
	holdNoQuorum   holdReason = 1 << iota // nobody may act on what a minority did
	holdGeneration                        // the generation that tells what a lost peer missed is not durable yet
	holdLease                             // the peers that make quorum may have given this node up
	holdDisk                              // what this disk lacks is not noted yet
	holdFence                             // a lost peer is not fenced yet; see fence.go
	holdFew                               // too few disks are sent changes; see weighLocked

	holdCopies = holdNoQuorum | holdFew // only other disks can end it
)

// Submit takes a request of the local consumer. r.Done.Complete is called
// exactly once, possibly before Submit returns. Submit does not block, but for
// reading from the local disk.
func (d *Device) Submit(r *block.Request, b *block.Batch) {
	r.Err = nil
	if err := d.check(r); err != nil {
		finish(r, err, b)
		return
	}
	switch r.Op {
	case block.Read:
		d.read(r, b)
	case block.Cache:
		finish(r, nil, b)
	case block.Flush:
		d.mu.Lock()
		d.admitFlushLocked(r, b)
		d.mu.Unlock()
	default:
		d.mu.Lock()
		if d.admitLocked(r, b) {
			d.changeLocked(r, b)
		}
		d.mu.Unlock()
	}
}

func finish(r *block.Request, err error, b *block.Batch) {
	r.Err = err
	r.Done.Complete(r, b)
}

// check refuses what no state of the device would make good.
func (d *Device) check(r *block.Request) error {
	switch r.Op {
	case block.Flush:
		return nil
	case block.Read, block.Write:
		if int64(len(r.Data)) != r.Len {
			return block.ErrInvalid
		}
	case block.Trim, block.WriteZeroes, block.Cache:
	default:
		return block.ErrInvalid
	}
	if r.Off < 0 || r.Len < 0 {
		return block.ErrInvalid
	}
	if size := d.size.Load(); r.Off > size || r.Len > size-r.Off {
		if r.Op == block.Write || r.Op == block.WriteZeroes {
			return block.ErrNoSpace
		}
		return block.ErrRange
	}
	return nil
}

// admitLocked lets a change in, parks it, or refuses it.
func (d *Device) admitLocked(r *block.Request, b *block.Batch) bool {
	if d.gate != gateOpen {
		d.turnAwayLocked(r, b)
		return false
	}
	if !d.needGen {
		return true
	}
	d.parked = append(d.parked, r)
	if !d.genBusy {
		d.startGenLocked()
	}
	return false
}

// turnAwayLocked parks or refuses what the gate does not let in.
func (d *Device) turnAwayLocked(r *block.Request, b *block.Batch) {
	switch d.gate {
	case gateSuspend:
		d.parked = append(d.parked, r)
	case gateFail:
		finish(r, block.ErrIO, b)
	default:
		// The client was let in as the primary's; it is no longer that.
		finish(r, block.ErrDropped, b)
	}
}

// changeLocked starts an admitted change.
func (d *Device) changeLocked(r *block.Request, b *block.Batch) {
	if r.Len == 0 {
		finish(r, nil, b)
		return
	}
	if piece := d.pieceLocked(r); r.Len > piece {
		d.splitLocked(r, piece, b)
		return
	}
	d.beginLocked(d.appOpLocked(r, r.Off, r.Len, r.Data), b)
}

// pieceLocked is the longest change that is made in one piece: a frame, and
// the smallest activity log, can take it.
func (d *Device) pieceLocked(r *block.Request) int64 {
	piece := int64(maxZero)
	if r.Op == block.Write {
		piece = wire.MaxPayload
	}
	if l := d.activityLocked(); r.Len > fitsAnyLog && l != nil {
		piece = min(piece, l.MaxSpan())
	}
	return piece
}

// fitsAnyLog is what seven extents of 64 KiB take, wherever it begins.
const fitsAnyLog = 256 << 10

func (d *Device) appOpLocked(r *block.Request, off, length int64, data []byte) *op {
	o := d.newOpLocked()
	o.kind, o.what, o.flags = appChange, r.Op, r.Flags
	o.ext = block.Extent{Off: off, Len: length}
	o.data, o.buf, o.req = data, r.Buf, r
	if o.buf != nil {
		o.buf.Retain()
	}
	return o
}

// maxZero is the longest trim that is done in one piece: what the activity
// log takes at once has to hold a batch of them.
const maxZero = 64 << 20

// splitLocked cuts a change into pieces that a frame, or the activity log,
// can take.
func (d *Device) splitLocked(r *block.Request, piece int64, b *block.Batch) {
	g := &group{req: r, left: int((r.Len + piece - 1) / piece)}
	for at := int64(0); at < r.Len; at += piece {
		n := min(piece, r.Len-at)
		var data []byte
		if r.Op == block.Write {
			data = r.Data[at : at+n]
		}
		o := d.appOpLocked(r, r.Off+at, n, data)
		o.group = g
		d.beginLocked(o, b)
	}
}

// beginLocked queues an op for its range; it starts when the range is free.
func (d *Device) beginLocked(o *op, b *block.Batch) {
	if d.ranges.add(o) {
		d.startLocked(o, b)
	}
}

// startLocked goes on with an op that has its range.
func (d *Device) startLocked(o *op, b *block.Batch) {
	if d.stopped {
		return
	}
	switch o.kind {
	case syncPull:
		d.writePieceLocked(o, b)
	case syncRead, readThere, verifyHere, verifyThere:
		d.bulk.put(o)
	case readAfter:
		d.readAfterLocked(o, b)
	case readRelayed:
		d.relayLocked(o, b)
	default:
		if !d.logLocked(o) {
			d.al.put(o) // its extent must be hot on stable storage first
			return
		}
		d.issueLocked(o, b)
	}
}

// logLocked takes o's references in the activity log where one is kept. It
// reports false where that needs I/O.
func (d *Device) logLocked(o *op) bool {
	l := d.activityLocked()
	if o.log != nil || l == nil || !d.keepsLogLocked(o) {
		return true
	}
	if !l.TryBegin(o.ext) {
		return false
	}
	o.log = l
	return true
}

// keepsLogLocked: a primary always keeps an activity log. A replica needs one
// where a third disk may have to be reconciled with it when both it and the
// primary are gone, and where it alone knows what another disk misses: the
// primary has none.
func (d *Device) keepsLogLocked(o *op) bool {
	if mutate.Is(mutate.SkipLog) || mutate.Is(mutate.SkipReplicaLog) && o.kind == peerChange {
		return false
	}
	if o.kind == mend {
		return false // see heal.go
	}
	return o.kind == appChange || d.disks.Len() > 2 || o.miss != 0 || !o.from.logsLocked()
}

// issueLocked sends a change to the local disk and to those peers that take
// part.
func (d *Device) issueLocked(o *op, b *block.Batch) {
	if d.stopped {
		return
	}
	if o.log != nil && o.log != d.activityLocked() {
		// A disk has gone, or come, since: the log that is kept now knows nothing of it.
		o.log.End(o.ext, d.shift)
		o.log = nil
		d.startLocked(o, b)
		return
	}
	switch o.kind {
	case peerChange:
		d.issuePeerLocked(o, b)
		return
	case mend:
		d.issueMendLocked(o, b)
		return
	}
	if d.role != replication.Primary {
		o.err = block.ErrDropped
		d.answerLocked(o, b)
		d.retireLocked(o, b)
		return
	}
	if d.strandsLocked() {
		d.stranded = append(d.stranded, o)
		return
	}
	d.overtakePullsLocked(nil, o.ext, false)
	d.window.push(o)
	o.shift = d.shift
	o.wait = d.receives
	o.miss = d.disks.Without(d.cfg.Self) &^ d.receives
	if d.cfg.Protocol != replication.ProtocolA {
		o.need = o.wait
	}
	if d.needGen && !mutate.Is(mutate.AnswerEarly) {
		// It was let in before a peer was lost, which it misses now.
		d.hold |= holdGeneration
		if !d.genBusy {
			d.startGenLocked()
		}
	}
	d.recent.add(o.seq, o.ext)
	if !mutate.Is(mutate.ForgetAway) {
		d.missLocked(o.miss, o.ext)
	}
	for id := range o.miss.All() {
		d.peers[id].inSync = false
	}
	d.sendChangeLocked(o, o.wait, b)
	d.countLocked(o)
	if d.takesLocked() {
		d.coverPullsLocked(nil, o.ext, o.miss)
		d.carryOutLocked(o, b)
		return
	}
	d.progressLocked(o, b)
}

// takesLocked reports whether this node's disk is given changes.
func (d *Device) takesLocked() bool { return d.disk != nil && d.dstat.HasData() }

// landsLocked reports whether a change would reach a disk with the current data.
// One that was let in while there was such a disk, and has waited for the
// activity log or its range since, may come when there is none: on mixtures
// alone it would be undone by their resync.
func (d *Device) landsLocked() bool { return !d.remoteDisksLocked() || d.borneLocked(d.receives) }

// remoteDisksLocked reports whether other nodes have disks of the device.
func (d *Device) remoteDisksLocked() bool { return d.disks.Without(d.cfg.Self) != 0 }

// strandsLocked reports whether a change has to wait before it is sent to anybody: for a
// disk that it would reach, or for what was under way when this node was given a disk. Of
// that the disk's log knows nothing: more would be in flight than the replicas' logs have
// room for, and some could wait for others.
func (d *Device) strandsLocked() bool {
	return d.role == replication.Primary && (!d.landsLocked() || d.window.floor < d.drain) && !d.failsLocked()
}

// doneLocked takes a change out of the window, which lets go on what waited for it.
func (d *Device) doneLocked(o *op) {
	d.window.done(o.seq)
	if d.drain == 0 || d.window.floor < d.drain {
		return
	}
	d.drain = 0
	d.work.do(func() {
		b := &block.Batch{}
		d.mu.Lock()
		d.landStrandedLocked(b)
		d.mu.Unlock()
		b.Finish()
	})
}

// landStrandedLocked goes on with the changes that waited.
func (d *Device) landStrandedLocked(b *block.Batch) {
	if len(d.stranded) == 0 || d.strandsLocked() {
		return
	}
	ops := d.stranded
	d.stranded = nil
	for _, o := range ops {
		d.issueLocked(o, b)
	}
}

func (d *Device) countLocked(o *op) {
	if o.what == block.Write {
		d.stats.Writes++
		d.stats.WriteBytes += uint64(o.ext.Len)
	} else {
		d.stats.Trims++
	}
}

// missLocked marks a range as out of sync with every node of set. The marks
// are in memory; until they are written the activity log covers them.
func (d *Device) missLocked(set replication.NodeSet, e block.Extent) {
	if d.meta == nil || set == 0 {
		return
	}
	for id := range set.All() {
		if id != d.cfg.Self {
			d.meta.Bitmap(id).Set(e)
		}
	}
}

// sendChangeLocked queues the change for every node of to.
func (d *Device) sendChangeLocked(o *op, to replication.NodeSet, b *block.Batch) {
	if to == 0 {
		return
	}
	h := wire.Header{Type: wire.Write, Arg: [3]uint64{uint64(o.ext.Off), o.seq, d.window.floor}}
	data, buf := o.data, o.buf
	switch o.what {
	case block.Write:
		if d.cfg.Protocol == replication.ProtocolB {
			h.Flags |= wire.FlagRecvAck
		}
	default:
		h.Type = wire.Zero
		length := make([]byte, 8)
		putLen(length, o.ext.Len)
		data, buf = length, nil
		h.Flags |= zeroFlags(o)
	}
	for id := range to.All() {
		d.peers[id].send(h, data, buf, b)
	}
}

func zeroFlags(o *op) (f uint16) {
	if o.what == block.Trim {
		f |= wire.FlagTrim
	}
	if o.flags&block.NoHole != 0 {
		f |= wire.FlagNoHole
	}
	return f
}

// localDone goes on with a change whose local part has been performed.
func (d *Device) localDone(o *op, b *block.Batch) {
	d.mu.Lock()
	defer d.mu.Unlock()
	att := o.att
	d.localDoneLocked(o, o.ioErr, b)
	att.leaveLocked()
}

func (d *Device) perform(o *op) error {
	disk := o.disk
	switch o.what {
	case block.Write:
		_, err := disk.WriteAt(o.data, o.ext.Off)
		return err
	case block.Trim:
		return disk.Trim(o.ext.Off, o.ext.Len)
	case block.WriteZeroes:
		// A replica that cannot zero fast zeroes slowly: the answer must not
		// depend on which disk is asked.
		return disk.Zero(o.ext.Off, o.ext.Len, o.flags&^block.FastZero)
	}
	return block.ErrInvalid
}

func (d *Device) localDoneLocked(o *op, err error, b *block.Batch) {
	o.local = false
	// What a disk took that was detached meanwhile counts for nothing.
	o.localOK = err == nil && o.disk == d.disk
	if o.kind == appChange && d.dstat != replication.UpToDate {
		// On a mixture alone it would be nowhere: a resync may take it away again.
		o.localOK = false
	}
	if err != nil {
		o.err = err
		if d.passesOnLocked(err) {
			d.passOnLocked(o, err)
		} else {
			d.diskFailedLocked(o.disk, o.what.String(), err)
			if d.remoteDisksLocked() {
				o.err = nil // others have it, or will
			}
		}
	}
	d.applied++
	switch o.kind {
	case peerChange:
		d.madeLocked(o, err, b)
		d.peerDoneLocked(o, err, b)
		return
	case syncPull:
		d.pieceWrittenLocked(o, err, b)
		return
	case mend:
		d.mendEndsLocked(o, nil, o.localOK, b)
		return
	}
	if !o.localOK && o.err == nil && !mutate.Is(mutate.LeaveOnWay) {
		for id := range (d.receives & o.miss).All() {
			d.sendMissedLocked(o, d.peers[id], b) // it came while this disk was on it
		}
	}
	d.progressLocked(o, b)
}

// progressLocked answers a change, and retires it, as far as it has come.
func (d *Device) progressLocked(o *op, b *block.Batch) {
	if o.passed != nil && o.wait == 0 { // no complete disk has taken it
		o.err, o.passed = o.passed, nil
		if o.finished && !o.answered && !o.queued {
			d.releaseHeldLocked(b) // that it was nowhere is why it was held
			return
		}
	}
	if !o.finished && !o.local && o.need == 0 {
		o.finished = true
		d.answerOrHoldLocked(o, b)
	}
	switch {
	case o.local || o.wait != 0:
	case o.answered:
		d.retireLocked(o, b)
	case o.queued:
		d.landLocked(o, b)
	}
}

// landLocked takes a change out of the window that is everywhere, before it is
// answered: the flush that it waits for may itself wait for changes for which
// the replicas' activity logs have no room before they know that.
func (d *Device) landLocked(o *op, b *block.Batch) {
	if o.landed {
		return
	}
	o.landed = true
	d.missedLocked(o) // who comes back from now on is not sent it
	d.doneLocked(o)
	d.relieveLocked(b)
}

// answerOrHoldLocked answers a finished change unless something must become
// durable, or quorum return, before anybody may act on it.
func (d *Device) answerOrHoldLocked(o *op, b *block.Batch) {
	if d.failsLocked() {
		d.answerLocked(o, b)
		return
	}
	if d.hold != 0 || d.quorum.Quorate && !d.leasedLocked() || d.nowhereLocked(o) {
		d.held = append(d.held, o)
		return
	}
	if o.flags&block.FUA != 0 && !o.synced {
		d.flush.behindLocked(d, o, b)
		return
	}
	d.answerLocked(o, b)
}

// failsLocked reports whether requests fail, those under way too: there is no
// quorum, and they are not to wait for it, whatever else holds them.
func (d *Device) failsLocked() bool {
	return d.role == replication.Primary && d.cfg.OnNoQuorum == FailIO && !d.quorum.Quorate && !d.settlingLocked()
}

// nowhereLocked reports whether a change is on no disk yet, or because there was none
// in reach. It is sent again to the first that is, as it would be if it came
// only then, unless requests are to fail.
func (d *Device) nowhereLocked(o *op) bool {
	return !o.localOK && !o.acked && o.err == nil && (d.cfg.OnNoQuorum == SuspendIO || o.wait != 0) && d.role == replication.Primary && d.remoteDisksLocked()
}

// answerLocked tells the application. A change counts as done where any copy
// took it; a copy that did not is out of sync by now. One that this disk passed on
// has failed wherever else it is: this disk may send what it has in its place.
func (d *Device) answerLocked(o *op, b *block.Batch) {
	o.answered = true
	err := o.err
	if mutate.Is(mutate.AnswerFailed) && o.acked {
		err = nil
	}
	if err == nil && !o.localOK && !o.acked {
		err = block.ErrIO
	}
	if err == nil && !d.quorum.Quorate && d.cfg.OnNoQuorum == FailIO && d.role == replication.Primary {
		err = block.ErrIO // nobody may act on what a minority did
	}
	switch {
	case o.landed:
	case err == nil:
		d.missedLocked(o)
	default:
		d.missedFailedLocked(o)
	}
	if err != nil {
		d.overLocked(o, b)
	}
	if o.req == nil {
		return
	}
	if g := o.group; g != nil {
		if err != nil && g.err == nil {
			g.err = err
		}
		g.left--
		if g.left == 0 {
			finish(g.req, g.err, b)
		}
	} else {
		finish(o.req, err, b)
	}
	o.req = nil
}

// retireLocked ends an op: nothing more is awaited of it.
func (d *Device) retireLocked(o *op, b *block.Batch) {
	if o.seq != 0 && o.kind == appChange {
		if !o.landed {
			d.doneLocked(o)
		}
		if d.window.floor == d.window.head && (d.opens == 0 || d.closing || d.frozen > 0) {
			d.touchLocked() // who demotes waits for this
		}
		d.relieveLocked(b)
	}
	if o.log != nil {
		epoch := d.epochOfLocked(o)
		if mutate.Is(mutate.CoolEarly) {
			epoch = d.shift
		}
		o.log.End(o.ext, epoch)
	}
	d.releaseLocked(o, b)
}

// releaseLocked gives back o's range, buffer and memory, and starts who waited.
func (d *Device) releaseLocked(o *op, b *block.Batch) {
	if o.buf != nil {
		o.buf.Release()
	}
	d.ready = d.ranges.remove(o, d.ready)
	d.freeOpLocked(o)
	if d.closing && len(d.ranges.ops) == 0 {
		d.touchLocked()
	}
	d.runReadyLocked(b)
}

// runReadyLocked starts ops whose range has become free. Starting one may
// free others; the outermost call takes them all in order.
func (d *Device) runReadyLocked(b *block.Batch) {
	if d.running {
		return
	}
	d.running = true
	for i := 0; i < len(d.ready); i++ {
		o := d.ready[i]
		d.ready[i] = nil
		d.startLocked(o, b)
	}
	d.ready = d.ready[:0]
	d.running = false
}

// releaseHeldLocked answers what was held, once nothing holds it.
func (d *Device) releaseHeldLocked(b *block.Batch) {
	if d.hold != 0 && !d.failsLocked() || len(d.held) == 0 {
		return
	}
	held := d.held
	d.held = nil
	for _, o := range held {
		if d.nowhereLocked(o) && o.need == 0 {
			d.held = append(d.held, o)
			continue
		}
		// What was held while a peer was away may be awaited by it again.
		if o.need != 0 {
			o.finished = false
			continue
		}
		d.answerOrHoldLocked(o, b)
		if o.answered && !o.local && o.wait == 0 {
			d.retireLocked(o, b)
		}
	}
}

// kickLocked admits what is parked, if the gate lets it.
func (d *Device) kickLocked(b *block.Batch) {
	if len(d.parked) == 0 || d.gate == gateSuspend || d.gate == gateOpen && d.hold&holdLease != 0 {
		return
	}
	parked := d.parked
	d.parked = nil
	for _, r := range parked {
		switch r.Op {
		case block.Read:
			d.readLocked(r, b)
		case block.Flush:
			d.admitFlushLocked(r, b)
		default:
			if d.admitLocked(r, b) {
				d.changeLocked(r, b)
			}
		}
	}
}

// dropParkedLocked gives up on parked requests: their consumer must come back.
func (d *Device) dropParkedLocked(b *block.Batch) {
	parked := d.parked
	d.parked = nil
	for _, r := range parked {
		finish(r, block.ErrDropped, b)
	}
}
