package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
)

const (
	healthy  = `{"node":"alpha","id":0,"version":"1","revision":4,"tick_time_ms":8000,"max_ping_count":4,"nodes":[],"devices":[{"name":"r0","size":4096,"role":"primary","disk":"UpToDate","quorum":true,"peers":[]}],"health":"ok","x":1}`
	degraded = `{"node":"alpha","revision":5,"nodes":[],"devices":[],"health":"degraded","problems":[{"subject":"node beta","what":"down","do":"look"}]}`
)

// TestUsageErrors: a wrong command line sends nothing, exits with 2, says what
// is wrong on standard error and where to read on.
func TestUsageErrors(t *testing.T) {
	for _, c := range []struct{ line, says string }{
		{"", "a command is needed, for example: lockstepctl status; see: lockstepctl --help"},
		{"statsu", `"statsu" is not a command of "lockstepctl"; did you mean status?; see: lockstepctl --help`},
		{"node", `"lockstepctl node" needs a command; see: lockstepctl node --help`},
		{"node lst", `"lst" is not a command of "lockstepctl node"; did you mean list?`},
		{"node show", `"lockstepctl node show" needs NODE; see: lockstepctl node show --help`},
		{"node show a b", `"lockstepctl node show" takes NODE, and "b" is too much`},
		{"node list x", `"lockstepctl node list" takes no arguments, and "x" is too much`},
		{"device resize r0", `"lockstepctl device resize" needs SIZE`},
		{"device resize r0 12XB", `"12XB" is not a size`},
		{"device resize r0 -- -5", `"-5" is not a size`},
		{"device resize r0 99999999TiB", `"99999999TiB" is not a size`},
		{"tick set abc", `"abc" is not a number of seconds; see: lockstepctl tick set --help`},
		{"tick set nan", `"nan" is not a number of seconds`},
		{"tick set 8 -- -1", `"-1" is not a number of seconds`},
		{"config rollback x", `"x" is not the number of a revision`},
		{"device wait r0 happy", `"happy" cannot be waited for; the states are uptodate, connected, synced, primary`},
		{"device wait r0 synced --for primary", "the state is given twice"},
		{"device resolve r0", "one of --keep-local and --discard-local is needed"},
		{"device resolve r0 --keep-local --discard-local", "one of --keep-local and --discard-local is needed"},
		{"device resolve r0 --keep-local", "add --yes to do it"},
		{"device invalidate r0", "This node's copy of r0 will be overwritten by a peer's. Nobody can be asked here: add --yes to do it"},
		{"device promote --force r0", "add --yes to do it"},
		{"device handshake r0 beta --dry-run=false", "lockstepctl node reconnect NODE"},
		{"status --watch --check", "--watch and --check exclude each other"},
		{"status --nonsense", "unknown flag: --nonsense; see: lockstepctl status --help"},
		{"--nonsense", "unknown flag: --nonsense; see: lockstepctl --help"},
		{"-f yaml status", "-f yaml: the formats are text and json"},
		{"-T -3 status", "-T: the time must be greater than 0"},
		{"-T x status", `--timeout "x": a number is expected; see: lockstepctl status --help`},
		{"status --watch=x", `--watch "x": true or false is expected`},
		{"completion tcsh", "the shells are bash, zsh and fish"},
		{"help nonsense", `"nonsense" is not a command of "lockstepctl"`},
		{"help node nonsense", `"nonsense" is not a command of "lockstepctl node"`},
		{"top", "top needs a terminal"},
	} {
		d := &daemon{}
		got := run(t, d, c.line)
		if got.code != exitUsage || got.out != "" || len(d.requests()) > 0 || !strings.Contains(got.err, c.says) || !strings.HasPrefix(got.err, "lockstepctl: ") {
			t.Errorf("%q: %+v, asked %q; want exit 2 and: %s", c.line, got, d.requests(), c.says)
		}
	}
}

