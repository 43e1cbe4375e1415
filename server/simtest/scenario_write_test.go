package simtest

import (
	"bytes"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

// asked is a request that was submitted and not waited for.
type asked struct {
	r    *block.Request
	done completion
}

// ask submits a request and returns at once.
func (n *Node) ask(op block.Op, flags block.Flags, off int64, data []byte, length int64) asked {
	a := asked{&block.Request{Op: op, Flags: flags, Off: off, Len: length, Data: data, Done: make(completion, 1)}, nil}
	a.done = a.r.Done.(completion)
	if data != nil {
		a.r.Len = int64(len(data))
	}
	b := &block.Batch{}
	n.Dev.Submit(a.r, b)
	b.Finish()
	return a
}

// mustAnswer waits until every request is answered, with success.
func (c *Cluster) mustAnswer(t *testing.T, all []asked) {
	t.Helper()
	late := time.After(10 * time.Minute)
	for i, a := range all {
		select {
		case <-a.done:
			if a.r.Err != nil {
				t.Fatalf("request %d of %d: %v\n%s", i, len(all), a.r.Err, c.Describe())
			}
		case <-late:
			t.Fatalf("request %d of %d is not answered\n%s", i, len(all), c.Describe())
		}
	}
}

func (c *Cluster) mustFlush(t *testing.T, n int) {
	t.Helper()
	if err := c.Nodes[n].Do(timeout(t, time.Minute), block.Flush, 0, 0, nil, 0); err != nil {
		t.Fatalf("flush on n%d: %v\n%s", n, err, c.Describe())
	}
}

// mustRead reads a range on a node and compares it.
func (c *Cluster) mustRead(t *testing.T, n int, off int64, want []byte) {
	t.Helper()
	got := make([]byte, len(want))
	if err := c.Nodes[n].Do(timeout(t, time.Minute), block.Read, 0, off, got, 0); err != nil {
		t.Fatalf("read on n%d: %v\n%s", n, err, c.Describe())
	}
	if at, same := firstDifference(got, want); !same {
		t.Fatalf("n%d reads something else at %d: %q, not %q\n%s", n, off+int64(at), got[at:at+1], want[at:at+1], c.Describe())
	}
}

func firstDifference(a, b []byte) (at int, same bool) {
	for i := range a {
		if a[i] != b[i] {
			return i, false
		}
	}
	return 0, true
}

// TestScenario01ReplicasAreEqual: what is written to one to thirty-two nodes is
// on all of their disks, and reads back.
func TestScenario01ReplicasAreEqual(t *testing.T) {
	for _, nodes := range []int{1, 2, 3, 5, 32} {
		o := three()
		o.Nodes = nodes
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			for i := range int64(20) {
				c.mustWrite(t, 0, i*100_001, byte('a'+i), 70_000)
			}
			c.mustFlush(t, 0)
			c.mustEqual(t)
			for i := range int64(20) {
				c.mustRead(t, 0, i*100_001, bytes.Repeat([]byte{byte('a' + i)}, 70_000))
			}
		})
	}
}

// TestScenario02MixedSizes writes pieces of 512 bytes to 8 MiB anywhere.
func TestScenario02MixedSizes(t *testing.T) {
	o := three()
	o.Size = 32 * mib
	bubble(t, o, func(t *testing.T, c *Cluster) {
		rng := rand.New(rand.NewPCG(2, 2))
		model := make([]byte, o.Size)
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		for i := range 60 {
			n := int64(512) << rng.IntN(15)
			off := rng.Int64N(o.Size-n) &^ 511
			p := bytes.Repeat([]byte{byte(i + 1)}, int(n))
			c.mustWrite(t, 0, off, byte(i+1), int(n))
			copy(model[off:], p)
		}
		c.mustRead(t, 0, 0, model)
		c.mustEqual(t)
	})
}

