package simtest

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// burst submits writes without waiting for any, in order, and returns a channel
// that tells of each.
func (n *Node) burst(rs []*block.Request) chan *block.Request {
	done := make(chan *block.Request, len(rs))
	b := &block.Batch{}
	for _, r := range rs {
		r.Done = report(done)
		n.Dev.Submit(r, b)
	}
	b.Finish()
	return done
}

type report chan *block.Request

func (c report) Complete(r *block.Request, _ *block.Batch) { c <- r }

// depth counts how many writes are on a disk at a time.
type depth struct {
	mu        sync.Mutex
	now, most int
}

func (d *depth) add(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.now += n
	d.most = max(d.most, d.now)
}

// reached is the most that there were.
func (d *depth) reached() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.most
}

// slowWrites has every write take a random time, and counts those that take it
// at once.
func slowWrites(im *storetest.Image, seed uint64, most time.Duration) *depth {
	d := &depth{}
	rng := rand.New(rand.NewPCG(seed, 5))
	var mu sync.Mutex // guards rng
	im.Inject(storetest.Fault{Ops: storetest.OpWrite, DelayFunc: func(storetest.Record) time.Duration {
		mu.Lock()
		took := time.Duration(rng.Int64N(int64(most)))
		mu.Unlock()
		d.add(1)
		time.AfterFunc(took, func() { d.add(-1) })
		return took
	}})
	return d
}

// TestOverlappingWritesKeepTheSendersOrder: on disks that carry out what they
// are given in any order, overlapping writes end as they were sent, and others
// are carried out side by side.
func TestOverlappingWritesKeepTheSendersOrder(t *testing.T) {
	for seed := range uint64(8) {
		o := three()
		o.Seed, o.Delay = seed, 200*time.Microsecond
		bubble(t, o, func(t *testing.T, c *Cluster) {
			rng := rand.New(rand.NewPCG(seed, 3))
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			c.mustWrite(t, 0, 0, 0, mib) // which makes the extents hot
			depths := []*depth{slowWrites(c.Nodes[1].Disk, seed, 20*time.Millisecond), slowWrites(c.Nodes[2].Disk, seed+100, 5*time.Millisecond)}
			const area = 64 << 10
			want := make([]byte, area)
			var rs []*block.Request
			for i := range 500 {
				off := rng.Int64N(area - 4096)
				p := bytes.Repeat([]byte{byte(i)}, 1+rng.IntN(4096))
				copy(want[off:], p)
				rs = append(rs, &block.Request{Op: block.Write, Off: off, Len: int64(len(p)), Data: p})
			}
			done := c.Nodes[0].burst(rs)
			for range rs {
				if r := <-done; r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			got := make([]byte, area)
			for _, n := range c.Nodes {
				if n.Disk.Peek(got, 0); !bytes.Equal(got, want) {
					t.Errorf("seed %d: %s does not hold what was written last", seed, n.Name)
				}
			}
			for i, d := range depths {
				if most := d.reached(); most < 4 {
					t.Errorf("seed %d: the disk of n%d had %d writes at a time", seed, i+1, most)
				}
			}
			c.mustEqual(t)
		})
	}
}

// TestAFlushWaitsForSlowWritesBeforeIt: a flush is answered when what was
// answered before it is on every disk, however the disks take their time.
func TestAFlushWaitsForSlowWritesBeforeIt(t *testing.T) {
	o := three()
	o.Protocol = replication.ProtocolA // a write is answered before the peers have it
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 0, mib)
		for _, n := range c.Nodes[1:] {
			slowWrites(n.Disk, uint64(n.ID), 30*time.Millisecond)
		}
		for round := range 10 {
			var rs []*block.Request
			for i := range 64 {
				rs = append(rs, &block.Request{Op: block.Write, Off: int64(i) * 4096, Len: 4096, Data: bytes.Repeat([]byte{byte(round + 1)}, 4096)})
			}
			done := c.Nodes[0].burst(rs)
			for range rs {
				if r := <-done; r.Err != nil {
					t.Fatal(r.Err)
				}
			}
			if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Flush, 0, 0, nil, 0); err != nil {
				t.Fatal(err)
			}
			got := make([]byte, 64*4096)
			for _, n := range c.Nodes {
				lost := n.Disk.CrashClone(storetest.Crash{Seed: uint64(round), Lost: 1})
				if lost.Peek(got, 0); !bytes.Equal(got, bytes.Repeat([]byte{byte(round + 1)}, len(got))) {
					t.Fatalf("round %d: %s has not what was flushed on stable storage", round, n.Name)
				}
			}
		}
	})
}

