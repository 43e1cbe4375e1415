package simtest

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestCreateFromExisting: a disk that was there before becomes the device's
// data, whether the peers' disks are blank or were there before as well.
func TestCreateFromExisting(t *testing.T) {
	for _, existing := range []replication.NodeSet{replication.Of(0), replication.Of(0, 1, 2)} {
		o := three()
		o.Existing = existing
		bubble(t, o, func(t *testing.T, c *Cluster) {
			data := bytes.Repeat([]byte("before"), 1000)
			for id := range existing.All() {
				if _, err := c.Nodes[id].Disk.Disk("hand").WriteAt(data[:len(data)-id], mib); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(30 * time.Second)
			got := make([]byte, len(data))
			if c.Nodes[0].Disk.Peek(got, mib); !bytes.Equal(got, data) {
				t.Fatalf("what was there before was overwritten unasked\n%s", c.Describe())
			}
			if err := c.Nodes[0].Dev.Create(timeout(t, time.Minute), true); err != nil {
				t.Fatalf("%v\n%s", err, c.Describe())
			}
			for n := range c.Nodes {
				c.mustSync(t, n)
			}
			c.mustEqual(t)
			if c.Nodes[2].Disk.Peek(got, mib); !bytes.Equal(got, data) {
				t.Fatalf("the peers hold something else\n%s", c.Describe())
			}
			for n := range c.Nodes {
				if err := c.Nodes[n].Dev.Create(timeout(t, time.Minute), true); err == nil || !strings.Contains(err.Error(), "holds its data") {
					t.Fatalf("created again on n%d: %v", n, err)
				}
			}
			c.mustPromote(t, 1)
			l := c.begin(t, 1)
			l.moves(t, c)
			l.end()
		})
	}
}

// TestCreateBlank: a disk that was there before and does not count is zeroed.
func TestCreateBlank(t *testing.T) {
	o := three()
	o.Existing = replication.Of(1)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		if _, err := c.Nodes[1].Disk.Disk("hand").WriteAt([]byte("before"), mib); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		if err := c.Nodes[1].Dev.Create(timeout(t, time.Minute), false); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
	})
}

// TestCreateIsRefusedWhereAPeerHasData.
func TestCreateIsRefusedWhereAPeerHasData(t *testing.T) {
	o := three()
	o.Existing = replication.Of(2)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		if err := c.Nodes[0].Dev.WaitFor(timeout(t, time.Minute), "uptodate"); err != nil {
			t.Fatal(err)
		}
		c.Isolate(2)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Cut(1, 2)
		c.Heal(0, 2)
		for range 100 {
			if c.Nodes[2].Dev.Status().Peers[0].Connected {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if err := c.Nodes[2].Dev.Create(timeout(t, time.Minute), true); err == nil {
			t.Fatalf("a second beginning\n%s", c.Describe())
		}
		c.Heal(1, 2)
		c.mustSync(t, 0)
		c.mustEqual(t)
	})
}

// TestADiskOfWhichNothingIsKnownIsTakenInWhole: the generation that a primary
// begins while the disk is in contact does not make it one of that generation.
func TestADiskOfWhichNothingIsKnownIsTakenInWhole(t *testing.T) {
	o := three()
	o.Existing = replication.Of(2)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		if _, err := c.Nodes[2].Disk.Disk("hand").WriteAt([]byte("before"), mib); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
	})
}

// TestADeviceBeginsWhereAMajorityKnows: a disk that was there before is the device's only
// once so many have noted it that nobody is promoted elsewhere without it.
func TestADeviceBeginsWhereAMajorityKnows(t *testing.T) {
	o := three()
	o.Existing = replication.Of(0)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		data := []byte("before")
		if _, err := c.Nodes[0].Disk.Disk("hand").WriteAt(data, mib); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		c.Isolate(0)
		if err := c.Nodes[0].Dev.Create(timeout(t, time.Minute), true); err == nil || !strings.Contains(err.Error(), "1 of 3 disks in reach, 2 needed") {
			t.Fatalf("alone: %v\n%s", err, c.Describe())
		}
		c.Heal(0, 1)
		c.Cut(1, 2)
		if err := c.Nodes[0].Dev.Create(timeout(t, time.Minute), true); err != nil {
			t.Fatalf("with n1: %v\n%s", err, c.Describe())
		}
		c.Nodes[0].Kill()
		c.Heal(1, 2)
		time.Sleep(10 * time.Second)
		for n := 1; n < 3; n++ {
			if err := c.Nodes[n].Dev.Promote(timeout(t, 10*time.Second), false); err == nil {
				t.Fatalf("n%d was promoted without the device's data\n%s", n, c.Describe())
			}
		}
		c.Heal(0, 2)
		if err := c.Nodes[0].Start(); err != nil {
			t.Fatal(err)
		}
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
		got := make([]byte, len(data))
		if c.Nodes[2].Disk.Peek(got, mib); !bytes.Equal(got, data) {
			t.Fatalf("the peers hold something else\n%s", c.Describe())
		}
	})
}

