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
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestDetachAndAttachUnderLoad takes each disk in turn away from under a
// writing client and gives it back: only what was missed is resynced.
func TestDetachAndAttachUnderLoad(t *testing.T) {
	for _, nodes := range []int{2, 3} {
		o := three()
		o.Nodes = nodes
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 3*mib, 'x', mib)
			l := c.begin(t, 0)
			for _, n := range []int{0, 1, nodes - 1, 0} {
				l.moves(t, c)
				if err := c.Nodes[n].Dev.Detach(timeout(t, time.Minute)); err != nil {
					t.Fatalf("detach on n%d: %v\n%s", n, err, c.Describe())
				}
				c.until(t, n, "detached", is(replication.Diskless))
				l.moves(t, c)
				if err := c.Nodes[n].Dev.Attach(timeout(t, time.Minute)); err != nil {
					t.Fatalf("attach on n%d: %v\n%s", n, err, c.Describe())
				}
				c.mustSync(t, n)
				l.moves(t, c)
			}
			l.finish(t, c)
		})
	}
}

// TestAttachResyncsWhatWasMissed and no more, of the primary's disk as of a
// replica's.
func TestAttachResyncsWhatWasMissed(t *testing.T) {
	for _, n := range []int{0, 1} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 3*mib)
			time.Sleep(5 * time.Second) // a background flush makes it stable
			if err := c.Nodes[n].Dev.Detach(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			c.mustWrite(t, 0, mib, 'b', 64<<10)
			if err := c.Nodes[n].Dev.Attach(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			c.mustSync(t, n)
			c.mustSync(t, 0)
			c.mustEqual(t)
			sent := uint64(0)
			for _, m := range c.Nodes {
				sent += m.Dev.Status().Stats.ResyncBytes
			}
			if sent > 128<<10 { // once to it, and at most once more to the third
				t.Errorf("%d bytes were resynced for 64 KiB that n%d missed\n%s", sent, n, c.Describe())
			}
		})
	}
}

func TestTheLastCurrentDiskStays(t *testing.T) {
	o := three()
	o.Nodes = 2
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustSync(t, 1)
		if err := c.Nodes[1].Dev.Detach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		err := c.Nodes[0].Dev.Detach(timeout(t, time.Minute))
		if err == nil || !strings.Contains(err.Error(), "cannot detach r0") {
			t.Fatalf("the last disk: %v", err)
		}
		if err := c.Nodes[1].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustSync(t, 0)
		c.mustSync(t, 1)
		if err := c.Nodes[1].Dev.Attach(timeout(t, time.Minute)); err == nil {
			t.Fatal("attached twice")
		}
		// Both at once: one stays.
		errs := make(chan error, 2)
		for _, n := range c.Nodes {
			go func() { errs <- n.Dev.Detach(timeout(t, time.Minute)) }()
		}
		if a, b := <-errs, <-errs; a == nil && b == nil {
			t.Fatalf("both disks are gone\n%s", c.Describe())
		}
	})
}

// TestDetachWaitsForAHandshake: a peer that is shaking hands is about to be quorum; one
// that does not come to it is not waited for.
func TestDetachWaitsForAHandshake(t *testing.T) {
	for _, ends := range []bool{true, false} {
		t.Run(fmt.Sprint("ends ", ends), func(t *testing.T) {
			bubble(t, three(), func(t *testing.T, c *Cluster) {
				c.mustAllSync(t)
				c.Cut(0, 2)
				time.Sleep(time.Second)
				c.Heal(0, 2)
				for _, l := range []wire.Link{wire.Data, wire.Meta} {
					c.Stall(2, 0, l)
				}
				done := make(chan error)
				go func() { done <- c.Nodes[0].Dev.Detach(timeout(t, time.Minute)) }()
				time.Sleep(2 * time.Second)
				if ends {
					for _, l := range []wire.Link{wire.Data, wire.Meta} {
						c.Flow(2, 0, l)
					}
				}
				err := <-done
				if refused, ok := errors.AsType[*device.RefusedError](err); ends && err != nil || !ends && (!ok || !strings.Contains(refused.Why, "no quorum")) {
					t.Fatalf("detach: %v\n%s", err, c.Describe())
				}
			})
		})
	}
}

