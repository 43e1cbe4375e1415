package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"github.com/spf13/cobra"

	"github.com/lockstepd/lockstep/daemon/pidfile"
)

func parseFlags(t *testing.T, args ...string) (Flags, error) {
	t.Helper()
	var f Flags
	cmd := &cobra.Command{Use: "testd", SilenceErrors: true, SilenceUsage: true, RunE: func(*cobra.Command, []string) error { return nil }}
	f.Register(cmd)
	cmd.SetArgs(Normalize(args))
	err := cmd.Execute()
	return f, err
}

func TestFlags(t *testing.T) {
	for _, tc := range []struct {
		args string
		want Flags
	}{
		{"", Flags{}},
		{"--detach --monitor --no-chdir --overwrite-pidfile", Flags{Detach: true, Monitor: true, NoChdir: true, OverwritePidfile: true}},
		{"--pidfile", Flags{Pidfile: Optional{Set: true}}},
		{"--pidfile=", Flags{Pidfile: Optional{Set: true}}},
		{"--pidfile=/x", Flags{Pidfile: Optional{true, "/x"}}},
		{"--log-file --user=a:b", Flags{LogFile: Optional{Set: true}, User: "a:b"}},
		{"--log-file=x --user a", Flags{LogFile: Optional{true, "x"}, User: "a"}},
		{"-v", Flags{Verbose: []string{""}}},
		{"--verbose", Flags{Verbose: []string{""}}},
		{"-vnbd:dbg -v=rpc:err --verbose=warn", Flags{Verbose: []string{"nbd:dbg", "rpc:err", "warn"}}},
		{"--unixctl=none --rundir=/r --restart-delay=2s", Flags{Unixctl: "none", RunDir: "/r", RestartDelay: 2e9}},
	} {
		got, err := parseFlags(t, strings.Fields(tc.args)...)
		if err != nil || !reflect.DeepEqual(got, tc.want) {
			t.Errorf("%s: got %+v %v, want %+v", tc.args, got, err, tc.want)
		}
	}
	for _, bad := range []string{"--bogus", "--detach=maybe", "--restart-delay=x"} {
		if _, err := parseFlags(t, bad); err == nil {
			t.Errorf("%s is taken", bad)
		}
	}
	if got := Normalize([]string{"-vx", "--", "-vy"}); strings.Join(got, " ") != "-v=x -- -vy" {
		t.Errorf("%q", got)
	}
}

func TestResolve(t *testing.T) {
	t.Setenv("TESTD_RUNDIR", "")
	places := Places{Program: "testd", RunDirEnv: "TESTD_RUNDIR", RunDir: "/run/testd", LogDir: "/var/log/testd"}
	for _, tc := range []struct {
		args, env                 string
		pidfile, log, run, socket string
	}{
		{"", "", "/run/testd/testd.pid", "/var/log/testd/testd.log", "/run/testd", ""},
		{"", "/env", "/env/testd.pid", "/var/log/testd/testd.log", "/env", ""},
		{"--rundir=/flag", "/env", "/flag/testd.pid", "/var/log/testd/testd.log", "/flag", ""},
		{"--pidfile=x --log-file=y --unixctl=z", "", "/run/testd/x", "/var/log/testd/y", "/run/testd", "/run/testd/z"},
		{"--pidfile=/a/../x --log-file=/y --unixctl=/z", "", "/x", "/y", "/run/testd", "/z"},
		{"--unixctl=none", "", "/run/testd/testd.pid", "/var/log/testd/testd.log", "/run/testd", "none"},
	} {
		t.Setenv("TESTD_RUNDIR", tc.env)
		f, err := parseFlags(t, strings.Fields(tc.args)...)
		if err != nil {
			t.Fatal(err)
		}
		if err := f.Resolve(places); err != nil {
			t.Fatal(err)
		}
		if got := [4]string{f.Pidfile.Value, f.LogFile.Value, f.RunDir, f.Unixctl}; got != [4]string{tc.pidfile, tc.log, tc.run, tc.socket} {
			t.Errorf("%s (%s): got %q", tc.args, tc.env, got)
		}
	}
	f := Flags{RunDir: "relative"}
	if err := f.Resolve(places); err != nil || !filepath.IsAbs(f.RunDir) {
		t.Errorf("%s %v", f.RunDir, err)
	}
}

