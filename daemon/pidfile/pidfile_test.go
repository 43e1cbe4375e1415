package pidfile

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// The test binary is also the other process: with holdVar set it takes that
// pidfile, says what came of it, and holds it until its input ends.
const (
	holdVar      = "PIDFILE_TEST_HOLD"
	overwriteVar = "PIDFILE_TEST_OVERWRITE"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(holdVar); path != "" {
		hold(path)
		return
	}
	os.Exit(m.Run())
}

func hold(path string) {
	take := Create
	if os.Getenv(overwriteVar) != "" {
		take = Overwrite
	}
	f, err := take(path)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("ok")
	_, _ = bufio.NewReader(os.Stdin).ReadString('\n')
	if err := f.Remove(); err != nil {
		fmt.Println(err)
	}
}

// other is another process that takes a pidfile.
type other struct {
	t      *testing.T
	cmd    *exec.Cmd
	stdin  interface{ Close() error }
	answer string
}

func start(t *testing.T, path string, env ...string) *other {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(append(os.Environ(), holdVar+"="+path), env...)
	return startCmd(t, cmd)
}

func startCmd(t *testing.T, cmd *exec.Cmd) *other {
	t.Helper()
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	o := &other{t, cmd, in, strings.TrimSpace(line)}
	t.Cleanup(o.end)
	return o
}

func (o *other) end() {
	o.stdin.Close()
	if o.cmd.ProcessState == nil {
		o.cmd.Wait()
	}
}

func content(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func onlyFile(t *testing.T, path string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(path) {
			t.Errorf("left behind: %s", e.Name())
		}
	}
}

func TestCreateAndRemove(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pid")
	o := start(t, path)
	if want := fmt.Sprintf("%d\n", o.cmd.Process.Pid); content(t, path) != want {
		t.Errorf("contents %q, want %q", content(t, path), want)
	}
	onlyFile(t, path)
	_, err := Create(path)
	running, ok := errors.AsType[*RunningError](err)
	if !ok || running.PID != o.cmd.Process.Pid {
		t.Fatalf("got %v", err)
	}
	if want := fmt.Sprintf("%s: already running as pid %d, aborting", path, running.PID); err.Error() != want {
		t.Errorf("got %s, want %s", err, want)
	}
	o.end()
	if _, err := os.Stat(path); err == nil {
		t.Error("the file stays")
	}
}

// TestLeftovers takes over whatever an ended process left, also one of another
// pid namespace, whose number here is that of a living process or of none.
func TestLeftovers(t *testing.T) {
	for name, data := range map[string]string{
		"dead pid": "4194000\n", "pid of a living process": "1\n", "no newline": "17", "empty": "", "nonsense": "x\x00y", "ours": fmt.Sprintln(os.Getpid()),
	} {
		path := filepath.Join(t.TempDir(), "x.pid")
		if err := os.WriteFile(path, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
		if o := start(t, path); o.answer != "ok" {
			t.Errorf("%s: %s", name, o.answer)
		}
		onlyFile(t, path)
	}
	path := filepath.Join(t.TempDir(), "x.pid")
	o := start(t, path)
	o.cmd.Process.Signal(syscall.SIGKILL)
	o.cmd.Wait()
	if o := start(t, path); o.answer != "ok" {
		t.Errorf("after a kill: %s", o.answer)
	}
}

func TestAnotherPIDNamespace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can make a pid namespace")
	}
	path := filepath.Join(t.TempDir(), "x.pid")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holdVar+"="+path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	o := startCmd(t, cmd)
	if o.answer != "ok" {
		t.Fatal(o.answer)
	}
	if _, err := Create(path); err == nil || !strings.Contains(err.Error(), "already running") {
		t.Errorf("held by pid 1 of another namespace: %v", err)
	}
	o.end()
	if f, err := Create(path); err != nil {
		t.Error(err)
	} else if err := f.Remove(); err != nil {
		t.Error(err)
	}
}

func TestOneOfMany(t *testing.T) {
	for _, leftover := range []bool{false, true} {
		path := filepath.Join(t.TempDir(), "x.pid")
		if leftover {
			if err := os.WriteFile(path, []byte("1\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		const n = 12
		answers := make(chan string, n)
		var cmds []*other
		for range n {
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), holdVar+"="+path)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			o := &other{t: t, cmd: cmd, stdin: in}
			cmds = append(cmds, o)
			go func() {
				line, _ := bufio.NewReader(out).ReadString('\n')
				answers <- strings.TrimSpace(line)
			}()
		}
		won := 0
		for range n {
			switch a := <-answers; {
			case a == "ok":
				won++
			case !strings.Contains(a, "already running as pid "):
				t.Errorf("answer %q", a)
			}
		}
		if won != 1 {
			t.Errorf("leftover %v: %d of %d starts succeeded", leftover, won, n)
		}
		for _, o := range cmds {
			o.end()
		}
		if _, err := os.Stat(path); err == nil {
			t.Error("the file stays")
		}
	}
}

func TestOverwriteIsNotLost(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.pid")
	first := start(t, path)
	second := start(t, path, overwriteVar+"=1")
	if second.answer != "ok" {
		t.Fatal(second.answer)
	}
	first.end()
	if want := fmt.Sprintf("%d\n", second.cmd.Process.Pid); content(t, path) != want {
		t.Errorf("contents %q, want %q", content(t, path), want)
	}
	if o := start(t, path); !strings.Contains(o.answer, fmt.Sprintf("already running as pid %d", second.cmd.Process.Pid)) {
		t.Errorf("got %s", o.answer)
	}
	onlyFile(t, path)
}

func TestBadPlaces(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := syscall.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		fifo: "not a regular file", dir: "is a directory", filepath.Join(dir, "no", "such"): "no such file",
	} {
		if _, err := Create(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("17\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if pid := Parse(data); pid < 0 || pid > 1<<22 {
			t.Error(pid)
		}
	})
}