// TestAChangeThatHangsIsNotTakenForAnothersAfterItsSession: a peer's disk hangs
// while the session ends and another begins. What was on its way lands late; it
// is neither answered in the new session nor left over anything newer.
func TestAChangeThatHangsIsNotTakenForAnothersAfterItsSession(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 0, mib)
		hang := c.Nodes[2].Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, Hang: true})
		rs := []*block.Request{
			{Op: block.Write, Off: 0, Len: 4096, Data: bytes.Repeat([]byte{'a'}, 4096)},
			{Op: block.Write, Off: 8192, Len: 4096, Data: bytes.Repeat([]byte{'b'}, 4096)},
		}
		done := c.Nodes[0].burst(rs)
		hang.Await(2)
		c.Cut(0, 2)
		for range rs {
			if r := <-done; r.Err != nil {
				t.Fatal(r.Err) // n1 has it
			}
		}
		c.mustWrite(t, 0, 0, 'c', 4096)
		c.Heal(0, 2)
		time.Sleep(5 * time.Second)
		for _, p := range c.Nodes[2].Dev.Status().Peers {
			if p.Node == "n0" && p.Connected {
				t.Error("n2 agrees with the primary while its disk has not what came before")
			}
		}
		why := c.Nodes[2].Dev.Why()
		if text := strings.Join(why.Because, "; "); !strings.Contains(text, "2 changes of a peer that was lost have not reached the disk") {
			t.Errorf("why does not say what is waited for: %s", text)
		}
		c.mustWrite(t, 0, 8192, 'd', 4096) // nobody waits for n2
		c.Nodes[2].Disk.Lift(hang)
		hang.Release()
		c.mustSync(t, 2)
		c.mustEqual(t)
		got := make([]byte, 8193)
		if c.Nodes[2].Disk.Peek(got, 0); got[0] != 'c' || got[8192] != 'd' {
			t.Errorf("n2 holds %c and %c", got[0], got[8192])
		}
	})
}

// site is a node as the daemon makes it: devices behind a messenger.
type site struct {
	set   *device.Set
	disks map[string]*storetest.Image
	mess  *messenger.Messenger
}

// SessionUp and the others implement messenger.Handler.
func (s *site) SessionUp(x *messenger.Session) { s.set.SessionUp(x) }
func (s *site) SessionDown(x *messenger.Session, why messenger.Reason) {
	s.set.SessionDown(x, why.String())
}
func (s *site) HandleFrame(x *messenger.Session, f *wire.Frame, b *block.Batch) {
	s.set.HandleFrame(x, f, b)
}

// ram is a disk that answers at once: what remains of a write's cost is ours.
type ram struct {
	store.Disk
	mem []byte
}

func (r *ram) WriteAt(p []byte, off int64) (int, error) { return copy(r.mem[off:], p), nil }
func (r *ram) Sync() error                              { return nil }

// BenchmarkReplicatedWrites is 4 KiB writes on two nodes in one process, 32 in
// flight, batched as a busy client's are: nothing is allocated for any.
func BenchmarkReplicatedWrites(b *testing.B) {
	s := sitesOn(b, 8*time.Second, 4*mib, func(d store.Disk) store.Disk { return &ram{d, make([]byte, 4*mib)} }, "a")
	d, _ := s[0].set.Get("a")
	rs := fours(32, 'x')
	done := make(report, len(rs))
	for _, r := range rs {
		r.Done = done
	}
	batch := &block.Batch{}
	b.SetBytes(4096)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if n%len(rs) == 0 && n > 0 {
			batch.Finish()
			for range rs {
				<-done
			}
		}
		d.Submit(rs[n%len(rs)], batch)
	}
	batch.Finish()
}

// sites are two nodes on loopback with these devices.
func sites(t testing.TB, tick time.Duration, size int64, names ...string) []*site {
	return sitesOn(t, tick, size, func(d store.Disk) store.Disk { return d }, names...)
}

