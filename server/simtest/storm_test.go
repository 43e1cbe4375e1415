package simtest

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestStorm is the torture with what that lacks: several clients at once, each
// of which reads what it wrote, writes one block twice at a time, moves to
// another node and promotes it when it gets no answer, all of it while faults
// come and go; disks that take their time; nodes that do not know that they
// were given up; all nodes lost at once; disks detached and attached; targets
// of a resync that lose power in the middle of it. Each round ends with
// everything healed and compared. A seed is replayed with -run Storm -seed SEED
// -seeds 1.
func TestStorm(t *testing.T) {
	histories(t, *seeds, stormy)
}

const stormClients = 3

// strike makes every fault of a storm of one kind, on nodes that lose their
// power, with clients that do not flush: it narrows a search.
var strike = flag.Int("strike", -1, "the only fault of a storm, by its number")

// storm is one history. Faults are the test's own doing; clients run beside it.
type storm struct {
	*history
	clients []*stormClient
	zombie  int  // a node that was given up and does not know; -1: none
	flushes int  // of a client's requests, so many of twenty
	power   bool // nodes lose their power at times

	mu   sync.Mutex // guards devs, which clients look at
	devs []*device.Device
}

func stormy(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 11))
	c := New(Options{
		Nodes: disksOf(seed, 2+rng.IntN(3)), Size: 4 * mib, Quorum: majority(), Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond,
		Seed: seed, Uneven: unevenOf(seed), Extents: 8, ExtentBytes: 64 << 10, Log: testLog(),
	})
	s := &storm{history: &history{t: t, c: c, rng: rng, l: newLedger(), rots: rotting(seed)}, zombie: -1, flushes: rng.IntN(3), power: rng.IntN(2) == 0, devs: make([]*device.Device, len(c.Nodes))}
	s.changes = seed%4 == 3 && s.rots == nil
	if *strike >= 0 {
		s.power, s.flushes = true, 0
	}
	if *strike >= 15 {
		s.rots = nil // one good copy is all that there may be
	}
	slow := rng.IntN(2) == 0
	for _, n := range c.Nodes {
		if slow {
			s.slow(n)
		}
		s.start(n)
	}
	defer func() {
		for _, n := range c.Nodes {
			n.Kill()
		}
	}()
	for i := range stormClients {
		l := newLedger()
		l.tears = s.power
		s.clients = append(s.clients, &stormClient{s: s, id: int64(i), l: l, rng: rand.New(rand.NewPCG(seed, uint64(100+i)))})
	}
	s.owner = func(blk int64) *ledger { return s.clients[blk%stormClients].l }
	for range 4 {
		s.rot()
		stop := s.sail()
		s.wait(200)
		s.strike()
		s.wait(400)
		s.mend()
		if rng.IntN(2) == 0 {
			s.attach()
			if s.c.bad() == 0 {
				s.synced() // under load
			}
		}
		stop()
		s.attach()
		s.rewrite()
		s.synced()
		s.settle()
		s.synced()
		s.scrub()
		s.compare()
		s.account()
		if slow {
			for _, n := range c.Nodes {
				s.slow(n) // those that were made anew by a crash
			}
		}
	}
}

// slow makes a node's disk take up to two milliseconds for a write.
func (s *storm) slow(n *Node) {
	seed := s.rng.Uint64()
	var mu sync.Mutex
	rng := rand.New(rand.NewPCG(seed, 3))
	n.Disk.Inject(storetest.Fault{Ops: storetest.OpWrite, DelayFunc: func(storetest.Record) time.Duration {
		mu.Lock()
		defer mu.Unlock()
		return time.Duration(rng.IntN(2000)) * time.Microsecond
	}})
}

// wait lets up to ms milliseconds pass.
func (s *storm) wait(ms int) { time.Sleep(spell(s.rng, time.Duration(ms)*time.Millisecond)) }

func (s *storm) dev(n int) *device.Device {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.devs[n]
}

func (s *storm) show(n *Node, dev *device.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.devs[n.ID] = dev
}

func (s *storm) start(n *Node) {
	if n.Dev != nil || s.c.without.Has(n.ID) {
		return
	}
	if err := n.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.show(n, n.Dev)
}

