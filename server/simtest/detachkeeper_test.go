package simtest

import (
	"sync"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
)

// TestWhoKeepsTheDataIsNoMixture: a replica's disk is detached while the primary
// loses the other replica, and dies. Whoever was to keep the data meanwhile does
// not begin to be resynced from the very disk that goes.
func TestWhoKeepsTheDataIsNoMixture(t *testing.T) {
	for x := 2 * time.Millisecond; x < 5*time.Millisecond; x += time.Millisecond {
		for y := x; y < x+3*time.Millisecond; y += time.Millisecond / 2 {
			for _, cut := range []time.Duration{0, 3 * time.Millisecond} {
				bubble(t, three(), func(t *testing.T, c *Cluster) { detachInMidst(t, c, cut, x, y) })
			}
		}
	}
}

func detachInMidst(t *testing.T, c *Cluster, cut, detach, kill time.Duration) {
	c.mustAllSync(t)
	c.mustPromote(t, 0)
	c.mustWrite(t, 0, 0, 'a', 4096)
	time.Sleep(10 * time.Second)
	dev, ctx := c.Nodes[0].Dev, timeout(t, 30*time.Second)
	var all sync.WaitGroup
	for i := range int64(20) {
		all.Go(func() {
			time.Sleep(time.Duration(i) * time.Millisecond)
			if !c.killed(dev) {
				_ = c.ask(ctx, dev, block.Write, 0, i*8192, fill(1), 0)
			}
		})
	}
	out := make(chan error, 1)
	all.Go(func() {
		time.Sleep(detach)
		out <- c.Nodes[1].Dev.Detach(timeout(t, 2*time.Second))
	})
	cut = min(cut, kill)
	time.Sleep(cut)
	c.Cut(0, 2)
	time.Sleep(kill - cut)
	early := c.Nodes[1].Dev.Status().Detached
	c.Nodes[0].Kill()
	all.Wait()
	time.Sleep(3 * time.Second)
	if err := <-out; err == nil && !early && c.Nodes[2].Dev.Status().Disk == replication.Inconsistent {
		t.Errorf("cut after %v, detached after %v, killed after %v: no complete disk is left\n%s", cut, detach, kill, c.Describe())
	}
}
