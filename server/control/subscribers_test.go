package control

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

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
	at atomic.Uint64 // the last event it had
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
	s := &subscriber{nc: nc, in: bufio.NewScanner(nc)}
	if !s.in.Scan() {
		t.Fatalf("no answer: %v", s.in.Err())
	}
	return s
}

// count reads until the event numbered last, and counts the events and those
// that it was told it lost. Each must follow the one before.
func (s *subscriber) count(last uint64, progress chan<- struct{}) (seen, lost uint64, err error) {
	for at := uint64(0); at < last; {
		if !s.in.Scan() {
			return seen, lost, fmt.Errorf("it ended after event %d: %w", at, s.in.Err())
		}
		from, to, err := numbers(s.in.Bytes(), seen%512 == 0)
		if err != nil {
			return seen, lost, err
		}
		if from != at+1 {
			return seen, lost, fmt.Errorf("event %d follows %d", from, at)
		}
		if bytes.Contains(s.in.Bytes()[:48], []byte(`"method":"lost"`)) {
			lost += to - from + 1
		} else {
			seen++
		}
		s.at.Store(to)
		if at = to; at%128 == 0 || at == last {
			select {
			case progress <- struct{}{}:
			default:
			}
		}
	}
	return seen, lost, nil
}

// numbers are the first and last event of a notification. Most are only looked
// at, so that it is not the readers, in the same process, who are measured.
func numbers(msg []byte, decode bool) (from, to uint64, err error) {
	if rest, ok := bytes.CutPrefix(msg, []byte(`{"jsonrpc":"2.0","method":"event","params":{"seq":`)); ok && !decode {
		digits, _, _ := bytes.Cut(rest, []byte(","))
		from, err = strconv.ParseUint(string(digits), 10, 64)
		return from, from, err
	}
	var m struct {
		Params struct {
			Seq uint64
			api.Lost
		}
	}
	if err := json.Unmarshal(msg, &m); err != nil {
		return 0, 0, fmt.Errorf("%s: %w", msg, err)
	}
	if m.Params.Seq > 0 {
		return m.Params.Seq, m.Params.Seq, nil
	}
	if n := m.Params.To - m.Params.From + 1; n != m.Params.Count {
		return 0, 0, fmt.Errorf("%s: %d are counted", msg, n)
	}
	return m.Params.From, m.Params.To, nil
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

// readers are what runs against a log of events.
type readers struct {
	log      *events.Log
	reading  []*subscriber
	outcomes chan outcome
	progress chan struct{} // some reader has read some more
	before   uint64
}

type outcome struct {
	seen, lost uint64
	err        error
}

// subscribeAll has everybody subscribe, some of whom do not read, and the rest
// read n events.
func subscribeAll(t testing.TB, n uint64) *readers {
	t.Helper()
	r := &readers{before: heap(), log: events.NewLog(events.DefaultCapacity), outcomes: make(chan outcome), progress: make(chan struct{}, 1)}
	path := serveEvents(t, r.log)
	for i := range subscribers {
		s := subscribe(t, path)
		if i < stopped {
			continue
		}
		r.reading = append(r.reading, s)
		go func() {
			var o outcome
			o.seen, o.lost, o.err = s.count(n, r.progress)
			r.outcomes <- o
		}()
	}
	return r
}

func (r *readers) publish(i, n uint64) {
	r.log.Publish(events.Event{Type: events.Resync, Device: "r0", Node: "beta", Text: "r0 resyncs with beta",
		Data: map[string]any{"done": i, "total": n}})
}

// slowest is the last event that all readers have had.
func (r *readers) slowest() uint64 {
	at := r.reading[0].at.Load()
	for _, s := range r.reading {
		at = min(at, s.at.Load())
	}
	return at
}

// end returns what the heap grew by meanwhile, and how many events the readers
// were told they lost.
func (r *readers) end(t testing.TB, n uint64) (grown int64, lost uint64) {
	t.Helper()
	for range r.reading {
		o := <-r.outcomes
		if o.err != nil {
			t.Error(o.err)
		} else if o.seen+o.lost != n {
			t.Errorf("%d events were seen and %d lost, of %d", o.seen, o.lost, n)
		}
		lost += o.lost
	}
	return int64(heap()) - int64(r.before), lost
}

// TestStoppedSubscribersCostNothing: every reader sees each event or is told
// that it missed it, in order, and those that do not read take no memory.
func TestStoppedSubscribersCostNothing(t *testing.T) {
	const n = 10_000
	r := subscribeAll(t, n)
	for i := range uint64(n) {
		r.publish(i, n)
		if i%100 == 99 {
			runtime.Gosched()
		}
	}
	if grown, lost := r.end(t, n); grown > memoryBound {
		t.Errorf("the heap grew by %d bytes", grown)
	} else {
		t.Logf("the heap grew by %d KiB; %d of %d events to %d readers were lost and told", grown>>10, lost, n, len(r.reading))
	}
}

// cpu is the processor time that this process has had.
func cpu(b *testing.B) time.Duration {
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkSubscribers publishes 10,000 events a second, and as many as all
// readers, who are in the same process, take without losing any.
func BenchmarkSubscribers(b *testing.B) {
	bench := func(b *testing.B, pace func(r *readers, i uint64)) {
		n := uint64(max(b.N, 100))
		r := subscribeAll(b, n)
		b.ResetTimer()
		busy := cpu(b)
		for i := range n {
			r.publish(i, n)
			if i%100 == 99 {
				pace(r, i)
			}
		}
		grown, lost := r.end(b, n)
		b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "events/s")
		b.ReportMetric(float64(n)/(cpu(b)-busy).Seconds(), "events/cpu-s") // whatever else the machine does
		b.ReportMetric(float64(lost)/float64(n*uint64(len(r.reading))), "lost/sent")
		b.ReportMetric(float64(grown)/(1<<20), "MiB")
	}
	b.Run("10000", func(b *testing.B) {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		bench(b, func(*readers, uint64) { <-tick.C })
	})
	b.Run("most", func(b *testing.B) {
		bench(b, func(r *readers, i uint64) {
			for i-min(i, r.slowest()) > events.DefaultCapacity/4 {
				<-r.progress
			}
		})
	})
}

// TestSubscriptionsOfOneConnection: each of them gets its own copy of what it
// asked for, with what belongs to it; those to the same types end together, and
// other connections keep theirs.
func TestSubscriptionsOfOneConnection(t *testing.T) {
	log := events.NewLog(1024)
	path := serveEvents(t, log)
	other := subscribe(t, path)
	nc, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	in := bufio.NewScanner(nc)
	read := func(in *bufio.Scanner) string {
		t.Helper()
		if !in.Scan() {
			t.Fatalf("the connection ended: %v", in.Err())
		}
		return in.Text()
	}
	ask := func(method, types, want string) {
		t.Helper()
		if _, err := fmt.Fprintf(nc, `{"jsonrpc":"2.0","id":1,"method":"events/%s","params":{"types":[%s]}}`+"\n", method, types); err != nil {
			t.Fatal(err)
		}
		if got := read(in); !strings.Contains(got, want) {
			t.Errorf("%s [%s] is answered %s, want %s", method, types, got, want)
		}
	}
	ask("subscribe", `"nodeup"`, `"seq":0`)
	ask("subscribe", `"nodeup"`, `"seq":0`)
	ask("subscribe", `"nodedown"`, `"seq":0`)
	ask("subscribe", `"nodesideways"`, `nodesideways`)
	log.Publish(events.Event{Type: events.NodeUp, Node: "beta", Text: "node beta is up", Data: map[string]any{"session": 1}})
	for range 2 {
		if got := read(in); !strings.Contains(got, `"type":"nodeup"`) || !strings.Contains(got, `"session":1`) {
			t.Errorf("a copy of nodeup is %s", got)
		}
	}
	log.Publish(events.Event{Type: events.NodeDown, Node: "beta", Text: "node beta is down", Data: map[string]any{"reason": "disconnect"}})
	if got := read(in); !strings.Contains(got, `"type":"nodedown"`) || !strings.Contains(got, `"reason":"disconnect"`) {
		t.Errorf("nodedown is %s", got)
	}
	ask("unsubscribe", `"nodeup"`, "ended 2 subscriptions")
	ask("unsubscribe", `"nodeup"`, "ended 0 subscriptions")
	ask("unsubscribe", ``, "ended 1 subscriptions")
	for _, want := range []string{"nodeup", "nodedown"} {
		if got := read(other.in); !strings.Contains(got, want) {
			t.Errorf("another connection gets %s, not %s", got, want)
		}
	}
}
