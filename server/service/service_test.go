package service

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// journal is what happened, in order.
type journal struct {
	mu    sync.Mutex
	lines []string
}

func (j *journal) add(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.lines = append(j.lines, fmt.Sprintf(format, args...))
}

func (j *journal) take() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := strings.Join(j.lines, ", ")
	j.lines = nil
	return out
}

// fake is a service whose methods do what the test says.
type fake struct {
	name  string
	j     *journal
	start func(ctx context.Context) error
	stop  func(ctx context.Context) error
}

func (f *fake) Start(ctx context.Context) error {
	f.j.add("+%s", f.name)
	if f.start != nil {
		return f.start(ctx)
	}
	return nil
}

func (f *fake) Stop(ctx context.Context) error {
	f.j.add("-%s", f.name)
	if f.stop != nil {
		return f.stop(ctx)
	}
	return nil
}

// worker is a fake that runs.
type worker struct {
	fake
	run    func(ctx context.Context) error
	reload func(ctx context.Context) error
	health func() error
}

func (w *worker) Run(ctx context.Context) error {
	if w.run != nil {
		return w.run(ctx)
	}
	<-ctx.Done()
	w.j.add("ended %s", w.name)
	return nil
}

func (w *worker) Reload(ctx context.Context) error {
	w.j.add("reload %s", w.name)
	if w.reload != nil {
		return w.reload(ctx)
	}
	return nil
}

func (w *worker) Health() error {
	if w.health != nil {
		return w.health()
	}
	return nil
}

func (w *worker) Stats() map[string]any { return map[string]any{"runs": 1} }

func id(name string) ID { return ID{name, 1} }

// setup makes a manager with services given as "name: need need".
func setup(t *testing.T, specs ...string) (*Manager, *journal, map[string]*fake) {
	j := &journal{}
	m := New(Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	fakes := map[string]*fake{}
	for _, s := range specs {
		name, needs, _ := strings.Cut(s, ":")
		f := &fake{name: name, j: j}
		fakes[name] = f
		spec := Spec{ID: id(name), Service: f, Stoppable: true}
		for n := range strings.FieldsSeq(needs) {
			spec.Needs = append(spec.Needs, id(n))
		}
		must(t, m.Register(spec))
	}
	return m, j, fakes
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantErr(t *testing.T, err error, text string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, not one with %q", err, text)
	}
}

// TestS1 is the start: order of needs, and a failure undone in reverse.
func TestS1StartFollowsNeedsAndAFailureIsUndone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, j, fakes := setup(t, "d: b c", "c: a", "b: a", "a:")
		fakes["b"].start = func(context.Context) error { time.Sleep(time.Second); return nil }
		fakes["c"].start = func(context.Context) error { time.Sleep(2 * time.Second); return nil }
		begin := time.Now()
		must(t, m.StartAll(t.Context()))
		if d := time.Since(begin); d != 2*time.Second {
			t.Errorf("took %v: b and c start side by side", d)
		}
		got := strings.Replace(j.take(), "+c, +b", "+b, +c", 1)
		if got != "+a, +b, +c, +d" {
			t.Error(got)
		}
		must(t, m.StopAll(t.Context()))
		if got := j.take(); got != "-d, -c, -b, -a" {
			t.Errorf("stopped %s: not the reverse of becoming ready", got)
		}
	})
	synctest.Test(t, func(t *testing.T) {
		m, j, fakes := setup(t, "a:", "b: a", "c: b", "d: c")
		exit := errors.New("port 7799 is in use")
		fakes["c"].start = func(context.Context) error { return exit }
		err := m.StartAll(t.Context())
		se, ok := errors.AsType[*StartError](err)
		if !ok || se.ID != id("c") || !errors.Is(err, exit) || err.Error() != "cannot start service c: port 7799 is in use" {
			t.Errorf("%v", err)
		}
		if got := j.take(); got != "+a, +b, +c, -b, -a" {
			t.Error(got)
		}
		for _, i := range m.List() {
			want := Stopped
			if i.Name == "c" {
				want = Failed
			}
			if i.State != want {
				t.Errorf("%s is %s", i.Name, i.State)
			}
		}
		must(t, m.StopAll(t.Context()))
	})
}

