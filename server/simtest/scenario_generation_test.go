package simtest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// splits is which nodes say that a peer's data has gone another way.
func (c *Cluster) splits() (names []string) {
	for _, n := range c.Nodes {
		if n.Dev == nil {
			continue
		}
		for _, p := range n.Dev.Status().Peers {
			if p.Decision.Action == replication.SplitBrain {
				names = append(names, n.Name+"-"+p.Node)
			}
		}
	}
	return names
}

func pairOf(quorum replication.QuorumPolicy) Options {
	o := three()
	o.Nodes, o.Quorum = 2, quorum
	return o
}

// TestScenario28OneSideWrote: both were primary while they were apart, and one
// wrote. There is no split brain: the other gets what it lacks, and no more.
func TestScenario28OneSideWrote(t *testing.T) {
	for _, second := range []bool{false, true} {
		bubble(t, pairOf(replication.QuorumPolicy{}), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', mib)
			time.Sleep(5 * time.Second) // a background flush makes it stable
			c.Cut(0, 1)
			c.mustWrite(t, 0, 2*mib, 'b', 64<<10)
			if second {
				c.mustPromote(t, 1)
				if err := c.Nodes[1].Dev.Demote(timeout(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
			}
			c.Heal(0, 1)
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHold(t, 2*mib, 'b')
			if n := c.resynced(); n == 0 || n > 128<<10 {
				t.Errorf("%d bytes were resynced", n)
			}
			if s := c.splits(); len(s) > 0 {
				t.Errorf("split brain: %v", s)
			}
		})
	}
}

// TestScenario29AThirdNodeBridges: two nodes do not see each other, and a third
// sees both. The primary dies and another takes over; the links come back in
// every order. Nobody takes that for a split brain.
func TestScenario29AThirdNodeBridges(t *testing.T) {
	links := [][2]int{{0, 1}, {0, 2}, {1, 2}}
	for turn := range 3 {
		for next := 1; next < 3; next++ {
			bubble(t, three(), func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				c.Cut(0, 1)
				c.mustWrite(t, 0, 0, 'a', 256<<10)
				c.Nodes[0].Kill()
				c.mustPromote(t, next)
				c.mustWrite(t, next, mib, 'b', 256<<10)
				for _, l := range links {
					c.Cut(l[0], l[1])
				}
				c.mustStart(t, 0)
				for i := range links {
					l := links[(i+turn)%3]
					c.Heal(l[0], l[1])
					time.Sleep(2 * time.Second)
					if s := c.splits(); len(s) > 0 {
						t.Fatalf("split brain: %v\n%s", s, c.Describe())
					}
				}
				c.mustAllSync(t)
				c.mustEqual(t)
				c.mustHold(t, 0, 'a')
				c.mustHold(t, mib, 'b')
			})
		}
	}
}

// TestScenario30AfterManyGenerations a node comes back: it is the target, and
// gets what changed since it left.
func TestScenario30AfterManyGenerations(t *testing.T) {
	for _, rounds := range []int{2, 5, 40} { // 32 are remembered
		o := three()
		o.Size, o.Extents, o.ExtentBytes = 32*mib, 32, 64<<10
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'x', 24*mib)
			c.mustFlush(t, 0)
			c.Isolate(2)
			p := 0
			for i := range rounds {
				c.mustWrite(t, p, int64(i)*4096, byte('a'+i%20), 4096)
				if err := c.Nodes[p].Dev.Demote(timeout(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
				time.Sleep(time.Second)
				p = 1 - p
				c.mustPromote(t, p)
			}
			before := c.resynced()
			c.Rejoin(2)
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHold(t, 20*mib, 'x')
			if n := c.resynced() - before; n > 4*mib {
				t.Errorf("after %d generations %d bytes were resynced\n%s", rounds, n, c.Describe())
			}
		})
	}
}