// TestOutcomes: each kind of failure has its exit code and its message, which
// starts with what could not be done and is said once.
func TestOutcomes(t *testing.T) {
	unreachable := func(cause error, path string) func(int) error {
		return func(int) error { return &rpc.UnreachableError{Target: "lockstepd", Path: path, Cause: cause} }
	}
	for name, c := range map[string]struct {
		line  string
		d     *daemon
		code  int
		says  string
		quiet bool
	}{
		"refused":                  {line: "device promote r0", d: answers("device/promote", api.Errorf(api.CodeInvalidState, "peer beta is primary")), code: 1, says: "lockstepctl: cannot promote r0: peer beta is primary\n"},
		"refused in full sentence": {line: "device promote r0", d: answers("device/promote", api.Errorf(api.CodeInvalidState, "cannot promote r0: beta is primary")), code: 1, says: "lockstepctl: cannot promote r0: beta is primary\n"},
		"forbidden":                {line: "exit", d: answers("exit", api.Errorf(api.CodeForbidden, "eve may not run exit: the role admin is needed")), code: 1, says: "lockstepctl: cannot stop the daemon: eve may not"},
		"every node":               {line: "node connect", d: answers("node/connect", errors.New("x")), code: 3, says: "lockstepctl: cannot connect: the connection to lockstepd was lost before it answered (x)"},
		"daemon's time limit":      {line: "status", d: answers("status", api.Errorf(api.CodeTimeout, "timed out after 10s")), code: 4, says: "cannot show the status: timed out after 10s"},
		"connection lost":          {line: "status", d: answers("status", rpc.ErrLost), code: 3, says: "was lost before it answered"},
		"not an answer":            {line: "node list", d: answers("node/list", `{"a":1}`), code: 1, says: "the answer of lockstepd to node/list does not fit this lockstepctl"},
		"unknown command":          {line: "memory", d: answers("version", `{"program":"lockstepd","version":"0.0.1"}`), code: 1, says: "it is lockstepd 0.0.1 and this is lockstepctl " + testRelease},
		"unknown command, same":    {line: "node list", d: answers("version", `{"program":"lockstepd","version":"`+testRelease+`"}`), code: 1, says: "(use \"list-commands\" to see a list of valid commands)\n"},
		"no pidfile":               {line: "status", d: &daemon{dials: unreachable(&pathErr{}, "")}, code: 3, says: "cannot reach lockstepd: it does not run ("},
		"socket left behind":       {line: "status", d: &daemon{dials: unreachable(syscall.ECONNREFUSED, "/run/lockstep/lockstepd.ctl")}, code: 3, says: "cannot reach lockstepd: it does not run (/run/lockstep/lockstepd.ctl: connection refused); start it with"},
		"no socket yet":            {line: "-T 1 status", d: &daemon{dials: unreachable(&fs.PathError{Op: "stat", Path: "/run/lockstep/lockstepd.7.ctl", Err: syscall.ENOENT}, "")}, code: 4, says: "no answer from lockstepd in time (timed out after 1s)"},
		"no permission":            {line: "status", d: &daemon{dials: unreachable(syscall.EACCES, "/run/x.ctl")}, code: 3, says: "cannot reach lockstepd: /run/x.ctl: permission denied; run this as root, or as a member of a group"},
		"stale socket":             {line: "-t ./x status", d: &daemon{dials: unreachable(syscall.ECONNREFUSED, "./x")}, code: 3, says: "cannot reach ./x: nobody listens on that socket"},
		"odd":                      {line: "-t ./x status", d: &daemon{dials: unreachable(syscall.EIO, "./x")}, code: 3, says: "input/output error; start the daemon, or name another socket with -t PATH"},
		"too many connections":     {line: "status", d: &daemon{dials: func(int) error { return api.Errorf(api.CodeBusy, "256 connections are open") }}, code: 1, says: "cannot show the status: 256 connections are open"},
		"escapes":                  {line: "status", d: answers("status", api.Errorf(1, "a\x1b[2Jb")), code: 1, says: "a\ufffd[2Jb"},
		"check, healthy":           {line: "status --check", d: answers("status", healthy)},
		"check, not healthy":       {line: "status --check", d: answers("status", degraded), code: 5, quiet: true},
		"check, no health":         {line: "-q status --check", d: answers("status", `{}`), code: 5, quiet: true},
		"check, refused":           {line: "status --check x", d: answers("status", api.Errorf(api.CodeNotFound, "there is no device x")), code: 1, says: "there is no device x"},
		"bad configuration":        {line: "config check", d: answers("config/check", api.Errorf(api.CodeBadConfig, "a.toml:1:1: x\na.toml:2:1: y")), code: 1, says: "cannot accept the configuration: a.toml:1:1: x\na.toml:2:1: y\n"},
	} {
		synctest.Test(t, func(t *testing.T) {
			got := run(t, c.d, c.line)
			if got.code != c.code || !strings.Contains(got.err, c.says) || c.code != 0 && !c.quiet && (got.out != "" || got.err == "") || c.quiet && got.err != "" {
				t.Errorf("%s: exit %d, want %d\nout: %s\nerr: %s\nwant: %s", name, got.code, c.code, got.out, got.err, c.says)
			}
		})
	}
}

