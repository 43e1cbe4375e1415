package daemon_test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// manager is the notification socket of a service manager.
type manager struct {
	t    testing.TB
	conn *net.UnixConn
	seen []string // messages received, in order
}

func newManager(d *testd) *manager {
	d.t.Helper()
	path := d.path("notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { c.Close() })
	d.setenv("NOTIFY_SOCKET=" + path)
	return &manager{t: d.t, conn: c}
}

// await reads messages until one has the given line, and returns that message.
func (m *manager) await(line string) string {
	m.t.Helper()
	buf := make([]byte, 4096)
	for {
		if err := m.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			m.t.Fatal(err)
		}
		n, err := m.conn.Read(buf)
		if err != nil {
			m.t.Fatalf("no message with %q: %v; seen: %q", line, err, m.seen)
		}
		msg := string(buf[:n])
		m.seen = append(m.seen, msg)
		for l := range strings.Lines(msg) {
			if strings.TrimSpace(l) == line {
				return msg
			}
		}
	}
}

// drain reads what has come, and waits for nothing.
func (m *manager) drain() {
	m.t.Helper()
	raw, err := m.conn.SyscallConn()
	if err != nil {
		m.t.Fatal(err)
	}
	buf := make([]byte, 4096)
	if err := raw.Control(func(fd uintptr) {
		for {
			n, _, err := syscall.Recvfrom(int(fd), buf, syscall.MSG_DONTWAIT)
			if err != nil {
				return
			}
			m.seen = append(m.seen, string(buf[:n]))
		}
	}); err != nil {
		m.t.Fatal(err)
	}
}

