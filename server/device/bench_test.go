package device

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
)

const tib = 1 << 40

// onFiles is a device of one node of three, or of one, on sparse files. No peer
// is in reach, and quorum is off.
func onFiles(tb testing.TB, dir string, size int64, nodes int) *Device {
	tb.Helper()
	return withQuorum(tb, dir, size, nodes, replication.QuorumOff)
}

func withQuorum(tb testing.TB, dir string, size int64, nodes int, kind replication.QuorumKind) *Device {
	tb.Helper()
	return ofNode(tb, 0, dir, size, nodes, kind)
}

// ofNode is the device of one of several nodes.
func ofNode(tb testing.TB, self int, dir string, size int64, nodes int, kind replication.QuorumKind) *Device {
	tb.Helper()
	o := Options{Config: Config{Name: "r0", Handle: 1, Self: self, Size: size, Protocol: replication.ProtocolC, Quorum: replication.QuorumPolicy{Kind: kind}}}
	for i := range nodes {
		o.Nodes = append(o.Nodes, Node{ID: i, Name: fmt.Sprintf("n%d", i)})
	}
	d, err := Open(o, Backing{Disk: filepath.Join(dir, "r0.img"), Meta: filepath.Join(dir, "r0.meta")})
	if err != nil {
		tb.Fatal(err)
	}
	d.Start()
	return d
}

func promoted(tb testing.TB, d *Device) *Device {
	tb.Helper()
	// Alone, nobody else's word is to be had.
	if err := d.Promote(tb.Context(), true); err != nil {
		tb.Fatal(err)
	}
	return d
}

// shut closes a device at the end of a test.
func shut(tb testing.TB, d *Device) {
	tb.Helper()
	if err := d.Close(context.WithoutCancel(tb.Context())); err != nil {
		tb.Error(err)
	}
}

// put writes one block and waits.
func put(tb testing.TB, d *Device, off int64) {
	tb.Helper()
	w := &waiter{ch: make(chan struct{})}
	r := &block.Request{Op: block.Write, Off: off, Len: block.Unit, Data: make([]byte, block.Unit), Done: w}
	b := &block.Batch{}
	d.Submit(r, b)
	b.Finish()
	<-w.ch
	if r.Err != nil {
		tb.Fatal(r.Err)
	}
}

// many keeps a number of random writes of one unit in flight, of a client that
// sends them in batches.
type many struct {
	d    *Device
	rng  *rand.Rand
	set  int64 // in units
	reqs [32]block.Request
	done chan *block.Request
}

func newMany(d *Device, set int64) *many {
	m := &many{d: d, rng: rand.New(rand.NewPCG(1, 2)), set: set / block.Unit}
	m.done = make(chan *block.Request, len(m.reqs))
	data := make([]byte, block.Unit)
	for i := range m.reqs {
		m.reqs[i] = block.Request{Op: block.Write, Len: block.Unit, Data: data, Done: m}
	}
	return m
}

// Complete implements block.Completer.
func (m *many) Complete(r *block.Request, _ *block.Batch) { m.done <- r }

func (m *many) run(tb testing.TB, n int) {
	for range n / len(m.reqs) {
		b := &block.Batch{}
		for i := range m.reqs {
			m.reqs[i].Off = m.rng.Int64N(m.set) * block.Unit
			m.d.Submit(&m.reqs[i], b)
		}
		b.Finish()
		for range m.reqs {
			if r := <-m.done; r.Err != nil {
				tb.Fatal(r.Err)
			}
		}
	}
}

