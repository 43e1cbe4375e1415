package simtest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestResizeUnderLoad grows a device from each node in turn while a client
// writes; the new space is zero, can be written, and survives a restart of all.
func TestResizeUnderLoad(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustPromote(t, 0)
		l := c.begin(t, 0)
		size := int64(4 * mib)
		for n := range c.Nodes {
			l.moves(t, c)
			size += mib
			if err := c.Nodes[n].Dev.Resize(timeout(t, time.Minute), size); err != nil {
				t.Fatalf("from n%d: %v\n%s", n, err, c.Describe())
			}
			time.Sleep(time.Second) // all have heard of it
			for _, m := range c.Nodes {
				if got := m.Dev.Size(); got != size {
					t.Fatalf("%s has %d bytes, want %d", m.Name, got, size)
				}
			}
			got := make([]byte, 4096)
			if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Read, 0, size-4096, got, 0); err != nil || strings.Trim(string(got), "\x00") != "" {
				t.Fatalf("the new space is not zero: %v", err)
			}
			c.mustWrite(t, 0, size-4096, byte('a'+n), 4096)
		}
		if err := c.Nodes[1].Dev.Resize(timeout(t, time.Minute), size-mib); err == nil || !strings.Contains(err.Error(), "cut data off") {
			t.Fatalf("shrunk: %v", err)
		}
		l.moves(t, c)
		l.finish(t, c)
		// A node that was away during marks in the new space resyncs them.
		c.Nodes[2].Kill()
		c.mustWrite(t, 0, size-8192, 'z', 8192)
		for _, n := range c.Nodes {
			n.Kill()
		}
		for _, n := range c.Nodes {
			if err := n.Start(); err != nil {
				t.Fatal(err)
			}
		}
		for n := range c.Nodes {
			c.mustSync(t, n)
			if got := c.Nodes[n].Dev.Size(); got != size {
				t.Fatalf("n%d came back with %d bytes, want %d", n, got, size)
			}
		}
		c.mustEqual(t)
		c.mustPromote(t, 1)
		got := make([]byte, 8192)
		if err := c.Nodes[1].Do(timeout(t, time.Minute), block.Read, 0, size-8192, got, 0); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{'z'}, 8192)) {
			t.Fatalf("the grown part is lost: %v", err)
		}
	})
}

// TestResizeIsAllOrNothing: one node without room, or out of reach, and nobody grows.
func TestResizeIsAllOrNothing(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		time.Sleep(time.Second) // what each hears of the others' first agreements is a reason to agree anew
		in := c.Nodes[2].Disk.Inject(storetest.Fault{Ops: storetest.OpTruncate, Err: errors.New("no space")})
		if err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 8*mib); err == nil || !strings.Contains(err.Error(), "n2 has no room") {
			t.Fatalf("grown without room: %v", err)
		}
		c.Nodes[2].Disk.Lift(in)
		for _, n := range c.Nodes {
			if n.Dev.Size() != 4*mib {
				t.Fatalf("%s has grown", n.Name)
			}
		}
		c.Nodes[1].Kill()
		if err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 8*mib); err == nil || !strings.Contains(err.Error(), "n1 is not in reach") {
			t.Fatalf("grown without a node: %v", err)
		}
		if err := c.Nodes[1].Start(); err != nil {
			t.Fatal(err)
		}
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		if err := c.Nodes[1].Dev.Resize(timeout(t, time.Minute), 8*mib); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
	})
}

// TestAMissedResizeIsLearnt: whoever made room and did not hear the end of it
// takes over the size at the next handshake.
func TestAMissedResizeIsLearnt(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustPromote(t, 0)
		done := make(chan error, 1)
		go func() { done <- c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 8*mib) }()
		for range 1000 {
			if c.Nodes[0].Dev.Size() == 8*mib {
				break
			}
			time.Sleep(10 * time.Microsecond)
		}
		c.Cut(0, 2) // before, or after, it heard
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		c.mustWrite(t, 0, 7*mib, 'x', 4096)
		c.Heal(0, 2)
		c.mustSync(t, 0)
		if got := c.Nodes[2].Dev.Size(); got != 8*mib {
			t.Fatalf("n2 has %d bytes", got)
		}
		c.mustEqual(t)
	})
}

// TestRoomThatIsNotUsedIsNotResynced: a resize that failed leaves room on some
// nodes. Whoever has none is still resynced as a whole.
func TestRoomThatIsNotUsedIsNotResynced(t *testing.T) {
	for _, poor := range []int{1, 2} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			for n := range c.Nodes {
				c.mustSync(t, n)
			}
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', mib)
			c.Nodes[poor].Disk.Inject(storetest.Fault{Ops: storetest.OpTruncate, Err: errors.New("no space")})
			if err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 8*mib); err == nil {
				t.Fatal("grown without room")
			}
			time.Sleep(time.Second) // all have heard of it
			if err := c.Nodes[poor].Dev.Invalidate(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			for n := range c.Nodes {
				c.mustSync(t, n)
			}
			c.mustHold(t, 0, 'a')
		})
	}
}

// TestRoomSurvivesACrash: a node that made room, and was killed before it heard
// that the device has grown, has the room when it learns of it.
func TestRoomSurvivesACrash(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		for n := range c.Nodes {
			c.mustSync(t, n)
		}
		c.mustPromote(t, 0)
		if err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 5*mib); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second) // all have heard of it
		trap := c.SetTrap("commit: before it is taken", 0, func(at, _ *Node) { at.PowerOff(storetest.Crash{}) })
		if err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 6*mib); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		n := trap.Sprung()
		if n == nil {
			t.Fatal("nobody came to the point")
		}
		n.Bury()
		c.mustWrite(t, 0, 6*mib-8192, 'a', 8192)
		if err := n.Start(); err != nil {
			t.Fatal(err)
		}
		c.mustSync(t, 0)
		c.mustWrite(t, 0, 6*mib-4096, 'b', 4096)
		if st := n.Dev.Status(); st.Disk != replication.UpToDate || st.Size != 6*mib {
			t.Fatalf("%s has %d bytes and is %v\n%s", n.Name, st.Size, st.Disk, c.Describe())
		}
		c.mustEqual(t)
	})
}

// TestAReplacedDiskFitsADeviceThatHasGrown, before any configuration gives the new
// size: it has room made for it. One that cannot have stays out, and it is told why.
func TestAReplacedDiskFitsADeviceThatHasGrown(t *testing.T) {
	for _, small := range []bool{false, true} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			if err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 8*mib); err != nil {
				t.Fatal(err)
			}
			c.mustWrite(t, 0, 6*mib, 'a', 4096)
			n := c.Nodes[1]
			n.Kill()
			n.EmptyDisk(4 * mib)
			if small {
				n.Disk.Inject(storetest.Fault{Ops: storetest.OpTruncate, Err: syscall.ENOSPC})
			}
			c.mustStart(t, 1)
			if !small {
				c.mustAllSync(t)
				c.mustEqual(t)
				return
			}
			time.Sleep(10 * time.Second)
			if why := fmt.Sprint(n.Dev.Why()); n.Dev.Status().Disk == replication.UpToDate || !strings.Contains(why, "no room for the 8.0 MiB") {
				t.Errorf("%v", why)
			}
		})
	}
}

// TestADiskIsAttachedToADeviceThatHasGrown since it was opened first.
func TestADiskIsAttachedToADeviceThatHasGrown(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		if err := c.Nodes[0].Dev.Resize(timeout(t, time.Minute), 8*mib); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Second)
		n := c.Nodes[1]
		if err := n.Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustWrite(t, 0, 6*mib, 'a', 4096)
		if err := n.Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
