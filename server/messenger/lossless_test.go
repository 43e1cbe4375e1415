package messenger

import (
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestLosslessUnderResets: numbered frames both ways on both
// links, with resets at random moments, some behind a stretch of silence, and
// with connections of which some are slower than others.
func TestLosslessUnderResets(t *testing.T) {
	for seed := range uint64(6) {
		simPair(t, func(_ int, o *Options) { o.Sign = seed%2 == 1 }, func(t *testing.T, a, b *node, sn *simNet) {
			rng := rand.New(rand.NewPCG(seed, 7))
			sn.delay.Store(int64(200 * time.Microsecond))
			if seed >= 3 {
				sn.lags(seed, 25*time.Millisecond)
			}
			sa, sb := a.waitUp(1), b.waitUp(1)
			const n = 20_000
			var batch block.Batch
			for i := range uint64(n) {
				sendNumber(sa, wire.Write, i+1, pattern(rng.IntN(300)), &batch)
				sendNumber(sa, wire.WriteAck, i+1, nil, &batch)
				sendNumber(sb, wire.Write, i+1, pattern(rng.IntN(300)), &batch)
				sendNumber(sb, wire.WriteAck, i+1, nil, &batch)
				if rng.IntN(8) == 0 {
					batch.Finish()
					time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
				}
				switch rng.IntN(2000) {
				case 0, 1, 2, 3:
					sn.reset("alpha", "beta")
				case 4:
					sn.stop("alpha", "beta")
					time.Sleep(time.Duration(rng.IntN(1500)) * time.Millisecond)
					sn.reset("alpha", "beta")
					sn.heal("alpha", "beta")
				}
			}
			batch.Finish()
			time.Sleep(10 * time.Second)
			for _, n := range []*node{a, b} {
				for _, k := range []wire.Link{wire.Data, wire.Meta} {
					checkOrder(t, n.frames(k), 20_000)
				}
			}
			if len(a.log) != 1 || len(b.log) != 1 {
				t.Errorf("seed %d: sessions: %q %q", seed, a.log, b.log)
			}
			if q := sa.Queued(wire.Data) + sb.Queued(wire.Data) + sa.Queued(wire.Meta) + sb.Queued(wire.Meta); q != 0 {
				t.Errorf("seed %d: %d bytes are still kept", seed, q)
			}
		})
	}
}

// TestADamagedByteAnywhereCutsTheLinkAndNothingElse: on both links, in what the
// dialer says or the other side, in the handshake or after it.
func TestADamagedByteAnywhereCutsTheLinkAndNothingElse(t *testing.T) {
	for at := 1; at < 900; at += 2 {
		synctest.Test(t, func(t *testing.T) {
			bed, sn := simBed(t, 2, nil)
			byDialer := map[bool]int{}
			sn.flipAt = func(c *simConn) int {
				dialer := c.speak != nil
				if byDialer[dialer]++; byDialer[dialer] <= 2 && dialer == (at/2%2 == 0) {
					return at
				}
				return 0
			}
			a, b := bed.start(0), bed.start(1)
			time.Sleep(5 * time.Second)
			s, back := b.waitUp(1), a.waitUp(1)
			for i := range uint64(20) {
				sendNumber(s, wire.Write, i+1, pattern(50), nil)
				sendNumber(s, wire.WriteAck, i+1, nil, nil)
				sendNumber(back, wire.Write, i+1, pattern(50), nil)
			}
			time.Sleep(3 * time.Second)
			checkOrder(t, a.frames(wire.Data), 20)
			checkOrder(t, a.frames(wire.Meta), 20)
			checkOrder(t, b.frames(wire.Data), 20)
			// Where the last word of a handshake was damaged, who said it has had a
			// session that the dialer never saw.
			unseen := at < handshakeBytes/2 && slices.Equal(a.log, []string{"up 1", "down reset", "up 1"})
			if len(a.log) != 1 && !unseen || len(b.log) != 1 {
				t.Errorf("byte %d: sessions %q %q", at, a.log, b.log)
			}
			a.stop()
			b.stop()
		})
	}
}

// TestUnackedFramesAreToldBeforeTheNewSession: the peer's process dies
// while frames are on their way.
func TestUnackedFramesAreToldBeforeTheNewSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 2, nil)
		a := bed.start(0)
		b := bed.start(1)
		s := a.waitUp(1)
		var left []uint64
		a.mu.Lock()
		a.onDown = func(s *Session, _ Reason) {
			for h := range s.Unacked(wire.Data) {
				left = append(left, h.Arg[0])
			}
			sendNumber(s, wire.Write, 1000, nil, nil) // dropped
		}
		a.mu.Unlock()
		for i := range uint64(5) {
			sendNumber(s, wire.Write, i+1, nil, nil)
		}
		time.Sleep(time.Second) // acked
		sn.stop("alpha", "beta")
		for i := range uint64(5) {
			sendNumber(s, wire.Write, i+6, nil, nil)
		}
		time.Sleep(100 * time.Millisecond)
		crash(b)
		sn.heal("alpha", "beta")
		bed.start(1)
		a.waitUp(2)
		if !slices.Equal(left, []uint64{6, 7, 8, 9, 10}) {
			t.Errorf("told as not acked: %v", left)
		}
		if len(a.log) != 3 {
			t.Errorf("alpha saw %q", a.log)
		}
		time.Sleep(time.Second)
		if got := bed.nodes[1].frames(wire.Data); len(got) != 0 {
			t.Errorf("the new session brought %v of the old one", got)
		}
		a.stop()
		bed.nodes[1].stop()
	})
}