// TestScenario02APartOfABlockClearsNoMark: a write smaller than what a mark
// stands for reaches a replica that lacks the rest, and the mark stays.
func TestScenario02APartOfABlockClearsNoMark(t *testing.T) {
	bubble(t, three(), func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		if err := c.Nodes[0].Dev.PauseResync("n2"); err != nil {
			t.Fatal(err)
		}
		c.Isolate(2)
		c.mustWrite(t, 0, 0, 'a', 64<<10)
		c.Cut(1, 2)
		c.Heal(0, 2)
		time.Sleep(5 * time.Second)
		before := c.Nodes[0].Dev.Status().Peers[1].OutOfSync
		for off := int64(512); off < 64<<10; off += 4096 {
			c.mustWrite(t, 0, off, 'b', 512)
		}
		if after := c.Nodes[0].Dev.Status().Peers[1].OutOfSync; before != 64<<10 || after != before {
			t.Fatalf("%d bytes were marked, and %d are after parts of them were written\n%s", before, after, c.Describe())
		}
		if _, err := c.Nodes[0].Dev.Resync(timeout(t, time.Minute), "n2"); err != nil {
			t.Fatal(err)
		}
		c.Rejoin(2)
		c.mustSync(t, 0)
		c.mustEqual(t)
	})
}

// TestScenario03OverlappingWrites has many writes of the same blocks in flight
// at once: their order is anyone's, but one and the same everywhere.
func TestScenario03OverlappingWrites(t *testing.T) {
	for seed := range uint64(5) {
		o := three()
		o.Seed, o.Delay = seed, 5*time.Millisecond
		bubble(t, o, func(t *testing.T, c *Cluster) {
			rng := rand.New(rand.NewPCG(seed, 3))
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			var all []asked
			for i := range 500 {
				n := 512 * (1 + rng.IntN(32))
				all = append(all, c.Nodes[0].ask(block.Write, 0, rng.Int64N(32<<10)&^511, bytes.Repeat([]byte{byte(i)}, n), 0))
			}
			c.mustAnswer(t, all)
			c.mustEqual(t)
			got, disk := make([]byte, 64<<10), make([]byte, 64<<10)
			c.Nodes[2].Disk.Peek(disk, 0)
			if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Read, 0, 0, got, 0); err != nil || !bytes.Equal(got, disk) {
				t.Fatalf("the primary reads something else than a replica holds: %v", err)
			}
		})
	}
}

// TestScenario05SameBlocksRacingAResync writes and reads the very blocks that
// are being resynced, on each node in turn as target.
func TestScenario05SameBlocksRacingAResync(t *testing.T) {
	for target := 1; target < 3; target++ {
		for seed := range uint64(4) {
			o := three()
			o.Seed, o.Delay = seed, 3*time.Millisecond
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustSync(t, 0)
				c.mustPromote(t, 0)
				l := c.begin(t, 0)
				for range 4 {
					c.Isolate(target)
					l.moves(t, c)
					c.Rejoin(target)
					c.mustSync(t, 0)
				}
				l.finish(t, c)
			})
		}
	}
}

// TestScenario06ZeroesAmongWritesAndResync mixes writes, discards and zeroes of
// all sizes while replicas go and come: zeroes read as zeroes, everywhere.
func TestScenario06ZeroesAmongWritesAndResync(t *testing.T) {
	for seed := range uint64(6) {
		o := three()
		o.Seed = seed
		bubble(t, o, func(t *testing.T, c *Cluster) {
			rng := rand.New(rand.NewPCG(seed, 6))
			model := make([]byte, o.Size)
			if o.Size == 0 {
				model = make([]byte, 4*mib)
			}
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			away := 0
			for i := range 120 {
				if i%12 == 6 {
					away = 1 + rng.IntN(2)
					c.Isolate(away)
				} else if i%12 == 0 && away > 0 {
					c.Rejoin(away) // the next operations race its resync
				}
				n := int64(512) << rng.IntN(12)
				off := rng.Int64N(int64(len(model))-n) &^ 511
				kind := rng.IntN(4)
				op, flags, data := block.Write, block.Flags(0), bytes.Repeat([]byte{byte(i + 1)}, int(n))
				switch kind {
				case 0:
					op, data = block.Trim, nil
				case 1:
					op, data = block.WriteZeroes, nil
				case 2:
					op, flags, data = block.WriteZeroes, block.NoHole, nil
				}
				if err := c.Nodes[0].Do(timeout(t, time.Minute), op, flags, off, data, n); err != nil {
					t.Fatalf("%v of %d at %d: %v\n%s", op, n, off, err, c.Describe())
				}
				if data == nil {
					clear(model[off : off+n])
				} else {
					copy(model[off:], data)
				}
			}
			c.Rejoin(1)
			c.Rejoin(2)
			c.mustSync(t, 0)
			c.mustRead(t, 0, 0, model)
			c.mustEqual(t)
		})
	}
}

