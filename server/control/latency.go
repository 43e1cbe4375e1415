package control

import (
	"context"
	"sync"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/nbd"
)

// What devices took for their clients is told of the last minute, or up to
// latencyEvery longer: so often a note is taken of what had been so far.
const (
	latencyEvery = 15 * time.Second
	latencyNotes = int(time.Minute/latencyEvery) + 1
)

// latencies are notes of what requests had taken at moments of the last
// minute, so that what they took since can be told.
type latencies struct {
	// mu guards notes.
	mu    sync.Mutex
	notes []map[string]latency // by export, the oldest first; what is in none began later
}

// latency is what the requests to a device took.
type latency struct{ read, write nbd.Latency }

func latencyOf(x *nbd.ExportStats) latency {
	return latency{x.Stats.Read.Latency, x.Stats.Write.Latency}
}

// note keeps what the exports had done by now.
func (l *latencies) note(exports []nbd.ExportStats) {
	now := make(map[string]latency)
	for i := range exports {
		if x := latencyOf(&exports[i]); x != (latency{}) {
			now[exports[i].Export] = x
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.notes = append(l.notes, now); len(l.notes) > latencyNotes {
		l.notes = append(l.notes[:0], l.notes[1:]...)
	}
}

// recent is what the requests took that an export has answered since the
// oldest note.
func (l *latencies) recent(x *nbd.ExportStats) latency {
	now := latencyOf(x)
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.notes) == 0 {
		return now
	}
	before := l.notes[0][x.Export]
	return latency{now.read.Since(&before.read), now.write.Since(&before.write)}
}

// Measure takes the notes that device/show tells latencies by, until ctx ends.
func (c *Control) Measure(ctx context.Context) {
	c.measure(ctx, func() []nbd.ExportStats { return c.o.NBD.Stats().Exports })
}

func (c *Control) measure(ctx context.Context, exports func() []nbd.ExportStats) {
	tick := time.NewTicker(latencyEvery)
	defer tick.Stop()
	for {
		c.latencies.note(exports())
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// showLatency tells what requests to a device took.
func (c *Control) showLatency(d *api.DeviceDetail, x *nbd.ExportStats) {
	l := c.latencies.recent(x)
	d.ReadP50US, d.ReadP99US = quantiles(&l.read)
	d.WriteP50US, d.WriteP99US = quantiles(&l.write)
}

// quantiles are in microseconds, and not 0 where anything was measured.
func quantiles(l *nbd.Latency) (p50, p99 int64) {
	if l.Total() == 0 {
		return 0, 0
	}
	return max(l.Quantile(0.5).Microseconds(), 1), max(l.Quantile(0.99).Microseconds(), 1)
}
