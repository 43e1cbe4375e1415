package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
)

// program is a command line that runs in a bubble.
type running struct {
	out, err  lockedBuffer
	code      chan int
	interrupt context.CancelFunc
}

// start starts a command line; it must be in a bubble.
func start(d *daemon, line string, change ...func(*Env)) *running {
	p := &running{code: make(chan int, 1)}
	interrupted, cancel := context.WithCancel(context.Background())
	p.interrupt = cancel
	e := env(d, &p.out, &p.err)
	e.Interrupts = func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, stop := context.WithCancel(ctx)
		off := context.AfterFunc(interrupted, stop)
		return ctx, func() { off(); stop() }
	}
	for _, c := range change {
		c(&e)
	}
	go func() { p.code <- Main(strings.Fields(line), e) }()
	synctest.Wait()
	return p
}

// last is the newest connection.
func (d *daemon) last() *conn {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conns[len(d.conns)-1]
}

// event pushes an event, and waits until it was dealt with.
func (c *conn) event(e api.Event) {
	raw, _ := json.Marshal(e)
	c.push("event", string(raw))
}

func (c *conn) push(method, params string) {
	c.notify(method, json.RawMessage(params))
	synctest.Wait()
}

// seqs are the numbers of the events that were printed as JSON.
func seqs(t *testing.T, out string) []uint64 {
	t.Helper()
	var list []uint64
	for line := range strings.Lines(out) {
		var e api.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Errorf("%q: %v", line, err)
		}
		list = append(list, e.Seq)
	}
	return list
}

func TestEventsAreFiltered(t *testing.T) {
	for line, want := range map[string]string{
		"-f json events":                                             "[11 12 13 14]",
		"-f json events --node beta":                                 "[11 12]",
		"-f json events --device r0":                                 "[12 13]",
		"-f json events --device r0 --node beta":                     "[12]",
		"-f json events --type nodedown":                             "[11]",
		"-f json events --type nodedown,role":                        "[11 13]",
		"-f json events --type nodedown --type role --device r0,r1":  "[13]",
		"-f json events --count 2":                                   "[11 12]",
		"-f json events --after 12":                                  "[13 14]",
		"-f json events --device r0 --node gamma --type replication": "[]",
	} {
		synctest.Test(t, func(t *testing.T) {
			d := answers("events/subscribe", `{"seq":10,"missed":0}`)
			if strings.Contains(line, "--after") {
				d = answers("events/subscribe", `{"seq":14,"missed":0}`)
			}
			p := start(d, line)
			c := d.last()
			c.event(api.Event{Seq: 11, Type: "nodedown", Node: "beta"})
			c.event(api.Event{Seq: 12, Type: "replication", Node: "beta", Device: "r0"})
			c.event(api.Event{Seq: 13, Type: "role", Device: "r0"})
			c.event(api.Event{Seq: 14, Type: "config"})
			p.interrupt()
			if code := <-p.code; code != 0 {
				t.Errorf("%s: exit %d: %s", line, code, p.err.String())
			}
			if got := fmt.Sprint(seqs(t, p.out.String())); got != want {
				t.Errorf("%s: %s, want %s", line, got, want)
			}
		})
	}
}

// TestEventsSurviveALostConnection: they go on where they were, and nothing is
// shown twice.
func TestEventsSurviveALostConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		newest := 10
		d := answers("events/subscribe", func(string) (string, error) { return fmt.Sprintf(`{"seq":%d}`, newest), nil })
		d.dials = func(n int) error {
			if n > 1 && n < 4 {
				return &rpc.UnreachableError{Target: "lockstepd", Cause: &pathErr{}}
			}
			return nil
		}
		p := start(d, "-f json events --type role")
		d.last().event(api.Event{Seq: 11, Type: "role"})
		d.last().event(api.Event{Seq: 12, Type: "config"})
		newest = 13
		d.last().Close()
		time.Sleep(time.Minute)
		d.last().event(api.Event{Seq: 12, Type: "role"})
		d.last().event(api.Event{Seq: 13, Type: "role"})
		p.interrupt()
		if code := <-p.code; code != 0 {
			t.Errorf("exit %d", code)
		}
		if got := fmt.Sprint(seqs(t, p.out.String())); got != "[11 13]" {
			t.Errorf("shown: %s", got)
		}
		want := []string{`events/subscribe {"types":["role"]}`, `events/subscribe {"types":["role"],"after":12}`}
		if got := d.requests(); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("asked %q", got)
		}
		if got := p.err.String(); got != "lost the connection to lockstepd; trying again\n" {
			t.Errorf("said %q", got)
		}
	})
}

