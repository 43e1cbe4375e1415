package daemon_test

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestForeground(t *testing.T) {
	d := newTestd(t)
	cmd := d.start()
	pid := cmd.Process.Pid
	if d.pid() != pid {
		t.Errorf("pidfile says %d, the process is %d", d.pid(), pid)
	}
	if comm(pid) != "testd" {
		t.Errorf("short name %q", comm(pid))
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); err != nil {
		t.Errorf("after TERM: %v\n%s", err, d.brief())
	}
	for _, name := range []string{"testd.pid", "echo.sock"} {
		if _, err := os.Stat(d.path(name)); err == nil {
			t.Errorf("%s stays", name)
		}
	}
}

func TestDetach(t *testing.T) {
	d := newTestd(t)
	d.detach()
	pid := d.pid()
	if _, pgid, sid := stat(pid); pgid != pid || sid != pid {
		t.Errorf("pid %d, group %d, session %d: not a session leader", pid, pgid, sid)
	}
	if got := link(pid, "cwd"); got != "/" {
		t.Errorf("working folder %s", got)
	}
	for fd := range 3 {
		if got := link(pid, fmt.Sprintf("fd/%d", fd)); got != "/dev/null" {
			t.Errorf("descriptor %d is %s", fd, got)
		}
	}
	d.say("exit")
	d.gone(pid)
	if d.pid() != 0 {
		t.Error("the pidfile stays")
	}
}

func TestNoChdir(t *testing.T) {
	d := newTestd(t)
	d.detach("--no-chdir", "--monitor")
	for _, pid := range []int{d.pid(), parentOf(d.pid())} {
		if got := link(pid, "cwd"); got != d.dir {
			t.Errorf("%s: working folder %s, want %s", comm(pid), got, d.dir)
		}
	}
}

func TestDetachMonitor(t *testing.T) {
	d := newTestd(t)
	d.detach("--monitor")
	pid := d.pid()
	mon := parentOf(pid)
	if comm(mon) != "testd-mon" || comm(pid) != "testd" {
		t.Fatalf("short names: monitor %q, daemon %q", comm(mon), comm(pid))
	}
	d.titled(mon, fmt.Sprintf("testd: monitoring pid %d (healthy)", pid))
	for fd := range 3 {
		if got := link(mon, fmt.Sprintf("fd/%d", fd)); got != "/dev/null" {
			t.Errorf("monitor: descriptor %d is %s", fd, got)
		}
	}
	if got := link(mon, "cwd"); got != "/" {
		t.Errorf("monitor: working folder %s", got)
	}
	syscall.Kill(pid, syscall.SIGSEGV)
	next := d.restarted(pid)
	if parentOf(next) != mon {
		t.Errorf("the new daemon's parent is %d, want %d", parentOf(next), mon)
	}
	d.titled(mon, fmt.Sprintf("testd: monitoring pid %d (1 crash: pid %d died, exit status 2, SIGSEGV: segmentation violation)", next, pid))
	syscall.Kill(next, syscall.SIGTERM)
	d.gone(next)
	d.gone(mon)
	if _, err := os.Stat(d.path("echo.sock")); err == nil {
		t.Error("the socket's file stays")
	}
}

func TestMonitorInForeground(t *testing.T) {
	d := newTestd(t)
	cmd := d.start("--monitor")
	pid := d.pid()
	if parentOf(pid) != cmd.Process.Pid {
		t.Fatalf("the daemon's parent is %d, want %d", parentOf(pid), cmd.Process.Pid)
	}
	syscall.Kill(pid, syscall.SIGKILL)
	next := d.restarted(pid)
	cmd.Process.Signal(syscall.SIGINT)
	if err := cmd.Wait(); err != nil {
		t.Errorf("after INT: %v", err)
	}
	d.gone(next)
}