// pathErr is an error about a pidfile that is not there.
type pathErr struct{}

func (*pathErr) Error() string   { return "open /run/lockstep/lockstepd.pid: no such file or directory" }
func (*pathErr) Is(e error) bool { return e == syscall.ENOENT }

func answers(method string, answer any) *daemon {
	return &daemon{answers: map[string]any{method: answer}}
}

// TestJSONIsTheDaemonsOwn: not a byte is changed, nothing is added.
func TestJSONIsTheDaemonsOwn(t *testing.T) {
	const odd = `{"z":1,"a":[1.50,18446744073709551615],"s":"<µ\u0001>","n":null}`
	for _, line := range []string{
		"status", "node list", "node show b", "device list", "device show r0", "device promote r0", "device why r0", "tick get",
		"config diff", "service list", "service show x", "cmap get k", "cmap dump", "version", "log list", "metrics", "list-commands",
		"call a/b c", "device wait r0", "device verify r0 --no-wait", "exit",
	} {
		d := &daemon{answers: map[string]any{}}
		for _, m := range []string{"status", "node/list", "node/show", "device/list", "device/show", "device/promote", "device/why", "tick/get", "config/diff",
			"service/list", "service/show", "cmap/get", "cmap/dump", "version", "vlog/list", "metrics", "list-commands", "a/b", "device/wait", "device/verify", "exit"} {
			d.answers[m] = odd
		}
		if got := run(t, d, "-f json "+line); got.code != 0 || got.out != odd+"\n" || got.err != "" {
			t.Errorf("%s: %+v", line, got)
		}
	}
}

func TestPretty(t *testing.T) {
	got := run(t, answers("tick/get", `{"a":[1]}`), "-f json --pretty tick get")
	if want := "{\n  \"a\": [\n    1\n  ]\n}\n"; got.out != want {
		t.Errorf("got %q", got.out)
	}
}