func TestS1AStartSideBySideIsGivenUpWhenAnotherFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, j, fakes := setup(t, "a:", "slow: a", "deaf: a", "bad: a")
		fakes["slow"].start = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		fakes["deaf"].start = func(context.Context) error { time.Sleep(500 * time.Millisecond); return nil }
		fakes["bad"].start = func(context.Context) error { time.Sleep(100 * time.Millisecond); return errors.New("no") }
		wantErr(t, m.StartAll(t.Context()), "cannot start service bad: no")
		got := j.take()
		if !strings.HasSuffix(got, ", -deaf, -a") || strings.Contains(got, "-slow") {
			t.Error(got)
		}
		must(t, m.StopAll(t.Context()))
	})
}

func TestS1AStartThatDoesNotComeBackIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		j := &journal{}
		m := New(Options{})
		release := make(chan struct{})
		must(t, m.Register(Spec{ID: id("a"), StartTimeout: 5 * time.Second, Service: &fake{name: "a", j: j, start: func(context.Context) error { <-release; return nil }}}))
		begin := time.Now()
		wantErr(t, m.StartAll(t.Context()), "cannot start service a: it did not start within 5s")
		if d := time.Since(begin); d != 5*time.Second+grace {
			t.Errorf("took %v", d)
		}
		close(release)
		must(t, m.StopAll(t.Context()))
	})
}

func TestS2BusyIsRetriedWithABound(t *testing.T) {
	for _, tc := range []struct {
		name string
		busy int // answers before it stops
		want string
	}{
		{"for a while", 3, ""},
		{"for ever", 1 << 30, "cannot stop service b: busy: 2 clients for 15s"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, j, fakes := setup(t, "a:", "b: a")
				left := tc.busy
				fakes["b"].stop = func(context.Context) error {
					if left--; left >= 0 {
						return fmt.Errorf("%w: 2 clients", ErrBusy)
					}
					return nil
				}
				must(t, m.StartAll(t.Context()))
				j.take()
				begin := time.Now()
				err := m.StopAll(t.Context())
				if tc.want == "" {
					must(t, err)
				} else {
					wantErr(t, err, tc.want)
				}
				if d := time.Since(begin); d > DefaultStopTimeout {
					t.Errorf("took %v", d)
				}
				if got := j.take(); !strings.HasSuffix(got, "-b, -a") {
					t.Errorf("a is not stopped after all: %s", got)
				}
				must(t, m.StopAll(t.Context())) // SIGTERM twice is safe
			})
		})
	}
}

// TestS2WhatStartsSideBySideStopsAsTheLogAndTheObserversTell: services that
// need nothing of each other become running in any order, but all tell the same
// one. The log's handler yields, so that the others get in between if they can.
func TestS2WhatStartsSideBySideStopsAsTheLogAndTheObserversTell(t *testing.T) {
	for range 20 {
		var mu sync.Mutex
		var logged, observed, stopped []string
		note := func(list *[]string, name string) {
			mu.Lock()
			defer mu.Unlock()
			*list = append(*list, name)
		}
		m := New(Options{
			Logger: slog.New(yielding{func(msg, name string) {
				switch msg {
				case "service started":
					note(&logged, name)
				case "service stopped":
					note(&stopped, name)
				}
			}}),
			Observe: func(i Info) {
				if i.State == Running {
					note(&observed, i.Name)
				}
			},
		})
		for i := range 32 {
			must(t, m.Register(Spec{ID: id(fmt.Sprintf("s%d", i)), Service: &fake{name: "s", j: &journal{}}}))
		}
		must(t, m.StartAll(t.Context()))
		must(t, m.StopAll(t.Context()))
		slices.Reverse(stopped)
		if len(logged) != 32 || !slices.Equal(logged, stopped) || !slices.Equal(logged, observed) {
			t.Fatalf("started by the log    %q\nby the observers      %q\nstopped, from the last %q", logged, observed, stopped)
		}
	}
}

