package vlog

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/slogtest"
	"testing/synctest"
	"time"
)

// buffer is a console that can be read while it is written.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

var epoch = time.Date(2026, 3, 4, 5, 6, 7, 89e6, time.UTC)

// newLog returns a log whose console shows bare messages.
func newLog(t *testing.T, o Options) (*Vlog, *buffer) {
	t.Helper()
	out := &buffer{}
	o.Program, o.SyslogPath, o.JournalPath = "testd", orNone(o.SyslogPath), orNone(o.JournalPath)
	if o.Console == nil {
		o.Console = out
	}
	v := New(o)
	t.Cleanup(v.Close)
	if err := v.Set("PATTERN:console:%c|%p|%m"); err != nil {
		t.Fatal(err)
	}
	return v, out
}

func orNone(path string) string {
	if path == "" {
		return "none"
	}
	return path
}

func TestSetErrorsAreOpenVSwitchs(t *testing.T) {
	v, _ := newLog(t, Options{Modules: []string{"nbd", "rpc"}})
	for spec, want := range map[string]string{
		"foo":                `no destination, level, or module "foo"`,
		"console:foo":        `no destination, level, or module "foo"`,
		"PATTERN":            `missing destination`,
		"pattern:":           `missing destination`,
		"PATTERN:x:%m":       `unknown destination "x"`,
		"FACILITY:x":         `invalid facility`,
		"FACILITY":           `invalid facility`,
		"console:file":       `cannot specify multiple destinations`,
		"info,dbg":           `cannot specify multiple levels`,
		"nbd rpc":            `cannot specify multiple modules`,
		"console:PATTERN:%m": `no destination, level, or module "PATTERN"`,
	} {
		if err := v.Set(spec); err == nil || err.Error() != want {
			t.Errorf("%q: got %v, want %s", spec, err, want)
		}
	}
	if err := v.SetRateLimit(false, "foo"); err == nil || err.Error() != "unknown module" {
		t.Error(err)
	}
}

func TestSetSelects(t *testing.T) {
	for _, tc := range []struct {
		specs []string
		want  string // console, syslog, file of nbd; the same of rpc
	}{
		{nil, "DBG DBG DBG; DBG DBG DBG"},
		{[]string{"nbd"}, "DBG DBG DBG; INFO INFO INFO"},
		{[]string{"warn"}, "WARN WARN WARN; WARN WARN WARN"},
		{[]string{"ANY:ANY:err"}, "ERR ERR ERR; ERR ERR ERR"},
		{[]string{"nbd:console:off"}, "OFF INFO INFO; INFO INFO INFO"},
		{[]string{"Console,NBD,Emer"}, "EMER INFO INFO; INFO INFO INFO"},
		{[]string{"file:dbg", "rpc:file:warn"}, "INFO INFO DBG; INFO INFO WARN"},
		{[]string{" nbd\tdbg "}, "DBG DBG DBG; INFO INFO INFO"},
	} {
		v, _ := newLog(t, Options{Modules: []string{"nbd", "rpc"}})
		if err := v.Set(tc.specs...); err != nil {
			t.Errorf("%q: %v", tc.specs, err)
		}
		var got []string
		for _, m := range v.List() {
			if m.Module != "vlog" {
				got = append(got, m.Console+" "+m.Syslog+" "+m.File)
			}
		}
		if s := strings.Join(got, "; "); s != tc.want {
			t.Errorf("%q: got %s, want %s", tc.specs, s, tc.want)
		}
	}
}

func TestNewModulesGetTheLevelsOfAll(t *testing.T) {
	v, _ := newLog(t, Options{})
	if err := v.Set("console:err"); err != nil {
		t.Fatal(err)
	}
	v.Logger("late")
	if got := v.List()[0]; got != (ModuleLevels{"late", "ERR", "INFO", "INFO", true}) {
		t.Errorf("%+v", got)
	}
}

