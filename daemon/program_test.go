package daemon_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/daemon"
	"github.com/lockstepd/lockstep/daemon/title"
)

// The test binary is also the program under test: executed with programVar
// set, it is a small daemon that echoes lines and obeys a few commands.
const (
	programVar = "DAEMON_TEST_PROGRAM" // the folder of its files
	startVar   = "DAEMON_TEST_START"   // how it starts, see testMain
	optionsVar = "DAEMON_TEST_OPTIONS" // see testOptions
	earlyVar   = "DAEMON_TEST_EARLY"   // if set, a later stage waits, before it is a daemon, for a file "go"
)

// testOptions are the parts of daemon.Options that tests vary.
type testOptions struct {
	StartTimeout, StopTimeout time.Duration
	Journal                   string
}

func TestMain(m *testing.M) {
	if dir := os.Getenv(programVar); dir != "" {
		t, args := title.Take()
		os.Exit(testProgram(dir, t, args))
	}
	// Daemons outlive their launchers: then they are ours to wait for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func testProgram(dir string, t *title.Title, args []string) int {
	if os.Getenv(earlyVar) != "" && os.Getenv("DAEMON_STAGE_FD") != "" {
		appendLine(filepath.Join(dir, "early"), fmt.Sprint(os.Getpid()))
		for !exists(filepath.Join(dir, "go")) {
			time.Sleep(time.Millisecond) // the program's, not the test's
		}
	}
	var f daemon.Flags
	var version bool
	var opts testOptions
	if s := os.Getenv(optionsVar); s != "" {
		if err := json.Unmarshal([]byte(s), &opts); err != nil {
			panic(err)
		}
	}
	status := 0
	cmd := &cobra.Command{Use: "testd", SilenceUsage: true, SilenceErrors: true}
	f.Register(cmd)
	cmd.Flags().BoolVar(&version, "version", false, "")
	cmd.SetArgs(daemon.Normalize(args[1:]))
	cmd.RunE = func(*cobra.Command, []string) error {
		if version {
			return nil
		}
		if err := f.Resolve(daemon.Places{Program: "testd", RunDir: dir, LogDir: dir}); err != nil {
			return err
		}
		status = daemon.Run(daemon.Options{
			Program: "testd", Version: "1.0", Args: args, Title: t, Flags: f, Modules: []string{"echo"},
			CrashDir: filepath.Join(dir, "crash"), ProbeArgs: []string{"--version"},
			StartTimeout: opts.StartTimeout, StopTimeout: opts.StopTimeout,
			SyslogPath: "none", JournalPath: "none",
		}, func(ctx context.Context, env *daemon.Env) error { return testMain(ctx, env, dir) })
		return nil
	}
	if err := cmd.Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "testd:", err)
		return 2
	}
	return status
}

// testMain is the daemon's function. The file "start" in dir, if it is there,
// takes precedence over the environment, so that tests can change how a
// restart goes.
func testMain(ctx context.Context, env *daemon.Env, dir string) error {
	how := os.Getenv(startVar)
	if data, err := os.ReadFile(filepath.Join(dir, "start")); err == nil {
		how = string(data)
	}
	appendLine(filepath.Join(dir, "starts"), how)
	switch how {
	case "exit7":
		os.Exit(7)
	case "exit0":
		os.Exit(0)
	case "mutter":
		fmt.Fprintln(os.Stderr, "the widget looks odd")
		return errors.New("cannot frob the widget")
	case "fail":
		return errors.New("cannot frob the widget")
	case "config":
		return &daemon.ConfigError{Err: errors.New("testd.toml:3:7: no such key\ntestd.toml:9:1: duplicate")}
	case "panic":
		panic("startup went wrong")
	case "segv":
		crash("segv")
	case "hang":
		select {}
	case "forking": // a child that outlives us must not hold up anyone
		startSleeper(dir)
		os.Exit(7)
	}
	s := &echoServer{env: env, dir: dir, conns: map[net.Conn]bool{}}
	s.stubborn, s.slow = how == "stubborn", how == "slow"
	return s.run(ctx)
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func appendLine(path, line string) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		panic(err)
	}
	defer f.Close()
	fmt.Fprintln(f, line)
}

func startSleeper(dir string) {
	p, err := os.StartProcess("/bin/sleep", []string{"sleep", "60"}, &os.ProcAttr{Env: []string{}, Dir: dir})
	if err != nil {
		panic(err)
	}
	appendLine(filepath.Join(dir, "sleeper"), fmt.Sprint(p.Pid))
}

// crash ends the process in the way of that name, and does not return.
func crash(how string) {
	switch how {
	case "segv":
		_ = syscall.Kill(os.Getpid(), syscall.SIGSEGV)
	case "kill":
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case "alrm", "pipe", "xcpu", "xfsz": // dies by the very signal, as C programs do
		sig := unix.SignalNum("SIG" + strings.ToUpper(how))
		signal.Reset(sig)
		dieBy(sig)
	case "panic":
		go func() { panic("boom") }()
	case "fatal": // an error that can't be recovered from
		var mu sync.Mutex
		mu.Unlock()
	case "map":
		m := map[int]int{}
		for range 4 {
			go func() {
				for i := range 1 << 30 {
					m[i%7] = i
				}
			}()
		}
	case "stack":
		debug.SetMaxStack(1 << 20)
		var f func(int) int
		f = func(n int) int { return f(n+1) + 1 }
		f(0)
	}
	select {}
}

