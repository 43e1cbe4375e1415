package messenger

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// simPair runs f in virtual time on two nodes that are connected.
func simPair(t *testing.T, change func(i int, o *Options), f func(t *testing.T, a, b *node, sn *simNet)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 2, change)
		a, b := bed.start(0), bed.start(1)
		a.waitUp(1)
		b.waitUp(1)
		f(t, a, b, sn)
		a.stop()
		b.stop()
	})
}

// TestASilentPeerIsDownWithinTheWindow: in virtual time, at many phases
// of the pings: T to T + T/I after the last frame.
func TestASilentPeerIsDownWithinTheWindow(t *testing.T) {
	const tick, count = 4 * time.Second, 4
	for phase := range 20 {
		simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
			time.Sleep(10*time.Second + time.Duration(phase)*70*time.Millisecond)
			start := time.Now()
			sn.stop("beta", "alpha")
			sn.stop("alpha", "beta")
			time.Sleep(2 * tick)
			for _, n := range []*node{a, b} {
				d, e := since(start, n, cluster.NodeDown)
				if e.Reason != "tick-timeout" || d < tick-tick/count || d > tick+tick/count {
					t.Errorf("phase %d: node %s saw %q after %v", phase, n.name, e.Reason, d)
				}
			}
		})
	}
}

// TestOneWaySilenceIsSeen: only what b sends is lost.
func TestOneWaySilenceIsSeen(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
		time.Sleep(10 * time.Second)
		start := time.Now()
		sn.stop("beta", "alpha")
		time.Sleep(10 * time.Second)
		if d, e := since(start, a, cluster.NodeDown); e.Reason != "tick-timeout" || d < 3*time.Second || d > 5*time.Second {
			t.Errorf("alpha saw %q after %v", e.Reason, d)
		}
		if d, e := since(start, b, cluster.NodeDown); d < 3*time.Second || d > 9*time.Second {
			t.Errorf("beta saw %q after %v", e.Reason, d)
		}
	})
}

// TestAShortCutIsNoNodedown: 3 seconds without a wire at T = 4 s, with
// connections reset in the middle of it.
func TestAShortCutIsNoNodedown(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
		sa, sb := a.waitUp(1), b.waitUp(1)
		time.Sleep(5 * time.Second)
		sn.stop("beta", "alpha")
		sn.stop("alpha", "beta")
		for i := range uint64(100) {
			sendNumber(sa, wire.Write, i+1, pattern(4096), nil)
			sendNumber(sb, wire.WriteAck, i+1, nil, nil)
			if i == 50 {
				sn.reset("alpha", "beta")
			}
			time.Sleep(29 * time.Millisecond)
		}
		sn.heal("beta", "alpha")
		sn.heal("alpha", "beta")
		time.Sleep(2 * time.Second)
		checkOrder(t, b.frames(wire.Data), 100)
		checkOrder(t, a.frames(wire.Meta), 100)
		a.waitLog("up 1")
		b.waitLog("up 0")
	})
}

// TestACutAlmostAsLongAsTheTickTimeIsNoNodedown: nothing tells that the
// connections are dead, and by the time that TCP would try them again the peer
// would have been given up. Whoever dials does not wait for that.
func TestACutAlmostAsLongAsTheTickTimeIsNoNodedown(t *testing.T) {
	for phase := range 20 {
		simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
			sn.slow = true
			sa, sb := a.waitUp(1), b.waitUp(1)
			n := uint64(0)
			for cut := range 5 {
				time.Sleep(5*time.Second + time.Duration(phase)*53*time.Millisecond)
				for i := range 34 {
					if i == 5 {
						sn.stop("beta", "alpha")
						sn.stop("alpha", "beta")
					}
					n++
					sendNumber(sa, wire.Write, n, pattern(4096), nil)
					sendNumber(sb, wire.WriteAck, n, nil, nil)
					time.Sleep(100 * time.Millisecond)
				}
				sn.heal("beta", "alpha")
				sn.heal("alpha", "beta")
				time.Sleep(2 * time.Second)
				if got := len(b.frames(wire.Data)); got != int(n) {
					t.Errorf("phase %d, cut %d: %d of %d frames have arrived", phase, cut, got, n)
				}
			}
			checkOrder(t, b.frames(wire.Data), int(n))
			checkOrder(t, a.frames(wire.Meta), int(n))
			a.waitLog("up 1")
			b.waitLog("up 0")
		})
	}
}

