package simtest

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestNothingIsMergedSilently has two nodes without quorum go apart in the
// instant in which one of them crashes, and both write: what either
// acknowledged is there afterwards, or the two say that their brain is split.
// Metadata takes its time, so that crashes fall between a change and the
// generation that it belongs to.
func TestNothingIsMergedSilently(t *testing.T) {
	histories(t, *seeds, apart)
}

func apart(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 13))
	c := New(Options{Nodes: 2, Size: 4 * mib, Delay: time.Millisecond, Seed: seed, Extents: 8, ExtentBytes: 64 << 10, Log: testLog()})
	defer func() {
		for _, n := range c.Nodes {
			n.Kill()
		}
	}()
	for _, n := range c.Nodes {
		n.Meta.Inject(storetest.Fault{Ops: storetest.OpWrite | storetest.OpSync, Delay: time.Duration(rng.IntN(4)) * time.Millisecond})
	}
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	c.mustSync(t, 0)
	c.mustSync(t, 1)
	l := newLedger()
	c.mustPromote(t, 0)
	for range 10 {
		l.write(t.Context(), c.Nodes[0], rng.Int64N(tortureBlocks/2))
	}
	if rng.IntN(2) == 0 {
		l.during(c.Nodes[0], rng, func() { c.Cut(0, 1) })
	} else {
		c.Cut(0, 1) // the next change is the first of a generation
		l.during(c.Nodes[0], rng, func() {})
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := c.Nodes[1].Dev.Promote(ctx, false); err != nil {
		t.Fatalf("promote: %v\n%s", err, c.Describe())
	}
	for range 1 + rng.IntN(5) {
		l.write(ctx, c.Nodes[1], tortureBlocks/2+rng.Int64N(tortureBlocks/2))
	}
	if rng.IntN(2) == 0 {
		c.Nodes[1].Kill()
		if err := c.Nodes[1].Start(); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Nodes[0].Start(); err != nil {
		t.Fatal(err)
	}
	c.Heal(0, 1)
	time.Sleep(30 * time.Second)
	if p := c.Nodes[0].Dev.Status().Peers[0]; !p.Connected {
		if p.Refused == "" {
			t.Fatalf("neither connected nor refused\n%s", c.Describe())
		}
		return
	}
	c.mustSync(t, 0)
	c.mustEqual(t)
	if err := l.check(func(off int64, p []byte) { c.Nodes[0].Disk.Peek(p, off) }); err != nil {
		t.Fatalf("merged without a word: %v\n%s", err, c.Describe())
	}
}

// during writes through a node without a pause until, some milliseconds after
// f, that is killed.
func (l *ledger) during(n *Node, rng *rand.Rand, f func()) {
	dev := n.Dev
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	blocks := rng.Perm(tortureBlocks / 2)
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			blk := int64(blocks[i%len(blocks)])
			v := l.begin(blk)
			l.end(blk, v, n.c.ask(ctx, dev, block.Write, 0, blk*block.Unit*7, fill(v), 0))
			time.Sleep(100 * time.Microsecond)
		}
	})
	f()
	time.Sleep(time.Duration(rng.IntN(15000)) * time.Microsecond)
	n.Kill()
	cancel()
	wg.Wait()
}