// TestADeviceDoesNotBeginBesideAPrimary: the one node that both a primary, of disks on which
// nothing is, and a disk that was there before are in contact with lets one of them begin.
func TestADeviceDoesNotBeginBesideAPrimary(t *testing.T) {
	o := three()
	o.Existing = replication.Of(0)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		time.Sleep(10 * time.Second)
		c.Cut(0, 1)
		c.mustPromote(t, 1)
		time.Sleep(time.Second) // until n2 has heard of it
		if err := c.Nodes[0].Dev.Create(timeout(t, time.Minute), true); err == nil || !strings.Contains(err.Error(), "sees n1 as primary") {
			t.Fatalf("created beside a primary: %v\n%s", err, c.Describe())
		}
		c.mustWrite(t, 1, 0, 'a', 4096)
		if err := c.Nodes[0].Dev.Create(timeout(t, time.Minute), true); err == nil {
			t.Fatalf("created beside what was written\n%s", c.Describe())
		}
		c.Heal(0, 1)
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
	})
}

// TestAPrimaryOfBlankDisksIsDemoted, where most of the disks were there before and wait
// for a word: nothing was written, so nothing has to be on more of them.
func TestAPrimaryOfBlankDisksIsDemoted(t *testing.T) {
	o := three()
	o.Existing = replication.Of(1, 2)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		time.Sleep(10 * time.Second)
		c.mustPromote(t, 0)
		if err := c.Nodes[0].Dev.Demote(timeout(t, 10*time.Second)); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		time.Sleep(time.Second) // until all have heard of it
		if err := c.Nodes[1].Dev.Create(timeout(t, time.Minute), true); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustEqual(t)
	})
}

// TestWhatADeviceIsAboutToBeginWithIsNotPassedOver: all others know that the device has begun
// with what one disk holds, and that does not bear it yet, because one of them does not answer.
// The disks of the others are blank, and none of them is current.
func TestWhatADeviceIsAboutToBeginWithIsNotPassedOver(t *testing.T) {
	for _, late := range []bool{false, true} {
		o := three()
		o.Nodes, o.Existing = 4, replication.Of(0)
		bubble(t, o, func(t *testing.T, c *Cluster) {
			if _, err := c.Nodes[0].Disk.Disk("hand").WriteAt(bytes.Repeat([]byte{'a'}, mib), 0); err != nil {
				t.Fatal(err)
			}
			if late {
				c.Cut(0, 1)
			}
			time.Sleep(10 * time.Second)
			c.SetTrap(sendPoint(wire.GenCommit), 0, func(_, _ *Node) { c.Stall(3, 0, wire.Meta) })
			done := make(chan error, 1)
			go func() { done <- c.Nodes[0].Dev.Create(timeout(t, time.Minute), true) }()
			for range 40 {
				time.Sleep(100 * time.Millisecond)
				c.Heal(0, 1)
				for _, n := range c.Nodes[1:] {
					if s := n.Dev.Status(); s.Disk > replication.Outdated && s.Gens.Behind() {
						t.Fatalf("%s passes for %v\n%s", n.Name, s.Disk, c.Describe())
					}
				}
			}
			c.Flow(3, 0, wire.Meta)
			if err := <-done; err != nil {
				t.Error(err)
			}
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHold(t, 0, 'a')
		})
	}
}

// TestADiskThatBeginsADeviceBearsThatFromThenOn: its metadata say so before the others are told
// that it is in force, and nothing else that is written there meanwhile takes it back.
func TestADiskThatBeginsADeviceBearsThatFromThenOn(t *testing.T) {
	o := three()
	o.Existing = replication.Of(0, 1, 2)
	bubble(t, o, func(t *testing.T, c *Cluster) {
		if _, err := c.Nodes[0].Disk.Disk("hand").WriteAt(bytes.Repeat([]byte{'a'}, mib), 0); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		c.SetTrap(takePoint(wire.GenCommit), 0, func(at, with *Node) {
			c.Stall(1, 0, wire.Meta)
			c.Stall(2, 0, wire.Meta)
		})
		done := make(chan error, 1)
		go func() { done <- c.Nodes[0].Dev.Create(timeout(t, time.Minute), true) }()
		time.Sleep(time.Second)
		for _, n := range c.Nodes[1:] {
			c.Cut(0, n.ID)
			c.Heal(0, n.ID)
		}
		time.Sleep(time.Second)
		if g := c.Nodes[0].Dev.Status().Gens; g.Seen == replication.NoGen {
			t.Fatalf("it has not heard that it is in force\n%s", c.Describe())
		}
		c.Nodes[0].Kill()
		<-done
		c.mustStart(t, 0)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 0, 'a')
	})
}
