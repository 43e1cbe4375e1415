package simtest

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestGroupIsAPrefix has a client write to the devices of a group in turn, and
// wait for each answer, while nodes crash, are cut off and are promoted:
// whoever becomes primary does so with all devices, and what they then hold is
// a prefix of what the client wrote, of at least what was acknowledged. A seed is replayed with -run GroupIsAPrefix -seed SEED -seeds 1.
func TestGroupIsAPrefix(t *testing.T) {
	histories(t, *seeds, prefixes)
}

// series is writes to the devices of a group in turn, each to a block of its own.
type series struct {
	c     *Cluster
	wrote []uint64 // the value of each, as last attempted
	acked int      // how many of them were acknowledged
	tries uint64
}

func (s *series) place(i int) (dev int, off int64) {
	n := 1 + s.c.opts.Beside
	return i % n, int64(i/n) * block.Unit
}

// run writes on where the series ends, until an answer fails to come.
func (s *series) run(ctx context.Context, devs []*device.Device) {
	for ctx.Err() == nil {
		i := len(s.wrote)
		if _, off := s.place(i); off >= s.c.opts.Size {
			return
		}
		s.tries++
		s.wrote = append(s.wrote, s.tries)
		dev, off := s.place(i)
		actx, cancel := context.WithTimeout(ctx, time.Second)
		err := s.c.ask(actx, devs[dev], block.Write, 0, off, fill(s.tries), 0)
		cancel()
		if err != nil {
			return
		}
		s.acked = i + 1
	}
}

// check reads what there is of the series through a primary, and goes on from
// there.
func (s *series) check(devs []*device.Device) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	p, there, first := make([]byte, block.Unit), 0, -1
	for i, v := range s.wrote {
		dev, off := s.place(i)
		if err := s.c.ask(ctx, devs[dev], block.Read, 0, off, p, 0); err != nil {
			return fmt.Errorf("read of write %d: %w", i, err)
		}
		switch {
		case binary.LittleEndian.Uint64(p) != v && first < 0:
			first = i
		case binary.LittleEndian.Uint64(p) == v:
			there = i + 1
		}
	}
	if first >= 0 && there > first {
		return fmt.Errorf("write %d is there and write %d, for which the client had waited before, is not (%d acknowledged)", there-1, first, s.acked)
	}
	if there < s.acked {
		return fmt.Errorf("%d writes are there, %d were acknowledged", there, s.acked)
	}
	// What is there and was not acknowledged may still go, until something behind
	// it is.
	s.wrote = s.wrote[:there]
	return nil
}

func prefixes(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 17))
	o := Options{
		Nodes: 3, Size: 4 * mib, Quorum: majority(), Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond, Seed: seed,
		Extents: 8, ExtentBytes: 64 << 10, Log: testLog(), Beside: 1 + rng.IntN(2),
	}
	c := New(o)
	defer func() {
		for _, n := range c.Nodes {
			n.Kill()
		}
	}()
	g := &groupHistory{t: t, c: c, rng: rng, s: &series{c: c}}
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		p := g.promote()
		if err := g.s.check(p.devs()); err != nil {
			t.Fatalf("%s: %v\n%s", p.Name, err, c.Describe())
		}
		g.strike(p)
	}
	g.mend()
	p := g.promote()
	if err := g.s.check(p.devs()); err != nil {
		t.Fatalf("in the end: %s: %v\n%s", p.Name, err, c.Describe())
	}
}

type groupHistory struct {
	t   *testing.T
	c   *Cluster
	rng *rand.Rand
	s   *series
}

func (g *groupHistory) start(n *Node) {
	if n.Dev != nil {
		return
	}
	if err := n.Start(); err != nil {
		g.t.Fatal(err)
	}
	for i, im := range n.images() {
		if (n.ID+i)%2 == 0 { // one device's disk is slower than the other's
			im.Inject(storetest.Fault{Ops: storetest.OpWrite, Delay: time.Millisecond})
		}
	}
}