func TestExitStatus(t *testing.T) {
	for _, tc := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{ErrExit, 0},
		{&SignalError{os.Interrupt}, 0},
		{errors.New("x"), 1},
		{context.Canceled, 1},
		{&ConfigError{errors.New("x")}, 2},
		{fmt.Errorf("while starting: %w", &ConfigError{errors.New("x")}), 2},
		{&pidfile.RunningError{Path: "p", PID: 7}, 3},
		{fmt.Errorf("while starting: %w", &RunningError{errors.New("x")}), 3},
		{ErrRestart, exitRestart},
	} {
		if got := ExitStatus(tc.err); got != tc.want {
			t.Errorf("%v: got %d, want %d", tc.err, got, tc.want)
		}
	}
}

func TestOutcome(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	boom := errors.New("boom")
	if err := outcome(ctx, nil); err != nil {
		t.Error(err)
	}
	cancel(ErrRestart)
	for err, want := range map[error]error{nil: ErrRestart, context.Canceled: ErrRestart, boom: boom} {
		if got := outcome(ctx, err); got != want {
			t.Errorf("%v: got %v, want %v", err, got, want)
		}
	}
}

func TestVerdicts(t *testing.T) {
	long := strings.Repeat("ä\n", maxVerdict)
	for _, v := range []verdict{{ready: true}, {status: 2, text: "line one\nline \"two\"\x00"}, {status: 255}, {status: 1, text: long}} {
		var b strings.Builder
		if err := v.send(&b); err != nil {
			t.Fatal(err)
		}
		got, err := readVerdict(strings.NewReader(b.String()))
		if err != nil || got.ready != v.ready || got.status != v.status || !strings.HasPrefix(v.text, strings.TrimSuffix(got.text, "…")) {
			t.Errorf("%.80q: %v", b.String(), err)
		}
	}
	if _, err := readVerdict(strings.NewReader("")); err != errDied {
		t.Error(err)
	}
	for _, bad := range []string{
		"R", "R \n", "E\n", "E 2\n", "E 0 \"\"\n", "E 256 \"\"\n", "E x \"\"\n", "E 2 text\n", "E 2 \"text\"",
		"panic: boom\n", "\x00", strings.Repeat("x", 2*maxVerdict),
	} {
		if v, err := readVerdict(strings.NewReader(bad)); err == nil {
			t.Errorf("%.40q is taken for %+v", bad, v)
		}
	}
}

func FuzzVerdict(f *testing.F) {
	f.Add("R\n")
	f.Add("E 2 \"x\"\n")
	f.Fuzz(func(t *testing.T, line string) {
		if v, err := parseVerdict(line); err == nil && !v.ready && (v.status < 1 || v.status > 255) {
			t.Errorf("%+v", v)
		}
	})
}