func TestEventsSayWhatWasMissed(t *testing.T) {
	for _, c := range []struct{ second, says, after string }{
		{`{"seq":20,"missed":5}`, "5 events were missed (12 to 16)\n", `"after":16`},
		{`{"seq":3,"missed":0}`, "the daemon was restarted; what it noted just before may be in its log only\n", `"after":3`},
	} {
		synctest.Test(t, func(t *testing.T) {
			subscriptions := 0
			d := answers("events/subscribe", func(string) (string, error) {
				if subscriptions++; subscriptions == 2 {
					return c.second, nil
				}
				return `{"seq":10}`, nil
			})
			p := start(d, "events")
			d.last().event(api.Event{Seq: 11, Type: "role"})
			d.last().Close()
			time.Sleep(time.Minute)
			d.last().push("lost", `{"count":1,"from":17,"to":17}`)
			d.last().Close()
			time.Sleep(time.Minute)
			p.interrupt()
			<-p.code
			if got := p.err.String(); !strings.Contains(got, c.says) || !strings.Contains(got, "1 event was missed (17)\n") {
				t.Errorf("said %q", got)
			}
			if got := d.requests(); !strings.Contains(got[2], `"after":17`) {
				t.Errorf("asked %q", got)
			}
		})
	}
}

// TestEventsOfTheNextLifeAreShownFromItsStart: they are numbered anew, and may
// have passed the number that the last life came to.
func TestEventsOfTheNextLifeAreShownFromItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		subscriptions := 0
		d := answers("events/subscribe", func(_ context.Context, c *conn, _ string) (string, error) {
			if subscriptions++; subscriptions == 1 {
				return `{"seq":10,"stream":"a"}`, nil
			}
			c.notify("lost", json.RawMessage(`{"count":2,"from":1,"to":2}`)) // as the answer says, too
			return `{"seq":20,"missed":2,"stream":"b"}`, nil
		})
		p := start(d, "-f json events")
		d.last().event(api.Event{Seq: 11, Type: "role"})
		d.last().Close()
		time.Sleep(1500 * time.Millisecond)
		d.last().event(api.Event{Seq: 3, Type: "role"})
		d.last().event(api.Event{Seq: 12, Type: "role"})
		p.interrupt()
		<-p.code
		if got := fmt.Sprint(seqs(t, p.out.String())); got != "[11 3 12]" {
			t.Errorf("shown: %s", got)
		}
		const says = "lost the connection to lockstepd; trying again\nthe daemon was restarted; what it noted just before may be in its log only\n2 events were missed (1 to 2)\n"
		if got := p.err.String(); got != says {
			t.Errorf("said %q", got)
		}
		if got := d.requests()[1]; got != `events/subscribe {"after":11,"stream":"a"}` {
			t.Errorf("asked %s", got)
		}
	})
}

// TestAMuteDaemonIsLeftAndFoundAgain: one that takes the connection and answers
// nothing any more is noticed, though nothing is asked of it.
func TestAMuteDaemonIsLeftAndFoundAgain(t *testing.T) {
	for _, line := range []string{"events", "cmap track", "status --watch"} {
		synctest.Test(t, func(t *testing.T) {
			d := revisions()
			d.answers["events/subscribe"], d.answers["cmap/track"] = `{"seq":1}`, `{}`
			var mute atomic.Bool
			d.answers["version"] = func(ctx context.Context, c *conn, _ string) (string, error) {
				if !mute.Load() {
					return `{}`, nil
				}
				select {
				case <-ctx.Done():
				case <-c.done:
				}
				return "", rpc.ErrLost
			}
			p := start(d, line)
			first := d.last()
			time.Sleep(time.Hour)
			if got := p.err.String(); got != "" {
				t.Errorf("%s: while it answers: %q", line, got)
			}
			mute.Store(true)
			time.Sleep(12 * time.Second)
			if got := p.err.String(); !strings.HasPrefix(got, "lost the connection to lockstepd; trying again\n") || d.last() == first {
				t.Errorf("%s: said %q", line, got)
			}
			p.interrupt()
			if code := <-p.code; code != 0 {
				t.Errorf("%s: exit %d", line, code)
			}
		})
	}
}

