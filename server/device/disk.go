package device

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
)

// attachment is one stay of a disk with the device: from when it was opened
// until nothing of its I/O is under way any more. The device's mutex guards it.
type attachment struct {
	busy int           // ops that are carried out, or are in a batch for it
	gone bool          // detached: none is begun on it
	idle chan struct{} // closed when gone and not busy
}

func newAttachment() *attachment { return &attachment{idle: make(chan struct{})} }

func (a *attachment) leaveLocked() {
	a.busy--
	a.checkLocked()
}

func (a *attachment) partLocked() {
	if !a.gone {
		a.gone = true
		a.checkLocked()
	}
}

func (a *attachment) checkLocked() {
	if a.gone && a.busy == 0 {
		close(a.idle)
	}
}

// carryOutLocked has a change, which holds its range, carried out on the disk of
// now when the batch is finished; localDone follows. Only from here on is the disk
// in use by it: what waits for its range may wait for what never comes, an answer
// without quorum, and is to keep nobody from putting the disk away.
func (d *Device) carryOutLocked(o *op, b *block.Batch) {
	o.local, o.disk, o.att = true, d.disk, d.att
	o.att.busy++
	b.Defer(o)
}

// diskFailedLocked detaches a disk that failed: its data is no longer to be
// trusted, and the device goes on with the peers'. An error of a disk that was
// detached before means nothing.
func (d *Device) diskFailedLocked(disk store.Disk, what string, err error) {
	if d.disk == nil || d.disk != disk || d.closing {
		return
	}
	d.lastErr = fmt.Sprintf("%s: %v", what, err)
	d.eventLocked("io-error", nil, "disk failed on %s, detached: %v", what, err)
	d.setDiskLocked(replication.Failed, d.lastErr)
	left := d.dropDiskLocked(true)
	d.work.do(func() { d.failed(left) })
}

// metaFailedLocked does the same where the metadata cannot be written: what
// cannot be noted cannot be promised.
func (d *Device) metaFailedLocked(meta *store.Meta, what string, err error) {
	if meta == d.meta {
		d.diskFailedLocked(d.disk, what, err)
	}
}

// leaving is a disk on its way out.
type leaving struct {
	disk  store.Disk
	meta  *store.Meta
	att   *attachment
	limit *limiter
}

// settle waits until nothing of the disk or the metadata is under way any more,
// late or not.
func (l *leaving) settle() {
	if disk, ok := l.disk.(*limitedDisk); ok {
		disk.settle()
	}
	if l.limit != nil {
		l.limit.settle()
	}
}

// abandon closes a disk that has failed when nothing of it is under way any more.
func (l *leaving) abandon() error {
	<-l.att.idle
	err := l.meta.Abandon()
	l.settle()
	return errors.Join(err, l.disk.Close())
}

// dropDiskLocked takes the disk out of the device. The peers that receive our
// changes learn of it before the next one comes, by the same link; what the
// disk may lack of those under way, or loses with its cache, they mark. The
// metadata stays in place until the caller has noted what there is to note.
func (d *Device) dropDiskLocked(failed bool) leaving {
	left := leaving{d.disk, d.meta, d.att, d.metaLimit}
	d.dropped = &left
	d.readable.Store(nil)
	d.disk, d.att = nil, nil
	d.departing = true
	d.forgetStraysLocked()
	clear(d.unmade)
	left.att.partLocked()
	b := &block.Batch{}
	if d.role == replication.Primary {
		d.rolls++
		d.missersLocked()
		d.openAccountLocked(left.meta.AL().Hot())
		if failed {
			d.shareMarksLocked(d.cfg.Self, d.doubtfulLocked(), b)
		}
		// Else a disk without the changes to come would bear the name of those
		// with them.
		d.needGen = true
		d.genAgain = d.genAgain || d.genBusy
		if d.window.floor != d.window.head {
			d.hold |= holdGeneration
		}
	} else {
		d.recent.reset()
	}
	d.announceLocked(b)
	d.gateLocked()
	d.work.do(b.Finish)
	return left
}

// missersLocked keeps in mind who lacks changes of ours, while there are marks that
// say so: see creditLocked.
func (d *Device) missersLocked() {
	for _, p := range d.peers {
		if p != nil && !p.diskless && !d.receives.Has(p.id) {
			p.missed = p.missed || d.gens.Bitmap[p.id] != replication.NoGen || d.markedLocked(p.id)
		}
	}
}