// TestScenario30ByWayOfAThird: a node catches up with another, in the absence of
// the primary to come. That one's bitmap of it is of before, and will do.
func TestScenario30ByWayOfAThird(t *testing.T) {
	o := three()
	o.Size = 32 * mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		like := func(n int) func(replication.DiskState) bool {
			return func(disk replication.DiskState) bool {
				return disk == replication.UpToDate && c.Nodes[2].Dev.Status().Gens.Current == c.Nodes[n].Dev.Status().Gens.Current
			}
		}
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'x', 24*mib)
		c.mustFlush(t, 0)
		c.Isolate(2)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.mustDemote(t, 0)
		c.Heal(1, 2)
		c.until(t, 2, "caught up", like(1))
		c.Cut(1, 2)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 8192, 'b', 4096)
		before := c.resynced()
		c.Heal(0, 2)
		c.until(t, 2, "caught up", like(0))
		if n := c.resynced() - before; n > mib {
			t.Errorf("%d bytes were resynced\n%s", n, c.Describe())
		}
		c.Heal(1, 2)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 0, 'a')
		c.mustHold(t, 8192, 'b')
	})
}

// setMark marks a range in the metadata of a node that is down.
func (n *Node) setMark(t *testing.T, peer int, e block.Extent) {
	t.Helper()
	m, err := store.OpenMetaFile(n.Meta.File(), "meta", store.MetaOptions{Device: "r0", NodeID: n.ID})
	if err != nil {
		t.Fatal(err)
	}
	if m.Unclean() {
		if _, err := m.Recover(); err != nil {
			t.Fatal(err)
		}
	}
	m.Bitmap(peer).Set(e)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestScenario31EqualGenerationsWithMarks: both sides are of one generation,
// and either or both have marks left. They are never dropped without a resync.
func TestScenario31EqualGenerationsWithMarks(t *testing.T) {
	for _, who := range []replication.NodeSet{replication.Of(0), replication.Of(1), replication.Of(0, 1)} {
		for _, quorum := range []replication.QuorumPolicy{majority(), {}} {
			t.Run(fmt.Sprint(who, quorum), func(t *testing.T) {
				bubble(t, pairOf(quorum), func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, 0, 'a', mib)
					if err := c.Nodes[0].Dev.Demote(timeout(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
					for _, n := range c.Nodes {
						if err := n.Stop(timeout(t, time.Minute)); err != nil {
							t.Fatal(err)
						}
					}
					at := block.Extent{Off: 64 << 10, Len: 8192}
					for id := range who.All() {
						c.Nodes[id].setMark(t, 1-id, at)
					}
					if _, err := c.Nodes[1].Disk.Disk("hand").WriteAt([]byte("differs"), at.Off); err != nil {
						t.Fatal(err)
					}
					c.mustStart(t, 0, 1)
					c.mustAllSync(t)
					c.mustEqual(t)
				})
			})
		}
	}
}

// TestScenario32MetadataOfSomethingElse: cloned, swapped, of another cluster.
func TestScenario32MetadataOfSomethingElse(t *testing.T) {
	t.Run("another node's", func(t *testing.T) {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.Nodes[0].Kill()
			c.Nodes[1].Kill()
			a, b := c.Nodes[0], c.Nodes[1]
			a.Disk, a.Meta, b.Disk, b.Meta = b.Disk, b.Meta, a.Disk, a.Meta
			for _, n := range []*Node{a, b} {
				if err := n.Start(); err == nil || !strings.Contains(err.Error(), "node id") {
					t.Errorf("%s started with what belongs to another: %v", n.Name, err)
				}
			}
			a.Disk, a.Meta, b.Disk, b.Meta = b.Disk, b.Meta, a.Disk, a.Meta
			c.mustStart(t, 0, 1)
			c.mustAllSync(t)
		})
	})
	for name, quorum := range map[string]replication.QuorumPolicy{"another cluster's": {}, "another cluster's, with quorum": majority()} {
		t.Run(name, func(t *testing.T) { anotherClusters(t, quorum) })
	}
}

