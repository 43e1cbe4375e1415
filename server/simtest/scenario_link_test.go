package simtest

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestScenario07SlowAndStuckPeers: a replica whose disk is slow slows the
// client down; one of whose links nothing comes any more holds it up until the
// contact is given up. Neither costs anything else.
func TestScenario07SlowAndStuckPeers(t *testing.T) {
	t.Run("slow disk", func(t *testing.T) {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			l := c.begin(t, 0)
			c.Nodes[2].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite | storetest.OpSync, Delay: 30 * time.Millisecond})
			l.moves(t, c)
			l.finish(t, c)
		})
	})
	for _, link := range []wire.Link{wire.Data, wire.Meta} {
		for _, from := range []int{0, 1} {
			t.Run(fmt.Sprintf("link %v from n%d stuck", link, from), func(t *testing.T) {
				bubble(t, three(), func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					l := c.begin(t, 0)
					l.moves(t, c)
					c.Stall(from, 1-from, link)
					time.Sleep(10 * time.Second)
					c.Cut(0, 1) // what a silent link ends in
					l.moves(t, c)
					c.Heal(0, 1)
					l.moves(t, c)
					l.finish(t, c)
				})
			})
		}
	}
}

// TestScenario21LinksFlapUnderLoad cuts and heals links a thousand times.
func TestScenario21LinksFlapUnderLoad(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		rng := rand.New(rand.NewPCG(21, 0))
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		l := c.begin(t, 0)
		for range 1000 {
			a, b := rng.IntN(3), rng.IntN(3)
			if a == b {
				continue
			}
			c.Cut(a, b)
			time.Sleep(time.Duration(rng.IntN(3000)) * time.Microsecond)
			c.Heal(a, b)
			time.Sleep(time.Duration(rng.IntN(20)) * time.Millisecond)
		}
		l.moves(t, c)
		l.finish(t, c)
	})
}

// TestScenario22LinkLostAtEachStep loses the link of two nodes before each
// frame of the handshake, of a resync's beginning, of a new generation, and of
// a promotion, the first and some later ones; they meet again and agree.
func TestScenario22LinkLostAtEachStep(t *testing.T) {
	for _, typ := range []wire.Type{
		wire.DevHello, wire.DevAgree, wire.DevState, wire.Receivers, wire.Bits, wire.SyncReq, wire.SyncAck, wire.SyncDone,
		wire.NewGen, wire.NewGenAck, wire.GenCommit, wire.GenDone, wire.Prepare, wire.Vote, wire.Commit,
	} {
		for _, point := range []string{sendPoint(typ), takePoint(typ)} {
			t.Run(point, func(t *testing.T) {
				for skip := range 4 {
					bubble(t, three(), func(t *testing.T, c *Cluster) { loseLinkAt(t, c, point, skip) })
				}
			})
		}
	}
}

func loseLinkAt(t *testing.T, c *Cluster, point string, skip int) {
	c.mustAllSync(t)
	c.mustPromote(t, 0)
	c.mustWrite(t, 0, 0, 'a', mib)
	trap := c.SetTrap(point, skip, func(at, with *Node) { c.Sever(at, with) })
	mended := false
	mend := func() { // tells two nodes that their link was lost, and gives them another
		a, b := trap.Pair()
		if a == nil || mended {
			return
		}
		mended = true
		c.Cut(a.ID, b.ID)
		time.Sleep(100 * time.Millisecond)
		c.Heal(a.ID, b.ID)
	}
	// If a link is lost meanwhile, a write is answered when that is noticed.
	write := func(n int, off int64) {
		t.Helper()
		a := c.Nodes[n].ask(block.Write, 0, off, bytes.Repeat([]byte{'w'}, 256<<10), 0)
		time.Sleep(2 * time.Second)
		mend()
		c.mustAnswer(t, []asked{a})
	}
	c.Isolate(2)
	write(0, mib)
	c.Rejoin(2)
	time.Sleep(time.Second)
	mend()
	if err := c.Nodes[0].Dev.Demote(timeout(t, time.Minute)); err != nil {
		t.Fatalf("%v\n%s", err, c.Describe())
	}
	time.Sleep(time.Second)
	promoted := make(chan error, 1)
	go func() { promoted <- c.Nodes[1].Dev.Promote(timeout(t, time.Minute), false) }()
	time.Sleep(time.Second)
	mend()
	if err := <-promoted; err != nil {
		t.Fatalf("%v\n%s", err, c.Describe())
	}
	write(1, 2*mib)
	mend()
	c.mustAllSync(t)
	c.mustEqual(t)
	c.mustHold(t, 2*mib, 'w')
	if trap.Sprung() == nil && skip == 0 {
		t.Fatal("nobody came to the point")
	}
}

// TestScenario23AResyncInterruptedAgainAndAgain at random moments, by cuts and
// by kills of either side, and with its direction turned in the middle.
func TestScenario23AResyncInterruptedAgainAndAgain(t *testing.T) {
	for seed := range uint64(5) {
		o := three()
		o.Seed, o.Size = seed, 16*mib
		bubble(t, o, func(t *testing.T, c *Cluster) {
			rng := rand.New(rand.NewPCG(seed, 23))
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.Isolate(2)
			c.mustWrite(t, 0, 0, 'a', 12*mib)
			for i := range 25 {
				c.Rejoin(2)
				time.Sleep(time.Duration(rng.IntN(12000)) * time.Microsecond)
				switch i % 5 {
				case 0, 1, 2:
					c.Isolate(2)
				case 3:
					c.Nodes[2].Kill()
					c.mustStart(t, 2)
				case 4: // another primary: another source, or the other direction
					at := (i / 5) % 2
					c.Nodes[at].Kill()
					c.mustStart(t, at)
					c.mustPromote(t, 1-at)
					c.mustWrite(t, 1-at, int64(i)*4096, 'b', 4096)
				}
			}
			c.Rejoin(2)
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHold(t, 11*mib, 'a')
		})
	}
}

// TestScenario24TheEndOfAResyncIsMissed: the link is lost when the target is
// done, before the source knows; by the end both do.
func TestScenario24TheEndOfAResyncIsMissed(t *testing.T) {
	for _, point := range []string{sendPoint(wire.SyncDone), takePoint(wire.SyncDone), sendPoint(wire.SyncAck), takePoint(wire.SyncAck)} {
		for _, quiet := range []bool{true, false} {
			bubble(t, three(), func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.mustPromote(t, 0)
				c.Isolate(2)
				c.mustWrite(t, 0, 0, 'a', mib)
				c.Cut(1, 2)
				trap := c.SetTrap(point, 0, func(at, with *Node) { c.Sever(at, with) })
				c.Heal(0, 2)
				time.Sleep(time.Second)
				if trap.Sprung() == nil {
					t.Fatalf("%s: nobody came to the point\n%s", point, c.Describe())
				}
				c.Cut(0, 2)
				if !quiet {
					c.mustWrite(t, 0, 2*mib, 'b', 4096)
				}
				c.Rejoin(2)
				c.mustAllSync(t)
				c.mustEqual(t)
				for _, n := range c.Nodes {
					for _, p := range n.Dev.Status().Peers {
						if p.Disk != replication.UpToDate || p.OutOfSync != 0 {
							t.Errorf("%s takes %s for %v with %d bytes out of sync", n.Name, p.Node, p.Disk, p.OutOfSync)
						}
					}
				}
			})
		}
	}
}
