package simtest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// rotten is where the tests' bad blocks are: two in one piece, one in another,
// one that a piece of a resync ends with.
func rotten() (es []block.Extent) {
	for _, off := range []int64{mib + 8192, mib + 20<<10, mib + 300<<10, mib + 508<<10} {
		es = append(es, block.Extent{Off: off, Len: block.Unit})
	}
	return es
}

func (n *Node) spoil() {
	for _, e := range rotten() {
		n.Disk.Spoil(e)
	}
}

// mustBeHealed waits until no disk has a bad block, and all hold what they should.
func (c *Cluster) mustBeHealed(t *testing.T, fill byte) {
	t.Helper()
	for range 600 {
		if c.bad() == 0 {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	if c.bad() > 0 {
		t.Fatalf("%d blocks are bad still\n%s", c.bad(), c.Describe())
	}
	c.mustEqual(t)
	for _, n := range c.Nodes {
		if n.Disk == nil {
			continue
		}
		p := make([]byte, mib)
		n.Disk.Peek(p, mib)
		if i := bytes.IndexFunc(p, func(r rune) bool { return r != rune(fill) }); i >= 0 {
			t.Fatalf("%s holds %q at %d", n.Name, p[i:i+4], mib+i)
		}
	}
}

// bad is how many blocks of the cluster cannot be read.
func (c *Cluster) bad() (bad int) {
	for _, n := range c.Nodes {
		if n.Disk != nil {
			bad += len(n.Disk.Bad())
		}
	}
	return bad
}

// healers is every way to come upon a bad block, on every kind of node.
var healers = map[string]struct {
	nodes    int
	diskless replication.NodeSet
	at       int // whose blocks are bad
	find     func(t *testing.T, c *Cluster)
}{
	"a client of the primary":                   {3, 0, 0, func(t *testing.T, c *Cluster) { c.mustRead(t, 0, mib, bytes.Repeat([]byte{'a'}, mib)) }},
	"a client of two nodes":                     {2, 0, 0, func(t *testing.T, c *Cluster) { c.mustRead(t, 0, mib, bytes.Repeat([]byte{'a'}, mib)) }},
	"a verify led by the primary, of its own":   {3, 0, 0, func(t *testing.T, c *Cluster) { c.compares(t, 0) }},
	"a verify led by the primary, of another":   {3, 0, 1, func(t *testing.T, c *Cluster) { c.compares(t, 0) }},
	"a verify led by a replica, of its own":     {3, 0, 1, func(t *testing.T, c *Cluster) { c.compares(t, 1) }},
	"a verify led by a replica, of the primary": {3, 0, 0, func(t *testing.T, c *Cluster) { c.compares(t, 1) }},
	"a verify of two nodes":                     {2, 0, 1, func(t *testing.T, c *Cluster) { c.compares(t, 1) }},
	"a verify without a primary, of the leader": {3, 0, 1, func(t *testing.T, c *Cluster) {
		c.mustDemote(t, 0)
		time.Sleep(time.Second)
		c.compares(t, 1)
	}},
	"a verify without a primary, of the follower": {3, 0, 1, func(t *testing.T, c *Cluster) {
		c.mustDemote(t, 0)
		time.Sleep(time.Second)
		c.compares(t, 2)
	}},
	"a verify without a primary, of who was it": {3, 0, 0, func(t *testing.T, c *Cluster) {
		c.mustDemote(t, 0)
		time.Sleep(time.Second)
		c.compares(t, 0)
	}},
	"a verify without a primary, of two nodes": {2, 0, 1, func(t *testing.T, c *Cluster) {
		c.mustDemote(t, 0)
		time.Sleep(time.Second)
		c.compares(t, 1)
	}},
	"a verify after a restart of all": {3, 0, 1, func(t *testing.T, c *Cluster) {
		c.mustDemote(t, 0)
		c.mustStop(t, 2, 1, 0)
		c.mustStart(t, 0, 1, 2)
		c.mustAllSync(t)
		c.compares(t, 2)
	}},
	"a verify after the primary was lost": {4, 0, 1, func(t *testing.T, c *Cluster) {
		c.mustWrite(t, 0, mib, 'a', mib)
		c.Nodes[0].Kill()
		time.Sleep(10 * time.Second) // the others have evened out
		c.Nodes[1].spoil()
		c.compares(t, 2)
		c.mustStart(t, 0)
		c.mustAllSync(t)
	}},
	"survivors that even out": {3, 0, 1, func(t *testing.T, c *Cluster) {
		c.Nodes[2].Disk.Spoil(block.Extent{Off: mib + 800<<10, Len: 4096}) // either may be the source
		c.Nodes[0].Kill()
		c.until(t, 1, "evened out", is(replication.UpToDate))
		c.until(t, 2, "evened out", is(replication.UpToDate))
		time.Sleep(time.Minute)
		c.compares(t, 2)
		c.mustStart(t, 0)
		c.mustAllSync(t)
	}},
	"a diskless primary": {3, replication.Of(0), 1, func(t *testing.T, c *Cluster) {
		c.mustRead(t, 0, mib, bytes.Repeat([]byte{'a'}, mib))
	}},
	"a resync from the primary": {3, 0, 0, func(t *testing.T, c *Cluster) {
		c.missed(t, 2)
		c.Rejoin(2)
	}},
	"a resync while the primary is diskless": {4, replication.Of(0), 1, func(t *testing.T, c *Cluster) {
		c.missed(t, 3)
		c.Heal(1, 3)
		c.Heal(0, 3)
		time.Sleep(5 * time.Second)
		c.Rejoin(3)
	}},
	"a resync without a primary": {4, 0, 1, func(t *testing.T, c *Cluster) {
		c.missed(t, 3)
		c.mustDemote(t, 0)
		c.Heal(1, 3)
		time.Sleep(10 * time.Second)
		c.Rejoin(3)
	}},
}

// compares runs verifies until one has compared everything, and found no
// difference.
func (c *Cluster) compares(t *testing.T, n int) {
	t.Helper()
	for peer, v := range c.verified(t, n, "") {
		if v != nil && (v.Differ != 0 || v.Stopped != "" || v.Skipped != 0) {
			t.Errorf("n%d with %s: %+v\n%s", n, peer, v, c.Describe())
		}
	}
}

// missed has a node miss the range of the bad blocks, which are made after it.
func (c *Cluster) missed(t *testing.T, n int) {
	t.Helper()
	var bad []*Node
	for _, m := range c.Nodes {
		if m.Disk != nil && len(m.Disk.Bad()) > 0 {
			bad = append(bad, m)
		}
	}
	c.Isolate(n)
	time.Sleep(time.Second)
	c.mustWrite(t, 0, mib, 'b', mib)
	c.mustWrite(t, 0, mib, 'a', mib)
	for _, m := range bad {
		m.spoil()
	}
}

func (c *Cluster) mustDemote(t *testing.T, n int) {
	t.Helper()
	if err := c.Nodes[n].Dev.Demote(timeout(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
}

// TestABadBlockIsHealedWhoeverReadsIt: on whatever node, and the disk stays.
func TestABadBlockIsHealedWhoeverReadsIt(t *testing.T) {
	for name, h := range healers {
		for _, passOn := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, pass-on %v", name, passOn), func(t *testing.T) {
				o := three()
				o.Nodes, o.Diskless, o.PassOn = h.nodes, h.diskless, passOn
				o.Extents, o.ExtentBytes = 64, 64<<10
				bubble(t, o, func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, mib, 'a', mib)
					at := c.Nodes[h.at]
					at.spoil()
					h.find(t, c)
					c.mustAllSync(t)
					c.mustBeHealed(t, 'a')
					st := at.Dev.Status()
					if st.Stats.ReadErrors == 0 || st.Stats.Mended == 0 || st.Stats.MendedBytes > 4*block.Unit || st.Stats.Unmended > 0 {
						t.Errorf("%+v", st.Stats)
					}
					if st.LastError != "" {
						t.Errorf("it says still: %s", st.LastError)
					}
					if n := at.told("io-error", ""); n < 2 {
						t.Errorf("%d events", n)
					}
				})
			})
		}
	}
}

