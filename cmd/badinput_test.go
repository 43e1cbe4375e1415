package cmd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
	"github.com/lockstepd/lockstep/cmd/internal/nbdio"
)

// one is a cluster of one node.
func one() cluster.Config {
	cfg := quick()
	cfg.Nodes = []string{"alpha"}
	return cfg
}

// TestDaemonThatCannotStart: it ends by itself, with a status that is not 0,
// and says what is wrong with what.
func TestDaemonThatCannotStart(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(t *testing.T, c *cluster.Cluster, n *cluster.Node)
		says    []string
		status  int // 0: any but 0
	}{
		"port in use": {func(t *testing.T, c *cluster.Cluster, n *cluster.Node) {
			l, err := net.Listen("tcp", n.Address)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, []string{":7799", "in use"}, 0},
		"control socket of another daemon": {func(t *testing.T, c *cluster.Cluster, n *cluster.Node) {
			l, err := net.Listen("unix", n.Socket())
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
		}, []string{"ctl"}, 0},
		"no secret": {func(t *testing.T, c *cluster.Cluster, n *cluster.Node) {
			if err := os.Remove(filepath.Join(c.Dir, "secret")); err != nil {
				t.Fatal(err)
			}
		}, []string{"lockstep.toml:3:15", "cluster.secret_file"}, 2},
		"secret for everybody": {func(t *testing.T, c *cluster.Cluster, n *cluster.Node) {
			if err := os.Chmod(filepath.Join(c.Dir, "secret"), 0o644); err != nil {
				t.Fatal(err)
			}
		}, []string{"lockstep.toml:3:15", "cluster.secret_file"}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			cl := layOut(t, one(), nil)
			n := cl.Nodes[0]
			c.prepare(t, cl, n)
			if err := n.Launch(); err != nil {
				t.Fatal(err)
			}
			st, err := n.Proc().Wait(within(t, patience))
			if err != nil {
				t.Fatal(err)
			}
			if st.ExitCode() == 0 || c.status != 0 && st.ExitCode() != c.status {
				t.Errorf("it ended with %v", st)
			}
			for _, want := range c.says {
				if log := n.Proc().LogTail(100); !strings.Contains(log, want) {
					t.Errorf("%q is not in what it said:\n%s", want, log)
				}
			}
		})
	}
}

// TestStateDirOfAnotherDaemon: with a rundir of its own a second daemon gets
// as far as the state dir, and then knows whose that is. Status and words are
// the same in every mode; the first daemon goes on.
func TestStateDirOfAnotherDaemon(t *testing.T) {
	t.Parallel()
	first := layOut(t, one(), nil).Nodes[0]
	launch(t, first)
	for name, flags := range map[string][]string{
		"foreground": nil, "monitored": {"--monitor"}, "detached": {"--detach"}, "both": {"--detach", "--monitor"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			second := layOut(t, one(), nil).Nodes[0]
			second.State, second.Flags = first.State, flags
			if err := second.Launch(); err != nil {
				t.Fatal(err)
			}
			st, err := second.Proc().Wait(within(t, patience))
			if err != nil {
				t.Fatal(err)
			}
			said, want := second.Proc().LogTail(100), fmt.Sprintf("is in use by process %d", first.Pid())
			if st.ExitCode() != 3 || !strings.Contains(said, "already running") || !strings.Contains(said, want) {
				t.Errorf("it ended with %v, not with status 3 and %q; it said\n%s", st, want, said)
			}
			until(t, first, "it serves", func(cluster.Status) bool { return true })
		})
	}
}