// TestColourOnlyOnATerminal, and not where it is not wanted.
func TestColourOnlyOnATerminal(t *testing.T) {
	terminal := func(e *Env) { e.OutTerm = screenOf{80, 24} }
	setenv := func(key, value string) func(*Env) {
		return func(e *Env) {
			e.Getenv = func(k string) string {
				if k == key {
					return value
				}
				return ""
			}
		}
	}
	for name, c := range map[string]struct {
		line   string
		change []func(*Env)
		color  bool
	}{
		"terminal":   {"status", []func(*Env){terminal}, true},
		"pipe":       {"status", nil, false},
		"--no-color": {"--no-color status", []func(*Env){terminal}, false},
		"NO_COLOR":   {"status", []func(*Env){terminal, setenv("NO_COLOR", "1")}, false},
		"dumb":       {"status", []func(*Env){terminal, setenv("TERM", "dumb")}, false},
		"json":       {"-f json status", []func(*Env){terminal}, false},
	} {
		got := run(t, answers("status", healthy), c.line, c.change...)
		if got.code != 0 || strings.Contains(got.out, "\x1b[") != c.color {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// TestConfirmation: what may lose data is asked about where somebody can be.
func TestConfirmation(t *testing.T) {
	for _, c := range []struct {
		typed string
		done  bool
	}{{"yes\n", true}, {" yes ", true}, {"no\n", false}, {"\n", false}, {"", false}, {"YES\n", false}} {
		d := answers("device/invalidate", `{"text":"r0 is fetched from beta"}`)
		got := run(t, d, "device invalidate r0", func(e *Env) { e.InTerm, e.In = true, strings.NewReader(c.typed) })
		if !strings.Contains(got.err, "Type yes to go on: ") || (len(d.requests()) == 1) != c.done || (got.code == 0) != c.done {
			t.Errorf("%q: %+v, asked %q", c.typed, got, d.requests())
		}
		if !c.done && !strings.Contains(got.err, "cannot invalidate r0: not confirmed, so nothing was done") {
			t.Errorf("%q: %s", c.typed, got.err)
		}
	}
}

func TestQuiet(t *testing.T) {
	if got := run(t, answers("node/connect", `{"text":"connecting"}`), "-q node connect beta"); got != (outcome{}) {
		t.Errorf("%+v", got)
	}
	if got := run(t, answers("cmap/get", `{"key":"k","type":"u64","value":18014398509481985}`), "-q cmap get k"); got.out != "18014398509481985\n" {
		t.Errorf("%+v", got)
	}
	if got := run(t, answers("status", degraded), "-q status --check"); got != (outcome{code: 5}) {
		t.Errorf("%+v", got)
	}
}

// TestLoadSendsTheFile, or standard input, as it is.
func TestLoadSendsTheFile(t *testing.T) {
	const lines = "user.site str north\n^^user.old.\n"
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	const asked = `cmap/load {"lines":"user.site str north\n^^user.old.\n"}`
	for line, in := range map[string]io.Reader{"cmap load " + path: strings.NewReader("not this"), "cmap load -": strings.NewReader(lines)} {
		d := answers("cmap/load", `{"text":"applied 2 steps"}`)
		got := run(t, d, line, func(e *Env) { e.In = in })
		if got != (outcome{out: "applied 2 steps\n"}) || !slices.Contains(d.requests(), asked) {
			t.Errorf("%s: %+v, %q", line, got, d.requests())
		}
	}
	endless := func(e *Env) { e.In = zeroes{} }
	if got := run(t, &daemon{}, "cmap load -", endless); got.code != 1 || got.err != "lockstepctl: cannot apply -: it is larger than 16 MiB\n" {
		t.Errorf("%+v", got)
	}
	if got := run(t, &daemon{}, "cmap load "+path+".none"); got.code != 1 || !strings.Contains(got.err, "keys.none: no such file or directory") {
		t.Errorf("%+v", got)
	}
}

// zeroes never end.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { return len(p), nil }

func TestServiceShowHasTheServicesOwnFigures(t *testing.T) {
	got := run(t, answers("service/show", `{"name":"handlers","version":1,"state":"running","health":"ok","runs":12,"queue":{"length":0}}`), "service show handlers")
	for _, want := range []string{"service   handlers, version 1", "queue.length  0", "runs          12"} {
		if !strings.Contains(got.out, want) {
			t.Errorf("%q is missing in:\n%s", want, got.out)
		}
	}
}

// TestTheTimeLimit is told with what to do, by -T and without.
func TestTheTimeLimit(t *testing.T) {
	hang := func(ctx context.Context, _ *conn, _ string) (string, error) {
		<-ctx.Done()
		return "", rpc.ErrTimeout
	}
	for line, limit := range map[string]time.Duration{"status": patience, "device list": slowPatience, "call config/check": slowPatience, "-T 0.5 status": 500 * time.Millisecond, "-T 300 node list": 300 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			begun := time.Now()
			got := run(t, &daemon{answers: map[string]any{"status": hang, "node/list": hang, "device/list": hang}, hangs: true}, line)
			if d := time.Since(begun); d != limit || got.code != exitTimeout || !strings.Contains(got.err, "no answer from lockstepd in time (timed out after "+limit.String()+"); it may be busy: wait longer with -T SECONDS") {
				t.Errorf("%s: after %v %+v", line, d, got)
			}
		})
	}
}

// TestTheReasonComesInTime: what stands in the way of a promotion is waited for at
// the daemon, but not until nobody hears of it any more.
func TestTheReasonComesInTime(t *testing.T) {
	promote := func(ctx context.Context, _ *conn, params string) (string, error) {
		var p api.DevicePromoteParams
		if err := json.Unmarshal([]byte(params), &p); err != nil {
			return "", err
		}
		limit := 5 * time.Second
		if p.TimeoutMS > 0 {
			limit = min(limit, time.Duration(p.TimeoutMS)*time.Millisecond)
		}
		select {
		case <-time.After(limit):
			return "", api.Errorf(api.CodeInvalidState, "no quorum: 1 of 3 disks")
		case <-ctx.Done():
			return "", rpc.ErrTimeout
		}
	}
	for _, limit := range []string{"", "-T 0.01 ", "-T 0.5 ", "-T 5 ", "-T 5.5 ", "-T 300 "} {
		synctest.Test(t, func(t *testing.T) {
			got := run(t, &daemon{answers: map[string]any{"device/promote": promote}}, limit+"device promote r0")
			if got.code != exitFailed || !strings.Contains(got.err, "cannot promote r0: no quorum: 1 of 3 disks") {
				t.Errorf("%q: %+v", limit, got)
			}
		})
	}
}

// TestAStartingDaemonIsWaitedFor, but not for long.
func TestAStartingDaemonIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := answers("status", healthy)
		d.dials = func(n int) error {
			if n < 10 {
				return &rpc.UnreachableError{Target: "lockstepd", Path: "/run/lockstepd.7.ctl", Cause: syscall.ECONNREFUSED}
			}
			return nil
		}
		if got := run(t, d, "status"); got.code != 0 || got.err != "" {
			t.Errorf("%+v", got)
		}
		d.dials = func(int) error {
			return &rpc.UnreachableError{Target: "lockstepd", Path: "/run/lockstepd.7.ctl", Cause: syscall.ECONNREFUSED}
		}
		begun := time.Now()
		got := run(t, d, "status")
		if got.code != exitUnreachable || !strings.Contains(got.err, "cannot reach lockstepd: it runs and does not listen yet (/run/lockstepd.7.ctl: connection refused); it is starting") {
			t.Errorf("%+v", got)
		}
		if waited := time.Since(begun); waited < startTime || waited > startTime+startPause {
			t.Errorf("waited %v", waited)
		}
	})
}

