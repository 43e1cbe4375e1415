package simtest

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestWhyTellsSinceWhenAllOfItIsSo: the state that a device explains has been
// so since the last of its parts changed, not since the disk did.
func TestWhyTellsSinceWhenAllOfItIsSo(t *testing.T) {
	bubble(t, Options{Nodes: 3, Quorum: majority()}, func(t *testing.T, c *Cluster) {
		c.mustSync(t, 0)
		check := func(state string, passed time.Duration) {
			t.Helper()
			w := c.Nodes[0].Dev.Why()
			if ago := time.Since(w.Since); w.State != state || ago < passed || ago > passed+10*time.Second {
				t.Errorf("%q for %v, want %q for %v", w.State, ago, state, passed)
			}
		}
		time.Sleep(time.Hour)
		c.mustPromote(t, 0)
		check("primary, disk UpToDate", 0)
		time.Sleep(time.Hour)
		check("primary, disk UpToDate", time.Hour)
		c.Isolate(0)
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		check("primary, disk UpToDate, I/O suspended", 10*time.Minute)
	})
}
