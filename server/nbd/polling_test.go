package nbd_test

import (
	"runtime"
	"sync"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/nbd/client"
	"github.com/lockstepd/lockstep/server/nbd/nbdtest"
)

// replicas answer what they were sent only to whoever helps.
type replicas struct {
	disk nbdtest.Disk

	mu    sync.Mutex // guards asked
	asked []*block.Request
}

func (p *replicas) hook(r *block.Request, _ *block.Batch) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = append(p.asked, r)
	return true
}

func (p *replicas) Help(while func() bool) {
	for while() {
		p.mu.Lock()
		asked := p.asked
		p.asked = nil
		p.mu.Unlock()
		var b block.Batch
		for _, r := range asked {
			r.Err = p.disk.Do(r)
			r.Done.Complete(r, &b)
		}
		b.Finish()
	}
}

// TestAReaderHelpsWithTheRequestUnderWay: a client that sends one request at a
// time is answered by the goroutine that reads its requests.
func TestAReaderHelpsWithTheRequestUnderWay(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(max(2, runtime.GOMAXPROCS(0)))) // with one nobody polls
	m := nbdtest.NewMemory("disk", 1<<20)
	p := &replicas{disk: m}
	b := nbdtest.NewBackend(m)
	b.Hook = p.hook
	s := serveOptions(t, nbd.Options{Backend: b, Helper: p, Limits: nbd.Limits{Patience: patience}})
	c := s.dial(client.Options{Export: "disk"})
	for i := range 500 {
		if _, err := c.WriteAt(pattern(4096, byte(i)), int64(i%256)*4096); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
}
