package simtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestGroupStorm is TestGroupIsAPrefix with what that lacks: several clients,
// that write to many devices at a time before they wait, and look at what there
// is whenever they have come to another primary; and faults that pile up: nodes
// that die, leave, are cut off or given up, disks of one device of the group
// that are detached or fail, all while another fault has not been mended. In a quarter
// of the histories a node has no disks. A seed is replayed with -run GroupStorm -seed
// SEED -seeds 1.
func TestGroupStorm(t *testing.T) {
	histories(t, *seeds, groupStorm)
}

// groupStormer is one history. The faults are the test's own doing; clients run
// beside it.
type groupStormer struct {
	t     *testing.T
	c     *Cluster
	rng   *rand.Rand
	power bool // nodes that die lose their power

	// stints counts what may have made another node primary, or taken what was
	// not flushed: a client then looks again at what there is.
	stints atomic.Int64

	mu   sync.Mutex // guards devs
	devs [][]*device.Device

	zombie int // a node that was given up and does not know; -1: none
	faulty map[*storetest.Image]*storetest.Injection
}

func groupStorm(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 23))
	s := &groupStormer{t: t, rng: rng, power: rng.IntN(3) == 0, zombie: -1, faulty: map[*storetest.Image]*storetest.Injection{}}
	o := Options{
		Nodes: disksOf(seed, 3), Size: 4 * mib, Quorum: majority(), Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond, Seed: seed, Uneven: unevenOf(seed),
		Extents: 8, ExtentBytes: 64 << 10, Log: testLog(), Beside: 1 + rng.IntN(2), FailIO: rng.IntN(3) == 0,
	}
	if rand.New(rand.NewPCG(seed, 79)).IntN(4) == 0 { // a client without disks, which may be the tiebreaker
		o.Diskless = replication.Of(o.Nodes)
		o.Nodes++
	}
	s.c = New(o)
	s.devs = make([][]*device.Device, len(s.c.Nodes))
	defer func() {
		for _, n := range s.c.Nodes {
			n.Kill()
		}
	}()
	for _, n := range s.c.Nodes {
		s.start(n)
	}
	clients := []*chain{{s: s, id: 0}, {s: s, id: 1}}
	over := make(chan struct{})
	var wg sync.WaitGroup
	for _, x := range clients {
		x.rng = rand.New(rand.NewPCG(seed, uint64(300+x.id)))
		wg.Go(func() { x.run(over) })
	}
	s.wait(300)
	for range 3 {
		for range 4 {
			s.fault()
			s.wait(250)
		}
		s.mend()
		if rng.IntN(2) == 0 {
			s.wait(3000)
		}
	}
	close(over)
	wg.Wait()
	s.mend()
	s.conclude(clients)
}

// wait lets up to ms milliseconds pass.
func (s *groupStormer) wait(ms int) {
	time.Sleep(spell(s.rng, time.Duration(ms)*time.Millisecond))
}

func (s *groupStormer) show(n *Node, devs []*device.Device) {
	s.mu.Lock()
	s.devs[n.ID] = devs
	s.mu.Unlock()
	s.stints.Add(1)
}

func (s *groupStormer) at(node int) []*device.Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.devs[node]
}

func (s *groupStormer) start(n *Node) {
	if n.Dev != nil || s.c.without.Has(n.ID) {
		return
	}
	if err := n.Start(); err != nil {
		s.t.Fatal(err)
	}
	for i, im := range n.images() {
		if (n.ID+i)%2 == 0 { // one device's disk is slower than the other's
			im.Inject(storetest.Fault{Ops: storetest.OpWrite, Delay: time.Millisecond})
		}
	}
	s.show(n, n.devs())
}

func (s *groupStormer) kill(n *Node) {
	s.show(n, nil)
	if s.power {
		n.PowerCut(float64(s.rng.IntN(5)) / 4)
	} else {
		n.Kill()
	}
	s.stints.Add(1)
}

