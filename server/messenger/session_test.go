package messenger

import (
	"bytes"
	"context"
	"net"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

func TestTwoNodesConnectAndTalk(t *testing.T) {
	a, b := pair(t, nil)
	sa, sb := a.waitUp(1), b.waitUp(1)
	if sa.PeerName() != "beta" || sb.PeerID() != 0 {
		t.Errorf("sessions with %s and %d", sa.PeerName(), sb.PeerID())
	}
	var batch block.Batch
	for i := range uint64(1000) {
		sendNumber(sa, wire.Write, i+1, pattern(4096), &batch)
		sendNumber(sb, wire.WriteAck, i+1, nil, nil)
		if i%10 == 9 {
			batch.Finish()
		}
	}
	b.wait("writes", func() bool { return len(b.got[wire.Data]) == 1000 })
	a.wait("acks", func() bool { return len(a.got[wire.Meta]) == 1000 })
	checkOrder(t, b.frames(wire.Data), 1000)
	checkOrder(t, a.frames(wire.Meta), 1000)
}

func TestPayloadsOfAllSizesArriveIntact(t *testing.T) {
	a, b := pair(t, nil)
	sizes := []int{0, 1, 4095, 4096, 65536, 100001, 700000, wire.MaxPayload, 3, wire.MaxPayload - 1, wire.MaxPayload}
	b.mu.Lock()
	b.frame = func(_ *Session, f *wire.Frame, _ *block.Batch) {
		if want := sizes[f.Arg[0]%uint64(len(sizes))]; !bytes.Equal(f.Payload, pattern(want)) {
			t.Errorf("frame %d: %d bytes arrived, not the %d sent", f.Arg[0], len(f.Payload), want)
		}
	}
	b.mu.Unlock()
	s := a.waitUp(1)
	const n = 200
	pool := block.NewPool(wire.MaxPayload)
	for i := range uint64(n) {
		size := sizes[i%uint64(len(sizes))]
		if i%2 == 0 {
			sendNumber(s, wire.Write, i, pattern(size), nil)
			continue
		}
		buf := pool.Get()
		copy(buf.B, pattern(size))
		s.Send(&wire.Header{Type: wire.Write, Arg: [3]uint64{i}}, buf.B[:size], buf, nil)
		buf.Release()
	}
	b.wait("writes", func() bool { return len(b.got[wire.Data]) == n })
	a.wait("acks", func() bool { return true })
	waitQueueEmpty(t, s)
	if out := pool.Out(); out != 0 {
		t.Errorf("%d buffers are still held after all was acked", out)
	}
}

func TestReconnectLosesNothingAndIsNoNodedown(t *testing.T) {
	a, b := pair(t, nil)
	sa := a.waitUp(1)
	const rounds, each = 10, 100
	n := uint64(0)
	for i := range rounds {
		for range each {
			n++
			sendNumber(sa, wire.Write, n, pattern(8192), nil)
		}
		who := a
		if i%2 == 1 {
			who = b
		}
		if err := who.Reconnect(t.Context(), ""); err != nil {
			t.Fatal(err)
		}
	}
	b.wait("writes", func() bool { return len(b.got[wire.Data]) == rounds*each })
	checkOrder(t, b.frames(wire.Data), rounds*each)
	a.waitLog("up 1")
	b.waitLog("up 0")
}

// TestReconnectsInAnyHurryAreNoNodedown: links are dropped on purpose while they
// are being made, so that the news of it finds no link to travel on, or comes
// late.
func TestReconnectsInAnyHurryAreNoNodedown(t *testing.T) {
	a, b := pair(t, nil)
	s := a.waitUp(1)
	const n = 300
	for i := range uint64(n) {
		must(t, b.Reconnect(t.Context(), "")) // b dials
		sendNumber(s, wire.Write, i+1, pattern(100), nil)
		if i%2 == 0 {
			waitABit(t.Context())
		}
	}
	b.wait("all frames", func() bool { return len(b.got[wire.Data]) >= n })
	checkOrder(t, b.frames(wire.Data), n)
	a.waitLog("up 1")
	b.waitLog("up 0")
}

// TestLinksDroppedOnPurposeLookLikeNoDeath: the news that they are may come when
// the peer has seen them end.
func TestLinksDroppedOnPurposeLookLikeNoDeath(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, _ *simNet) {
		for _, n := range []*node{a, b} {
			c := n.waitUp(1).links[wire.Data].current().c.(*simConn)
			must(t, n.Reconnect(t.Context(), ""))
			if !c.hard.Load() {
				t.Errorf("node %s: the data link ends as the kernel ends that of a process which is gone", n.name)
			}
			time.Sleep(5 * time.Second)
		}
	})
}

func TestCutLinksComeBackWithNothingLost(t *testing.T) {
	var c cutter
	a, b := pair(t, func(_ int, o *Options) { o.Dial = c.dial })
	sa, sb := a.waitUp(1), b.waitUp(1)
	const n = 3000
	for i := range uint64(n) {
		sendNumber(sa, wire.Write, i+1, pattern(2000), nil)
		sendNumber(sb, wire.Write, i+1, pattern(100), nil)
		sendNumber(sb, wire.WriteAck, i+1, nil, nil)
		if i%100 == 50 {
			c.cut()
		}
	}
	b.wait("writes", func() bool { return len(b.got[wire.Data]) == n })
	a.wait("writes", func() bool { return len(a.got[wire.Data]) == n })
	a.wait("acks", func() bool { return len(a.got[wire.Meta]) == n })
	checkOrder(t, b.frames(wire.Data), n)
	checkOrder(t, a.frames(wire.Data), n)
	checkOrder(t, a.frames(wire.Meta), n)
	a.waitLog("up 1")
	b.waitLog("up 0")
	a.waitEvent("node-relinked")
}