// TestAResyncGoesOnFromASourceThatCanRead: what is bad on the one that it began
// with nobody may heal while the primary's own disk is the target.
func TestAResyncGoesOnFromASourceThatCanRead(t *testing.T) {
	o := three()
	o.Nodes = 4
	for good := 1; good < 4; good++ {
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, mib, 'a', mib)
			for n := 1; n < 4; n++ {
				if n != good {
					c.Nodes[n].spoil()
				}
			}
			if err := c.Nodes[0].Dev.Invalidate(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			c.mustAllSync(t)
			c.compares(t, 0)
			c.mustBeHealed(t, 'a')
		})
	}
}

// told counts the events of a kind whose text has a part.
func (n *Node) told(typ, part string) (sum int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, e := range n.events {
		if e.Type == typ && strings.Contains(e.Text, part) {
			sum++
		}
	}
	return sum
}

// TestAWriteDuringAHealingWins: the block is written anew while what it held is
// on its way; on the primary and on a replica, however late the answer is, and
// nothing waits for ever.
func TestAWriteDuringAHealingWins(t *testing.T) {
	for n := range 2 {
		for from := range 3 {
			for late := range 12 {
				if n == from {
					continue
				}
				o := three()
				o.Seed = uint64(late)
				o.Diskless = 0
				bubble(t, o, func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, mib, 'a', mib)
					c.Nodes[n].spoil()
					c.Nodes[from].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: time.Duration(late) * time.Millisecond})
					if _, err := c.Nodes[n].Dev.Verify(""); err != nil {
						t.Fatal(err)
					}
					for i := range 20 {
						time.Sleep(time.Duration(late*100) * time.Microsecond)
						c.mustWrite(t, 0, mib, byte('b'+i), mib)
					}
					if err := c.Nodes[n].Dev.WaitVerified(timeout(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
					c.mustAllSync(t)
					c.mustBeHealed(t, 'b'+19)
				})
			}
		}
	}
}

