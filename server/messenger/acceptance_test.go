package messenger

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// criteria says where the acceptance criteria of liveness (E) and of the
// messenger (C) are tested. A name after a slash is of another package, whose
// folder comes before it, seen from the repository's top.
var criteria = []struct{ id, what, tests string }{
	{"E1", "silence is found within T to T + T/I, a death at once", "TestASilentPeerIsDownWithinTheWindow TestStoppedProcessesAreFoundWithinTheWindow TestAStoppedProcessIsSilent TestAKilledProcessIsSeenAtOnce server/cluster/TestSilenceIsFoundJustAfterTheTickTime"},
	{"E2", "an idle link carries about one ping an interval, a loaded one none", "TestIdleLinksCarryOnePingAnInterval TestLoadedLinksCarryNoPings server/cluster/TestWhatIsSentAnywayReplacesPings"},
	{"E3", "silence in one direction is seen by both", "TestOneWaySilenceIsSeen"},
	{"E4", "bulk that takes longer than T is no silence", "TestBulkOnASlowPathIsNoSilence"},
	{"E5", "a peer that never speaks after the handshake times out", "TestAPeerThatNeverSpeaksAfterTheHandshakeTimesOut"},
	{"E6", "tick/set answers and lasts as documented", "server/cluster/TestSetAnswersAsDocumented server/cluster/TestATransitionLastsWholePings"},
	// Here a node that never changes is not dropped either: each is judged by
	// what it promised.
	{"E7", "no change of the tick time drops anybody", "TestTickSetReachesEveryNodeAndDropsNone TestStaggeredTickChangesDropNobody TestANodeThatNeverChangedIsNotDropped server/cluster/TestNoDropDuringAnyChange server/cluster/TestLengthenedPingsKeepTheOldRateUntilTheEnd"},
	// There is no ticker that could die alone: a panic ends the process, which
	// its peers see at once.
	{"E8", "liveness goes on while dials hang and queues are full", "TestLivenessWhileDialsHang TestHeldMemoryStopsThatPeersDataLinkAndNothingElse TestAKilledProcessIsSeenAtOnce"},
	// There is no simultaneous dial: the higher id is the one that dials.
	{"E9", "one session, whoever starts first", "TestOneSessionWhateverTheOrderOfStarts TestTheLowerIDNeverDials"},
	{"E10", "a restarted peer supersedes its half-open predecessor, once it proved itself", "TestARestartedPeerSupersedesItsHalfOpenPredecessor TestAFalseProofDoesNotDisturbThePeerItNames"},
	{"E11", "who proves nothing changes nothing and holds nobody up", "TestWrongHandshakesAreRefusedWithTheReason TestAFalseProofDoesNotDisturbThePeerItNames TestIdleConnectionsBlockNobody TestGarbageOnThePeerPort"},
	// The order against frames is checked by the handler of every test here. There
	// are no hidden nodes; a subscription names types, and every event carries
	// reason, session and incarnation.
	{"E12", "nodeup before the first frame, nodedown after the last; subscriptions", "TestSoak TestEventsOfANodeAlternate server/control/TestSubscriptionsOfOneConnection server/TestNodeEventsCarryWhatTheyAreOf server/events/TestReadersGetEventsInOrder server/events/TestAnUnknownTypeIsRefused server/events/TestAStoppedReaderCostsNothing"},
	// A configured node is dialled always, but for one that was disconnected, which
	// is never: there is no third way.
	{"E13", "only configured nodes, in both directions; a disconnected one stays away", "TestWrongHandshakesAreRefusedWithTheReason TestDisconnectKeepsTheNodeAwayUntilConnect TestAPersistentDisconnectOutlivesARestart"},
	// Nobody ever waits to send: what is over the limit ends the session, and
	// its owner is told what was not acked.
	{"E14", "a queue's limit holds, and who sends is not kept waiting", "TestAFullPeerIsCutAndOthersGoOn TestUnackedFramesAreToldBeforeTheNewSession"},
	{"E15", "disconnect returns when the node is down, and answers who waits", "TestDisconnectKeepsTheNodeAwayUntilConnect TestDisconnectAnswersAllWhoWait"},
	{"C1", "ports: busy, avoided, exhausted, fixed", "TestBindTakesTheFirstFreePortOfARange TestBindTriesAgainForAPredecessorOnItsWayOut"},
	{"C2", "rebind: another port, a new entity; without one nothing changes", "TestRebindIsANewEntityAtAnotherPort TestRebindWithoutAnotherPortChangesNothing TestALostSocketReplacedElsewhereIsANewEntity"},
	{"C3", "nothing lost, doubled or reordered by resets", "TestLosslessUnderResets TestCutLinksComeBackWithNothingLost"},
	{"C4", "nor by silence that ends in a reset", "TestLosslessUnderResets TestAShortCutIsNoNodedown"},
	{"C5", "lossy traffic is lost rather than kept", "TestHintsAreLostRatherThanKept"},
	{"C6", "the side that does not dial never does, and keeps its queue", "TestTheLowerIDNeverDials TestAPassiveNodeSeesTheEndOfItsPeer"},
	// There is no standby: a session is kept up at all times, since liveness
	// needs it. A node that is disconnected by hand stands by.
	{"C7", "an idle cut is mended; who stands by makes no connection until asked", "TestAnIdleCutIsMendedAtOnce TestADisconnectedNodeStandsBy"},
	{"C8", "a restart is told once, with what was not acked, before anything new", "TestUnackedFramesAreToldBeforeTheNewSession TestARestartedPeerIsANewSession"},
	{"C9", "one session whatever is lost of the handshake", "TestOneSessionWhateverTheOrderOfStarts TestResetsAtEveryByteOfTheHandshakeEndInOneSession TestResetsAtEveryByteOfAResumption"},
	{"C10", "a stale dial never replaces a live session", "TestAStaleDialNeverReplacesALiveSession"},
	{"C11", "backoff grows, has jitter and is reset", "TestBackoffGrowsAndIsResetOnRequest TestWaitsDoubleAndAreJitteredDownwards TestWhyExplainsEachState"},
	{"C12", "what is urgent overtakes a full queue; order within a link", "TestUrgentFramesOvertakeAFullQueue TestQueueSendsEveryFrameOnceInOrder"},
	{"C13", "a throttle stops one peer's data link and nothing else", "TestHeldMemoryStopsThatPeersDataLinkAndNothingElse TestAFullPeerIsCutAndOthersGoOn"},
	// Ending a session is told to its owner always, once.
	{"C14", "an end by hand: callbacks under way finish first, then one SessionDown", "TestCallbacksMayDoAnything TestDisconnectKeepsTheNodeAwayUntilConnect"},
	{"C15", "cuts leave nothing behind, nor does a shutdown with everything blocked", "TestManyCutsLeaveNothingBehind TestCloseWhileEverythingHangs"},
	{"C16", "a damaged byte cuts the link; an oversize length is refused", "TestADamagedByteAnywhereCutsTheLinkAndNothingElse TestGarbageOnThePeerPort server/wire/TestHeaderIsCheckedInOrder"},
	{"C17", "callbacks may send and end", "TestCallbacksMayDoAnything"},
}

