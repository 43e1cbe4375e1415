package simtest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestFencing goes through what the handler can say when a primary of two nodes
// loses its peer: with the peer outdated the primary has quorum and goes on;
// without, its client waits until the peer is back.
func TestFencing(t *testing.T) {
	for _, tc := range []struct {
		status int
		quorum replication.QuorumPolicy
		goesOn bool
		stays  bool // primary
	}{
		{3, majority(), true, true}, {4, majority(), true, true}, {5, majority(), true, true}, {7, majority(), true, true},
		{4, replication.QuorumPolicy{}, true, true}, {5, replication.QuorumPolicy{}, true, true},
		{6, replication.QuorumPolicy{}, false, false},
		{0, majority(), false, true}, {1, replication.QuorumPolicy{}, false, true},
	} {
		o := three()
		o.Nodes, o.Quorum = 2, tc.quorum
		o.Fence = func(int, string) int { time.Sleep(3 * time.Second); return tc.status }
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.settle(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 8192)
			c.Nodes[1].Kill()
			data := bytes.Repeat([]byte{'b'}, 4096)
			if err := c.Nodes[0].Do(timeout(t, time.Second), block.Write, 0, 0, data, 0); err != ErrUnanswered {
				t.Fatalf("status %d: answered before the peer was fenced: %v", tc.status, err)
			}
			err := c.Nodes[0].Do(timeout(t, 20*time.Second), block.Write, 0, 4096, data, 0)
			if (err == nil) != tc.goesOn {
				t.Fatalf("status %d, quorum %v: %v\n%s", tc.status, tc.quorum, err, c.Describe())
			}
			if got := c.Nodes[0].Dev.Status().Role == replication.Primary; got != tc.stays {
				t.Fatalf("status %d: primary %v, want %v", tc.status, got, tc.stays)
			}
			if err := c.Nodes[1].Start(); err != nil {
				t.Fatal(err)
			}
			c.mustAllSync(t)
			if tc.stays {
				c.mustWrite(t, 0, 8192, 'c', 4096)
			}
			c.settle(t)
			c.mustEqual(t)
		})
	}
}

// TestFencePeerChangesWhileItRuns: a handler that is given while the device runs
// is asked from then on; one that could not fence a peer is replaced by one that
// can, or taken away, and the client that waits goes on.
func TestFencePeerChangesWhileItRuns(t *testing.T) {
	for name, mend := range map[string][]string{"replaced": {"good"}, "taken away": nil} {
		t.Run(name, func(t *testing.T) {
			o := three()
			o.Nodes, o.Quorum = 2, replication.QuorumPolicy{}
			status := 1
			o.Fence = func(int, string) int { return status }
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.settle(t)
				c.mustPromote(t, 0)
				n := c.Nodes[0]
				n.mustReconfigure(t, func(to *device.Config) { to.FencePeer = nil })
				c.Nodes[1].Kill()
				c.mustWrite(t, 0, 0, 'a', 4096) // nobody is asked
				if err := c.Nodes[1].Start(); err != nil {
					t.Fatal(err)
				}
				c.settle(t)
				n.mustReconfigure(t, func(to *device.Config) { to.FencePeer = []string{"bad"} })
				c.Nodes[1].Kill()
				data := bytes.Repeat([]byte{'b'}, 4096)
				if err := n.Do(timeout(t, 10*time.Second), block.Write, 0, 4096, data, 0); err != ErrUnanswered {
					t.Fatalf("answered though the peer was not fenced: %v", err)
				}
				status = 4
				n.mustReconfigure(t, func(to *device.Config) { to.FencePeer = mend })
				c.mustWrite(t, 0, 8192, 'c', 4096)
				if err := c.Nodes[1].Start(); err != nil {
					t.Fatal(err)
				}
				c.settle(t)
				c.mustEqual(t)
			})
		})
	}
}

// TestFencingBeforeAPromotion goes through what the handler can say when a node is to be
// promoted that cannot tell whether its peer, out of its reach, has gone on. Where
// there is a quorum one that has left in order is known not to, and nobody is asked.
func TestFencingBeforeAPromotion(t *testing.T) {
	for _, quorum := range []replication.QuorumPolicy{{}, majority()} {
		for status, promoted := range map[int]bool{0: false, 1: false, 3: true, 4: true, 5: false, 6: false, 7: true} {
			t.Run(fmt.Sprintf("%v: %d", quorum, status), func(t *testing.T) {
				asked := 0
				o := three()
				o.Nodes, o.Quorum = 2, quorum
				o.Fence = func(node int, peer string) int { asked++; return status }
				bubble(t, o, func(t *testing.T, c *Cluster) {
					c.settle(t)
					c.Nodes[0].Kill()
					if err := c.Nodes[1].Dev.Promote(timeout(t, 10*time.Second), false); (err == nil) != promoted || asked != 1 {
						t.Fatalf("asked %d times: %v\n%s", asked, err, c.Describe())
					}
					if promoted {
						c.mustWrite(t, 1, 0, 'a', 4096)
					}
					if err := c.Nodes[0].Start(); err != nil {
						t.Fatal(err)
					}
					c.mustAllSync(t)
					c.mustPromote(t, 1)
					if err := c.Nodes[1].Dev.Demote(timeout(t, 10*time.Second)); err != nil {
						t.Fatal(err)
					}
					if quorum.Kind == replication.QuorumOff {
						return // nobody counts the votes of those who leave
					}
					asked = 0
					if err := c.Nodes[0].Stop(timeout(t, 10*time.Second)); err != nil {
						t.Fatal(err)
					}
					c.mustPromote(t, 1)
					if asked != 0 {
						t.Errorf("the handler was asked about a node that has left in order\n%s", c.Describe())
					}
				})
			})
		}
	}
}

