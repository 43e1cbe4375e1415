package simtest

import (
	"context"
	"math/rand/v2"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestTempest is the storm over devices of every shape, in which faults pile up:
// one to five disks, and nodes without one, which serve as tiebreakers and as
// primaries; disks and metadata that fail and hang, and come back; disks
// detached, attached and invalidated; links of which nothing comes any more;
// nodes that leave in order; verifies; and what administrators do: other quorums,
// disks that are replaced, nodes that are taken out and given back. No disk is lost
// without another that has all, and none loses its cache, so whatever comes together,
// and in whatever order it is mended, what was acknowledged is there; under protocols
// A and B, in a quarter of the histories, what was flushed before the first fault. It
// is long, so there is one for twelve of the others. A seed is replayed with -run
// Tempest -seed SEED -seeds 1.
func TestTempest(t *testing.T) {
	histories(t, (*seeds+11)/12, tempestuous)
}

// tempest is one history. Faults are the test's own doing; clients run beside it.
type tempest struct {
	*storm
	faults []*diskFault
}

// diskFault is a fault in force on a disk or on metadata.
type diskFault struct {
	im *storetest.Image
	in *storetest.Injection
}

// shape is a device's nodes, and how its disks are treated.
func shape(rng *rand.Rand, seed uint64) Options {
	o := Options{
		Size: 4 * mib, Quorum: majority(), Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond,
		Seed: seed, Uneven: unevenOf(seed), Extents: 8, ExtentBytes: 64 << 10, DiskTimeout: 2 * time.Second, Log: testLog(),
	}
	disks, without := 1+rng.IntN(5), rng.IntN(4)
	if rng.IntN(2) == 0 {
		disks = 2 + 2*rng.IntN(2) // that can be halved
	}
	disks = disksOf(seed, disks)
	o.Nodes = disks + without
	for _, id := range rng.Perm(o.Nodes)[:without] {
		o.Diskless = o.Diskless.With(id)
	}
	o.PassOn = rng.IntN(5) == 0
	o.FailIO = rng.IntN(4) == 0
	if rng.IntN(5) == 0 {
		o.Quorum = replication.QuorumPolicy{Kind: replication.QuorumAll}
	}
	early(&o)
	return o
}

func tempestuous(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 23))
	c := New(shape(rng, seed))
	s := &tempest{storm: &storm{history: &history{t: t, c: c, rng: rng, l: newLedger()}, zombie: -1, flushes: rng.IntN(3), devs: make([]*device.Device, len(c.Nodes))}}
	for _, n := range c.Nodes {
		s.start(n)
	}
	defer func() {
		s.lift()
		for _, n := range c.Nodes {
			n.Kill()
		}
		c.StopWatches()
	}()
	for i := range stormClients {
		s.clients = append(s.clients, &stormClient{s: s.storm, id: int64(i), l: newLedger(), rng: rand.New(rand.NewPCG(seed, uint64(300+i)))})
	}
	for range 3 {
		stop := s.sail()
		s.wait(200)
		for range 1 + rng.IntN(8) {
			s.loosen()
			s.strike()
			s.wait(400)
		}
		s.loosen()
		s.mend()
		stop()
		s.synced()
		s.settle()
		s.synced()
		s.compare()
		s.account()
		s.renew()
	}
}

// loosen tells the clients that what they did not flush may be lost from now on:
// under protocols A and B, it is answered when not all that survive have it.
func (s *tempest) loosen() {
	if s.c.opts.Protocol == replication.ProtocolC {
		return
	}
	for _, x := range s.clients {
		x.cut()
	}
}

// strike does one thing, whatever the state.
func (s *tempest) strike() {
	n, m := s.node(), s.node()
	if s.rng.IntN(2) == 0 {
		n = s.primary()
	}
	k := s.rng.IntN(21)
	s.t.Logf("%v: strike %d at %s, %s", time.Now().Format("05.000"), k, n.Name, m.Name)
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	switch {
	case n.Dev == nil:
		s.lift() // a node starts with what it can read and write
		s.start(n)
	case k < 2:
		s.stop(n, false)
	case k == 2:
		s.c.Isolate(n.ID)
	case k < 6 && n != m:
		s.c.Cut(n.ID, m.ID)
	case k == 6 && n != m:
		s.c.Stall(n.ID, m.ID, []wire.Link{wire.Data, wire.Meta}[s.rng.IntN(2)])
		s.wait(300)
		s.c.Cut(n.ID, m.ID)
	case k == 7:
		s.c.Rejoin(m.ID)
	case k == 8 && n != m:
		s.c.Heal(n.ID, m.ID)
	case k == 9:
		s.lift() // a node that hangs in leaving is ended by its daemon, which is not here
		s.leave(n)
	case k == 10 && s.zombie < 0:
		s.zombie = n.ID
		s.c.GiveUp(n.ID)
	case k == 11 && s.zombie >= 0:
		s.learn()
	case n.Disk == nil:
		_ = n.Dev.Promote(ctx, false)
	case k == 12:
		_ = n.Dev.Detach(ctx)
	case k == 13:
		s.attach(ctx, n)
	case k < 16:
		s.spoil(n)
	case k == 16:
		_ = n.Dev.Invalidate(ctx)
	case k == 17:
		_, _ = n.Dev.Verify("")
	case k == 18:
		s.requorum()
	case k == 19:
		if s.c.heldBeside(n, s.zombie) {
			s.stop(n, false)
			n.EmptyDisk(n.Disk.Size())
		}
	case k == 20:
		s.regroup(n)
	}
}

