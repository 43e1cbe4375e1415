package simtest

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// mustReconfigure changes a node's configuration while it runs.
func (n *Node) mustReconfigure(t *testing.T, change func(*device.Config)) {
	t.Helper()
	cfg := n.Config()
	change(&cfg)
	if err := n.Dev.Reconfigure(cfg); err != nil {
		t.Fatal(err)
	}
}

// parted counts how often a node lost the agreement with a peer.
func (n *Node) parted() int { return n.told("replication", "Off") }

// TestReconfiguredNodeByNode: while one node after the other takes another
// protocol and quorum nobody is parted and every write is answered; meanwhile
// each names the others that it differs from.
func TestReconfiguredNodeByNode(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		for i := range c.Nodes {
			c.mustSync(t, i)
		}
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 1, 4096)
		time.Sleep(10 * time.Second) // whatever the new primary makes its replicas do is done
		synctest.Wait()
		before := [3]int{c.Nodes[0].parted(), c.Nodes[1].parted(), c.Nodes[2].parted()}
		fill := byte(0)
		for step, cfg := range []device.Config{
			{Protocol: replication.ProtocolA, Quorum: replication.QuorumPolicy{}, Fingerprint: 1},
			{Protocol: replication.ProtocolB, Quorum: replication.QuorumPolicy{Kind: replication.QuorumAll}, Fingerprint: 2},
			{Protocol: replication.ProtocolC, Quorum: majority(), OnNoQuorum: device.FailIO, AutoPromote: true, ResyncRate: mib, Fingerprint: 0},
		} {
			for i, n := range c.Nodes {
				n.mustReconfigure(t, func(to *device.Config) {
					to.Protocol, to.Quorum, to.OnNoQuorum = cfg.Protocol, cfg.Quorum, cfg.OnNoQuorum
					to.AutoPromote, to.ResyncRate, to.Fingerprint = cfg.AutoPromote, cfg.ResyncRate, cfg.Fingerprint
				})
				fill++
				c.mustWrite(t, 0, int64(fill)*4096, fill, 8192)
				time.Sleep(time.Second)
				synctest.Wait()
				for j, m := range c.Nodes {
					var want []string
					for k, o := range c.Nodes {
						if (j <= i) != (k <= i) {
							want = append(want, o.Name)
						}
					}
					if got := m.Dev.Status().Differs; fmt.Sprint(got) != fmt.Sprint(want) {
						t.Errorf("step %d, %d reconfigured: %s differs from %v, want %v", step, i+1, m.Name, got, want)
					}
				}
			}
			if st := c.Nodes[0].Dev.Status(); st.Protocol != cfg.Protocol || st.Policy != cfg.Quorum || st.OnNoQuorum != cfg.OnNoQuorum {
				t.Errorf("step %d: %+v", step, st)
			}
		}
		for i, n := range c.Nodes {
			if n.parted() != before[i] {
				t.Errorf("%s was parted from a peer\n%s", n.Name, c.Describe())
			}
		}
		if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Flush, 0, 0, nil, 0); err != nil {
			t.Fatal(err)
		}
		c.mustEqual(t)
	})
}

// TestALostConnectionIsNotAgreedOnWhileConfigurationsDiffer, and is as soon as
// they are equal, whichever side changes.
func TestALostConnectionIsNotAgreedOnWhileConfigurationsDiffer(t *testing.T) {
	for _, second := range []int{0, 2} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			other := func(to *device.Config) { to.Fingerprint = 7 }
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			c.Nodes[1].mustReconfigure(t, other)
			c.Nodes[2-second].mustReconfigure(t, other) // one of 0 and 2; the other follows later
			c.Isolate(2)
			c.mustWrite(t, 0, 0, 'a', mib)
			c.Rejoin(2)
			time.Sleep(10 * time.Second)
			refused := false
			for _, p := range c.Nodes[0].Dev.Status().Peers {
				refused = refused || p.Node == "n2" && strings.Contains(p.Refused, "configurations of this device differ")
			}
			if why := fmt.Sprint(c.Nodes[0].Dev.Why()); !refused || !strings.Contains(why, "configured otherwise, in what nodes must agree on, than ") {
				t.Errorf("%s\n%s", why, c.Describe())
			}
			c.Nodes[second].mustReconfigure(t, other)
			c.mustSync(t, 0)
			c.mustEqual(t)
		})
	}
}

