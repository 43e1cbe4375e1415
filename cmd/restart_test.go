package cmd_test

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
	"github.com/lockstepd/lockstep/cmd/internal/proc"
	"github.com/lockstepd/lockstep/server/nbd/client"
)

// TestPlannedRestartsUnderLoad restarts the primary's daemon three times while
// clients that do not reconnect are at work: fio (by libnbd) writes and
// verifies, QEMU reads, and two connections of the ledger write and read all
// along. None of them may notice. The restart is asked for by command, with a
// monitor and without one, and by putting a new program in the place of the old one.
func TestPlannedRestartsUnderLoad(t *testing.T) {
	need(t, "fio", "qemu-img")
	t.Parallel()
	for name, c := range map[string]struct {
		flags []string
		ask   func(t *testing.T, n *cluster.Node)
	}{
		"by command, monitored": {[]string{"--monitor"}, restartByCommand},
		"by command, alone":     {nil, restartByCommand},
		"by a new program":      {[]string{"--monitor"}, replaceProgram},
	} {
		t.Run(name, func(t *testing.T) {
			seeded, _ := seed(t)
			cfg := quick()
			cfg.Devices[0].Size = "128MiB" // fio's half, and the ledger's
			cl := layOutOwnPrograms(t, cfg)
			alpha := cl.Node("alpha")
			alpha.Flags = c.flags
			if err := cl.Start(within(t, patience)); err != nil {
				t.Fatal(err)
			}
			inSync(t, cl, "r0")
			book := ledger.New(seeded, faultSize)
			tr := load(t, book, alpha, faultSize)
			tr.moves(t)
			reader, err := cl.Host().Start(proc.Spec{Argv: []string{
				"qemu-img", "bench", "-f", "raw", "-c", "1000000000", "-d", "4", "-s", "4096", alpha.URI("r0")}, Log: filepath.Join(cl.Dir, "qemu.log")})
			if err != nil {
				t.Fatal(err)
			}
			stop := verifying(t, alpha)
			pid := alpha.Pid()
			for i := range 3 {
				until(t, alpha, "three clients have r0 open", func(s cluster.Status) bool { return s.Device("r0").Open >= 3 })
				before := lives(t, alpha)
				c.ask(t, alpha)
				if !poll(within(t, patience), func() bool { return lives(t, alpha) > before }) {
					t.Fatalf("restart %d: the daemon did not end", i)
				}
				tr.moves(t)
			}
			stop()
			select {
			case <-reader.Done():
				t.Errorf("QEMU has ended:\n%s", reader.LogTail(10))
			default:
			}
			reader.Kill()
			tr.flawless(t)
			if n := tr.Dials.Load(); n != 2 {
				t.Errorf("two workers connected %d times", n)
			}
			if alpha.Pid() != pid {
				t.Errorf("process %d became %d", pid, alpha.Pid())
			}
			if log := alpha.Proc().LogTail(1000); strings.Contains(log, "crash") {
				t.Errorf("a planned restart is no crash:\n%s", log)
			}
			verify(t, book, open(t, alpha), faultSize)
			converged(t, cl)
		})
	}
}

// TestARestartThatWouldFailIsRefused: by a configuration with a fault, or by a
// program that does not run, nobody is replaced who serves.
func TestARestartThatWouldFailIsRefused(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{"monitored": {"--monitor"}, "alone": nil} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := layOutOwnPrograms(t, one())
			n := c.Nodes[0]
			n.Flags = flags
			launch(t, n)
			conn := open(t, n)
			pid, err := n.DaemonPid()
			if err != nil {
				t.Fatal(err)
			}
			refused := func(says string) {
				t.Helper()
				out, status := ctlOf(t, n, "restart")
				if status != 1 || !strings.Contains(out, "cannot restart") || !strings.Contains(out, says) {
					t.Errorf("status %d, and not %q in\n%s", status, says, out)
				}
				if now, err := n.DaemonPid(); err != nil || now != pid {
					t.Errorf("the daemon is %d (%v) and not %d", now, err, pid)
				}
				if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
					t.Error(err)
				}
			}
			good, err := os.ReadFile(c.Config)
			if err != nil {
				t.Fatal(err)
			}
			write := func(path string, data []byte, mode os.FileMode) {
				t.Helper()
				if err := os.WriteFile(path+".new", data, mode); err != nil {
					t.Fatal(err)
				}
				if err := os.Rename(path+".new", path); err != nil {
					t.Fatal(err)
				}
			}
			write(c.Config, append([]byte("wrong = 1\n"), good...), 0o600)
			refused(c.Config + ":1:1")
			write(c.Config, good, 0o600)
			exe := n.Args()[0]
			copyFile(t, exe, exe+".kept")
			write(exe, []byte("\x7fELF is not all that a program is made of"), 0o755)
			refused(exe)
			if err := os.Rename(exe+".kept", exe); err != nil {
				t.Fatal(err)
			}
			before := lives(t, n)
			restartByCommand(t, n)
			if !poll(within(t, patience), func() bool { return lives(t, n) > before }) {
				t.Error("no restart though all is well again")
			}
			if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
				t.Error(err)
			}
		})
	}
}

// lives counts how often a node's daemon has said that it serves.
func lives(t *testing.T, n *cluster.Node) int {
	t.Helper()
	b, err := os.ReadFile(n.Log)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Count(string(b), "|serving")
}

func restartByCommand(t *testing.T, n *cluster.Node) {
	t.Helper()
	if out, err := n.Lockstepctl(within(t, patience), "restart"); err != nil {
		t.Fatalf("lockstepctl restart: %v\n%s", err, out)
	}
}