// promises says the same of what the messenger and the cluster package promise
// beside the criteria.
var promises = []struct{ what, tests string }{
	{"ports: fixed or of a range, an avoid list, retries, rebind", "TestBindTakesTheFirstFreePortOfARange TestBindTriesAgainForAPredecessorOnItsWayOut TestRebindIsANewEntityAtAnotherPort TestALostSocketIsReplaced cmd/TestNodeOutlivesItsSocket"},
	{"who has proved nothing holds no slot and blocks nobody; limits in time, in all and per address", "TestIdleConnectionsBlockNobody TestUnprovenConnectionsAreBoundedPerAddressAndInAll"},
	{"several nodes on one host, each with its own address", "TestAPeerIsDialledFromTheAddressItBindsTo cmd/TestNodesJoinLeaveAndAreReplaced"},
	{"the handshake and what it decides", "TestWrongHandshakesAreRefusedWithTheReason TestARestartedPeerSupersedesItsHalfOpenPredecessor TestAStaleDialNeverReplacesALiveSession TestANodeThatDialsItself"},
	{"lossless within a session, over cuts", "TestLosslessUnderResets TestCutLinksComeBackWithNothingLost TestReconnectLosesNothingAndIsNoNodedown TestReconnectsInAnyHurryAreNoNodedown TestLinksDroppedOnPurposeLookLikeNoDeath"},
	{"a short cut is a pause, with nothing resynced", "TestAShortCutIsNoNodedown TestACutAlmostAsLongAsTheTickTimeIsNoNodedown cmd/TestShortCutIsAPause"},
	{"the owner is told what was not acked, before anything new", "TestUnackedFramesAreToldBeforeTheNewSession TestUnackedYieldsExactlyWhatTheOwnerMustSendAgain"},
	{"policies: lossless, lossy, server, standby", "TestLosslessUnderResets TestHintsAreLostRatherThanKept TestTheLowerIDNeverDials TestAnIdleCutIsMendedAtOnce TestADisconnectedNodeStandsBy"},
	{"throttles and bounds, each peer's and in all; urgent frames first", "TestHeldMemoryStopsThatPeersDataLinkAndNothingElse TestWhatAllPeersHoldIsBounded TestAFullPeerIsCutAndOthersGoOn TestAllQueuesTogetherAreBounded TestUrgentFramesOvertakeAFullQueue"},
	{"a disk that hangs keeps no link, no other device and no end of a session", "TestADiskThatHangsKeepsNoLink TestASessionEndsThoughADiskHangs TestReadersThatDisksKeepAreBounded server/simtest/TestADiskThatHangsKeepsNoOtherDevice"},
	{"peers apply overlapping writes in the sender's order, others side by side", "server/simtest/TestOverlappingWritesKeepTheSendersOrder server/simtest/TestAFlushWaitsForSlowWritesBeforeIt server/simtest/TestAChangeThatHangsIsNotTakenForAnothersAfterItsSession"},
	{"checksums before use", "TestADamagedByteAnywhereCutsTheLinkAndNothingElse server/wire/TestEveryBitOfAHeaderIsGuarded cmd/TestFlippedBitsBetweenNodes"},
	{"TLS with names, renewed while it runs; signed frames", "TestTLSSessionsCarryEverythingAcrossCuts TestACertificateMustNameItsNode TestARenewedCertificateIsTakenWithoutARestart TestSignedSessionsCarryEverythingAcrossCuts cmd/TestSecuredLinks"},
	{"finished links leave nothing behind; ends from within callbacks", "TestManyCutsLeaveNothingBehind TestCallbacksMayDoAnything TestCloseWhileEverythingHangs"},
	{"backoff with jitter, reset by hand, shown", "TestBackoffGrowsAndIsResetOnRequest TestTheStateMachineOfSessionsIsShown cmd/TestEveryCommandByOvsAppctl"},
	{"node table: connect, disconnect (to stay), why", "server/cluster/TestTableTransitions TestDisconnectKeepsTheNodeAwayUntilConnect TestAPersistentDisconnectOutlivesARestart TestWhyExplainsEachState TestDisconnectAnswersAllWhoWait"},
	{"nodeup and nodedown in order, with reasons", "TestEventsOfANodeAlternate TestShutdownIsToldWithAGoodbye TestUnackedFramesAreToldBeforeTheNewSession server/TestNodeEventsCarryWhatTheyAreOf"},
	{"missed pings show before the timeout; pings are spread", "TestMissedPingsShowBeforeTheTimeout server/cluster/TestMissedPingsAreToldOneByOneBeforeTheEnd server/cluster/TestPingsAreSpreadAndRegular"},
	{"nodes of different tick times are judged by what they promised", "server/cluster/TestAPeerIsJudgedByWhatItPromised TestANodeThatNeverChangedIsNotDropped"},
	{"tick/set, here or everywhere, drops nobody", "server/cluster/TestSetAnswersAsDocumented server/cluster/TestNoDropDuringAnyChange TestTickSetReachesEveryNodeAndDropsNone TestStaggeredTickChangesDropNobody"},
	{"a pause of the whole host; no lease on stale time", "server/cluster/TestAPauseOfOurOwnIsNobodysSilence server/cluster/TestASuspendedHostIsToldOf TestALeaseEndsBeforeThePeerGivesUp cmd/TestPrimaryThatSleptAnswersNothing"},
	{"clock jumps change nothing", "server/cluster/TestTheClockCountsSuspensions"},
	{"32 nodes, joining, leaving and replaced", "TestSoak TestNodesComeAndGo cmd/TestNodesJoinLeaveAndAreReplaced cmd/TestThirtyTwoNodesJoinLeaveAndAreReplaced"},
	{"an end of a process is seen at once, a stop within the window", "TestAKilledProcessIsSeenAtOnce TestStoppedProcessesAreFoundWithinTheWindow"},
}