// TestARestartedPeerSupersedesItsHalfOpenPredecessor: no FIN was ever
// seen of the old process.
func TestARestartedPeerSupersedesItsHalfOpenPredecessor(t *testing.T) {
	for _, who := range []int{0, 1} {
		synctest.Test(t, func(t *testing.T) {
			bed, sn := simBed(t, 2, nil)
			bed.start(0)
			bed.start(1)
			stay, old := bed.nodes[1-who], bed.nodes[who]
			stay.waitUp(1)
			old.waitUp(1)
			sn.stop(old.name, stay.name)
			sn.stop(stay.name, old.name)
			sn.mu.Lock()
			sn.conns = nil // the path forgets them: they stay stopped
			sn.mu.Unlock()
			crash(old)
			start := time.Now()
			sn.healAll()
			bed.start(who)
			stay.waitUp(2)
			// Who finds out by sending looks for last words before it dials.
			if d := time.Since(start); d > time.Second+goodbyeTime {
				t.Errorf("the new session took %v", d)
			}
			stay.mu.Lock()
			if len(stay.log) != 3 {
				t.Errorf("%s saw %q", stay.name, stay.log)
			}
			stay.mu.Unlock()
			bed.nodes[0].stop()
			bed.nodes[1].stop()
		})
	}
}

// TestAStaleDialNeverReplacesALiveSession: older sessions, older connections
// and repetitions are refused; a newer session wins.
func TestAStaleDialNeverReplacesALiveSession(t *testing.T) {
	stranger(t, func(t *testing.T, a *node, dial func() net.Conn) {
		connect := func(kind wire.LinkKind, session, global, seq uint64) (net.Conn, error) {
			h := helloOf(beta)
			h.Kind, h.Session, h.GlobalSeq, h.ConnectSeq = kind, session, global, seq
			c := dial()
			_, err := dialHandshake(c, &h, "alpha", testSecret)
			return c, err
		}
		for _, k := range []wire.LinkKind{wire.KindData, wire.KindMeta} {
			c, err := connect(k, 10, 5, 2)
			must(t, err)
			defer c.Close()
		}
		a.waitUp(1)
		for _, c := range []struct{ session, global, seq uint64 }{{9, 4, 1}, {11, 5, 1}, {10, 5, 1}, {10, 5, 2}} {
			conn, err := connect(wire.KindData, c.session, c.global, c.seq)
			if err == nil {
				t.Errorf("a stale dial (session %d, global %d, connect %d) is let in", c.session, c.global, c.seq)
			}
			conn.Close()
		}
		a.waitLog("up 1")
		for _, k := range []wire.LinkKind{wire.KindData, wire.KindMeta} {
			c, err := connect(k, 12, 6, 1)
			must(t, err)
			defer c.Close()
		}
		a.waitLog("up 1", "down reset", "up 1")
	})
}