// yielding tells each line and its service, and then lets others run.
type yielding struct{ tell func(msg, service string) }

func (y yielding) Enabled(context.Context, slog.Level) bool { return true }
func (y yielding) WithAttrs([]slog.Attr) slog.Handler       { return y }
func (y yielding) WithGroup(string) slog.Handler            { return y }

func (y yielding) Handle(_ context.Context, r slog.Record) error {
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "service" {
			y.tell(r.Message, a.Value.String())
		}
		return true
	})
	for range 10 {
		runtime.Gosched()
	}
	return nil
}

func TestS2StopsAtTheSameTimeAreOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, j, fakes := setup(t, "a:")
		fakes["a"].stop = func(context.Context) error { time.Sleep(time.Second); return nil }
		must(t, m.StartAll(t.Context()))
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() { must(t, m.StopAll(t.Context())) })
		}
		wg.Wait()
		if got := j.take(); got != "+a, -a" {
			t.Error(got)
		}
		wantErr(t, m.Start(t.Context(), "a"), "the engine is stopping")
		wantErr(t, m.StartAll(t.Context()), "the engine is stopping")
	})
}

func TestS2AStopThatHangsDoesNotKeepTheOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, j, fakes := setup(t, "a:", "b: a")
		release := make(chan struct{})
		fakes["b"].stop = func(context.Context) error { <-release; return nil }
		must(t, m.StartAll(t.Context()))
		wantErr(t, m.StopAll(t.Context()), "cannot stop service b: it did not stop within")
		if got := j.take(); got != "+a, +b, -b, -a" {
			t.Error(got)
		}
		close(release)
	})
}

func TestS3LookupIsByExactNameAndVersion(t *testing.T) {
	m := New(Options{})
	_, err := m.Lookup(id("x"))
	wantErr(t, err, "there is no service x@1; there are none")
	one, two := &fake{name: "one"}, &fake{name: "two"}
	must(t, m.Register(Spec{ID: ID{"nbd", 1}, Service: one}))
	must(t, m.Register(Spec{ID: ID{"nbd", 2}, Service: two}))
	must(t, m.Register(Spec{ID: ID{"cmap", 1}, Service: one}))
	if s, err := m.Lookup(ID{"nbd", 2}); err != nil || s != two {
		t.Errorf("%v, %v", s, err)
	}
	_, err = m.Lookup(ID{"nbd", 3})
	wantErr(t, err, "there is no service nbd@3; there is nbd@1, nbd@2")
	_, err = m.Lookup(id("nbt"))
	wantErr(t, err, "there is no service nbt@1; services are cmap@1, nbd@1, nbd@2")
	wantErr(t, m.Register(Spec{ID: ID{"nbd", 2}, Service: one}), "cannot register service nbd@2: it is provided already")
	wantErr(t, m.Register(Spec{ID: ID{"n b", 2}, Service: one}), "a name of letters")
	wantErr(t, m.Register(Spec{ID: ID{"nbd", 0}, Service: one}), "a version from 1 on")
	wantErr(t, m.Register(Spec{ID: ID{"none", 1}}), "it has no implementation")
	wantErr(t, m.Stop(t.Context(), "nbd"), "service nbd has more than one version: write NAME@VERSION")
	_, err = m.Show("nbt")
	wantErr(t, err, "there is no service nbt; services are cmap, nbd")
	_, err = m.Show("nbd@x")
	wantErr(t, err, `"nbd@x" has no valid version`)
	must(t, m.Unregister(ID{"nbd", 1}))
	wantErr(t, m.Unregister(ID{"nbd", 1}), "there is no service nbd@1; there is nbd@2")
}

