package control

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/events"
)

// serveEvents answers on a socket with a log of events, and returns its path.
func serveEvents(t testing.TB, log *events.Log) string {
	t.Helper()
	c, err := New(Options{
		Config: func() *config.Local { return &config.Local{Config: &config.Config{}} },
		Events: log, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "s")
	l, err := ListenUnix(path, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- c.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		log.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return path
}

// subscriber is a connection that takes events.
type subscriber struct {
	nc net.Conn
	in *bufio.Scanner
}

func subscribe(t testing.TB, path string) *subscriber {
	t.Helper()
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	if _, err := io.WriteString(nc, `{"jsonrpc":"2.0","id":1,"method":"events/subscribe"}`+"\n"); err != nil {
		t.Fatal(err)
	}
	s := &subscriber{nc, bufio.NewScanner(nc)}
	if !s.in.Scan() {
		t.Fatalf("no answer: %v", s.in.Err())
	}
	return s
}

// count reads until the event numbered last, and counts the events and those
// that it was told it lost. Each must follow the one before.
func (s *subscriber) count(last uint64) (seen, lost uint64, err error) {
	var m struct {
		Params struct {
			Seq uint64
			api.Lost
		}
	}
	for at := uint64(0); at < last; {
		if !s.in.Scan() {
			return seen, lost, fmt.Errorf("it ended after event %d: %w", at, s.in.Err())
		}
		m.Params.Seq, m.Params.Lost = 0, api.Lost{}
		if err := json.Unmarshal(s.in.Bytes(), &m); err != nil {
			return seen, lost, err
		}
		from, to := m.Params.Seq, m.Params.Seq
		if from == 0 {
			from, to = m.Params.From, m.Params.To
			lost += m.Params.Count
		} else {
			seen++
		}
		if from != at+1 {
			return seen, lost, fmt.Errorf("event %d follows %d", from, at)
		}
		at = to
	}
	return seen, lost, nil
}

const (
	subscribers = 64
	stopped     = 2        // of them read nothing
	memoryBound = 64 << 20 // what all of it may cost
)

func heap() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse
}

// run publishes n events, pausing as told after each hundred, to subscribers of
// whom some do not read. It returns what the heap grew by meanwhile, and how
// many events the readers were told they lost.
func run(t testing.TB, n uint64, pause func()) (grown int64, lost uint64) {
	t.Helper()
	before := heap()
	log := events.NewLog(events.DefaultCapacity)
	path := serveEvents(t, log)
	type outcome struct {
		seen, lost uint64
		err        error
	}
	outcomes := make(chan outcome)
	for i := range subscribers {
		s := subscribe(t, path)
		if i < stopped {
			continue
		}
		go func() {
			var o outcome
			o.seen, o.lost, o.err = s.count(n)
			outcomes <- o
		}()
	}
	for i := range n {
		log.Publish(events.Event{Type: events.Resync, Device: "r0", Node: "beta", Text: "r0 resyncs with beta",
			Data: map[string]any{"done": i, "total": n}})
		if i%100 == 99 {
			pause()
		}
	}
	for range subscribers - stopped {
		o := <-outcomes
		if o.err != nil {
			t.Error(o.err)
		} else if o.seen+o.lost != n {
			t.Errorf("%d events were seen and %d lost, of %d", o.seen, o.lost, n)
		}
		lost += o.lost
	}
	return int64(heap()) - int64(before), lost
}

// TestStoppedSubscribersCostNothing: every reader sees each event or is told
// that it missed it, in order, and those that do not read take no memory.
func TestStoppedSubscribersCostNothing(t *testing.T) {
	if grown, lost := run(t, 10_000, runtime.Gosched); grown > memoryBound {
		t.Errorf("the heap grew by %d bytes", grown)
	} else {
		t.Logf("the heap grew by %d KiB; %d of %d events to %d readers were lost and told", grown>>10, lost, 10_000, subscribers-stopped)
	}
}

// BenchmarkSubscribers publishes 10,000 events a second.
func BenchmarkSubscribers(b *testing.B) {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	n := uint64(max(b.N, 100))
	grown, lost := run(b, n, func() { <-tick.C })
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(lost)/float64(n*(subscribers-stopped)), "lost/sent")
	b.ReportMetric(float64(grown)/(1<<20), "MiB")
}