// brokenPipe is an output whose reader went away.
type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, syscall.EPIPE }

func TestAnOutputThatCannotBeWritten(t *testing.T) {
	got := run(t, answers("status", healthy), "status", func(e *Env) { e.Out = brokenPipe{} })
	if got.code != 1 || got.err != "lockstepctl: cannot write the answer: broken pipe\n" {
		t.Errorf("%+v", got)
	}
}

func TestVersions(t *testing.T) {
	if got := run(t, &daemon{}, "--version"); got.out != "lockstepctl (lockstep) "+testRelease+"\n" {
		t.Errorf("%+v", got)
	}
	if got := run(t, answers("version", `"lockstepd 9"`), "version"); got.out != "lockstepd 9\n" {
		t.Errorf("a version in plain text: %+v", got)
	}
}

// TestTargets: flag before variable before default.
func TestTargets(t *testing.T) {
	for _, c := range []struct{ line, env, want string }{
		{"status", "", "lockstepd"}, {"status", "/a.ctl", "/a.ctl"}, {"-t other status", "/a.ctl", "other"}, {"status --target ./x", "", "./x"},
	} {
		var got string
		e := env(answers("status", healthy), io.Discard, io.Discard)
		inner := e.Dial
		e.Dial = func(ctx context.Context, target Target, n Notify) (Client, error) {
			got = target.Name + " in " + target.Rundir
			return inner(ctx, target, n)
		}
		e.Getenv = func(k string) string { return map[string]string{"LOCKSTEP_TARGET": c.env}[k] }
		if Main(strings.Fields(c.line), e); got != c.want+" in /run/lockstep" {
			t.Errorf("%s: %s", c.line, got)
		}
	}
}

// FuzzAnswers: no answer of a daemon makes a command fail otherwise than by an
// error.
func FuzzAnswers(f *testing.F) {
	f.Add(healthy)
	f.Add(`[{"name":"a","since":"2026-01-01T00:00:00Z","peers":[{"resync":{"done":-1,"total":-5,"rate":-1,"eta_s":-9223372036854775808}}]}]`)
	f.Add(`{"size":-9223372036854775808,"queued_bytes":-1,"max_ping_count":-1,"tick_time_ms":-9223372036854775808}`)
	f.Add(`"\u0000\u001b[2J"`)
	f.Fuzz(func(t *testing.T, answer string) {
		if !json.Valid([]byte(answer)) {
			return
		}
		for line, method := range map[string]string{
			"status": "status", "node list": "node/list", "node show b": "node/show", "node why b": "node/why", "device list": "device/list",
			"device show r0": "device/show", "tick get": "tick/get", "tick set 1": "tick/set", "config diff": "config/diff", "service show x": "service/show",
			"service list": "service/list", "cmap dump": "cmap/dump", "cmap get k": "cmap/get", "device handshake r0 b": "device/handshake", "node connect": "node/connect",
		} {
			got := run(t, answers(method, answer), line, func(e *Env) { e.OutTerm = screenOf{80, 24} })
			for _, code := range []string{"32", "33", "31", "2", "1", "7", "0"} {
				got.out = strings.ReplaceAll(got.out, "\x1b["+code+"m", "")
			}
			if strings.Contains(got.out, "\x1b") || got.code != 0 && got.code != 1 {
				t.Errorf("%s: %+v", line, got)
			}
		}
	})
}