// requorum has all nodes that run, one after the other, go over to another quorum.
func (s *tempest) requorum() {
	s.c.opts.Quorum = [...]replication.QuorumPolicy{majority(), {Kind: replication.QuorumAll}}[s.rng.IntN(2)]
	for _, i := range s.rng.Perm(len(s.c.Nodes)) {
		if m := s.c.Nodes[i]; m.Dev != nil {
			if err := m.Dev.Reconfigure(m.Config()); err != nil {
				s.t.Fatal(err)
			}
		}
		s.wait(100)
	}
}

// regroup has all nodes come back, together or one by one, with a configuration in which
// a disk is the device's no longer, or again.
func (s *tempest) regroup(n *Node) {
	end := func(m *Node) {
		s.lift() // a node starts with what it can read and write
		s.stop(m, false)
	}
	s.c.regroup(n, s.rng, end, s.start, func(thirds int) { s.wait(100 * thirds) })
}

// learn has a node notice that it was given up.
func (s *tempest) learn() {
	s.lift() // a session ends when the disks have let go of it
	z := s.zombie
	s.zombie = -1
	s.c.Learn(z)
}

// spoil has a disk, or its metadata, fail or hang from now on.
func (s *tempest) spoil(n *Node) {
	im := n.Disk
	if s.rng.IntN(3) == 0 {
		im = n.Meta
	}
	f := storetest.Fault{Ops: []storetest.Op{storetest.OpWrite, storetest.OpSync, storetest.OpWrite | storetest.OpSync}[s.rng.IntN(3)]}
	if s.rng.IntN(4) == 0 {
		f.Hang = true
	} else {
		f.Err = syscall.EIO
	}
	s.faults = append(s.faults, &diskFault{im, im.Inject(f)})
	if s.rng.IntN(3) == 0 {
		s.wait(2500)
		s.lift()
	}
}

func (s *tempest) lift() {
	for _, f := range s.faults {
		f.im.Lift(f.in)
		f.in.Release()
	}
	s.faults = nil
}

func (s *tempest) attach(ctx context.Context, n *Node) bool {
	if n.Dev == nil || n.Disk == nil || !n.Dev.Status().Detached {
		return true
	}
	return n.Dev.Attach(ctx) == nil
}

// mend undoes everything, in any order.
func (s *tempest) mend() {
	s.lift()
	if s.zombie >= 0 {
		s.learn()
	}
	s.c.giveBack(func(n *Node) { s.stop(n, false) })
	for _, do := range s.rng.Perm(2) {
		if do == 0 {
			for i := range s.c.Nodes {
				for j := range i {
					s.c.Heal(i, j)
				}
			}
			continue
		}
		for _, i := range s.rng.Perm(len(s.c.Nodes)) {
			if s.c.Nodes[i].Dev == nil {
				s.wait(300)
				s.start(s.c.Nodes[i])
			}
		}
	}
	time.Sleep(s.c.opts.DiskTimeout + time.Second) // what failed or hung a moment ago is known by then
	for _, n := range s.c.Nodes {
		for try := 0; ; try++ {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			ok := s.attach(ctx, n)
			cancel()
			if ok {
				break
			}
			if try == 50 {
				s.t.Fatalf("the disk of %s cannot be attached again\n%s", n.Name, s.c.Describe())
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
}

// account compares what clients were told with what the disks hold.
func (s *tempest) account() {
	p := make([]byte, block.Unit)
	for blk := range int64(tortureBlocks) {
		x := s.clients[blk%stormClients]
		for _, n := range s.c.Nodes {
			if n.Disk == nil {
				continue
			}
			n.Disk.Peek(p, blk*block.Unit*7)
			if err := x.l.holds(blk, p); err != nil {
				s.t.Errorf("%s: %v", n.Name, err)
			}
		}
	}
	if s.t.Failed() {
		s.t.Fatal(s.c.Describe())
	}
}

// compare fails if two disks differ, and says what each holds.
func (s *tempest) compare() {
	for blk := range int64(tortureBlocks) {
		some := map[uint64]bool{}
		for _, v := range s.held(blk) {
			some[v] = true
		}
		if len(some) > 1 {
			s.t.Errorf("block %d (at %d): the disks hold %v", blk, blk*block.Unit*7, s.held(blk))
		}
	}
	if s.t.Failed() {
		s.t.Fatal(s.c.Describe())
	}
	s.c.mustEqual(s.t)
}
