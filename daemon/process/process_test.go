package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/daemon/monitor"
)

func TestMain(m *testing.M) {
	// What the caller of the tests left open is not the children's; a daemon does the same at its start.
	if err := unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC); err != nil {
		panic(err)
	}
	goleak.VerifyTestMain(m)
}

const patience = 20 * time.Second

// recorder collects output lines.
type recorder struct {
	mu    sync.Mutex
	lines []string
	seen  chan string
}

func newRecorder() *recorder { return &recorder{seen: make(chan string, 1000)} }

func (r *recorder) output(stream, line string) {
	r.mu.Lock()
	r.lines = append(r.lines, stream+": "+line)
	r.mu.Unlock()
	r.seen <- line
}

// await waits for a line.
func (r *recorder) await(t *testing.T, want string) {
	t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line := <-r.seen:
			if line == want {
				return
			}
		case <-timeout:
			t.Fatalf("no line %q", want)
		}
	}
}

func sh(script string, args ...string) []string {
	return append([]string{"/bin/sh", "-c", script, "sh"}, args...)
}

func TestCheck(t *testing.T) {
	for _, tc := range []struct {
		spec Spec
		want string
	}{
		{Spec{}, "its command line is empty"},
		{Spec{Argv: []string{""}}, "its command line is empty"},
		{Spec{Argv: []string{"no-such-program-at-all"}}, `cannot start "no-such-program-at-all": not found in PATH`},
		{Spec{Argv: []string{"/no/such/program"}}, "no such file"},
		{Spec{Argv: []string{"/etc/passwd"}}, "permission denied"},
		{Spec{Argv: []string{"/bin/sh", "a\x00b"}}, "has a zero byte"},
		{Spec{Argv: []string{"/bin/sh"}, Env: []string{"a\x00b"}}, "has a zero byte"},
		{Spec{Argv: []string{"/bin/sh"}, Dir: "/no/such/folder"}, "is not a folder"},
	} {
		if _, err := Start(t.Context(), tc.spec); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: got %v, want %s", tc.spec.Argv, err, tc.want)
		}
	}
}

func TestOutputComesLineByLine(t *testing.T) {
	r := newRecorder()
	e, err := Run(t.Context(), Spec{Argv: sh(`echo one; echo two >&2; printf 'three\r\n'; printf 'no end'`), Output: r.output})
	if err != nil || e.Code != 0 {
		t.Fatal(e, err)
	}
	slices.Sort(r.lines)
	if got := strings.Join(r.lines, "|"); got != "stderr: two|stdout: no end|stdout: one|stdout: three" {
		t.Error(got)
	}
}

func TestOutputGoesToTheLog(t *testing.T) {
	var b bytes.Buffer
	if _, err := Run(t.Context(), Spec{Argv: sh(`echo hello`), Logger: slog.New(slog.NewTextHandler(&b, nil))}); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(b.String(), "msg=hello program=sh stream=stdout") {
		t.Error(b.String())
	}
}

func TestChildGetsOnlyWhatItIsMeantToGet(t *testing.T) {
	f, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	t.Setenv("SECRET", "x")
	dir := t.TempDir()
	for _, tc := range []struct {
		name   string
		spec   Spec
		script string
		want   string
	}{
		{"environment", Spec{Env: []string{"A=1"}}, `echo "$A-$SECRET"`, "1-"},
		{"default environment", Spec{}, `echo "$SECRET:${PATH:+path}"`, ":path"},
		{"folder", Spec{Dir: dir}, `pwd`, dir},
		{"default folder", Spec{}, `pwd`, "/"},
		{"input", Spec{Stdin: []byte(`{"x":1}`)}, `cat; echo`, `{"x":1}`},
		{"no input", Spec{}, `cat; echo end`, "end"},
		{"descriptors", Spec{}, `exec ls /proc/self/fd | tr '\n' ' '`, "0 1 2 3"},
		{"group", Spec{}, `test $$ = $(ps -o pgid= -p $$ 2>/dev/null || cut -d' ' -f5 /proc/$$/stat) && echo own`, "own"},
	} {
		r := newRecorder()
		tc.spec.Argv, tc.spec.Output = sh(tc.script), r.output
		if e, err := Run(t.Context(), tc.spec); err != nil || e.Code != 0 {
			t.Errorf("%s: %v %v", tc.name, e, err)
		}
		if got := strings.TrimSpace(strings.Join(r.lines, "|")); got != "stdout: "+tc.want {
			t.Errorf("%s: got %q, want %q", tc.name, got, tc.want)
		}
	}
}