// TestManyEventsBeforeTheAnswer: a backlog may come before the subscription's
// own answer, and is shown in order after what that has to say.
func TestManyEventsBeforeTheAnswer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := answers("events/subscribe", func(_ context.Context, c *conn, _ string) (string, error) {
			for i := range 10 * inbox {
				c.notify("event", json.RawMessage(fmt.Sprintf(`{"seq":%d,"type":"role"}`, 6+i)))
			}
			return `{"seq":5000,"missed":2}`, nil
		})
		p := start(d, fmt.Sprintf("-f json events --after 3 --count %d", 10*inbox))
		if code := <-p.code; code != 0 || p.err.String() != "2 events were missed (4 to 5)\n" {
			t.Errorf("exit %d: %s", code, p.err.String())
		}
		if got := seqs(t, p.out.String()); len(got) != 10*inbox || got[0] != 6 || got[len(got)-1] != uint64(5+10*inbox) {
			t.Errorf("%d events", len(got))
		}
	})
	synctest.Test(t, func(t *testing.T) {
		d := answers("events/subscribe", func(_ context.Context, c *conn, _ string) (string, error) {
			for range maxEarly + inbox + 1 {
				select {
				case <-c.done:
					return "", rpc.ErrLost
				default:
					c.notify("event", json.RawMessage(`{}`))
				}
			}
			<-c.done
			return "", rpc.ErrLost
		})
		p := start(d, "events")
		if code := <-p.code; code != exitFailed || !strings.Contains(p.err.String(), "65536 notifications came before the answer to events/subscribe") {
			t.Errorf("exit %d: %s", code, p.err.String())
		}
	})
}

func TestEventsEnd(t *testing.T) {
	for name, c := range map[string]struct {
		line   string
		answer any
		code   int
		says   string
	}{
		"time limit":    {"-T 5 events --count 1", `{"seq":1}`, exitTimeout, "cannot follow the events: timed out after 5s"},
		"refused":       {"events --type x", api.Errorf(api.CodeInvalidParams, "there is no event type x"), exitFailed, "cannot follow the events: there is no event type x"},
		"not an answer": {"events", `[]`, exitFailed, "does not fit this lockstepctl"},
		"not reached":   {"events", &rpc.UnreachableError{Cause: syscall.ENOENT}, exitUnreachable, "was lost before it answered"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := start(answers("events/subscribe", c.answer), c.line)
				time.Sleep(2 * time.Second)
				if name == "not reached" { // it tries again after the first connection, so it has to be stopped
					p.interrupt()
					<-p.code
					return
				}
				if code := <-p.code; code != c.code || !strings.Contains(p.err.String(), c.says) {
					t.Errorf("exit %d: %s", code, p.err.String())
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		d := answers("events/subscribe", `{"seq":1}`)
		p := start(d, "events")
		d.last().push("event", `[1]`)
		if code := <-p.code; code != exitFailed || !strings.Contains(p.err.String(), "the answer of lockstepd to event does not fit") {
			t.Errorf("exit %d: %s", code, p.err.String())
		}
	})
}

func TestTrack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := answers("cmap/track", `{}`)
		p := start(d, "cmap track nodes.")
		d.last().push("cmap", `{"key":"nodes.beta.state","op":"modified","old":{"value":"up"},"new":{"value":"down"}}`)
		d.last().push("lost", `{"count":3,"from":1,"to":3}`)
		d.last().push("else", `{}`)
		d.last().Close()
		time.Sleep(1500 * time.Millisecond)
		d.last().push("cmap", `{"key":"nodes.n","op":"added","new":{"value":18446744073709551615}}`)
		p.interrupt()
		if code := <-p.code; code != 0 {
			t.Errorf("exit %d", code)
		}
		if got := p.out.String(); got != "modified  nodes.beta.state = down (was up)\nadded     nodes.n = 18446744073709551615\n" {
			t.Errorf("shown %q", got)
		}
		if got := p.err.String(); got != "3 events were missed (1 to 3)\nlost the connection to lockstepd; trying again\nconnected again; changes meanwhile were not seen\n" {
			t.Errorf("said %q", got)
		}
	})
}

// TestWatchDoesNotAskInALoop where waits bring nothing new at once.
func TestWatchDoesNotAskInALoop(t *testing.T) {
	for name, wait := range map[string]any{"the same": healthy, "a time limit": api.Errorf(api.CodeTimeout, "timed out")} {
		synctest.Test(t, func(t *testing.T) {
			d := answers("status", healthy)
			d.answers["status/wait"] = wait
			p := start(d, "-f json status --watch")
			time.Sleep(10*time.Second + refresh/2)
			p.interrupt()
			<-p.code
			if n := len(d.requests()); n > 12 || p.out.String() != healthy+"\n" {
				t.Errorf("%s: %d requests, %s", name, n, p.out.String())
			}
		})
	}
}