func TestListLooksLikeOpenVSwitchs(t *testing.T) {
	v, _ := newLog(t, Options{Modules: []string{"nbd", "a_name_that_is_too_long"}})
	if err := v.Set("nbd:file:dbg"); err != nil {
		t.Fatal(err)
	}
	if err := v.SetRateLimit(false, "nbd"); err != nil {
		t.Fatal(err)
	}
	want := "" +
		"                 console    syslog    file\n" +
		"                 -------    ------    ------\n" +
		"a_name_that_is_too_long  INFO       INFO       INFO\n" +
		"nbd               INFO       INFO        DBG    (rate limiting disabled)\n" +
		"vlog              INFO       INFO       INFO\n"
	if got := v.ListText(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	want = "" +
		"         prefix                            format\n" +
		"         ------                            ------\n" +
		"SYSLOG   <%B> %D{%h %e %T} %A[%P]:         testd|%05N|%c%T|%p|%m\n" +
		"CONSOLE  none                              %c|%p|%m\n" +
		"FILE     none                              %D{%Y-%m-%dT%H:%M:%S.###Z}|%05N|%c%T|%p|%m\n"
	if got := v.ListPatternText(); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
}

func TestPatterns(t *testing.T) {
	e := entry{
		time: epoch, level: Warn, module: "nbd", seq: 42, text: "hello", program: "testd",
		host: "alpha", facility: 3, pid: 77, start: epoch.Add(-1500 * time.Millisecond),
	}
	monitor := e
	monitor.subprogram = "monitor"
	for _, tc := range []struct {
		e       *entry
		pattern string
		want    string
	}{
		{&e, "%m", "hello"},
		{&e, "%A %B %E %P %p %c %r", "testd 28 alpha 77 WARN nbd 1500"},
		{&e, "%05N|%c%T|%p|%m", "00042|nbd|WARN|hello"},
		{&monitor, "%c%T %t", "nbd(monitor) monitor"},
		{&e, "%t%T", "main"},
		{&e, "%D{%Y-%m-%dT%H:%M:%S.###Z}", "2026-03-04T05:06:07.089Z"},
		{&e, "%D", "2026-03-04 05:06:07.089"},
		{&e, "%D{%h %e %T}", "Mar  4 05:06:07"},
		{&e, "%D{%a %A %b %B %j %F %y %I %p %% %q}", "Wed Wednesday Mar March 063 2026-03-04 26 05 AM % q"},
		{&e, "[%8p][%-8p][%08N][%2c]", "[    WARN][WARN    ][00000042][nbd]"},
		{&e, "%n%%|%", "\n%|%"},
		{&e, "%z%c{", "znbd{"},
		{&e, "%-05", "00000"},
		{&e, "%c{}x%D{", "nbdx2026-03-04 05:06:07.089{"},
	} {
		if got := string(tc.e.format(nil, tc.pattern)); got != tc.want {
			t.Errorf("%q: got %q, want %q", tc.pattern, got, tc.want)
		}
	}
	if n := len(e.format(nil, "%999999999999m")); n > maxWidth {
		t.Errorf("a pattern asks for %d bytes", n)
	}
}

func FuzzPattern(f *testing.F) {
	for _, p := range defaultPatterns("testd") {
		f.Add(p)
	}
	f.Add("%-010D{%Y")
	e := entry{time: epoch, level: Info, module: "m", text: "hello", program: "p"}
	f.Fuzz(func(t *testing.T, pattern string) {
		if n := len(e.format(nil, pattern)); n > (len(pattern)+1)*(maxWidth+64) {
			t.Errorf("%d bytes", n)
		}
	})
}

func FuzzSet(f *testing.F) {
	for _, s := range []string{"nbd:console:dbg", "PATTERN:file:%m", "FACILITY:local3", "ANY,any any\tany"} {
		f.Add(s)
	}
	v := New(Options{Program: "testd", Console: io.Discard, SyslogPath: "none", JournalPath: "none", Modules: []string{"nbd"}})
	f.Cleanup(v.Close)
	f.Fuzz(func(t *testing.T, spec string) {
		_ = v.Set(spec)
		if len(v.List()) != 2 {
			t.Error("a specification made a module")
		}
	})
}

func TestLevels(t *testing.T) {
	v, out := newLog(t, Options{})
	log := v.Logger("nbd")
	if err := v.Set("nbd:console:warn"); err != nil {
		t.Fatal(err)
	}
	log.Debug("no")
	log.Info("no")
	log.Warn("a warning")
	log.Error("an error")
	log.Log(t.Context(), SlogEmergency, "the end")
	v.Flush()
	if want := "nbd|WARN|a warning\nnbd|ERR|an error\nnbd|EMER|the end\n"; out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	if log.Enabled(t.Context(), slog.LevelInfo) {
		t.Error("enabled for nobody") // there is no file and no syslog
	}
}

func TestOneDestinationLeftOut(t *testing.T) {
	v, out := newLog(t, Options{})
	path := filepath.Join(t.TempDir(), "log")
	if err := v.OpenFile(path); err != nil {
		t.Fatal(err)
	}
	v.LoggerExcept("nbd", Console).Info("said elsewhere")
	v.Flush()
	if strings.Contains(out.String(), "said elsewhere") || !strings.Contains(read(t, path), "|nbd|INFO|said elsewhere\n") {
		t.Errorf("console %q, file %q", out, read(t, path))
	}
}

func TestText(t *testing.T) {
	v, out := newLog(t, Options{})
	log := v.Logger("m")
	log.Info("plain\n\n")
	log.Info("forged\n2026|00001|m|INFO|line \x1b[31m")
	log.Info("attrs", "a", 1, "b", "two words", "c", "", slog.Group("g", "d", time.Second), "e", fmt.Errorf("x=%q", "y"))
	log.With("w", 1).WithGroup("g").With("x", 2).Info("scoped", "y", 3)
	log.WithGroup("empty").Info("group")
	v.Flush()
	want := `m|INFO|plain
m|INFO|forged\n2026|00001|m|INFO|line \x1b[31m
m|INFO|attrs a=1 b="two words" c="" g.d=1s e="x=\"y\""
m|INFO|scoped w=1 g.x=2 g.y=3
m|INFO|group
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

func TestJSON(t *testing.T) {
	v, out := newLog(t, Options{Subprogram: "monitor"})
	if err := v.SetFormat("json"); err != nil {
		t.Fatal(err)
	}
	v.Logger("nbd").WithGroup("g").Warn("hello\nworld", "a", 1)
	v.Flush()
	var got map[string]any
	if err := json.Unmarshal([]byte(out.String()), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if got["severity"] != "WARN" || got["module"] != "nbd" || got["msg"] != "hello\nworld" || got["process"] != "monitor" ||
		fmt.Sprint(got["attrs"]) != "map[g:map[a:1]]" || got["level"] != nil {
		t.Errorf("%s", out)
	}
	if err := v.SetFormat("xml"); err == nil {
		t.Error("xml is taken")
	}
}

// TestHandlerKeepsTheRulesOfSlog runs the standard library's own checks on the JSON form.
func TestHandlerKeepsTheRulesOfSlog(t *testing.T) {
	v, out := newLog(t, Options{})
	if err := v.SetFormat("json"); err != nil {
		t.Fatal(err)
	}
	results := func() []map[string]any {
		v.Flush()
		var all []map[string]any
		for line := range strings.Lines(out.String()) {
			var m map[string]any
			if err := json.Unmarshal([]byte(line), &m); err != nil {
				t.Fatal(err)
			}
			attrs, _ := m["attrs"].(map[string]any)
			if attrs == nil {
				attrs = map[string]any{}
			}
			attrs["msg"], attrs["level"] = m["msg"], m["severity"]
			if m["time"] != nil {
				attrs["time"] = m["time"]
			}
			all = append(all, attrs)
		}
		return all
	}
	err := slogtest.TestHandler(v.Logger("m").Handler(), results)
	// A record without a time gets one here: a log line needs it.
	if err != nil && strings.Count(err.Error(), "\n") > 0 || err != nil && !strings.Contains(err.Error(), "time") {
		t.Error(err)
	}
}

func TestFile(t *testing.T) {
	v, _ := newLog(t, Options{})
	if err := v.Reopen(); err != ErrNoFile || err.Error() != "Logging to file not configured" {
		t.Error(err)
	}
	if err := v.CloseFile(); err != ErrNoFile {
		t.Error(err)
	}
	path := filepath.Join(t.TempDir(), "log")
	if err := v.OpenFile(path); err != nil {
		t.Fatal(err)
	}
	log := v.Logger("m")
	log.Info("one")
	v.Flush()
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("%v %v", st.Mode(), err)
	}

	// As logrotate does: the old file is written to until the log is reopened.
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	log.Info("two")
	if err := v.Reopen(); err != nil {
		t.Fatal(err)
	}
	log.Info("three")
	v.Flush()
	if old := read(t, path+".old"); !strings.Contains(old, "two\n") || !strings.HasSuffix(old, "|vlog|INFO|closing log file\n") {
		t.Errorf("old file:\n%s", old)
	}
	if now := read(t, path); !strings.Contains(now, "|vlog|INFO|opened log file "+path) || !strings.HasSuffix(now, "|m|INFO|three\n") {
		t.Errorf("new file:\n%s", now)
	}

	if err := v.CloseFile(); err != nil {
		t.Fatal(err)
	}
	log.Info("four")
	v.Flush()
	if strings.Contains(read(t, path), "four") {
		t.Error("written after close")
	}
	if err := v.Reopen(); err != ErrNoFile {
		t.Error(err)
	}
}

func TestFileThatCannotBeOpenedIsAnErrorAndNoMore(t *testing.T) {
	v, out := newLog(t, Options{})
	if err := v.OpenFile(filepath.Join(t.TempDir(), "no", "such")); err == nil {
		t.Fatal("no error")
	}
	v.Logger("m").Info("goes on")
	v.Flush()
	if !strings.Contains(out.String(), "goes on") {
		t.Error(out.String())
	}
}

func TestFullDiskIsReportedWhenItHasRoomAgain(t *testing.T) {
	w := &moody{}
	s := newSink(w)
	e := entry{module: "m", text: "x"}
	w.bad = true
	s.put([]byte("lost\n"), &e)
	s.put([]byte("lost\n"), &e)
	if err := s.call(func() { w.bad = false }); err != nil {
		t.Fatal(err)
	}
	s.put([]byte("kept\n"), &e)
	s.finish()
	if got := w.b.String(); !strings.Contains(got, "2 log messages were lost here") || !strings.HasSuffix(got, "kept\n") {
		t.Errorf("%q", got)
	}
}

// moody is a destination that fails at times.
type moody struct {
	b   bytes.Buffer
	bad bool
}

func (m *moody) write(line []byte, _ *entry) error {
	if m.bad {
		return io.ErrShortWrite
	}
	m.b.Write(line)
	return nil
}
func (m *moody) idle()       {}
func (m *moody) close()      {}
func (m *moody) ready() bool { return true }

// TestStuckDestinationCostsNobody blocks the console: logging must return at
// once, flushing after its patience, and closing too. Time is virtual.
func TestStuckDestinationCostsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		v := New(Options{Program: "testd", Console: stuck{release}, Burst: 1 << 20, SyslogPath: "none", JournalPath: "none"})
		log := v.Logger("m")
		start := time.Now()
		for range 3 * queueLength {
			log.Log(t.Context(), slog.LevelInfo, "hello")
		}
		if d := time.Since(start); d != 0 {
			t.Errorf("logging took %v", d)
		}
		v.Flush()
		v.Close()
		if d := time.Since(start); d > 5*patience {
			t.Errorf("closing took %v", d)
		}
		close(release)
		synctest.Wait()
	})
}

type stuck struct{ release chan struct{} }

func (s stuck) Write(p []byte) (int, error) {
	<-s.release
	return len(p), nil
}

func TestRotation(t *testing.T) {
	v, _ := newLog(t, Options{MaxSize: 1000, Keep: 2})
	path := filepath.Join(t.TempDir(), "log")
	if err := v.OpenFile(path); err != nil {
		t.Fatal(err)
	}
	if err := v.Set("PATTERN:file:%m"); err != nil {
		t.Fatal(err)
	}
	log := v.Logger("m")
	for i := range 40 {
		log.Info(fmt.Sprintf("%03d %s", i, strings.Repeat("x", 95)))
	}
	v.Flush()
	for _, name := range []string{path, path + ".1", path + ".2"} {
		if n := len(read(t, name)); n == 0 || n > 1000 {
			t.Errorf("%s has %d bytes", name, n)
		}
	}
	if _, err := os.Stat(path + ".3"); err == nil {
		t.Error("too many files stay")
	}
	if got := read(t, path); !strings.Contains(got, "039 ") {
		t.Errorf("the youngest line is not in the youngest file:\n%s", got)
	}
}

func TestTransientLogHoldsNoFile(t *testing.T) {
	v, _ := newLog(t, Options{Transient: true})
	path := filepath.Join(t.TempDir(), "log")
	if err := v.OpenFile(path); err != nil {
		t.Fatal(err)
	}
	v.Flush()
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	v.Flush() // the queue was empty in between: the file is closed
	v.Logger("m").Info("new")
	v.Flush()
	if !strings.Contains(read(t, path), "new") || strings.Contains(read(t, path+".1"), "new") {
		t.Errorf("new %q old %q", read(t, path), read(t, path+".1"))
	}
}

func TestRateLimit(t *testing.T) {
	now := epoch
	v, out := newLog(t, Options{Burst: 3, PerMinute: 60, Now: func() time.Time { return now }})
	log := v.Logger("m")
	handler := log.Handler()
	at := func(d time.Duration, level slog.Level) {
		r := slog.NewRecord(epoch.Add(d), level, d.String(), 1234)
		if err := handler.Handle(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		at(0, slog.LevelWarn)
	}
	at(500*time.Millisecond, slog.LevelWarn)
	at(4*time.Second, slog.LevelWarn)
	v.Flush()
	want := "m|WARN|0s\nm|WARN|0s\nm|WARN|0s\n" +
		"m|WARN|Dropped 3 log messages in last 4 seconds (most recently, 3 seconds ago) due to excessive rate\nm|WARN|4s\n"
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
	if err := v.SetRateLimit(false); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		at(4*time.Second, slog.LevelWarn)
	}
	v.Flush()
	if n := strings.Count(out.String(), "m|WARN|4s\n"); n != 11 {
		t.Errorf("%d lines without a limit", n)
	}
}

func TestSaveAndRestore(t *testing.T) {
	v, _ := newLog(t, Options{Modules: []string{"nbd"}})
	changes := 0
	v.OnChange(func() { changes++ })
	for _, spec := range []string{"console:err", "nbd:file:dbg", "PATTERN:syslog:%m", "FACILITY:local3"} {
		if err := v.Set(spec); err != nil {
			t.Fatal(err)
		}
	}
	if err := v.SetRateLimit(false, "nbd"); err != nil {
		t.Fatal(err)
	}
	if changes != 5 {
		t.Errorf("%d changes told, want 5", changes)
	}
	w, _ := newLog(t, Options{})
	if err := w.Restore(v.Save()); err != nil {
		t.Fatal(err)
	}
	if v.ListText() != w.ListText() || v.ListPatternText() != w.ListPatternText() || w.facility != facilities["local3"] {
		t.Errorf("%s\n%s", v.ListText(), w.ListText())
	}
	for _, bad := range []string{"", "{", `{"defaults":["LOUD","",""]}`, `{"modules":{"x":["INFO","INFO","?"]}}`} {
		if err := w.Restore([]byte(bad)); err == nil {
			t.Errorf("%q is restored", bad)
		}
	}
	if v.ListText() != w.ListText() {
		t.Error("a failed restore changed something")
	}
}

func TestSyslogAndJournal(t *testing.T) {
	dir, err := os.MkdirTemp("", "vlog")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	receive := func() string {
		buf := make([]byte, 4096)
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := c.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		return string(buf[:n])
	}
	v, _ := newLog(t, Options{SyslogPath: path})
	v.Logger("nbd").Warn("hello")
	got := receive()
	if !strings.HasPrefix(got, "<28>") || !strings.HasSuffix(got, fmt.Sprintf(" testd[%d]: testd|00001|nbd|WARN|hello", os.Getpid())) {
		t.Errorf("syslog: %q", got)
	}
	v, _ = newLog(t, Options{JournalPath: path})
	if err := v.Set("PATTERN:syslog:%m%nsecond"); err != nil {
		t.Fatal(err)
	}
	v.Logger("nbd").Error("hello")
	got = receive()
	for _, want := range []string{"MESSAGE\n\x0c\x00\x00\x00\x00\x00\x00\x00hello\nsecond\n", "PRIORITY=3\n", "SYSLOG_IDENTIFIER=testd\n", "LOG_MODULE=nbd\n"} {
		if !strings.Contains(got, want) {
			t.Errorf("journal: no %q in %q", want, got)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// BenchmarkDisabled is the price of a debug message that nobody wants.
func BenchmarkDisabled(b *testing.B) {
	v := New(Options{Program: "testd", Console: io.Discard, SyslogPath: "none", JournalPath: "none"})
	defer v.Close()
	log := v.Logger("m")
	b.ReportAllocs()
	for b.Loop() {
		log.Debug("hello", "n", 1)
	}
}

// BenchmarkFile is the price of a message to the file, as its caller sees it.
func BenchmarkFile(b *testing.B) {
	v := New(Options{Program: "testd", Console: io.Discard, SyslogPath: "none", JournalPath: "none", Burst: 1 << 30})
	defer v.Close()
	if err := v.OpenFile(filepath.Join(b.TempDir(), "log")); err != nil {
		b.Fatal(err)
	}
	log := v.Logger("m")
	b.ReportAllocs()
	for b.Loop() {
		log.Info("hello", "n", 1)
	}
}