// TestStartupErrors asserts that the command's status and message are the
// daemon's own, in every mode, and that nothing stays.
func TestStartupErrors(t *testing.T) {
	modes := map[string][]string{
		"foreground": nil, "monitor": {"--monitor"}, "detach": {"--detach"}, "detach monitor": {"--detach", "--monitor"},
	}
	for how, want := range map[string]struct {
		status int
		text   string
	}{
		"exit7":  {7, ""},
		"exit0":  {1, "died before it served (exit status 0)"},
		"fail":   {1, "testd: cannot frob the widget\n"},
		"config": {2, "testd: testd.toml:3:7: no such key\ntestd.toml:9:1: duplicate\n"},
		"panic":  {2, "startup went wrong"},
		"segv":   {2, "SIGSEGV"},
	} {
		for mode, args := range modes {
			t.Run(how+" "+mode, func(t *testing.T) {
				t.Parallel()
				if how == "exit0" && mode == "foreground" {
					t.Skip("nothing was promised to anyone")
				}
				d := newTestd(t)
				d.setenv(startVar + "=" + how)
				status, stderr := d.launch(append(args, "--pidfile", "--log-file")...)
				if status != want.status && !(how == "exit0" && mode == "monitor") {
					t.Errorf("status %d, want %d", status, want.status)
				}
				if !strings.Contains(stderr, want.text) {
					t.Errorf("standard error has no %q:\n%s", want.text, stderr)
				}
				if n := strings.Count(stderr, "cannot frob"); n > 1 {
					t.Errorf("said %d times:\n%s", n, stderr)
				}
				if got := strings.Count(d.file("starts"), "\n"); got != 1 {
					t.Errorf("%d starts, want 1", got)
				}
				if how != "fail" && how != "config" {
					return
				}
				if d.pid() != 0 {
					t.Error("the pidfile stays")
				}
				d.logs("|ERR|exiting: ")
			})
		}
	}
}

func TestStartupCrashIsReported(t *testing.T) {
	for _, args := range [][]string{{"--detach"}, {"--detach", "--monitor"}} {
		d := newTestd(t)
		d.setenv(startVar + "=panic")
		status, stderr := d.launch(append(args, "--log-file")...)
		if status == 0 {
			t.Fatalf("%v: a crash is reported as success", args)
		}
		if !strings.Contains(stderr, "died before it served") {
			t.Errorf("%v: %s", args, stderr)
		}
	}
}

func TestStartupThatHangsIsBounded(t *testing.T) {
	for _, args := range [][]string{{"--monitor"}, {"--detach", "--monitor"}} {
		// On a machine with other work a process may take longer than this to come to where it hangs.
		for limit := 200 * time.Millisecond; limit < patience; limit *= 2 {
			d := newTestd(t)
			d.opts.StartTimeout = limit
			d.setenv(startVar + "=hang")
			status, stderr := d.launch(append(args, "--log-file")...)
			if want := fmt.Sprintf("did not serve within %v", limit); status == 0 || !strings.Contains(stderr, want) {
				t.Errorf("%v: status %d: %s", args, status, stderr)
			}
			if d.file("starts") == "" {
				continue
			}
			if !strings.Contains(d.log(), "SIGABRT") {
				t.Errorf("%v: no report of what it hung in:\n%s", args, d.log())
			}
			break
		}
	}
}

func TestLauncherIsNotHeldUpByGrandchildren(t *testing.T) {
	d := newTestd(t)
	d.setenv(startVar + "=forking")
	cmd := d.cmd("--detach")
	if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("status %d, want 7", cmd.ProcessState.ExitCode())
	}
	var pid int
	fmt.Sscan(d.file("sleeper"), &pid)
	if pid == 0 || ended(pid) {
		t.Fatal("the child is gone: nothing was tested")
	}
	syscall.Kill(pid, syscall.SIGKILL)
	d.gone(pid)
}

