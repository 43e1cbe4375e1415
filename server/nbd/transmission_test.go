package nbd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/nbd/client"
	"github.com/lockstepd/lockstep/server/nbd/nbdtest"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// bothKinds runs a test with simple and with structured replies.
func bothKinds(t *testing.T, f func(t *testing.T, o client.Options)) {
	t.Run("simple", func(t *testing.T) { f(t, client.Options{Simple: true}) })
	t.Run("structured", func(t *testing.T) { f(t, client.Options{}) })
}

func TestWhatIsWrittenIsRead(t *testing.T) {
	bothKinds(t, func(t *testing.T, o client.Options) {
		s, m := serveMemory(t, 64<<20)
		c := s.dial(o)
		off := int64(512)
		for _, n := range []int{1, 511, 512, 4096, 65536 + 3, 128 << 10, 1 << 20, 1<<20 + 4096 - proto.RequestSize, 1<<20 + 4097, 3 << 20, 32 << 20} {
			want := pattern(n, byte(n))
			if _, err := c.WriteAt(want, off); err != nil {
				t.Fatalf("write of %d: %v", n, err)
			}
			got := make([]byte, n)
			if _, err := c.ReadAt(got, off); err != nil {
				t.Fatalf("read of %d: %v", n, err)
			}
			if !bytes.Equal(got, want) || !bytes.Equal(m.Content()[off:off+int64(n)], want) {
				t.Errorf("%d bytes differ", n)
			}
		}
	})
}

func TestManyAtOnceKeepTheirContent(t *testing.T) {
	bothKinds(t, func(t *testing.T, o client.Options) {
		const workers, area = 16, 1 << 20
		s, m := serveMemory(t, workers*area)
		c := s.dial(o)
		want := make([]byte, workers*area)
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				rnd := rand.New(rand.NewPCG(1, uint64(w)))
				mine := want[w*area : (w+1)*area]
				for i := range 200 {
					at := rnd.IntN(area - 1)
					n := 1 + rnd.IntN(min(area-at, 200<<10)-0)
					p := pattern(n, byte(i))
					copy(mine[at:], p)
					if _, err := c.WriteAt(p, int64(w*area+at)); err != nil {
						t.Errorf("write: %v", err)
						return
					}
					got := make([]byte, n)
					if _, err := c.ReadAt(got, int64(w*area+at)); err != nil || !bytes.Equal(got, p) {
						t.Errorf("read back %d at %d: %v", n, at, err)
						return
					}
				}
			})
		}
		wg.Wait()
		if !bytes.Equal(m.Content(), want) {
			t.Error("the disk is not what was written")
		}
	})
}

// badRequests are requests that are refused, with their errno.
var badRequests = []struct {
	name string
	req  proto.Request
	want proto.Errno
}{
	{"write beyond the end", proto.Request{Cmd: proto.CmdWrite, Off: 1<<20 - 512, Len: 1024}, proto.ENOSPC},
	{"write far beyond the end", proto.Request{Cmd: proto.CmdWrite, Off: 1<<64 - 512, Len: 512}, proto.ENOSPC},
	{"write whose end wraps around", proto.Request{Cmd: proto.CmdWrite, Off: 1<<64 - 256, Len: 512}, proto.ENOSPC},
	{"read beyond the end", proto.Request{Cmd: proto.CmdRead, Off: 1 << 20, Len: 1}, proto.EINVAL},
	{"read of everything and more", proto.Request{Cmd: proto.CmdRead, Len: 1<<32 - 1}, proto.EINVAL},
	{"trim beyond the end", proto.Request{Cmd: proto.CmdTrim, Off: 1 << 19, Len: 1 << 20}, proto.EINVAL},
	{"zeroes beyond the end", proto.Request{Cmd: proto.CmdWriteZeroes, Off: 1 << 19, Len: 1 << 20}, proto.ENOSPC},
	{"cache beyond the end", proto.Request{Cmd: proto.CmdCache, Off: 1 << 19, Len: 1 << 20}, proto.EINVAL},
	{"status beyond the end", proto.Request{Cmd: proto.CmdBlockStatus, Off: 1 << 19, Len: 1 << 20}, proto.EINVAL},
	{"status of nothing", proto.Request{Cmd: proto.CmdBlockStatus}, proto.EINVAL},
	{"unknown command", proto.Request{Cmd: 99}, proto.EINVAL},
	{"withdrawn resize", proto.Request{Cmd: 8, Off: 1 << 21}, proto.EINVAL},
	{"flush with a range", proto.Request{Cmd: proto.CmdFlush, Len: 512}, proto.EINVAL},
	{"unknown flag", proto.Request{Cmd: proto.CmdRead, Flags: 1 << 14, Len: 512}, proto.EINVAL},
	{"unknown flag on a write", proto.Request{Cmd: proto.CmdWrite, Flags: 1 << 5, Len: 70000}, proto.EINVAL},
	{"DF on a write", proto.Request{Cmd: proto.CmdWrite, Flags: proto.FlagDF, Len: 512}, proto.EINVAL},
	{"NO_HOLE on a trim", proto.Request{Cmd: proto.CmdTrim, Flags: proto.FlagNoHole, Len: 512}, proto.EINVAL},
	{"REQ_ONE on a read", proto.Request{Cmd: proto.CmdRead, Flags: proto.FlagReqOne, Len: 512}, proto.EINVAL},
	{"FAST_ZERO on a write", proto.Request{Cmd: proto.CmdWrite, Flags: proto.FlagFastZero, Len: 512}, proto.EINVAL},
}