// inMemory is a directory on a file system in memory, where there is one: a
// disk would be measured in place of the log.
func inMemory(b *testing.B) string {
	dir, err := os.MkdirTemp("/dev/shm", "lockstep-bench")
	if err != nil {
		return b.TempDir()
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	return dir
}

// BenchmarkLogCost is what the activity log and the bitmaps take of random 4k
// writes at depth 32 on a working set inside the log: two devices, one of which
// keeps no log, take turns. The budget is cost-% <= 5. Nothing else is in the
// way of a write here, neither NBD nor a peer, so it is the worst case.
func BenchmarkLogCost(b *testing.B) {
	const set, slice = 256 << 20, 2048
	var ends [2]*many
	for i := range ends {
		d := promoted(b, onFiles(b, inMemory(b), 1<<30, 1))
		defer shut(b, d)
		if i == 1 {
			if err := d.meta.AL().Disable(); err != nil {
				b.Fatal(err)
			}
		}
		ends[i] = newMany(d, set)
		for off := int64(0); off < set; off += 4 << 20 {
			put(b, d, off) // every extent is hot
		}
		ends[i].run(b, slice)
	}
	var cost []float64
	var took [2]time.Duration
	for b.Loop() {
		var t [2]time.Duration
		for turn := range ends {
			i := (turn + len(cost)) % len(ends) // neither is always the first
			start := time.Now()
			ends[i].run(b, slice)
			t[i] = time.Since(start)
			took[i] += t[i]
		}
		cost = append(cost, 100*(1-t[1].Seconds()/t[0].Seconds()))
	}
	slices.Sort(cost)
	b.ReportMetric(cost[len(cost)/2], "cost-%")
	for i, name := range []string{"log-IOPS", "nolog-IOPS"} {
		b.ReportMetric(float64(slice*len(cost))/took[i].Seconds(), name)
	}
}

// crashed is a directory with a primary of a TiB that stopped uncleanly after
// writes to so many extents.
func crashed(tb testing.TB, extents int) (dir string) {
	tb.Helper()
	dir = tb.TempDir()
	d := promoted(tb, onFiles(tb, dir, tib, 3))
	for i := range extents {
		put(tb, d, int64(i)*(tib/int64(extents))&^(block.Unit-1))
	}
	d.Abandon()
	if err := d.disk.Close(); err != nil {
		tb.Fatal(err)
	}
	return dir
}

// TestCrashOfATebibyteCostsHotExtents: what a primary of a TiB has to have
// resynced after a crash is what Status said before, its hot extents.
func TestCrashOfATebibyteCostsHotExtents(t *testing.T) {
	const extents = 100
	d := onFiles(t, crashed(t, extents), tib, 3)
	defer shut(t, d)
	st := d.Status()
	if len(st.Peers) != 2 {
		t.Fatalf("%d peers", len(st.Peers))
	}
	for _, p := range st.Peers {
		if want := extents * st.ExtentBytes; p.OutOfSync != want {
			t.Errorf("%d bytes are out of sync with %s, want %d", p.OutOfSync, p.Node, want)
		}
	}
	put(t, promoted(t, d), tib-block.Unit)
}

// TestMemoryOfACleanTebibyte: a clean device of a TiB with two peers takes less
// than 64 MiB.
func TestMemoryOfACleanTebibyte(t *testing.T) {
	dir := t.TempDir()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	d := promoted(t, onFiles(t, dir, tib, 3))
	defer shut(t, d)
	put(t, d, 0)
	put(t, d, tib/2)
	runtime.GC()
	runtime.ReadMemStats(&after)
	if took := int64(after.HeapAlloc) - int64(before.HeapAlloc); took > 64<<20 {
		t.Errorf("it takes %d bytes", took)
	} else {
		t.Logf("it takes %d KiB", took>>10)
	}
}

// BenchmarkRestartOfATebibyte is the time from the start after a crash of a
// primary of a TiB with a full activity log to its first answered write. The
// budget is two seconds.
func BenchmarkRestartOfATebibyte(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		dir := crashed(b, 1000)
		b.StartTimer()
		d := promoted(b, onFiles(b, dir, tib, 3))
		put(b, d, 0)
		b.StopTimer()
		b.ReportMetric(float64(d.Status().Peers[0].OutOfSync)/(1<<20), "MiB-to-resync")
		shut(b, d)
		b.StartTimer()
	}
}