func (s *groupStormer) node() *Node { return s.c.Nodes[s.rng.IntN(len(s.c.Nodes))] }

// primary is a node that takes itself for that, of the group's first device or
// of its last; else any.
func (s *groupStormer) primary() *Node {
	for _, n := range s.c.Nodes {
		devs := n.devs()
		if len(devs) > 0 && (devs[0].Status().Role == replication.Primary || devs[len(devs)-1].Status().Role == replication.Primary) {
			return n
		}
	}
	return s.node()
}

// fault does one more thing to the cluster.
func (s *groupStormer) fault() {
	n := s.node()
	if s.rng.IntN(2) == 0 {
		n = s.primary()
	}
	k := s.rng.IntN(19)
	s.t.Logf("fault %d at %s", k, n.Name)
	switch k {
	case 0, 1:
		s.kill(n)
	case 2, 3, 4:
		for _, m := range s.c.Nodes {
			s.start(m)
		}
	case 5:
		s.c.Isolate(n.ID)
	case 6, 7:
		if m := s.node(); m != n {
			s.c.Cut(n.ID, m.ID)
		}
	case 8, 9:
		if m := s.node(); m != n {
			s.c.Heal(n.ID, m.ID)
		}
	case 10:
		if n.Dev != nil {
			s.show(n, nil)
			ctx, cancel := context.WithTimeout(context.Background(), time.Duration(s.rng.IntN(3000))*time.Millisecond)
			n.leave(ctx, s.rng)
			cancel()
		}
	case 11:
		if s.zombie < 0 && n.Dev != nil {
			s.zombie = n.ID
			s.c.GiveUp(n.ID)
		}
	case 12:
		s.learn()
	case 13:
		s.failDisk(n)
	case 14:
		s.replace(n)
	case 15:
		s.regroup(n)
	case 16:
		if n.Dev != nil && n.Disk != nil {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			_ = n.devs()[s.rng.IntN(1+s.c.opts.Beside)].Invalidate(ctx) // it may be the last that is current
			cancel()
		}
	default:
		s.detach(n)
	}
}

// replace has a node that died come back with empty disks, where another certainly has
// all that was answered of each device.
func (s *groupStormer) replace(n *Node) {
	if n.Disk == nil || !s.c.heldBeside(n, s.zombie) {
		return
	}
	s.kill(n)
	n.EmptyDisk(n.Disk.Size())
}

// regroup takes a node's disks out of all devices, or gives them back, for all nodes
// together or one by one.
func (s *groupStormer) regroup(n *Node) {
	s.c.regroup(n, s.rng, s.kill, s.start, func(thirds int) { s.wait(50 * thirds) })
}

func (s *groupStormer) learn() {
	if z := s.zombie; z >= 0 {
		s.zombie = -1
		s.c.Learn(z)
	}
}

// detach takes the disk of one device away, and as a rule gives it back.
func (s *groupStormer) detach(n *Node) {
	if n.Dev == nil || n.Disk == nil {
		return
	}
	d := n.devs()[s.rng.IntN(1+s.c.opts.Beside)]
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if d.Detach(ctx) != nil {
		return // it may be the last that is current, or another is in the way
	}
	if s.rng.IntN(3) > 0 {
		s.wait(60)
		_ = d.Attach(ctx)
	}
}

// failDisk has the disk of one device fail whatever is written.
func (s *groupStormer) failDisk(n *Node) {
	if n.Dev == nil || n.Disk == nil || len(s.faulty) > 0 {
		return
	}
	ims := n.images()
	im := ims[s.rng.IntN(len(ims))]
	s.faulty[im] = im.Inject(storetest.Fault{Ops: storetest.OpWrite | storetest.OpSync, Err: errors.New("a disk that fails")})
}