// tests looks up tests by name, for the tables.
type tests struct {
	t       *testing.T
	defined map[string]string // folder to the text of its tests
}

// check fails unless each of names is a test.
func (x tests) check(what, names string) {
	x.t.Helper()
	for name := range strings.FieldsSeq(names) {
		dir, test := "server/messenger", name
		if at := strings.LastIndex(name, "/"); at >= 0 {
			dir, test = name[:at], name[at+1:]
		}
		if x.defined[dir] == "" {
			x.defined[dir] = testsIn(x.t, filepath.Join("../..", dir))
		}
		if !regexp.MustCompile(`(?m)^func ` + test + `\(`).MatchString(x.defined[dir]) {
			x.t.Errorf("%s: there is no %s in %s", what, test, dir)
		}
	}
}

// TestEveryCriterionHasATest: the names in the tables are those of tests.
func TestEveryCriterionHasATest(t *testing.T) {
	look := tests{t, make(map[string]string)}
	for _, p := range promises {
		look.check(p.what, p.tests)
	}
	for i, c := range criteria {
		look.check(fmt.Sprintf("%s (%s)", c.id, c.what), c.tests)
		want := fmt.Sprintf("E%d", i+1)
		if i >= 15 {
			want = fmt.Sprintf("C%d", i-14)
		}
		if c.id != want {
			t.Errorf("criterion %s is missing", want)
		}
	}
	if len(criteria) != 15+17 {
		t.Errorf("there are %d criteria", len(criteria))
	}
}

