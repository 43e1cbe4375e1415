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

// TestScenario07WhatIsStuckIsNotAnswered: nothing comes any more on one of two links,
// or on both, in one direction or in both. A write that a replica which counts does not
// have, or has not confirmed, waits, and the others notice nothing. When it all flows
// again, it was no loss: nothing is resynced, and no generation begins; when it ends in
// the loss of the contact, the write is answered without that replica.
func TestScenario07WhatIsStuckIsNotAnswered(t *testing.T) {
	data, meta := []wire.Link{wire.Data}, []wire.Link{wire.Meta}
	for _, x := range []struct {
		name     string
		to, from []wire.Link // of the replica
		waits    bool
	}{
		{"data to it", data, nil, true},
		{"data from it", nil, data, false}, // nothing of a write comes that way
		{"meta to it", meta, nil, false},
		{"meta from it", nil, meta, true},
		{"all to it", append(data, meta...), nil, true},
		{"all from it", nil, append(data, meta...), true},
		{"data", data, data, true},
		{"meta", meta, meta, true},
		{"all", append(data, meta...), append(data, meta...), true},
	} {
		for _, ends := range []string{"flows again", "is lost"} {
			t.Run(x.name+" is stuck and "+ends, func(t *testing.T) {
				bubble(t, three(), func(t *testing.T, c *Cluster) {
					set := func(do func(from, to int, link wire.Link)) {
						for _, link := range x.to {
							do(0, 1, link)
						}
						for _, link := range x.from {
							do(1, 0, link)
						}
					}
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, 0, 'a', 4096)
					time.Sleep(10 * time.Second) // nothing is on its way
					before := c.Nodes[0].Dev.Status().Gens.Current
					set(c.Stall)
					write := c.Nodes[0].ask(block.Write, 0, 0, bytes.Repeat([]byte{'b'}, 4096), 0)
					time.Sleep(4 * time.Second)
					if answered(write.done) == x.waits {
						t.Errorf("answered: %v\n%s", !x.waits, c.Describe())
					}
					c.mustBeWell(t, 0, 2)
					if ends == "is lost" {
						c.Cut(0, 1)
						c.mustAnswer(t, []asked{write})
						c.mustWrite(t, 0, 8192, 'c', 4096)
						c.mustBeWell(t, 0, 2)
						c.Heal(0, 1)
					} else {
						set(c.Flow)
						c.mustAnswer(t, []asked{write})
						c.mustWrite(t, 0, 8192, 'c', 4096)
					}
					c.mustAllSync(t)
					if now := c.Nodes[0].Dev.Status().Gens.Current; (now == before) != (ends == "flows again") {
						t.Errorf("generation %v, and before it %v", now, before)
					}
					for _, n := range c.Nodes {
						if sent := n.Dev.Status().Stats.ResyncBytes; sent > 0 && ends == "flows again" {
							t.Errorf("%s has resynced %d bytes", n.Name, sent)
						}
					}
					c.mustEqual(t)
					c.mustHold(t, 0, 'b')
					c.mustHold(t, 8192, 'c')
				})
			})
		}
	}
}

// mustBeWell fails unless a primary and a replica see each other and are up to date.
func (c *Cluster) mustBeWell(t *testing.T, primary, replica int) {
	t.Helper()
	st := c.Nodes[primary].Dev.Status()
	ok := st.Role == replication.Primary && st.Disk == replication.UpToDate && st.Quorum.Quorate
	for _, p := range st.Peers {
		ok = ok && (p.Node != c.Nodes[replica].Name || p.Connected && p.Disk == replication.UpToDate && p.Repl == replication.Established)
	}
	if !ok || c.Nodes[replica].Dev.Status().Disk != replication.UpToDate {
		t.Errorf("n%d and n%d are not well\n%s", primary, replica, c.Describe())
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
