package simtest

import (
	"bytes"
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
)

const mib = 1 << 20

// bubble runs f with a cluster in virtual time and stops the cluster after it.
func bubble(t *testing.T, o Options, f func(t *testing.T, c *Cluster)) {
	synctest.Test(t, func(t *testing.T) {
		if o.Size == 0 {
			o.Size = 4 * mib
		}
		o.Log = testLog()
		c := New(o)
		if err := c.StartAll(); err != nil {
			t.Fatal(err)
		}
		defer func() {
			for _, n := range c.Nodes {
				if n.Dev != nil {
					n.Kill()
				}
			}
		}()
		f(t, c)
	})
}

func majority() replication.QuorumPolicy {
	return replication.QuorumPolicy{Kind: replication.QuorumMajority}
}

func timeout(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func (c *Cluster) mustSync(t *testing.T, n int) {
	t.Helper()
	if err := c.Nodes[n].Dev.WaitFor(timeout(t, time.Minute), "synced"); err != nil {
		t.Fatalf("n%d does not get in sync: %v\n%s", n, err, c.Describe())
	}
}

func (c *Cluster) mustPromote(t *testing.T, n int) {
	t.Helper()
	if err := c.Nodes[n].Dev.Promote(timeout(t, time.Minute), false); err != nil {
		t.Fatalf("%v\n%s", err, c.Describe())
	}
}

func (c *Cluster) mustWrite(t *testing.T, n int, off int64, fill byte, length int) {
	t.Helper()
	if err := c.Nodes[n].Do(timeout(t, time.Minute), block.Write, 0, off, bytes.Repeat([]byte{fill}, length), 0); err != nil {
		t.Fatalf("write on n%d: %v\n%s", n, err, c.Describe())
	}
}

func (c *Cluster) mustEqual(t *testing.T) {
	t.Helper()
	var first *Node
	for _, n := range c.Nodes {
		if n.Disk == nil {
			continue
		}
		if first == nil {
			first = n
			continue
		}
		if at, same := first.Disk.Equal(n.Disk); !same {
			t.Fatalf("%s and %s differ at %v\n%s", first.Name, n.Name, at, c.Describe())
		}
	}
}

func three() Options { return Options{Nodes: 3, Quorum: majority(), Delay: time.Millisecond} }

func TestWritesReachEveryReplica(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.mustWrite(t, 0, 512, 'b', 512)
		c.mustWrite(t, 0, mib-100, 'c', 3*mib)
		if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Flush, 0, 0, nil, 0); err != nil {
			t.Fatal(err)
		}
		c.mustEqual(t)
		got := make([]byte, 8)
		if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Read, 0, 510, got, 0); err != nil || string(got) != "aabbbbbb" {
			t.Fatalf("read %q, %v", got, err)
		}
	})
}

func TestAKilledReplicaGetsOnlyWhatItMissed(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 3*mib)
		time.Sleep(5 * time.Second) // a background flush makes it stable
		c.Nodes[1].Kill()
		c.mustWrite(t, 0, 64<<10, 'b', 8192)
		if err := c.Nodes[1].Start(); err != nil {
			t.Fatal(err)
		}
		c.mustSync(t, 0)
		c.mustEqual(t)
		if st := c.Nodes[0].Dev.Status(); st.Stats.ResyncBytes > 64<<10 {
			t.Errorf("%d bytes were resynced for 8192 that were missed", st.Stats.ResyncBytes)
		}
	})
}

func TestAnotherNodeTakesOverFromAKilledPrimary(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', mib)
		c.Nodes[0].Kill()
		c.mustPromote(t, 2)
		c.mustWrite(t, 2, 4096, 'b', 4096)
		if err := c.Nodes[0].Start(); err != nil {
			t.Fatal(err)
		}
		c.mustSync(t, 2)
		c.mustEqual(t)
	})
}

func TestASecondPrimaryIsRefused(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		err := c.Nodes[1].Dev.Promote(timeout(t, 3*time.Second), false)
		if err == nil || !bytes.Contains([]byte(err.Error()), []byte("peer n0 is primary")) {
			t.Fatalf("promotion of a second node: %v", err)
		}
	})
}

func TestAnIsolatedPrimarySuspendsAndAnotherTakesOver(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Isolate(0)
		if err := c.Nodes[0].Do(timeout(t, 5*time.Second), block.Write, 0, 0, bytes.Repeat([]byte{'z'}, 4096), 0); err != ErrUnanswered {
			t.Fatalf("a write without quorum was answered: %v", err)
		}
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, 0, 'b', 4096)
		c.Rejoin(0)
		c.mustSync(t, 1)
		c.mustEqual(t)
	})
}

func TestAWholeClusterComesBackFromAPowerCut(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', mib)
		if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Flush, 0, 0, nil, 0); err != nil {
			t.Fatal(err)
		}
		c.mustWrite(t, 0, 2*mib, 'b', mib)
		for _, n := range c.Nodes {
			n.PowerCut(0.5)
		}
		for _, i := range []int{2, 1, 0} {
			if err := c.Nodes[i].Start(); err != nil {
				t.Fatal(err)
			}
		}
		c.mustSync(t, 0)
		c.mustEqual(t)
		c.mustPromote(t, 1)
		got := make([]byte, mib)
		if err := c.Nodes[1].Do(timeout(t, time.Minute), block.Read, 0, 0, got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{'a'}, mib)) {
			t.Fatalf("flushed data is lost: %v", err)
		}
	})
}

// A change that is longer than a small activity log can take at once is made in
// parts, and no disk is given up for it.
func TestChangesLongerThanTheActivityLog(t *testing.T) {
	o := three()
	o.Extents, o.ExtentBytes = 8, 64<<10
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 4096, 'x', 2*mib)
		if err := c.Nodes[0].Do(timeout(t, time.Minute), block.WriteZeroes, 0, 8192, nil, 3*mib); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.Nodes {
			if st := n.Dev.Status(); st.Disk != replication.UpToDate {
				t.Errorf("the disk of %s is %v: %s", n.Name, st.Disk, st.LastError)
			}
		}
		c.mustEqual(t)
	})
}
