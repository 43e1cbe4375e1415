package simtest

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
)

// access is one request for a block: a write of a value, or a read of one.
type access struct {
	blk   int64
	write bool
	value uint64 // that is written
}

// register is what a block is to its clients: a read returns the value of the
// write before it.
func register() porcupine.Model {
	return porcupine.Model{
		Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
			of := map[int64][]porcupine.Operation{}
			for _, op := range history {
				blk := op.Input.(access).blk
				of[blk] = append(of[blk], op)
			}
			var out [][]porcupine.Operation
			for _, ops := range of {
				out = append(out, ops)
			}
			return out
		},
		Init: func() any { return uint64(0) },
		Step: func(state, in, out any) (bool, any) {
			if a := in.(access); a.write {
				return true, a.value
			}
			return out.(uint64) == state.(uint64), state
		},
		DescribeOperation: func(in, out any) string {
			if a := in.(access); a.write {
				return fmt.Sprintf("block %d := %d", a.blk, a.value)
			}
			return fmt.Sprintf("block %d = %d", in.(access).blk, out)
		},
	}
}

const (
	linearBlocks  = 6
	linearClients = 4
)

// linear is a history of clients that write and read the same few blocks. Its
// clock ticks at every call and every answer.
type linear struct {
	c     *Cluster
	clock atomic.Int64
	value atomic.Uint64

	mu   sync.Mutex
	ops  []porcupine.Operation
	devs []*device.Device
}

func (x *linear) show(n *Node) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.devs[n.ID] = n.Dev
}

func (x *linear) dev(i int) *device.Device {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.devs[i]
}

// ask makes one request and notes it. A write that was not answered may be made
// at any time, or never; a read that was not tells nothing.
func (x *linear) ask(client int, dev *device.Device, a access) bool {
	ctx, cancel := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer cancel()
	p, what := make([]byte, block.Unit), block.Read
	if a.write {
		a.value, what = x.value.Add(1), block.Write
		p = fill(a.value)
	}
	op := porcupine.Operation{ClientId: client, Input: a, Call: x.clock.Add(1)}
	err := x.c.ask(ctx, dev, what, 0, a.blk*block.Unit*7, p, 0)
	op.Return, op.Output = x.clock.Add(1), binary.LittleEndian.Uint64(p)
	if err != nil && !a.write {
		return false
	}
	if err != nil {
		op.Return = math.MaxInt64
	}
	x.mu.Lock()
	x.ops = append(x.ops, op)
	x.mu.Unlock()
	return err == nil
}

func (x *linear) client(id int, rng *rand.Rand, over chan struct{}) {
	at := 0
	for {
		select {
		case <-over:
			return
		case <-time.After(time.Duration(rng.IntN(6000)) * time.Microsecond):
		}
		dev := x.dev(at)
		if dev != nil && x.ask(id, dev, access{blk: rng.Int64N(linearBlocks), write: rng.IntN(2) == 0}) {
			continue
		}
		for at = range x.devs { // whoever is primary
			if dev := x.dev(at); dev != nil && dev.Status().Role == replication.Primary {
				break
			}
		}
		if rng.IntN(3) == 0 {
			at = rng.IntN(len(x.devs))
			if dev := x.dev(at); dev != nil {
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				_ = dev.Promote(ctx, false)
				cancel()
			}
		}
	}
}

// TestBlocksAreRegisters lets clients write and read the same few blocks, through
// whichever node is primary, while nodes die, leave, lose sight of each other and
// come back: there is an order of all that was asked, in keeping with when it was
// asked and answered, in which every read returns what was written last. A seed
// is replayed with -run Registers -seed SEED -seeds 1.
func TestBlocksAreRegisters(t *testing.T) {
	for i := range uint64(*seeds) {
		seed := *first + i
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			var x *linear
			synctest.Test(t, func(t *testing.T) {
				defer time.Sleep(answers)
				x = accesses(t, seed)
			})
			switch porcupine.CheckOperationsTimeout(register(), x.ops, time.Minute) {
			case porcupine.Illegal:
				_, info := porcupine.CheckOperationsVerbose(register(), x.ops, time.Minute)
				path := t.ArtifactDir() + "/history.html"
				if err := porcupine.VisualizePath(register(), info, path); err != nil {
					t.Log(err)
				}
				t.Fatalf("the %d answers have no order; -artifacts keeps a picture, %s", len(x.ops), path)
			case porcupine.Unknown:
				t.Logf("%d requests have too many orders to look at in a minute", len(x.ops))
			}
		})
	}
}

func accesses(t *testing.T, seed uint64) *linear {
	rng := rand.New(rand.NewPCG(seed, 17))
	// On uneven paths so much is asked at a time that some have too many orders to look at.
	c := New(Options{
		Nodes: disksOf(seed, 2+rng.IntN(3)), Size: 4 * mib, Quorum: majority(), Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond,
		Seed: seed, Uneven: *uneven, Extents: 8, ExtentBytes: 64 << 10, Log: testLog(),
	})
	x := &linear{c: c, devs: make([]*device.Device, len(c.Nodes))}
	if rng.IntN(2) == 0 {
		c.opts.DiskDelay = time.Duration(1+rng.IntN(4)) * time.Millisecond
	}
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	for _, n := range c.Nodes {
		x.show(n)
	}
	defer func() {
		for _, n := range c.Nodes {
			n.Kill()
		}
	}()
	over := make(chan struct{})
	var clients sync.WaitGroup
	for i := range linearClients {
		r := rand.New(rand.NewPCG(seed, uint64(200+i)))
		clients.Go(func() { x.client(i, r, over) })
	}
	h := &history{t: t, c: c, rng: rng, l: newLedger()}
	for range 4 {
		x.fault(h)
	}
	time.Sleep(time.Second)
	close(over)
	clients.Wait()
	h.synced()
	h.settle()
	for blk := range int64(linearBlocks) {
		for _, n := range c.Nodes {
			x.ask(linearClients, n.Dev, access{blk: blk})
		}
	}
	c.mustEqual(t)
	return x
}

// fault does something to the cluster and heals it.
func (x *linear) fault(h *history) {
	pause := func(ms int) { time.Sleep(time.Duration(h.rng.IntN(ms)) * time.Millisecond) }
	n := h.node()
	down := []*Node{}
	stop := func(n *Node, how func(*Node)) {
		x.mu.Lock()
		x.devs[n.ID] = nil
		x.mu.Unlock()
		how(n)
		down = append(down, n)
	}
	pause(150)
	switch h.rng.IntN(5) {
	case 0, 1:
		if p := h.primary(); p != nil {
			n = p
		}
		stop(n, (*Node).Kill)
	case 2:
		stop(n, h.leave)
	case 3:
		x.c.Isolate(n.ID)
	case 4:
		if m := h.node(); m != n {
			x.c.Cut(n.ID, m.ID)
		}
	}
	pause(600)
	if p := h.primary(); p != nil && h.rng.IntN(2) == 0 && p.Dev != nil {
		stop(p, (*Node).Kill) // and the next
		pause(100)
	}
	for _, n := range down {
		h.start(n)
		x.show(n)
		pause(200)
	}
	for i := range x.c.Nodes {
		for j := range i {
			x.c.Heal(i, j)
		}
	}
	pause(500)
}