// dieBy ends the process by a signal that Go would handle.
func dieBy(sig syscall.Signal) {
	act := [4]uintptr{} // SIG_DFL
	_, _, _ = syscall.RawSyscall6(unix.SYS_RT_SIGACTION, uintptr(sig), ptr(&act[0]), 0, 8, 0, 0)
	_ = syscall.Kill(os.Getpid(), sig)
}

// echoServer answers each line with itself.
type echoServer struct {
	env      *daemon.Env
	dir      string
	stubborn bool // does not stop when asked to
	slow     bool // asks for time to stop, and takes it

	wg    sync.WaitGroup
	mu    sync.Mutex // guards conns
	conns map[net.Conn]bool
}

func (s *echoServer) run(ctx context.Context) error {
	l, err := s.env.AdoptOrListen("echo", func() (net.Listener, error) {
		return net.Listen("unix", filepath.Join(s.dir, "echo.sock"))
	})
	if err != nil {
		return err
	}
	ctl, err := s.env.Control(func(path string) (net.Listener, error) {
		l, err := net.Listen("unix", path)
		if err != nil {
			return nil, err
		}
		link := filepath.Join(s.dir, "testd.ctl")
		if err := os.Symlink(filepath.Base(path), link); err != nil {
			return nil, err
		}
		return &tidyListener{l.(*net.UnixListener), link}, nil
	})
	if err != nil {
		return err
	}
	s.env.Watchdog(func(context.Context) error {
		_, err := os.Stat(filepath.Join(s.dir, "sick"))
		if err == nil {
			return errors.New("sick")
		}
		return nil
	})
	reload := s.env.Reload()
	for _, c := range s.env.Conns() {
		s.serve(c.Conn, string(c.State))
	}
	s.wg.Go(func() { s.accept(l) })
	if ctl != nil {
		s.wg.Go(func() { s.control(ctl) })
	}
	s.env.OnDump(func(w io.Writer) { fmt.Fprintln(w, "state of the echo server") })
	if err := s.env.Ready(); err != nil {
		return err
	}
	appendLine(filepath.Join(s.dir, "ready"), fmt.Sprint(os.Getpid()))
	for {
		select {
		case <-reload:
			appendLine(filepath.Join(s.dir, "reloads"), "reload")
			s.env.Reloaded(nil)
			continue
		case <-ctx.Done():
		}
		break
	}
	if s.stubborn {
		select {}
	}
	if s.slow {
		s.env.Extend(patience)
		for !exists(filepath.Join(s.dir, "finish")) {
			time.Sleep(time.Millisecond) // the program's, not the test's
		}
	}
	l.Close()
	if ctl != nil {
		ctl.Close()
	}
	s.closeConns()
	s.wg.Wait()
	return nil
}

// tidyListener removes its files by itself when closed.
type tidyListener struct {
	*net.UnixListener
	link string
}

func (l *tidyListener) Close() error {
	os.Remove(l.Addr().String())
	os.Remove(l.link)
	return l.UnixListener.Close()
}

func (s *echoServer) accept(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		s.serve(c, "0")
	}
}

// control answers every request as unixctl does.
func (s *echoServer) control(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		if _, err := c.Read(make([]byte, 4096)); err == nil {
			fmt.Fprintf(c, `{"id":0,"result":"pid %d at %s\n","error":null}`, os.Getpid(), l.Addr())
		}
		c.Close()
	}
}

// serve echoes lines, numbered; on a planned restart the number goes with the
// connection to the successor.
func (s *echoServer) serve(c net.Conn, state string) {
	s.mu.Lock()
	s.conns[c] = true
	s.mu.Unlock()
	n := 0
	fmt.Sscan(state, &n)
	s.wg.Go(func() {
		r := bufio.NewReader(c)
		for {
			line, err := r.ReadString('\n')
			if err != nil {
				if s.env.Restarting() && errors.Is(err, os.ErrDeadlineExceeded) {
					if err := s.env.HandOver("echo", c.(syscall.Conn), fmt.Append(nil, n)); err != nil {
						panic(err)
					}
				}
				c.Close()
				return
			}
			n++
			fmt.Fprintf(c, "%d %s", n, s.command(line))
		}
	})
}

func (s *echoServer) closeConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
}

func (s *echoServer) command(line string) string {
	word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
	switch word {
	case "crash":
		crash(rest)
	case "exit":
		s.env.Exit()
	case "quit": // with a status, and not in order
		status, err := strconv.Atoi(rest)
		if err != nil {
			panic(err)
		}
		os.Exit(status)
	case "restart":
		if err := s.env.Restart(context.Background()); err != nil {
			return strings.ReplaceAll(err.Error(), "\n", "; ") + "\n"
		}
	case "alone":
		select {
		case <-s.env.MonitorGone():
			return "true\n"
		default:
			return "false\n"
		}
	case "pid":
		return fmt.Sprintln(os.Getpid())
	case "level":
		if err := s.env.Vlog().Set(rest); err != nil {
			return fmt.Sprintln(err)
		}
	case "levels":
		return strings.ReplaceAll(s.env.Vlog().ListText(), "\n", ";") + "\n"
	case "fds":
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			panic(err)
		}
		return fmt.Sprintln(len(entries) - 1)
	case "mutter": // as a library may that knows of no log
		fmt.Fprintln(os.Stderr, rest)
	case "status":
		s.env.Status(rest)
	}
	return line
}
