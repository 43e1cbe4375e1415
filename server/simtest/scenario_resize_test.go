package simtest

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestScenario52ANodeIsLostBeforeItHasRoom: a node that dies while it makes room
// keeps the others from growing. It could not come back with the size it has.
func TestScenario52ANodeIsLostBeforeItHasRoom(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		time.Sleep(5 * time.Second) // the last handshakes are over
		trap := c.SetTrap(takePoint(wire.Prepare), 0, func(at, _ *Node) { at.PowerOff(storetest.Crash{}) })
		buried := make(chan struct{})
		time.AfterFunc(time.Second, func() {
			defer close(buried)
			if n := trap.Sprung(); n != nil {
				n.Bury()
			}
		})
		err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 8*mib)
		<-buried
		if trap.Sprung() == nil {
			t.Fatalf("nobody was asked: %v\n%s", err, c.Describe())
		}
		if err == nil || !strings.Contains(err.Error(), "every node has to make room") {
			t.Errorf("grown without %s: %v", trap.Sprung().Name, err)
		}
		if err := trap.Sprung().Start(); err != nil {
			t.Fatal(err)
		}
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		time.Sleep(5 * time.Second)
		if err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 8*mib); err != nil {
			t.Fatal(err)
		}
	})
}

// TestScenario52TwoGrowAtOnce: a node makes room for a resize of its own while that
// of another comes to its end. What is written to the new space meanwhile stays,
// and a disk that is large enough is not made smaller.
func TestScenario52TwoGrowAtOnce(t *testing.T) {
	for _, mine := range []int64{5 * mib, 8 * mib} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			for n := range c.Nodes {
				c.mustSync(t, n)
			}
			time.Sleep(5 * time.Second)
			c.mustPromote(t, 2)
			c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpTruncate, Count: 1, Delay: time.Second})
			done := make(chan struct{})
			go func() {
				defer close(done)
				_ = c.Nodes[0].Dev.Resize(timeout(t, time.Minute), mine) // the other may be in its way
			}()
			time.Sleep(500 * time.Millisecond)
			if err := c.Nodes[1].Dev.Resize(timeout(t, time.Minute), 6*mib); err != nil {
				t.Fatalf("%v\n%s", err, c.Describe())
			}
			time.Sleep(100 * time.Millisecond)
			c.mustWrite(t, 2, 6*mib-8192, 'x', 8192)
			<-done
			time.Sleep(time.Second)
			c.mustWrite(t, 2, 6*mib-4096, 'y', 4096)
			for n := range c.Nodes {
				c.mustSync(t, n)
				got := make([]byte, 8192)
				c.Nodes[n].Disk.Peek(got, 6*mib-8192)
				if want := append(bytes.Repeat([]byte{'x'}, 4096), bytes.Repeat([]byte{'y'}, 4096)...); !bytes.Equal(got, want) {
					t.Errorf("n%d has lost what was written\n%s", n, c.Describe())
				}
			}
		})
	}
}

// TestScenario52WhoGrewIsLostAtOnce: the others have its change in the new space
// and not its word that the device has grown. The change was answered, so it has.
func TestScenario52WhoGrewIsLostAtOnce(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		trap := c.SetTrap(sendPoint(wire.Commit), 0, func(_, _ *Node) {
			for n := range c.Nodes[1:] {
				c.Stall(0, n+1, wire.Commit.Link())
			}
		})
		if err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 8*mib); err != nil {
			t.Fatal(err)
		}
		if trap.Sprung() == nil {
			t.Fatal("nobody was told")
		}
		c.mustWrite(t, 0, 7*mib, 'x', 4096)
		c.Nodes[0].Kill()
		c.mustPromote(t, 1)
		got := make([]byte, 4096)
		if err := c.Nodes[1].Do(timeout(t, time.Minute), block.Read, 0, 7*mib, got, 0); err != nil || got[0] != 'x' {
			t.Fatalf("what was answered is lost: %v\n%s", err, c.Describe())
		}
	})
}

// TestScenario52NotAllHearOfIt: who planned it loses sight of a node before that
// hears that all have made room. It hears so from another.
func TestScenario52NotAllHearOfIt(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		time.Sleep(5 * time.Second)
		c.mustPromote(t, 0)
		trap := c.SetTrap(sendPoint(wire.Commit), 0, func(at, with *Node) { c.Sever(at, with) })
		if err := c.Nodes[2].Dev.Resize(timeout(t, time.Minute), 8*mib); err != nil {
			t.Fatal(err)
		}
		at, with := trap.Pair()
		c.Cut(at.ID, with.ID)
		time.Sleep(time.Second)
		for _, n := range c.Nodes {
			if got := n.Dev.Size(); got != 8*mib {
				t.Errorf("%s has %d bytes", n.Name, got)
			}
		}
	})
}

// TestScenario52NotWithoutADisk: a node that cannot note the new size for good does
// not answer that there is one.
func TestScenario52NotWithoutADisk(t *testing.T) {
	o := three()
	o.Diskless = replication.Of(2)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		if err := c.Nodes[2].Dev.Resize(timeout(t, time.Minute), 8*mib); err == nil || !strings.Contains(err.Error(), "has no disk of it") {
			t.Fatal(err)
		}
		if err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 8*mib); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		for _, n := range c.Nodes {
			if got := n.Dev.Size(); got != 8*mib {
				t.Errorf("%s has %d bytes", n.Name, got)
			}
		}
	})
}