func FuzzStage(f *testing.F) {
	f.Add([]byte(`{"role":"daemon","ready":4,"files":[{"name":"x","fd":5}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseStage(data)
		if err != nil {
			return
		}
		for _, fd := range s.descriptors() {
			if fd < 3 {
				t.Error(fd)
			}
		}
	})
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte(`{"op":"hold","name":"x"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if m, err := parseMessage(data); err == nil && m.Op == "" {
			t.Error("no operation")
		}
	})
}

func TestLinkCarriesDescriptors(t *testing.T) {
	a, file, err := newLink()
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	b, err := openLink(file)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := fileOf(l)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := b.send(message{Op: opHold, Name: "x", Socket: &socketFile{Path: "/p", Dev: 1, Ino: 2}}, f); err != nil {
		t.Fatal(err)
	}
	m, got, err := a.receive()
	if err != nil || m.Name != "x" || *m.Socket != (socketFile{Path: "/p", Dev: 1, Ino: 2}) || len(got) != 1 {
		t.Fatalf("%+v %v %v", m, got, err)
	}
	defer closeFiles(got)
	copied, err := net.FileListener(got[0])
	if err != nil {
		t.Fatal(err)
	}
	defer copied.Close()
	if copied.Addr().String() != l.Addr().String() {
		t.Errorf("%v became %v", l.Addr(), copied.Addr())
	}
	if err := b.send(message{Op: opKeep, Value: strings.Repeat("x", maxMessage)}); err == nil {
		t.Error("a message of any length is sent")
	}
	if _, err := b.conn.Write([]byte("nonsense")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := a.receive(); err != errBadMessage {
		t.Error(err)
	}
	b.close()
	if _, _, err := a.receive(); err == nil {
		t.Error("no end")
	}
}

// TestKillsForLackOfMemory: those in our own group count, where they are told
// of; a kill in another group says nothing about us.
func TestKillsForLackOfMemory(t *testing.T) {
	const events, control = "low 1\noom 9\noom_kill 7\noom_group_kill 9\n", "oom_kill_disable 0\nunder_oom 0\noom_kill 5\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  uint64
	}{
		"version 2":            {map[string]string{"proc/self/cgroup": "0::/system.slice/x.service\n", "sys/fs/cgroup/system.slice/x.service/memory.events": events}, 7},
		"version 2, container": {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.events": events}, 7},
		"version 1":            {map[string]string{"proc/self/cgroup": "9:cpu:/a\n4:memory:/b/c\n0::/\n", "sys/fs/cgroup/memory/b/c/memory.oom_control": control}, 5},
		"out of sight":         {map[string]string{"proc/self/cgroup": "0::/../../x\n"}, 3},
		"without groups":       {nil, 3},
		"nonsense":             {map[string]string{"proc/self/cgroup": "::::\n\n0\n", "sys/fs/cgroup/memory.events": "oom_kill many\n"}, 3},
	} {
		root := fstest.MapFS{"proc/vmstat": {Data: []byte("pgfault 8\noom_kill 3\n")}}
		for path, text := range c.files {
			root[path] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := oomKills(root); got != c.want {
			t.Errorf("%s: %d kills, want %d", name, got, c.want)
		}
	}
	oomKills(os.DirFS("/")) // whatever there is must be readable
}

// TestHandOver takes a connection and a large state from one process's sockets
// to the next one's, over the link as a monitor has it.
func TestHandOver(t *testing.T) {
	a, theirs, err := newLink()
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	b, err := openLink(theirs)
	if err != nil {
		t.Fatal(err)
	}
	defer b.close()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, client := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "client")
	defer client.Close()

	old := newSockets(nil, nil)
	old.notify = b.send
	state := bytes.Repeat([]byte("state"), 1<<20)
	if err := old.handOver("x", ours, make([]byte, maxState+1)); err == nil || !strings.Contains(err.Error(), "at most") {
		t.Error(err)
	}
	if err := old.handOver("x", ours, state); err != nil {
		t.Fatal(err)
	}
	ours.Close()
	if err := old.passHanded(); err != nil {
		t.Fatal(err)
	}
	s := &supervisor{held: map[string]*held{}}
	m, files, err := a.receive()
	if err != nil {
		t.Fatal(err)
	}
	s.obey(nil, linked{m, files})
	next := newSockets(nil, nil)
	next.arrived = s.conns
	conns := next.conns()
	if len(conns) != 1 || conns[0].Name != "x" || !bytes.Equal(conns[0].State, state) {
		t.Fatalf("%d connections arrived", len(conns))
	}
	if _, err := conns[0].Conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	conns[0].Conn.Close()
	if got, err := io.ReadAll(client); string(got) != "hello" {
		t.Errorf("the client got %q, %v", got, err)
	}
}

// TestNamesWithColons asserts that a service manager, whose names have none, can hold them.
func TestNamesWithColons(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := fileOf(l)
	if err != nil {
		t.Fatal(err)
	}
	s := newSockets(nil, nil)
	s.inherited["nbd-r0"] = &held{file: f}
	got, err := s.adopt("nbd:r0")
	if err != nil || got == nil {
		t.Fatal(got, err)
	}
	defer got.Close()
	if len(s.kept) != 1 || len(s.inherited) != 0 {
		t.Errorf("%v %v", s.kept, s.inherited)
	}
	s.closeAll(true)
}

// TestMoreTimeIsNeverLess: a daemon that asks for more time gets what it asks
// for or what it has, whichever is more, and nothing while it was not asked to stop.
func TestMoreTimeIsNeverLess(t *testing.T) {
	for _, c := range []struct {
		asked     bool
		ask, want time.Duration
	}{
		{true, time.Second, time.Minute},
		{true, time.Hour, time.Hour},
		{false, time.Hour, time.Minute},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			tm := &term{asked: c.asked, kill: time.NewTimer(time.Minute), due: time.Now().Add(time.Minute)}
			(&supervisor{}).obey(tm, linked{message: message{Op: opExtend, Millis: c.ask.Milliseconds()}})
			<-tm.kill.C
			if d := time.Since(began); d != c.want {
				t.Errorf("asked %t to stop and for %v: killed after %v, not %v", c.asked, c.ask, d, c.want)
			}
		})
	}
}