func testsIn(t *testing.T, dir string) string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	must(t, err)
	var all strings.Builder
	for _, f := range files {
		text, err := os.ReadFile(f)
		must(t, err)
		all.Write(text)
	}
	return all.String()
}

// TestLoadedLinksCarryNoPings: other frames say as much. A pong would tell of
// a ping.
func TestLoadedLinksCarryNoPings(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
		sn.delay.Store(int64(time.Millisecond))
		sa, sb := a.waitUp(1), b.waitUp(1)
		time.Sleep(5 * time.Second)
		if sa.RTT() == 0 || sb.RTT() == 0 {
			t.Fatal("no ping on idle links")
		}
		time.Sleep(10 * time.Millisecond)
		sa.rtt.Store(0)
		sb.rtt.Store(0)
		for i := range uint64(1000) {
			sendNumber(sa, wire.WriteAck, i+1, nil, nil)
			sendNumber(sb, wire.WriteAck, i+1, nil, nil)
			time.Sleep(100 * time.Millisecond)
		}
		if sa.RTT() != 0 || sb.RTT() != 0 {
			t.Error("a ping beside constant traffic")
		}
	})
}

// TestBulkOnASlowPathIsNoSilence: 100 MiB over a path that takes minutes for
// it, at a tick time of seconds.
func TestBulkOnASlowPathIsNoSilence(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
		s := a.waitUp(1)
		sn.delay.Store(int64(700 * time.Millisecond)) // a window of 256 KiB each
		time.Sleep(5 * time.Second)                   // the first ping that takes so long may be missed
		pings := func() int { return a.countEvents(cluster.PingMissed) + b.countEvents(cluster.PingMissed) }
		before := pings()
		start := time.Now()
		const n = 100
		for i := range uint64(n) {
			sendNumber(s, wire.Write, i+1, pattern(wire.MaxPayload), nil)
		}
		for len(b.frames(wire.Data)) < n && time.Since(start) < time.Hour {
			time.Sleep(time.Second)
		}
		if d := time.Since(start); d < time.Minute {
			t.Errorf("the path is not slow: it took %v", d)
		}
		checkOrder(t, b.frames(wire.Data), n)
		a.waitLog("up 1")
		b.waitLog("up 0")
		if missed := pings() - before; missed > 0 {
			t.Errorf("%d pings were missed", missed)
		}
	})
}