// TestALostPrimaryWithoutADiskIsFenced: it goes on with any disk that has what it wrote. Who
// is promoted without it needs the handler's word; one that was no primary is in nobody's way.
func TestALostPrimaryWithoutADiskIsFenced(t *testing.T) {
	for _, primary := range []bool{true, false} {
		var asked []string
		o := three()
		o.Diskless, o.Quorum = replication.Of(2), replication.QuorumPolicy{}
		o.Fence = func(node int, peer string) int {
			asked = append(asked, fmt.Sprint(node, " of ", peer))
			return map[int]int{0: 6, 1: 6, 2: 4}[node]
		}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.settle(t)
			if primary {
				c.mustPromote(t, 2)
				c.mustWrite(t, 2, 0, 'a', 4096)
				if err := c.Nodes[1].Dev.Detach(timeout(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
			}
			c.Isolate(2)
			err := c.Nodes[0].Dev.Promote(timeout(t, 10*time.Second), false)
			if primary != (err != nil) || primary != slices.Contains(asked, "0 of n2") {
				t.Fatalf("promoted beside a node without a disk, primary %t: %v, asked %q\n%s", primary, err, asked, c.Describe())
			}
			if !primary {
				return
			}
			c.Rejoin(2)
			c.mustWrite(t, 2, 4096, 'b', 4096)
			if err := c.Nodes[1].Dev.Attach(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			c.mustAllSync(t)
			c.settle(t)
			c.mustEqual(t)
			c.mustHoldDisks(t, 0, 'a')
			if c.spoken() > 0 {
				t.Errorf("a split brain\n%s", c.Describe())
			}
		})
	}
}

// TestAHandlerMayTakeLongerThanAPromotion: what it has come to stands for the next.
func TestAHandlerMayTakeLongerThanAPromotion(t *testing.T) {
	asked := 0
	o := three()
	o.Nodes, o.Quorum = 2, replication.QuorumPolicy{}
	o.Fence = func(int, string) int { asked++; time.Sleep(time.Minute); return 7 }
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.Nodes[0].Kill()
		for range 2 {
			if err := c.Nodes[1].Dev.Promote(timeout(t, 5*time.Second), false); err == nil || !strings.Contains(err.Error(), "handler is at work") {
				t.Fatalf("%v\n%s", err, c.Describe())
			}
		}
		time.Sleep(time.Minute)
		c.mustPromote(t, 1)
		if asked != 1 {
			t.Errorf("the handler was asked %d times", asked)
		}
	})
}

