package simtest

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
)

// TestFenceStorm: random histories of two nodes, which lose quorum with either of them, and
// of two or three without quorum, in which a fence-peer handler arbitrates as a cluster
// manager's does:
// who asks first may go on, and who asks later is told that the other does, until all disks
// are in sync again. There is no split brain then, and nothing that was answered is lost. A
// seed is replayed with -run FenceStorm -seed SEED -seeds 1.
func TestFenceStorm(t *testing.T) {
	histories(t, *seeds, fenceStorm)
}

// arbiter is what handlers ask. It is in everybody's reach.
type arbiter struct {
	slow time.Duration

	mu  sync.Mutex // guards who
	who int        // may be primary; -1: whoever asks first
}

func (a *arbiter) fence(node int, _ string) (status int) {
	time.Sleep(a.slow)
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.who < 0 {
		a.who = node
	}
	if a.who == node {
		return 4
	}
	return 6
}

func (a *arbiter) lift() {
	a.mu.Lock()
	a.who = -1
	a.mu.Unlock()
}

func fenceStorm(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 47))
	a := &arbiter{who: -1, slow: time.Duration(rng.IntN(3)) * 20 * time.Millisecond}
	nodes := 2 + rng.IntN(2)
	quorum := majority()
	if nodes == 3 || rng.IntN(2) == 0 {
		quorum = replication.QuorumPolicy{}
	}
	o := Options{
		Nodes: nodes, Size: 4 * mib, Quorum: quorum, Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond,
		Seed: seed, Extents: 8, ExtentBytes: 64 << 10, Log: testLog(), Fence: a.fence,
	}
	h := policyHistory(t, rng, o)
	defer h.c.killAll()
	h.synced()
	for range 4 {
		for range 5 {
			h.actFenced()
		}
		for i, n := range h.c.Nodes {
			h.begin(n)
			h.c.Rejoin(i)
		}
		h.attach()
		h.synced()
		h.settle()
		h.synced()
		h.compare()
		if h.c.spoken() > 0 {
			t.Fatalf("a split brain\n%s", h.c.Describe())
		}
		if err := h.l.check(func(off int64, p []byte) { h.c.Nodes[0].Disk.Peek(p, off) }); err != nil {
			t.Fatalf("%v\n%s", err, h.c.Describe())
		}
		a.lift()
	}
}

// actFenced does one thing to the two nodes, and writes through one that lets it.
func (h *history) actFenced() {
	n := h.node()
	switch h.rng.IntN(8) {
	case 0:
		n.Kill()
	case 1:
		h.begin(n)
	case 2:
		h.c.Isolate(n.ID)
	case 3:
		h.c.Rejoin(n.ID)
	case 4:
		h.leave(n)
	case 5:
		if n.Dev != nil {
			_ = n.Dev.Detach(timeout(h.t, 10*time.Second))
		}
	case 6:
		if n.Dev != nil {
			_ = n.Dev.Attach(timeout(h.t, 10*time.Second))
		}
	}
	h.wait([]int{3, 30, 3000}[h.rng.IntN(3)])
	h.writeThrough(h.node())
}