// TestStaggeredTickChangesDropNobody: each of several nodes is told by itself,
// at another time and with another transition; one never is, and one starts
// with the new value.
func TestStaggeredTickChangesDropNobody(t *testing.T) {
	for _, c := range [][2]time.Duration{{10 * time.Second, time.Second}, {time.Second, 10 * time.Second}} {
		synctest.Test(t, func(t *testing.T) {
			bed, sn := simBed(t, 5, func(i int, o *Options) {
				if o.Tick = c[0]; i == 4 {
					o.Tick = c[1]
				}
			})
			sn.delay.Store(int64(time.Millisecond))
			for i := range 4 {
				bed.start(i)
			}
			time.Sleep(2 * time.Second)
			for i, wait := range []time.Duration{3 * time.Second, 7 * time.Second, 5 * time.Second} {
				if res, _, err := bed.nodes[i].SetTick(c[1], []time.Duration{20, 15, 10}[i]*time.Second, true); err != nil || res != cluster.ChangeInitiated {
					t.Fatalf("tick set answers %v, %v", res, err)
				}
				time.Sleep(wait)
			}
			bed.start(4)
			time.Sleep(5 * time.Minute)
			for i, n := range bed.nodes {
				want := c[1]
				if i == 3 {
					want = c[0]
				}
				if got := n.GetTick(); got.Tick != want || got.Target != 0 {
					t.Errorf("node %s has %+v", n.name, got)
				}
				if n.countEvents(cluster.NodeDown) != 0 || n.countEvents(cluster.NodeUp) != 4 {
					t.Errorf("%v to %v: node %s saw %q", c[0], c[1], n.name, n.log)
				}
			}
			for _, n := range bed.nodes { // which the others see
				n.stop()
			}
		})
	}
}

// TestTheLowerIDNeverDials: a passive one makes no connection whatever, others
// none that says anything but for the knock. What it has to send waits for the
// other one to come back.
func TestTheLowerIDNeverDials(t *testing.T) {
	for _, passive := range []bool{false, true} {
		simPair(t, func(_ int, o *Options) { o.Passive = passive }, func(t *testing.T, a, b *node, sn *simNet) {
			s := a.waitUp(1)
			synctest.Wait() // its knock at the start is over
			path, back := [2]string{"beta", "alpha"}, [2]string{"alpha", "beta"}
			sn.mu.Lock()
			knocks := sn.spoken[back]
			sn.mu.Unlock()
			n := uint64(0)
			for range 20 {
				sn.stop("beta", "alpha") // who dials cannot
				sn.reset("alpha", "beta")
				for range 10 {
					n++
					sendNumber(s, wire.Write, n, pattern(100), nil)
					time.Sleep(100 * time.Millisecond)
				}
				if s.Queued(wire.Data) == 0 {
					t.Error("nothing is kept for a peer that will return")
				}
				sn.heal("beta", "alpha")
				time.Sleep(3 * time.Second)
			}
			checkOrder(t, b.frames(wire.Data), int(n))
			a.waitLog("up 1")
			sn.mu.Lock()
			defer sn.mu.Unlock()
			if sn.spoken[path] < 42 || sn.spoken[back] != knocks || passive && (sn.dials[back] != 0 || knocks != 0) {
				t.Errorf("passive %t: %d dials of the higher id; of the lower one %d, %d of them knocks, %d said anything",
					passive, sn.spoken[path], sn.dials[back], knocks, sn.spoken[back])
			}
		})
	}
}

// TestAPassiveNodeSeesTheEndOfItsPeer: without a probe, by the ends of both
// links.
func TestAPassiveNodeSeesTheEndOfItsPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, _ := simBed(t, 2, func(_ int, o *Options) { o.Passive = true })
		a := bed.start(0)
		b := bed.start(1)
		a.waitUp(1)
		b.waitUp(1)
		synctest.Wait() // a write that comes upon the closed connection would tell of a cut
		start := time.Now()
		crash(b)
		a.waitLog("up 1", "down connection-closed")
		if d := time.Since(start); d > 200*time.Millisecond {
			t.Errorf("it took %v", d)
		}
		a.stop()
	})
}

// TestAnIdleCutIsMendedAtOnce: there is no standby. Nothing is sent over the
// session all the while.
func TestAnIdleCutIsMendedAtOnce(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
		sn.delay.Store(int64(time.Millisecond))
		a.waitUp(1)
		b.waitUp(1)
		for round := range 20 {
			time.Sleep(time.Minute)
			sn.reset("alpha", "beta")
			time.Sleep(time.Second / 2)
			for _, n := range []*node{a, b} {
				i := n.Nodes()[0]
				if i.Data.State != "connected" || i.Meta.State != "connected" || n.countEvents(cluster.NodeRelinked) != 2*(round+1) {
					t.Fatalf("node %s: data %s, meta %s, back %d times", n.name, i.Data.State, i.Meta.State, n.countEvents(cluster.NodeRelinked))
				}
			}
		}
		a.waitLog("up 1")
		b.waitLog("up 0")
	})
}