// TestAPeerThatNeverSpeaksAfterTheHandshakeTimesOut: silence counts from the
// moment the session came up.
func TestAPeerThatNeverSpeaksAfterTheHandshakeTimesOut(t *testing.T) {
	stranger(t, func(t *testing.T, a *node, dial func() net.Conn) {
		start := time.Now()
		for _, k := range []wire.LinkKind{wire.KindData, wire.KindMeta} {
			h := helloOf(beta)
			h.Kind, h.TickMS, h.PingCount = k, 4000, 4
			c := dial()
			_, err := dialHandshake(c, &h, "alpha", testSecret)
			must(t, err)
			defer c.Close()
		}
		time.Sleep(10 * time.Second)
		if d, e := since(start, a, cluster.NodeDown); e.Reason != "tick-timeout" || d < 4*time.Second || d > 5*time.Second {
			t.Errorf("alpha saw %q after %v", e.Reason, d)
		}
	})
}

// TestOneSessionWhateverTheOrderOfStarts: knocks and dials cross.
func TestOneSessionWhateverTheOrderOfStarts(t *testing.T) {
	for round := range 1000 {
		synctest.Test(t, func(t *testing.T) {
			bed, sn := simBed(t, 2, nil)
			sn.delay.Store(int64(time.Duration(round%7) * time.Millisecond))
			first := round % 2
			bed.start(first)
			time.Sleep(time.Duration(round%100) * time.Millisecond)
			bed.start(1 - first)
			start := time.Now()
			a, b := bed.nodes[0], bed.nodes[1]
			a.waitUp(1)
			b.waitUp(1)
			if d := time.Since(start); d > 2*time.Second {
				t.Errorf("connected only after %v", d)
			}
			time.Sleep(5 * time.Second)
			a.waitLog("up 1")
			b.waitLog("up 0")
			a.stop()
			b.stop()
		})
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(testWait); !ok(); waitABit(t.Context()) {
		if time.Now().After(deadline) {
			t.Fatalf("timed out waiting for %s", what)
		}
	}
}

// TestLivenessWhileDialsHang: 29 peers do not answer their dials, and one takes
// nothing until its queue is full; the one that lives is neither dropped nor
// missed.
func TestLivenessWhileDialsHang(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 32, func(_ int, o *Options) { o.MaxDataQueue = 8 << 20 })
		for i := range 29 {
			sn.stop("node31", nodeName(i))
		}
		stuck := bed.start(29)
		peer := bed.start(30)
		n := bed.start(31)
		n.wait("both", func() bool { return len(n.up) == 2 })
		peer.wait("both", func() bool { return len(peer.up) == 2 })
		of := func(name string) (downs, missed int) {
			for _, e := range n.eventsOf(cluster.NodeDown) {
				if e.Node == name {
					downs++
				}
			}
			for _, e := range n.eventsOf(cluster.PingMissed) {
				if e.Node == name {
					missed++
				}
			}
			return downs, missed
		}
		full := 0
		for range 20 {
			sn.stop("node31", "node29") // what is sent to it waits
			if s := n.Session(29); s != nil {
				for i := range uint64(7) {
					sendNumber(s, wire.Write, i+1, pattern(wire.MaxPayload), nil)
				}
				if s.Queued(wire.Data) > 7<<20-simWindow {
					full++
				}
			}
			time.Sleep(20 * time.Second) // many tick times
			sn.heal("node31", "node29")
			time.Sleep(10 * time.Second)
		}
		if downs, missed := of("node30"); downs != 0 || missed != 0 {
			t.Errorf("node31 saw node30 go %d times, and %d missed pings of it", downs, missed)
		}
		if downs, _ := of("node29"); downs < full || full < 15 {
			t.Errorf("the queue was full %d times, and node29 was given up %d times", full, downs)
		}
		for _, x := range []*node{n, peer, stuck} {
			x.stop()
		}
	})
}

// TestCallbacksMayDoAnything: sends, ends and commands from
// within the handler.
func TestCallbacksMayDoAnything(t *testing.T) {
	bed := newBed(t, 2, nil)
	a, b := bed.start(0), bed.start(1)
	a.waitUp(1)
	s := b.waitUp(1)
	b.mu.Lock()
	b.onUp = func(s *Session) { sendNumber(s, wire.Write, 7, nil, nil) }
	b.onDown = func(s *Session, _ Reason) {
		sendNumber(s, wire.Write, 8, nil, nil)
		s.End("again")
		b.Nodes()
	}
	b.frame = func(s *Session, f *wire.Frame, batch *block.Batch) {
		sendNumber(s, wire.WriteAck, 9, nil, batch)
		s.End("the handler has had enough")
		s.End("twice")
	}
	b.mu.Unlock()
	for range 5 {
		sendNumber(a.waitUp(1), wire.Write, 1, nil, nil)
	}
	_ = s
	b.wait("down", func() bool { return slices.Contains(b.log, "down ended") })
	b.waitUp(2)
	a.wait("the frame of SessionUp", func() bool { return slices.Contains(a.got[wire.Data], 7) })
	if slices.Contains(a.frames(wire.Data), 8) {
		t.Error("a frame sent in SessionDown arrived")
	}
}