// TestAFailedDiskIsDetachedAndComesBack fails a disk in one write under load,
// on the primary and on a replica: the client sees nothing of it.
func TestAFailedDiskIsDetachedAndComesBack(t *testing.T) {
	for _, n := range []int{0, 1} {
		for _, op := range []storetest.Op{storetest.OpWrite, storetest.OpSync} {
			bubble(t, three(), func(t *testing.T, c *Cluster) {
				c.mustSync(t, 0)
				c.mustPromote(t, 0)
				l := c.begin(t, 0)
				l.moves(t, c)
				fault := c.Nodes[n].Disk.Inject(storetest.Fault{Ops: op, Err: errors.New("bad block")})
				c.until(t, n, "detached", is(replication.Diskless))
				c.Nodes[n].Disk.Lift(fault)
				l.moves(t, c)
				if op == storetest.OpSync {
					c.Nodes[n].Disk = c.Nodes[n].Disk.CrashClone(storetest.Crash{})
					l.end()
					return
				}
				if err := c.Nodes[n].Dev.Attach(timeout(t, time.Minute)); err != nil {
					t.Fatal(err)
				}
				l.moves(t, c)
				l.finish(t, c)
			})
		}
	}
}

// TestADiskThatFailsWhileItIsAttached: whenever that is, who attaches it is told,
// and can do so again when the disk works.
func TestADiskThatFailsWhileItIsAttached(t *testing.T) {
	for _, role := range []string{"primary", "secondary"} {
		for skip := range 16 {
			t.Run(fmt.Sprint(role, " ", skip), func(t *testing.T) {
				bubble(t, three(), func(t *testing.T, c *Cluster) {
					n := c.Nodes[0]
					c.mustAllSync(t)
					p := 0
					if role == "secondary" {
						p = 1
					}
					c.mustPromote(t, p)
					c.mustWrite(t, p, 0, 'a', 64<<10)
					for i, im := range []*storetest.Image{n.Meta, n.Disk} {
						if err := n.Dev.Detach(timeout(t, time.Minute)); err != nil {
							t.Fatal(err)
						}
						c.mustWrite(t, p, 0, byte('b'+i), 64<<10)
						in := im.Inject(storetest.Fault{Ops: storetest.OpWrite | storetest.OpSync, Skip: skip, Err: syscall.EIO})
						err := n.Dev.Attach(timeout(t, time.Minute))
						time.Sleep(time.Second) // it may fail just after
						im.Lift(in)
						if n.Dev.Status().Detached {
							if again := n.Dev.Attach(timeout(t, time.Minute)); again != nil {
								t.Fatalf("it cannot be attached again: %v; at first: %v\n%s", again, err, c.Describe())
							}
						}
						c.mustAllSync(t)
					}
					c.mustEqual(t)
					c.mustHold(t, 0, 'c')
				})
			})
		}
	}
}

// TestErrorsPassedOnAreMended: with pass-on the disk stays, and what it could
// not write comes back from a peer.
func TestErrorsPassedOnAreMended(t *testing.T) {
	for _, n := range []int{0, 1} {
		o := three()
		o.PassOn = true
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			l := c.begin(t, 0)
			l.moves(t, c)
			in := c.Nodes[n].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: errors.New("bad block"), Count: 3})
			l.moves(t, c)
			if in.Hits() == 0 {
				t.Fatal("nothing was hit")
			}
			l.finish(t, c)
			if st := c.Nodes[n].Dev.Status(); st.Disk != replication.UpToDate {
				t.Fatalf("the disk is %v\n%s", st.Disk, c.Describe())
			}
		})
	}
}

// TestAnErrorThatNobodyMends: what the primary's disk did not take when no peer
// was in reach has failed, even where a peer has it, or is sent it later: the
// primary, which is current, sends the peers what it has.
func TestAnErrorThatNobodyMends(t *testing.T) {
	for _, took := range []bool{false, true} {
		o := pairOf(majority())
		o.PassOn = true
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			if !took {
				c.Stall(0, 1, wire.Data)
			}
			in := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Count: 1, Hang: true, Err: syscall.EIO})
			answer := make(chan error, 1)
			go func() {
				answer <- c.Nodes[0].Do(timeout(t, time.Minute), block.Write, 0, 0, bytes.Repeat([]byte{'b'}, 4096), 0)
			}()
			in.Await(1)
			time.Sleep(time.Second)
			c.Cut(0, 1)
			in.Release()
			time.Sleep(time.Second)
			c.Heal(0, 1)
			err := <-answer
			c.mustAllSync(t)
			c.mustEqual(t)
			c.mustHold(t, 0, 'a')
			if !errors.Is(err, block.ErrIO) && !errors.Is(err, syscall.EIO) {
				t.Errorf("answered with %v\n%s", err, c.Describe())
			}
		})
	}
}

// TestAReadErrorIsMendedFromAPeer: one bad block costs a slow read, not the disk.
func TestAReadErrorIsMendedFromAPeer(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 256<<10)
		in := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Range: block.Extent{Off: 8192, Len: 4096}, Err: errors.New("bad block")})
		got := make([]byte, 100<<10)
		if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Read, 0, 1000, got, 0); err != nil {
			t.Fatal(err)
		}
		if strings.Trim(string(got), "a") != "" {
			t.Fatal("something else was read")
		}
		st := c.Nodes[0].Dev.Status()
		if in.Hits() == 0 || st.Disk != replication.UpToDate || st.Stats.Mended == 0 {
			t.Fatalf("%d hits, disk %v, %d mended", in.Hits(), st.Disk, st.Stats.Mended)
		}
		c.mustEqual(t)
	})
}

