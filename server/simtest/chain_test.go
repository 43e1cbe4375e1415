package simtest

import (
	"testing"
	"time"
)

// TestADiskThatAnotherResyncedDoesNotPassForWhatThePrimaryWrites: a disk that
// the primary knows as left behind may have been resynced by another replica
// since, into the very generation that the primary is in.
func TestADiskThatAnotherResyncedDoesNotPassForWhatThePrimaryWrites(t *testing.T) {
	o := three()
	o.Nodes = 4
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 1)
		c.Isolate(2)
		c.mustWrite(t, 1, 0, 'a', 64<<10)
		if err := c.Nodes[1].Dev.Demote(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.Heal(0, 2)
		c.Heal(2, 3)
		c.mustSync(t, 3) // n2 has all again, and n1 does not know
		c.mustPromote(t, 1)
		c.mustWrite(t, 1, mib, 'b', 64<<10)
		c.Nodes[1].Kill()
		c.mustPromote(t, 3)
		c.mustWrite(t, 3, 2*mib, 'c', 4096)
		if err := c.Nodes[1].Start(); err != nil {
			t.Fatal(err)
		}
		c.Heal(1, 2)
		c.mustSync(t, 3)
		c.mustEqual(t)
		c.mustHold(t, mib, 'b')
	})
}

// TestWhoOnlyHearsOfANewerGenerationIsNotPromoted: with a majority of which one
// was told that others go on, the rest does not take older data for current.
func TestWhoOnlyHearsOfANewerGenerationIsNotPromoted(t *testing.T) {
	o := three()
	o.Nodes = 5
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.Isolate(3)
		c.Isolate(4)
		c.mustWrite(t, 0, 0, 'a', 4096) // n0, n1 and n2 have it
		c.Isolate(2)                    // n2 is not told any more
		c.Nodes[0].Kill()
		c.Nodes[1].Kill()
		c.Heal(3, 4)
		if err := c.Nodes[3].Dev.Promote(timeout(t, 10*time.Second), false); err == nil {
			t.Fatalf("two of five were promoted\n%s", c.Describe())
		}
		c.Heal(2, 3)
		c.Heal(2, 4)
		c.mustPromote(t, 4)
		c.mustWrite(t, 4, mib, 'b', 4096)
		for i, n := range c.Nodes {
			if n.Dev == nil {
				if err := n.Start(); err != nil {
					t.Fatal(err)
				}
			}
			c.Rejoin(i)
		}
		c.mustSync(t, 4)
		c.mustEqual(t)
		c.mustHold(t, 0, 'a')
	})
}

// mustHold checks one byte of every disk.
func (c *Cluster) mustHold(t *testing.T, off int64, want byte) {
	t.Helper()
	for _, n := range c.Nodes {
		var got [1]byte
		n.Disk.Peek(got[:], off)
		if got[0] != want {
			t.Errorf("%s holds %q at %d, not %q\n%s", n.Name, got[0], off, want, c.Describe())
		}
	}
}
