package store

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/lockstepd/lockstep/server/block"
)

// Format constants of the activity log.
const (
	logBlockBytes   = 4096
	logMagic        = 0x676f4c41 // "ALog"
	logHeader       = 64
	logUpdates      = 64                               // per block
	logContext      = logHeader + logUpdates*8         // where the window of slots begins
	logWindow       = (logBlockBytes - logContext) / 4 // slots per block
	logBatch        = 24                               // blocks per transaction at most: at 4 MiB an extent, more than any request of 4 GiB touches
	maxLogSlots     = 65536                            // keeps the ring within its place in the file
	minLogExtent    = 64 << 10                         // smaller ones are bits, nearly
	maxLogExtent    = 1 << 30                          // larger ones are full syncs, nearly
	noExtent        = ^uint32(0)                       // a slot that is not in use
	maxBatchUpdates = logBatch * logUpdates
)

func (g logSession) validate() error {
	switch {
	case g.extent < minLogExtent || g.extent > maxLogExtent || g.extent&(g.extent-1) != 0:
		return fmt.Errorf("an extent of the activity log is a power of two between %d and %d bytes, not %d",
			minLogExtent, maxLogExtent, g.extent)
	case g.slots < 1 || g.slots > maxLogSlots:
		return fmt.Errorf("the activity log has 1 to %d extents, not %d", maxLogSlots, g.slots)
	}
	return nil
}

// windows is how many consecutive blocks describe every slot.
func (g logSession) windows() int { return (g.slots + logWindow - 1) / logWindow }

// blocks is the length of the ring. The newest block proves durable what came
// before its own transaction; so behind the transaction that is being written
// there is another one, and behind that a window's worth.
func (g logSession) blocks() int { return g.windows() + 2*g.batch() }

// batch is how many blocks a transaction has at most.
func (g logSession) batch() int { return min((g.slots+logUpdates-1)/logUpdates, logBatch) }

// place is where in the file the block with a sequence number is.
func (g logSession) place(seq uint64) int64 {
	return logOff + int64(seq%uint64(g.blocks()))*logBlockBytes
}

// windowStart is the first slot of the window of the block with a sequence
// number.
func (g logSession) windowStart(seq uint64) int {
	return int(seq%uint64(g.windows())) * logWindow
}

// extentAt is the range of bytes of extent number n.
func (g logSession) extentAt(n uint32) block.Extent {
	return block.Extent{Off: int64(n) * g.extent, Len: g.extent}
}

// logUpdate is one slot that changes.
type logUpdate struct {
	slot   int
	extent uint32
}

// logBlock is one block of the ring.
type logBlock struct {
	gen     uint64
	seq     uint64 // from 1, without gaps, within a generation
	durable uint64 // the highest seq that was durable when this was written
	sbSeq   uint64 // the superblock's Seq when this was written
	slots   int    // of the whole log
	updates []logUpdate
	start   int      // first slot of the window
	window  []uint32 // extents of the window's slots, after the updates
}

func (b *logBlock) encode(out []byte) {
	le := binary.LittleEndian
	clear(out[:logBlockBytes])
	le.PutUint32(out[0:], logMagic)
	le.PutUint64(out[8:], b.gen)
	le.PutUint64(out[16:], b.seq)
	le.PutUint64(out[24:], b.durable)
	le.PutUint64(out[32:], b.sbSeq)
	le.PutUint32(out[40:], uint32(b.slots))
	le.PutUint32(out[44:], uint32(len(b.updates)))
	le.PutUint32(out[48:], uint32(b.start))
	le.PutUint32(out[52:], uint32(len(b.window)))
	for i, u := range b.updates {
		le.PutUint32(out[logHeader+i*8:], uint32(u.slot))
		le.PutUint32(out[logHeader+i*8+4:], u.extent)
	}
	for i, e := range b.window {
		le.PutUint32(out[logContext+i*4:], e)
	}
	le.PutUint32(out[4:], logSum(out))
}

func logSum(in []byte) uint32 {
	sum := crc32.Checksum(in[:4], castagnoli())
	return crc32.Update(sum, castagnoli(), in[8:logBlockBytes])
}