func TestNeedsThatCannotBeMet(t *testing.T) {
	for _, tc := range []struct {
		name  string
		specs []string
		want  string
	}{
		{"absent", []string{"a: b"}, "cannot start service a: there is no service b@1; services are a@1"},
		{"a circle", []string{"x:", "a: x b", "b: c", "c: a"}, "services need each other: a@1 → b@1 → c@1 → a@1"},
		{"itself", []string{"a: a"}, "services need each other: a@1 → a@1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, j, _ := setup(t, tc.specs...)
			wantErr(t, m.StartAll(t.Context()), tc.want)
			if got := j.take(); got != "" {
				t.Errorf("started %s", got)
			}
		})
	}
	m := New(Options{})
	f := &fake{j: &journal{}}
	must(t, m.Register(Spec{ID: id("m"), Service: f, Manual: true}))
	must(t, m.Register(Spec{ID: id("a"), Service: f, Needs: []ID{id("m")}}))
	wantErr(t, m.StartAll(t.Context()), "cannot start service a: it needs m@1, which is not started with the others")
}

func TestCommandsStartStopAndRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, j, _ := setup(t, "a:", "b: a")
		must(t, m.Register(Spec{ID: id("core"), Service: &fake{name: "core", j: j}}))
		must(t, m.StartAll(t.Context()))
		ctx := t.Context()
		j.take()
		wantErr(t, m.Stop(ctx, "a"), "cannot stop service a: b@1 needs it; stop that first")
		wantErr(t, m.Restart(ctx, "a@1"), "b@1 needs it")
		wantErr(t, m.Stop(ctx, "core"), "cannot stop service core: lockstep does not work without it")
		if _, ok := errors.AsType[*RefusedError](m.Stop(ctx, "a")); !ok {
			t.Error("a refusal is no RefusedError")
		}
		wantErr(t, m.Unregister(id("b")), "cannot remove service b@1: it is running; stop it first")
		must(t, m.Start(ctx, "b"))
		must(t, m.Restart(ctx, "b"))
		must(t, m.Stop(ctx, "b"))
		must(t, m.Stop(ctx, "b"))
		must(t, m.Stop(ctx, "a"))
		wantErr(t, m.Start(ctx, "b"), "cannot start service b: it needs a@1, which does not run")
		must(t, m.Start(ctx, "a"))
		must(t, m.Start(ctx, "b"))
		if got := j.take(); got != "-b, +b, -b, -a, +a, +b" {
			t.Error(got)
		}
		wantErr(t, m.Reload(ctx, "b"), "service b has nothing to reload")
		must(t, m.StopAll(ctx))
	})
}

func TestABusyServiceGoesOnAfterAStopByCommand(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, j, _ := setup(t)
		w := &worker{fake: fake{name: "w", j: j, stop: func(context.Context) error { return ErrBusy }}}
		must(t, m.Register(Spec{ID: id("w"), Service: w, Stoppable: true, StopTimeout: time.Second}))
		must(t, m.StartAll(t.Context()))
		wantErr(t, m.Stop(t.Context(), "w"), "cannot stop service w: busy for 1s")
		if i, _ := m.Show("w"); i.State != Running || i.Health != "ok" {
			t.Errorf("%+v", i)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		wantErr(t, m.Stop(ctx, "w"), "deadline exceeded")
		w.stop = nil
		must(t, m.Stop(t.Context(), "w"))
		if got := j.take(); !strings.HasSuffix(got, "-w, ended w") {
			t.Error(got)
		}
		must(t, m.StopAll(t.Context()))
	})
}

