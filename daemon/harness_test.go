package daemon_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// patience bounds every wait for something that must happen.
const patience = 20 * time.Second

// testd is one instance of the program under test.
type testd struct {
	t    testing.TB
	dir  string
	env  []string
	exe  string
	opts testOptions
}

func newTestd(t testing.TB) *testd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Short: socket paths have 107 bytes.
	dir, err := os.MkdirTemp("", "testd")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return &testd{t: t, dir: dir, exe: exe}
}

func (d *testd) path(name string) string { return filepath.Join(d.dir, name) }

func (d *testd) setenv(kv string) { d.env = append(d.env, kv) }

func (d *testd) cmd(args ...string) *exec.Cmd {
	opts, err := json.Marshal(d.opts)
	if err != nil {
		d.t.Fatal(err)
	}
	cmd := exec.Command(d.exe, args...)
	cmd.Dir = d.dir
	cmd.Args[0] = "testd"
	cmd.Env = append([]string{programVar + "=" + d.dir, optionsVar + "=" + string(opts), "PATH=" + os.Getenv("PATH")}, d.env...)
	return cmd
}

// launch runs the program until it returns, as a shell would: it has returned
// when its standard error is closed, too.
func (d *testd) launch(args ...string) (status int, stderr string) {
	d.t.Helper()
	var buf bytes.Buffer
	cmd := d.cmd(args...)
	cmd.Stderr = &buf
	cmd.Stdout = &buf
	err := cmd.Run()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if ws := exit.Sys().(syscall.WaitStatus); ws.Signaled() {
			return 128 + int(ws.Signal()), buf.String()
		}
		return exit.ExitCode(), buf.String()
	}
	if err != nil {
		d.t.Fatal(err)
	}
	return 0, buf.String()
}

// detach launches in the background and sees to the end of what is there when the test ends.
func (d *testd) detach(args ...string) {
	d.t.Helper()
	status, stderr := d.launch(append([]string{"--detach", "--pidfile", "--log-file"}, args...)...)
	if status != 0 {
		d.t.Fatalf("status %d: %s\n%s", status, stderr, d.log())
	}
	d.t.Cleanup(func() { d.stop() })
}

// start runs in the foreground; the command's end is waited for by the test.
func (d *testd) start(args ...string) *exec.Cmd {
	d.t.Helper()
	cmd := d.cmd(append([]string{"--pidfile", "--log-file"}, args...)...)
	cmd.Stderr = &bytes.Buffer{}
	if err := cmd.Start(); err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() {
		if cmd.ProcessState == nil {
			cmd.Process.Kill()
			cmd.Wait()
		}
		d.stop()
	})
	d.serves()
	return cmd
}

// stop ends monitor and daemon, if they are still there.
func (d *testd) stop() {
	if pid := d.pid(); pid != 0 {
		if parent := parentOf(pid); comm(parent) == "testd-mon" {
			_ = syscall.Kill(parent, syscall.SIGTERM)
			d.gone(parent)
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		d.gone(pid)
	}
}

// pid reads the pidfile, 0 without one.
func (d *testd) pid() int {
	data, err := os.ReadFile(d.path("testd.pid"))
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(data)))
	return pid
}

func (d *testd) log() string {
	data, _ := os.ReadFile(d.path("testd.log"))
	return string(data)
}

// logs waits for a line with text in the log: its writers write in their own
// time, so that what they saw can be seen before they say so.
func (d *testd) logs(text string) {
	d.t.Helper()
	d.until(fmt.Sprintf("%q in the log", text), func() bool { return strings.Contains(d.log(), text) })
}

// titled waits until `ps` shows a title with text: a process changes it in its own time.
func (d *testd) titled(pid int, text string) {
	d.t.Helper()
	d.until(fmt.Sprintf("%q in the title of pid %d", text, pid), func() bool { return strings.Contains(psTitle(pid), text) })
}

// brief is the log without the bulk of crash reports, for messages.
func (d *testd) brief() string {
	var b strings.Builder
	for line := range strings.Lines(d.log()) {
		if !strings.Contains(line, "|crash(monitor)|") && !strings.Contains(line, "|dump|") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func (d *testd) file(name string) string {
	data, err := os.ReadFile(d.path(name))
	if err != nil {
		return ""
	}
	return string(data)
}

// until waits for a condition; the state of another process has no channel to wait on.
func (d *testd) until(what string, ok func() bool) {
	d.t.Helper()
	deadline := time.Now().Add(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Now().After(deadline) {
			d.t.Fatalf("waited in vain: %s\n%s", what, d.brief())
		}
		<-tick.C
	}
}

// serves waits until the echo service answers and its daemon is ready.
func (d *testd) serves() {
	d.t.Helper()
	d.until("service", func() bool {
		c, err := net.Dial("unix", d.path("echo.sock"))
		if err != nil {
			return false
		}
		defer c.Close()
		answer, err := answer(c, bufio.NewReader(c), "pid")
		_, pid, _ := strings.Cut(answer, " ")
		// It answers a moment before it says that it is ready; a crash in between is a failed start.
		return err == nil && strings.Contains(d.file("ready"), pid+"\n")
	})
}

// ask sends a line and reads the answer.
func ask(c net.Conn, r *bufio.Reader, line string) error {
	_, err := answer(c, r, line)
	return err
}

func answer(c net.Conn, r *bufio.Reader, line string) (string, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := fmt.Fprintln(c, line); err != nil {
		return "", err
	}
	s, err := r.ReadString('\n')
	return strings.TrimSpace(s), err
}

// say sends one command on a connection of its own and returns the answer,
// without its number; "" if the daemon died of it.
func (d *testd) say(line string) string {
	d.t.Helper()
	c, err := net.Dial("unix", d.path("echo.sock"))
	if err != nil {
		d.t.Fatalf("%v\n%s", err, d.log())
	}
	defer c.Close()
	s, err := answer(c, bufio.NewReader(c), line)
	if err != nil {
		return ""
	}
	_, rest, _ := strings.Cut(s, " ")
	return rest
}

// restarted waits until another daemon than old serves, and returns its pid.
func (d *testd) restarted(old int) int {
	d.t.Helper()
	d.until("restart", func() bool { pid := d.pid(); return pid != 0 && pid != old })
	d.serves()
	return d.pid()
}

// gone waits until a process has ended, and reaps it if it became our child.
func (d *testd) gone(pid int) {
	d.t.Helper()
	if pid == 0 {
		return
	}
	d.until(fmt.Sprintf("end of pid %d (%s)", pid, comm(pid)), func() bool { return ended(pid) })
}

func ended(pid int) bool {
	var ws unix.WaitStatus
	if got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil); err == nil && got == pid {
		return true
	}
	return unix.Kill(pid, 0) == unix.ESRCH
}

// stat reads fields of /proc/PID/stat: parent, group and session.
func stat(pid int) (ppid, pgid, sid int) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return
	}
	s := string(data)
	var state string
	fmt.Sscan(s[strings.LastIndex(s, ")")+1:], &state, &ppid, &pgid, &sid)
	return
}

func parentOf(pid int) int {
	ppid, _, _ := stat(pid)
	return ppid
}

func comm(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return strings.TrimSpace(string(data))
}

func psTitle(pid int) string {
	data, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return strings.TrimRight(strings.ReplaceAll(string(data), "\x00", " "), " ")
}

// cwd and fd look into a process.
func link(pid int, name string) string {
	s, _ := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, name))
	return s
}