// anotherClusters gives a node what belongs to a device of the same name that was
// made elsewhere, with more history of its own or with less.
func anotherClusters(t *testing.T, quorum replication.QuorumPolicy) {
	for _, more := range []int{0, 3} {
		o := three()
		o.Quorum = quorum
		var disk, meta *storetest.Image
		fill := func(t *testing.T, c *Cluster, with byte) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, with, mib)
			if err := c.Nodes[0].Dev.Demote(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
		}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			fill(t, c, 'a')
			for range more { // generations later than any of the cluster it comes to
				c.Nodes[2].Kill()
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, 0, 'a', 4096)
				c.mustStart(t, 2)
				c.mustAllSync(t)
				if err := c.Nodes[0].Dev.Demote(timeout(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
			}
			c.Nodes[1].Kill()
			disk, meta = c.Nodes[1].Disk.Fork(), c.Nodes[1].Meta.Fork()
		})
		bubble(t, o, func(t *testing.T, c *Cluster) {
			fill(t, c, 'b')
			c.Nodes[1].Kill()
			c.Nodes[1].Disk, c.Nodes[1].Meta = disk, meta
			c.mustStart(t, 1)
			time.Sleep(10 * time.Second)
			st := c.Nodes[1].Dev.Status()
			for _, p := range st.Peers {
				if p.Refused == "" || p.Decision.Rule != replication.RuleOrigin {
					t.Errorf("with %s: %v", p.Node, p.Decision)
				}
			}
			if why := fmt.Sprint(c.Nodes[1].Dev.Why()); !strings.Contains(why, "not of one device") || !strings.Contains(why, "--discard-local") {
				t.Errorf("why: %s", why)
			}
			var got [1]byte
			if disk.Peek(got[:], 0); got[0] != 'a' {
				t.Error("data of another cluster was overwritten unasked")
			}
			c.mustPromote(t, 0)
			if err := c.Nodes[1].Dev.Resolve(timeout(t, time.Minute), true); err != nil {
				t.Fatal(err)
			}
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHold(t, 0, 'b')
		})
	}
}

// TestScenario33AReplacedDisk with the node's old id is filled as a whole; what
// the others know of each other stays.
func TestScenario33AReplacedDisk(t *testing.T) {
	o := three()
	o.Nodes, o.Size = 4, 16*mib
	o.Extents, o.ExtentBytes = 32, 64<<10
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 8*mib)
		c.mustFlush(t, 0)
		c.Isolate(3)
		c.mustWrite(t, 0, 0, 'b', 64<<10)
		c.Nodes[2].Kill()
		c.Nodes[2].EmptyDisk(o.Size)
		c.mustStart(t, 2)
		for range 600 {
			if c.Nodes[2].Dev.Status().Disk == replication.UpToDate {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		marked := c.Nodes[0].Dev.Status().Peers[2].OutOfSync
		if dec := c.Nodes[0].Dev.Status().Peers[1].Decision; dec.Action != replication.SourceFull || marked != 64<<10 {
			t.Errorf("the new disk: %v; of the one that is away %d bytes are marked\n%s", dec, marked, c.Describe())
		}
		before := c.resynced()
		c.Rejoin(3)
		c.mustAllSync(t)
		c.mustEqual(t)
		if n := c.resynced() - before; n > 4*mib {
			t.Errorf("%d bytes were resynced for 64 KiB", n)
		}
	})
}

// TestScenario34AMixtureIsNotPromoted, nor read from; and nobody is promoted
// without quorum, but by force.
func TestScenario34AMixtureIsNotPromoted(t *testing.T) {
	bubble(t, pairOf(replication.QuorumPolicy{}), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Cut(0, 1)
		c.mustWrite(t, 0, 0, 'b', 3*mib)
		c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 300 * time.Millisecond})
		c.Heal(0, 1)
		c.until(t, 1, "it is being resynced", is(replication.Inconsistent))
		c.Nodes[0].Kill()
		if err := c.Nodes[1].Dev.Promote(timeout(t, 5*time.Second), false); err == nil {
			t.Fatalf("a mixture was promoted\n%s", c.Describe())
		}
		if c.Nodes[1].Do(timeout(t, 5*time.Second), block.Read, 0, 0, make([]byte, 4096), 0) == nil {
			t.Fatalf("a mixture is read from\n%s", c.Describe())
		}
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 2*mib, 'b')
	})
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Nodes[0].Kill()
		c.Nodes[1].Kill()
		if err := c.Nodes[2].Dev.Promote(timeout(t, 5*time.Second), false); err == nil {
			t.Fatal("promoted without quorum")
		}
		if err := c.Nodes[2].Dev.Promote(timeout(t, 5*time.Second), true); err != nil {
			t.Fatalf("by force: %v", err)
		}
	})
}