// doubtfulLocked is what this disk may lack although it was given it.
func (d *Device) doubtfulLocked() (es []block.Extent) {
	list, complete := d.recent.after(d.flush.flowed)
	for _, c := range list {
		es = append(es, c.ext)
	}
	if !complete && d.meta != nil {
		es = append(es, d.meta.AL().Hot()...)
	}
	for o := range d.window.all {
		es = append(es, o.ext)
	}
	return es
}

// failed runs on the worker after a disk has failed.
func (d *Device) failed(left leaving) {
	d.mu.Lock()
	votes, resigns := d.resignedLocked()
	d.mu.Unlock()
	// What is known of it is written as far as that is possible.
	err := left.meta.Update(func(sb *store.Superblock) {
		behind(sb)
		if resigns = resigns && len(sb.Ext) >= extWhole; resigns {
			putVotes(sb, &votes, d.cfg.Self)
		}
	})
	b := &block.Batch{}
	d.mu.Lock()
	if err == nil && resigns {
		d.votes.Give(d.cfg.Self)
		d.tellLeftLocked(b)
	}
	d.disklessLocked("detached after an I/O error", b)
	d.mu.Unlock()
	b.Finish()
	// Not here: the disk may hang, and the worker has more to do.
	d.done.Go(func() {
		_ = left.abandon()
		d.departed()
	})
}

// disklessLocked is the end of a disk's part in the device.
func (d *Device) disklessLocked(why string, b *block.Batch) {
	d.meta, d.dropped = nil, nil
	d.setDiskLocked(replication.Diskless, why)
	for _, p := range d.peers {
		if p == nil {
			continue
		}
		p.inSync = false
		if p.repl != replication.Off && p.repl != replication.Established {
			d.syncPartLocked(p)
			d.setReplLocked(p, replication.Established)
		}
	}
	d.decideAllLocked(b)
	d.evaluateLocked(b)
}

// departed: nothing of the last disk is under way any more, so that another
// may be attached.
func (d *Device) departed() {
	d.mu.Lock()
	d.departing = false
	d.touchLocked()
	d.mu.Unlock()
}

// freeze holds back the application's changes until those under way are
// everywhere. The caller thaws in any case. With held those will do, too, that
// are wherever they can be and not answered for want of quorum: what is about to
// be done may be what brings it back.
func (d *Device) freeze(ctx context.Context, what string, held bool) error {
	b := &block.Batch{}
	d.mu.Lock()
	d.frozen++
	d.gateLocked()
	d.mu.Unlock()
	err := d.wait(ctx, func() bool {
		still := d.window.floor == d.window.head && !d.flush.busy
		return d.closing || !d.genBusy && (still || held && d.stillLocked())
	})
	d.mu.Lock()
	if d.closing {
		err = errClosing
	}
	d.tellFloorLocked(b)
	d.mu.Unlock()
	b.Finish()
	if err != nil {
		return d.refuse(what, "changes under way do not end: "+err.Error(), "see: lockstepctl device why "+d.opts.Name, true)
	}
	return nil
}

// stillLocked reports whether nothing moves for want of quorum.
func (d *Device) stillLocked() bool {
	if d.hold&holdCopies == 0 || d.flush.busy && (d.flush.local || d.flush.wait != 0) {
		return false
	}
	for o := range d.window.all {
		if !o.finished || o.local || o.wait != 0 {
			return false
		}
	}
	return true
}

var errClosing = errors.New("the daemon is stopping")

func (d *Device) thaw() {
	b := &block.Batch{}
	d.mu.Lock()
	d.frozen--
	d.evaluateLocked(b)
	d.touchLocked()
	d.mu.Unlock()
	b.Finish()
}

// passOnLocked is what a failed change means where errors of the disk are
// passed on: the disk stays, but where a peer has the data it is a mixture
// until it was given what it lacks; where none has, the consumer is told.
func (d *Device) passOnLocked(o *op, err error) {
	if o.disk != d.disk || d.closing {
		return
	}
	d.lastErr = fmt.Sprintf("%v: %v", o.what, err)
	d.eventLocked("io-error", nil, "disk failed on %v of %d bytes at %d, passed on: %v", o.what, o.ext.Len, o.ext.Off, err)
	if o.kind == syncPull {
		return // the range stays marked
	}
	d.uncoverPullsLocked(o.ext)
	d.missLocked(d.disks.Without(d.cfg.Self), o.ext)
	if !d.remoteDataLocked() {
		return // nobody has it
	}
	if o.kind == appChange && d.dstat > replication.Inconsistent && !o.took {
		// Where all complete disks fail it, this one stays what it is, and the
		// consumer is told: else there would be mixtures only.
		if o.wait != 0 {
			o.passed, o.err = o.err, nil
		}
		return
	}
	o.err = nil
	d.mixedLocked(o.ext)
}