// TestBadBlocksUnderLoad come up on every node, all the time, while a client
// writes and reads them and verifies run.
func TestBadBlocksUnderLoad(t *testing.T) {
	for _, diskless := range []replication.NodeSet{0, replication.Of(0)} {
		o := three()
		o.Nodes, o.Diskless = 4, diskless
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			l := c.begin(t, 0)
			l.moves(t, c)
			for i := range 60 {
				n := c.Nodes[i%4]
				if n.Disk == nil {
					continue
				}
				blk := int64(i*31) % tortureBlocks * 7
				n.Disk.Spoil(block.Extent{Off: blk * block.Unit, Len: 3 * block.Unit})
				time.Sleep(time.Duration(i%7) * time.Millisecond)
				if i%5 == 0 {
					_, _ = c.Nodes[1+i%3].Dev.Verify("")
				}
			}
			l.moves(t, c)
			for range 2 {
				for n := range c.Nodes {
					if c.Nodes[n].Disk != nil && diskless == 0 {
						c.verified(t, n, "")
					}
				}
			}
			if diskless != 0 {
				c.mustDemoteUnder(t, l)
				for n := 1; n < 4; n++ {
					c.verified(t, n, "")
				}
			}
			for range 100 {
				if c.bad() == 0 {
					break
				}
				time.Sleep(100 * time.Millisecond)
			}
			if c.bad() > 0 {
				t.Fatalf("%d blocks are bad still\n%s", c.bad(), c.Describe())
			}
			l.finish(t, c)
			for _, n := range c.Nodes {
				if st := n.Dev.Status(); st.Disk == replication.Diskless && n.Disk != nil {
					t.Errorf("%s was detached", n.Name)
				}
			}
		})
	}
}

// mustDemoteUnder ends a load and demotes its node.
func (c *Cluster) mustDemoteUnder(t *testing.T, l *load) {
	t.Helper()
	l.end()
	c.mustDemote(t, l.n.ID)
	time.Sleep(time.Second)
}

// TestABlockThatCannotBeRewritten is a failed disk: on_io_error says what that
// means, on the primary and on a replica.
func TestABlockThatCannotBeRewritten(t *testing.T) {
	for n := range 2 {
		for _, passOn := range []bool{false, true} {
			o := three()
			o.PassOn = passOn
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, mib, 'a', mib)
				at := c.Nodes[n]
				at.spoil()
				in := at.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Range: rotten()[0], Err: errBadBlock})
				_, _ = at.Dev.Verify("")
				want := replication.Diskless
				if passOn {
					want = replication.Inconsistent
				}
				c.until(t, n, "it has failed", is(want))
				c.mustRead(t, 0, mib, bytes.Repeat([]byte{'a'}, mib)) // the client goes on
				c.mustWrite(t, 0, 0, 'c', 4096)
				at.Disk.Lift(in)
				if !passOn {
					if err := at.Dev.Attach(timeout(t, time.Minute)); err != nil {
						t.Fatal(err)
					}
				}
				c.mustAllSync(t)
				c.compares(t, 0)
				c.compares(t, 1)
				c.mustBeHealed(t, 'a')
			})
		}
	}
}