func (s *storm) stop(n *Node, power bool) {
	s.show(n, nil)
	if power && s.power {
		n.PowerCut(float64(s.rng.IntN(5)) / 4)
	} else {
		n.Kill()
	}
}

// primary is a node that takes itself for that, else any.
func (s *storm) primary() *Node {
	for _, n := range s.c.Nodes {
		if n.Dev != nil && n.Dev.Status().Role == replication.Primary {
			return n
		}
	}
	return s.node()
}

// sail starts the clients; the returned function ends and awaits them.
func (s *storm) sail() (stop func()) {
	over := make(chan struct{})
	var wg sync.WaitGroup
	for _, x := range s.clients {
		wg.Go(func() { x.run(over) })
	}
	return func() {
		close(over)
		wg.Wait()
		for _, x := range s.clients {
			if x.err != nil {
				s.t.Fatalf("client %d: %v\n%s", x.id, x.err, s.c.Describe())
			}
		}
	}
}

// strike does one thing to the healthy cluster. Whatever it is, nothing that
// was acknowledged may be lost; but where all lose power at once, what was not
// flushed may.
func (s *storm) strike() {
	n := s.node()
	if s.rng.IntN(2) == 0 {
		n = s.primary()
	}
	k := s.rng.IntN(15)
	if s.changes && s.rng.IntN(2) == 0 {
		k = 15 + s.rng.IntN(2)
	}
	if *strike >= 0 {
		k = *strike
	}
	s.t.Logf("strike %d at %s, power cuts %v", k, n.Name, s.power)
	switch k {
	case 0:
		s.stop(n, false)
	case 1:
		s.stop(n, true)
	case 2:
		s.c.Isolate(n.ID)
	case 3:
		if m := s.node(); m != n {
			s.c.Cut(n.ID, m.ID)
		}
	case 4:
		s.zombie = n.ID
		s.c.GiveUp(n.ID)
		s.wait(800)
	case 5:
		s.all(false)
	case 6:
		if s.power {
			for _, x := range s.clients {
				x.cut()
			}
		}
		s.all(true)
	case 7:
		s.detach(n)
	case 8:
		s.again(n)
	case 9: // what it held for want of quorum is answered, and then it is gone
		s.c.Isolate(n.ID)
		s.wait(200)
		s.c.Rejoin(n.ID)
		s.wait(10)
		s.stop(n, false)
	case 10: // in the middle of a resync
		s.stop(n, false)
		s.wait(600)
		s.start(n)
		s.wait(60)
		s.all(false)
	case 11: // two at once
		m := s.node()
		s.stop(n, false)
		s.stop(m, false)
	case 13:
		s.leave(n)
	case 14:
		s.lastStanding()
	case 15: // and is perhaps lost with its new disk, or the source
		if !s.c.heldBeside(n, s.zombie) {
			return
		}
		s.stop(n, false)
		s.wait(600)
		n.EmptyDisk(n.c.opts.Size)
		s.start(n)
		s.wait(120)
		if s.rng.IntN(2) == 0 {
			s.stop(s.node(), false) // the only complete disk, perhaps: with its power, what was not flushed would be gone
		}
	case 16:
		s.c.regroup(n, s.rng, func(m *Node) { s.stop(m, false) }, s.start, func(thirds int) { s.wait(100 * thirds) })
		if s.rng.IntN(2) == 0 {
			s.stop(s.primary(), false)
		}
	default: // survivors that do not see each other
		if a, b := s.node(), s.node(); a != b {
			s.c.Cut(a.ID, b.ID)
		}
		s.stop(s.primary(), false)
	}
}

// leave ends a node in order, as far as its clients let it.
func (s *storm) leave(n *Node) {
	s.show(n, nil)
	s.history.leave(n)
}

// lastStanding has all but one leave in order, and that one crash; then those
// that left come back without it.
func (s *storm) lastStanding() {
	order := s.rng.Perm(len(s.c.Nodes))
	for _, i := range order[1:] {
		s.leave(s.c.Nodes[i])
		s.wait(100)
	}
	s.wait(500)
	s.stop(s.c.Nodes[order[0]], false)
	for _, i := range order[1:] {
		s.start(s.c.Nodes[i])
	}
	s.wait(1000)
}