// revisions is a daemon whose status changes every ten seconds.
func revisions() *daemon {
	begun := time.Now()
	now := func() uint64 { return 1 + uint64(time.Since(begun)/(10*time.Second)) }
	status := func() (string, error) {
		return fmt.Sprintf(`{"node":"alpha","revision":%d,"health":"ok","devices":[{"name":"r0"},{"name":"r1"}]}`, now()), nil
	}
	return &daemon{answers: map[string]any{
		"status": func(string) (string, error) { return status() },
		"status/wait": func(ctx context.Context, c *conn, params string) (string, error) {
			var p api.StatusWaitParams
			if err := json.Unmarshal([]byte(params), &p); err != nil {
				return "", err
			}
			for now() <= p.Revision {
				select {
				case <-ctx.Done():
					return "", ctx.Err()
				case <-c.done:
					return "", rpc.ErrLost
				case <-time.After(time.Second):
				}
			}
			return status()
		},
	}}
}

func TestWatchPrintsEveryRevisionOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := revisions()
		p := start(d, "-f json status --watch")
		time.Sleep(35 * time.Second)
		d.last().Close()
		time.Sleep(10 * time.Second)
		p.interrupt()
		if code := <-p.code; code != 0 {
			t.Errorf("exit %d: %s", code, p.err.String())
		}
		var got []uint64
		for line := range strings.Lines(p.out.String()) {
			var s api.Status
			if err := json.Unmarshal([]byte(line), &s); err != nil {
				t.Fatal(err)
			}
			got = append(got, s.Revision)
		}
		if fmt.Sprint(got) != "[1 2 3 4 5]" {
			t.Errorf("revisions %v", got)
		}
		if got := p.err.String(); got != "lost the connection to lockstepd; trying again\n" {
			t.Errorf("said %q", got)
		}
	})
}

func TestWatchOfOneDeviceShowsThatAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(revisions(), "status r1 --watch")
		time.Sleep(15 * time.Second)
		p.interrupt()
		<-p.code
		if got := p.out.String(); strings.Count(got, "r1") != 2 || strings.Count(got, "r0") != 0 {
			t.Errorf("shown %q", got)
		}
	})
}

func TestWatchRedrawsATerminalEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(revisions(), "status --watch", func(e *Env) { e.OutTerm = screenOf{80, 24} })
		time.Sleep(4500 * time.Millisecond)
		p.interrupt()
		<-p.code
		if n := strings.Count(p.out.String(), clearScreen); n != 5 {
			t.Errorf("drawn %d times", n)
		}
	})
}

func TestWatchEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(revisions(), "-T 3 status --watch")
		if code := <-p.code; code != exitTimeout {
			t.Errorf("exit %d: %s", code, p.err.String())
		}
	})
	if got := run(t, answers("status", api.Errorf(api.CodeNotFound, "there is no device x")), "status x --watch"); got.code != exitFailed || got.err != "lockstepctl: cannot show the status: there is no device x\n" {
		t.Errorf("%+v", got)
	}
	d := &daemon{dials: func(int) error { return &rpc.UnreachableError{Cause: &pathErr{}} }}
	if got := run(t, d, "status --watch"); got.code != exitUnreachable {
		t.Errorf("%+v", got)
	}
}

// resyncing is a daemon whose device r0 resyncs for so long, and answers
// device/wait when that is done.
func resyncing(total time.Duration) *daemon {
	begun := time.Now()
	device := func() string {
		done := time.Since(begun)
		if done >= total {
			return `{"name":"r0","role":"primary","disk":"UpToDate","peers":[{"node":"beta","disk":"UpToDate","replication":"Established","out_of_sync":0,"resync":null}]}`
		}
		return fmt.Sprintf(`{"name":"r0","role":"primary","disk":"UpToDate","peers":[{"node":"beta","disk":"Inconsistent","replication":"SyncSource","out_of_sync":%d,"resync":{"done":%d,"total":%d,"rate":1048576,"eta_s":%d}}]}`,
			(total-done).Milliseconds()<<10, done.Milliseconds()<<10, total.Milliseconds()<<10, int((total - done).Seconds()))
	}
	return &daemon{answers: map[string]any{
		"status":        func(string) (string, error) { return `{"devices":[` + device() + `]}`, nil },
		"device/verify": `{"text":"verify of r0 with beta has begun"}`,
		"device/resync": `{"text":"resync of r0 with beta has begun"}`,
		"device/wait": func(ctx context.Context, c *conn, _ string) (string, error) {
			select {
			case <-ctx.Done():
				return "", ctx.Err()
			case <-c.done:
				return "", rpc.ErrLost
			case <-time.After(total - time.Since(begun)):
				return device(), nil
			}
		},
	}}
}