// TestADiskThatKeepsNothingIsGivenUp: it takes the block back each time, and
// cannot read it each time.
func TestADiskThatKeepsNothingIsGivenUp(t *testing.T) {
	for n := range 2 {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, mib, 'a', mib)
			c.Nodes[n].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Range: rotten()[0], Err: errBadBlock})
			for range 10 {
				c.mustRead(t, 0, mib, bytes.Repeat([]byte{'a'}, 64<<10))
				if n > 0 {
					_, _ = c.Nodes[n].Dev.Verify("")
				}
				time.Sleep(time.Second)
			}
			st := c.Nodes[n].Dev.Status()
			if st.Disk != replication.Diskless || st.Stats.Mended > 4 || st.LastError == "" {
				t.Errorf("%v, healed %d times, %q\n%s", st.Disk, st.Stats.Mended, st.LastError, c.Describe())
			}
		})
	}
}

// TestABlockThatNobodyCanRead: the client gets an error, and the next write
// mends it; no disk is given up for it, and nobody asks for ever.
func TestABlockThatNobodyCanRead(t *testing.T) {
	for _, passOn := range []bool{false, true} {
		o := three()
		o.PassOn = passOn
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, mib, 'a', mib)
			for _, n := range c.Nodes {
				n.spoil()
			}
			p := make([]byte, 4096)
			if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Read, 0, rotten()[0].Off, p, 0); !errors.Is(err, block.ErrIO) {
				t.Fatalf("reading it: %v\n%s", err, c.Describe())
			}
			for n := range c.Nodes {
				for peer, v := range c.verified(t, n, "") {
					if v != nil && (v.Stopped != "" || v.Skipped == 0 || v.Differ != 0) {
						t.Errorf("n%d with %s: %+v", n, peer, v)
					}
				}
			}
			time.Sleep(time.Minute)
			sum := uint64(0)
			for _, n := range c.Nodes {
				st := n.Dev.Status()
				if st.Disk != replication.UpToDate || st.Stats.Unmended == 0 || st.LastError == "" {
					t.Errorf("%s: %v, %q, %+v", n.Name, st.Disk, st.LastError, st.Stats)
				}
				sum += st.Stats.RemoteReads + st.Stats.ReadErrors
			}
			if sum > 500 {
				t.Errorf("%d reads for four blocks", sum)
			}
			time.Sleep(time.Minute)
			for _, n := range c.Nodes {
				st := n.Dev.Status()
				sum -= st.Stats.RemoteReads + st.Stats.ReadErrors
			}
			if sum != 0 {
				t.Errorf("somebody still asks: %d", sum)
			}
			c.mustWrite(t, 0, mib, 'd', mib)
			c.mustBeHealed(t, 'd')
		})
	}
}

// TestACrashDuringAHealing, of who heals and of who is asked, at each step: what
// is left is healed later, and no disk holds anything else than it should.
func TestACrashDuringAHealing(t *testing.T) {
	points := []string{sendPoint(wire.ReadReq), takePoint(wire.ReadReq), sendPoint(wire.ReadReply), takePoint(wire.ReadReply),
		takePoint(wire.FactsReq), takePoint(wire.FactsReply), "disk: before a write", "activity log: before its sync"}
	for _, name := range []string{"a client of the primary", "a verify led by a replica, of its own", "a verify without a primary, of the leader", "a diskless primary"} {
		h := healers[name]
		for _, point := range points {
			for _, other := range []bool{false, true} {
				if facts := strings.HasPrefix(point, "facts"); facts && !strings.Contains(name, "without") || other && !strings.HasPrefix(point, "read") && !facts {
					continue
				}
				for _, lost := range []float64{0, 1} {
					t.Run(fmt.Sprintf("%s, %s, other %v, %v lost", name, point, other, lost), func(t *testing.T) {
						o := three()
						o.Nodes, o.Diskless = h.nodes+h.diskless.Len(), h.diskless // a third disk: the second may be in doubt itself
						o.Size, o.Extents, o.ExtentBytes = 2*mib, 64, 64<<10
						bubble(t, o, func(t *testing.T, c *Cluster) {
							crashWhileHealing(t, c, h.at, name, point, other, lost)
						})
					})
				}
			}
		}
	}
}

