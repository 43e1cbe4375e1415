package simtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// TestResizeStorm grows a device, again and again and from any node, while faults
// pile up: nodes that die, leave, are cut off and come back with the size that
// they had, primaries that move, disks without room. In the end all nodes have
// one size, which is no smaller than any that somebody was told of; what was
// answered is there, and what was never written is zero. A seed is replayed with
// -run ResizeStorm -seed SEED -seeds 1.
func TestResizeStorm(t *testing.T) {
	histories(t, *seeds, resizeStorm)
}

// growing is one history.
type growing struct {
	*history
	full map[*storetest.Image]*storetest.Injection
	wg   sync.WaitGroup

	mu    sync.Mutex
	told  int64   // the largest size that a resize was answered with
	asked []int64 // all sizes there may be

	wrote map[int64][]uint64 // by offset: what a block beyond the first size may hold
	last  uint64
}

func resizeStorm(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 29))
	o := Options{
		Nodes: disksOf(seed, 2+rng.IntN(3)), Size: 4 * mib, Quorum: majority(), Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond, Seed: seed, Uneven: unevenOf(seed),
		Extents: 8, ExtentBytes: 64 << 10, Log: testLog(),
	}
	if seed%4 == 1 && o.Nodes > 2 {
		o.Diskless = replication.Of(int(seed/4) % o.Nodes)
	}
	c := New(o)
	g := &growing{
		history: &history{t: t, c: c, rng: rng, l: newLedger(), grown: 4 * mib},
		full:    map[*storetest.Image]*storetest.Injection{}, told: 4 * mib, asked: []int64{4 * mib}, wrote: map[int64][]uint64{},
	}
	g.owner = func(int64) *ledger { return g.l }
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, n := range c.Nodes {
			n.Kill()
		}
	}()
	for range 3 {
		for range 8 {
			g.step()
		}
		g.wg.Wait() // a resize gives up in time
		g.lift()
		g.heal()
		g.judge()
	}
}

// step asks for a larger size, or does something to the cluster, and writes.
func (g *growing) step() {
	for _, n := range g.disks() {
		if f := g.full[n.Disk]; f != nil && n.Dev == nil {
			n.Disk.Lift(f) // it would not start
			delete(g.full, n.Disk)
		}
	}
	switch g.rng.IntN(5) {
	case 0, 1:
		g.resize()
	case 2:
		g.fill()
	default:
		g.act()
	}
	g.writeBeyond()
	if g.rng.IntN(2) == 0 {
		time.Sleep(time.Duration(g.rng.IntN(3000)) * time.Microsecond)
	}
}

// resize asks a node for a larger size, and does not wait for the answer.
func (g *growing) resize() {
	n := g.node()
	if n.Dev == nil {
		return
	}
	d, diskless := n.Dev, n.Disk == nil
	size := n.Dev.Size() + int64(1+g.rng.IntN(64))*16*block.Unit
	g.asked = append(g.asked, size)
	g.wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		err := d.Resize(ctx, size)
		g.l.log.Debug("resize", "node", n.Name, "size", size, "err", err)
		if diskless && err == nil {
			g.t.Errorf("a node without a disk was told %d", size)
		}
		if err == nil && !g.c.killed(d) {
			g.mu.Lock()
			g.told = max(g.told, size)
			g.mu.Unlock()
		}
	})
}

// fill leaves a node no room, or gives it some again.
func (g *growing) fill() {
	n := g.node()
	if n.Disk == nil {
		return
	}
	im := n.Disk
	if f := g.full[im]; f != nil {
		im.Lift(f)
		delete(g.full, im)
		return
	}
	g.full[im] = im.Inject(storetest.Fault{Ops: storetest.OpTruncate, Err: fmt.Errorf("no space left")})
}

func (g *growing) lift() {
	for im, f := range g.full {
		im.Lift(f)
	}
	clear(g.full)
}

// writeBeyond writes to what a primary has grown by.
func (g *growing) writeBeyond() {
	p := g.primary()
	if p == nil || p.Dev.Size() <= 4*mib {
		return
	}
	for range 3 {
		off := 4*mib + g.rng.Int64N((p.Dev.Size()-4*mib)/block.Unit)*block.Unit
		ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
		g.last++
		err := p.Do(ctx, block.Write, 0, off, fill(g.last), 0)
		cancel()
		g.l.log.Debug("the client wrote beyond", "node", p.Name, "off", off, "value", g.last, "err", err)
		if err == nil {
			g.wrote[off] = []uint64{g.last}
		} else {
			if len(g.wrote[off]) == 0 {
				g.wrote[off] = []uint64{0}
			}
			g.wrote[off] = append(g.wrote[off], g.last)
		}
	}
}

// judge looks at the disks after everything was healed.
func (g *growing) judge() {
	size := g.c.Nodes[0].Dev.Size()
	for _, n := range g.c.Nodes {
		if got := n.Dev.Size(); got != size {
			g.t.Fatalf("n0 has %d bytes, and %s %d\n%s", size, n.Name, got, g.c.Describe())
		}
	}
	known := false
	for _, s := range g.asked {
		known = known || s == size
	}
	if size < g.told || !known {
		g.t.Fatalf("it has %d bytes; somebody was told %d, and %v were asked for\n%s", size, g.told, g.asked, g.c.Describe())
	}
	first := g.disks()[0]
	p, q := make([]byte, block.Unit), make([]byte, block.Unit)
	for off := int64(0); off < size; off += block.Unit {
		first.Disk.Peek(p, off)
		for _, n := range g.disks()[1:] {
			if n.Disk.Peek(q, off); !bytes.Equal(p, q) {
				g.t.Fatalf("%s and %s differ at %d\n%s", first.Name, n.Name, off, g.c.Describe())
			}
		}
		if off < 4*mib {
			continue // the ledger has it
		}
		v, ok := binary.LittleEndian.Uint64(p), len(g.wrote[off]) == 0
		for _, w := range g.wrote[off] {
			ok = ok || v == w
		}
		if len(g.wrote[off]) == 0 && v != 0 || !ok {
			g.t.Fatalf("at %d there is %d, want one of %v\n%s", off, v, g.wrote[off], g.c.Describe())
		}
		if g.wrote[off] != nil {
			g.wrote[off] = []uint64{v}
		}
	}
}