func TestBadRequestsAreAnsweredAndTheStreamGoesOn(t *testing.T) {
	bothKinds(t, func(t *testing.T, o client.Options) {
		s, m := serveMemory(t, 1<<20)
		c := s.dial(o)
		before := m.Content()
		for _, tc := range badRequests {
			var payload []byte
			if tc.req.Cmd == proto.CmdWrite {
				payload = pattern(int(tc.req.Len), 1)
			}
			if err := c.Do(tc.req, payload); errno(err) != tc.want {
				t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
			}
			if err := c.Flush(); err != nil {
				t.Fatalf("after %s: %v", tc.name, err)
			}
		}
		if !bytes.Equal(m.Content(), before) {
			t.Error("a refused request changed the disk")
		}
	})
}

func TestOversizedPayloads(t *testing.T) {
	bothKinds(t, func(t *testing.T, o client.Options) {
		s, _ := serveMemory(t, 64<<20)
		c := s.dial(o)
		big := make([]byte, proto.MaxPayload+1)
		if err := c.Do(proto.Request{Cmd: proto.CmdWrite, Len: uint32(len(big))}, big); errno(err) != proto.EINVAL {
			t.Errorf("write: %v", err)
		}
		if err := c.Do(proto.Request{Cmd: proto.CmdRead, Len: uint32(len(big))}, big); errno(err) != proto.EINVAL {
			t.Errorf("read: %v", err)
		}
		if !o.Simple {
			if err := c.Do(proto.Request{Cmd: proto.CmdRead, Flags: proto.FlagDF, Len: uint32(len(big))}, big); errno(err) != proto.EOVERFLOW {
				t.Errorf("read in one piece: %v", err)
			}
		}
		if err := c.Trim(0, 64<<20); err != nil {
			t.Errorf("a trim is not bound by the payload: %v", err)
		}
		if _, err := c.WriteAt(pattern(512, 1), 0); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}

func TestAnExportsLimitsAreKept(t *testing.T) {
	bothKinds(t, func(t *testing.T, o client.Options) {
		m := nbdtest.NewMemory("disk", 1<<20).Change(func(i *nbd.Info) {
			*i = nbd.Info{Name: "disk", Size: 1 << 20, MinBlock: 4096, MaxPayload: 8192}
		})
		c := start(t, nbdtest.NewBackend(m), nbd.Limits{}).dial(o)
		for _, tc := range []struct {
			name string
			req  proto.Request
			want proto.Errno
		}{
			{"aligned", proto.Request{Cmd: proto.CmdWrite, Off: 4096, Len: 4096}, proto.OK},
			{"offset not aligned", proto.Request{Cmd: proto.CmdWrite, Off: 512, Len: 4096}, proto.EINVAL},
			{"length not aligned", proto.Request{Cmd: proto.CmdRead, Off: 4096, Len: 512}, proto.EINVAL},
			{"payload too long", proto.Request{Cmd: proto.CmdWrite, Len: 12288}, proto.EINVAL},
			{"trim not offered", proto.Request{Cmd: proto.CmdTrim, Len: 4096}, proto.EINVAL},
			{"zeroes not offered", proto.Request{Cmd: proto.CmdWriteZeroes, Len: 4096}, proto.EINVAL},
			{"cache not offered", proto.Request{Cmd: proto.CmdCache, Len: 4096}, proto.EINVAL},
		} {
			if err := c.Do(tc.req, make([]byte, tc.req.Len)); errno(err) != tc.want {
				t.Errorf("%s: %v, want %v", tc.name, err, tc.want)
			}
		}
	})
}

func TestAReadOnlyExportIsNotWritten(t *testing.T) {
	bothKinds(t, func(t *testing.T, o client.Options) {
		m := nbdtest.NewMemory("disk", 1<<20).Change(func(i *nbd.Info) { i.ReadOnly = true })
		c := start(t, nbdtest.NewBackend(m), nbd.Limits{}).dial(o)
		for _, cmd := range []proto.Cmd{proto.CmdWrite, proto.CmdTrim, proto.CmdWriteZeroes} {
			if err := c.Do(proto.Request{Cmd: cmd, Len: 4096}, pattern(4096, 1)); errno(err) != proto.EPERM {
				t.Errorf("%v: %v", cmd, err)
			}
		}
		if _, err := c.ReadAt(make([]byte, 4096), 0); err != nil {
			t.Error(err)
		}
	})
}

func TestRequestsOfNothingAreDone(t *testing.T) {
	bothKinds(t, func(t *testing.T, o client.Options) {
		s, _ := serveMemory(t, 1<<20)
		c := s.dial(o)
		for _, cmd := range []proto.Cmd{proto.CmdRead, proto.CmdWrite, proto.CmdTrim, proto.CmdWriteZeroes, proto.CmdCache, proto.CmdFlush} {
			if err := c.Do(proto.Request{Cmd: cmd}, nil); err != nil {
				t.Errorf("%v: %v", cmd, err)
			}
		}
	})
}

func TestErrorsOfTheBackendGetTheirErrno(t *testing.T) {
	for _, tc := range []struct {
		err  error
		cmd  proto.Cmd
		flag proto.CmdFlags
		want proto.Errno
	}{
		{block.ErrRange, proto.CmdWrite, 0, proto.ENOSPC},
		{block.ErrRange, proto.CmdRead, 0, proto.EINVAL},
		{block.ErrRange, proto.CmdTrim, 0, proto.EINVAL},
		{block.ErrInvalid, proto.CmdRead, 0, proto.EINVAL},
		{block.ErrReadOnly, proto.CmdWrite, 0, proto.EPERM},
		{block.ErrNoSpace, proto.CmdWrite, 0, proto.ENOSPC},
		{block.ErrNotSupported, proto.CmdWriteZeroes, proto.FlagFastZero, proto.ENOTSUP},
		{block.ErrNotSupported, proto.CmdWriteZeroes, 0, proto.EINVAL},
		{block.ErrIO, proto.CmdRead, 0, proto.EIO},
		{block.ErrIO, proto.CmdFlush, 0, proto.EIO},
		{errors.New("what is this"), proto.CmdWrite, 0, proto.EIO},
	} {
		bothKinds(t, func(t *testing.T, o client.Options) {
			b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
			b.Hook = func(r *block.Request, batch *block.Batch) bool {
				r.Err = fmt.Errorf("disk sda: %w", tc.err)
				r.Done.Complete(r, batch)
				return true
			}
			c := start(t, b, nbd.Limits{}).dial(o)
			r := proto.Request{Cmd: tc.cmd, Flags: tc.flag, Len: 4096}
			if tc.cmd == proto.CmdFlush {
				r.Len = 0
			}
			err := c.Do(r, make([]byte, r.Len))
			if errno(err) != tc.want {
				t.Errorf("%v on %v: %v, want %v", tc.err, tc.cmd, err, tc.want)
			}
			if e, _ := errors.AsType[*client.Error](err); !o.Simple && e.Text != "disk sda: "+tc.err.Error() {
				t.Errorf("text %q", e.Text)
			}
		})
	}
}

func TestLongErrorTextsAreCut(t *testing.T) {
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.Hook = func(r *block.Request, batch *block.Batch) bool {
		r.Err = errors.New(string(bytes.Repeat([]byte("x"), 100<<10)))
		r.Done.Complete(r, batch)
		return true
	}
	c := start(t, b, nbd.Limits{}).dial(client.Options{})
	err := c.Flush()
	if e, ok := errors.AsType[*client.Error](err); !ok || len(e.Text) == 0 || len(e.Text) > 900 {
		t.Errorf("%d bytes of text", len(fmt.Sprint(err)))
	}
}

func TestFlagsReachTheBackend(t *testing.T) {
	type seen struct {
		Op    block.Op
		Flags block.Flags
	}
	var mu sync.Mutex
	var got []seen
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.Hook = func(r *block.Request, _ *block.Batch) bool {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, seen{r.Op, r.Flags})
		return false
	}
	c := start(t, b, nbd.Limits{}).dial(client.Options{})
	for _, r := range []proto.Request{
		{Cmd: proto.CmdRead, Flags: proto.FlagFUA | proto.FlagDF, Len: 512},
		{Cmd: proto.CmdWrite, Flags: proto.FlagFUA, Len: 512},
		{Cmd: proto.CmdWrite, Len: 512},
		{Cmd: proto.CmdTrim, Flags: proto.FlagFUA, Len: 512},
		{Cmd: proto.CmdWriteZeroes, Flags: proto.FlagFUA | proto.FlagNoHole, Len: 512},
		{Cmd: proto.CmdWriteZeroes, Flags: proto.FlagFastZero, Len: 512},
		{Cmd: proto.CmdCache, Flags: proto.FlagFUA, Len: 512},
		{Cmd: proto.CmdFlush, Flags: proto.FlagFUA},
	} {
		if err := c.Do(r, make([]byte, r.Len)); err != nil {
			t.Fatal(err)
		}
	}
	mu.Lock()
	defer mu.Unlock()
	want := []seen{
		{block.Read, 0}, {block.Write, block.FUA}, {block.Write, 0}, {block.Trim, block.FUA},
		{block.WriteZeroes, block.FUA | block.NoHole}, {block.WriteZeroes, block.FastZero},
		{block.Cache, 0}, {block.Flush, 0},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestRepliesComeInAnyOrder(t *testing.T) {
	bothKinds(t, func(t *testing.T, o client.Options) {
		held := make(chan *block.Request, 1)
		b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
		b.Hook = func(r *block.Request, _ *block.Batch) bool {
			if r.Off != 4096 {
				return false
			}
			held <- r
			return true
		}
		c := start(t, b, nbd.Limits{}).dial(o)
		p, err := c.Start(proto.Request{Cmd: proto.CmdWrite, Off: 4096, Len: 512}, pattern(512, 1))
		if err != nil {
			t.Fatal(err)
		}
		r := await(t, "the write", held)
		if _, err := c.ReadAt(make([]byte, 512), 0); err != nil {
			t.Error(err)
		}
		if !bytes.Equal(r.Data, pattern(512, 1)) {
			t.Error("the payload changed while the write was in flight")
		}
		r.Done.Complete(r, nil)
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	})
}

func TestADroppedRequestClosesTheConnectionUnanswered(t *testing.T) {
	bothKinds(t, func(t *testing.T, o client.Options) {
		b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
		b.Hook = func(r *block.Request, batch *block.Batch) bool {
			if r.Op == block.Write {
				r.Err = fmt.Errorf("suspended: %w", block.ErrDropped)
				r.Done.Complete(r, batch)
			}
			return r.Op == block.Write
		}
		s := start(t, b, nbd.Limits{})
		c := s.dial(o)
		if _, err := c.WriteAt(pattern(512, 1), 0); !errors.Is(err, client.ErrLost) {
			t.Errorf("got %v", err)
		}
		if err := s.dial(o).Flush(); err != nil {
			t.Errorf("the next connection: %v", err)
		}
	})
}

func TestSparseReads(t *testing.T) {
	s, m := serveMemory(t, 8<<20)
	c := s.dial(client.Options{})
	want := make([]byte, 8<<20)
	put := func(off, n int) {
		p := pattern(n, byte(off>>12))
		copy(want[off:], p)
		if _, err := c.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	put(256<<10, 4096)
	put(512<<10, 64<<10)
	for i := range 64 { // more pieces than a reply has chunks
		put(2<<20+i*16<<10, 4096)
	}
	before := s.Stats().Connections[0].Stats.BytesOut
	for _, tc := range []struct{ name, off, n int }{
		{0, 0, 256 << 10}, {1, 0, 1 << 20}, {2, 256 << 10, 64 << 10}, {3, 200 << 10, 100 << 10},
		{4, 2 << 20, 1 << 20}, {5, 0, 8 << 20}, {6, 512 << 10, 64 << 10}, {7, 258<<10 + 5, 70001},
	} {
		got := pattern(tc.n, 99)
		if _, err := c.ReadAt(got, int64(tc.off)); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want[tc.off:tc.off+tc.n]) {
			t.Errorf("case %d differs", tc.name)
		}
		if err := c.Do(proto.Request{Cmd: proto.CmdRead, Flags: proto.FlagDF, Off: uint64(tc.off), Len: uint32(tc.n)}, got); err != nil {
			t.Errorf("in one piece: %v", err)
		}
	}
	if _, err := c.ReadAt(make([]byte, 1<<20), 4<<20); err != nil {
		t.Fatal(err)
	}
	after := s.Stats().Connections[0].Stats.BytesOut
	if _, err := c.ReadAt(make([]byte, 2<<20), 4<<20); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the hole to be counted", func() bool { return s.Stats().Connections[0].Stats.BytesOut > after })
	if n := s.Stats().Connections[0].Stats.BytesOut - after; n > 100 {
		t.Errorf("a hole of 2 MiB took %d bytes (%d before)", n, before)
	}
	if !bytes.Equal(m.Content(), want) {
		t.Error("the disk is not what was written")
	}
}

func TestBlockStatus(t *testing.T) {
	hole := func(n int64) client.Extent { return client.Extent{Len: n, Hole: true, Zero: true} }
	data := func(n int64) client.Extent { return client.Extent{Len: n} }
	s, _ := serveMemory(t, 1<<20)
	c := s.dial(client.Options{})
	if _, err := c.WriteAt(pattern(8192, 1), 65536); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		name string
		off  int64
		n    uint32
		flag proto.CmdFlags
		want []client.Extent
	}{
		{"whole", 0, 1 << 20, 0, []client.Extent{hole(65536), data(8192), hole(1<<20 - 65536 - 8192)}},
		{"one", 0, 1 << 20, proto.FlagReqOne, []client.Extent{hole(65536)}},
		{"one, cut to the request", 4096, 4096, proto.FlagReqOne, []client.Extent{hole(4096)}},
		{"within data, unaligned", 65536 + 100, 200, 0, []client.Extent{data(200)}},
	} {
		got, err := c.BlockStatus(tc.off, tc.n, tc.flag)
		if d := cmp.Diff(tc.want, got); d != "" || err != nil {
			t.Errorf("%s: %v %s", tc.name, err, d)
		}
	}
}

func TestAGrownExportIsUsedToItsNewEnd(t *testing.T) {
	s, m := serveMemory(t, 1<<20)
	c := s.dial(client.Options{})
	if _, err := c.WriteAt(pattern(4096, 1), 1<<20); errno(err) != proto.ENOSPC {
		t.Errorf("before: %v", err)
	}
	m.Grow(2 << 20)
	if _, err := c.WriteAt(pattern(4096, 1), 1<<20); err != nil {
		t.Errorf("after: %v", err)
	}
}

// holder keeps every request of one kind until told to let go.
type holder struct {
	op   block.Op
	held chan *block.Request
	off  atomic.Bool
}

func hold(op block.Op, most int) *holder {
	return &holder{op: op, held: make(chan *block.Request, most)}
}

func (h *holder) hook(r *block.Request, _ *block.Batch) bool {
	if r.Op != h.op || h.off.Load() {
		return false
	}
	h.held <- r
	return true
}

func TestRequestsInFlightAreLimited(t *testing.T) {
	for _, tc := range []struct {
		name   string
		limits nbd.Limits
		size   int
	}{
		{"by number", nbd.Limits{Inflight: 8}, 512},
		{"by bytes", nbd.Limits{InflightBytes: 8 << 16}, 1 << 16},
		{"by bytes of all connections", nbd.Limits{TotalBytes: 8 << 16}, 1 << 16},
		{"by bytes of large ones", nbd.Limits{InflightBytes: 8 << 21}, 1 << 21},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := hold(block.Write, 100)
			b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 64<<20))
			b.Hook = h.hook
			s := start(t, b, tc.limits)
			c := s.dial(client.Options{})
			var wg sync.WaitGroup
			for i := range 30 {
				wg.Go(func() {
					if _, err := c.WriteAt(pattern(tc.size, byte(i)), int64(i*tc.size)); err != nil {
						t.Error(err)
					}
				})
			}
			for range 30 {
				r := await(t, "a write", h.held)
				if n := len(h.held) + 1; n > 8 {
					t.Errorf("%d requests in flight", n)
				}
				r.Done.Complete(r, nil)
			}
			wg.Wait()
		})
	}
}