// replaceProgram does what a package manager does, and tells the monitor.
func replaceProgram(t *testing.T, n *cluster.Node) {
	t.Helper()
	exe := n.Args()[0]
	copyFile(t, exe, exe+".new")
	if err := os.Rename(exe+".new", exe); err != nil {
		t.Fatal(err)
	}
	n.Proc().Signal(syscall.SIGHUP)
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	src, err := os.Open(from)
	if err != nil {
		t.Fatal(err)
	}
	defer src.Close()
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.Copy(dst, src)
	if err2 := dst.Close(); err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
}

// layOutOwnPrograms is layOut with programs that the test may replace.
func layOutOwnPrograms(t *testing.T, cfg cluster.Config) *cluster.Cluster {
	t.Helper()
	bin, own := real.build(t), t.TempDir()
	for _, name := range []string{"lockstepd", "lockstepctl"} {
		copyFile(t, filepath.Join(bin, name), filepath.Join(own, name))
	}
	return layOutFrom(t, own, cfg, nil)
}

// TestARestartKeepsWhatWasNegotiated: with simple and with structured replies,
// over a Unix socket and over TCP, with half of a large write sent before the
// restart and half after it, and with a device that was promoted by hand.
func TestARestartKeepsWhatWasNegotiated(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Devices[0].Extra = "auto_promote = false\n"
	c := layOut(t, cfg, nil)
	tcp := net.JoinHostPort(c.IP(0), "10809")
	cfg.Devices[0].Extra += fmt.Sprintf("[device.on.alpha]\nnbd = [\"unix\", \"tcp:%s\"]\n", tcp)
	if err := c.WriteConfig(cfg); err != nil {
		t.Fatal(err)
	}
	alpha := c.Node("alpha")
	alpha.Flags = []string{"--monitor"}
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, c, "r0")
	if out, err := alpha.Lockstepctl(within(t, patience), "device", "promote", "r0"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	clients := []*half{
		{network: "unix", addr: alpha.NBD("r0"), options: client.Options{Export: "r0"}},
		{network: "unix", addr: alpha.NBD("r0"), options: client.Options{Export: "r0", Simple: true}},
		{network: "tcp", addr: tcp, options: client.Options{Export: "r0"}},
	}
	for i, h := range clients {
		h.off = int64(i) * halfWrite
		h.begin(t)
	}
	before := lives(t, alpha)
	restartByCommand(t, alpha)
	if !poll(within(t, patience), func() bool { return lives(t, alpha) > before }) {
		t.Fatal("the daemon did not end")
	}
	for _, h := range clients {
		h.end(t)
	}
	until(t, alpha, "r0 is primary and three clients have it open", func(s cluster.Status) bool {
		return s.Device("r0").Role == "primary" && s.Device("r0").Open == len(clients)
	})
	converged(t, c)
}

// halfWrite is more than the server takes in one piece.
const halfWrite = 5 << 20

// half is a client that sends one write in two halves.
type half struct {
	network, addr string
	options       client.Options
	off           int64

	conn *halting
	c    *client.Client
	data []byte
	done chan error
}

// halting stops in the middle of the first large write, until it is released.
type halting struct {
	net.Conn
	halted, release chan struct{}
}

func (h *halting) Write(p []byte) (int, error) {
	if len(p) < halfWrite {
		return h.Conn.Write(p)
	}
	n, err := h.Conn.Write(p[:len(p)/2])
	if err != nil {
		return n, err
	}
	close(h.halted)
	<-h.release
	m, err := h.Conn.Write(p[n:])
	return n + m, err
}

// begin connects and sends the first half.
func (h *half) begin(t *testing.T) {
	t.Helper()
	nc, err := net.Dial(h.network, h.addr)
	if err != nil {
		t.Fatal(err)
	}
	h.conn = &halting{nc, make(chan struct{}), make(chan struct{})}
	if h.c, err = client.New(within(t, patience), h.conn, h.options); err != nil {
		t.Fatal(err)
	}
	h.data = bytes.Repeat([]byte{byte(1 + h.off/halfWrite)}, halfWrite)
	h.done = make(chan error, 1)
	go func() {
		_, err := h.c.WriteAt(h.data, h.off)
		h.done <- err
	}()
	t.Cleanup(func() { _ = h.c.Abort() })
	select {
	case <-h.conn.halted:
	case err := <-h.done:
		t.Fatalf("the write ended early: %v", err)
	}
}

// end sends the second half and checks what has become of the write.
func (h *half) end(t *testing.T) {
	t.Helper()
	close(h.conn.release)
	if err := <-h.done; err != nil {
		t.Errorf("%s, %+v: the write over the restart: %v", h.network, h.options, err)
		return
	}
	got := make([]byte, len(h.data))
	if _, err := h.c.ReadAt(got, h.off); err != nil || !bytes.Equal(got, h.data) {
		t.Errorf("%s, %+v: it does not read back: %v", h.network, h.options, err)
	}
	if h.options.Simple {
		return
	}
	if ext, err := h.c.BlockStatus(h.off, halfWrite, 0); err != nil || len(ext) == 0 {
		t.Errorf("%s: block status after the restart: %v, %v", h.network, ext, err)
	}
}

// TestAPrimaryByHandStopsInOrder: with quorum and without it.
func TestAPrimaryByHandStopsInOrder(t *testing.T) {
	t.Parallel()
	for name, alone := range map[string]bool{"with quorum": false, "without quorum": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := start(t, quick())
			alpha := c.Node("alpha")
			if out, err := alpha.Lockstepctl(within(t, patience), "device", "promote", "r0"); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			if alone {
				c.Node("beta").Kill9()
				c.Node("gamma").Kill9()
				until(t, alpha, "it is alone", func(s cluster.Status) bool { return !s.Device("r0").Quorum })
			}
			if err := alpha.Term(within(t, patience)); err != nil {
				t.Error(err)
			}
		})
	}
}