func (g *groupHistory) mend() {
	for i, n := range g.c.Nodes {
		g.start(n)
		g.c.Rejoin(i)
	}
}

// images is the disks of the node's devices.
func (n *Node) images() []*storetest.Image {
	if n.Disk == nil {
		return nil
	}
	out := []*storetest.Image{n.Disk}
	for _, v := range n.More {
		out = append(out, v.Disk)
	}
	return out
}

// promote makes some node primary through some device of the group, and sees
// to it that none is ever primary for a part.
func (g *groupHistory) promote() *Node {
	for i := range 2000 {
		if i == 500 { // who is away may have the only complete copy of something
			g.mend()
		}
		n := g.c.Nodes[g.rng.IntN(len(g.c.Nodes))]
		if n.Dev == nil {
			continue
		}
		devs := n.devs()
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(1+g.rng.IntN(2000))*time.Millisecond)
		err := devs[g.rng.IntN(len(devs))].Promote(ctx, false)
		cancel()
		primary, able := 0, true
		for _, d := range devs {
			st := d.Status()
			if st.Role == replication.Primary {
				primary++
			}
			able = able && st.Quorum.Quorate
		}
		if primary != 0 && primary != len(devs) && err == nil {
			g.t.Fatalf("%s was promoted for %d of %d devices of the group\n%s", n.Name, primary, len(devs), g.c.Describe())
		}
		if err == nil && able {
			return n
		}
		time.Sleep(10 * time.Millisecond)
	}
	g.t.Fatalf("nobody can be promoted\n%s", g.c.Describe())
	return nil
}

// strike has the client write through p while something happens to it, and at
// times to another. At most one node stays away.
func (g *groupHistory) strike(p *Node) {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	devs := p.devs()
	wg.Go(func() { g.s.run(ctx, devs) })
	wait := func(ms int) { time.Sleep(time.Duration(g.rng.IntN(1000*ms)) * time.Microsecond) }
	wait(60)
	o := g.c.Nodes[(p.ID+1+g.rng.IntN(2))%3]
	kind := g.rng.IntN(6)
	g.t.Logf("strike %d at %s", kind, p.Name)
	switch kind {
	case 0:
		p.Kill()
	case 1:
		g.c.Isolate(p.ID)
	case 2: // a replica that falls behind, comes back, and is to take over
		g.c.Cut(p.ID, o.ID)
		wait(30)
		g.c.Heal(p.ID, o.ID)
		wait(30)
		p.Kill()
	case 3:
		p.Kill()
		o.Kill()
	case 4:
		for _, n := range g.c.Nodes {
			n.Kill()
		}
	case 5: // one device's disk goes and comes back, the others' do not
		if o.Dev == nil {
			break
		}
		d := o.devs()[g.rng.IntN(1+g.c.opts.Beside)]
		dctx, dcancel := context.WithTimeout(context.Background(), 5*time.Second)
		if d.Detach(dctx) == nil {
			wait(40)
			if err := d.Attach(dctx); err != nil {
				g.t.Logf("attach: %v", err)
			}
			wait(10)
		}
		dcancel()
		p.Kill()
	}
	wait(20)
	cancel()
	wg.Wait()
	for _, i := range g.rng.Perm(3) {
		n := g.c.Nodes[i]
		if n == p && g.rng.IntN(2) == 0 {
			continue // away for now
		}
		g.start(n)
		g.c.Rejoin(i)
		wait(50)
	}
	if g.rng.IntN(3) == 0 {
		time.Sleep(3 * time.Second)
	}
}

