package simtest

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// rotting is the chance by which blocks go bad in a history, or nil. It is apart
// from the rest, so that a seed's history is otherwise what it is without.
func rotting(seed uint64) *rand.Rand {
	if seed/8%2 == 0 {
		return nil
	}
	return rand.New(rand.NewPCG(seed, 23))
}

// rot makes some blocks of one disk bad, if all disks are in sync and what they
// hold is durable: so there is always another copy, however long it takes until
// that may be used.
func (h *history) rot() {
	if h.rots == nil || h.c.bad() > 0 || !h.whole() {
		return
	}
	time.Sleep(3 * time.Second) // a flush in the background
	if !h.whole() {
		return
	}
	disks := h.disks()
	for _, n := range disks {
		if len(n.Disk.CrashClone(storetest.Crash{Lost: 1}).Bad()) > 0 {
			return // it is to be healed for good
		}
	}
	n := disks[h.rots.IntN(len(disks))]
	for range 1 + h.rots.IntN(12) {
		blk := h.rots.Int64N(tortureBlocks)
		n.Disk.Spoil(block.Extent{Off: blk * block.Unit * 7, Len: block.Unit * (1 + h.rots.Int64N(3))})
	}
	if h.rots.IntN(2) == 0 {
		return
	}
	m := disks[h.rots.IntN(len(disks))]
	_, _ = m.Dev.Verify("") // which goes on while other things happen
}

// whole reports whether every disk is in sync with every other.
func (h *history) whole() bool {
	for _, n := range h.c.Nodes {
		if n.Dev == nil || n.Fallen() {
			return false
		}
		st := n.Dev.Status()
		if st.InFlight > 0 || st.Parked > 0 || st.Suspended {
			return false
		}
		if n.Disk == nil {
			continue
		}
		if st.Disk != replication.UpToDate {
			return false
		}
		for _, p := range st.Peers {
			if h.c.Nodes[p.ID].Disk == nil && p.Connected {
				continue
			}
			if !p.Connected || p.Disk != replication.UpToDate || p.OutOfSync > 0 || p.Repl != replication.Established && p.Repl != replication.VerifyS && p.Repl != replication.VerifyT {
				return false
			}
		}
	}
	return true
}

// attach gives back the disks that were detached, or given up: a block was bad while no
// other copy could be had.
func (h *history) attach() {
	for _, n := range h.disks() {
		for range 20 {
			if !n.Dev.Status().Detached {
				break
			}
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			_ = n.Dev.Attach(ctx)
			cancel()
			time.Sleep(time.Second)
		}
	}
}

// rewrite has a client write the blocks anew that cannot be read where nobody
// else's copy is known to be good: faults have left nothing else to do. All else
// is in sync by then.
func (h *history) rewrite() {
	if h.rots == nil || h.c.bad() == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	stuck := false
	for _, n := range h.c.Nodes {
		stuck = stuck || n.Dev.WaitFor(ctx, "synced") != nil
	}
	var p *Node
	for _, n := range h.c.Nodes {
		st := n.Dev.Status()
		if stuck && (st.Role == replication.Primary || p == nil && st.Disk == replication.UpToDate) {
			p = n
		}
	}
	if p == nil {
		return
	}
	ctx, cancel = context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := p.Dev.Promote(ctx, false); err != nil {
		h.t.Fatalf("promote: %v\n%s", err, h.c.Describe())
	}
	var bad []block.Extent
	for _, n := range h.disks() {
		bad = append(bad, n.Disk.Bad()...)
	}
	h.t.Logf("written anew: %v", bad)
	h.lost += len(bad)
	for _, e := range bad {
		if blk := e.Off / block.Unit / 7; e.Off == blk*block.Unit*7 {
			h.owner(blk).write(ctx, p, blk)
		} else if err := p.Do(ctx, block.Write, 0, e.Off, make([]byte, e.Len), 0); err != nil {
			h.t.Fatal(err)
		}
	}
}

// scrub finds every block that is bad still, by verifies, and waits until all
// are healed.
func (h *history) scrub() {
	if h.rots == nil {
		return
	}
	for range 10 {
		if h.c.bad() == 0 {
			return
		}
		for _, n := range h.c.Nodes {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			if n.Disk == nil {
				_ = n.Dev.Demote(ctx) // it could not be compared with
				time.Sleep(time.Second)
			}
			if n.Disk != nil && n.Dev.Status().Disk == replication.Diskless {
				_ = n.Dev.Attach(ctx) // it was given up for what it did not keep
			}
			if _, err := n.Dev.Verify(""); err == nil {
				_ = n.Dev.WaitVerified(ctx)
			}
			cancel()
		}
		time.Sleep(11 * time.Second)
	}
	for _, n := range h.disks() {
		h.t.Logf("%s: bad %v, %+v", n.Name, n.Disk.Bad(), n.Dev.Status().Stats)
	}
	h.t.Fatalf("bad blocks are not healed\n%s", h.c.Describe())
}