// TestRestartedDeaths: of what daemons die, by themselves or by a signal that
// someone sends, and are started again; and how the log names it.
func TestRestartedDeaths(t *testing.T) {
	for how, says := range map[string]string{
		"crash segv":  "exit status 2, SIGSEGV: segmentation violation, restarting",
		"crash kill":  "killed (Killed), restarting",
		"crash alrm":  "killed (Alarm clock), restarting",
		"crash pipe":  "killed (Broken pipe), restarting",
		"crash xcpu":  "killed (CPU time limit exceeded), restarting",
		"crash xfsz":  "killed (File size limit exceeded), restarting",
		"crash panic": "exit status 2, panic: boom, restarting",
		"crash fatal": "exit status 2, fatal error: sync: unlock of unlocked mutex, restarting",
		"crash map":   "exit status 2, fatal error: concurrent map writes, restarting",
		"crash stack": "exit status 2, fatal error: stack overflow, restarting",
		"SIGSEGV":     "exit status 2, SIGSEGV: segmentation violation, restarting",
		"SIGABRT":     "exit status 2, SIGABRT: abort, restarting",
		"SIGBUS":      "exit status 2, SIGBUS: bus error, restarting",
		"SIGFPE":      "exit status 2, SIGFPE: floating-point exception, restarting",
		"SIGILL":      "exit status 2, SIGILL: illegal instruction, restarting",
		"SIGKILL":     "killed (Killed), restarting",
		"quit 5":      "", // the reserved status: no crash
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			d := newTestd(t)
			d.detach("--monitor")
			pid := d.pid()
			if sig := unix.SignalNum(how); sig != 0 {
				syscall.Kill(pid, sig)
			} else {
				d.say(how)
			}
			d.restarted(pid)
			if says == "" {
				d.logs(fmt.Sprintf("|INFO|pid %d died, exit status 5 to be restarted", pid))
				return
			}
			d.logs(fmt.Sprintf("|ERR|1 crash: pid %d died, %s", pid, says))
		})
	}
}

// TestDeathsThatAreFinal: after these ends of a daemon that served, its monitor
// ends too, with the daemon's status, and nothing of them stays.
func TestDeathsThatAreFinal(t *testing.T) {
	for how, status := range map[string]int{
		"SIGTERM": 0, "SIGINT": 0, "exit": 0, "quit 0": 0, "quit 1": 1, "quit 2": 2, "quit 3": 3, "quit 7": 7,
		"SIGQUIT": 2, // a dump that was asked for
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			d := newTestd(t)
			cmd := d.start("--monitor")
			pid := d.pid()
			if sig := unix.SignalNum(how); sig != 0 {
				syscall.Kill(pid, sig)
			} else {
				d.say(how)
			}
			if err := cmd.Wait(); cmd.ProcessState.ExitCode() != status {
				t.Errorf("the monitor ended with %v, not with status %d", err, status)
			}
			if got := strings.Count(d.file("starts"), "\n"); got != 1 {
				t.Errorf("%d starts, want 1", got)
			}
			d.gone(pid)
			if _, err := os.Stat(d.path("echo.sock")); err == nil {
				t.Error("the socket's file stays")
			}
		})
	}
}

// TestFatalErrorsAreNamed: the runtime says what a fatal error was on standard
// error alone. The report, the log and the monitor's title say it all the same,
// and the terminal if there is one; once each.
func TestFatalErrorsAreNamed(t *testing.T) {
	const headline = "fatal error: sync: unlock of unlocked mutex"
	for name, start := range map[string]func(*testd) func() string{
		"detached": func(d *testd) func() string {
			d.detach("--monitor")
			return nil
		},
		"foreground": func(d *testd) func() string {
			cmd := d.start("--monitor", "-vconsole:off")
			return func() string {
				cmd.Process.Signal(syscall.SIGTERM)
				if err := cmd.Wait(); err != nil {
					t.Error(err)
				}
				return cmd.Stderr.(*bytes.Buffer).String()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newTestd(t)
			end := start(d)
			pid := d.pid()
			d.say("crash fatal")
			next := d.restarted(pid)
			d.titled(parentOf(next), fmt.Sprintf("pid %d died, exit status 2, %s", pid, headline))
			d.logs(fmt.Sprintf("pid %d crashed: %s", pid, headline))
			if strings.Contains(d.log(), "|stderr(monitor)|") {
				t.Errorf("a crash is logged as what a library mutters:\n%s", d.log())
			}
			reports, err := filepath.Glob(d.path(fmt.Sprintf("crash/crash-*-%d.txt", pid)))
			if err != nil || len(reports) != 1 {
				t.Fatalf("reports: %v %v", reports, err)
			}
			data, err := os.ReadFile(reports[0])
			if want := fmt.Sprintf("testd 1.0: pid %d crashed: %s\n\n%s\n\ngoroutine ", pid, headline, headline); err != nil || !strings.HasPrefix(string(data), want) {
				t.Errorf("the report begins (%v)\n%.300s", err, data)
			}
			if end == nil {
				return
			}
			if said := end(); strings.Count(said, headline+"\n") != 1 || !strings.Contains(said, "\ngoroutine ") {
				t.Errorf("the terminal shows\n%s", said)
			}
		})
	}
}

