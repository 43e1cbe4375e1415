package control

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/nbd"
)

// TestLatencyIsOfTheLastMinute: a device was slow, and then fast; after a
// minute and a bit nothing but the fast time is told, and then nothing at all.
func TestLatencyIsOfTheLastMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const slow, fast = 40, 12 // buckets
		var mu sync.Mutex         // guards x
		x := nbd.ExportStats{Export: "r0"}
		answer := func(c *nbd.CommandStats, bucket int, n uint64) {
			mu.Lock()
			defer mu.Unlock()
			c.Latency[bucket] += n
		}
		var c Control
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			c.measure(ctx, func() []nbd.ExportStats {
				mu.Lock()
				defer mu.Unlock()
				return []nbd.ExportStats{x}
			})
		}()
		// tell is what is told after so long; requests come when nobody looks at them.
		tell := func(after time.Duration) api.DeviceDetail {
			time.Sleep(after) // of the bubble's time
			synctest.Wait()
			var d api.DeviceDetail
			c.showLatency(&d, &x)
			return d
		}
		within := func(us int64, bucket int) bool {
			return us >= nbd.LatencyFrom(bucket).Microseconds() && us <= nbd.LatencyFrom(bucket+1).Microseconds()
		}
		synctest.Wait()
		if d := tell(time.Second); d.ReadP99US != 0 || d.WriteP99US != 0 {
			t.Errorf("before there was any request: %+v", d)
		}
		answer(&x.Stats.Write, slow, 100)
		if d := tell(20 * time.Second); !within(d.WriteP50US, slow) || !within(d.WriteP99US, slow) || d.ReadP50US != 0 || d.ReadP99US != 0 {
			t.Errorf("after slow writes: %+v", d)
		}
		answer(&x.Stats.Write, fast, 400)
		answer(&x.Stats.Read, fast, 7)
		if d := tell(20 * time.Second); !within(d.WriteP50US, fast) || !within(d.WriteP99US, slow) || !within(d.ReadP99US, fast) {
			t.Errorf("after slow and fast writes, and fast reads: %+v", d)
		}
		answer(&x.Stats.Write, fast, 100)
		if d := tell(time.Minute); !within(d.WriteP50US, fast) || !within(d.WriteP99US, fast) {
			t.Errorf("a minute after slow writes: %+v", d)
		}
		if d := tell(75 * time.Second); d.ReadP99US != 0 || d.WriteP99US != 0 {
			t.Errorf("after more than a minute without a request: %+v", d)
		}
		cancel()
		<-ended
	})
}
