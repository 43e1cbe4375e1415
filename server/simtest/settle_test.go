package simtest

import (
	"fmt"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestManyHandshakesSettle: disks that start at one instant, after a power cut under load,
// learn from each handshake what concerns the others. The more they are, the more
// handshakes begin anew for that, and the more resyncs; but not for ever, nor in turns.
// How often a node tells another what it knows is counted, and how much is resynced.
func TestManyHandshakesSettle(t *testing.T) {
	const hot = 64 << 10 // what each lacks of each, as far as they know
	for _, n := range []struct{ disks, without, seeds int }{{3, 0, 20}, {4, 2, 20}, {8, 0, 20}, {8, 4, 6}, {16, 0, 3}} {
		t.Run(fmt.Sprintf("%d disks and %d without", n.disks, n.without), func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(n.seeds) {
				bubble(t, devices(seed, n.disks, n.without), func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, 0, 'a', hot)
					if err := c.Nodes[0].Do(timeout(t, time.Minute), block.Flush, 0, 0, nil, 0); err != nil {
						t.Fatal(err)
					}
					c.mustWrite(t, 0, 0, 'b', 4096)
					for _, n := range c.Nodes {
						n.PowerOff(storetest.Crash{Seed: seed, Lost: 0.5})
					}
					for _, n := range c.Nodes {
						n.Bury()
					}
					hellos := c.SetTrap(takePoint(wire.DevHello), 1<<30, nil)
					if err := c.StartAll(); err != nil {
						t.Fatal(err)
					}
					time.Sleep(10 * time.Second)
					c.mustAllSync(t)
					c.mustEqual(t)
					all := len(c.Nodes)
					if told, most := hellos.Passed(), 4*n.disks*all*(all-1); told > most {
						t.Errorf("seed %d: %d times a node told another what it knows, of which %d were enough", seed, told, most)
					}
					if moved, most := c.resynced(), uint64(3*n.disks*n.disks*hot); moved > most {
						t.Errorf("seed %d: %d bytes were resynced, of which %d were enough", seed, moved, most)
					}
				})
			}
		})
	}
}
