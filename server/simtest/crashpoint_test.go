package simtest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// crashSeeds is how often TestCrashPoints crashes at each point.
const crashSeeds = 3

// TestCrashPoints cuts a node's power at every named point, in the midst of
// whatever makes the device pass there: writes, zeroes, flushes, a lost and a
// returning peer, a promotion, a resize. The others go on, the node comes back
// with what was durable and some share of the rest, and after that the disks
// are identical and hold what clients were told. A point that nobody comes to
// is an error: what it stands for is not tested any more.
func TestCrashPoints(t *testing.T) {
	for _, point := range Points() {
		t.Run(point, func(t *testing.T) {
			for seed := range uint64(crashSeeds) {
				synctest.Test(t, func(t *testing.T) { crashAt(t, point, *first+seed) })
			}
		})
	}
}

func crashAt(t *testing.T, point string, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 11))
	o := three()
	o.Size, o.Seed, o.Extents, o.ExtentBytes, o.Log = 4*mib, seed, 8, 64<<10, testLog()
	c := New(o)
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, n := range c.Nodes {
			n.Kill()
		}
	}()
	h := &history{t: t, c: c, rng: rng, l: newLedger(), step: mib}
	if point == "metadata: before it grows" {
		h.step = 9 << 30 // a bitmap's group of pages covers 8 GiB
	}
	for n := range c.Nodes {
		c.mustSync(t, n)
	}
	h.write()
	left := storetest.Crash{Seed: seed, Lost: float64(rng.IntN(3)) / 2}
	trap := c.SetTrap(point, rng.IntN(4), func(at, _ *Node) { at.PowerOff(left) })
	for round := 0; round < 8 && !h.everything(trap); round++ {
		if round == 3 {
			trap.Now()
		}
	}
	at := trap.Sprung()
	if at == nil {
		t.Fatalf("nobody came to it in eight rounds\n%s", c.Describe())
	}
	h.write() // what the others do without it
	h.bury()
	h.write()
	h.heal()
	h.finishGrowing()
	h.settle()
	c.mustEqual(t)
}

// finishGrowing repeats a resize that may have been cut short: then all disks
// have the size that some made room for.
func (h *history) finishGrowing() {
	h.t.Helper()
	var err error
	for range 100 { // who said yes to one that died is bound for some minutes
		small := slices.IndexFunc(h.c.Nodes, func(n *Node) bool { return n.Dev.Size() < h.grown })
		if small < 0 {
			return
		}
		err = h.c.Nodes[small].Dev.Resize(timeout(h.t, time.Minute), h.grown)
		time.Sleep(5 * time.Second)
	}
	h.t.Fatalf("it does not grow to %d: %v\n%s", h.grown, err, h.c.Describe())
}

// everything does one after the other all that passes points, until the trap
// has sprung.
func (h *history) everything(trap *Trap) (sprung bool) {
	other := func() *Node {
		n := h.primary()
		for n == nil || n == h.primary() {
			n = h.node()
		}
		return n
	}
	for _, do := range []func(){
		h.write,
		h.zero,
		func() { h.l.flush(timeout(h.t, time.Second), cmpNode(h.primary(), h.node())) },
		h.handOver,
		h.write,
		func() { n := other(); h.c.Isolate(n.ID); h.write(); h.c.Rejoin(n.ID); time.Sleep(time.Second) },
		h.write,
		func() { n := other(); n.Kill(); h.write(); h.start(n); time.Sleep(time.Second) },
		h.grow,
		func() {
			if n := h.primary(); n != nil {
				n.Kill()
				time.Sleep(time.Second)
				h.write()
				h.start(n)
			}
			time.Sleep(time.Second)
		},
		func() { time.Sleep(3 * time.Second) }, // a flush in the background
	} {
		do()
		if trap.Sprung() != nil {
			return true
		}
	}
	return false
}

func cmpNode(a, b *Node) *Node {
	if a != nil {
		return a
	}
	return b
}

// primary is the node that thinks it is, or nil.
func (h *history) primary() *Node {
	for _, n := range h.c.Nodes {
		if n.Dev != nil && !n.Fallen() && n.Dev.Status().Role == replication.Primary {
			return n
		}
	}
	return nil
}

// bury ends what is left of nodes that were powered off, and their peers notice.
func (h *history) bury() {
	for _, n := range h.c.Nodes {
		n.Bury()
	}
}

// start starts a node, which may be powered off as it does.
func (h *history) start(n *Node) {
	if err := n.Start(); err != nil && !n.Fallen() {
		h.t.Fatal(err)
	}
}

// zero makes some blocks zeroes: which they were or are is what a read tells.
func (h *history) zero() {
	p := h.primary()
	if p == nil {
		return
	}
	for range 6 {
		blk := int64(h.rng.IntN(tortureBlocks))
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		h.l.zero(ctx, p, blk, []block.Op{block.Trim, block.WriteZeroes}[h.rng.IntN(2)])
		cancel()
	}
}

// zero is write with the value 0.
func (l *ledger) zero(ctx context.Context, n *Node, blk int64, op block.Op) {
	add(l.floating, blk, 0)
	if err := n.Do(ctx, op, 0, blk*block.Unit*7, nil, block.Unit); err != nil || n.Fallen() {
		add(l.maybe, blk, 0)
		return
	}
	l.acked[blk], l.maybe[blk] = 0, nil
}

// handOver moves the role to another node.
func (h *history) handOver() {
	p := h.primary()
	if p == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if p.Dev.Demote(ctx) != nil {
		return
	}
	time.Sleep(100 * time.Millisecond)
	next := h.c.Nodes[(p.ID+1)%len(h.c.Nodes)]
	_ = next.Dev.Promote(ctx, false) // it may have died over it
}

// grow makes the device larger.
func (h *history) grow() {
	n := h.node()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	size := n.Dev.Size() + h.step
	h.grown = max(h.grown, size)
	_ = n.Dev.Resize(ctx, size) // it may have died over it
}

// TestPointsAreNamedOnce: the list is what is asserted to be hit.
func TestPointsAreNamedOnce(t *testing.T) {
	p := Points()
	slices.Sort(p)
	if n := len(p); n != len(slices.Compact(p)) {
		t.Fatal(fmt.Sprint(n, " points, some of them twice"))
	}
}