// TestDiskThatCannotBeUsed: the daemon serves nothing from such a disk and
// says why, in its log or to whoever asks.
func TestDiskThatCannotBeUsed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(t *testing.T, path string)
		says    string
	}{
		"too small": {func(t *testing.T, path string) {
			if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
				t.Fatal(err)
			}
		}, "small"},
		"a directory": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "directory"},
		"no folder for it": {func(t *testing.T, path string) {
			if err := os.Symlink("/nonexistent/folder/disk", path); err != nil {
				t.Fatal(err)
			}
		}, "no such file"},
		"not permitted": {func(t *testing.T, path string) {
			if os.Getuid() == 0 {
				// Root may open any file, but not write to one of /proc/sys that is read-only.
				if err := os.Symlink("/proc/sys/kernel/osrelease", path); err != nil {
					t.Fatal(err)
				}
				return
			}
			if err := os.WriteFile(path, nil, 0o000); err != nil {
				t.Fatal(err)
			}
		}, "r0.img"},
	} {
		t.Run(name, func(t *testing.T) {
			cl := layOut(t, one(), nil)
			n := cl.Nodes[0]
			c.prepare(t, n.Disk("r0"))
			if err := n.Launch(); err != nil {
				t.Fatal(err)
			}
			if said, ok := explained(t, n, c.says); !ok {
				t.Errorf("%q is not in what it said:\n%s", c.says, said)
			}
			if conn, err := nbdio.Dial(within(t, patience), n.NBD("r0"), "r0"); err == nil {
				conn.Close()
				t.Error("the device can be opened all the same")
			}
		})
	}
}

// explained waits until a node has said a word in its log, or says it when it
// is asked about r0.
func explained(t *testing.T, n *cluster.Node, word string) (said string, ok bool) {
	t.Helper()
	ctx := within(t, patience)
	ok = poll(ctx, func() bool {
		out, _ := n.Lockstepctl(ctx, "device", "why", "r0") // a daemon that did not start answers nothing
		said = n.Proc().LogTail(100) + "\n" + out
		return strings.Contains(said, word)
	})
	return said, ok
}

// TestDiskFull gives one node's state dir too little space. The others go on;
// the client sees nothing of it where it is a secondary's.
func TestDiskFull(t *testing.T) {
	needRoot(t, "a tmpfs")
	t.Parallel()
	for _, full := range []string{"beta", "alpha"} {
		t.Run(full, func(t *testing.T) {
			s, _ := seed(t)
			c := layOut(t, quick(), nil)
			dir := c.Node(full).State
			if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=24m"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				c.Node(full).Kill9()
				if err := syscall.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			if err := c.Start(within(t, patience)); err != nil {
				t.Fatal(err)
			}
			inSync(t, c, "r0")
			alpha := c.Node("alpha")
			book := ledger.New(s, faultSize)
			conn := open(t, alpha)
			buf := make([]byte, 1<<20)
			for off := int64(0); off < faultSize; off += 1 << 20 {
				if err := book.Write(conn, buf, off); err != nil && !errors.Is(err, syscall.ENOSPC) {
					t.Fatal(err)
				} else if err != nil && full == "beta" {
					t.Fatalf("a secondary's full disk is the client's business: %v", err)
				}
			}
			verify(t, book, conn, 0)
			if full == "beta" {
				until(t, alpha, "beta has no disk in sync", func(s cluster.Status) bool { return s.Device("r0").Peer("beta").Disk != "UpToDate" })
			}
			if said, ok := explained(t, c.Node(full), "no space"); !ok {
				t.Errorf("%s does not say that there is no space left:\n%s", full, said)
			}
		})
	}
}

// TestStrangersAtThePeerPort sends what is no peer's to the peer port: the
// daemon drops it and serves its peers and clients on.
func TestStrangersAtThePeerPort(t *testing.T) {
	t.Parallel()
	s, rng := seed(t)
	c := start(t, quick())
	alpha := c.Node("alpha")
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, 0)
	noise := rand.NewChaCha8([32]byte{byte(s)})
	random := func(n int) []byte {
		b := make([]byte, n)
		_, _ = noise.Read(b) // never fails
		return b
	}
	var all sync.WaitGroup
	for name, b := range map[string][]byte{
		"nothing":    nil,
		"a byte":     {0x4c},
		"a web page": []byte("GET / HTTP/1.1\r\nHost: alpha\r\n\r\n"),
		"zeroes":     make([]byte, 64<<10),
		"all ones":   bytes.Repeat([]byte{0xff}, 64<<10),
		"noise":      random(64<<10 + rng.IntN(1000)),
	} {
		all.Go(func() { shout(t, "tcp", alpha.Address, name, b) })
	}
	all.Wait()
	tr.moves(t)
	tr.flawless(t)
	until(t, alpha, "all peers are up", cluster.AllUp)
}