// TestRequestsThatWaitFollowTheNewPolicy: those held back for want of quorum
// fail when that is what is asked for, and go on when quorum is not.
func TestRequestsThatWaitFollowTheNewPolicy(t *testing.T) {
	for name, change := range map[string]func(*device.Config){
		"io-error":  func(to *device.Config) { to.OnNoQuorum = device.FailIO },
		"no quorum": func(to *device.Config) { to.Quorum = replication.QuorumPolicy{} },
	} {
		bubble(t, three(), func(t *testing.T, c *Cluster) {
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			c.Isolate(0)
			answered := make(chan error, 1)
			go func() {
				answered <- c.Nodes[0].Do(timeout(t, time.Hour), block.Write, 0, 0, bytes.Repeat([]byte{'x'}, 4096), 0)
			}()
			time.Sleep(time.Minute)
			synctest.Wait()
			select {
			case err := <-answered:
				t.Fatalf("%s: without quorum it was answered: %v", name, err)
			default:
			}
			c.Nodes[0].mustReconfigure(t, change)
			err := <-answered
			if failed := err != nil && !errors.Is(err, ErrUnanswered); failed != (name == "io-error") || errors.Is(err, ErrUnanswered) {
				t.Errorf("%s: %v\n%s", name, err, c.Describe())
			}
			if st := c.Nodes[0].Dev.Status(); st.Suspended {
				t.Errorf("%s: it is suspended still", name)
			}
		})
	}
}

// TestTheResyncRateChangesWhileAResyncRuns: a limit holds from when it is
// given, whatever was copied without one, and is lifted at once.
func TestTheResyncRateChangesWhileAResyncRuns(t *testing.T) {
	o := three()
	o.Size = 64 * mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		copied := func() (n int64) { // by what the source has left
			for _, p := range c.Nodes[0].Dev.Status().Peers {
				if p.Node == "n2" {
					n = o.Size - p.OutOfSync
				}
			}
			return n
		}
		limit := func(rate int64) func(*device.Config) { return func(to *device.Config) { to.ResyncRate = rate } }
		c.Isolate(2)
		for off := int64(0); off < 64*mib; off += mib {
			c.mustWrite(t, 0, off, byte(off/mib+1), mib)
		}
		c.Nodes[2].mustReconfigure(t, limit(mib))
		c.Rejoin(2)
		time.Sleep(5 * time.Second)
		first := copied()
		time.Sleep(10 * time.Second)
		if done := copied() - first; done < 8*mib || done > 12*mib {
			t.Errorf("at 1 MiB/s, %d KiB were copied in 10 s\n%s", done>>10, c.Describe())
		}
		c.Nodes[2].mustReconfigure(t, limit(0))
		for range 80 { // less than until the next turn of its clock
			if first = copied(); first >= 24*mib {
				break
			}
			time.Sleep(time.Millisecond)
		}
		c.Nodes[2].mustReconfigure(t, limit(2*mib))
		if first < 24*mib || first > 48*mib {
			t.Fatalf("without a limit it came to %d KiB\n%s", first>>10, c.Describe())
		}
		time.Sleep(100 * time.Millisecond) // what was under way has arrived
		first = copied()
		time.Sleep(4 * time.Second)
		if done := copied() - first; done < 6*mib || done > 11*mib {
			t.Errorf("at 2 MiB/s again, %d KiB were copied in 4 s\n%s", done>>10, c.Describe())
		}
		c.Nodes[2].mustReconfigure(t, limit(0))
		c.mustSync(t, 0)
		c.mustEqual(t)
	})
}