// onlyCopy is three nodes, the first of them primary of both devices of a group,
// of which one alone has a disk of r1.
func onlyCopy(t *testing.T, keeper int, f func(t *testing.T, c *Cluster)) {
	o := three()
	o.Beside = 1
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		if st := c.Nodes[0].More[0].Dev.Status(); st.Role != replication.Primary {
			t.Fatalf("r1 is %v where r0 was promoted", st.Role)
		}
		for _, n := range c.Nodes {
			if n.ID == keeper {
				continue
			}
			err := n.More[0].Dev.Detach(timeout(t, time.Minute))
			for range 60 {
				if refused, ok := errors.AsType[*device.RefusedError](err); !ok || !refused.Again {
					break // else another's detaching is not over yet
				}
				time.Sleep(time.Second)
				err = n.More[0].Dev.Detach(timeout(t, time.Minute))
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		f(t, c)
	})
}

// TestGroupIsPromotedWhole: a device of a group that cannot be promoted keeps
// the others from it, and the refusal says so.
func TestGroupIsPromotedWhole(t *testing.T) {
	onlyCopy(t, 0, func(t *testing.T, c *Cluster) {
		c.Nodes[0].Kill()
		n := c.Nodes[1]
		time.Sleep(time.Second)
		if st := n.Dev.Status(); st.Disk != replication.UpToDate || !st.Quorum.Quorate {
			t.Fatalf("r0 alone could not be promoted either\n%s", c.Describe())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := n.Dev.Promote(ctx, false)
		refused, ok := errors.AsType[*device.RefusedError](err)
		if !ok || refused.What != "promote r0" || !strings.Contains(refused.Why, "r1, of the same group, is in the way") {
			t.Fatalf("promote: %v\n%s", err, c.Describe())
		}
		if st := n.Dev.Status(); st.Role == replication.Primary {
			t.Fatal("r0 was promoted without r1")
		}
	})
}

// TestGroupIsSuspendedWhole: where I/O of one device is suspended that of the
// others is, and why says for whose sake; it goes on together, too.
func TestGroupIsSuspendedWhole(t *testing.T) {
	onlyCopy(t, 1, func(t *testing.T, c *Cluster) {
		n := c.Nodes[0]
		if err := c.ask(timeout(t, time.Second), n.Dev, block.Write, 0, 0, fill(1), 0); err != nil {
			t.Fatal(err)
		}
		c.Nodes[1].Kill()
		time.Sleep(time.Second)
		if st := n.Dev.Status(); !st.Quorum.Quorate || !st.Suspended || st.Stalled != "r1" {
			t.Fatalf("suspended %v for %q\n%s", st.Suspended, st.Stalled, c.Describe())
		}
		if why := n.Dev.Why(); !strings.Contains(strings.Join(why.Because, "\n"), "that of r1, of the same group") {
			t.Fatalf("%q", why.Because)
		}
		if err := c.ask(timeout(t, time.Second), n.Dev, block.Write, 0, 0, fill(2), 0); !errors.Is(err, ErrUnanswered) {
			t.Fatalf("a write of r0: %v", err)
		}
		if err := c.Nodes[1].Start(); err != nil {
			t.Fatal(err)
		}
		for _, d := range n.devs() {
			if err := c.ask(timeout(t, time.Minute), d, block.Write, 0, 0, fill(3), 0); err != nil {
				t.Fatalf("%s does not go on: %v\n%s", d.Name(), err, c.Describe())
			}
		}
	})
}

// TestGroupIsDemotedWhole, and not while a client has one of its devices open.
func TestGroupIsDemotedWhole(t *testing.T) {
	o := three()
	o.Beside = 1
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		r0, r1 := c.Nodes[0].Dev, c.Nodes[0].More[0].Dev
		if err := r1.OpenFor(t.Context()); err != nil {
			t.Fatal(err)
		}
		err := r0.Demote(t.Context())
		if refused, ok := errors.AsType[*device.RefusedError](err); !ok || !strings.Contains(refused.Why, "r1, of the same group") {
			t.Fatalf("demote: %v", err)
		}
		r1.Released(t.Context())
		if err := r0.Demote(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, d := range []*device.Device{r0, r1} {
			if st := d.Status(); st.Role != replication.Secondary {
				t.Errorf("%s is %v", d.Name(), st.Role)
			}
		}
	})
}
