package device

import (
	"cmp"
	"errors"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/wire"
)

// A range that a disk cannot read is healed, whoever came upon it: a client's
// read, a peer's, a resync, a verify. What it should hold is read from a peer
// and written back to the disk, which puts another block in the bad one's
// place. So a bad block costs one slow read and not the disk. A disk that
// cannot take the block back has failed, and on_io_error says what that means;
// where no peer can read the block either, the disk stays too, since no other
// is better, and who asked is told.
//
// Nothing newer may be lost by it, and nothing that this disk was not given may
// come by it.
//
//   - The primary holds the range against changes, asks a replica that has had
//     all of them, and writes the answer back before it lets go (mend.go's kind
//     of op, in askHereLocked).
//   - A replica must not hold the range meanwhile: the primary's next change
//     would wait for it, and its question for that change. It asks the primary,
//     whose answer stands on the link among its changes where it read it; so
//     what came before the answer is in it, and what comes behind it is carried
//     out behind it. A primary without good data of its own asks another
//     replica, with the range held (relay.go). It answers only who is sent its
//     changes: else the answer could hold what this replica has never got.
//   - Without a primary a replica asks another that is in sync with it, then for
//     its facts, and takes the answer only if by those the other has not had a
//     change since that this one has not (evenLocked). Where none is in sync,
//     because the survivors of a primary compare what each has had of changes
//     that were never answered, it takes any one's version, and has all others
//     take that, too (survivesLocked).
//
// A crash in the middle is harmless: the block holds what it should, or cannot
// be read still. So no activity log is kept of it.

const (
	mendPiece = 64 << 10 // healed at once
	healsWide = 16       // under way at once: 1 MiB of memory
	// mostHeals bounds those that wait, of which nobody waits for the outcome:
	// what is not healed now is found again.
	mostHeals = 256

	healTries    = 4 // to find a peer that may be asked
	healPause    = 200 * time.Millisecond
	healPatience = 30 * time.Second // for an answer
	hopelessFor  = 10 * time.Second // how long a range is left alone that no peer could read
	keptFor      = time.Minute
	mostKept     = 3 // as often in keptFor a disk may lose the same range
)

// heals is what this node knows of its disk's bad blocks. The device's mutex
// guards it.
type heals struct {
	list      []*healing          // oldest first
	running   int                 // of them, not more than healsWide
	pumping   bool                // pumpHealsLocked is at work
	questions map[uint64]*healing // for a peer's facts, by their number
	hopeless  spots               // no peer could read them
	kept      spots               // were written back
	last      time.Time           // that something was
	told      time.Time           // since when events are counted
	events    int
	unsaid    int
	ended     uint64 // the last stream that ended in order, with everything everywhere
}

// healing is one range on its way.
type healing struct {
	ext     block.Extent // whole units
	disk    store.Disk   // that cannot read it
	waits   []healWait
	running bool
	filled  bool // the data has come
	tries   int
	next    time.Time // not to be tried before
	since   time.Time // running
	tried   replication.NodeSet
	data    []byte

	// On a replica: who is asked, and what it rests on.
	from     *peer
	read     uint64 // the number of the read
	question uint64 // of the question for facts; 0: none
	basis    healBasis
}

// healBasis is what must not change between a replica's question and the
// answer.
type healBasis struct {
	session          Session
	no, peerNo       uint32 // of the handshake
	primary          int
	stream, received uint64 // received counts only where there is no primary
	current          replication.Gen
	any              bool // any version of what was never answered will do
}

// healWait is somebody who waits for a range.
type healWait struct {
	to   []byte // where the data goes; nil: who waits reads the disk again
	skip int64  // of the range, before that
	// done is called with the mutex held. written: the disk has it now.
	done func(err error, written bool, b *block.Batch)
}

var (
	errHopeless = errors.New("no peer in reach can give it")
	errNoCopy   = errors.New("no peer in reach may be asked for it")
	errHealVoid = errors.New("the disk or the role has changed meanwhile")
)

// probe reads a range again, part by part, and returns the blocks that the disk
// cannot read, those side by side as one. There may be none: then p has it all.
func probe(disk store.Disk, p []byte, off int64) (bad []block.Extent, err error) {
	end := off + int64(len(p))
	read := func(at, until int64) bool {
		_, rerr := disk.ReadAt(p[at-off:until-off], at)
		if rerr != nil && (until-at <= block.Unit || errors.Is(rerr, errDiskTimeout)) {
			err = cmp.Or(err, rerr)
		}
		return rerr == nil
	}
	for at := off; at < end; {
		until := min((at/mendPiece+1)*mendPiece, end)
		if read(at, until) {
			at = until
			continue
		}
		for ; at < until && !errors.Is(err, errDiskTimeout); at = min((at/block.Unit+1)*block.Unit, until) {
			e := block.Extent{Off: at, Len: min((at/block.Unit+1)*block.Unit, until) - at}
			switch n := len(bad); {
			case read(e.Off, e.End()):
			case n > 0 && bad[n-1].End() == e.Off && e.Off%mendPiece != 0:
				bad[n-1].Len += e.Len
			default:
				bad = append(bad, e)
			}
		}
		if errors.Is(err, errDiskTimeout) {
			return nil, err
		}
	}
	if len(bad) == 0 {
		return nil, nil // a part that is one block failed as a whole, and then did not
	}
	return bad, err
}