// mixedLocked: this disk has failed a change that others have.
func (d *Device) mixedLocked(e block.Extent) {
	for _, p := range d.peers {
		if p != nil && p.sync.pulling {
			p.sync.spoilLocked(e)
		}
	}
	if d.dstat <= replication.Inconsistent {
		return
	}
	d.setDiskLocked(replication.Inconsistent, d.lastErr)
	for _, p := range d.peers {
		if p != nil {
			p.inSync = false
		}
	}
	// Nobody acts on what this disk lacks before that is noted.
	d.hold |= holdDisk
	meta := d.meta
	d.work.do(func() {
		werr := meta.WriteBitmaps()
		if serr := d.save(); werr == nil {
			werr = serr
		}
		b := &block.Batch{}
		d.mu.Lock()
		d.hold &^= holdDisk
		if werr != nil {
			d.metaFailedLocked(meta, "metadata write", werr)
		}
		d.evaluateLocked(b)
		d.mu.Unlock()
		b.Finish()
		d.done.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), rejoinWait)
			defer cancel()
			if err := d.rejoin(ctx, "mend", allNodes, nil); err != nil {
				d.log.Warn("the disk is not mended yet", "err", err)
			}
		})
	})
}

// spoilLocked: what a resync has written of a range counts no longer.
func (sy *syncState) spoilLocked(e block.Extent) {
	sy.fresh = slices.DeleteFunc(sy.fresh, e.Overlaps)
	if sy.syncing {
		sy.spoilt = append(sy.spoilt, e)
	}
}

// passesOnLocked reports whether a disk's error is to be passed on rather than
// to detach the disk. A disk that hangs is detached in any case; one that fails
// is not where no other could take over, since a disk that fails in places is
// better than none.
func (d *Device) passesOnLocked(err error) bool {
	return !errors.Is(err, errDiskTimeout) && (d.cfg.OnIOError == PassOn || !d.remoteDataLocked())
}

// rejoinWait bounds how long a mended disk waits to agree with the peers.
const rejoinWait = 30 * time.Second

// rejoinedLocked says whether the device may thaw: its own data is good, or on
// the way, or nobody is left to give it.
func (d *Device) rejoinedLocked() bool {
	if d.closing || d.role != replication.Primary {
		return true
	}
	some := false
	for _, p := range d.peers {
		if p == nil || p.session == nil || p.refused != "" {
			continue
		}
		if !p.agreed {
			return false // it would be left behind
		}
		some = some || !p.diskless
	}
	return !some || d.dstat == replication.UpToDate || d.disk == nil || d.pullingLocked()
}

// allNodes is every node there can be.
const allNodes = ^replication.NodeSet(0)

// rejoin has this node, with what its disk has become, agree anew with those
// peers. A primary's clients wait meanwhile: its changes must not fall between
// two agreements. change is made with the mutex held when nothing is under way.
func (d *Device) rejoin(ctx context.Context, what string, with replication.NodeSet, change func()) error {
	defer d.thaw()
	if err := d.freeze(ctx, what, true); err != nil {
		return err
	}
	b := &block.Batch{}
	d.mu.Lock()
	if d.closing {
		d.mu.Unlock()
		return d.refuse(what, errClosing.Error(), "", false)
	}
	if change != nil {
		change()
	}
	for _, p := range d.peers {
		if p != nil && p.hs.no > 0 && with.Has(p.id) {
			p.inSync = false
			d.helloLocked(p, b)
		}
	}
	d.evaluateLocked(b)
	d.mu.Unlock()
	b.Finish()
	wctx, cancel := context.WithTimeout(ctx, voteTimeout)
	defer cancel()
	_ = d.wait(wctx, d.rejoinedLocked) // later then: the clients have waited long enough
	return nil
}

// sendReceivesLocked is who gets a primary's changes: the peers that take part, and
// its own disk.
func (d *Device) sendReceivesLocked() replication.NodeSet {
	s := d.receives
	if d.role == replication.Primary && d.disk != nil && d.dstat.HasData() {
		s = s.With(d.cfg.Self)
	}
	return s
}
