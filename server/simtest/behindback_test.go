package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAResyncEndsBehindThePrimarysBack: a disk is resynced by a replica while a
// node that it is not in contact with is promoted, and goes on without it. It
// bears the generation in force then, and lacks what is written in it from there
// on.
func TestAResyncEndsBehindThePrimarysBack(t *testing.T) {
	for _, how := range []string{"demoted", "killed"} {
		t.Run(how, func(t *testing.T) {
			for seed := range uint64(4) {
				o := three()
				o.Size, o.Seed = 8*mib, seed
				bubble(t, o, func(t *testing.T, c *Cluster) { behindBack(t, c, how == "killed") })
				if t.Failed() {
					return
				}
			}
		})
	}
}

func behindBack(t *testing.T, c *Cluster, killed bool) {
	c.mustPromote(t, 1)
	c.mustWrite(t, 1, 0, 'a', 4096)
	for n := range c.Nodes {
		c.mustSync(t, n)
	}
	c.Isolate(2)
	c.mustWrite(t, 1, mib, 'b', 4*mib)
	if err := c.Nodes[1].Dev.Demote(timeout(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	// n2 is resynced by n0, which takes its time.
	c.Heal(0, 2)
	for range 1000 {
		if c.Nodes[2].Dev.Status().Disk == replication.Inconsistent {
			break
		}
		time.Sleep(time.Millisecond)
	}
	c.Stall(0, 2, wire.Data)
	time.Sleep(100 * time.Millisecond)
	// n0 has noted the generation, and does not hear for a while that it is in force.
	c.SetTrap(takePoint(wire.NewGenAck), 0, func(at, with *Node) { c.Stall(at.ID, with.ID, wire.Meta) })
	c.mustPromote(t, 1)
	wrote := make(chan error, 1)
	go func() { wrote <- c.Nodes[1].Do(t.Context(), block.Write, 0, 0, bytes.Repeat([]byte{'c'}, 4096), 0) }()
	time.Sleep(200 * time.Millisecond)
	c.Flow(0, 2, wire.Data)
	time.Sleep(200 * time.Millisecond)
	c.Flow(1, 0, wire.Meta)
	if err := <-wrote; err != nil {
		t.Fatal(err)
	}
	time.Sleep(10 * time.Millisecond)
	c.mustWrite(t, 1, 0, 'd', 4096)
	if killed {
		c.Nodes[1].Kill()
		time.Sleep(time.Minute)
	} else if err := c.Nodes[1].Dev.Demote(timeout(t, time.Minute)); err != nil {
		t.Fatal(err)
	}
	if err := c.Nodes[2].Dev.Promote(timeout(t, 2*time.Minute), false); err != nil {
		t.Fatalf("%v\n%s", err, c.Describe())
	}
	got := make([]byte, 4096)
	if err := c.Nodes[2].Do(timeout(t, time.Minute), block.Read, 0, 0, got, 0); err != nil {
		t.Fatalf("%v\n%s", err, c.Describe())
	}
	if got[0] != 'd' {
		t.Fatalf("what was written last is lost: %q\n%s", got[0], c.Describe())
	}
}
