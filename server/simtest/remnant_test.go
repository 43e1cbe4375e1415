package simtest

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
)

// TestRemnant: short histories of disks that are detached and attached while nodes
// and links are lost, under load. At the end all nodes are there and see each
// other, and some disks are still detached: where one of those that are not holds
// all that was acknowledged, and those that are have not most of the votes, somebody can
// be promoted; and with those attached again all is as it was acknowledged. Half of the
// histories have a node without a disk; in a quarter disks are replaced, too. A seed is
// replayed with -run Remnant -seed SEED -seeds 1.
func TestRemnant(t *testing.T) {
	histories(t, *seeds, remnant)
}

func remnant(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 31))
	o := Options{
		Nodes: disksOf(seed, 2+rng.IntN(2)), Size: 4 * mib, Quorum: majority(), Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond,
		Seed: seed, Uneven: unevenOf(seed), Extents: 8, ExtentBytes: 64 << 10, Log: testLog(),
	}
	if rng.IntN(2) == 0 {
		o.Diskless = o.Diskless.With(o.Nodes)
		o.Nodes++
	}
	c := New(o)
	s := &storm{history: &history{t: t, c: c, rng: rng, l: newLedger()}, zombie: -1, devs: make([]*device.Device, len(c.Nodes))}
	for _, n := range c.Nodes {
		s.start(n)
	}
	defer func() {
		for _, n := range c.Nodes {
			n.Kill()
		}
		c.StopWatches()
	}()
	for i := range stormClients {
		s.clients = append(s.clients, &stormClient{s: s, id: int64(i), l: newLedger(), rng: rand.New(rand.NewPCG(seed, uint64(500+i)))})
	}
	s.changes = seed%4 == 3
	stop := s.sail()
	s.wait(200)
	for range 1 + rng.IntN(3) {
		var all sync.WaitGroup
		for range 2 + rng.IntN(5) {
			if rng.IntN(3) == 0 {
				all.Go(s.part())
			} else {
				s.chip()
			}
			s.wait([]int{6, 6, 6, 6, 50, 1500}[rng.IntN(6)])
		}
		all.Wait()
	}
	s.mend()
	stop()
	s.someone()
	for _, n := range c.Nodes {
		for try := 0; n.Dev.Status().Detached; try++ {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err := n.Dev.Attach(ctx)
			cancel()
			if err != nil && try == 50 {
				t.Fatalf("the disk of %s cannot be attached again: %v\n%s", n.Name, err, c.Describe())
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	s.synced()
	s.settle()
	s.synced()
	s.compare()
	s.account()
}

// part detaches or attaches a disk, while other things happen.
func (s *storm) part() func() {
	n := s.node()
	if n.Disk == nil || n.Dev == nil {
		return func() {}
	}
	dev, off := n.Dev, s.rng.IntN(4) > 0
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		at, what, do := time.Now().Format("05.000"), "attach", dev.Attach
		if off {
			what, do = "detach", dev.Detach
		}
		s.t.Logf("%v: %s %s: %v", at, what, n.Name, do(ctx))
	}
}

// chip does one thing to whatever is left.
func (s *storm) chip() {
	n, m := s.node(), s.node()
	k := s.rng.IntN(5)
	if s.changes && s.rng.IntN(4) == 0 {
		k = 5
	}
	s.t.Logf("%v: chip %d at %s, %s", time.Now().Format("05.000"), k, n.Name, m.Name)
	switch {
	case n.Dev == nil:
		s.start(n)
	case k < 2:
		s.stop(n, false)
	case k == 2 && n != m:
		s.c.Cut(n.ID, m.ID)
	case k == 3 && n != m:
		s.c.Heal(n.ID, m.ID)
	case k == 4:
		s.c.Rejoin(n.ID)
	case k == 5 && n.Disk != nil && s.c.heldBeside(n, s.zombie):
		s.stop(n, false)
		n.EmptyDisk(n.c.opts.Size)
	}
}

// someone fails if a disk in reach holds all that was acknowledged, and nobody is
// promoted.
func (s *storm) someone() {
	for range 120 {
		for _, n := range s.c.Nodes {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			err := n.Dev.Promote(ctx, false)
			cancel()
			if err == nil {
				return
			}
			time.Sleep(500 * time.Millisecond)
		}
	}
	here, idle := 0, 0
	for i, n := range s.c.Nodes {
		switch st := n.Dev.Status(); {
		case s.c.opts.Diskless.Has(i):
		case st.Disk >= replication.Inconsistent:
			here++
		case !st.Voteless:
			idle++
		}
	}
	if here <= idle {
		return // half or more of the disks that have a vote were detached while their nodes were apart: no majority is without one of them
	}
	for _, n := range s.c.Nodes {
		if n.Dev.Status().Disk >= replication.Inconsistent && s.complete(n) {
			s.t.Fatalf("%s holds all that was acknowledged, and nobody can be promoted\n%s", n.Name, s.c.Describe())
		}
	}
}

// complete reports whether a node's disk holds all that was acknowledged.
func (s *storm) complete(n *Node) bool {
	p := make([]byte, block.Unit)
	for blk := range int64(tortureBlocks) {
		n.Disk.Peek(p, blk*block.Unit*7)
		if s.clients[blk%stormClients].l.holds(blk, p) != nil {
			return false
		}
	}
	return true
}