// TestTheRateChangesWhileAVerifyRuns: likewise for a verify, which is not to wait
// first for as long as what it has read without a limit would have taken with one.
func TestTheRateChangesWhileAVerifyRuns(t *testing.T) {
	o := three()
	o.Size = 64 * mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.settle(t)
		n := c.Nodes[0]
		done := func() int64 {
			for _, p := range n.Dev.Status().Peers {
				if p.Node == "n1" && p.Resync != nil {
					return p.Resync.Done
				}
			}
			return 0
		}
		limit := func(rate int64) func(*device.Config) { return func(to *device.Config) { to.ResyncRate = rate } }
		n.Disk.Inject(storetest.Fault{Ops: storetest.OpRead, Delay: 10 * time.Millisecond})
		if _, err := n.Dev.Verify("n1"); err != nil {
			t.Fatal(err)
		}
		for range 1000 {
			if done() >= 16*mib {
				break
			}
			time.Sleep(time.Millisecond)
		}
		n.mustReconfigure(t, limit(2*mib))
		time.Sleep(500 * time.Millisecond) // what was under way has arrived
		first := done()
		if first < 16*mib || first > 32*mib {
			t.Fatalf("without a limit it came to %d KiB\n%s", first>>10, c.Describe())
		}
		time.Sleep(4 * time.Second)
		if got := done() - first; got < 6*mib || got > 11*mib {
			t.Errorf("at 2 MiB/s, %d KiB were compared in 4 s\n%s", got>>10, c.Describe())
		}
		first = done()
		n.mustReconfigure(t, limit(0))
		time.Sleep(80 * time.Millisecond) // less than until the next turn of its clock
		if got := done() - first; got < 2*mib {
			t.Errorf("without a limit again, %d KiB were compared at once\n%s", got>>10, c.Describe())
		}
	})
}

func TestWhatNeedsAReopenIsRefused(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		n := c.Nodes[0]
		for name, change := range map[string]func(*device.Config){
			"size":  func(to *device.Config) { to.Size *= 2 },
			"nodes": func(to *device.Config) { to.Nodes = to.Nodes[:2] },
			"name":  func(to *device.Config) { to.Name = "r1" },
		} {
			cfg := n.Config()
			change(&cfg)
			cfg.Protocol = replication.ProtocolA
			if err := n.Dev.Reconfigure(cfg); !errors.Is(err, device.ErrReopen) || n.Dev.Status().Protocol != replication.ProtocolC {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// TestDiskTimeoutChangesWhileItRuns: a limit that is taken away lets a disk
// hang for as long as it likes, and one that is given bounds what begins then.
func TestDiskTimeoutChangesWhileItRuns(t *testing.T) {
	o := three()
	o.DiskTimeout = 2 * time.Second
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		l := c.begin(t, 0)
		l.moves(t, c)
		n := c.Nodes[0]
		n.mustReconfigure(t, func(to *device.Config) { to.DiskTimeout = 0 })
		hang := n.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Hang: true})
		time.Sleep(time.Minute)
		if st := n.Dev.Status(); st.Disk != replication.UpToDate || hang.Hits() == 0 {
			t.Fatalf("the disk is %v after %d operations that hang", st.Disk, hang.Hits())
		}
		n.Disk.Lift(hang)
		hang.Release()
		l.moves(t, c)
		n.mustReconfigure(t, func(to *device.Config) { to.DiskTimeout = 5 * time.Second })
		l.moves(t, c)
		hang = n.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Hang: true})
		c.until(t, 0, "detached", is(replication.Diskless))
		l.moves(t, c)
		n.Disk.Lift(hang)
		hang.Release()
		time.Sleep(time.Second)
		// A disk that is attached has the limit that holds.
		if err := n.Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		c.mustSync(t, 0)
		l.moves(t, c)
		hang = n.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Hang: true})
		c.until(t, 0, "detached again", is(replication.Diskless))
		n.Disk.Lift(hang)
		hang.Release()
		time.Sleep(time.Second)
		if err := n.Dev.Attach(timeout(t, time.Minute)); err != nil {
			t.Fatal(err)
		}
		l.moves(t, c)
		l.finish(t, c)
	})
}

// TestAClientComesWhileItsNodeIsReconfigured, be it let in or not: it is for the race
// detector.
func TestAClientComesWhileItsNodeIsReconfigured(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		n := c.Nodes[0]
		var clients sync.WaitGroup
		clients.Go(func() {
			for range 20 {
				if n.Dev.OpenFor(timeout(t, time.Minute)) == nil {
					n.Dev.Released(timeout(t, time.Minute))
				}
			}
		})
		for i := range 20 {
			n.mustReconfigure(t, func(to *device.Config) { to.AutoPromote = i%2 == 0 })
			time.Sleep(time.Millisecond)
		}
		clients.Wait()
	})
}