// TestManyCutsLeaveNothingBehind: neither descriptors, goroutines nor memory,
// after a thousand cuts of all kinds.
func TestManyCutsLeaveNothingBehind(t *testing.T) {
	var c cutter
	a, b := pair(t, func(_ int, o *Options) { o.Dial = c.dial })
	sa := a.waitUp(1)
	n := uint64(0)
	cycles := func(rounds int) {
		for i := range rounds {
			n++
			sendNumber(sa, wire.Write, n, pattern(100), nil)
			if i%3 == 0 {
				must(t, b.Reconnect(t.Context(), ""))
			} else {
				c.cut()
			}
			b.wait("the frame", func() bool { return uint64(len(b.got[wire.Data])) == n })
		}
		// Until both links are whole again: what they say of themselves may be
		// older than the last cut, what passes after it may not.
		n++
		sendNumber(sa, wire.Write, n, nil, nil)
		sendNumber(sa, wire.WriteAck, n, nil, nil)
		b.wait("frames on both links", func() bool {
			return uint64(len(b.got[wire.Data])) == n && slices.Contains(b.got[wire.Meta], n)
		})
	}
	cycles(50) // pools and the runtime have what they keep
	fds, goroutines, heap := countFDs(t), runtime.NumGoroutine(), heapInUse()
	cycles(1000)
	var fdsNow, goroutinesNow int
	defer func() {
		if t.Failed() {
			t.Logf("%d descriptors, then %d; %d goroutines, then %d", fds, fdsNow, goroutines, goroutinesNow)
		}
	}()
	waitFor(t, "descriptors and goroutines to be given back", func() bool {
		fdsNow, goroutinesNow = countFDs(t), runtime.NumGoroutine()
		return fdsNow <= fds+2 && goroutinesNow <= goroutines+2
	})
	// Some slabs more may lie in a pool; a thousand of anything would show.
	const spare = 4 << 20
	waitFor(t, "memory to be given back", func() bool { return heapInUse() <= heap+spare })
	a.waitLog("up 1")
	b.waitLog("up 0")
}

func heapInUse() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

func countFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

// TestBackoffGrowsAndIsResetOnRequest: nobody listens.
func TestBackoffGrowsAndIsResetOnRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 2, nil)
		sn.delay.Store(int64(0))
		b := bed.start(1)
		dials := func() int {
			sn.mu.Lock()
			defer sn.mu.Unlock()
			return sn.dials[[2]string{"beta", "alpha"}]
		}
		time.Sleep(time.Minute)
		early := dials()
		if early < 20 || early > 50 { // two a try; 0, .1, .2, .4, .8, 1.6, 3.2, 5, 5 …
			t.Errorf("%d dials in a minute", early)
		}
		info, _ := b.Node("alpha")
		if info.Dialling.Backoff != maxBackoff || info.RetryIn < 0 || info.RetryIn > maxBackoff {
			t.Errorf("backoff %v, next in %v", info.Dialling.Backoff, info.RetryIn)
		}
		must(t, b.Reconnect(t.Context(), "alpha"))
		synctest.Wait()
		if dials() == early {
			t.Error("reconnect did not dial at once")
		}
		a := bed.start(0) // knocks
		start := time.Now()
		a.waitUp(1)
		if d := time.Since(start); d > 200*time.Millisecond {
			t.Errorf("a node that came back was dialled only after %v", d)
		}
		a.stop()
		b.stop()
	})
}