// TestADiskThatHangsIsDetached: with disk_timeout the device goes on without
// it, and what comes back late touches nothing. So it does where it is the
// metadata that hangs.
func TestADiskThatHangsIsDetached(t *testing.T) {
	t.Run("disk", func(t *testing.T) {
		hanging(t, storetest.OpWrite, func(n *Node) *storetest.Image { return n.Disk })
	})
	for name, op := range map[string]storetest.Op{"writes": storetest.OpWrite, "syncs": storetest.OpSync} {
		t.Run("metadata, "+name, func(t *testing.T) {
			hanging(t, op, func(n *Node) *storetest.Image { return n.Meta })
		})
	}
}

func hanging(t *testing.T, op storetest.Op, what func(*Node) *storetest.Image) {
	for _, n := range []int{0, 1} {
		o := three()
		o.DiskTimeout, o.Extents, o.ExtentBytes = 2*time.Second, 8, 64<<10
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			l := c.begin(t, 0)
			l.moves(t, c)
			hang := what(c.Nodes[n]).Inject(storetest.Fault{Ops: op, Hang: true})
			c.until(t, n, "detached", is(replication.Diskless))
			l.moves(t, c)
			if err := c.Nodes[n].Dev.Attach(timeout(t, time.Minute)); err == nil || !strings.Contains(err.Error(), "still under way") {
				t.Fatalf("attached while the old disk hangs: %v", err)
			}
			what(c.Nodes[n]).Lift(hang)
			hang.Release()
			time.Sleep(time.Second)
			if err := c.Nodes[n].Dev.Attach(timeout(t, time.Minute)); err != nil {
				t.Fatal(err)
			}
			l.moves(t, c)
			l.finish(t, c)
		})
	}
}

// TestADiskIsAttachedWithoutQuorum: what waits for quorum does not keep out the
// disk that brings it back.
func TestADiskIsAttachedWithoutQuorum(t *testing.T) {
	o := three()
	o.Quorum = replication.QuorumPolicy{Kind: replication.QuorumAll}
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		in := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO})
		all := []asked{
			c.Nodes[0].ask(block.Write, 0, 0, bytes.Repeat([]byte{'b'}, 4096), 0),
			c.Nodes[0].ask(block.Write, block.FUA, 8192, bytes.Repeat([]byte{'b'}, 4096), 0),
			c.Nodes[0].ask(block.Flush, 0, 0, nil, 0),
		}
		c.until(t, 0, "detached", is(replication.Diskless))
		all = append(all, c.Nodes[0].ask(block.Write, 0, mib, bytes.Repeat([]byte{'c'}, 4096), 0))
		time.Sleep(5 * time.Second)
		if answered(all[0].done) {
			t.Fatalf("two of three answered\n%s", c.Describe())
		}
		c.Nodes[0].Disk.Lift(in)
		if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		c.mustAnswer(t, all)
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 0, 'b')
	})
}

// TestADiskIsAttachedWhileChangesWaitForTheLog: what a primary without a disk keeps
// in its place is full of what waits for quorum, and gets no room again; the log of
// the disk that is attached has some.
func TestADiskIsAttachedWhileChangesWaitForTheLog(t *testing.T) {
	o := three()
	o.Extents, o.ExtentBytes = 8, 64<<10
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		in := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO})
		var all []asked
		write := func(extent int64) {
			all = append(all, c.Nodes[0].ask(block.Write, 0, extent*o.ExtentBytes, bytes.Repeat([]byte{'b'}, 4096), 0))
		}
		write(0)
		c.until(t, 0, "detached", is(replication.Diskless))
		c.Stall(0, 1, wire.Data)
		c.Stall(0, 2, wire.Data)
		for extent := range int64(20) {
			write(extent)
		}
		time.Sleep(time.Second)
		c.Isolate(0)
		c.Nodes[0].Disk.Lift(in)
		time.Sleep(time.Second)
		if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatalf("%v\n%s", err, c.Describe())
		}
		c.Rejoin(0)
		c.mustAnswer(t, all)
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}