// readFailedLocked is what a read error means that is not healed: under detach
// the disk has failed; under pass-on it stays, and who asked is told.
func (d *Device) readFailedLocked(disk store.Disk, err error) {
	if disk != d.disk {
		return
	}
	if !d.passesOnLocked(err) {
		d.diskFailedLocked(disk, "read", err)
		return
	}
	d.lastErr = "read: " + err.Error()
	d.healEventLocked("disk failed on read, passed on: %v", err)
}

// healEventLocked tells of a bad block, but not of thousands one by one.
func (d *Device) healEventLocked(format string, args ...any) {
	h, now := &d.heals, time.Now()
	if now.Sub(h.told) > 10*time.Second {
		if h.unsaid > 0 {
			d.eventLocked("io-error", nil, "%d more reads that the disk failed, or ranges that were healed", h.unsaid)
		}
		h.told, h.events, h.unsaid = now, 0, 0
	}
	if h.events++; h.events > mostTold {
		h.unsaid++
		return
	}
	d.eventLocked("io-error", nil, format, args...)
}

// mayHealLocked reports whether an error is one that healing helps against, on
// a disk that keeps what it is given.
func (d *Device) mayHealLocked(disk store.Disk, bad []block.Extent, err error) bool {
	switch {
	case disk == nil || disk != d.disk || errors.Is(err, errDiskTimeout) || errors.Is(err, store.ErrClosed):
		return false
	case d.role != replication.Primary && !d.everAskedLocked():
		return false
	}
	now := time.Now()
	for _, e := range bad {
		if d.heals.kept.count(e, now, keptFor) >= mostKept {
			return false
		}
	}
	return true
}

// everAskedLocked reports whether there is a peer that a replica could come to
// ask: one that is not of an earlier version; the primary, if there is one.
func (d *Device) everAskedLocked() bool {
	if d.primary >= 0 {
		if p := d.peers[d.primary]; p != nil && p.agreed {
			return p.speaks(wire.FeatureHeal)
		}
	}
	for _, p := range d.peers {
		if p != nil && p.agreed && p.speaks(wire.FeatureHeal) {
			return true
		}
	}
	return false
}

// wholesomeLocked reports whether this disk's data may be put right, and give
// what is needed to put another's right: it is current, or there is nobody to
// say that it is not.
func (d *Device) wholesomeLocked() bool {
	return d.dstat == replication.UpToDate || d.dstat == replication.Consistent && !d.primaryAboutLocked()
}

// foundBadLocked counts and tells what is about to be healed.
func (d *Device) foundBadLocked(bad []block.Extent, err error) {
	d.lastErr = "read: " + err.Error()
	d.healEventLocked("disk failed on read, healing %d bytes at %d from a peer: %v", total(bad), bad[0].Off, err)
}

func total(es []block.Extent) (n int64) {
	for _, e := range es {
		n += e.Len
	}
	return n
}

// healLocked heals a part of a range. w is nil where nobody waits.
func (d *Device) healLocked(disk store.Disk, e block.Extent, w *healWait, b *block.Batch) {
	u, now := e.Units(), time.Now()
	if d.closing || d.role != replication.Primary && !d.wholesomeLocked() {
		if w != nil {
			w.done(errHealVoid, false, b) // a resync comes first
		}
		return
	}
	if w != nil {
		w.skip = e.Off - u.Off
	}
	if (w == nil || w.to == nil) && d.heals.hopeless.count(e, now, hopelessFor) > 0 {
		if w != nil {
			w.done(errHopeless, false, b)
		}
		return
	}
	for _, h := range d.heals.list {
		switch {
		case h.disk != disk || !h.ext.Overlaps(u):
		case w == nil:
			return // it is seen to
		case !h.filled && h.ext.Off <= u.Off && h.ext.End() >= u.End():
			w.skip = e.Off - h.ext.Off
			h.waits = append(h.waits, *w)
			return
		}
	}
	if w == nil && len(d.heals.list) >= mostHeals {
		return
	}
	h := &healing{ext: u, disk: disk}
	if w != nil {
		h.waits = append(h.waits, *w)
	}
	d.heals.list = append(d.heals.list, h)
	d.pumpHealsLocked(b)
}

// pumpHealsLocked begins as many as the window lets.
func (d *Device) pumpHealsLocked(b *block.Batch) {
	hs, now := &d.heals, time.Now()
	if hs.pumping || d.stopped {
		return // the outermost call sees to it
	}
	hs.pumping = true
	for i := 0; i < len(hs.list) && hs.running < healsWide; i++ {
		h := hs.list[i]
		if h.running || now.Before(h.next) {
			continue
		}
		h.running, h.since = true, now
		hs.running++
		if d.role == replication.Primary {
			d.healHereLocked(h, b)
		} else {
			d.healFromLocked(h, b)
		}
		i = -1 // what is behind may have moved
	}
	hs.pumping = false
}