// TestHintsAreLostRatherThanKept: a cut drops them, those that are sent while
// the link is cut are refused, none comes later, and the cut is told of once.
func TestHintsAreLostRatherThanKept(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
		s := a.waitUp(1)
		hint := &wire.NodeMsgBody{Kind: 1, Body: []byte("load 3")}
		if !s.SendHint(hint) {
			t.Error("a hint on an idle link is dropped")
		}
		time.Sleep(time.Second)
		if got := b.frames(wire.Meta); len(got) != 1 {
			t.Errorf("%d hints arrived", len(got))
		}
		sn.stop("alpha", "beta")
		for range 100 {
			s.SendHint(hint)
		}
		sn.reset("alpha", "beta")
		time.Sleep(100 * time.Millisecond) // cut; the dial hangs
		for range 100 {
			if s.SendHint(hint) {
				t.Error("a hint is taken while the link is cut")
			}
		}
		if got := a.countEvents(cluster.NodeRelinked); got != 0 {
			t.Errorf("the links are back %d times while the path is stopped", got)
		}
		sn.heal("alpha", "beta")
		time.Sleep(2 * time.Second)
		if got := b.frames(wire.Meta); len(got) != 1 {
			t.Errorf("%d hints arrived after the cut", len(got)-1)
		}
		for _, n := range []*node{a, b} {
			if got := n.countEvents(cluster.NodeRelinked); got != 2 {
				t.Errorf("%s is told %d times of its two links", n.name, got)
			}
		}
		if !s.SendHint(hint) {
			t.Error("a hint on links that are back is dropped")
		}
		b.wait("it", func() bool { return len(b.got[wire.Meta]) == 2 })
		a.waitLog("up 1")
	})
}

// TestNodesComeAndGo adds, changes and removes nodes while everything runs.
func TestNodesComeAndGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, _ := simBed(t, 3, func(i int, o *Options) {
			if i < 2 {
				o.Peers = o.Peers[:1] // alpha and beta know one another only
			}
		})
		a, b, c := bed.start(0), bed.start(1), bed.start(2)
		time.Sleep(10 * time.Second)
		if len(c.log) != 0 {
			t.Errorf("a stranger is connected: %q", c.log)
		}
		must(t, a.AddNode(Peer{Name: "gamma", ID: 2, Address: "gamma"}))
		if a.AddNode(Peer{Name: "gamma", ID: 7, Address: "gamma"}) == nil || a.AddNode(Peer{Name: "x", ID: 2, Address: "x"}) == nil {
			t.Error("a name or an id is taken twice")
		}
		start := time.Now()
		c.waitUp(1)
		if d := time.Since(start); d > time.Second {
			t.Errorf("the new node was connected only after %v", d)
		}
		must(t, c.ChangeNode(t.Context(), Peer{Name: "alpha", ID: 0, Address: "alpha", Bind: "127.0.0.1"}))
		time.Sleep(time.Second)
		c.waitLog("up 0")
		must(t, a.RemoveNode(t.Context(), "gamma"))
		c.wait("down", func() bool { return slices.Contains(c.log, "down disconnect") })
		if len(a.Nodes()) != 1 {
			t.Errorf("alpha still has %d peers", len(a.Nodes()))
		}
		for _, n := range []*node{a, b, c} {
			n.stop()
		}
	})
}

// fakeStore keeps disconnected nodes in memory.
type fakeStore struct{ away map[string]bool }

func (f fakeStore) Disconnected() (out []string, err error) {
	for n := range f.away {
		out = append(out, n)
	}
	return out, nil
}

func (f fakeStore) SetDisconnected(node string, on bool) error {
	delete(f.away, node)
	if on {
		f.away[node] = true
	}
	return nil
}

func TestAPersistentDisconnectOutlivesARestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := fakeStore{make(map[string]bool)}
		bed, _ := simBed(t, 2, func(i int, o *Options) {
			if i == 1 {
				o.Store = store
			}
		})
		a, b := bed.start(0), bed.start(1)
		b.waitUp(1)
		must(t, b.Disconnect(t.Context(), "alpha", true))
		b.stop()
		b = bed.start(1)
		time.Sleep(time.Minute)
		if n, _ := b.Node("alpha"); n.State != "disconnected" || len(b.log) != 0 {
			t.Errorf("after a restart alpha is %s; %q", n.State, b.log)
		}
		must(t, b.Connect(t.Context(), "alpha"))
		b.waitUp(1)
		if len(store.away) != 0 {
			t.Error("connect does not end the disconnection for later restarts")
		}
		a.stop()
		b.stop()
	})
}