func TestLimits(t *testing.T) {
	r := newRecorder()
	_, err := Run(t.Context(), Spec{
		Argv: sh(`read x; ulimit -n`), Output: r.output, Limits: []Limit{{unix.RLIMIT_NOFILE, 17, 17}}, Stdin: []byte("go\n"),
	})
	if err != nil || strings.Join(r.lines, "|") != "stdout: 17" {
		t.Errorf("%v %v", r.lines, err)
	}
	if os.Getuid() != 0 {
		return
	}
	if _, err := Start(t.Context(), Spec{Argv: sh(`sleep 60`), Limits: []Limit{{999, 1, 1}}}); err == nil || !strings.Contains(err.Error(), "cannot limit sh") {
		t.Error(err)
	}
}

func TestExitInWords(t *testing.T) {
	for script, want := range map[string]string{
		"exit 3":         "exit status 3",
		"kill -SEGV $$":  "killed (Segmentation fault)",
		"kill -TERM $$":  "killed (Terminated)",
		"exit 0":         "exit status 0",
		"no-such-thing-": "exit status 127",
	} {
		e, err := Run(t.Context(), Spec{Argv: sh("ulimit -c 0; " + script)})
		if err != nil || e.String() != want {
			t.Errorf("%s: got %s %v, want %s", script, e, err, want)
		}
	}
}

func TestStopEscalates(t *testing.T) {
	for _, tc := range []struct {
		script, want string
		grace        time.Duration
	}{
		{`trap 'exit 4' TERM; echo up; while :; do sleep 0.01; done`, "exit status 4", patience},
		{`trap '' TERM; echo up; while :; do sleep 0.01; done`, "killed (Killed)", 50 * time.Millisecond},
	} {
		r := newRecorder()
		p, err := Start(t.Context(), Spec{Argv: sh(tc.script), Output: r.output, Grace: tc.grace})
		if err != nil {
			t.Fatal(err)
		}
		r.await(t, "up")
		p.Stop()
		if got := p.Exit(); got.String() != tc.want || !got.Asked {
			t.Errorf("got %s, want %s", got, tc.want)
		}
		p.Stop() // once more does nothing
		if err := p.Signal(syscall.SIGTERM); err != nil {
			t.Error(err)
		}
	}
}

func TestContextEndsTheChild(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	r := newRecorder()
	p, err := Start(ctx, Spec{Argv: sh(`echo up; exec sleep 60`), Output: r.output})
	if err != nil {
		t.Fatal(err)
	}
	r.await(t, "up")
	cancel()
	if got := p.Exit(); got.Signal != monitor.SIGTERM {
		t.Error(got)
	}
}

func TestTimeout(t *testing.T) {
	e, err := Run(t.Context(), Spec{Argv: sh(`exec sleep 60`), Timeout: 50 * time.Millisecond})
	if err != nil || e.Signal != monitor.SIGTERM || !e.Asked {
		t.Error(e, err)
	}
}

// TestGroupEndsWithItsHead leaves a grandchild behind that ignores TERM and
// holds the output open: it must end, and must not hold up anyone.
func TestGroupEndsWithItsHead(t *testing.T) {
	r := newRecorder()
	e, err := Run(t.Context(), Spec{Argv: sh(`(trap '' TERM HUP; sleep 60) & echo $!; exit 0`), Output: r.output})
	if err != nil || e.Code != 0 {
		t.Fatal(e, err)
	}
	var pid int
	if _, err := fmt.Sscan(<-r.seen, &pid); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(patience)
	for alive(pid) {
		if time.Now().After(deadline) {
			t.Fatalf("pid %d lives on", pid)
		}
	}
}