// TestAPeerIsDialledFromTheAddressItBindsTo: nodes that share a host have each
// their own.
func TestAPeerIsDialledFromTheAddressItBindsTo(t *testing.T) {
	const own = "127.0.0.3"
	a, b := pair(t, func(_ int, o *Options) { o.Peers[0].Bind = own })
	s := a.waitUp(1)
	sendNumber(s, wire.Write, 1, pattern(10), nil)
	sendNumber(s, wire.WriteAck, 1, nil, nil)
	b.wait("a frame on each link", func() bool { return len(b.got[wire.Data]) == 1 && len(b.got[wire.Meta]) == 1 })
	i, _ := a.Node("beta") // which dials
	j, _ := b.Node("alpha")
	for _, addr := range []string{i.Data.Remote, i.Meta.Remote, j.Data.Local, j.Meta.Local} {
		if host, _, err := net.SplitHostPort(addr); err != nil || host != own {
			t.Errorf("the connection is from %s, not from %s (%v)", addr, own, err)
		}
	}
}

func TestShutdownIsToldWithAGoodbye(t *testing.T) {
	a, b := pair(t, nil)
	b.stop()
	a.waitLog("up 1", "down shutdown")
	b.waitLog("up 0", "down shutdown")
}

func TestDisconnectKeepsTheNodeAwayUntilConnect(t *testing.T) {
	for _, who := range []int{0, 1} {
		t.Run(nodeName(who), func(t *testing.T) {
			a, b := pair(t, nil)
			nodes := []*node{a, b}
			near, far := nodes[who], nodes[1-who]
			if err := near.Disconnect(t.Context(), far.name, false); err != nil {
				t.Fatal(err)
			}
			if n, _ := near.Node(far.name); n.State != "disconnected" {
				t.Errorf("after disconnect the node is %s", n.State)
			}
			far.wait("down", func() bool { return slices.Contains(far.log, "down disconnect") })
			if err := near.Connect(t.Context(), far.name); err != nil {
				t.Fatal(err)
			}
			far.waitUp(2)
			near.waitUp(2)
		})
	}
}

func TestARestartedPeerIsANewSession(t *testing.T) {
	for _, who := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			bed, _ := simBed(t, 2, nil)
			bed.start(0)
			bed.start(1)
			stay := bed.nodes[1-who]
			old := stay.waitUp(1)
			_, first := old.Incarnation()
			bed.nodes[who].waitUp(1)
			crash(bed.nodes[who])
			stay.wait("down", func() bool { return slices.Contains(stay.log, "down connection-closed") })
			bed.start(who)
			s := stay.waitUp(2)
			if _, second := s.Incarnation(); second == first || s.ID() == old.ID() {
				t.Errorf("the new session has incarnation %x and id %d, as the old one had", second, s.ID())
			}
			bed.nodes[0].stop()
			bed.nodes[1].stop()
		})
	}
}

func waitQueueEmpty(t *testing.T, s *Session) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testWait)
	defer cancel()
	for s.Queued(wire.Data)+s.Queued(wire.Meta) > 0 {
		if ctx.Err() != nil {
			t.Fatalf("still queued: %d, %d", s.Queued(wire.Data), s.Queued(wire.Meta))
		}
		waitABit(ctx)
	}
}

func TestSignedSessionsCarryEverythingAcrossCuts(t *testing.T) {
	var c cutter
	a, b := pair(t, func(_ int, o *Options) { o.Dial, o.Sign = c.dial, true })
	sa := a.waitUp(1)
	const n = 500
	for i := range uint64(n) {
		sendNumber(sa, wire.Write, i+1, pattern(int(i)*7), nil)
		if i%100 == 50 {
			c.cut()
		}
	}
	b.wait("writes", func() bool { return len(b.got[wire.Data]) == n })
	checkOrder(t, b.frames(wire.Data), n)
	b.waitLog("up 0")
}

func TestSigningMustBeTheSameOnBothSides(t *testing.T) {
	bed := newBed(t, 2, func(i int, o *Options) { o.Sign = i == 1 })
	a, b := bed.start(0), bed.start(1)
	a.waitEvent("node-refused")
	if err := b.WaitUp(t.Context(), "alpha"); err == nil || !strings.Contains(err.Error(), "sign") {
		t.Errorf("the dialer is told %v", err)
	}
}

// TestANodesComingUpIsToldBeforeItsSession: whatever a session brings is told after the
// node's coming up, however long that takes.
func TestANodesComingUpIsToldBeforeItsSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, _ := simBed(t, 2, func(i int, o *Options) {
			o.Events = func(e cluster.Event) {
				if e.Type == cluster.NodeUp {
					time.Sleep(500 * time.Millisecond)
				}
			}
		})
		for i := range 2 {
			bed.start(i)
		}
		for i, n := range bed.nodes {
			n.waitUp(1)
			n.mu.Lock()
			if len(n.events) == 0 || n.events[0].Type != cluster.NodeUp {
				t.Errorf("node %d has a session, and was told %v", i, n.events)
			}
			n.mu.Unlock()
		}
		for _, n := range bed.nodes {
			n.stop()
		}
	})
}
