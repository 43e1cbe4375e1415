package messenger

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAFullPeerIsCutAndOthersGoOn: alpha's queue for beta has a limit.
func TestAFullPeerIsCutAndOthersGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 3, func(_ int, o *Options) { o.MaxDataQueue = 1 << 20 })
		a, b, c := bed.start(0), bed.start(1), bed.start(2)
		a.wait("both", func() bool { return len(a.up) == 2 })
		a.mu.Lock()
		sb, sc := a.up[1], a.up[2]
		a.mu.Unlock()
		sn.stop("alpha", "beta")
		for i := range uint64(400) {
			sendNumber(sb, wire.Write, i+1, pattern(4096), nil)
			sendNumber(sc, wire.Write, i+1, pattern(4096), nil)
			time.Sleep(time.Millisecond)
		}
		a.wait("down", func() bool { return slices.Contains(a.log, "down queue-overflow") })
		if q := sb.Queued(wire.Data); q != 0 {
			t.Errorf("%d bytes are kept for a session that is over", q)
		}
		c.wait("frames", func() bool { return len(c.got[wire.Data]) == 400 })
		checkOrder(t, c.frames(wire.Data), 400)
		for _, n := range []*node{a, b, c} {
			n.stop()
		}
	})
}

// TestAllQueuesTogetherAreBounded: each is within its limit, and all together
// are not. The longest goes.
func TestAllQueuesTogetherAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 5, func(_ int, o *Options) { o.MaxQueuedAll = 4 << 20 })
		for i := range 5 {
			bed.start(i)
		}
		a := bed.nodes[0]
		a.wait("all", func() bool { return len(a.up) == 4 })
		sessions := make([]*Session, 5)
		for i := 1; i < 5; i++ {
			sn.stop("alpha", nodeName(i))
			sessions[i] = a.Session(i)
		}
		fill := func(peer, kib int) {
			for range kib / 64 {
				sendNumber(sessions[peer], wire.Write, 1, pattern(64<<10), nil)
			}
		}
		fill(1, 900)
		fill(2, 1600)
		fill(3, 900)
		synctest.Wait()
		for i := 1; i < 5; i++ {
			if a.Session(i) == nil {
				t.Errorf("peer %d is cut within the limit", i)
			}
		}
		fill(4, 900)
		a.wait("down", func() bool { return slices.Contains(a.log, "down queue-overflow") })
		synctest.Wait()
		for i := 1; i < 5; i++ {
			if gone := a.Session(i) == nil; gone != (i == 2) {
				t.Errorf("peer %d is cut: %t", i, gone)
			}
		}
		for _, n := range bed.nodes {
			n.stop()
		}
	})
}

// TestHeldMemoryStopsThatPeersDataLinkAndNothingElse: a handler keeps what it
// is given.
func TestHeldMemoryStopsThatPeersDataLinkAndNothingElse(t *testing.T) {
	simPair(t, func(_ int, o *Options) { o.MaxHeld = 4 * dataSlab }, func(t *testing.T, a, b *node, _ *simNet) {
		held := make(chan *block.Buf, 10_000)
		b.mu.Lock()
		b.frame = func(_ *Session, f *wire.Frame, _ *block.Batch) {
			if f.Type == wire.Write {
				f.Buf.Retain()
				held <- f.Buf
			}
		}
		b.mu.Unlock()
		s := a.waitUp(1)
		const n = 200
		for i := range uint64(n) {
			sendNumber(s, wire.Write, i+1, pattern(500_000), nil)
		}
		sendNumber(s, wire.WriteAck, 1, nil, nil)
		b.wait("the meta link", func() bool { return len(b.got[wire.Meta]) == 1 })
		waitFor(t, "the throttle", func() bool { i, _ := b.Node("alpha"); return i.Data.Throttled > 0 })
		if i, _ := b.Node("alpha"); i.Data.HeldBytes > 4*dataSlab {
			t.Errorf("%d bytes are held, over the limit", i.Data.HeldBytes)
		}
		// Pings go on while the link is stopped.
		time.Sleep(time.Minute) // many tick times
		for len(b.frames(wire.Data)) < n {
			(<-held).Release()
		}
		checkOrder(t, b.frames(wire.Data), n)
		for len(held) > 0 {
			(<-held).Release()
		}
		a.waitLog("up 1")
		b.waitLog("up 0")
	})
}

// TestWhatAllPeersHoldIsBounded: each link may hold an equal part, down to what
// it takes to go on.
func TestWhatAllPeersHoldIsBounded(t *testing.T) {
	for _, c := range []struct {
		peers int
		each  int64 // MaxHeld
		want  int64 // slabs
	}{{1, 0, 120}, {4, 0, 120}, {8, 0, 60}, {31, 0, 15}, {31, 4 * dataSlab, 4}, {1, 1, 2}} {
		o := Options{Cluster: "test", NodeName: "self", NodeID: 31, Secrets: [][]byte{testSecret}, Handler: &echo{}, MaxHeld: c.each}
		m, err := New(o)
		must(t, err)
		for i := range c.peers {
			must(t, m.addPeer(Peer{Name: nodeName(i), ID: i, Address: "127.0.0.1:1"}, false))
		}
		if got := m.mostHeld(dataSlab); got != c.want {
			t.Errorf("%d peers, %d each: %d slabs, want %d", c.peers, c.each, got, c.want)
		}
		if c.peers > 1 {
			if all := 2 * int64(c.peers) * m.mostHeld(dataSlab) * dataSlab; all > 1<<30 {
				t.Errorf("%d peers: %d bytes in all", c.peers, all)
			}
		}
		m.cancel()
		m.running.Wait()
	}
}
