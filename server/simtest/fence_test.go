package simtest

import (
	"bytes"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
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
			for n := range c.Nodes {
				c.mustSync(t, n)
			}
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