// mend undoes all that was done.
func (s *groupStormer) mend() {
	for im, f := range s.faulty {
		im.Lift(f)
	}
	clear(s.faulty)
	s.learn()
	s.c.giveBack(s.kill)
	for _, i := range s.rng.Perm(len(s.c.Nodes)) {
		s.start(s.c.Nodes[i])
		s.c.Rejoin(i)
		s.wait(50)
	}
	for _, n := range s.c.Nodes {
		for _, d := range n.devs() {
			for range 20 {
				if !d.Status().Detached {
					break
				}
				ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
				_ = d.Attach(ctx)
				cancel()
				time.Sleep(100 * time.Millisecond)
			}
		}
	}
}

// conclude holds what is there in the end to what the clients were told.
func (s *groupStormer) conclude(clients []*chain) {
	for _, n := range s.c.Nodes {
		for _, d := range n.devs() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			err := d.WaitFor(ctx, "synced")
			cancel()
			if err != nil {
				s.t.Fatalf("%s of %s does not get in sync: %v\n%s", d.Name(), n.Name, err, s.c.Describe())
			}
		}
	}
	for _, x := range clients {
		if x.err != nil {
			s.t.Fatalf("client %d: %v\n%s", x.id, x.err, s.c.Describe())
		}
		x.over = true
		for range 100 {
			if x.move() {
				break
			}
			time.Sleep(100 * time.Millisecond)
		}
		if x.err != nil || x.at == nil {
			s.t.Fatalf("client %d, in the end: %v\n%s", x.id, x.err, s.c.Describe())
		}
		s.t.Logf("client %d: %d writes in %d steps", x.id, x.acked, x.step)
	}
	for i, im := range s.c.Nodes[0].images() {
		for _, n := range s.c.Nodes[1:] {
			if n.Disk == nil {
				continue
			}
			if e, same := im.Equal(n.images()[i]); !same {
				s.t.Fatalf("the disks of r%d on n0 and %s differ at %v\n%s", i, n.Name, e, s.c.Describe())
			}
		}
	}
}

// chainBlocks is how many blocks of a device are each client's.
const chainBlocks = 256

// chain is a client that writes in steps: what it writes in one, it has waited
// for before it begins the next.
type chain struct {
	s   *groupStormer
	id  int
	rng *rand.Rand
	at  []*device.Device // through which it works; nil: none

	node int // of at

	stint int64
	next  uint64
	step  int
	wrote []chainWrite // in order; the block of the i-th follows from i
	acked int          // so many of them must be there
	safe  int          // so many must be, whatever loses power
	over  bool
	err   error
}

type chainWrite struct {
	value uint64
	step  int
}

func (x *chain) place(i int) (dev int, off int64) {
	n := 1 + x.s.c.opts.Beside
	return i % n, int64(x.id*chainBlocks+i/n%chainBlocks) * block.Unit
}

func (x *chain) run(over chan struct{}) {
	for x.err == nil {
		select {
		case <-over:
			return
		case <-time.After(time.Duration(x.rng.IntN(2000)) * time.Microsecond):
		}
		if x.at == nil || x.stint != x.s.stints.Load() {
			x.move()
			continue
		}
		ok := false
		if x.rng.IntN(8) == 0 {
			ok = x.flush()
		} else {
			ok = x.write()
		}
		if !ok {
			x.at = nil
		}
	}
}

// patience is how long a client waits.
func (x *chain) patience() time.Duration {
	switch {
	case x.over:
		return time.Minute
	case x.s.c.opts.Uneven:
		return 3 * time.Second
	}
	return 300 * time.Millisecond
}

// write does one step, and reports whether all of it was answered.
func (x *chain) write() bool {
	ctx, cancel := context.WithTimeout(context.Background(), x.patience())
	defer cancel()
	x.step++
	from, k := len(x.wrote), 1+x.rng.IntN(3)
	errs := make([]error, k)
	var wg sync.WaitGroup
	for j := range k {
		x.next++
		v := x.next
		x.wrote = append(x.wrote, chainWrite{v, x.step})
		dev, off := x.place(from + j)
		wg.Go(func() { errs[j] = x.s.c.ask(ctx, x.at[dev], block.Write, 0, off, fill(v), 0) })
	}
	wg.Wait()
	x.s.c.opts.Log.Debug("client wrote", "client", x.id, "through", x.node, "from", from, "values", fmt.Sprint(x.wrote[from:]), "err", errors.Join(errs...))
	if errors.Join(errs...) != nil {
		return false
	}
	x.acked = len(x.wrote)
	return true
}

