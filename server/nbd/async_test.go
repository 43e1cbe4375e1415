package nbd_test

import (
	"bytes"
	"sync"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/nbd/client"
	"github.com/lockstepd/lockstep/server/nbd/nbdtest"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// workers carry out requests on goroutines of their own, out of order, and
// complete several with one batch, as an engine does that waits for peers.
type workers struct {
	disk  nbdtest.Disk
	queue chan *block.Request
	wg    sync.WaitGroup
}

func startWorkers(t *testing.T, d nbdtest.Disk, n int) *workers {
	w := &workers{disk: d, queue: make(chan *block.Request, 4096)}
	for range n {
		w.wg.Go(w.work)
	}
	t.Cleanup(func() {
		close(w.queue)
		w.wg.Wait()
	})
	return w
}

func (w *workers) hook(r *block.Request, _ *block.Batch) bool {
	w.queue <- r
	return true
}

func (w *workers) work() {
	var b block.Batch
	for r := range w.queue {
		w.do(r, &b)
		for range 3 { // take some more, if there are any
			select {
			case r, ok := <-w.queue:
				if ok {
					w.do(r, &b)
				}
			default:
			}
		}
		b.Finish()
	}
}

func (w *workers) do(r *block.Request, b *block.Batch) {
	r.Err = w.disk.Do(r)
	if r.Off%3 == 0 {
		r.Done.Complete(r, nil) // and some do without a batch
		return
	}
	r.Done.Complete(r, b)
}

func TestCompletionsFromManyGoroutines(t *testing.T) {
	bothKinds(t, func(t *testing.T, o client.Options) {
		const streams, area = 8, 1 << 20
		m := nbdtest.NewMemory("disk", streams*area)
		b := nbdtest.NewBackend(m)
		b.Hook = startWorkers(t, m, 4).hook
		// Cleanups run last first: the server ends before the workers.
		s := start(t, b, nbd.Limits{Inflight: 50, InflightBytes: 4 << 20, Slabs: 2})
		conns := []*client.Client{s.dial(o), s.dial(o)}
		var wg sync.WaitGroup
		for i := range streams {
			wg.Go(func() { stream(t, conns[i%2], int64(i)*area, area) })
		}
		wg.Wait()
		for _, c := range conns {
			if err := c.Close(); err != nil {
				t.Error(err)
			}
		}
		eventually(t, "the memory to be given back", func() bool { return s.Stats().Buffers == 0 })
	})
}

// stream writes an area in pieces, all at once, and reads it back likewise.
func stream(t *testing.T, c *client.Client, base, area int64) {
	sizes := []int64{511, 4096, 70001, 13, 128 << 10}
	for round := range 5 {
		want := pattern(int(area), byte(round)+byte(base>>20))
		got := make([]byte, area)
		for _, cmd := range []proto.Cmd{proto.CmdWrite, proto.CmdRead} {
			buf := want
			if cmd == proto.CmdRead {
				buf = got
			}
			var waits []client.Pending
			for at, i := int64(0), round; at < area; i++ {
				n := min(sizes[i%len(sizes)], area-at)
				p, err := c.Start(proto.Request{Cmd: cmd, Off: uint64(base + at), Len: uint32(n)}, buf[at:at+n])
				if err != nil {
					t.Error(err)
					return
				}
				waits = append(waits, p)
				at += n
			}
			for _, p := range waits {
				if err := p.Wait(); err != nil {
					t.Error(err)
					return
				}
			}
		}
		if !bytes.Equal(got, want) {
			t.Error("what was read is not what was written")
		}
	}
}