// TestLinksMoveToNewConnectionsUnderLoad: the old ones, which were doubted,
// work after all, and frames and acks flow over them until the moment when the
// new ones take over.
func TestLinksMoveToNewConnectionsUnderLoad(t *testing.T) {
	for _, delay := range []time.Duration{0, time.Millisecond, 20 * time.Millisecond} {
		simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
			sn.delay.Store(int64(delay))
			sa, sb := a.waitUp(1), b.waitUp(1)
			n := uint64(0)
			for i := range 3000 {
				n++
				for _, s := range []*Session{sa, sb} {
					sendNumber(s, wire.Write, n, pattern(200), nil)
					sendNumber(s, wire.WriteAck, n, nil, nil)
				}
				if i%7 == 0 {
					p := sb.p
					p.post(func() {
						p.doubt(sb.id, true)
						for _, l := range sb.links {
							l.retryAt = time.Time{}
						}
					})
				}
				time.Sleep(3 * time.Millisecond)
			}
			sb.p.post(func() { sb.p.doubt(sb.id, false) })
			time.Sleep(3 * time.Second)
			for _, x := range []*node{a, b} {
				for _, k := range []wire.Link{wire.Data, wire.Meta} {
					checkOrder(t, x.frames(k), int(n))
				}
			}
			if i, _ := b.Node("alpha"); i.Data.Connections < 50 {
				t.Errorf("the links moved %d times only", i.Data.Connections)
			}
			a.waitLog("up 1")
			b.waitLog("up 0")
		})
	}
}

// TestAFlappingPathIsNoNodedown: links that are cut again and again, each time
// for less than the tick time, and carry little.
func TestAFlappingPathIsNoNodedown(t *testing.T) {
	for _, up := range []time.Duration{20 * time.Millisecond, 300 * time.Millisecond, 3 * time.Second} {
		simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
			sn.delay.Store(int64(time.Millisecond))
			for range 100 {
				sn.stop("beta", "alpha")
				sn.reset("alpha", "beta")
				time.Sleep(time.Second)
				sn.heal("beta", "alpha")
				time.Sleep(up)
			}
			time.Sleep(2 * time.Second)
			a.waitLog("up 1")
			b.waitLog("up 0")
		})
	}
}

// TestALinkThatIsCutIsAlwaysBeingDialled: on a path that works for moments
// only, one of them would be missed between two attempts, and a few in a row are
// a nodedown.
func TestALinkThatIsCutIsAlwaysBeingDialled(t *testing.T) {
	simPair(t, nil, func(t *testing.T, _, b *node, sn *simNet) {
		sn.delay.Store(int64(time.Millisecond))
		s := b.waitUp(1)
		for cut := range 100 {
			sn.stop("beta", "alpha")
			sn.reset("alpha", "beta")
			time.Sleep(s.p.redialTime()) // the longest pause after a cut
			for at := range 25 {
				time.Sleep(20 * time.Millisecond)
				synctest.Wait()
				var dialling [2]bool
				if err := s.p.do(t.Context(), func() { dialling = [2]bool{s.links[0].dialing, s.links[1].dialing} }); err != nil {
					t.Fatal(err)
				}
				if dialling != [2]bool{true, true} {
					t.Errorf("cut %d, sample %d: dialling the links: %v", cut, at, dialling)
				}
			}
			sn.heal("beta", "alpha")
			time.Sleep(20 * time.Millisecond)
		}
		b.waitLog("up 0")
	})
}