// TestRequestsUnderWayFailWithoutQuorum: where requests are not to wait for
// quorum those fail, too, that were under way when it was lost, whatever they
// would have waited for.
func TestRequestsUnderWayFailWithoutQuorum(t *testing.T) {
	for _, lose := range []func(c *Cluster){
		func(c *Cluster) { c.Nodes[2].Kill() },
		func(c *Cluster) { c.Isolate(0) },
	} {
		o := three()
		o.FailIO, o.Quorum = true, replication.QuorumPolicy{Kind: replication.QuorumAll}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'a', 4096)
			hang := c.Nodes[2].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite | storetest.OpSync, Hang: true})
			all := []asked{
				c.Nodes[0].ask(block.Write, 0, 0, bytes.Repeat([]byte{'b'}, 4096), 0),
				c.Nodes[0].ask(block.Write, block.FUA, 8192, bytes.Repeat([]byte{'b'}, 4096), 0),
				c.Nodes[0].ask(block.Flush, 0, 0, nil, 0),
			}
			hang.Await(1)
			time.Sleep(time.Second)
			lose(c)
			hang.Release()
			time.Sleep(10 * time.Second)
			for i, a := range all {
				if !answered(a.done) || a.r.Err == nil {
					t.Errorf("request %d: answered with %v\n%s", i, a.r.Err, c.Describe())
				}
			}
			if c.Nodes[2].Dev == nil {
				c.mustStart(t, 2)
			}
			c.Rejoin(0)
			c.mustAllSync(t)
			c.mustWrite(t, 0, 0, 'c', 4096)
			c.mustEqual(t)
		})
	}
}

// TestADetachThatWouldEndQuorumIsRefused: where this node cannot give its vote up, or
// the others are not there to do without it, nobody could be promoted any more, though
// the disk that is left is complete.
func TestADetachThatWouldEndQuorumIsRefused(t *testing.T) {
	detach := func(t *testing.T, c *Cluster, n int) error {
		time.Sleep(time.Second) // all have heard of the one before
		return c.Nodes[n].Dev.Detach(timeout(t, time.Minute))
	}
	mustRefuse := func(t *testing.T, c *Cluster, n int) {
		t.Helper()
		if err := detach(t, c, n); err == nil || !strings.Contains(err.Error(), "there would be no quorum") {
			t.Fatalf("detach on n%d: %v\n%s", n, err, c.Describe())
		}
	}
	t.Run("one is lost", func(t *testing.T) {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			c.mustPromote(t, 0)
			c.Nodes[2].Kill()
			c.mustWrite(t, 0, 0, 'a', 4096)
			mustRefuse(t, c, 1)
			c.mustWrite(t, 0, 0, 'b', 4096)
			c.mustStart(t, 2)
			c.mustAllSync(t)
			c.mustVote(t)
			if err := errors.Join(detach(t, c, 1), detach(t, c, 2)); err != nil {
				t.Fatalf("%v\n%s", err, c.Describe())
			}
			c.mustWrite(t, 0, 0, 'c', 4096) // they have given their votes up
		})
	})
	t.Run("one keeps its vote", func(t *testing.T) {
		o := three()
		o.Older = replication.Of(2) // it knows nothing of votes
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			if err := detach(t, c, 2); err != nil {
				t.Fatalf("%v\n%s", err, c.Describe())
			}
			mustRefuse(t, c, 1)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 'b', 4096)
		})
	})
	t.Run("all are needed", func(t *testing.T) {
		o := three()
		o.Quorum = replication.QuorumPolicy{Kind: replication.QuorumAll}
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustAllSync(t)
			if err := detach(t, c, 2); err != nil { // that is what was asked for
				t.Fatalf("%v\n%s", err, c.Describe())
			}
		})
	})
}

// TestWhatWasHeldWhenADiskCameGoesFirst: a primary is given its disk while a change waits for
// quorum. The log of that disk knows nothing of the change, and others are sent to nobody
// before it is everywhere: the logs of the replicas have room for no more than the primary's.
func TestWhatWasHeldWhenADiskCameGoesFirst(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		broken := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO})
		c.mustWrite(t, 0, 0, 'b', 4096)
		c.Nodes[0].Disk.Lift(broken)
		c.Stall(0, 1, wire.Data)
		c.Stall(0, 2, wire.Data)
		first := c.Nodes[0].ask(block.Write, 0, mib, fill('c'), 0)
		time.Sleep(10 * time.Millisecond)
		c.Isolate(0)
		if err := c.Nodes[0].Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		for _, n := range c.Nodes[1:] {
			n.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Range: block.Extent{Off: mib, Len: 4096}, Delay: 2 * time.Second})
		}
		c.Rejoin(0)
		second := c.Nodes[0].ask(block.Write, 0, 2*mib, fill('d'), 0)
		time.Sleep(time.Second)
		if answered(first.done) || answered(second.done) {
			t.Fatalf("first %t, second %t\n%s", answered(first.done), answered(second.done), c.Describe())
		}
		c.mustHold(t, 2*mib, 0)
		c.mustAnswer(t, []asked{first, second})
		c.mustAllSync(t)
		c.mustEqual(t)
		c.mustHold(t, 2*mib, fill('d')[0])
	})
}