func crashWhileHealing(t *testing.T, c *Cluster, at int, name, point string, other bool, lost float64) {
	diskless := c.Nodes[0].Disk == nil
	c.mustAllSync(t)
	c.mustPromote(t, 0)
	c.mustWrite(t, 0, mib, 'a', mib)
	c.mustFlush(t, 0)
	if strings.Contains(name, "without") {
		c.mustDemote(t, 0)
		time.Sleep(time.Second)
	}
	c.Nodes[at].spoil()
	how := storetest.Crash{Seed: 1, Lost: lost}
	trap := c.SetTrap(point, 1, func(at, with *Node) {
		if other && with != nil {
			with.PowerOff(how)
		} else {
			at.PowerOff(how)
		}
	})
	fall := func() {
		for _, n := range c.Nodes {
			if n.Fallen() {
				n.Bury()
				time.Sleep(time.Second)
				c.mustStart(t, n.ID)
			}
		}
	}
	for range 3 {
		for n := range c.Nodes {
			if !diskless && c.Nodes[n].Dev != nil && !c.Nodes[n].Fallen() {
				_, _ = c.Nodes[n].Dev.Verify("")
			}
		}
		ctx := timeout(t, 2*time.Second)
		_ = c.Nodes[0].Do(ctx, block.Read, 0, mib, make([]byte, mib), 0)
		time.Sleep(time.Second)
		fall()
	}
	if trap.Sprung() == nil && !strings.HasPrefix(point, "activity") {
		t.Errorf("nobody came to it\n%s", c.Describe())
	}
	c.SetTrap("none", 0, nil)
	fall()
	time.Sleep(15 * time.Second) // what nobody could give is left alone for some time
	c.mustAllSync(t)
	for n := range c.Nodes {
		if c.Nodes[n].Disk != nil && !(diskless && c.Nodes[0].Dev.Status().Role == replication.Primary) {
			c.verified(t, n, "")
		}
	}
	if diskless {
		_ = c.Nodes[0].Dev.Demote(timeout(t, time.Minute))
		time.Sleep(time.Second)
		for n := 1; n < len(c.Nodes); n++ {
			c.verified(t, n, "")
		}
	}
	c.mustBeHealed(t, 'a')
}

// TestAnOlderPeerIsNotAskedToHeal: it would answer whoever asks.
func TestAnOlderPeerIsNotAskedToHeal(t *testing.T) {
	o := three()
	o.Older = replication.Of(0)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, mib, 'a', mib)
		c.Nodes[1].spoil()
		_, _ = c.Nodes[1].Dev.Verify("")
		c.until(t, 1, "it has failed", is(replication.Diskless))
		c.mustRead(t, 0, mib, bytes.Repeat([]byte{'a'}, mib))
	})
}

// TestABlockThatIsReadAfterSomeErrors: a disk fails the same block a few times in a row,
// and then does not. Each client gets its data, and nobody loses the disk.
func TestABlockThatIsReadAfterSomeErrors(t *testing.T) {
	for fails := 1; fails <= 5; fails++ {
		for _, length := range []int64{512, block.Unit, 4 * block.Unit} {
			bubble(t, three(), func(t *testing.T, c *Cluster) {
				c.settle(t)
				c.mustPromote(t, 0)
				c.mustWrite(t, 0, mib, 'a', int(4*block.Unit))
				c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Count: fails, Err: syscall.EIO})
				c.mustRead(t, 0, mib, bytes.Repeat([]byte{'a'}, int(length)))
				if st := c.Nodes[0].Dev.Status(); st.Disk != replication.UpToDate {
					t.Errorf("%d errors, %d bytes: the disk is %v", fails, length, st.Disk)
				}
			})
		}
	}
}