// alive reports whether a process runs; one that only waits to be reaped does not.
func alive(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(data), ") Z ")
}

func TestReadiness(t *testing.T) {
	file := filepath.Join(t.TempDir(), "ready")
	ready := func(context.Context) error {
		_, err := os.Stat(file)
		return err
	}
	p, err := Start(t.Context(), Spec{Argv: sh(`touch "$1"; exec sleep 60`, file), Ready: ready})
	if err != nil {
		t.Fatal(err)
	}
	p.Stop()
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	_, err = Start(t.Context(), Spec{Argv: sh(`exit 3`), Ready: ready})
	if err == nil || err.Error() != "sh ended before it was ready: exit status 3" {
		t.Error(err)
	}
	_, err = Start(t.Context(), Spec{Argv: sh(`exec sleep 60`), Ready: ready, StartTimeout: 50 * time.Millisecond})
	if err == nil || !strings.Contains(err.Error(), "sh was not ready within 50ms") || !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

func TestSupervise(t *testing.T) {
	policy := monitor.Policy{Floor: time.Millisecond}
	count := filepath.Join(t.TempDir(), "count")
	// Crashes three times, then ends as it should.
	script := `echo x >> "$1"; test $(wc -l < "$1") -gt 3 || kill -SEGV $$; exit 0`
	if err := Supervise(t.Context(), Spec{Argv: sh("ulimit -c 0; "+script, count)}, policy); err != nil {
		t.Error(err)
	}
	data, err := os.ReadFile(count)
	if err != nil || len(data) != 8 {
		t.Errorf("%d starts, %v", len(data)/2, err)
	}
	if err := Supervise(t.Context(), Spec{Argv: sh("exit 9")}, policy); err == nil || !strings.Contains(err.Error(), "exit status 9, exiting") {
		t.Error(err)
	}
	if err := Supervise(t.Context(), Spec{Argv: []string{"no-such-program-at-all"}}, policy); err == nil || !strings.Contains(err.Error(), "not found in PATH") {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r := newRecorder()
	done := make(chan error)
	go func() {
		done <- Supervise(ctx, Spec{Argv: sh("echo up; exec sleep 60"), Output: r.output}, policy)
	}()
	r.await(t, "up")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestNoZombiesAndNoDescriptors runs many children and looks at what is left.
func TestNoZombiesAndNoDescriptors(t *testing.T) {
	before := descriptors(t)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 5 {
				p, err := Start(t.Context(), Spec{Argv: sh("echo x")})
				if err != nil {
					t.Error(err)
					return
				}
				p.Exit()
				if unix.Kill(p.PID(), 0) != unix.ESRCH && parentIsUs(p.PID()) {
					t.Errorf("pid %d is a zombie", p.PID())
				}
			}
		})
	}
	wg.Wait()
	if after := descriptors(t); after > before {
		t.Errorf("%d descriptors, %d before", after, before)
	}
}

func parentIsUs(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	return err == nil && strings.Contains(string(data), fmt.Sprintf("\nPPid:\t%d\n", os.Getpid()))
}

func descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func FuzzLines(f *testing.F) {
	f.Add([]byte("one\ntwo\r\n\xff"), 3)
	f.Fuzz(func(t *testing.T, data []byte, cut int) {
		var got []string
		w := &lineWriter{emit: func(line string) { got = append(got, line) }}
		cut = max(0, min(cut, len(data)))
		for _, part := range [][]byte{data[:cut], data[cut:]} {
			if n, err := w.Write(part); n != len(part) || err != nil {
				t.Fatal(n, err)
			}
		}
		w.flush()
		for _, line := range got {
			if len(line) > 3*maxLine || strings.Contains(line, "\n") {
				t.Errorf("line of %d bytes", len(line))
			}
		}
	})
}
