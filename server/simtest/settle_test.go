package simtest

import (
	"fmt"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestManyHandshakesSettle: disks that start at one instant, after a power cut under load,
// learn from each handshake what concerns the others. The more they are, the more
// handshakes begin anew for that, and the more resyncs; but not for ever, nor in turns.
// How often a node tells another what it knows is counted, and how much is resynced.
func TestManyHandshakesSettle(t *testing.T) {
	const hot = 64 << 10 // what each lacks of each, as far as they know
	for _, x := range []struct{ disks, without, seeds int }{{3, 0, 20}, {4, 2, 20}, {8, 0, 20}, {8, 4, 6}, {16, 0, 3}} {
		t.Run(fmt.Sprintf("%d disks and %d without", x.disks, x.without), func(t *testing.T) {
			t.Parallel()
			for seed := range uint64(x.seeds) {
				bubble(t, devices(seed, x.disks, x.without), func(t *testing.T, c *Cluster) {
					c.mustAllSync(t)
					c.mustPromote(t, 0)
					c.mustWrite(t, 0, 0, 'a', hot)
					c.mustFlush(t, 0)
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
					if told, most := hellos.Passed(), 4*x.disks*all*(all-1); told > most {
						t.Errorf("seed %d: nodes told each other %d times what they know, more than %d", seed, told, most)
					}
					if moved, most := c.resynced(), uint64(3*x.disks*x.disks*hot); moved > most {
						t.Errorf("seed %d: %d bytes were resynced, more than %d", seed, moved, most)
					}
				})
			}
		})
	}
}
