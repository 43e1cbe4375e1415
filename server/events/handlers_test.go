package events

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// fakeRunner "runs" commands for as long and with the end that its function
// says, and keeps what it was given.
type fakeRunner struct {
	end func(n int, cmd Command) (time.Duration, Result, error)

	mu      sync.Mutex
	ran     []Command
	running int
	most    int
}

func (r *fakeRunner) Run(ctx context.Context, cmd Command) (Result, error) {
	r.mu.Lock()
	r.ran = append(r.ran, cmd)
	r.running++
	r.most = max(r.most, r.running)
	n := len(r.ran)
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		r.running--
		r.mu.Unlock()
	}()
	var d time.Duration
	res := Result{Text: "exit status 0"}
	var err error
	if r.end != nil {
		d, res, err = r.end(n, cmd)
	}
	select {
	case <-time.After(d):
		return res, err
	case <-ctx.Done():
		return Result{Status: -1, Text: "killed"}, ctx.Err()
	}
}

// seqsRun are the events that commands ran for, in order.
func (r *fakeRunner) seqsRun(t *testing.T) []uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []uint64
	for _, c := range r.ran {
		var e Event
		if err := json.Unmarshal(c.Stdin, &e); err != nil {
			t.Error(err)
		}
		out = append(out, e.Seq)
	}
	return out
}

// run starts handlers in a bubble and returns a function that ends them.
func run(t *testing.T, l *Log, r Runner, list ...Handler) (*Handlers, func()) {
	h := NewHandlers(l, r, slog.New(slog.NewTextHandler(t.Output(), nil)))
	h.Set(list)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := h.Run(ctx, 0); err != nil {
			t.Error(err)
		}
	})
	synctest.Wait()
	return h, func() { cancel(); wg.Wait() }
}

func TestHandlersRunForWhatTheyAskFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := NewLog(64), &fakeRunner{}
		_, end := run(t, l, r,
			Handler{Event: NodeDown, Command: []string{"/down"}, Nodes: []string{"beta"}},
			Handler{Event: Any, Command: []string{"/any"}, Devices: []string{"r0"}},
			Handler{Event: Any})
		defer end()
		l.Publish(Event{Type: NodeDown, Node: "beta"})
		l.Publish(Event{Type: NodeDown, Node: "gamma"})
		l.Publish(Event{Type: NodeUp, Node: "beta"})
		l.Publish(Event{Type: Role, Device: "r0"})
		l.Publish(Event{Type: Role, Device: "r1"})
		synctest.Wait()
		var got []string
		for _, c := range r.ran {
			got = append(got, c.Argv[0]+" "+c.Env[0]+" "+c.Env[1])
		}
		slices.Sort(got)
		if want := []string{"/any LOCKSTEP_EVENT=role LOCKSTEP_SEQ=4", "/down LOCKSTEP_EVENT=nodedown LOCKSTEP_SEQ=1"}; !slices.Equal(got, want) {
			t.Errorf("ran %q, not %q", got, want)
		}
	})
}

func TestACommandIsToldOfItsEvent(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	e := Event{Seq: 7, Time: at, Type: SplitBrain, Node: "beta", Device: "r0", Text: "both wrote\x00", Data: map[string]any{"primaries": 2, "why-so": "x", "list": []int{1}}}
	c, err := CommandFor([]string{"/x", "a b"}, e)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"LOCKSTEP_EVENT=split-brain", "LOCKSTEP_SEQ=7", "LOCKSTEP_TIME=2026-01-02T03:04:05.000000006Z", "LOCKSTEP_NODE=beta",
		"LOCKSTEP_DEVICE=r0", "LOCKSTEP_TEXT=both wrote", "LOCKSTEP_DATA_PRIMARIES=2", "LOCKSTEP_DATA_WHY_SO=x"}
	if !slices.Equal(c.Env, want) {
		t.Errorf("env is %q", c.Env)
	}
	if got := string(c.Stdin); !strings.HasPrefix(got, `{"seq":7,"time":"2026-01-02T03:04:05.000000006Z","type":"split-brain","node":"beta","device":"r0",`) || !strings.HasSuffix(got, "}\n") {
		t.Errorf("stdin is %q", got)
	}
	if _, err := CommandFor(nil, Event{Data: map[string]any{"f": func() {}}}); err == nil {
		t.Error("an event that is no JSON went through")
	}
}

func TestParallelRunsAndTheQueueAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(1024)
		r := &fakeRunner{end: func(int, Command) (time.Duration, Result, error) { return time.Minute, Result{}, nil }}
		h, end := run(t, l, r, Handler{Event: Any, Command: []string{"/x"}, MaxParallel: 3})
		defer end()
		for range 3 + HandlerQueue + 10 {
			publish(l, Role)
		}
		synctest.Wait()
		s := h.Stats()[0]
		if s.Running != 3 || s.Queued != HandlerQueue || s.Dropped != 10 {
			t.Errorf("%+v", s)
		}
		time.Sleep(2 * time.Hour)
		synctest.Wait()
		if s = h.Stats()[0]; s.Running != 0 || s.Queued != 0 || s.Succeeded != 3+HandlerQueue || r.most != 3 {
			t.Errorf("%+v, at most %d at a time", s, r.most)
		}
	})
}

func TestOneAtATimeKeepsTheOrder(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(1024)
		r := &fakeRunner{end: func(n int, _ Command) (time.Duration, Result, error) {
			return time.Duration(n%7) * time.Second, Result{}, nil
		}}
		_, end := run(t, l, r, Handler{Event: Any, Command: []string{"/x"}, MaxParallel: 1})
		defer end()
		for range 100 {
			publish(l, Role)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if got := r.seqsRun(t); len(got) != 100 || !slices.IsSorted(got) {
			t.Errorf("ran for %v", got)
		}
	})
}

func TestAllHandlersTogetherAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(1024)
		r := &fakeRunner{end: func(int, Command) (time.Duration, Result, error) { return time.Second, Result{}, nil }}
		_, end := run(t, l, r,
			Handler{Event: Any, Command: []string{"/x"}, MaxParallel: 64},
			Handler{Event: Any, Command: []string{"/y"}, MaxParallel: 64})
		defer end()
		for range 64 {
			publish(l, Role)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if r.most != HandlersParallel || len(r.ran) != 128 {
			t.Errorf("%d ran, at most %d at a time", len(r.ran), r.most)
		}
	})
}

func TestRetriesAndTimeLimits(t *testing.T) {
	boom := errors.New("no such program")
	for _, tc := range []struct {
		name    string
		handler Handler
		end     func(n int, cmd Command) (time.Duration, Result, error)
		runs    int
		want    HandlerStats
	}{
		{"succeeds", Handler{}, nil, 1, HandlerStats{Succeeded: 1, Last: "exit status 0"}},
		{"fails", Handler{}, func(int, Command) (time.Duration, Result, error) { return 0, Result{3, "exit status 3"}, nil }, 1, HandlerStats{Failed: 1, Last: "exit status 3"}},
		{"fails and is tried again", Handler{Retries: 2}, func(int, Command) (time.Duration, Result, error) { return 0, Result{3, "exit status 3"}, nil }, 3, HandlerStats{Failed: 1, Retried: 2, Last: "exit status 3"}},
		{"succeeds the second time", Handler{Retries: 5}, func(n int, _ Command) (time.Duration, Result, error) {
			return 0, Result{2 - n, "exit status x"}, nil
		}, 2, HandlerStats{Succeeded: 1, Retried: 1, Last: "exit status x"}},
		{"cannot start", Handler{}, func(int, Command) (time.Duration, Result, error) { return 0, Result{}, boom }, 1, HandlerStats{Failed: 1, Last: "no such program"}},
		{"takes too long", Handler{Timeout: 5 * time.Second}, func(int, Command) (time.Duration, Result, error) { return time.Hour, Result{}, nil }, 1, HandlerStats{Failed: 1, Last: "took longer than 5s"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l, r := NewLog(8), &fakeRunner{end: tc.end}
				tc.handler.Event, tc.handler.Command = Any, []string{"/x"}
				h, end := run(t, l, r, tc.handler)
				defer end()
				publish(l, Role)
				time.Sleep(10 * time.Minute)
				synctest.Wait()
				got := h.Stats()[0]
				got.Event, got.Command, got.LastTime = "", nil, time.Time{}
				if len(r.ran) != tc.runs || !equalStats(got, tc.want) {
					t.Errorf("%d runs, %+v", len(r.ran), got)
				}
			})
		})
	}
}

func equalStats(a, b HandlerStats) bool {
	return a.Succeeded == b.Succeeded && a.Failed == b.Failed && a.Retried == b.Retried && a.Last == b.Last && a.Running == b.Running
}