func sitesOn(t testing.TB, tick time.Duration, size int64, as func(store.Disk) store.Disk, names ...string) []*site {
	t.Helper()
	var lns []net.Listener
	var out []*site
	for range 2 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		lns = append(lns, ln)
	}
	nodes := []device.Node{{ID: 0, Name: "n0"}, {ID: 1, Name: "n1"}}
	for i := range nodes {
		s := &site{set: device.NewSet(nil), disks: map[string]*storetest.Image{}}
		for _, name := range names {
			disk, meta := storetest.NewImage(size), storetest.NewImage(0)
			s.disks[name] = disk
			o := device.Options{Config: device.Config{Name: name, Handle: s.set.NextHandle(), Size: size, Self: i, Nodes: nodes, Protocol: replication.ProtocolC}}
			d, err := device.Assemble(o, device.Backing{Extents: 64, ExtentBytes: 4 << 20},
				func() (store.Disk, bool, error) { return as(disk.Disk(name)), true, nil },
				func(mo store.MetaOptions) (*store.Meta, error) { return store.OpenMetaFile(meta.File(), "meta", mo) })
			if err != nil {
				t.Fatal(err)
			}
			d.Start()
			t.Cleanup(d.Abandon)
			if err := s.set.Add(d); err != nil {
				t.Fatal(err)
			}
		}
		m, err := messenger.New(messenger.Options{
			Cluster: "slow", NodeName: nodes[i].Name, NodeID: i, Secrets: [][]byte{[]byte("a secret of sixteen bytes")}, Listener: lns[i], Handler: s, Tick: tick,
			Peers: []messenger.Peer{{Name: nodes[1-i].Name, ID: 1 - i, Address: lns[1-i].Addr().String()}},
		})
		if err != nil {
			t.Fatal(err)
		}
		s.mess = m
		if err := m.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = m.Close(context.Background()) })
		out = append(out, s)
	}
	for _, name := range names {
		d, _ := out[0].set.Get(name)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := d.WaitFor(ctx, "synced"); err != nil {
			t.Fatal(err)
		}
		if err := d.Promote(ctx, false); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func (s *site) write(name string, rs []*block.Request) chan *block.Request {
	d, _ := s.set.Get(name)
	return (&Node{Dev: d}).burst(rs)
}

func fours(n int, fill byte) (rs []*block.Request) {
	for i := range n {
		rs = append(rs, &block.Request{Op: block.Write, Off: int64(i) * 4096, Len: 4096, Data: bytes.Repeat([]byte{fill}, 4096)})
	}
	return rs
}

// TestADiskThatHangsKeepsNoOtherDevice: one device's disk hangs on the peer,
// with more of its writes on the way than the link has goroutines for; another
// device of the same link goes on, its acks and flushes with it, and nobody
// takes the peer for dead. When the disk goes on, so does the device.
func TestADiskThatHangsKeepsNoOtherDevice(t *testing.T) {
	s := sites(t, time.Minute, 4*mib, "a", "b")
	hang := s[1].disks["a"].Inject(storetest.Fault{Ops: storetest.OpWrite, Hang: true})
	t.Cleanup(hang.Release)
	stuck := fours(512, 'a')
	stuckDone := s[0].write("a", stuck)
	hang.Await(2) // a second one: the link is read on
	for round := byte(1); round <= 20; round++ {
		rs := fours(64, round)
		done := s[0].write("b", rs)
		for range rs {
			if r := nextOf(t, done); r.Err != nil {
				t.Fatal(r.Err)
			}
		}
		flush := []*block.Request{{Op: block.Flush}}
		if r := nextOf(t, s[0].write("b", flush)); r.Err != nil {
			t.Fatal(r.Err)
		}
		got := make([]byte, 64*4096)
		if s[1].disks["b"].Peek(got, 0); !bytes.Equal(got, bytes.Repeat([]byte{round}, len(got))) {
			t.Fatal("the peer has not what was answered")
		}
	}
	stalled, _ := s[1].set.Get("a")
	if text := strings.Join(stalled.Why().Because, "; "); !strings.Contains(text, "the disk takes long: ") {
		t.Errorf("why does not say that the disk hangs: %s", text)
	}
	if n := s[1].mess.Nodes()[0]; n.Data.Relieved == 0 || n.Data.Away == 0 {
		t.Errorf("the link does not show what its readers are kept by: %+v", n.Data)
	}
	for _, x := range s {
		for _, n := range x.mess.Nodes() {
			if n.State != "up" || n.Connects != 1 {
				t.Errorf("%s is %s, after %d connects", n.Name, n.State, n.Connects)
			}
		}
		for _, d := range x.set.All() {
			st := d.Status()
			if st.Disk != replication.UpToDate || !st.Peers[0].Connected || st.Peers[0].Disk != replication.UpToDate {
				t.Errorf("device %s: %v, peer %+v", st.Name, st.Disk, st.Peers[0])
			}
		}
	}
	select {
	case <-stuckDone:
		t.Error("a write is answered that the peer's disk has not")
	default:
	}
	s[1].disks["a"].Lift(hang)
	hang.Release()
	for range stuck {
		if r := nextOf(t, stuckDone); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	if at, same := s[0].disks["a"].Equal(s[1].disks["a"]); !same {
		t.Errorf("the disks differ at %v", at)
	}
}

// TestALinkIsNotReadWhileADeviceHasTooMuchInHand: what a device whose disk hangs
// takes in is bounded; nobody takes the peer for dead, the link can be made
// anew, and nothing is lost.
func TestALinkIsNotReadWhileADeviceHasTooMuchInHand(t *testing.T) {
	s := sites(t, time.Minute, 4*mib, "a")
	hang := s[1].disks["a"].Inject(storetest.Fault{Ops: storetest.OpWrite, Hang: true})
	t.Cleanup(hang.Release)
	var rs []*block.Request
	for i := range int64(4 * mib / 512) { // twice what it takes in
		rs = append(rs, &block.Request{Op: block.Write, Off: i * 512, Len: 512, Data: bytes.Repeat([]byte{byte(i)}, 512)})
	}
	done := s[0].write("a", rs)
	d, _ := s[1].set.Get("a")
	full := func() bool { return s[1].mess.Nodes()[0].Data.Throttled > 0 }
	for deadline := time.Now().Add(30 * time.Second); !full(); <-time.After(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the link is read on, with %d changes in hand", d.Status().InHand)
		}
	}
	const bound, read = 4096, (1<<20 + 64<<10) / 512
	if n := d.Status().InHand; n < bound || n > bound+read {
		t.Errorf("%d changes are in hand", n)
	}
	if err := s[0].mess.Reconnect(timeout(t, 30*time.Second), "n1"); err != nil {
		t.Errorf("the links do not come back: %v", err)
	}
	s[1].disks["a"].Lift(hang)
	hang.Release()
	for range rs {
		if r := nextOf(t, done); r.Err != nil {
			t.Fatal(r.Err)
		}
	}
	for _, x := range s {
		if n := x.mess.Nodes()[0]; n.State != "up" || n.Connects != 1 {
			t.Errorf("%s is %s, after %d connects", n.Name, n.State, n.Connects)
		}
	}
	if at, same := s[0].disks["a"].Equal(s[1].disks["a"]); !same {
		t.Errorf("the disks differ at %v", at)
	}
}

func nextOf(t *testing.T, done chan *block.Request) *block.Request {
	t.Helper()
	select {
	case r := <-done:
		return r
	case <-time.After(30 * time.Second):
		t.Fatal("not answered: the device is held up by another's disk")
		return nil
	}
}

// TestASessionEndsWhateverADiskDoes: what follows from the loss of a peer is a flush of a
// disk that hangs. Whoever tells of the loss, with the devices of the node locked, is not
// kept by that.
func TestASessionEndsWhateverADiskDoes(t *testing.T) {
	o := three()
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustAllSync(t)
		c.mustPromote(t, 0)
		c.mustWrite(t, 0, 0, 'a', 4096)
		c.Stall(0, 1, wire.Data)
		first := c.Nodes[0].ask(block.Flush, 0, 0, nil, 0)
		time.Sleep(time.Second) // waits for the peer
		in := c.Nodes[0].Disk.Inject(storetest.Fault{Ops: storetest.OpSync, Hang: true})
		second := c.Nodes[0].ask(block.Flush, 0, 0, nil, 0)
		lost := make(chan struct{})
		go func() {
			defer close(lost)
			c.Cut(0, 1)
		}()
		select {
		case <-lost:
		case <-time.After(time.Minute):
			t.Errorf("a session does not end while the disk hangs\n%s", c.Describe())
		}
		c.Nodes[0].Disk.Lift(in)
		in.Release()
		<-lost
		c.mustAnswer(t, []asked{first, second})
		c.Heal(0, 1)
		c.mustAllSync(t)
		c.mustEqual(t)
	})
}