func TestAFailedServiceIsRestartedByItsPolicy(t *testing.T) {
	for _, tc := range []struct {
		name      string
		policy    Policy
		contained bool
		run       func(n int) error // of the nth run; nil result runs on
		restarts  int
		state     State
		fatal     string
	}{
		{"error", Policy{Restart: true}, false, func(n int) error {
			if n < 3 {
				return errors.New("boom")
			}
			return nil
		}, 2, Running, ""},
		{"contained panic", Policy{Restart: true}, true, func(n int) error {
			if n < 3 {
				panic("boom")
			}
			return nil
		}, 2, Running, ""},
		{"no policy", Policy{}, true, func(int) error { panic("boom") }, 0, Failed, "service w failed and is not restarted: panic: boom"},
		{"too often", Policy{Restart: true, Max: 3}, false, func(int) error { return errors.New("boom") }, 3, Failed, "service w failed and is not restarted: boom"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				m, j, _ := setup(t)
				n := 0
				w := &worker{fake: fake{name: "w", j: j}}
				w.run = func(ctx context.Context) error {
					n++
					time.Sleep(time.Second)
					if err := tc.run(n); err != nil {
						return err
					}
					<-ctx.Done()
					return nil
				}
				must(t, m.Register(Spec{ID: id("w"), Service: w, Policy: tc.policy, Contained: tc.contained}))
				must(t, m.StartAll(t.Context()))
				time.Sleep(time.Hour)
				synctest.Wait()
				i, err := m.Show("w")
				must(t, err)
				if i.State != tc.state || i.Restarts != tc.restarts {
					t.Errorf("%+v", i)
				}
				if got, want := strings.Count(j.take(), "-w"), min(tc.restarts+1, 4); tc.state == Failed && got != want {
					t.Errorf("cleaned up %d times, not %d", got, want)
				}
				select {
				case err := <-m.Failed():
					if err.Error() != tc.fatal {
						t.Errorf("failed with %v", err)
					}
				default:
					if tc.fatal != "" {
						t.Error("the engine is not told")
					}
				}
				must(t, m.StopAll(t.Context()))
			})
		})
	}
}

func TestAStoppableServiceThatStaysFailedIsNotTheEnginesEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, j, _ := setup(t)
		bad := true
		w := &worker{fake: fake{name: "w", j: j}}
		w.run = func(ctx context.Context) error {
			if bad {
				return nil
			}
			<-ctx.Done()
			return nil
		}
		must(t, m.Register(Spec{ID: id("w"), Service: w, Policy: Policy{Restart: true}, Stoppable: true}))
		must(t, m.StartAll(t.Context()))
		time.Sleep(time.Hour)
		synctest.Wait()
		if i, _ := m.Show("w"); i.State != Failed || i.Health != "it ended by itself" || len(m.Failed()) != 0 {
			t.Errorf("%+v", i)
		}
		bad = false
		must(t, m.Start(t.Context(), "w"))
		if i, _ := m.Show("w"); i.State != Running || i.LastError != "" {
			t.Errorf("%+v", i)
		}
		must(t, m.StopAll(t.Context()))
	})
}

func TestAPanicInStartIsContainedWhereTheContractAllows(t *testing.T) {
	m, _, _ := setup(t)
	f := &fake{name: "p", j: &journal{}, start: func(context.Context) error { panic("boom") }}
	must(t, m.Register(Spec{ID: id("p"), Service: f, Contained: true}))
	err := m.StartAll(t.Context())
	wantErr(t, err, "cannot start service p: panic: boom")
	if p, ok := errors.AsType[*PanicError](err); !ok || !strings.Contains(string(p.Stack), "service_test.go") {
		t.Error("the stack is lost")
	}
}

func TestReloadHealthAndStats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, j, _ := setup(t)
		w := &worker{fake: fake{name: "w", j: j}}
		must(t, m.Register(Spec{ID: id("w"), Service: w, Stoppable: true}))
		wantErr(t, m.Reload(t.Context(), "w"), "cannot reload service w: it is stopped")
		must(t, m.StartAll(t.Context()))
		must(t, m.Reload(t.Context(), "w"))
		show := func() Info {
			i, err := m.Show("w")
			must(t, err)
			return i
		}
		if i := show(); i.Health != "ok" || i.Stats["runs"] != 1 || i.State != Running {
			t.Errorf("%+v", i)
		}
		w.health = func() error { return errors.New("the disk is slow") }
		if i := show(); i.Health != "the disk is slow" {
			t.Errorf("%+v", i)
		}
		release := make(chan struct{})
		w.health = func() error { <-release; return nil }
		begin := time.Now()
		for range 10 {
			if i := show(); i.Health != "the health check does not answer" {
				t.Errorf("%+v", i)
			}
		}
		if d := time.Since(begin); d != healthWait {
			t.Errorf("waited %v for a check that hangs", d)
		}
		close(release)
		synctest.Wait()
		if i := show(); i.Health != "ok" {
			t.Errorf("%+v", i)
		}
		must(t, m.StopAll(t.Context()))
	})
}

