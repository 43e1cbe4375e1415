package simtest

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
)

// TestCreateStorm: some disks were there before the device, each with data of its own,
// and the others are new. Administrators say of some what they are worth, clients write
// through whoever is promoted, and nodes and links are lost meanwhile. In the end the
// disks are equal, what was answered is there, and the rest is what was said of one disk,
// never some of two. Nothing that was there before is taken without a word. Without
// quorum two may begin, which is a split brain. A seed is replayed with -run CreateStorm
// -seed SEED -seeds 1.
func TestCreateStorm(t *testing.T) {
	histories(t, *seeds, createStorm)
}

// creator is one such history.
type creator struct {
	*history
	said map[uint64]bool // what an administrator has said that it begins with: 0: blank, else see wasThere
	done uint64          // what it certainly has, of those; 0: that is not known
}

const wasThere = 1 << 32 // times the id of the node and one: what the blocks of its disk held before

func createStorm(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 43))
	o := Options{
		Nodes: disksOf(seed, 2+rng.IntN(3)), Size: 4 * mib, Quorum: majority(), Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond,
		Seed: seed, Uneven: unevenOf(seed), Extents: 8, ExtentBytes: 64 << 10, Log: testLog(),
	}
	for id := range o.Nodes {
		if rng.IntN(2) == 0 {
			o.Existing = o.Existing.With(id)
		}
	}
	if o.Existing == 0 {
		o.Existing = replication.Of(rng.IntN(o.Nodes))
	}
	if seed%4 == 1 {
		o.Quorum = replication.QuorumPolicy{}
	}
	if seed%3 == 0 {
		o.Diskless = o.Diskless.With(o.Nodes)
		o.Nodes++
	}
	x := &creator{history: &history{t: t, c: New(o), rng: rng, l: newLedger()}, said: map[uint64]bool{}}
	x.owner = func(int64) *ledger { return x.l }
	for id := range o.Existing.All() {
		for blk := range int64(tortureBlocks) {
			if _, err := x.c.Nodes[id].Disk.Disk("hand").WriteAt(fill(uint64(id+1)*wasThere), blk*block.Unit*7); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := x.c.StartAll(); err != nil {
		t.Fatal(err)
	}
	defer x.c.killAll()
	for range 3 + rng.IntN(8) {
		x.step()
		x.wait([]int{5, 50, 2000}[rng.IntN(3)])
	}
	x.end()
}

func (x *creator) step() {
	n := x.node()
	switch x.rng.IntN(9) {
	case 0:
		n.Kill()
	case 1:
		x.c.Isolate(n.ID)
	case 2:
		if m := x.node(); m != n {
			x.c.Cut(n.ID, m.ID)
		}
	case 3:
		x.c.Rejoin(n.ID)
	case 4:
		x.begin(n)
	case 5:
		x.use(n)
	default:
		x.begin(n)
		x.create(n, []time.Duration{5 * time.Millisecond, time.Second, 10 * time.Second}[x.rng.IntN(3)])
	}
}

// create says what a disk is worth.
func (x *creator) create(n *Node, patience time.Duration) error {
	existing, word := x.rng.IntN(2) == 0, uint64(0)
	if existing && n.Disk != nil {
		p := make([]byte, 8)
		n.Disk.Peek(p, 0)
		word = binary.LittleEndian.Uint64(p)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	err := n.Dev.Create(ctx, existing)
	x.t.Logf("%s created, existing %v: %v", n.Name, existing, err)
	x.said[word] = true
	if err == nil && n.Disk == nil {
		x.t.Fatalf("%s has no disk, and was created", n.Name)
	}
	if err == nil && existing {
		if x.begun() && x.c.opts.Quorum.Kind != replication.QuorumOff {
			x.t.Fatalf("%s was created, and there was a device before\n%s", n.Name, x.c.Describe())
		}
		x.done = word
	}
	return err
}

// begun reports whether the device certainly has begun.
func (x *creator) begun() bool { return x.done != 0 || x.l.writes > 0 }

// use writes through a node, and demotes it.
func (x *creator) use(n *Node) {
	if !x.writeThrough(n) {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	_ = n.Dev.Demote(ctx)
}

func (x *creator) end() {
	for i, n := range x.c.Nodes {
		x.begin(n)
		x.c.Rejoin(i)
	}
	time.Sleep(10 * time.Second)
	x.demoteAll()
	if x.c.opts.Quorum.Kind == replication.QuorumOff {
		x.done = 0 // there may be another
		if x.split() != 0 {
			x.t.Log("two have begun")
			return // and stay apart
		}
	}
	for id := range x.c.opts.Existing.All() {
		n := x.c.Nodes[id]
		for try := 0; try < 30 && n.Dev.Status().Disk < replication.UpToDate; try++ {
			if err, again := errors.AsType[*device.RefusedError](x.create(n, time.Minute)); err == nil || !again || !err.Again {
				break // it may be the device's already, and only wait for others
			}
			time.Sleep(time.Second)
		}
	}
	x.synced()
	x.settle()
	x.synced()
	x.c.mustEqual(x.t)
	p := make([]byte, block.Unit)
	first := map[uint64]int{}
	for blk := range int64(tortureBlocks) {
		x.c.Nodes[0].Disk.Peek(p, blk*block.Unit*7)
		v := binary.LittleEndian.Uint64(p)
		if v != 0 && v < wasThere || x.l.acked[blk] != 0 {
			if err := x.l.holds(blk, p); err != nil {
				x.t.Fatalf("%v\n%s", err, x.c.Describe())
			}
			continue
		}
		first[v]++
	}
	if len(first) > 1 {
		x.t.Fatalf("the disks hold what was on several: %v\n%s", first, x.c.Describe())
	}
	for v := range first {
		if x.done != 0 && x.done != v {
			x.t.Fatalf("the device was to begin with %x, and holds %x\n%s", x.done, v, x.c.Describe())
		}
		if v != 0 && !x.said[v] {
			x.t.Fatalf("nobody has said that %x is the device's\n%s", v, x.c.Describe())
		}
	}
}