func errTerminal(e *Env) { e.ErrTerm = screenOf{80, 24} }

func TestWaitShowsLinesWhereThereIsNoTerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(resyncing(100*time.Second+refresh/2), "device wait r0")
		if code := <-p.code; code != 0 || p.out.String() != "r0 is in sync\n" {
			t.Errorf("exit %d: %s", code, p.out.String())
		}
		if lines := strings.Count(p.err.String(), "\n"); lines != 10 {
			t.Errorf("%d lines:\n%s", lines, p.err.String())
		}
		if first, _, _ := strings.Cut(p.err.String(), "\n"); !strings.HasPrefix(first, "r0: resync with beta [") || !strings.HasSuffix(first, "1000.0 KiB of 98.1 MiB  1.0 MiB/s  1 m 39 s left") {
			t.Errorf("first line: %s", first)
		}
	})
}

func TestWaitShowsABarOnATerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(resyncing(20*time.Second), "device wait r0 uptodate", errTerminal)
		if code := <-p.code; code != 0 || p.out.String() != "r0 is up to date\n" {
			t.Errorf("exit %d: %s", code, p.out.String())
		}
		got := p.err.String()
		if strings.Count(got, "\r\x1b[K") < 15 || strings.Count(got, "\n") != 1 || !strings.HasSuffix(got, "\n") || !strings.Contains(got, "] ") {
			t.Errorf("drawn: %q", got)
		}
	})
}

func TestWaitIsSilentWithQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(resyncing(20*time.Second), "-q device wait r0", errTerminal)
		if code := <-p.code; code != 0 || p.out.String() != "" || p.err.String() != "" {
			t.Errorf("exit %d: %q %q", code, p.out.String(), p.err.String())
		}
	})
}

func TestInterruptingAWaitSaysHowToComeBack(t *testing.T) {
	for line, back := range map[string]string{"device wait r0 uptodate": "lockstepctl device wait r0 uptodate", "device verify r0": "lockstepctl device wait r0 synced"} {
		synctest.Test(t, func(t *testing.T) {
			p := start(resyncing(time.Hour), line, errTerminal)
			time.Sleep(3 * time.Second)
			p.interrupt()
			if code := <-p.code; code != exitFailed || strings.Contains(p.out.String(), "done") {
				t.Errorf("exit %d: %s", code, p.out.String())
			}
			_, said, _ := strings.Cut(p.err.String(), "\ninterrupted; ")
			for line := range strings.Lines(said) {
				if len(line) > 81 {
					t.Errorf("wider than the terminal: %q", line)
				}
			}
			if said = strings.Join(strings.Fields(said), " "); said != "what runs on r0 goes on. Come back to it with: "+back {
				t.Errorf("said %q", said)
			}
		})
	}
}

// TestInterruptingAQuietWait: what the terminal shows of the key has a line of
// its own, and words are not broken.
func TestInterruptingAQuietWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(resyncing(time.Hour), "-q device wait r0 uptodate", func(e *Env) { e.ErrTerm = screenOf{60, 24} })
		time.Sleep(3 * time.Second)
		p.interrupt()
		if code, want := <-p.code, "\ninterrupted; what runs on r0 goes on. Come back to it with:\nlockstepctl device wait r0 uptodate\n"; code != exitFailed || p.err.String() != want {
			t.Errorf("exit %d, said %q, want %q", code, p.err.String(), want)
		}
	})
}

func TestWaitHasATimeLimit(t *testing.T) {
	for _, line := range []string{"-T 5 device wait r0", "device wait r0 --timeout 5", "-T 5 device verify r0", "-q -T 5 device wait r0"} {
		synctest.Test(t, func(t *testing.T) {
			begun := time.Now()
			d := resyncing(time.Hour)
			p := start(d, line)
			if code := <-p.code; code != exitTimeout || !strings.Contains(p.err.String(), "timed out after 5s; take it up again with: lockstepctl device wait r0 synced") {
				t.Errorf("%s: exit %d: %s", line, code, p.err.String())
			}
			if time.Since(begun) != 5*time.Second {
				t.Errorf("%s: after %v", line, time.Since(begun))
			}
			if asked := d.requests()[0]; strings.Contains(line, "wait") && asked != `device/wait {"device":"r0","for":"synced","timeout_ms":5000}` {
				t.Errorf("%s: asked %s", line, asked)
			}
		})
	}
}