// TestADisconnectedNodeStandsBy: neither side makes a connection until one is
// asked for, and then it comes at once.
func TestADisconnectedNodeStandsBy(t *testing.T) {
	for _, who := range []int{0, 1} { // 1 dials
		simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
			n, other := []*node{a, b}[who], []*node{a, b}[1-who]
			must(t, n.Disconnect(t.Context(), other.name, false))
			dials := func() int {
				sn.mu.Lock()
				defer sn.mu.Unlock()
				return sn.dials[[2]string{n.name, other.name}]
			}
			synctest.Wait() // what had begun before is over
			before := dials()
			time.Sleep(time.Hour)
			if d := dials() - before; d != 0 {
				t.Errorf("node %s, which is to stand by, made %d connections", n.name, d)
			}
			n.waitLog(fmt.Sprintf("up %d", 1-who), "down disconnect")
			other.waitLog(fmt.Sprintf("up %d", who), "down disconnect")
			if who == 0 { // the other one goes on to ask, and is told what would help
				why, err := other.Why(n.name)
				must(t, err)
				if want := fmt.Sprintf("run \"node connect %s\" on node %s", other.name, n.name); !strings.Contains(strings.Join(why.Because, "\n"), want) {
					t.Errorf("node %s is told %q, and not to %s", other.name, why.Because, want)
				}
			}
			start := time.Now()
			must(t, n.Connect(t.Context(), other.name))
			n.waitUp(2)
			other.waitUp(2)
			if d := time.Since(start); d > 100*time.Millisecond {
				t.Errorf("node %s came back only after %v", n.name, d)
			}
		})
	}
}

// TestAFalseProofDoesNotDisturbThePeerItNames: somebody without the secret
// dials in the name of a peer that is up, as that peer's next life would.
func TestAFalseProofDoesNotDisturbThePeerItNames(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
		dial := sn.dialer("stranger")
		for i := range 50 {
			c, err := dial(t.Context(), "", "alpha")
			must(t, err)
			h := helloOf(beta)
			h.Kind, h.Incarnation, h.Session = []wire.LinkKind{wire.KindData, wire.KindMeta, wire.KindKnock}[i%3], 1000+uint64(i), 2000+uint64(i)
			if _, err := dialHandshake(c, &h, "alpha", []byte("not the secret of this one")); err == nil {
				t.Fatal("a false proof is taken")
			}
			c.Close()
		}
		if r := a.Refusals(); len(r) != 1 || r[0].Code != "secret" || r[0].Node != "beta" {
			t.Errorf("refusals: %+v", r)
		}
		sendNumber(b.waitUp(1), wire.Write, 1, nil, nil)
		time.Sleep(10 * time.Second)
		checkOrder(t, a.frames(wire.Data), 1)
		a.waitLog("up 1")
		b.waitLog("up 0")
	})
}

// TestEventsOfANodeAlternate: nodeup, nodedown, nodeup, each with the number
// of its session, and the numbers grow.
func TestEventsOfANodeAlternate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, _ := simBed(t, 2, nil)
		a := bed.start(0)
		for i := range 20 {
			b := bed.start(1)
			a.waitUp(i + 1)
			if i%2 == 0 {
				crash(b)
			} else {
				b.stop()
			}
			a.wait("down", func() bool { return len(a.up) == 0 })
		}
		a.stop()
		if n := checkEvents(t, a); n != 40 {
			t.Errorf("%d events of 20 lives", n)
		}
	})
}

// checkEvents sees to it that what a node told of each peer is nodeup and
// nodedown by turns, of one session after the other, and counts them.
func checkEvents(t *testing.T, n *node) (count int) {
	t.Helper()
	n.mu.Lock()
	defer n.mu.Unlock()
	type peer struct {
		up      bool
		session uint64
	}
	seen := make(map[string]peer)
	for _, e := range n.events {
		p := seen[e.Node]
		switch e.Type {
		case cluster.NodeUp:
			if p.up || e.Session <= p.session {
				t.Errorf("node %s: %s is up twice (session %d, %d)", n.name, e.Node, p.session, e.Session)
			}
			seen[e.Node] = peer{true, e.Session}
		case cluster.NodeDown:
			if !p.up || e.Session != p.session || e.Reason == "" {
				t.Errorf("node %s: %s is down (session %d) after session %d, up %t", n.name, e.Node, e.Session, p.session, p.up)
			}
			seen[e.Node] = peer{false, e.Session}
		default:
			continue
		}
		count++
	}
	return count
}