// TestWhatIsHeardIsNotLost: lines that only look like a crash's are logged in
// the end, and when the daemon goes on; a crash report gets the headline that it lacks.
func TestWhatIsHeardIsNotLost(t *testing.T) {
	var terminal, log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key != slog.MessageKey {
			return slog.Attr{}
		}
		return a
	}}))
	hear := func(text, report string) string {
		t.Helper()
		terminal.Reset()
		log.Reset()
		o, w, err := overhear(&terminal, logger)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.WriteString(text); err != nil {
			t.Fatal(err)
		}
		w.Close()
		got := o.end([]byte(report))
		if terminal.String() != text {
			t.Errorf("the terminal got %q, not %q", &terminal, text)
		}
		return string(got)
	}
	if got := hear("one\ntwo\r\n\nhalf", ""); got != "" || log.String() != "msg=one\nmsg=two\nmsg=half\n" {
		t.Errorf("report %q, log %q", got, &log)
	}
	if hear("one\npanic: not really\ntwo\n", ""); log.String() != "msg=one\nmsg=\"panic: not really\"\nmsg=two\n" {
		t.Errorf("log %q", &log)
	}
	report := "\ngoroutine 7 [running]:\nmain.f()\n"
	if got := hear("one\nfatal error: x\n"+report, report); got != "fatal error: x\n"+report || log.String() != "msg=one\n" {
		t.Errorf("report %q, log %q", got, &log)
	}
	if got := hear("panic: boom\n"+report, "panic: boom\n"+report); got != "panic: boom\n"+report {
		t.Errorf("report %q", got)
	}
	// No more than this of it is kept.
	if got := hear("fatal error: "+strings.Repeat("x\n", maxHeld), report); len(got) > maxHeld+len(report)+2 {
		t.Errorf("report of %d bytes", len(got))
	}
	// The daemon goes on.
	log.Reset()
	said := make(chan string, 10)
	o := &overheard{terminal: io.Discard, log: slog.New(messages{said}), patience: time.Millisecond, done: make(chan struct{})}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	o.pipe = r
	go o.run()
	if _, err := w.WriteString("runtime: is what I am about\n"); err != nil {
		t.Fatal(err)
	}
	if got := <-said; got != "runtime: is what I am about" {
		t.Error(got)
	}
	if _, err := w.WriteString("more\n"); err != nil {
		t.Fatal(err)
	}
	if got := <-said; got != "more" {
		t.Error(got)
	}
	w.Close()
	o.end(nil)
}

// messages is a handler that passes on what is logged.
type messages struct{ said chan<- string }

func (messages) Enabled(context.Context, slog.Level) bool { return true }
func (m messages) WithAttrs([]slog.Attr) slog.Handler     { return m }
func (m messages) WithGroup(string) slog.Handler          { return m }
func (m messages) Handle(_ context.Context, r slog.Record) error {
	m.said <- r.Message
	return nil
}

func FuzzOverheard(f *testing.F) {
	f.Add([]byte("one\nfatal error: x\n\ngoroutine 7 [running]:\n"), []byte("\ngoroutine 7 [running]:\n"))
	f.Fuzz(func(t *testing.T, text, report []byte) {
		o := &overheard{log: slog.New(slog.DiscardHandler)}
		o.take(text)
		if len(o.held) > maxHeld || len(o.part) >= maxOverheardLine {
			t.Errorf("%d bytes are held, and %d of a line", len(o.held), len(o.part))
		}
		if got := headlines(o.held, report); bytes.HasSuffix(got, []byte("\n")) {
			t.Errorf("%q", got)
		}
	})
}

// TestDumpDoesNotWaitForWhatHangs: an operator asks for a dump because something hangs.
func TestDumpDoesNotWaitForWhatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hang := make(chan struct{})
		defer close(hang)
		if got := string(written(func(w io.Writer) { fmt.Fprint(w, "state"); <-hang })); !strings.Contains(got, "left out") {
			t.Errorf("got %q", got)
		}
	})
	if got := string(written(func(w io.Writer) { fmt.Fprint(w, "state") })); got != "state" {
		t.Errorf("got %q", got)
	}
}