// all stops every node at one moment and starts them one after the other.
func (s *storm) all(power bool) {
	for _, n := range s.c.Nodes {
		s.stop(n, power)
	}
	for _, i := range s.rng.Perm(len(s.c.Nodes)) {
		s.start(s.c.Nodes[i])
		s.wait(400)
	}
}

// detach takes a disk away and gives it back.
func (s *storm) detach(n *Node) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if n.Dev.Detach(ctx) != nil {
		return // it may be the last that is current, or another is in the way
	}
	s.wait(100)
	for range 20 {
		if err := n.Dev.Attach(ctx); err == nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	s.t.Fatalf("the disk of %s cannot be attached again\n%s", n.Name, s.c.Describe())
}

// again has a node lose power while it is, or has just been, resynced.
func (s *storm) again(n *Node) {
	s.stop(n, s.rng.IntN(2) == 0)
	s.wait(600)
	s.start(n)
	if s.rng.IntN(2) == 0 {
		s.wait(120)
	} else {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		_ = n.Dev.WaitFor(ctx, "uptodate") // there may be nobody to be resynced from
		cancel()
	}
	s.stop(n, true)
}

// mend undoes what strike did.
func (s *storm) mend() {
	if z := s.zombie; z >= 0 {
		s.zombie = -1
		s.c.Learn(z)
	}
	s.c.giveBack(func(n *Node) { s.stop(n, false) })
	slowly := s.rng.IntN(2) == 0
	for _, i := range s.rng.Perm(len(s.c.Nodes)) {
		n := s.c.Nodes[i]
		if n.Dev == nil && slowly {
			s.wait(300)
		}
		s.start(n)
	}
	for i := range s.c.Nodes {
		for j := range i {
			s.c.Heal(i, j)
		}
	}
}

func (s *storm) synced() {
	for _, n := range s.c.Nodes {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		err := n.Dev.WaitFor(ctx, "synced")
		cancel()
		if err != nil {
			s.t.Fatalf("%s does not get in sync: %v\n%s", n.Name, errors.Unwrap(err), s.c.Describe())
		}
	}
}

// account compares what clients were told with what the disks hold, and after
// the loss of all power begins a new account.
func (s *storm) account() {
	p := make([]byte, block.Unit)
	for blk := range int64(tortureBlocks) {
		x := s.clients[blk%stormClients]
		s.c.Nodes[0].Disk.Peek(p, blk*block.Unit*7)
		if err := x.l.holds(blk, p); err != nil {
			s.t.Fatalf("%v\n%s", err, s.c.Describe())
		}
	}
	s.renew()
}

// renew begins a new account where what was not flushed may have been lost.
func (s *storm) renew() {
	if s.clients[0].l.cuts == 0 {
		return
	}
	n := s.primary()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.Dev.Promote(ctx, false); err != nil {
		s.t.Fatalf("promote: %v\n%s", err, s.c.Describe())
	}
	for _, x := range s.clients {
		next := x.l.next
		x.l = newLedger()
		x.l.next, x.l.tears = next, s.power
		for blk := x.id; blk < tortureBlocks; blk += stormClients {
			x.l.write(ctx, n, blk)
		}
		x.l.flush(ctx, n)
		if x.l.writes != tortureBlocks/stormClients || len(x.l.durable) != x.l.writes {
			s.t.Fatalf("%s, healthy, does not write\n%s", n.Name, s.c.Describe())
		}
	}
}

// stormClient owns every third block. It uses one node at a time.
type stormClient struct {
	s   *storm
	id  int64
	at  int
	l   *ledger
	rng *rand.Rand
	err error

	mu   sync.Mutex
	cuts int // power cuts that l does not know of yet
}

// cut tells the client that all is about to lose power.
func (x *stormClient) cut() {
	x.mu.Lock()
	x.cuts++
	x.mu.Unlock()
}

func (x *stormClient) run(over chan struct{}) {
	for x.err == nil {
		select {
		case <-over:
			x.hear()
			return
		case <-time.After(time.Duration(x.rng.IntN(3000)) * time.Microsecond):
		}
		if dev := x.s.dev(x.at); dev == nil || !x.act(dev) {
			x.move()
		}
	}
}