// shout sends bytes and waits until the other side closes the connection,
// which it may do before it has read them all. A stranger who falls silent is
// the other side's to get rid of.
func shout(t *testing.T, network, address, name string, b []byte) {
	t.Helper()
	conn, err := net.Dial(network, address)
	if err != nil {
		t.Errorf("%s: %v", name, err)
		return
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Error(err)
	}
	_, _ = conn.Write(b) // a reset is an answer
	if n, err := io.Copy(io.Discard, io.LimitReader(conn, 1<<20)); errors.Is(err, os.ErrDeadlineExceeded) || n == 1<<20 {
		t.Errorf("%s: the connection is not closed: %d bytes, %v", name, n, err)
	}
}

// TestStrangersInTheCluster: a node with another secret, or of another
// cluster, is not let in; both sides say why; the others don't care.
func TestStrangersInTheCluster(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		change func(config string) (newConfig, secret string)
		why    string
	}{
		"wrong secret":  {func(c string) (string, string) { return c, "another cookie, longer than 16 bytes\n" }, "secret"},
		"wrong cluster": {func(c string) (string, string) { return strings.Replace(c, `"demo"`, `"prod"`, 1), "" }, "cluster"},
		"wrong id": {func(c string) (string, string) {
			return strings.Replace(c, "id = 2", "id = 3", 1), ""
		}, "id"},
	} {
		t.Run(name, func(t *testing.T) {
			cl := layOut(t, quick(), nil)
			alpha, gamma := cl.Node("alpha"), cl.Node("gamma")
			stranger(t, cl, gamma, c.change)
			for _, n := range cl.Nodes {
				if err := n.Launch(); err != nil {
					t.Fatal(err)
				}
			}
			until(t, alpha, "beta is up", func(s cluster.Status) bool { return s.Peer("beta").State == "up" })
			refused(t, alpha, "gamma", c.why)
			refused(t, gamma, "alpha", c.why)
			conn := open(t, alpha)
			if _, err := conn.WriteAt(make([]byte, 4096), 0); err != nil {
				t.Errorf("with a majority: %v", err)
			}
		})
	}
}

// refused waits until a node says of a peer why it is not let in.
func refused(t *testing.T, n *cluster.Node, peer, why string) {
	t.Helper()
	var out string
	if !poll(within(t, patience), func() bool {
		out, _ = n.Lockstepctl(within(t, patience), "node", "why", peer)
		return strings.Contains(out, "refused") && strings.Contains(out, why)
	}) {
		t.Errorf("%s does not say why %s is refused:\n%s", n.Name, peer, out)
	}
	if s, err := n.Status(within(t, patience)); err != nil || s.Peer(peer).State == "up" {
		t.Errorf("%s is up for %s: %v", peer, n.Name, err)
	}
}

// stranger gives a node a configuration and a secret of its own.
func stranger(t *testing.T, c *cluster.Cluster, n *cluster.Node, change func(string) (string, string)) {
	t.Helper()
	text, err := os.ReadFile(c.Config)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config, secret := change(string(text))
	if secret == "" {
		b, err := os.ReadFile(filepath.Join(c.Dir, "secret"))
		if err != nil {
			t.Fatal(err)
		}
		secret = string(b)
	}
	for name, content := range map[string]string{"lockstep.toml": config, "secret": secret} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	n.UseConfig(filepath.Join(dir, "lockstep.toml"))
}

// TestStrangersAtTheNBDPort sends malformed NBD: each costs itself at most its
// own connection.
func TestStrangersAtTheNBDPort(t *testing.T) {
	t.Parallel()
	strangers(t, start(t, one()).Node("alpha"))
}