// flush makes all devices durable. What is durable is so only if the same
// primary has had all of it.
func (x *chain) flush() bool {
	ctx, cancel := context.WithTimeout(context.Background(), x.patience())
	defer cancel()
	for _, d := range x.at {
		if x.s.c.ask(ctx, d, block.Flush, 0, 0, nil, 0) != nil {
			return false
		}
	}
	if x.stint != x.s.stints.Load() {
		return false
	}
	x.safe = x.acked
	return true
}

// move looks for the primary, or makes one, and looks at what there is.
func (x *chain) move() bool {
	x.at, x.stint = nil, x.s.stints.Load()
	for range 4 {
		x.node = x.rng.IntN(len(x.s.c.Nodes))
		devs := x.s.at(x.node)
		if devs == nil {
			continue
		}
		if devs[0].Status().Role != replication.Primary && x.rng.IntN(3) > 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), x.patience())
		was := devs[0].Status().Role
		err := devs[x.rng.IntN(len(devs))].Promote(ctx, false)
		cancel()
		if err != nil {
			continue
		}
		if was != replication.Primary {
			x.stint = x.s.stints.Add(1)
		}
		if x.look(devs) {
			x.at = devs
			return true
		}
		return false
	}
	return false
}

// chainWindow is how far behind its end a chain is looked at, at least, but in the end.
// All that is not durable is: power may have taken any of it.
const chainWindow = 64

// look reads what there is of the chain, which goes on from there. It reports
// whether it was answered.
func (x *chain) look(devs []*device.Device) bool {
	ctx, cancel := context.WithTimeout(context.Background(), x.patience())
	defer cancel()
	from := max(0, min(len(x.wrote)-chainWindow, x.safe))
	if x.over {
		from = max(0, len(x.wrote)-chainBlocks*len(devs)+chainWindow) // what is before was overwritten
	}
	p, there, missing := make([]byte, block.Unit), from, -1
	for i, w := range x.wrote[from:] {
		dev, off := x.place(from + i)
		if x.s.c.ask(ctx, devs[dev], block.Read, 0, off, p, 0) != nil {
			return false
		}
		switch v := binary.LittleEndian.Uint64(p); {
		case v == w.value:
			there = from + i + 1
		case missing < 0:
			missing = from + i
			x.s.c.opts.Log.Debug("missing", "client", x.id, "write", missing, "want", w.value, "is", v)
		}
	}
	return x.judge(there, missing)
}

// judge compares what is there with what must be.
func (x *chain) judge(there, missing int) bool {
	if missing < 0 {
		x.acked = there
		return true
	}
	x.t("%d of %d are there, %d is missing; %d were acknowledged, %d flushed", there, len(x.wrote), missing, x.acked, x.safe)
	must := x.acked
	if x.s.power {
		must = x.safe
	}
	switch {
	case missing < must:
		x.err = fmt.Errorf("write %d is missing; %d were acknowledged, %d flushed", missing, x.acked, x.safe)
	case !x.s.power && there > missing && x.wrote[there-1].step > x.wrote[missing].step:
		x.err = fmt.Errorf("write %d of step %d is there and write %d of step %d, for which the client had waited before, is not (%d acknowledged)",
			there-1, x.wrote[there-1].step, missing, x.wrote[missing].step, x.acked)
	}
	x.wrote, x.acked = x.wrote[:missing], missing
	return x.err == nil
}

func (x *chain) t(format string, args ...any) {
	x.s.t.Logf("client %d: "+format, append([]any{x.id}, args...)...)
}