func (x *stormClient) hear() {
	x.mu.Lock()
	x.l.cuts, x.cuts = x.l.cuts+x.cuts, 0
	x.mu.Unlock()
}

// act does one thing through a node, and reports whether that answered.
func (x *stormClient) act(dev *device.Device) bool {
	blk := x.id + stormClients*x.rng.Int64N(tortureBlocks/stormClients)
	switch k := x.rng.IntN(20); {
	case k < 10:
		return x.write(dev, blk, 1, 0)
	case k < 12:
		return x.write(dev, blk, 2, 0)
	case k < 12+x.s.flushes:
		if x.rng.IntN(2) == 0 {
			return x.write(dev, blk, 1, block.FUA)
		}
		return x.flush(dev)
	case k < 15:
		x.move()
		return true
	case k < 16 && x.id == 0 && x.s.flushes > 0:
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		defer cancel()
		_ = dev.Demote(ctx) // others are in the way of it, as a rule
		return false
	}
	return x.read(dev, blk)
}

// stormPatience is how long a client waits for an answer.
const stormPatience = 300 * time.Millisecond

// write writes one block, many times at once.
func (x *stormClient) write(dev *device.Device, blk int64, times int, flags block.Flags) bool {
	ctx, cancel := context.WithTimeout(context.Background(), stormPatience)
	defer cancel()
	vs, errs := make([]uint64, times), make([]error, times)
	var wg sync.WaitGroup
	for i := range vs {
		vs[i] = x.l.begin(blk)
		wg.Go(func() { errs[i] = x.s.c.ask(ctx, dev, block.Write, flags, blk*block.Unit*7, fill(vs[i]), 0) })
	}
	wg.Wait()
	x.hear()
	err := errors.Join(errs...)
	x.l.log.Debug("client wrote", "client", x.id, "through", x.at, "block", blk, "values", vs, "err", err)
	x.l.end(blk, vs[0], err)
	for _, v := range vs[1:] {
		add(x.l.maybe, blk, v) // whichever came last
	}
	return err == nil
}

// flush is ledger.flush: a power cut that comes while it is answered is heard
// of before it is believed.
func (x *stormClient) flush(dev *device.Device) bool {
	ctx, cancel := context.WithTimeout(context.Background(), stormPatience)
	defer cancel()
	err := x.s.c.ask(ctx, dev, block.Flush, 0, 0, nil, 0)
	x.hear()
	if err == nil {
		x.l.flushed()
	}
	return err == nil
}

func (x *stormClient) read(dev *device.Device, blk int64) bool {
	ctx, cancel := context.WithTimeout(context.Background(), stormPatience)
	defer cancel()
	p := make([]byte, block.Unit)
	err := x.s.c.ask(ctx, dev, block.Read, 0, blk*block.Unit*7, p, 0)
	x.hear()
	if err == nil {
		if bad := x.l.holds(blk, p); bad != nil {
			x.err = fmt.Errorf("read through %s: %w; the disks hold %v", x.s.c.Nodes[x.at].Name, bad, x.s.held(blk))
		} else {
			x.l.saw(blk, p)
		}
	}
	return err == nil
}

// held is what each disk has of a block.
func (s *storm) held(blk int64) map[string]uint64 {
	held, p := map[string]uint64{}, make([]byte, 8)
	for _, n := range s.c.Nodes {
		if n.Disk != nil {
			n.Disk.Peek(p, blk*block.Unit*7)
			held[n.Name] = binary.LittleEndian.Uint64(p)
		}
	}
	return held
}

// move looks for another node: one that is primary, or can be made that.
func (x *stormClient) move() {
	x.at = x.rng.IntN(len(x.s.c.Nodes))
	for i := range x.s.c.Nodes {
		if dev := x.s.dev(i); dev != nil && x.rng.IntN(4) > 0 && dev.Status().Role == replication.Primary {
			x.at = i
			return
		}
	}
	if dev := x.s.dev(x.at); dev != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stormPatience)
		defer cancel()
		_ = dev.Promote(ctx, false) // it may well be refused
	}
}