// TestMissedPingsShowBeforeTheTimeout: the peer goes silent for less than T.
func TestMissedPingsShowBeforeTheTimeout(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
		time.Sleep(5 * time.Second)
		sn.stop("beta", "alpha")
		time.Sleep(2800 * time.Millisecond)
		if n, _ := a.Node("beta"); n.MissedPings < 1 || n.State != "up" {
			t.Errorf("after 2.8 s of silence: %d pings missed, state %s", n.MissedPings, n.State)
		}
		sn.heal("beta", "alpha")
		time.Sleep(2 * time.Second)
		if n, _ := a.Node("beta"); n.MissedPings != 0 || n.State != "up" {
			t.Errorf("after it was heard again: %d pings missed, state %s", n.MissedPings, n.State)
		}
		a.waitEvent(cluster.PingMissed)
		a.waitEvent(cluster.PingHeard)
		a.waitLog("up 1")
	})
}

// TestIdleLinksCarryOnePingAnInterval: and the answer to one.
func TestIdleLinksCarryOnePingAnInterval(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, _ *simNet) {
		time.Sleep(10 * time.Second)
		count := func(n *node, peer string) uint64 {
			i, _ := n.Node(peer)
			return i.Meta.RecvFrames
		}
		before := [2]uint64{count(a, "beta"), count(b, "alpha")}
		time.Sleep(60 * time.Second)
		after := [2]uint64{count(a, "beta"), count(b, "alpha")}
		for i := range before {
			// One ping and one pong a second.
			if n := after[i] - before[i]; n < 110 || n > 130 {
				t.Errorf("%d frames in 60 intervals", n)
			}
		}
		if i, _ := a.Node("beta"); i.LastFrame > time.Second {
			t.Errorf("the last frame came %v ago", i.LastFrame)
		}
	})
}

// TestTickSetReachesEveryNodeAndDropsNone: lengthened and
// shortened, under load, on five nodes, whoever is asked.
func TestTickSetReachesEveryNodeAndDropsNone(t *testing.T) {
	for _, c := range []struct {
		from, to, transition time.Duration
	}{
		{8 * time.Second, time.Second, 10 * time.Second},
		{time.Second, 8 * time.Second, 10 * time.Second},
		{8 * time.Second, 200 * time.Millisecond, 0},
		{200 * time.Millisecond, time.Minute, 0},
	} {
		t.Run(fmt.Sprintf("%v to %v in %v", c.from, c.to, c.transition), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bed, sn := simBed(t, 5, func(_ int, o *Options) { o.Tick = c.from })
				sn.delay.Store(int64(time.Millisecond))
				for i := range 5 {
					bed.start(i)
				}
				time.Sleep(2 * time.Second)
				res, target, err := bed.nodes[2].SetTick(c.to, c.transition, false)
				if err != nil || res != cluster.ChangeInitiated || target != c.to {
					t.Fatalf("tick set answers %v, %v, %v", res, target, err)
				}
				time.Sleep(c.transition + 3*time.Minute)
				for _, n := range bed.nodes {
					if got := n.GetTick(); got.Tick != c.to || got.Target != 0 {
						t.Errorf("node %s has %+v", n.name, got)
					}
					if d, e := since(time.Now(), n, cluster.NodeDown); e.Type != "" {
						t.Errorf("node %s: %s (%v ago)", n.name, e.Text, -d)
					}
				}
				for _, n := range bed.nodes {
					n.stop()
				}
			})
		})
	}
}

// TestANodeThatNeverChangedIsNotDropped: only one node changes its tick time,
// both ways.
func TestANodeThatNeverChangedIsNotDropped(t *testing.T) {
	for _, to := range []time.Duration{300 * time.Millisecond, 2 * time.Minute} {
		simPair(t, nil, func(t *testing.T, a, b *node, _ *simNet) {
			if _, _, err := a.SetTick(to, 0, true); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Minute)
			a.waitLog("up 1")
			b.waitLog("up 0")
			if got := b.GetTick().Tick; got != 4*time.Second {
				t.Errorf("a local change reached the other node: %v", got)
			}
		})
	}
}
