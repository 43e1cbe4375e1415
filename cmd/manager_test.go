package cmd_test

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/nbdio"
)

// manager is a service manager as far as a daemon sees one: the socket on
// which it is told how the daemon is.
type manager struct {
	t    *testing.T
	conn *net.UnixConn
	seen []string // messages, in order
}

// manage has a service manager start the node's next daemon.
func manage(t *testing.T, n *cluster.Node, more ...string) *manager {
	t.Helper()
	path := filepath.Join(n.Run, "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	n.Env = append([]string{"NOTIFY_SOCKET=" + path}, more...)
	return &manager{t: t, conn: c}
}

// next reads one message; it waits until the given time.
func (m *manager) next(until time.Time) (string, error) {
	buf := make([]byte, 8192)
	if err := m.conn.SetReadDeadline(until); err != nil {
		return "", err
	}
	n, err := m.conn.Read(buf)
	if err != nil {
		return "", err
	}
	m.seen = append(m.seen, string(buf[:n]))
	return string(buf[:n]), nil
}

// await reads messages until one holds the text, and returns that.
func (m *manager) await(text string) string {
	m.t.Helper()
	until := time.Now().Add(patience)
	for {
		msg, err := m.next(until)
		if err != nil {
			m.t.Fatalf("no message with %q: %v; seen: %q", text, err, m.seen)
		}
		if strings.Contains(msg, text) {
			return msg
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
	buf := make([]byte, 8192)
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

// TestUnderAServiceManager plays systemd for a real daemon: it is told of the
// start, of the health in words, of a reload and of the stop, and its watchdog
// is fed for as long as commands are answered, not for as long as a process lives.
func TestUnderAServiceManager(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{"alone": nil, "monitored": {"--monitor"}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			cfg := quick()
			cfg.Nodes = []string{"alpha", "beta"}
			c := layOut(t, cfg, nil)
			alpha, beta := c.Node("alpha"), c.Node("beta")
			alpha.Flags = append(flags[:len(flags):len(flags)], "--log-file="+filepath.Join(alpha.Run, "log"))
			m := manage(t, alpha, "WATCHDOG_USEC=600000")
			if err := c.Start(within(t, patience)); err != nil {
				t.Fatal(err)
			}
			if msg := m.await("READY=1"); !strings.Contains(msg, fmt.Sprintf("MAINPID=%d", alpha.Pid())) {
				t.Errorf("ready: %q, and the process to watch is %d", msg, alpha.Pid())
			}
			m.await("STATUS=alpha serves 1 device, all is well")
			beta.Kill9()
			m.await("STATUS=alpha serves 1 device, failed: device r0: no quorum")
			if out, err := alpha.Lockstepctl(within(t, patience), "service", "show", "cluster"); err != nil || !strings.Contains(out, "beta is ") {
				t.Errorf("the service is well without beta (%v):\n%s", err, out)
			}
			launch(t, beta)
			m.await("all is well")

			alpha.Proc().Signal(syscall.SIGHUP)
			m.await("RELOADING=1")
			m.await("READY=1")

			dumped(t, alpha)
			watchdogStarves(t, alpha, m)
			if err := alpha.Term(within(t, patience)); err != nil {
				t.Error(err)
			}
			m.await("STOPPING=1")
		})
	}
}

// dumped has a daemon write its state to the log.
func dumped(t *testing.T, n *cluster.Node) {
	t.Helper()
	n.Proc().Signal(syscall.SIGUSR1)
	var text string
	if !poll(within(t, patience), func() bool {
		b, err := os.ReadFile(filepath.Join(n.Run, "log"))
		text = string(b)
		return err == nil && strings.Contains(text, "goroutine ")
	}) {
		t.Fatalf("the log has no goroutines:\n%s", text)
	}
	for _, want := range []string{"|dump|", "health ok", "r0", "activity log"} {
		if !strings.Contains(text, want) {
			t.Errorf("the state in the log has no %q:\n%s", want, text)
		}
	}
}

// watchdogStarves has the control path hang: where the daemon's socket was,
// commands find one that takes them and never answers. Then it moves the
// daemon's back.
func watchdogStarves(t *testing.T, n *cluster.Node, m *manager) {
	t.Helper()
	m.drain()
	m.await("WATCHDOG=1")
	aside := n.Socket() + ".aside"
	if err := os.Rename(n.Socket(), aside); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", n.Socket())
	if err != nil {
		t.Fatal(err)
	}
	logged := func() int {
		b, err := os.ReadFile(filepath.Join(n.Run, "log"))
		if err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(b), "no sign of life for the watchdog")
	}
	// A probe that failed says so; the next one begins after it. What is sent
	// from here on would be wrong. (A slow machine may have failed one before.)
	before := logged()
	if !poll(within(t, patience), func() bool { return logged() > before }) {
		t.Fatal("nobody noticed that commands hang")
	}
	m.drain()
	seen := len(m.seen)
	if !poll(within(t, patience), func() bool { return logged() > before+2 }) {
		t.Fatal("the probes have ended")
	}
	m.drain()
	for _, msg := range m.seen[seen:] {
		if strings.Contains(msg, "WATCHDOG=1") {
			t.Error("the watchdog was fed though commands hang")
		}
	}
	l.Close() // removes its file
	if err := os.Rename(aside, n.Socket()); err != nil {
		t.Fatal(err)
	}
	m.await("WATCHDOG=1")
}

// TestSocketActivation has the service manager listen before there is a
// daemon: a client that connects then waits, and is served by the daemon that
// takes the sockets over by their names. They stay with the manager when the
// daemon stops.
func TestSocketActivation(t *testing.T) {
	t.Parallel()
	c := layOut(t, one(), nil)
	n := c.Nodes[0]
	peers, err := net.Listen("tcp", n.Address)
	if err != nil {
		t.Fatal(err)
	}
	clients, err := net.Listen("unix", n.NBD("r0"))
	if err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	for _, l := range []interface{ File() (*os.File, error) }{peers.(*net.TCPListener), clients.(*net.UnixListener)} {
		f, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		files = append(files, f)
	}
	var conn *nbdio.Conn
	connected := make(chan error, 1)
	ctx := within(t, patience)
	go func() {
		var err error
		conn, err = nbdio.Dial(ctx, n.NBD("r0"), "r0")
		connected <- err
	}()

	// The shell knows the pid that it will have as the daemon.
	args := append([]string{"-c", `LISTEN_PID=$$ exec "$@"`, "sh"}, n.Args()...)
	cmd := exec.CommandContext(ctx, "/bin/sh", args...)
	cmd.ExtraFiles = files
	cmd.Env = append(os.Environ(), "LISTEN_FDS=2", "LISTEN_FDNAMES=peers:nbd-r0-unix")
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if err := <-connected; err != nil {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		t.Fatalf("%v\n%s", err, &said)
	}
	if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
		t.Error(err)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("%v\n%s", err, &said)
	}
	if _, err := os.Stat(n.NBD("r0")); err != nil {
		t.Errorf("the manager's socket: %v", err)
	}
}

// TestASocketIsNotStolen: a second daemon that is told to use the first one's
// control socket ends, and the first one's goes on to answer.
func TestASocketIsNotStolen(t *testing.T) {
	t.Parallel()
	first, second := layOut(t, one(), nil).Nodes[0], layOut(t, one(), nil).Nodes[0]
	launch(t, first)
	second.Flags = []string{"--unixctl=" + first.Socket()}
	if err := second.Launch(); err != nil {
		t.Fatal(err)
	}
	st, err := second.Proc().Wait(within(t, patience))
	if err != nil {
		t.Fatal(err)
	}
	if said := second.Proc().LogTail(20); st.Success() || !strings.Contains(said, first.Socket()) {
		t.Errorf("it ended with %v and said\n%s", st, said)
	}
	until(t, first, "it serves", func(s cluster.Status) bool { return s.Node == first.Name })
}
