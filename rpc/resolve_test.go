package rpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/rpc/unixsock"
)

// holdLock is the other process of the tests of Resolve: it makes a pidfile,
// locks it, and waits for its standard input to end.
func holdLock() bool {
	path := os.Getenv("LOCKSTEP_TEST_PIDFILE")
	if path == "" {
		return false
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		err = unix.FcntlFlock(f.Fd(), unix.F_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	}
	fmt.Println(os.Getpid(), err)
	io.Copy(io.Discard, os.Stdin)
	f.Close()
	return true
}

// daemon starts the other process and returns its pid.
func daemon(t *testing.T, pidfile string) int {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), "LOCKSTEP_TEST_PIDFILE="+pidfile)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stdin.Close()
		cmd.Wait()
	})
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil || line != fmt.Sprintf("%d <nil>\n", cmd.Process.Pid) {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	return cmd.Process.Pid
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestResolveFindsTheHolderOfThePidfile(t *testing.T) {
	dir := t.TempDir()
	pidfile := filepath.Join(dir, "testd.pid")
	pid := daemon(t, pidfile)
	socket := filepath.Join(dir, fmt.Sprintf("testd.%d.ctl", pid))
	stable := filepath.Join(dir, "testd.ctl")

	for _, tt := range []struct {
		name, content string
		sockets       []string
		want, err     string
	}{
		{"as it should be", fmt.Sprintf("%d\n", pid), []string{socket}, socket, ""},
		{"without a newline", strconv.Itoa(pid), []string{socket, stable}, socket, ""},
		{"another number, as from another PID namespace", "1\n", []string{stable}, stable, ""},
		{"another number, and nothing else", "1\n", nil, "", fmt.Sprintf("names process 1, but process %d holds its lock", pid)},
		{"no number", "x\n", nil, "", `it holds "x", not a process id`},
		{"an empty file", "", nil, "", `it holds "", not a process id`},
		{"a negative number", "-3\n", nil, "", `it holds "-3", not a process id`},
		{"no socket", fmt.Sprintf("%d\n", pid), nil, "", "no such file or directory (is the daemon running?)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			write(t, pidfile, tt.content)
			for _, s := range tt.sockets {
				write(t, s, "")
				defer os.Remove(s)
			}
			got, err := Resolve("testd", dir)
			if got != tt.want || (err == nil) != (tt.err == "") || (err != nil && !strings.Contains(err.Error(), tt.err)) {
				t.Errorf("%q, %v", got, err)
			}
			if err != nil && !errors.Is(err, ErrUnreachable) {
				t.Errorf("%v is no ErrUnreachable", err)
			}
		})
	}
}

func TestResolveWithoutADaemon(t *testing.T) {
	dir := t.TempDir()
	if _, err := Resolve("testd", dir); !errors.Is(err, os.ErrNotExist) || !strings.HasSuffix(err.Error(), "(is the daemon running?)") {
		t.Errorf("no pidfile: %v", err)
	}
	write(t, filepath.Join(dir, "testd.pid"), "1\n")
	if _, err := Resolve("testd", dir); !errors.Is(err, errNotRunning) || !errors.Is(err, ErrUnreachable) {
		t.Errorf("a pidfile that nobody holds: %v", err)
	}
	stable := filepath.Join(dir, "testd.ctl")
	write(t, stable, "")
	if got, err := Resolve("testd", dir); got != stable || err != nil {
		t.Errorf("the stable name: %q, %v", got, err)
	}
	for target, want := range map[string]string{"/run/x.ctl": "/run/x.ctl", "./x": "./x", "a/b": "a/b"} {
		if got, err := Resolve(target, dir); got != want || err != nil {
			t.Errorf("%s: %q, %v", target, got, err)
		}
	}
	if _, err := Resolve("", dir); err == nil {
		t.Error("an empty target is something")
	}
}

// The stock client and ours find the same daemon by the name of its program.
func TestStockClientFindsUsByName(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("OVS_RUNDIR", dir)
	pidfile := filepath.Join(dir, "testd.pid")
	pid := daemon(t, pidfile)
	write(t, pidfile, fmt.Sprintf("%d\n", pid))
	path := filepath.Join(dir, fmt.Sprintf("testd.%d.ctl", pid))
	ln, err := ListenUnix(path, ListenOptions{Link: filepath.Join(dir, "testd.ctl")})
	if err != nil {
		t.Fatal(err)
	}
	s := serveOn(t, ln, path, ServerOptions{})
	if stdout, stderr, code := appctl(t, "testd", "version"); code != 0 || stdout != "testd (lockstep) 1.2.3\n" {
		t.Errorf("the stock client: exit %d, %q, %q", code, stdout, stderr)
	}
	for _, target := range []string{"testd", "unix:" + path, filepath.Join(dir, "testd.ctl")} {
		c, err := Dial(t.Context(), target, DialOptions{Rundir: dir})
		if err != nil {
			t.Fatal(err)
		}
		if text, err := c.CallText(t.Context(), "echo", target); text != target+"\n" || err != nil {
			t.Errorf("%s: %q, %v", target, text, err)
		}
		c.Close()
	}
	if err := s.stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := Dial(t.Context(), "testd", DialOptions{Rundir: dir}); !errors.Is(err, ErrUnreachable) {
		t.Errorf("after the end: %v", err)
	}
}

