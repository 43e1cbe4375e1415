package ctl

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/rpc"
)

// typist is a keyboard of the tests.
type typist struct {
	keys    chan string
	resized chan struct{}
	closed  atomic.Bool
}

func (k *typist) Keys() <-chan string      { return k.keys }
func (k *typist) Resized() <-chan struct{} { return k.resized }
func (k *typist) Close() error             { k.closed.Store(true); return nil }

// screens runs top in a bubble.
func screens(d *daemon, line string) (*running, *typist) {
	k := &typist{keys: make(chan string), resized: make(chan struct{})}
	p := start(d, line, func(e *Env) {
		e.OutTerm = screenOf{80, 24}
		e.Keyboard = func() (Keyboard, error) { return k, nil }
	})
	return p, k
}

// lastScreen is what the terminal shows now.
func (p *running) lastScreen() string {
	out := p.out.String()
	s := out[strings.LastIndex(out, "\x1b[H")+len("\x1b[H"):]
	return strings.NewReplacer("\x1b[K\r", "", "\x1b[K", "").Replace(s)
}

func cluster() *daemon {
	begun := time.Now()
	return &daemon{answers: map[string]any{
		"status": healthy,
		"device/show": func(string) (string, error) {
			return fmt.Sprintf(`{"name":"r0","writes":%d,"write_bytes":%d,"write_p99_us":1500}`, time.Since(begun).Milliseconds(), time.Since(begun).Milliseconds()<<12), nil
		},
	}}
}

func TestTop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, k := screens(cluster(), "top")
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		if got := p.lastScreen(); !strings.Contains(got, "alpha (id 0): ") || !strings.Contains(got, "3.9 MiB/s") || !strings.Contains(got, "1.5 ms") || strings.Count(got, "\n") != 23 {
			t.Errorf("screen:\n%s", got)
		}
		k.keys <- "?"
		synctest.Wait()
		if got := p.lastScreen(); !strings.Contains(got, "this help; any key leaves it") {
			t.Errorf("help:\n%s", got)
		}
		k.resized <- struct{}{}
		k.keys <- "x"
		k.keys <- "q"
		if code := <-p.code; code != 0 || p.err.String() != "" {
			t.Errorf("exit %d: %s", code, p.err.String())
		}
		if out := p.out.String(); !strings.HasPrefix(out, enterScreen) || !strings.HasSuffix(out, leaveScreen) || !k.closed.Load() {
			t.Errorf("the terminal was not given back: %q", out)
		}
	})
}

// TestTopLivesThroughAnAbsentDaemon: it says so, keys go on working.
func TestTopLivesThroughAnAbsentDaemon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := cluster()
		var away atomic.Bool
		d.dials = func(int) error {
			if away.Load() {
				return &rpc.UnreachableError{Target: "lockstepd", Cause: &pathErr{}}
			}
			return nil
		}
		p, k := screens(d, "top")
		away.Store(true)
		d.last().Close()
		time.Sleep(2500 * time.Millisecond)
		synctest.Wait()
		if got := p.lastScreen(); !strings.Contains(got, "cannot reach lockstepd: it does not run") || !strings.Contains(got, "alpha (id 0)") {
			t.Errorf("screen:\n%s", got)
		}
		away.Store(false)
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if got := p.lastScreen(); strings.Contains(got, "cannot reach") {
			t.Errorf("screen:\n%s", got)
		}
		k.keys <- "ctrl-c"
		if code := <-p.code; code != 0 {
			t.Errorf("exit %d", code)
		}
	})
}

func TestTopEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, _ := screens(cluster(), "-T 3 top")
		if code := <-p.code; code != exitTimeout || !strings.HasSuffix(p.out.String(), leaveScreen) {
			t.Errorf("after the time limit: exit %d", code)
		}
		p, k := screens(cluster(), "top")
		close(k.keys)
		if code := <-p.code; code != 0 {
			t.Errorf("after the end of input: exit %d", code)
		}
		p, _ = screens(cluster(), "top")
		p.interrupt()
		if code := <-p.code; code != 0 || !strings.HasSuffix(p.out.String(), leaveScreen) {
			t.Errorf("after a signal: exit %d", code)
		}
	})
	d := &daemon{dials: func(int) error { return errors.New("away") }}
	got := run(t, d, "top", func(e *Env) {
		e.OutTerm = screenOf{80, 24}
		e.Keyboard = func() (Keyboard, error) { return nil, errors.New("no") }
	})
	if got.code != exitUnreachable || got.out != "" {
		t.Errorf("without a daemon: %+v", got)
	}
	got = run(t, answers("status", healthy), "top", func(e *Env) {
		e.OutTerm = screenOf{80, 24}
		e.Keyboard = func() (Keyboard, error) { return nil, errors.New("no") }
	})
	if got.code != exitFailed || !strings.Contains(got.err, "cannot show the full screen: the terminal can't be taken over: no") {
		t.Errorf("without a keyboard: %+v", got)
	}
}

// asProgram makes this test binary lockstepctl: the arguments of a run.
const asProgram = "LOCKSTEPCTL_TEST_ARGS"

func TestMain(m *testing.M) {
	if args := os.Getenv(asProgram); args != "" {
		os.Exit(Main(strings.Fields(args), OS(testRelease)))
	}
	os.Exit(m.Run())
}

// terminal opens a pseudo terminal of 80 by 24.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		t.Skipf("no pseudo terminals here: %v", err)
	}
	t.Cleanup(func() { ours.Close() })
	conn, err := ours.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var n int
	if err := conn.Control(func(fd uintptr) {
		if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
			n, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
		}
		if err == nil {
			err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 80})
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { theirs.Close() })
	return ours, theirs
}

// onTerminal starts this program on a terminal of its own.
func onTerminal(t *testing.T, args string) (ours *os.File, cmd *exec.Cmd) {
	t.Helper()
	ours, theirs := terminal(t)
	cmd = exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), asProgram+"="+args, "TERM=xterm", "NO_COLOR=")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() }) // only where the test has failed
	return ours, cmd
}

// readUntil reads the terminal until it has shown want.
func readUntil(t *testing.T, ours *os.File, want string) {
	t.Helper()
	if err := ours.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	var shown bytes.Buffer
	buf := make([]byte, 4096)
	for !bytes.Contains(shown.Bytes(), []byte(want)) {
		n, err := ours.Read(buf)
		shown.Write(buf[:n])
		if err != nil {
			t.Fatalf("%v while waiting for %q; shown so far: %q", err, want, shown.String())
		}
	}
}

// TestTopOnARealTerminal drives the program on a pseudo terminal, against a
// real socket: keys arrive one by one, a new size is noticed, and the terminal
// is given back.
func TestTopOnARealTerminal(t *testing.T) {
	path := serve(t)
	ours, cmd := onTerminal(t, "-t "+path+" top")
	readUntil(t, ours, "q quit  s sort (name)")
	write := func(keys string) {
		if _, err := ours.WriteString(keys); err != nil {
			t.Fatal(err)
		}
	}
	write("s")
	readUntil(t, ours, "s sort (state)")
	write("\x1b[B/r0")
	readUntil(t, ours, "filter: r0_")
	write("\r")
	readUntil(t, ours, "with r0")
	conn, err := ours.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: 30, Col: 120})
	}); err != nil {
		t.Fatal(err)
	}
	if err != nil {
		t.Fatal(err)
	}
	readUntil(t, ours, "\x1b[2J")
	write("\x03")
	readUntil(t, ours, leaveScreen)
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestInterruptsOnARealTerminal: Ctrl-C ends a stream with 0, as its usual end.
func TestInterruptsOnARealTerminal(t *testing.T) {
	path := serve(t)
	ours, cmd := onTerminal(t, "-t "+path+" events")
	readUntil(t, ours, "applied")
	if _, err := ours.WriteString("\x03"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// TestStatusOnARealTerminal has colour and fits.
func TestStatusOnARealTerminal(t *testing.T) {
	ours, cmd := onTerminal(t, "-t "+serve(t)+" status")
	readUntil(t, ours, "\x1b[32mhealthy\x1b[0m")
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}