// TestFencingWhoWasNotInSync: where no quorum decides, a lost peer could be promoted
// unless it has noted that it is behind. Until the handler has answered nothing is
// written or read.
func TestFencingWhoWasNotInSync(t *testing.T) {
	detach := func(t *testing.T, c *Cluster) {
		if err := c.Nodes[1].Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	attach := func(c *Cluster) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = c.Nodes[1].Dev.Attach(ctx)
	}
	for name, tc := range map[string]struct {
		lose  func(t *testing.T, c *Cluster)
		asked bool
	}{
		"its disk is detached": {func(t *testing.T, c *Cluster) {
			detach(t, c)
			c.mustWrite(t, 0, 0, 'b', 4096)
			c.Isolate(1)
		}, true},
		"a handshake is under way": {func(t *testing.T, c *Cluster) {
			detach(t, c)
			go attach(c)
			for c.Nodes[0].Dev.Status().Peers[0].Connected {
				time.Sleep(100 * time.Microsecond)
			}
			c.Isolate(1)
		}, true},
		"a handshake does not end": {func(t *testing.T, c *Cluster) {
			detach(t, c)
			c.Stall(0, 1, wire.Meta)
			go attach(c)
			time.Sleep(6 * time.Second)
		}, true},
		"it is being resynced": {func(t *testing.T, c *Cluster) {
			detach(t, c)
			for off := int64(0); off < 4*mib; off += mib {
				c.mustWrite(t, 0, off, 'b', mib)
			}
			go attach(c)
			for c.Nodes[0].Dev.Status().Peers[0].Repl != replication.SyncSource {
				time.Sleep(100 * time.Microsecond)
			}
			c.Isolate(1)
		}, false},
	} {
		t.Run(name, func(t *testing.T) {
			var asked atomic.Int32
			o := three()
			o.Nodes, o.Quorum, o.Delay = 2, replication.QuorumPolicy{}, 2*time.Millisecond
			o.Fence = func(int, string) int { asked.Add(1); time.Sleep(30 * time.Second); return 4 }
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.settle(t)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 0, 'a', 8192)
				tc.lose(t, c)
				for _, op := range []block.Op{block.Write, block.Read} {
					err := c.Nodes[0].Do(timeout(t, time.Second), op, 0, 0, make([]byte, 4096), 0)
					if (err == nil) == tc.asked || asked.Load() > 0 != tc.asked {
						t.Fatalf("%v: %v, the handler was asked %d times\n%s", op, err, asked.Load(), c.Describe())
					}
				}
				if got := c.Nodes[0].Dev.Status(); got.Suspended != tc.asked || len(got.Unfenced) > 0 != tc.asked {
					t.Errorf("suspended %v, unfenced %v", got.Suspended, got.Unfenced)
				}
				time.Sleep(time.Minute)
				c.mustWrite(t, 0, 0, 'c', 8192)
				c.Flow(0, 1, wire.Meta)
				c.Rejoin(1)
				if c.Nodes[1].Dev.Status().Detached {
					if err := c.Nodes[1].Dev.Attach(timeout(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
				}
				c.mustAllSync(t)
				c.settle(t)
				c.mustEqual(t)
			})
		})
	}
}

// TestADetachedDiskIsNotPromotedByTheHandlersWord: the others have gone on without it.
func TestADetachedDiskIsNotPromotedByTheHandlersWord(t *testing.T) {
	o := three()
	o.Nodes, o.Quorum = 2, replication.QuorumPolicy{}
	o.Fence = func(node int, _ string) int { return 4 }
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		if err := c.Nodes[1].Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Nodes[0].Kill()
		_ = c.Nodes[1].Dev.Attach(timeout(t, time.Second))
		if err := c.Nodes[1].Dev.Promote(timeout(t, 10*time.Second), false); err == nil {
			t.Fatalf("a disk was promoted that lacks what was answered\n%s", c.Describe())
		}
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}

// TestTwoPrimariesUntilTheHandlerAnswers: who is about to hear from the handler that
// another is primary has answered nothing, and is in no split brain. If the handler fails
// there is one.
func TestTwoPrimariesUntilTheHandlerAnswers(t *testing.T) {
	for status, split := range map[int]bool{6: false, 1: true} {
		for _, slow := range []time.Duration{time.Second, 20 * time.Second} {
			t.Run(fmt.Sprintf("%d after %v", status, slow), func(t *testing.T) {
				o := three()
				o.Nodes, o.Quorum = 2, replication.QuorumPolicy{}
				o.Fence = func(node int, _ string) int {
					if node == 1 {
						return 4
					}
					time.Sleep(slow)
					return status
				}
				bubble(t, o, func(t *testing.T, c *Cluster) {
					c.settle(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, 0, 'a', 4096)
					c.Isolate(1)
					if err := c.Nodes[0].Do(timeout(t, 100*time.Millisecond), block.Write, 0, 0, make([]byte, 4096), 0); err != ErrUnanswered {
						t.Fatal(err)
					}
					c.mustPromote(t, 1)
					c.mustWrite(t, 1, 0, 'b', 4096)
					c.Rejoin(1)
					time.Sleep(slow + 10*time.Second)
					if got := c.Nodes[0].told("split-brain", ""); got > 0 != split {
						t.Errorf("%d split brains\n%s", got, c.Describe())
					}
					if split {
						return
					}
					c.mustAllSync(t)
					c.mustWrite(t, 1, 0, 'c', 4096)
					c.settle(t)
					c.mustEqual(t)
				})
			})
		}
	}
}

// TestADiskIsNotOutdatedByThePrimaryThatItServes: told by the handler that its peer is
// primary, it is what that primary, which has no disk, has.
func TestADiskIsNotOutdatedByThePrimaryThatItServes(t *testing.T) {
	o := three()
	o.Nodes, o.Quorum = 2, replication.QuorumPolicy{}
	o.Fence = func(node int, _ string) int { return []int{4, 6}[node] }
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		if err := c.Nodes[0].Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Isolate(1)
		if err := c.Nodes[1].Dev.Promote(timeout(t, time.Second), false); err == nil {
			t.Fatal("promoted beside a primary")
		}
		c.Rejoin(1)
		c.mustWrite(t, 0, 4096, 'b', 4096)
		if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustAllSync(t)
		c.settle(t)
		c.mustEqual(t)
	})
}