func TestWritesHeldForLongKeepTheirPayload(t *testing.T) {
	h := hold(block.Write, 1000)
	m := nbdtest.NewMemory("disk", 64<<20)
	b := nbdtest.NewBackend(m)
	b.Hook = h.hook
	s := start(t, b, nbd.Limits{Slabs: 2})
	c := s.dial(client.Options{})
	var held []*block.Request
	var waits []client.Pending
	// Each round fills more than a slab and lets go of all of it but one.
	for i := range 40 {
		for j := range 4 {
			off := (i*4 + j) * 300 << 10
			p, err := c.Start(proto.Request{Cmd: proto.CmdWrite, Off: uint64(off), Len: 300 << 10}, pattern(300<<10, byte(i*4+j)))
			if err != nil {
				t.Fatal(err)
			}
			waits = append(waits, p)
			r := await(t, "a write", h.held)
			if j == 0 {
				held = append(held, r)
				continue
			}
			r.Err = m.Do(r)
			r.Done.Complete(r, nil)
		}
	}
	if n := s.Stats().Buffers; n > 45 { // 40 payloads, 2 slabs, and what is on its way
		t.Errorf("%d buffers in use", n)
	}
	for _, r := range held {
		r.Err = m.Do(r)
		r.Done.Complete(r, nil)
	}
	for _, p := range waits {
		if err := p.Wait(); err != nil {
			t.Error(err)
		}
	}
	content := m.Content()
	for i := range 160 {
		if !bytes.Equal(content[i*300<<10:][:300<<10], pattern(300<<10, byte(i))) {
			t.Fatalf("write %d was changed before it was carried out", i)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	eventually(t, "the memory to be given back", func() bool { return s.Stats().Buffers == 0 })
}

func TestASlowReaderHoldsUpNobody(t *testing.T) {
	h := hold(block.Read, 1000)
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 64<<20))
	b.Hook = h.hook
	s := start(t, b, nbd.Limits{})
	handshake, nc := s.greet()
	if _, err := handshake.Go("disk"); err != nil {
		t.Fatal(err)
	}
	// Twelve reads of 4 MiB are far more than the socket takes.
	for i := range 12 {
		if _, err := nc.Write(proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdRead, Cookie: uint64(i), Len: 4 << 20})); err != nil {
			t.Fatal(err)
		}
	}
	for range 12 {
		r := await(t, "a read", h.held)
		done := make(chan struct{})
		go func() { // the backend's own goroutine, which is not to be blocked
			defer close(done)
			var batch block.Batch
			r.Done.Complete(r, &batch)
			batch.Finish()
		}()
		await(t, "the completion to return", done)
	}
	h.off.Store(true)
	if err := s.dial(client.Options{}).Flush(); err != nil {
		t.Error(err)
	}
	for range 12 { // and it gets everything in the end
		if _, err := io.CopyN(io.Discard, nc, proto.ReplySize+4<<20); err != nil {
			t.Fatal(err)
		}
	}
}