// tickHealsLocked tries again what had to wait, and gives up on answers that
// do not come.
func (d *Device) tickHealsLocked(now time.Time, b *block.Batch) {
	if len(d.heals.list) == 0 {
		return
	}
	for _, h := range append([]*healing(nil), d.heals.list...) {
		switch {
		case h.filled || h.running && h.from == nil: // an op has it
		case h.disk != d.disk:
			d.unaskLocked(h)
			d.healedLocked(h, errHealVoid, false, b)
		case h.running && now.Sub(h.since) > healPatience:
			d.healLaterLocked(h, b)
		}
	}
	d.pumpHealsLocked(b)
}

// healHereLocked heals as the primary: with the range held.
func (d *Device) healHereLocked(h *healing, b *block.Batch) {
	o := d.newOpLocked()
	o.kind, o.what = mend, block.Write
	o.ext, o.heal = h.ext, h
	o.data = make([]byte, o.ext.Len)
	d.overtakePullsLocked(nil, o.ext, false)
	d.beginLocked(o, b)
}

// issueMendLocked: the range is held.
func (d *Device) issueMendLocked(o *op, b *block.Batch) {
	h := o.heal
	switch {
	case o.granted:
		d.mendHereLocked(o, b)
	case d.role != replication.Primary || h.disk != d.disk:
		d.mendEndsLocked(o, errHealVoid, false, b)
	default:
		d.nextID++
		d.askLocked(&remoteRead{id: d.nextID, off: o.ext.Off, data: o.data, mend: o}, b)
	}
}

// mendReadLocked: a peer has, or none has, what the primary is to mend.
func (d *Device) mendReadLocked(o *op, err error, b *block.Batch) {
	if err != nil {
		d.mendEndsLocked(o, err, false, b)
		return
	}
	o.heal.fillLocked(o.data)
	d.mendHereLocked(o, b)
}

// fillLocked gives the data to those who wait for that.
func (h *healing) fillLocked(data []byte) {
	h.filled = true
	for i := range h.waits {
		w := &h.waits[i]
		copy(w.to, data[w.skip:])
	}
}

// mendHereLocked writes the data to the disk, if that is still the one.
func (d *Device) mendHereLocked(o *op, b *block.Batch) {
	if d.disk == nil || d.disk != o.heal.disk || d.dstat < replication.Consistent {
		d.mendEndsLocked(o, nil, false, b) // the data is good all the same
		return
	}
	d.carryOutLocked(o, b)
}

// mendEndsLocked ends an op that mends.
func (d *Device) mendEndsLocked(o *op, err error, written bool, b *block.Batch) {
	h := o.heal
	d.retireLocked(o, b)
	d.healedLocked(h, err, written, b)
}

// healedLocked ends a healing.
func (d *Device) healedLocked(h *healing, err error, written bool, b *block.Batch) {
	hs := &d.heals
	for i, x := range hs.list {
		if x == h {
			hs.list = append(hs.list[:i], hs.list[i+1:]...)
			if h.running {
				hs.running--
			}
			break
		}
	}
	now := time.Now()
	switch {
	case written:
		hs.last = now
		hs.kept.note(h.ext, now)
		d.stats.Mended++
		d.stats.MendedBytes += uint64(h.ext.Len)
		if len(hs.list) == 0 {
			d.lastErr = ""
			d.work.do(d.syncDisk) // lest it is bad again after a power cut
		}
		d.healEventLocked("healed %d bytes at %d with what a peer has", h.ext.Len, h.ext.Off)
	case err == nil || errors.Is(err, errHealVoid):
	default:
		d.stats.Unmended++
		if errors.Is(err, errHopeless) {
			hs.hopeless.note(h.ext, now)
		}
		d.healEventLocked("%d bytes at %d cannot be healed: %v", h.ext.Len, h.ext.Off, err)
	}
	for _, w := range h.waits {
		w.done(err, written, b)
	}
	d.pumpHealsLocked(b)
}

// spots are ranges of late, the oldest of them forgotten first.
type spots []spot

type spot struct {
	ext block.Extent
	at  time.Time // the first time
	n   int
}

const (
	mostSpots = 64
	spotFor   = time.Minute
)

func (s *spots) note(e block.Extent, now time.Time) {
	for i := range *s {
		if x := &(*s)[i]; x.ext.Overlaps(e) && now.Sub(x.at) < spotFor {
			x.n++
			return
		}
	}
	if len(*s) >= mostSpots {
		*s = append((*s)[:0], (*s)[1:]...)
	}
	*s = append(*s, spot{e, now, 1})
}

// count is how often a range was noted within a time.
func (s spots) count(e block.Extent, now time.Time, within time.Duration) (n int) {
	for _, x := range s {
		if x.ext.Overlaps(e) && now.Sub(x.at) < within {
			n = max(n, x.n)
		}
	}
	return n
}
