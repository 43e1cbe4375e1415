package simtest

import (
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
)

// load is a client that writes and reads on one node without a pause while a
// test does something to the cluster. It suffers no error.
type load struct {
	l    *ledger
	n    *Node
	dev  *device.Device
	stop chan struct{}
	wg   sync.WaitGroup
	err  error

	mu    sync.Mutex // guards moved
	moved int        // writes done
}

// begin starts a load on a node, which is or becomes primary.
func (c *Cluster) begin(t *testing.T, n int) *load {
	t.Helper()
	x := &load{l: newLedger(), n: c.Nodes[n], dev: c.Nodes[n].Dev, stop: make(chan struct{})}
	x.wg.Go(func() { x.err = x.run() })
	t.Cleanup(func() { x.end() })
	return x
}

func (x *load) run() error {
	p := make([]byte, block.Unit)
	for i := 0; ; i++ {
		select {
		case <-x.stop:
			return nil
		case <-time.After(200 * time.Microsecond):
		}
		blk := int64(i*13) % tortureBlocks
		x.l.next++
		v := x.l.next
		if err := x.do(block.Write, blk, fill(v)); err != nil {
			return err
		}
		x.l.acked[blk] = v
		blk = int64(i*7) % tortureBlocks
		if err := x.do(block.Read, blk, p); err != nil {
			return err
		}
		if err := x.l.holds(blk, p); err != nil {
			return err
		}
		if i%17 == 0 {
			if err := x.do(block.Flush, 0, nil); err != nil {
				return err
			}
		}
		x.mu.Lock()
		x.moved++
		x.mu.Unlock()
	}
}

// do asks and waits for the answer, however long it takes.
func (x *load) do(op block.Op, blk int64, p []byte) error {
	w := make(completion, 1)
	r := &block.Request{Op: op, Off: blk * block.Unit * 7, Len: int64(len(p)), Data: p, Done: w}
	if op == block.Flush {
		r.Off = 0
	}
	b := &block.Batch{}
	x.dev.Submit(r, b)
	b.Finish()
	select {
	case <-w:
	case <-time.After(10 * time.Minute):
		return fmt.Errorf("%v of block %d: %w", op, blk, ErrUnanswered)
	}
	if r.Err != nil {
		return fmt.Errorf("%v of block %d: %w", op, blk, r.Err)
	}
	return nil
}

// moves waits until the load has done some more writes.
func (x *load) moves(t *testing.T, c *Cluster) {
	t.Helper()
	count := func() int {
		x.mu.Lock()
		defer x.mu.Unlock()
		return x.moved
	}
	from := count()
	for range 600 {
		if count() >= from+100 {
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	t.Fatalf("the client stands still after %d writes: %v\n%s", from, x.err, c.Describe())
}

// end ends the load.
func (x *load) end() {
	select {
	case <-x.stop:
	default:
		close(x.stop)
	}
	x.wg.Wait()
}

// finish ends the load and checks that all went well, on every disk.
func (x *load) finish(t *testing.T, c *Cluster) {
	t.Helper()
	x.end()
	if x.err != nil {
		t.Fatalf("the client saw an error: %v\n%s", x.err, c.Describe())
	}
	c.mustSync(t, x.n.ID)
	c.mustEqual(t)
	for _, n := range c.Nodes {
		if n.Disk == nil {
			continue
		}
		if err := x.l.check(func(off int64, p []byte) { n.Disk.Peek(p, off) }); err != nil {
			t.Fatalf("%s: %v\n%s", n.Name, err, c.Describe())
		}
	}
}

var errNotSo = errors.New("it does not come to that")

// until waits until a node's status is as wanted.
func (c *Cluster) until(t *testing.T, n int, what string, ok func(disk replication.DiskState) bool) {
	t.Helper()
	for range 1200 {
		if ok(c.Nodes[n].Dev.Status().Disk) {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	t.Fatalf("%s: %v\n%s", what, errNotSo, c.Describe())
}

func is(want replication.DiskState) func(replication.DiskState) bool {
	return func(s replication.DiskState) bool { return s == want }
}