func TestStoppingEndsWhatRuns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(1024)
		r := &fakeRunner{end: func(int, Command) (time.Duration, Result, error) { return time.Hour, Result{}, nil }}
		h, end := run(t, l, r, Handler{Event: Any, Command: []string{"/x"}, MaxParallel: 2, Retries: 9})
		for range 50 {
			publish(l, Role)
		}
		synctest.Wait()
		start := time.Now()
		end()
		if d := time.Since(start); d != 0 {
			t.Errorf("took %v", d)
		}
		if s := h.Stats()[0]; s.Running != 0 || len(r.ran) != 2 || r.running != 0 {
			t.Errorf("%+v", s)
		}
	})
}

func TestSetKeepsWhatStaysAndDropsWhatGoes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(1024)
		r := &fakeRunner{end: func(int, Command) (time.Duration, Result, error) {
			return time.Minute, Result{Status: 1, Text: "exit status 1"}, nil
		}}
		stays := Handler{Event: Any, Command: []string{"/stays"}, MaxParallel: 1}
		goes := Handler{Event: Any, Command: []string{"/goes"}, MaxParallel: 1, Retries: 9}
		h, end := run(t, l, r, goes, stays)
		defer end()
		for range 5 {
			publish(l, Role)
		}
		synctest.Wait()
		h.Set([]Handler{stays, {Event: NodeUp, Command: []string{"/new"}}})
		publish(l, Role)
		synctest.Wait()
		if s := h.Stats(); len(s) != 2 || s[0].Queued != 5 || s[1].Queued != 0 {
			t.Errorf("%+v", s)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		var gone int
		for _, c := range r.ran {
			if c.Argv[0] == "/goes" {
				gone++
			}
		}
		if s := h.Stats(); gone != 1 || s[0].Failed != 6 {
			t.Errorf("the handler that went ran %d times; %+v", gone, s)
		}
	})
}

func TestHandlersSayWhatTheyLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, r := NewLog(4), &fakeRunner{}
		h := NewHandlers(l, r, slog.New(slog.DiscardHandler))
		h.Set([]Handler{{Event: Any, Command: []string{"/x"}, MaxParallel: 1}})
		for range 10 {
			publish(l, Role)
		}
		l.Close()
		if err := h.Run(t.Context(), 1); err != nil {
			t.Error(err)
		}
		if h.Lost() != 5 {
			t.Errorf("lost %d", h.Lost())
		}
	})
}

// TestHealthNamesTheHandlerThatFails, or that is too slow, until it is mended.
func TestHealthNamesTheHandlerThatFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(1024)
		status := 3
		r := &fakeRunner{end: func(int, Command) (time.Duration, Result, error) {
			return time.Second, Result{Status: status, Text: "exit status 3"}, nil
		}}
		h, end := run(t, l, r, Handler{Event: Role, Command: []string{"/x"}, MaxParallel: 1})
		defer end()
		says := func(want string) {
			t.Helper()
			got := ""
			if err := h.Health(); err != nil {
				got = err.Error()
			}
			if got != want {
				t.Errorf("%q, not %q", got, want)
			}
		}
		says("")
		publish(l, Role)
		time.Sleep(2 * time.Second)
		says("handler 1 (role) failed: exit status 3")
		status = 0
		publish(l, Role)
		time.Sleep(2 * time.Second)
		says("")
		for range HandlerQueue + 6 {
			publish(l, Role)
		}
		synctest.Wait()
		says("the queue of handler 1 (role) is full; 5 events were dropped")
		time.Sleep(time.Hour)
		says("")
	})
}

// TestAPanicOfAWorkerIsOneOfRun, so that whoever runs the handlers can deal
// with it; the other workers have ended then.
func TestAPanicOfAWorkerIsOneOfRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLog(16)
		r := &fakeRunner{end: func(n int, _ Command) (time.Duration, Result, error) {
			if n == 2 {
				panic("boom")
			}
			return time.Hour, Result{}, nil
		}}
		h := NewHandlers(l, r, slog.New(slog.NewTextHandler(t.Output(), nil)))
		h.Set([]Handler{{Event: Any, Command: []string{"/x"}, MaxParallel: 3}})
		got := make(chan any)
		go func() {
			defer func() { got <- recover() }()
			_ = h.Run(t.Context(), 0)
		}()
		synctest.Wait()
		publish(l, Role)
		synctest.Wait()
		publish(l, Role)
		if s, _ := (<-got).(string); !strings.Contains(s, "boom, while a handler ran") || !strings.Contains(s, "handlers_test.go") {
			t.Errorf("Run: %q", s)
		}
		if s := h.Stats()[0]; s.Running != 0 || r.running != 0 {
			t.Errorf("%+v", s)
		}
	})
}