// TestStandardErrorIsHeard: what a daemon writes to standard error itself goes
// to the terminal, for as long as there is one, and to the log.
func TestStandardErrorIsHeard(t *testing.T) {
	for name, args := range map[string][]string{"foreground": {"--monitor"}, "detached": {"--detach", "--monitor"}} {
		d := newTestd(t)
		d.setenv(startVar + "=mutter")
		status, stderr := d.launch(append(args, "--log-file")...)
		if status != 1 || strings.Count(stderr, "the widget looks odd\n") != 1 || strings.Count(stderr, "testd: cannot frob the widget\n") != 1 {
			t.Errorf("%s: status %d: %s", name, status, stderr)
		}
		d.logs("|stderr(monitor)|WARN|the widget looks odd\n")
	}
	d := newTestd(t)
	d.detach("--monitor")
	d.say("mutter this is said much later")
	d.logs("|stderr(monitor)|WARN|this is said much later\n")
	// Without its monitor there is nobody to hear it; it does no harm.
	pid := d.pid()
	mon := parentOf(pid)
	syscall.Kill(mon, syscall.SIGKILL)
	d.gone(mon)
	d.titled(pid, "serving without its monitor")
	d.say("mutter into the void")
	d.serves()
	if got := link(pid, "fd/2"); got != "/dev/null" {
		t.Errorf("standard error is %s", got)
	}
}

func TestCrashReportGoesToLogAndFile(t *testing.T) {
	d := newTestd(t)
	d.detach("--monitor")
	pid := d.pid()
	d.say("crash panic")
	d.restarted(pid)
	d.logs("panic: boom")
	d.logs("testMain") // a report of all goroutines
	reports, err := filepath.Glob(d.path("crash/crash-*.txt"))
	if err != nil || len(reports) != 1 {
		t.Fatalf("reports: %v %v", reports, err)
	}
	data, err := os.ReadFile(reports[0])
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("testd 1.0: pid %d crashed: panic: boom\n", pid); !strings.HasPrefix(string(data), want) {
		t.Errorf("report begins %.200s", data)
	}
}