// TestDisconnectAnswersAllWhoWait: for a node that is being dialled. All get
// the same answer at once.
func TestDisconnectAnswersAllWhoWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 2, nil)
		sn.stop("beta", "alpha") // the dial hangs
		b := bed.start(1)
		const waiters = 10
		got := make(chan error, waiters)
		for range waiters {
			go func() { got <- b.WaitUp(context.Background(), "alpha") }()
		}
		time.Sleep(time.Second)
		start := time.Now()
		must(t, b.Disconnect(t.Context(), "alpha", false))
		for range waiters {
			if err := <-got; !errors.Is(err, errDisconnected) {
				t.Errorf("told %v", err)
			}
		}
		if d := time.Since(start); d > 0 {
			t.Errorf("it took %v", d)
		}
		if err := b.WaitUp(t.Context(), "alpha"); !errors.Is(err, errDisconnected) {
			t.Errorf("afterwards: %v", err)
		}
		b.stop()
	})
}

// TestUrgentFramesOvertakeAFullQueue: what waits in the queue of the meta link
// is many times what the path takes at once; a ping and a hint go ahead.
func TestUrgentFramesOvertakeAFullQueue(t *testing.T) {
	simPair(t, nil, func(t *testing.T, a, b *node, sn *simNet) {
		s := a.waitUp(1)
		sn.delay.Store(int64(100 * time.Millisecond)) // a window of 256 KiB each
		const n = 100_000                             // 6 MiB
		var batch block.Batch
		for i := range uint64(n) {
			sendNumber(s, wire.WriteAck, i+1, nil, &batch)
		}
		batch.Finish()
		if !s.SendHint(&wire.NodeMsgBody{Kind: 1, Body: []byte("urgent")}) {
			t.Fatal("the hint is dropped")
		}
		// A hint has no number: it is recorded as 0.
		b.wait("the hint", func() bool { return slices.Contains(b.got[wire.Meta], 0) })
		at := slices.Index(b.frames(wire.Meta), 0)
		if at > n/4 {
			t.Errorf("the hint came after %d of %d frames", at, n)
		}
		b.wait("all", func() bool { return len(b.got[wire.Meta]) == n+1 })
		checkOrder(t, slices.Delete(b.frames(wire.Meta), at, at+1), n)
	})
}

// TestCloseWhileEverythingHangs: one peer takes nothing more, and its queue is
// full; one sends more than is released; dials to the others hang; strangers
// say nothing. The messenger ends at once all the same, and leaves nothing
// behind: a goroutine that is left fails the test.
func TestCloseWhileEverythingHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bed, sn := simBed(t, 8, func(_ int, o *Options) { o.MaxHeld, o.Tick = 2*dataSlab, time.Minute })
		for i := range 5 {
			sn.stop("node07", nodeName(i))
		}
		full, eager, n := bed.start(5), bed.start(6), bed.start(7)
		var held []*block.Buf
		n.record(func() {
			n.frame = func(_ *Session, f *wire.Frame, _ *block.Batch) {
				if f.Type == wire.Write {
					f.Buf.Retain()
					held = append(held, f.Buf)
				}
			}
		})
		n.wait("both", func() bool { return len(n.up) == 2 })
		eager.wait("node07", func() bool { return eager.up[7] != nil })
		toFull, fromEager := n.Session(5), eager.Session(7)
		sn.stop(n.name, full.name)
		for i := range uint64(100) {
			sendNumber(toFull, wire.Write, i+1, pattern(100_000), nil)
			sendNumber(fromEager, wire.Write, i+1, pattern(100_000), nil)
		}
		time.Sleep(time.Second)
		if i, _ := n.Node(eager.name); i.Data.Throttled == 0 {
			t.Error("the eager peer is not throttled")
		}
		var idle []net.Conn
		for range 5 {
			c, err := sn.dialer("scanner")(t.Context(), "", n.name)
			must(t, err)
			idle = append(idle, c)
		}
		start := time.Now()
		n.stop()
		if d := time.Since(start); d > time.Second {
			t.Errorf("it took %v", d)
		}
		for _, b := range held {
			b.Release()
		}
		for _, c := range idle {
			c.Close()
		}
		for _, o := range []*node{full, eager} {
			o.stop()
		}
	})
}