// reconfigured opens a node's device again with another configuration.
func (n *Node) reconfigured(t *testing.T, change func(*device.Config)) error {
	t.Helper()
	cfg := n.Config()
	change(&cfg)
	dev, err := n.assemble(device.Options{Config: cfg, Log: n.c.opts.Log}, n.Disk, n.Meta)
	if err == nil {
		dev.Abandon()
	}
	return err
}

// TestScenario32AnotherDevicesMetadata is refused, with what to do.
func TestScenario32AnotherDevicesMetadata(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		if err := c.Nodes[1].Stop(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		err := c.Nodes[1].reconfigured(t, func(to *device.Config) { to.Name = "r1" })
		if err == nil || !strings.Contains(err.Error(), "belongs to device") {
			t.Fatalf("opened as another device: %v", err)
		}
		c.mustStart(t, 1)
		c.mustAllSync(t)
	})
}

// TestScenario33AReplacedDiskHasNoSay: it has no memory of what was promised to
// its predecessor. With a stale disk it makes no majority; with one that has the
// newest data it does where every former majority had that, or another in reach.
func TestScenario33AReplacedDiskHasNoSay(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Isolate(2)
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.Nodes[0].Kill()
		c.Nodes[1].Kill()
		n := c.Nodes[1]
		n.EmptyDisk(4 * mib)
		c.mustStart(t, 1)
		c.Rejoin(2)
		c.mustBeWithout(t, 1, 2)
		c.Nodes[1].Kill()
		c.Nodes[2].Kill()
		c.mustStart(t, 1, 2)
		c.mustBeWithout(t, 1, 2)
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustHold(t, 0, 'b')
		// Now it has a memory of its own.
		c.Nodes[0].Kill()
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 0, 'c', 4096)
	})
	bubble(t, nodes(2), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		n := c.Nodes[1]
		n.Kill()
		n.EmptyDisk(4 * mib)
		c.mustStart(t, 1)
		c.mustAllSync(t)
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.mustEqual(t)
	})
}

// TestScenario33TwoOfOneOldGeneration: of two disks of one generation, a source
// kept marks against the one only. Once that is being resynced its marks do not
// do for the other any more.
func TestScenario33TwoOfOneOldGeneration(t *testing.T) {
	o := three()
	o.Size = 80 * mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Isolate(2)
		for off := int64(0); off < 64*mib; off += 4 * mib {
			c.mustWrite(t, 0, off, 'b', 4*mib)
		}
		c.mustFlush(t, 0)
		c.Nodes[0].Kill()
		n := c.Nodes[1]
		n.Kill()
		n.EmptyDisk(o.Size)
		c.mustStart(t, 1)
		c.Rejoin(2)
		c.until(t, 1, "it has what node 2 has", func(replication.DiskState) bool {
			return c.Nodes[1].Dev.Status().Peers[1].Repl == replication.Established
		})
		c.Isolate(1)
		c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 50 * time.Millisecond})
		c.mustStart(t, 0)
		c.until(t, 0, "half of node 2's resync is confirmed", func(replication.DiskState) bool {
			p := c.Nodes[0].Dev.Status().Peers[1]
			return p.Repl == replication.SyncSource && p.OutOfSync < 60*mib
		})
		c.Rejoin(1)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 0, 'b')
	})
}

// TestScenario33TheSourceOfANewDiskDiesAtOnce: a new disk that is about to get
// everything bears its source's generation, of which it has nothing. The next
// source is in that generation too, and never knew the new disk.
func TestScenario33TheSourceOfANewDiskDiesAtOnce(t *testing.T) {
	o := three()
	o.Delay = 20 * time.Millisecond
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', mib)
		c.mustFlush(t, 0)
		n := c.Nodes[1]
		n.Kill()
		n.EmptyDisk(4 * mib)
		c.Cut(1, 2)
		c.mustStart(t, 1)
		for range 10000 {
			if n.Dev.Status().Disk == replication.Inconsistent {
				break
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(15 * time.Millisecond) // its source is asked to begin, and has not heard
		c.Nodes[0].Kill()
		c.Heal(1, 2)
		c.until(t, 1, "it is resynced", is(replication.UpToDate))
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 1, 'a')
	})
}