func TestCrashWithoutMonitorIsReportedByTheNextStart(t *testing.T) {
	d := newTestd(t)
	d.detach()
	pid := d.pid()
	d.say("crash panic")
	d.gone(pid)
	for _, name := range []string{"echo.sock", "testd.ctl"} {
		if err := os.Remove(d.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	d.detach()
	d.logs("an earlier daemon crashed: panic: boom")
	if reports, _ := filepath.Glob(d.path("crash/crash-*.txt")); len(reports) != 1 {
		t.Errorf("reports: %v", reports)
	}
	pid = d.pid()
	d.say("exit")
	d.gone(pid)
	if left, _ := filepath.Glob(d.path("crash/running-*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

// TestFatalErrorWithoutMonitor: nobody hears the headline; the frames tell where it was.
func TestFatalErrorWithoutMonitor(t *testing.T) {
	d := newTestd(t)
	d.detach()
	pid := d.pid()
	d.say("crash fatal")
	d.gone(pid)
	for _, name := range []string{"echo.sock", "testd.ctl"} {
		if err := os.Remove(d.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	d.detach()
	d.logs("an earlier daemon crashed: fatal error in sync.(*Mutex).Unlock")
}

// TestFailedRestartIsRetried: whatever keeps a restart from serving, it is tried
// again, and the title says what the last one died of.
func TestFailedRestartIsRetried(t *testing.T) {
	for how, title := range map[string]string{
		"fail":  "died, exit status 1 before it served)",
		"exit7": "died, exit status 7 before it served)",
		"segv":  "died, exit status 2, SIGSEGV: segmentation violation)",
		"panic": "died, exit status 2, panic: startup went wrong)",
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			d := newTestd(t)
			d.detach("--monitor", "--restart-delay=1ms")
			pid := d.pid()
			mon := parentOf(pid)
			if err := os.WriteFile(d.path("start"), []byte(how), 0o644); err != nil {
				t.Fatal(err)
			}
			d.say("crash kill")
			d.until("two failed restarts", func() bool { return strings.Count(d.file("starts"), how) >= 2 })
			d.titled(mon, title)
			if err := os.Remove(d.path("start")); err != nil {
				t.Fatal(err)
			}
			d.restarted(pid)
		})
	}
}

func TestThrottleIsSaid(t *testing.T) {
	d := newTestd(t)
	d.detach("--monitor", "--restart-delay=1h")
	pid := d.pid()
	mon := parentOf(pid)
	d.say("crash kill")
	pid = d.restarted(pid)
	d.say("crash kill")
	d.logs(fmt.Sprintf("2 crashes: pid %d died, killed (Killed), waiting until 1h0m0s since last restart", pid))
	// HUP: try now.
	syscall.Kill(mon, syscall.SIGHUP)
	d.restarted(pid)
	d.say("crash kill")
	d.logs("|ERR|3 crashes")
	syscall.Kill(mon, syscall.SIGTERM)
	d.gone(mon)
	if _, err := os.Stat(d.path("echo.sock")); err == nil {
		t.Error("the socket's file stays")
	}
}

func TestMonitorPassesSignalsOn(t *testing.T) {
	d := newTestd(t)
	d.detach("--monitor")
	pid := d.pid()
	mon := parentOf(pid)
	syscall.Kill(mon, syscall.SIGHUP)
	d.until("reload", func() bool { return d.file("reloads") != "" })
	syscall.Kill(mon, syscall.SIGUSR1)
	d.until("dump", func() bool {
		return strings.Contains(d.log(), "|dump|INFO|state of the echo server") && strings.Contains(d.log(), "|dump|INFO|goroutine ")
	})
	syscall.Kill(mon, syscall.SIGUSR2)
	syscall.Kill(mon, syscall.SIGTERM)
	d.gone(mon)
	if !ended(pid) {
		t.Error("the monitor has ended before its daemon")
	}
	if d.pid() != 0 {
		t.Error("the pidfile stays")
	}
}

// TestSignalsBeforeTheDaemonServes reach it when it does: earlier, they would end it.
func TestSignalsBeforeTheDaemonServes(t *testing.T) {
	d := newTestd(t)
	d.setenv(earlyVar + "=yes")
	cmd := d.cmd("--monitor", "--pidfile", "--log-file")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	d.until("the daemon's beginning", func() bool { return strings.HasSuffix(d.file("early"), "\n") })
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGHUP} {
		cmd.Process.Signal(sig)
	}
	if err := os.WriteFile(d.path("go"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d.serves()
	if pid := fmt.Sprintln(d.pid()); d.file("early") != pid {
		t.Errorf("%sserves, and %shad begun", pid, d.file("early"))
	}
	d.until("reload", func() bool { return d.file("reloads") != "" })
	d.logs("|dump|INFO|goroutine ")
}

func TestDaemonThatDoesNotStopIsKilled(t *testing.T) {
	d := newTestd(t)
	d.opts.StopTimeout = 100 * time.Millisecond
	d.setenv(startVar + "=stubborn")
	cmd := d.start("--monitor")
	pid := d.pid()
	cmd.Process.Signal(syscall.SIGTERM)
	err := cmd.Wait()
	if cmd.ProcessState.ExitCode() != 128+9 {
		t.Errorf("%v, want status 137", err)
	}
	d.gone(pid)
	if !strings.Contains(d.log(), "did not stop in time: killing it") {
		t.Errorf("log:\n%s", d.brief())
	}
}

func TestSecondSignalStopsAtOnce(t *testing.T) {
	d := newTestd(t)
	d.setenv(startVar + "=stubborn")
	cmd := d.start()
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Process.Signal(syscall.SIGINT)
	cmd.Process.Signal(syscall.SIGTERM)
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v, want status 1", err)
	}
	if d.pid() != 0 {
		t.Error("the pidfile stays")
	}
}

// TestDaemonServesOnWithoutItsMonitor: it says so, and by a planned restart,
// which its clients do not notice, it gets another.
func TestDaemonServesOnWithoutItsMonitor(t *testing.T) {
	d := newTestd(t)
	d.detach("--monitor", "-vecho:file:dbg")
	pid := d.pid()
	mon := parentOf(pid)
	syscall.Kill(mon, syscall.SIGKILL)
	d.gone(mon)
	d.logs("the monitor is gone: going on to serve")
	d.serves()
	d.titled(pid, "serving without its monitor")
	if d.say("alone") != "true" {
		t.Error("the daemon's function does not know")
	}
	c, err := net.Dial("unix", d.path("echo.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	if got, err := answer(c, r, "hello"); err != nil || got != "1 hello" {
		t.Fatalf("%q, %v", got, err)
	}
	levels := d.say("levels")
	d.say("restart")
	next := d.restarted(pid)
	if parentOf(next) != pid || comm(pid) != "testd-mon" || comm(next) != "testd" {
		t.Fatalf("%s (%d) is the child of %s (%d), not of the one that lost its monitor (%d)", comm(next), next, comm(parentOf(next)), parentOf(next), pid)
	}
	d.titled(pid, fmt.Sprintf("testd: monitoring pid %d (healthy)", next))
	if got, err := answer(c, r, "hello"); err != nil || got != "2 hello" {
		t.Errorf("%q, %v", got, err)
	}
	if d.say("alone") != "false" || d.say("levels") != levels {
		t.Errorf("levels %s, alone %s", d.say("levels"), d.say("alone"))
	}
	d.say("crash kill")
	last := d.restarted(next)
	d.say("crash kill")
	d.logs("2 crashes: ") // it waits like any other
	syscall.Kill(pid, syscall.SIGTERM)
	d.gone(pid)
	d.gone(last)
	if _, err := os.Stat(d.path("echo.sock")); err == nil {
		t.Error("the socket's file stays")
	}
}

// TestASecondMonitorRetries: one that was made by a planned restart knows that
// its daemon has served before, and goes on trying.
func TestASecondMonitorRetries(t *testing.T) {
	d := newTestd(t)
	d.detach("--monitor", "--restart-delay=1ms")
	pid := d.pid()
	mon := parentOf(pid)
	syscall.Kill(mon, syscall.SIGKILL)
	d.gone(mon)
	d.titled(pid, "serving without its monitor")
	if err := os.WriteFile(d.path("start"), []byte("fail"), 0o644); err != nil {
		t.Fatal(err)
	}
	d.say("restart")
	d.until("two failed restarts", func() bool { return strings.Count(d.file("starts"), "fail") >= 2 })
	if err := os.Remove(d.path("start")); err != nil {
		t.Fatal(err)
	}
	if next := d.restarted(pid); parentOf(next) != pid {
		t.Errorf("the parent is %d, not %d", parentOf(next), pid)
	}
}

func TestOneOfManyStarts(t *testing.T) {
	d := newTestd(t)
	const n = 12
	type result struct {
		status int
		stderr string
	}
	results := make(chan result, n)
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			status, stderr := d.launch("--detach", "--pidfile", "--unixctl=none")
			results <- result{status, stderr}
		})
	}
	wg.Wait()
	close(results)
	t.Cleanup(d.stop)
	started := 0
	for r := range results {
		switch {
		case r.status == 0:
			started++
		case r.status != 3 || !strings.Contains(r.stderr, "already running as pid "):
			t.Errorf("status %d: %s", r.status, r.stderr)
		}
	}
	if started != 1 {
		t.Errorf("%d starts succeeded", started)
	}
	d.serves()
}

func TestAlreadyRunningNamesThePid(t *testing.T) {
	d := newTestd(t)
	d.detach()
	for _, args := range [][]string{nil, {"--monitor"}, {"--detach"}, {"--detach", "--monitor"}} {
		status, stderr := d.launch(append(args, "--pidfile")...)
		if want := fmt.Sprintf("testd: %s: already running as pid %d, aborting\n", d.path("testd.pid"), d.pid()); status != 3 || !strings.HasSuffix(stderr, want) {
			t.Errorf("%v: status %d: %s", args, status, stderr)
		}
	}
}

func TestOverwrittenPidfileStays(t *testing.T) {
	d := newTestd(t)
	d.detach()
	first := d.pid()
	d.setenv(startVar + "=stubborn") // only so that the second differs
	for _, name := range []string{"echo.sock", "testd.ctl"} {
		if err := os.Remove(d.path(name)); err != nil {
			t.Fatal(err)
		}
	}
	d.detach("--overwrite-pidfile")
	second := d.pid()
	if second == first {
		t.Fatal("the pidfile was not overwritten")
	}
	syscall.Kill(first, syscall.SIGTERM)
	d.gone(first)
	if d.pid() != second {
		t.Error("the end of the first daemon took the second one's pidfile")
	}
	d.serves() // and its socket is still its own
	syscall.Kill(second, syscall.SIGKILL)
	d.gone(second)
}

func TestKilledDaemonLeavesNothingInTheWay(t *testing.T) {
	d := newTestd(t)
	d.detach("--unixctl=" + d.path("x.ctl"))
	pid := d.pid()
	syscall.Kill(pid, syscall.SIGKILL)
	d.gone(pid)
	if d.pid() != pid {
		t.Fatal("the pidfile is gone: nothing is tested")
	}
	os.Remove(d.path("echo.sock"))
	os.Remove(d.path("x.ctl"))
	os.Remove(d.path("testd.ctl"))
	d.detach("--unixctl=" + d.path("x.ctl"))
}

func TestNoLogFileFromNowhere(t *testing.T) {
	d := newTestd(t)
	status, stderr := d.launch("--detach", "--monitor", "--pidfile")
	if status != 0 {
		t.Fatal(stderr)
	}
	t.Cleanup(d.stop)
	pid := d.pid()
	d.say("crash segv")
	d.restarted(pid)
	if _, err := os.Stat(d.path("testd.log")); err == nil {
		t.Error("a crash made a log file that nobody asked for")
	}
}

func TestUnwritableLogStopsNothing(t *testing.T) {
	d := newTestd(t)
	if err := os.WriteFile(d.path("plain"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	status, stderr := d.launch("--detach", "--monitor", "--pidfile", "--log-file="+d.path("plain/log"))
	if status != 0 {
		t.Fatalf("status %d: %s", status, stderr)
	}
	t.Cleanup(d.stop)
	if !strings.Contains(stderr, "going on without a log file") {
		t.Errorf("standard error: %s", stderr)
	}
	d.serves()
}

func TestStrangersAreNotInherited(t *testing.T) {
	d := newTestd(t)
	f, err := os.Create(d.path("stranger"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := d.cmd("--detach", "--monitor", "--pidfile", "--log-file")
	cmd.ExtraFiles = []*os.File{f, f, f}
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.stop)
	for _, pid := range []int{d.pid(), parentOf(d.pid())} {
		entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if link(pid, "fd/"+e.Name()) == f.Name() {
				t.Errorf("%s has inherited descriptor %s", comm(pid), e.Name())
			}
		}
	}
}

// TestSignalsAfterAThrottledRestart: a monitor that has waited once hears as
// well as before.
func TestSignalsAfterAThrottledRestart(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		d := newTestd(t)
		cmd := d.start("--monitor", "--restart-delay=10ms")
		pid := d.pid()
		for range 2 {
			d.say("crash kill")
			pid = d.restarted(pid)
		}
		d.logs("2 crashes: ")
		cmd.Process.Signal(syscall.SIGHUP)
		d.until("reload", func() bool { return d.file("reloads") != "" })
		cmd.Process.Signal(sig)
		if err := cmd.Wait(); err != nil {
			t.Errorf("after %v: %v\n%s", sig, err, d.brief())
		}
		d.gone(pid)
		if d.pid() != 0 {
			t.Errorf("after %v the pidfile stays", sig)
		}
	}
}

// TestCrashLoop crashes the daemon over and over while clients come and go:
// none of them may be refused, and nothing may be left behind.
func TestCrashLoop(t *testing.T) {
	d := newTestd(t)
	d.detach("--monitor", "--restart-delay=1ms")
	mon := parentOf(d.pid())
	first := d.pid()
	d.say("crash kill")
	d.restarted(first) // from now on sockets are inherited
	fds := d.say("fds")
	stop := make(chan struct{})
	var clients sync.WaitGroup
	for range 2 {
		clients.Go(func() { loopClient(t, d, stop) })
	}
	const crashes = 20
	kinds := []string{"segv", "kill", "panic"}
	pid := d.pid()
	for i := range crashes {
		d.say("crash " + kinds[i%len(kinds)])
		pid = d.restarted(pid)
	}
	close(stop)
	clients.Wait()
	if parentOf(d.pid()) != mon {
		t.Error("another monitor")
	}
	d.until("as many open files as before: "+fds, func() bool { return d.say("fds") == fds })
	d.titled(mon, fmt.Sprintf("(%d crashes: ", 1+crashes))
	if left, _ := filepath.Glob(d.path("*.ctl")); len(left) != 2 { // and the link
		t.Errorf("control sockets: %v", left)
	}
	if reports, _ := filepath.Glob(d.path("crash/*")); len(reports) != 5 {
		t.Errorf("crash reports: %v", reports)
	}
}

// loopClient connects again and again. A connection may end with its daemon;
// to be refused is an error.
func loopClient(t *testing.T, d *testd, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		c, err := net.Dial("unix", d.path("echo.sock"))
		if err != nil {
			t.Errorf("refused: %v", err)
			return
		}
		r := bufio.NewReader(c)
		for range 10 {
			if ask(c, r, "hello") != nil {
				break
			}
		}
		c.Close()
	}
}

func TestPlannedRestartKeepsConnections(t *testing.T) {
	for name, args := range map[string][]string{"monitored": {"--monitor"}, "alone": nil} {
		t.Run(name, func(t *testing.T) {
			d := newTestd(t)
			d.detach(args...)
			pid := d.pid()
			c, err := net.Dial("unix", d.path("echo.sock"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			r := bufio.NewReader(c)
			for i := range 5 {
				if got, err := answer(c, r, "hello"); err != nil || got != fmt.Sprintf("%d hello", 2*i+1) {
					t.Fatalf("before restart %d: %q %v", i, got, err)
				}
				d.say("restart")
				d.until("restart", func() bool { return strings.Count(d.file("starts"), "\n") == i+2 })
				if got, err := answer(c, r, "hello"); err != nil || got != fmt.Sprintf("%d hello", 2*i+2) {
					t.Fatalf("after restart %d: %q %v\n%s", i, got, err, d.brief())
				}
			}
			if alone := len(args) == 0; (d.pid() == pid) != alone {
				t.Errorf("pid %d became %d", pid, d.pid())
			}
			if strings.Contains(d.log(), "crash") {
				t.Errorf("a planned restart is no crash:\n%s", d.brief())
			}
		})
	}
}

func TestLevelsSurvive(t *testing.T) {
	d := newTestd(t)
	d.detach("--monitor", "-vecho:warn")
	pid := d.pid()
	d.say("level echo:file:dbg")
	d.say("level PATTERN:file:%m")
	want := d.say("levels")
	if !strings.Contains(want, "DBG") || !strings.Contains(want, "WARN") {
		t.Fatal(want)
	}
	d.say("crash segv")
	pid = d.restarted(pid)
	if got := d.say("levels"); got != want {
		t.Errorf("after a crash:\n%s\nwant\n%s", got, want)
	}
	d.say("restart")
	d.restarted(pid)
	if got := d.say("levels"); got != want {
		t.Errorf("after a planned restart:\n%s\nwant\n%s", got, want)
	}
}

func TestHandedOverConnectionsOfACrashAreClosed(t *testing.T) {
	d := newTestd(t)
	d.detach("--monitor")
	c, err := net.Dial("unix", d.path("echo.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	if err := ask(c, r, "hello"); err != nil {
		t.Fatal(err)
	}
	pid := d.pid()
	d.say("crash kill")
	d.restarted(pid)
	if err := ask(c, r, "hello"); err == nil {
		t.Error("a connection outlived a crash")
	}
}

func TestStopIsExtendedOnDemand(t *testing.T) {
	d := newTestd(t)
	d.opts.StopTimeout = patience / 2 // what comes of asking for more is TestMoreTimeIsNeverLess's
	d.setenv(startVar + "=slow")
	m := newManager(d)
	cmd := d.start("--monitor")
	cmd.Process.Signal(syscall.SIGTERM)
	m.await("EXTEND_TIMEOUT_USEC=20000000")
	if err := os.WriteFile(d.path("finish"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, d.brief())
	}
}

// BenchmarkRestart is the time from the death of a monitored daemon to the
// next one's first answer.
func BenchmarkRestart(b *testing.B) {
	d := newTestd(b)
	d.detach("--monitor", "--restart-delay=1ns")
	pid := d.pid()
	for b.Loop() {
		syscall.Kill(pid, syscall.SIGKILL)
		pid = d.restarted(pid)
	}
}

// BenchmarkStart is the time from the start of a daemon in the foreground to
// its first answer, and its end.
func BenchmarkStart(b *testing.B) {
	d := newTestd(b)
	for b.Loop() {
		cmd := d.start()
		cmd.Process.Signal(syscall.SIGTERM)
		if err := cmd.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}