// strangers sends malformed NBD to a node.
func strangers(t *testing.T, alpha *cluster.Node) {
	_, rng := seed(t)
	sock := alpha.NBD("r0")
	hello := binary.BigEndian.AppendUint32(nil, 3)
	option := func(n uint32, length uint32, data string) []byte {
		b := append(bytes.Clone(hello), "IHAVEOPT"...)
		b = binary.BigEndian.AppendUint32(b, n)
		b = binary.BigEndian.AppendUint32(b, length)
		return append(b, data...)
	}
	noise := make([]byte, 4096)
	for i := range noise {
		noise[i] = byte(rng.Uint32())
	}
	// Those that would wait for more bytes say goodbye by closing; the daemon must get over all of them.
	for name, b := range map[string][]byte{
		"unknown flags": {0xff, 0xff, 0xff, 0xff},
		"noise":         noise,
		"bad option":    append(bytes.Clone(hello), "HAVEIOPT\x00\x00\x00\x07\x00\x00\x00\x00"...),
	} {
		shout(t, "unix", sock, name, b)
	}
	for name, b := range map[string][]byte{
		"half a hello": {0, 0}, "half an option": option(7, 100, "r0"), "unknown option": option(99, 4, "\x00\x01\x02\x03"),
		"endless option": option(7, 0xffffffff, "r0"),
	} {
		conn, err := net.Dial("unix", sock)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if _, err := conn.Write(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		conn.Close()
	}
	badRequests(t, alpha)
	killedInMidWrite(t, alpha)
	conn := open(t, alpha)
	buf := make([]byte, 1<<20)
	if _, err := conn.ReadAt(buf, 0); err != nil {
		t.Errorf("a well-behaved client: %v", err)
	}
}

// badRequests asks for what must be refused, on one connection that lives on.
func badRequests(t *testing.T, n *cluster.Node) {
	t.Helper()
	conn := open(t, n)
	for name, c := range map[string]struct {
		do   func() error
		want syscall.Errno
	}{
		"read beyond the end": {func() error { _, err := conn.ReadAt(make([]byte, 4096), faultSize-2048); return err }, syscall.EINVAL},
		"write beyond the end": {func() error {
			_, err := conn.WriteAt(make([]byte, 4096), faultSize-2048)
			return err
		}, syscall.ENOSPC},
		"write far out":          {func() error { _, err := conn.WriteAt(make([]byte, 512), 1<<62); return err }, syscall.ENOSPC},
		"unknown command":        {func() error { return conn.Command(0, 77, 0, 0) }, syscall.EINVAL},
		"unknown flag":           {func() error { return conn.Command(1<<14, 3, 0, 0) }, syscall.EINVAL},
		"trim beyond the end":    {func() error { return conn.Command(0, 4, faultSize, 4096) }, syscall.EINVAL},
		"zeroes beyond the end":  {func() error { return conn.Command(0, 6, faultSize-4096, 8192) }, syscall.ENOSPC},
		"offset over the top":    {func() error { return conn.Command(0, 4, -4096, 8192) }, syscall.EINVAL},
		"oversized read":         {func() error { return conn.Command(0, 0, 0, 1<<30) }, syscall.EINVAL},
		"block status by itself": {func() error { return conn.Command(0, 7, 0, 4096) }, syscall.EINVAL},
	} {
		if err := c.do(); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
	odd, back := bytes.Repeat([]byte{0x3d}, 777), make([]byte, 777)
	if _, err := conn.WriteAt(odd, 5<<20+1001); err != nil {
		t.Errorf("unaligned write: %v", err)
	} else if _, err := conn.ReadAt(back, 5<<20+1001); err != nil || !bytes.Equal(odd, back) {
		t.Errorf("unaligned write does not read back (%v)", err)
	}
	if err := conn.Flush(); err != nil {
		t.Errorf("after all that was refused: %v", err)
	}
	conn.Close()
}

// killedInMidWrite loses a client in the middle of a write's data: nothing of
// it is on the disk, and whoever comes next is served.
func killedInMidWrite(t *testing.T, n *cluster.Node) {
	t.Helper()
	conn := open(t, n)
	b := binary.BigEndian.AppendUint32(nil, 0x25609513)
	b = binary.BigEndian.AppendUint32(b, 1) // flags 0, command 1: write
	b = binary.BigEndian.AppendUint64(b, 42)
	b = binary.BigEndian.AppendUint64(b, 8<<20)
	b = binary.BigEndian.AppendUint32(b, 1<<20)
	if _, err := conn.Raw().Write(append(b, bytes.Repeat([]byte{0xee}, 100<<10)...)); err != nil {
		t.Fatal(err)
	}
	conn.Raw().Close()
	next, buf := open(t, n), make([]byte, 1<<20)
	if _, err := next.ReadAt(buf, 8<<20); err != nil || !bytes.Equal(buf, make([]byte, 1<<20)) {
		t.Errorf("a part of a write that was never whole is there (or cannot be read: %v)", err)
	}
	next.Close()
}

// flipper is a TCP proxy that flips a bit now and then.
type flipper struct {
	to      string
	flips   atomic.Int64 // so far
	on      atomic.Bool
	l       net.Listener
	mu      sync.Mutex // guards rng
	rng     *rand.Rand
	running sync.WaitGroup
	ctx     context.Context
	cancel  context.CancelFunc
}

// newFlipper has an address, at which nothing answers before start.
func newFlipper(t *testing.T, rng *rand.Rand) *flipper {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &flipper{l: l, rng: rng}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	// Registered before the cluster is laid out, it runs after the cluster has ended.
	t.Cleanup(func() {
		f.cancel()
		l.Close()
		f.running.Wait()
	})
	return f
}

// start relays to an address until the test ends.
func (f *flipper) start(to string) {
	f.to = to
	f.running.Go(func() {
		for {
			conn, err := f.l.Accept()
			if err != nil {
				return
			}
			f.running.Go(func() { f.relay(conn) })
		}
	})
}

// relay joins a connection with one to the node behind the proxy.
func (f *flipper) relay(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", f.to)
	if err != nil {
		return
	}
	defer out.Close()
	stop := context.AfterFunc(f.ctx, func() { in.Close(); out.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { f.pipe(in, out) })
	both.Go(func() { f.pipe(out, in) })
	both.Wait()
}

// pipe copies one direction, and ends both when it ends.
func (f *flipper) pipe(from, to net.Conn) {
	defer from.Close()
	defer to.Close()
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		f.damage(buf[:n])
		if _, werr := to.Write(buf[:n]); err != nil || werr != nil {
			return
		}
	}
}

func (f *flipper) damage(b []byte) {
	if !f.on.Load() || len(b) == 0 {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.rng.IntN(100) == 0 {
		b[f.rng.IntN(len(b))] ^= 1 << f.rng.IntN(8)
		f.flips.Add(1)
	}
}

// TestFlippedBitsBetweenNodes flips bits on the way between nodes: none may
// ever reach a disk, and the client must not notice.
func TestFlippedBitsBetweenNodes(t *testing.T) {
	t.Parallel()
	s, rng := seed(t)
	f := newFlipper(t, rng)
	cfg := quick()
	cfg.Via = map[string]string{"alpha": f.l.Addr().String()} // the nodes with higher ids dial alpha
	c := layOut(t, cfg, nil)
	alpha := c.Node("alpha")
	f.start(alpha.Address)
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	inSync(t, c, "r0")
	book := ledger.New(s, faultSize)
	tr := load(t, book, alpha, 0)
	tr.moves(t)
	f.on.Store(true)
	if !poll(within(t, patience), func() bool { return f.flips.Load() >= 10 }) {
		t.Fatalf("only %d bits were flipped; the load made %d writes", f.flips.Load(), tr.Writes.Load())
	}
	f.on.Store(false)
	inSync(t, c, "r0")
	tr.moves(t)
	tr.flawless(t)
	conn := open(t, alpha)
	verify(t, book, conn, 0)
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	converged(t, c)
	for _, n := range c.Nodes {
		if err := book.VerifyFile(n.Disk("r0")); err != nil {
			t.Errorf("%s: %v", n.Name, err)
		}
	}
	t.Logf("%d bits were flipped", f.flips.Load())
}