func TestWaitSurvivesARestartOfTheDaemon(t *testing.T) {
	for _, line := range []string{"device wait r0", "device resync r0"} {
		synctest.Test(t, func(t *testing.T) {
			d := resyncing(30 * time.Second)
			d.dials = func(n int) error {
				if n == 4 || n == 5 {
					return &rpc.UnreachableError{Target: "lockstepd", Cause: &pathErr{}}
				}
				return nil
			}
			inner := d.answers["status"]
			var lost atomic.Bool
			d.answers["status"] = func(p string) (string, error) {
				if lost.Swap(false) {
					return "", rpc.ErrLost
				}
				return inner.(func(string) (string, error))(p)
			}
			p := start(d, line)
			time.Sleep(3500 * time.Millisecond)
			lost.Store(true)
			d.last().Close()
			if code := <-p.code; code != 0 || !strings.Contains(p.err.String(), "lost the connection to lockstepd; trying again\n") {
				t.Errorf("%s: exit %d: %s", line, code, p.err.String())
			}
		})
	}
}

func TestWaitIsRefused(t *testing.T) {
	d := answers("device/wait", api.Errorf(api.CodeNotFound, "there is no device r9 (lockstepctl device list)"))
	if got := run(t, d, "device wait r9"); got.code != exitFailed || got.err != "lockstepctl: cannot wait for r9: there is no device r9 (lockstepctl device list)\n" {
		t.Errorf("%+v", got)
	}
	d = &daemon{dials: func(int) error { return &rpc.UnreachableError{Cause: &pathErr{}} }}
	if got := run(t, d, "device wait r9"); got.code != exitUnreachable {
		t.Errorf("%+v", got)
	}
}

func TestVerifyShowsItsOutcome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := start(resyncing(20*time.Second), "device verify r0")
		if code := <-p.code; code != 0 || p.out.String() != "verify of r0 with beta has begun\n" || !strings.HasSuffix(p.err.String(), "r0: verify done, 0 out of sync\n") {
			t.Errorf("exit %d: %s%s", code, p.out.String(), p.err.String())
		}
	})
	d := answers("status", `{"devices":[]}`)
	d.answers["device/resync"] = `null`
	if got := run(t, d, "device resync r0"); got.code != exitFailed || !strings.Contains(got.err, "cannot resync r0: there is no device r0 any more; see: lockstepctl device list") {
		t.Errorf("%+v", got)
	}
}

// TestWorkIsNotDoneWhileNodesAgreeAnew: between two states of a resync a peer is
// not agreed with, for a moment.
func TestWorkIsNotDoneWhileNodesAgreeAnew(t *testing.T) {
	for states, want := range map[string]string{
		"PausedSyncS Off SyncSource Established": "r0: resync done, 0 out of sync\n",
		"SyncSource Off Off":                     "r0: resync done, 4.0 KiB out of sync\n", // the peer went away
	} {
		synctest.Test(t, func(t *testing.T) {
			left := strings.Fields(states)
			d := answers("device/resync", `{"text":"r0 is resynced with beta"}`)
			d.answers["status"] = func(string) (string, error) {
				state, missing := left[0], 4096
				if left = left[1:]; state == "Established" {
					missing = 0
				}
				return fmt.Sprintf(`{"devices":[{"name":"r0","peers":[{"node":"beta","replication":%q,"out_of_sync":%d}]}]}`, state, missing), nil
			}
			if got := run(t, d, "device resync r0"); got.code != 0 || !strings.HasSuffix(got.err, want) || len(left) > 0 {
				t.Errorf("%s: %+v, not asked for %q", states, got, left)
			}
		})
	}
}

// TestTransient: what a stream lives through, and what ends it.
func TestTransient(t *testing.T) {
	for err, want := range map[error]bool{
		unreachableError{msg: "x"}: true, lostError{"x", io.EOF}: true, api.Errorf(api.CodeUnavailable, "x"): true, api.Errorf(api.CodeBusy, "x"): true,
		api.Errorf(api.CodeFailed, "x"): false, errors.New("x"): false, usageError{"x", "y"}: false, errTimeout{1}: false,
	} {
		if transient(err) != want {
			t.Errorf("%T %v: %v", err, err, !want)
		}
	}
}