func TestObserversSeeEveryState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var got []string
		m := New(Options{Observe: func(i Info) { got = append(got, string(i.State)) }})
		must(t, m.Register(Spec{ID: id("a"), Service: &fake{name: "a", j: &journal{}}, Stoppable: true}))
		must(t, m.StartAll(t.Context()))
		must(t, m.Restart(t.Context(), "a"))
		must(t, m.StopAll(t.Context()))
		want := []string{"starting", "running", "stopping", "stopped", "starting", "running", "stopping", "stopped"}
		if !slices.Equal(got, want) {
			t.Errorf("saw %v", got)
		}
	})
}

// TestCommandsBesideFailures hammers one manager from all sides; the bubble
// finds what is left behind, the race detector the rest.
func TestCommandsBesideFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, j, _ := setup(t, "a:")
		w := &worker{fake: fake{name: "w", j: j}}
		w.run = func(ctx context.Context) error {
			select {
			case <-time.After(3 * time.Millisecond):
				return errors.New("boom")
			case <-ctx.Done():
				return nil
			}
		}
		must(t, m.Register(Spec{ID: id("w"), Service: w, Needs: []ID{id("a")}, Stoppable: true, Policy: Policy{Restart: true, Max: 1 << 20}}))
		must(t, m.StartAll(t.Context()))
		var wg sync.WaitGroup
		for n := range 6 {
			wg.Go(func() {
				for range 50 {
					switch n % 3 {
					case 0:
						_ = m.Restart(t.Context(), "w")
					case 1:
						_ = m.Stop(t.Context(), "w")
						_ = m.Start(t.Context(), "w")
					default:
						m.List()
					}
					time.Sleep(time.Duration(n) * time.Millisecond)
				}
			})
		}
		wg.Wait()
		must(t, m.StopAll(t.Context()))
		for _, i := range m.List() {
			if i.State == Running {
				t.Errorf("%s still runs", i.Name)
			}
		}
	})
}

// TestACommandDoesNotWaitForTheEnd: what is being stopped may itself be
// carrying out a command.
func TestACommandDoesNotWaitForTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := New(Options{})
		begun := make(chan struct{})
		var got error
		err := m.Register(Spec{ID: ID{"self", 1}, Service: stopsWith(func(ctx context.Context) error {
			close(begun)
			got = m.Start(ctx, "self")
			return nil
		})})
		if err == nil {
			err = m.StartAll(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		if err := m.StopAll(t.Context()); err != nil || time.Since(began) != 0 {
			t.Errorf("%v after %v", err, time.Since(began))
		}
		<-begun
		if !errors.Is(got, errStopped) {
			t.Errorf("the command: %v", got)
		}
	})
}

// stopsWith is a service that does something to stop.
type stopsWith func(context.Context) error

func (stopsWith) Start(context.Context) error { return nil }

func (f stopsWith) Stop(ctx context.Context) error { return f(ctx) }

// TestAPanicThatIsNotContainedEndsTheProcess: there is no service that goes on
// half; the crash arrives whole.
func TestAPanicThatIsNotContainedEndsTheProcess(t *testing.T) {
	if os.Getenv("PANIC_HERE") != "" {
		m := New(Options{})
		w := &worker{fake: fake{name: "w", j: &journal{}}, run: func(context.Context) error { panic("boom") }}
		must(t, m.Register(Spec{ID: id("w"), Service: w, Policy: Policy{Restart: true}}))
		must(t, m.StartAll(t.Context()))
		<-t.Context().Done()
		return
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestAPanicThatIsNotContainedEndsTheProcess$")
	cmd.Env = append(os.Environ(), "PANIC_HERE=1")
	out, err := cmd.CombinedOutput()
	exit, ok := errors.AsType[*exec.ExitError](err)
	if !ok || exit.ExitCode() != 2 || !strings.Contains(string(out), "panic: boom") || !strings.Contains(string(out), "service_test.go") {
		t.Errorf("%v:\n%s", err, out)
	}
}
