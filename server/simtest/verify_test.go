package simtest

import (
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// settle waits until every node sees every other in sync, and has nothing left
// to agree on.
func (c *Cluster) settle(t *testing.T) {
	t.Helper()
	for n := range c.Nodes {
		c.mustSync(t, n)
	}
	time.Sleep(10 * time.Second)
	for n := range c.Nodes {
		c.mustSync(t, n)
	}
}

// verified runs a verify to its end and returns the outcome with each peer.
func (c *Cluster) verified(t *testing.T, n int, node string) map[string]*device.Verified {
	t.Helper()
	if _, err := c.Nodes[n].Dev.Verify(node); err != nil {
		t.Fatalf("verify on n%d: %v\n%s", n, err, c.Describe())
	}
	if err := c.Nodes[n].Dev.WaitVerified(timeout(t, 10*time.Minute)); err != nil {
		t.Fatalf("verify on n%d does not end: %v\n%s", n, err, c.Describe())
	}
	out := map[string]*device.Verified{}
	for _, p := range c.Nodes[n].Dev.Status().Peers {
		out[p.Node] = p.Verified
	}
	return out
}

// TestVerifyUnderLoadFindsNothingThatIsNot: writes that come in the middle
// never look like differences, whoever leads.
func TestVerifyUnderLoadFindsNothingThatIsNot(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		l := c.begin(t, 0)
		l.moves(t, c)
		for range 5 {
			for n := range c.Nodes {
				for peer, v := range c.verified(t, n, "") {
					if n > 0 && peer != "n0" {
						continue // only the primary tells a secondary what is right
					}
					if v == nil || v.Differ != 0 || v.Stopped != "" || v.Skipped != 0 {
						t.Fatalf("n%d with %s: %+v\n%s", n, peer, v, c.Describe())
					}
				}
			}
		}
		l.finish(t, c)
	})
}

// TestVerifyFindsWhatDiffers and a resync mends it, under load, whoever leads.
func TestVerifyFindsWhatDiffers(t *testing.T) {
	for leader := range 3 {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.settle(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 3*mib, 'x', mib)
			l := c.begin(t, 0)
			l.moves(t, c)
			bad := max(leader, 1) // the primary's disk is right by definition
			for _, at := range []int64{3*mib + 10, 3*mib + 4096, 3*mib + 900<<10} {
				if _, err := c.Nodes[bad].Disk.Disk("hand").WriteAt([]byte("rot"), at); err != nil {
					t.Fatal(err)
				}
			}
			found := c.verified(t, leader, "")
			sum := int64(0)
			for peer, v := range found {
				if v == nil && leader > 0 && peer != "n0" {
					continue
				}
				if v == nil || v.Stopped != "" {
					t.Fatalf("with %s: %+v", peer, v)
				}
				sum += v.Differ
			}
			const want = int64(3 * 4096)
			if sum != want {
				t.Fatalf("%d bytes differ, want %d: %+v", sum, want, found)
			}
			l.moves(t, c)
			time.Sleep(8 * time.Second) // nothing is mended unasked
			st := c.Nodes[leader].Dev.Status()
			out := int64(0)
			for _, p := range st.Peers {
				out += p.OutOfSync
			}
			if out != want {
				t.Fatalf("%d bytes are marked, want %d\n%s", out, want, c.Describe())
			}
			with, err := c.Nodes[leader].Dev.Resync(timeout(t, time.Minute), "")
			if err != nil || len(with) == 0 {
				t.Fatalf("resync with %v: %v", with, err)
			}
			for n := range c.Nodes {
				c.until(t, n, "resynced", is(replication.UpToDate))
				c.mustSync(t, n)
			}
			l.moves(t, c)
			l.finish(t, c)
		})
	}
}

// TestVerifyEndsWithItsPeer: a verify whose peer is lost says so.
func TestVerifyEndsWithItsPeer(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.settle(t)
		c.mustPromote(t, 0)
		if _, err := c.Nodes[0].Dev.Verify("n1"); err != nil {
			t.Fatal(err)
		}
		c.Nodes[1].Kill()
		if err := c.Nodes[0].Dev.WaitVerified(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		if v := c.Nodes[0].Dev.Status().Peers[0].Verified; v == nil || v.Stopped == "" {
			t.Fatalf("%+v", v)
		}
		if _, err := c.Nodes[0].Dev.Verify("n1"); err == nil {
			t.Fatal("verify with a node that is down")
		}
	})
}

// TestVerifyEndsWithItsDisk: pieces that are being read when the disk is
// detached fail, and nothing more is read of it.
func TestVerifyEndsWithItsDisk(t *testing.T) {
	for n := range 2 { // the leader's disk, and the follower's
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.settle(t)
			reads := c.Nodes[n].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Hang: true, Err: syscall.EIO})
			if _, err := c.Nodes[0].Dev.Verify("n1"); err != nil {
				t.Fatal(err)
			}
			reads.Await(1)
			detached := make(chan error, 1)
			go func() { detached <- c.Nodes[n].Dev.Detach(timeout(t, time.Minute)) }()
			c.until(t, n, "detached", is(replication.Diskless))
			reads.Release()
			if err := <-detached; err != nil {
				t.Fatal(err)
			}
			if err := c.Nodes[0].Dev.WaitVerified(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			if v := c.Nodes[0].Dev.Status().Peers[0].Verified; v == nil || v.Stopped == "" {
				t.Fatalf("%+v", v)
			}
			if err := c.Nodes[n].Dev.Attach(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			c.mustSync(t, n)
		})
	}
}

// TestVerifyWithoutAPrimary: two secondaries compare, and the resync mends.
func TestVerifyWithoutAPrimary(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.settle(t)
		if _, err := c.Nodes[2].Disk.Disk("hand").WriteAt([]byte("rot"), mib); err != nil {
			t.Fatal(err)
		}
		if v := c.verified(t, 1, "n2")["n2"]; v.Differ != 4096 || v.Stopped != "" {
			t.Fatalf("%+v", v)
		}
		if _, err := c.Nodes[1].Dev.Resync(timeout(t, time.Minute), "n2"); err != nil {
			t.Fatal(err)
		}
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096) // then all know
		if _, err := c.Nodes[1].Dev.Verify("n2"); err == nil {
			t.Fatal("two secondaries compare although there is a primary")
		}
	})
}