func TestDialSaysWhyItCannot(t *testing.T) {
	dir := t.TempDir()
	dead := filepath.Join(dir, "dead")
	ln, err := ListenUnix(dead, ListenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(dead, dead+"2"); err != nil {
		t.Fatal(err)
	}
	ln.Close()
	for _, tt := range []struct {
		target, want string
		is           error
	}{
		{dir + "/none", "cannot reach " + dir + "/none: no such file or directory (is the daemon running?)", unix.ENOENT},
		{dead + "2", "cannot reach " + dead + "2: connection refused (is the daemon running?)", unix.ECONNREFUSED},
		{dir, "cannot reach " + dir + ": it exists and is not a socket", unixsock.ErrNotSocket},
		{"ssl:127.0.0.1:1", "cannot reach ssl:127.0.0.1:1: only Unix sockets can be reached from here", ErrUnreachable},
	} {
		_, err := Dial(t.Context(), tt.target, DialOptions{})
		if err == nil || err.Error() != tt.want || !errors.Is(err, tt.is) || !errors.Is(err, ErrUnreachable) {
			t.Errorf("%s: %v", tt.target, err)
		}
	}
	denied := &UnreachableError{Target: "x", Cause: unix.EACCES}
	if !strings.HasSuffix(denied.Error(), "(try as root, or as a member of the socket's group)") {
		t.Errorf("%v", denied)
	}
}

func TestCallTimesOutAndClosesTheConnection(t *testing.T) {
	b := newBlocking("block", time.Hour)
	s := serve(t, ServerOptions{}, b.Command)
	for name, call := range map[string]func(context.Context, *Client) error{
		"Call":     func(ctx context.Context, c *Client) error { return c.Call(ctx, "block", nil, nil) },
		"CallText": func(ctx context.Context, c *Client) error { _, err := c.CallText(ctx, "block"); return err },
	} {
		c := s.dial(t, DialOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		if err := call(ctx, c); !errors.Is(err, ErrTimeout) || err.Error() != "calling block: timed out waiting for the answer" {
			t.Errorf("%s: %v", name, err)
		}
		receive(t, c.Done(), "the connection to close")
		receive(t, b.ended, "the command to be cancelled")
		if err := call(t.Context(), c); !errors.Is(err, ErrLost) {
			t.Errorf("%s on a closed connection: %v", name, err)
		}

		c = s.dial(t, DialOptions{})
		ctx, cancel = context.WithCancel(t.Context())
		go func() {
			<-b.began
			<-b.began
			cancel()
		}()
		if err := call(ctx, c); !errors.Is(err, context.Canceled) {
			t.Errorf("%s, cancelled: %v", name, err)
		}
		receive(t, b.ended, "the command to be cancelled")
	}
}

func TestCallsOfOneClientRunAtOnce(t *testing.T) {
	s := serve(t, ServerOptions{})
	c := s.dial(t, DialOptions{})
	errs := make(chan error)
	const n = 50
	for i := range n {
		go func() {
			var got string
			want := strconv.Itoa(i)
			err := c.Call(t.Context(), "echo", []string{want}, &got)
			if i%2 == 0 {
				got, err = c.CallText(t.Context(), "echo", want)
				got = strings.TrimSuffix(got, "\n")
			}
			if err == nil && got != want {
				err = fmt.Errorf("%q instead of %q", got, want)
			}
			errs <- err
		}()
	}
	for range n {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}

func TestServerThatGoesAway(t *testing.T) {
	b := newBlocking("block", time.Hour)
	s := serve(t, ServerOptions{}, b.Command)
	c := s.dial(t, DialOptions{})
	go func() {
		<-b.began
		s.stop()
	}()
	if err := c.Call(t.Context(), "block", nil, nil); err == nil || err.Error() != "the daemon is stopping" {
		t.Errorf("a call in progress: %v", err)
	}
	receive(t, c.Done(), "the end of the connection")
	if err := c.Call(t.Context(), "echo", nil, nil); !errors.Is(err, ErrLost) || !errors.Is(err, ErrUnreachable) {
		t.Errorf("a later call: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
}

// 1,000 clients one after the other, and 200 at once, find the server working
// and leave nothing behind.
func TestManyClients(t *testing.T) {
	s := serve(t, ServerOptions{})
	ask := func() error {
		c, err := Dial(t.Context(), s.path, DialOptions{})
		if err != nil {
			return err
		}
		defer c.Close()
		text, err := c.CallText(t.Context(), "echo", "x")
		if err == nil && text != "x\n" {
			err = fmt.Errorf("answered %q", text)
		}
		return err
	}
	for range 1000 {
		if err := ask(); err != nil {
			t.Fatal(err)
		}
	}
	errs := make(chan error)
	for range 200 {
		go func() { errs <- ask() }()
	}
	for range 200 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
}