// decodeLogBlock reads a block of the ring. What it returns has been checked
// against itself, not yet against a superblock.
func decodeLogBlock(in []byte) (*logBlock, error) {
	le := binary.LittleEndian
	switch {
	case len(in) < logBlockBytes:
		return nil, fmt.Errorf("%d of %d bytes", len(in), logBlockBytes)
	case le.Uint32(in[0:]) != logMagic:
		return nil, fmt.Errorf("not a block of the activity log")
	case le.Uint32(in[4:]) != logSum(in):
		return nil, fmt.Errorf("wrong checksum")
	}
	b := &logBlock{
		gen: le.Uint64(in[8:]), seq: le.Uint64(in[16:]), durable: le.Uint64(in[24:]), sbSeq: le.Uint64(in[32:]),
		slots: int(le.Uint32(in[40:])), start: int(le.Uint32(in[48:])),
	}
	updates, window := int(le.Uint32(in[44:])), int(le.Uint32(in[52:]))
	if b.slots < 1 || b.slots > maxLogSlots || updates > logUpdates || window > logWindow ||
		b.start > b.slots || window > b.slots-b.start || b.seq == 0 || b.durable >= b.seq {
		return nil, fmt.Errorf("impossible numbers")
	}
	for i := range updates {
		u := logUpdate{int(le.Uint32(in[logHeader+i*8:])), le.Uint32(in[logHeader+i*8+4:])}
		if u.slot >= b.slots {
			return nil, fmt.Errorf("slot %d of %d", u.slot, b.slots)
		}
		b.updates = append(b.updates, u)
	}
	for i := range window {
		b.window = append(b.window, le.Uint32(in[logContext+i*4:]))
	}
	return b, nil
}

// apply brings state, the extents of all slots, up to b.
func (b *logBlock) apply(state []uint32) {
	copy(state[b.start:], b.window)
	for _, u := range b.updates {
		state[u.slot] = u.extent
	}
}

// logState is what a ring says.
type logState struct {
	hot    []uint32 // extents
	last   uint64   // newest block that counts
	torn   int      // blocks after it that were cut short: normal after a power cut
	damage string   // why the log cannot be trusted; "" if it can
}

// replayRing finds what was hot from the ring's blocks, in the order of their
// places. It never fails: a log that cannot be trusted says so in damage.
func replayRing(g logSession, ring []byte) logState {
	blocks := make(map[uint64]*logBlock)
	var bad []int // places that hold neither a block nor nothing
	for i := range g.blocks() {
		raw := ring[i*logBlockBytes:][:logBlockBytes]
		b, err := decodeLogBlock(raw)
		switch {
		case err == nil && b.gen == g.gen && b.slots == g.slots && int(b.seq%uint64(g.blocks())) == i:
			blocks[b.seq] = b
		case err == nil && b.gen < g.gen:
			// From before the ring was wiped for this generation.
		case !allZero(raw):
			bad = append(bad, i)
		}
	}
	var st logState
	st.replay(g, blocks, bad)
	return st
}

// provesStale reports whether some block of the ring was written under a newer
// superblock than s: then s is what is left where the newest one was lost.
func provesStale(s *Superblock, ring []byte) bool {
	for len(ring) >= logBlockBytes {
		b, err := decodeLogBlock(ring)
		if err == nil && (b.gen > s.log.gen || b.gen == s.log.gen && b.sbSeq > s.Seq) {
			return true
		}
		ring = ring[logBlockBytes:]
	}
	return false
}

// replay applies the blocks of one generation.
func (st *logState) replay(g logSession, blocks map[uint64]*logBlock, bad []int) {
	durable := uint64(0) // proven to have been durable
	for _, b := range blocks {
		durable = max(durable, b.durable)
	}
	first := uint64(1)
	if w := uint64(g.windows()); durable > w {
		first = durable - w + 1
	}
	state := make([]uint32, g.slots)
	for i := range state {
		state[i] = noExtent
	}
	for seq := first; ; seq++ {
		b := blocks[seq]
		if b == nil && seq > durable {
			break
		}
		if b == nil {
			st.damage = fmt.Sprintf("block %d, which was durable, is gone", seq)
			return
		}
		b.apply(state)
		st.last = seq
	}
	st.judgeTail(g, bad)
	st.collect(state)
}

// judgeTail tells blocks that the last transaction left torn from blocks that
// were whole once: only the places behind the last whole block, as many as a
// transaction has, may be bad.
func (st *logState) judgeTail(g logSession, bad []int) {
	n := uint64(g.blocks())
	for _, place := range bad {
		ahead := (uint64(place) + n - st.last%n) % n
		if ahead == 0 || ahead > uint64(g.batch()) {
			st.damage = fmt.Sprintf("block at place %d is unreadable, and not where a write can have been cut short", place)
			return
		}
		st.torn++
	}
}

// collect lists the extents of all slots, in order and once each: one that moved
// between slots may be in both.
func (st *logState) collect(state []uint32) {
	state = slices.DeleteFunc(state, func(e uint32) bool { return e == noExtent })
	slices.Sort(state)
	st.hot = slices.Compact(state)
}