func TestServiceManagerIsTold(t *testing.T) {
	for name, args := range map[string][]string{"alone": nil, "monitored": {"--monitor"}} {
		t.Run(name, func(t *testing.T) {
			d := newTestd(t)
			m := newManager(d)
			cmd := d.start(args...)
			main := cmd.Process.Pid
			m.await("READY=1")
			if want := fmt.Sprintf("MAINPID=%d", main); !strings.Contains(m.seen[len(m.seen)-1], want) {
				t.Errorf("%q has no %s", m.seen, want)
			}
			d.say("status 3 devices, all healthy")
			m.await("STATUS=3 devices, all healthy")
			cmd.Process.Signal(syscall.SIGHUP)
			if msg := m.await("RELOADING=1"); !strings.Contains(msg, "MONOTONIC_USEC=") {
				t.Errorf("%q", msg)
			}
			m.await("READY=1")
			if name == "monitored" {
				syscall.Kill(d.pid(), syscall.SIGKILL)
				m.await(fmt.Sprintf("MAINPID=%d", main))
			}
			cmd.Process.Signal(syscall.SIGTERM)
			m.await("STOPPING=1")
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestDetachedDaemonIsTheMainProcess(t *testing.T) {
	d := newTestd(t)
	m := newManager(d)
	d.detach()
	m.await(fmt.Sprintf("MAINPID=%d", d.pid()))
}

func TestWatchdogIsFedByTheProbeAlone(t *testing.T) {
	d := newTestd(t)
	m := newManager(d)
	d.setenv("WATCHDOG_USEC=30000")
	cmd := d.start()
	m.await("WATCHDOG=1")
	m.await("WATCHDOG=1")
	if err := os.WriteFile(d.path("sick"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	d.logs("no sign of life for the watchdog: sick")
	m.drain()
	seen := len(m.seen)
	d.until("more failed probes", func() bool { return strings.Count(d.log(), "no sign of life for the watchdog") > 2 })
	cmd.Process.Signal(syscall.SIGTERM)
	m.await("STOPPING=1")
	for _, msg := range m.seen[seen:] {
		if strings.Contains(msg, "WATCHDOG=1") {
			t.Error("fed though the probe fails")
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

func TestWatchdogOfAnotherProcessIsNotFed(t *testing.T) {
	d := newTestd(t)
	m := newManager(d)
	d.setenv("WATCHDOG_USEC=30000")
	d.setenv("WATCHDOG_PID=1")
	cmd := d.start()
	cmd.Process.Signal(syscall.SIGTERM)
	m.await("STOPPING=1")
	for _, msg := range m.seen {
		if msg == "WATCHDOG=1" {
			t.Error("fed")
		}
	}
}

// TestSocketActivation has the service manager listen: the daemon takes the
// socket over, in every mode, and it survives a crash.
func TestSocketActivation(t *testing.T) {
	for name, args := range map[string][]string{
		"alone": nil, "monitored": {"--monitor"}, "detached": {"--detach", "--monitor"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newTestd(t)
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.path("echo.sock"), Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			f, err := l.File()
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			// A shell, for LISTEN_PID is the pid of the process itself.
			inner := d.cmd(append(args, "--pidfile", "--log-file")...)
			cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh", d.exe}, inner.Args[1:]...)...)
			cmd.Env = append(inner.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=echo")
			cmd.ExtraFiles = []*os.File{f}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { d.stop(); cmd.Process.Kill(); cmd.Wait() })
			d.serves()
			d.until("pidfile", func() bool { return d.pid() != 0 })
			if strings.Contains(d.file("starts"), "fail") {
				t.Error(d.brief())
			}
			if name == "alone" {
				return
			}
			pid := d.pid()
			d.say("crash kill")
			d.restarted(pid)
		})
	}
}

func TestUnusedInheritedSocketsAreClosed(t *testing.T) {
	d := newTestd(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.path("other.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	inner := d.cmd("--monitor", "--pidfile", "--log-file")
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh", d.exe}, inner.Args[1:]...)...)
	cmd.Env = append(inner.Env, "LISTEN_FDS=1", "LISTEN_FDNAMES=other")
	cmd.ExtraFiles = []*os.File{f}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { d.stop(); cmd.Process.Kill(); cmd.Wait() })
	d.until("refusal", func() bool {
		c, err := net.Dial("unix", d.path("other.sock"))
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	d.logs("closing an inherited listening socket that nothing uses")
}

// TestOvsAppctlFindsTheDaemon has the stock client resolve the pidfile, which
// checks the lock and its holder, before and after a restart.
func TestOvsAppctlFindsTheDaemon(t *testing.T) {
	client, err := exec.LookPath("ovs-appctl")
	if err != nil {
		t.Skip("ovs-appctl is not installed")
	}
	d := newTestd(t)
	d.detach("--monitor", "--restart-delay=1ms")
	for _, how := range []string{"restart", "crash segv", "restart", "crash kill"} {
		pid := d.pid()
		cmd := exec.Command(client, "-T", "10", "-t", "testd", "version")
		cmd.Env = append(os.Environ(), "OVS_RUNDIR="+d.dir)
		if out, err := cmd.CombinedOutput(); err != nil || string(out) != fmt.Sprintf("pid %d at %s\n", pid, d.path(fmt.Sprintf("testd.%d.ctl", pid))) {
			t.Fatalf("%v: %s", err, out)
		}
		if left, _ := filepath.Glob(d.path("*.ctl")); len(left) != 2 {
			t.Errorf("control sockets: %v", left)
		}
		if got, want := readLink(d.path("testd.ctl")), fmt.Sprintf("testd.%d.ctl", pid); got != want {
			t.Errorf("the link leads to %s, want %s", got, want)
		}
		d.say(how)
		d.restarted(pid)
	}
	mon := parentOf(d.pid())
	syscall.Kill(mon, syscall.SIGTERM)
	d.gone(mon)
	if left, _ := filepath.Glob(d.path("*.ctl")); len(left) != 0 {
		t.Errorf("control sockets stay: %v", left)
	}
}

func readLink(path string) string {
	target, _ := os.Readlink(path)
	return target
}

// asRoot skips a test that needs to become another user.
func asRoot(t *testing.T) *user.User {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		t.Skip("there is no user nobody to become")
	}
	return u
}

func TestUser(t *testing.T) {
	u := asRoot(t)
	for name, args := range map[string][]string{
		"detached": nil, "monitored": {"--monitor"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newTestd(t)
			d.exe = copyProgram(d)
			if err := os.Chown(d.dir, mustInt(t, u.Uid), mustInt(t, u.Gid)); err != nil {
				t.Fatal(err)
			}
			d.detach(append(args, "--user=nobody")...)
			checkUser(t, d.pid(), u)
			if name == "monitored" {
				checkUser(t, parentOf(d.pid()), u)
				pid := d.pid()
				d.say("crash segv")
				pid = d.restarted(pid)
				checkUser(t, pid, u)
				mon := parentOf(pid)
				syscall.Kill(mon, syscall.SIGKILL)
				d.gone(mon)
				d.titled(pid, "serving without its monitor")
				d.say("restart")
				checkUser(t, d.restarted(pid), u)
				checkUser(t, pid, u) // now the monitor
			} else {
				d.say("restart")
				d.until("restart", func() bool { return strings.Count(d.file("starts"), "\n") == 2 })
				d.serves()
				checkUser(t, d.pid(), u)
			}
			for _, file := range []string{"testd.log", "testd.pid", "echo.sock"} {
				st, err := os.Stat(d.path(file))
				if err != nil {
					t.Fatal(err)
				}
				if got := fmt.Sprint(st.Sys().(*syscall.Stat_t).Uid); got != u.Uid {
					t.Errorf("%s belongs to %s", file, got)
				}
			}
		})
	}
}

// copyProgram puts the program where another user can execute it.
func copyProgram(d *testd) string {
	d.t.Helper()
	data, err := os.ReadFile(d.exe)
	if err != nil {
		d.t.Fatal(err)
	}
	path := d.path("program")
	if err := os.WriteFile(path, data, 0o755); err != nil {
		d.t.Fatal(err)
	}
	return path
}

func mustInt(t *testing.T, s string) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// checkUser asserts credentials: the user and group alone, and no more
// capabilities than two.
func checkUser(t *testing.T, pid int, u *user.User) {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	status := map[string]string{}
	for line := range strings.Lines(string(data)) {
		name, value, _ := strings.Cut(line, ":")
		status[name] = strings.Join(strings.Fields(value), " ")
	}
	const two = "0000000000004400" // NET_BIND_SERVICE and IPC_LOCK
	for name, want := range map[string]string{
		"Uid": strings.TrimSpace(strings.Repeat(u.Uid+" ", 4)), "Gid": strings.TrimSpace(strings.Repeat(u.Gid+" ", 4)),
		"Groups": "", "CapPrm": two, "CapEff": two, "CapBnd": two,
	} {
		if status[name] != want {
			t.Errorf("%s of pid %d: %q, want %q", name, pid, status[name], want)
		}
	}
}

func TestBadUsers(t *testing.T) {
	for _, spec := range []string{"no-such-user", "root:no-such-group", ":root"} {
		d := newTestd(t)
		if status, stderr := d.launch("--user=" + spec); status != 2 || !strings.Contains(stderr, "there is no ") {
			t.Errorf("%s: status %d: %s", spec, status, stderr)
		}
	}
}

// TestUpgrade replaces the program and sends HUP to the monitor: daemon and
// monitor become the new one, pid and connections stay.
func TestUpgrade(t *testing.T) {
	d := newTestd(t)
	d.exe = copyProgram(d)
	d.detach("--monitor")
	pid := d.pid()
	mon := parentOf(pid)
	c, err := net.Dial("unix", d.path("echo.sock"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r := bufio.NewReader(c)
	if err := ask(c, r, "hello"); err != nil {
		t.Fatal(err)
	}

	// A broken program changes nothing.
	broken := d.path("broken")
	if err := os.WriteFile(broken, []byte("#!/bin/sh\necho it is broken\nexit 1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	saved := d.path("saved")
	for _, step := range [][2]string{{d.exe, saved}, {broken, d.exe}} {
		if err := os.Rename(step[0], step[1]); err != nil {
			t.Fatal(err)
		}
	}
	syscall.Kill(mon, syscall.SIGHUP)
	d.logs("the new program would not start")
	if got := d.say("restart"); !strings.Contains(got, "exit status 1: it is broken") {
		t.Errorf("a planned restart to a broken program: %q", got)
	}
	if d.pid() != pid || parentOf(pid) != mon {
		t.Error("it was obeyed")
	}

	// A good one is a new file.
	d.exe = saved
	data, err := os.ReadFile(saved)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(d.path("new"), data, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(d.path("new"), d.path("program")); err != nil {
		t.Fatal(err)
	}
	syscall.Kill(mon, syscall.SIGHUP)
	next := d.restarted(pid)
	if got, err := answer(c, r, "hello"); err != nil || got != "2 hello" {
		t.Errorf("the connection: %q %v\n%s", got, err, d.brief())
	}
	for _, p := range []int{next, mon} {
		if got := link(p, "exe"); got != d.path("program") {
			t.Errorf("pid %d runs %s", p, got)
		}
	}
	if parentOf(next) != mon || comm(mon) != "testd-mon" {
		t.Errorf("parent %d (%s), want %d", parentOf(next), comm(mon), mon)
	}
	// And it is still supervised.
	d.say("crash segv")
	d.restarted(next)
}

func TestProgramThatIsGoneRestartsAllTheSame(t *testing.T) {
	d := newTestd(t)
	d.exe = copyProgram(d)
	d.detach("--monitor")
	pid := d.pid()
	if err := os.Remove(d.exe); err != nil {
		t.Fatal(err)
	}
	d.say("crash segv")
	next := d.restarted(pid)
	if comm(next) != "testd" {
		t.Errorf("short name %q", comm(next))
	}
}

// TestUnitFile has systemd check the unit that ships.
func TestUnitFile(t *testing.T) {
	analyze, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("systemd-analyze is not installed")
	}
	data, err := os.ReadFile("systemd/lockstepd.service")
	if err != nil {
		t.Fatal(err)
	}
	// The program need not be installed here.
	unit := strings.ReplaceAll(string(data), "/usr/local/sbin/lockstepd", "/bin/true")
	path := filepath.Join(t.TempDir(), "lockstepd.service")
	if err := os.WriteFile(path, []byte(unit), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(analyze, "verify", "--man=no", path).CombinedOutput()
	if err != nil || strings.Contains(string(out), "lockstepd.service") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestStageIsNotMeantForHands asserts that a forged stage is refused, not obeyed.
func TestStageIsNotMeantForHands(t *testing.T) {
	for _, value := range []string{"x", "0", "2", "-1", "99"} {
		d := newTestd(t)
		d.setenv("DAEMON_STAGE_FD=" + value)
		if status, stderr := d.launch(); status != 1 {
			t.Errorf("%s: status %d: %s", value, status, stderr)
		}
	}
	d := newTestd(t)
	d.setenv("DAEMON_STAGE_FD=3")
	for _, forged := range []any{
		map[string]any{"role": "emperor"}, map[string]any{"role": "daemon", "ready": 1},
		map[string]any{"files": []any{map[string]any{"fd": 0}}}, "nonsense",
	} {
		data, err := json.Marshal(forged)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(d.path("stage"), data, 0o644); err != nil {
			t.Fatal(err)
		}
		f, err := os.Open(d.path("stage"))
		if err != nil {
			t.Fatal(err)
		}
		cmd := d.cmd()
		cmd.ExtraFiles = []*os.File{f}
		if err := cmd.Run(); err == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("%s: %v", data, err)
		}
		f.Close()
	}
}

// TestCoreFilesAreLimitedToOne asserts that a crash leaves a core file where
// those are wanted, and that later crashes don't.
func TestCoreFilesAreLimitedToOne(t *testing.T) {
	pattern, err := os.ReadFile("/proc/sys/kernel/core_pattern")
	if err != nil || strings.HasPrefix(string(pattern), "|") || strings.Contains(string(pattern), "/") {
		t.Skip("core files do not go to the working folder here")
	}
	d := newTestd(t)
	inner := d.cmd("--detach", "--monitor", "--no-chdir", "--pidfile", "--log-file")
	cmd := exec.Command("/bin/sh", append([]string{"-c", `ulimit -c unlimited 2>/dev/null && exec "$@"; exit 99`, "sh", d.exe}, inner.Args[1:]...)...)
	cmd.Env, cmd.Dir = inner.Env, d.dir
	if err := cmd.Run(); cmd.ProcessState.ExitCode() == 99 {
		t.Skip("core files can't be allowed here")
	} else if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(d.stop)
	pid := d.pid()
	mon := parentOf(pid)
	d.say("crash panic")
	next := d.restarted(pid)
	d.logs(fmt.Sprintf("1 crash: pid %d died, ", pid))
	if !strings.Contains(d.log(), "killed (Aborted), panic: boom, core dumped") {
		t.Skip("the kernel dumped no core: " + d.brief())
	}
	for _, p := range []int{mon, next} {
		limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", p))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(limits)) {
			if f := strings.Fields(line); strings.HasPrefix(line, "Max core file size") && (f[4] != "0" || f[5] != "0") {
				t.Errorf("%s: %s", comm(p), line)
			}
		}
	}
}
