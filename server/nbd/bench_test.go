package nbd_test

import (
	"fmt"
	"io"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/nbd/nbdtest"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// pipeline keeps depth requests in flight over a bare connection, without a
// client's bookkeeping: what is measured is the server.
type pipeline struct {
	t       testing.TB
	w       io.ReadWriter
	depth   int
	request []byte // depth requests
	reply   []byte // room for their replies
}

func newPipeline(t testing.TB, s *testServer, cmd proto.Cmd, size, depth int) *pipeline {
	h, nc := s.greet()
	if _, err := h.Go("disk"); err != nil {
		t.Fatal(err)
	}
	p := &pipeline{t: t, w: nc, depth: depth}
	n := proto.ReplySize
	for i := range depth {
		r := proto.Request{Cmd: cmd, Cookie: uint64(i), Off: uint64(i * size), Len: uint32(size)}
		p.request = proto.AppendRequest(p.request, r)
		if cmd == proto.CmdWrite {
			p.request = append(p.request, pattern(size, byte(i))...)
		}
	}
	if cmd == proto.CmdRead {
		n += size
	}
	p.reply = make([]byte, n*depth)
	return p
}

// round sends all requests and waits for all replies.
func (p *pipeline) round() {
	if _, err := p.w.Write(p.request); err != nil {
		p.t.Fatal(err)
	}
	if _, err := io.ReadFull(p.w, p.reply); err != nil {
		p.t.Fatal(err)
	}
}

var shapes = []struct {
	cmd         proto.Cmd
	size, depth int
}{
	{proto.CmdWrite, 4096, 1},
	{proto.CmdWrite, 4096, 32},
	{proto.CmdRead, 4096, 1},
	{proto.CmdRead, 4096, 32},
	{proto.CmdWrite, 128 << 10, 1},
	{proto.CmdRead, 128 << 10, 1},
	{proto.CmdWrite, 1 << 20, 1},
	{proto.CmdRead, 1 << 20, 1},
}

// TestTheHotPathDoesNotAllocate counts what the server and the pipeline above
// allocate for many requests, together.
func TestTheHotPathDoesNotAllocate(t *testing.T) {
	if raceDetector {
		t.Skip("under the race detector sync.Pool forgets at random")
	}
	for _, s := range shapes {
		t.Run(fmt.Sprintf("%v/%d/%d", s.cmd, s.size, s.depth), func(t *testing.T) {
			server, _ := serveMemory(t, 64<<20)
			p := newPipeline(t, server, s.cmd, s.size, s.depth)
			for range 10 {
				p.round()
			}
			// A garbage collection empties the pools, which is not what is
			// counted here: so the mean of many rounds, rounded down.
			if n := testing.AllocsPerRun(500, p.round); n >= 1 {
				t.Errorf("%v allocations per round of %d", n, s.depth)
			}
		})
	}
}

func BenchmarkServer(b *testing.B) {
	for _, backend := range []string{"memory", "file"} {
		for _, s := range shapes {
			b.Run(fmt.Sprintf("%s/%v/%d/%d", backend, s.cmd, s.size, s.depth), func(b *testing.B) {
				var disk nbdtest.Disk = nbdtest.NewMemory("disk", 64<<20)
				if backend == "file" {
					f, err := nbdtest.CreateFile("disk", filepath.Join(b.TempDir(), "f"), 64<<20)
					if err != nil {
						b.Fatal(err)
					}
					defer func() { _ = f.Close() }()
					disk = f
				}
				p := newPipeline(b, start(b, nbdtest.NewBackend(disk), nbd.Limits{}), s.cmd, s.size, s.depth)
				p.round()
				runtime.GC()
				b.ReportAllocs()
				b.SetBytes(int64(s.size * s.depth))
				for b.Loop() {
					p.round()
				}
				b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*s.depth), "ns/request")
			})
		}
	}
}