// TestScenario09ProtocolsAtTheLossOfThePrimary: under B and C nothing that was
// acknowledged is lost with the primary; under A no more than was on its way,
// and never an older write without the newer ones.
func TestScenario09ProtocolsAtTheLossOfThePrimary(t *testing.T) {
	const delay = time.Millisecond
	for _, p := range []replication.Protocol{replication.ProtocolA, replication.ProtocolB, replication.ProtocolC} {
		for seed := range uint64(5) {
			o := three()
			o.Protocol, o.Seed, o.Delay = p, seed, delay
			bubble(t, o, func(t *testing.T, c *Cluster) {
				c.mustSync(t, 0)
				c.mustPromote(t, 0)
				const every = time.Millisecond
				const writes = 100
				for i := range int64(writes) {
					c.mustWrite(t, 0, i*4096, byte(1+i), 4096)
					time.Sleep(every)
				}
				c.Nodes[0].Kill()
				c.mustPromote(t, 1)
				lost := 0
				for i := range int64(writes) {
					var got [1]byte
					c.Nodes[1].Disk.Peek(got[:], i*4096)
					switch {
					case got[0] == 0:
						lost++
					case lost > 0:
						t.Fatalf("protocol %c: write %d is there, and %d before it are not", p, i, lost)
					}
				}
				// A frame waits at most for those before it and then its own delay.
				if most := writes / 4; p == replication.ProtocolA && lost > most {
					t.Errorf("protocol A lost %d of %d writes", lost, writes)
				}
				if p != replication.ProtocolA && lost > 0 {
					t.Errorf("protocol %c lost %d acknowledged writes", p, lost)
				}
				if err := c.Nodes[0].Start(); err != nil {
					t.Fatal(err)
				}
				c.mustSync(t, 1)
				c.mustEqual(t)
			})
		}
	}
}

// TestScenario10ThousandsInFlight submits thousands of writes at once to a
// device whose activity log has four extents.
func TestScenario10ThousandsInFlight(t *testing.T) {
	o := three()
	o.Extents, o.ExtentBytes = 4, 64<<10
	bubble(t, o, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		c.mustPromote(t, 0)
		var all []asked
		for i := range 5000 {
			all = append(all, c.Nodes[0].ask(block.Write, 0, int64(i*37%1024)*4096, bytes.Repeat([]byte{byte(i)}, 4096), 0))
		}
		all = append(all, c.Nodes[0].ask(block.Flush, 0, 0, nil, 0))
		c.mustAnswer(t, all)
		c.mustEqual(t)
	})
}

// TestScenario11AStarvedActivityLog: more extents are wanted than fit, and the
// replicas are slow to say what is durable.
func TestScenario11AStarvedActivityLog(t *testing.T) {
	for slow := range 3 {
		o := three()
		o.Extents, o.ExtentBytes = 2, 64<<10
		bubble(t, o, func(t *testing.T, c *Cluster) {
			c.mustSync(t, 0)
			c.mustPromote(t, 0)
			c.Nodes[slow].Disk.Inject(storetest.Fault{Ops: storetest.OpSync, Delay: 80 * time.Millisecond})
			var all []asked
			for i := range 400 {
				all = append(all, c.Nodes[0].ask(block.Write, 0, int64(i*53%64)*65536, bytes.Repeat([]byte{byte(i)}, 4096), 0))
			}
			c.mustAnswer(t, all)
			if st := c.Nodes[0].Dev.Status(); st.Disk != replication.UpToDate {
				t.Fatalf("the disk is %v\n%s", st.Disk, c.Describe())
			}
			c.mustEqual(t)
		})
	}
}
