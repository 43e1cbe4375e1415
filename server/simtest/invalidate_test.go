package simtest

import (
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestInvalidateFetchesEverythingUnderLoad discards each copy in turn while a
// client writes: even what was changed behind lockstep's back is then right.
func TestInvalidateFetchesEverythingUnderLoad(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 3*mib, 'x', mib)
		l := c.begin(t, 0)
		for _, n := range []int{1, 0, 2} {
			l.moves(t, c)
			if _, err := c.Nodes[n].Disk.Disk("hand").WriteAt([]byte("rot"), 3*mib+5000); err != nil {
				t.Fatal(err)
			}
			if err := c.Nodes[n].Dev.Invalidate(timeout(t, time.Minute)); err != nil {
				t.Fatalf("invalidate on n%d: %v\n%s", n, err, c.Describe())
			}
			c.until(t, n, "resynced", is(replication.UpToDate))
			c.mustSync(t, n)
		}
		l.finish(t, c)
	})
}

func TestTheOnlyDataIsNotInvalidated(t *testing.T) {
	o := three()
	o.Nodes = 2
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustSync(t, 1)
		c.Nodes[1].Kill()
		err := c.Nodes[0].Dev.Invalidate(timeout(t, time.Minute))
		if err == nil || !strings.Contains(err.Error(), "no peer in reach has current data") {
			t.Fatalf("invalidated the only copy: %v", err)
		}
	})
}

// TestADiskWhoseKeeperFailsIsNotInvalidated: the peer that has agreed to keep its data
// loses its disk while changes under way are waited for. They are on this disk alone then.
func TestADiskWhoseKeeperFailsIsNotInvalidated(t *testing.T) {
	o := three()
	o.Nodes = 2
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		bad := c.Nodes[1].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Delay: time.Second, Err: syscall.EIO})
		write := c.Nodes[0].ask(block.Write, 0, 8192, fill('b'), 0)
		time.Sleep(100 * time.Millisecond)
		if err := c.Nodes[0].Dev.Invalidate(timeout(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "no peer in reach has current data") {
			t.Errorf("a disk was invalidated that alone has what was answered: %v\n%s", err, c.Describe())
		}
		c.mustAnswer(t, []asked{write})
		c.Nodes[1].Kill()
		c.Nodes[1].Disk.Lift(bad)
		c.mustStart(t, 1)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHoldDisks(t, 8192, 'b')
	})
}

// TestAResyncIsPausedAndGoesOn from either side, across a lost contact.
func TestAResyncIsPausedAndGoesOn(t *testing.T) {
	for _, who := range []int{0, 1} {
		o := three()
		o.Nodes = 2
		o.Quorum = replication.QuorumPolicy{}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			if err := c.Nodes[who].Dev.PauseResync(""); err != nil {
				t.Fatal(err)
			}
			c.Cut(0, 1)
			c.mustWrite(t, 0, 0, 'b', 2*mib)
			c.Heal(0, 1)
			time.Sleep(time.Minute)
			c.mustWrite(t, 0, 3*mib, 'c', 4096)
			if st := c.Nodes[1].Dev.Status(); st.Disk != replication.Inconsistent || st.Peers[0].Repl != replication.PausedSyncT || st.Peers[0].Held == "" {
				t.Fatalf("n1 is %v, %v, held %q\n%s", st.Disk, st.Peers[0].Repl, st.Peers[0].Held, c.Describe())
			}
			with, err := c.Nodes[who].Dev.Resync(timeout(t, time.Minute), "")
			if err != nil || len(with) != 1 {
				t.Fatalf("resync with %v: %v", with, err)
			}
			c.mustSync(t, 1)
			c.mustSync(t, 0)
			c.mustEqual(t)
			if with, err := c.Nodes[who].Dev.Resync(timeout(t, time.Minute), "n9"); err == nil {
				t.Fatalf("resync with a peer that is none: %v", with)
			}
		})
	}
}

// TestAPauseEndsWhereItBegan, whoever is primary, and though the peer is away.
func TestAPauseEndsWhereItBegan(t *testing.T) {
	for _, away := range []bool{false, true} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			time.Sleep(time.Second) // all know of it
			n := c.Nodes[1].Dev
			if err := n.PauseResync("n2"); err != nil {
				t.Fatal(err)
			}
			if away {
				c.Isolate(2)
			}
			if _, err := n.Resync(timeout(t, time.Minute), "n2"); err != nil {
				t.Errorf("away %v: %v", away, err)
			}
			c.mustWrite(t, 0, 0, 'a', 4096)
			c.Rejoin(2)
			c.mustAllSync(t)
			if p := n.Status().Peers[1]; p.Held != "" {
				t.Errorf("away %v: the resync with %s is still paused by %s", away, p.Node, p.Held)
			}
		})
	}
}
