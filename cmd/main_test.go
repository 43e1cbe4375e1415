package cmd_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/ledger"
	"github.com/lockstepd/lockstep/cmd/internal/nbdio"
	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// programs is the folder of the real binaries, built when the first test needs them.
type programs struct {
	dir  string
	once sync.Once
	err  error
}

var real programs

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "lockstep-bin-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	real.dir = dir
	code := m.Run()
	_ = os.RemoveAll(dir)
	os.Exit(code)
}

// build returns the folder that holds lockstepd, lockstepctl, demo and bench.
func (p *programs) build(t testing.TB) string {
	t.Helper()
	p.once.Do(func() {
		p.err = goBuild(p.dir, "./lockstepd", "./lockstepctl", "./internal/demo", "./internal/bench")
	})
	if p.err != nil {
		t.Fatal(p.err)
	}
	return p.dir
}

// goBuild builds programs as they are released, but for the flags, into a folder.
func goBuild(dir string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build", "-o", dir}, args...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

// need skips the test where a program that it drives is missing. In CI nothing is skipped.
func need(t testing.TB, names ...string) {
	t.Helper()
	for _, n := range names {
		if _, err := exec.LookPath(n); err != nil {
			missing(t, fmt.Sprintf("%v (\"make clients\" installs it)", err))
		}
	}
}

// needRoot skips the test where it may not do what only root may.
func needRoot(t testing.TB, what string) {
	t.Helper()
	if os.Getuid() != 0 {
		missing(t, what+" needs root")
	}
}

func missing(t testing.TB, why string) {
	t.Helper()
	if os.Getenv("CI") == "true" {
		t.Fatal(why)
	}
	t.Skip(why)
}

// within returns a context that ends after d or with the test.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeoutCause(t.Context(), d, fmt.Errorf("it was not so within %v", d))
	t.Cleanup(cancel)
	return ctx
}

// patience bounds every wait for something that should come soon; it is no measure of how soon.
const patience = 45 * time.Second

// seed returns the test's seed, from LOCKSTEP_SEED or a new one, and prints it.
func seed(t testing.TB) (uint64, *rand.Rand) {
	t.Helper()
	s := rand.Uint64()
	if v := os.Getenv("LOCKSTEP_SEED"); v != "" {
		var err error
		if s, err = strconv.ParseUint(v, 10, 64); err != nil {
			t.Fatalf("LOCKSTEP_SEED: %v", err)
		}
	}
	t.Logf("LOCKSTEP_SEED=%d", s)
	return s, rand.New(rand.NewPCG(s, 0))
}

// layOut makes a cluster and starts nothing. When the test fails, the ends of the logs are shown.
func layOut(t testing.TB, cfg cluster.Config, host *proc.Host) *cluster.Cluster {
	t.Helper()
	return layOutFrom(t, real.build(t), cfg, host)
}

func layOutFrom(t testing.TB, bin string, cfg cluster.Config, host *proc.Host) *cluster.Cluster {
	t.Helper()
	c, err := cluster.New(cluster.Options{Bin: bin, Host: host}, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, n := range c.Nodes {
			if t.Failed() && n.Proc() != nil {
				report(t, n)
			}
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// report shows what a node knows when a test has failed.
func report(t testing.TB, n *cluster.Node) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	for _, args := range [][]string{{"status"}, {"device", "show", "r0"}, {"device", "why", "r0"}, {"call", "messenger/show"}} {
		if out, err := n.Lockstepctl(ctx, args...); err == nil {
			t.Logf("%s: %q:\n%s", n.Name, args, out)
		}
	}
	t.Logf("the end of %s's log:\n%s", n.Name, n.Proc().LogTail(60))
}

// start runs a cluster until its nodes are up and its devices in sync.
func start(t testing.TB, cfg cluster.Config) *cluster.Cluster {
	t.Helper()
	c := layOut(t, cfg, nil)
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	for _, d := range cfg.Devices {
		inSync(t, c, d.Name)
	}
	return c
}

// inSync waits until every running node sees a device in sync everywhere.
func inSync(t testing.TB, c *cluster.Cluster, device string) {
	t.Helper()
	if err := c.Until(within(t, patience), device+" is in sync", cluster.InSync(device)); err != nil {
		t.Fatal(err)
	}
}

// until waits until a condition holds for a node's status.
func until(t testing.TB, n *cluster.Node, what string, cond func(cluster.Status) bool) {
	t.Helper()
	if err := n.Until(within(t, patience), what, cond); err != nil {
		t.Fatal(err)
	}
}

// launch starts a node's daemon and waits until it serves.
func launch(t testing.TB, n *cluster.Node) {
	t.Helper()
	if err := n.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
}

// converged waits until r0 is in sync and then compares its disks.
func converged(t *testing.T, c *cluster.Cluster) {
	t.Helper()
	inSync(t, c, "r0")
	if err := c.SameDisks("r0"); err != nil {
		t.Fatal(err)
	}
}

// open opens r0 on a node, as soon as the node lets it be opened.
func open(t testing.TB, n *cluster.Node) *nbdio.Conn {
	t.Helper()
	ctx := within(t, patience)
	var conn *nbdio.Conn
	var last error
	if !poll(ctx, func() bool {
		c, err := nbdio.Dial(ctx, n.NBD("r0"), "r0")
		if ctx.Err() == nil {
			conn, last = c, err
		}
		return err == nil
	}) {
		t.Fatalf("open r0 on %s: %v", n.Name, last)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// poll tries cond every few milliseconds until it holds or ctx ends.
func poll(ctx context.Context, cond func() bool) bool {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return false
		}
	}
	return true
}

// strike sends a signal to a process of lockstepd that this process did not
// start itself. A pid may come to be another's at any time, a parent's pid the
// tests' own: so the process is held by a descriptor while it is looked at.
func strike(t testing.TB, pid int, sig syscall.Signal) {
	t.Helper()
	p, err := os.FindProcess(pid)
	if err != nil {
		t.Fatal(err)
	}
	defer p.Release()
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || !strings.HasPrefix(string(name), "lockstepd") {
		t.Fatalf("process %d is %q and not lockstepd (%v): it gets no %v", pid, name, err, sig)
	}
	if err := p.Signal(sig); err != nil {
		t.Fatalf("process %d: %v", pid, err)
	}
}

// traffic is a load on r0 of one node that runs beside the test.
type traffic struct {
	ledger.Load
	stop func() error // ends it; an error is a broken promise
}

// load starts a load. The test fails when a promise is broken, at the latest at its end.
func load(t testing.TB, book *ledger.Ledger, n *cluster.Node, shift int64) *traffic {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	tr, done := new(traffic), make(chan struct{})
	var err error
	go func() {
		defer close(done)
		err = book.Run(ctx, &tr.Load, 2, func(ctx context.Context) (ledger.Device, error) {
			c, err := nbdio.Dial(ctx, n.NBD("r0"), "r0")
			if err != nil {
				return nil, err
			}
			return section{c, shift}, nil
		})
	}()
	tr.stop = func() error {
		cancel()
		<-done
		return err
	}
	t.Cleanup(func() {
		if err := tr.stop(); err != nil {
			t.Error(err)
		}
	})
	return tr
}

// moves waits until a load has done some more writes.
func (tr *traffic) moves(t testing.TB) {
	t.Helper()
	from := tr.Writes.Load()
	if !poll(within(t, patience), func() bool { return tr.Writes.Load() >= from+200 }) {
		t.Fatalf("the load stands still after %d writes; its failures: %v", tr.Writes.Load(), tr.Failures())
	}
}

// end ends a load, which must have kept all promises.
func (tr *traffic) end(t testing.TB) {
	t.Helper()
	if err := tr.stop(); err != nil {
		t.Fatal(err)
	}
	t.Logf("load: %d writes, %d reads, %d flushes, %d errors, %d connections",
		tr.Writes.Load(), tr.Reads.Load(), tr.Flushes.Load(), tr.Errors.Load(), tr.Dials.Load())
}

// flawless ends a load that must have seen no error at all.
func (tr *traffic) flawless(t testing.TB) {
	t.Helper()
	tr.end(t)
	if errs := tr.Failures(); len(errs) > 0 {
		t.Fatalf("the client saw %d errors: %v", tr.Errors.Load(), errors.Join(errs...))
	}
}

// onlyLost ends a load whose connections may have been lost, but to which no error may have been answered.
func (tr *traffic) onlyLost(t *testing.T) {
	t.Helper()
	tr.end(t)
	for _, err := range tr.Failures() {
		if e, ok := errors.AsType[*nbdio.Error](err); ok {
			t.Fatalf("the client got an I/O error: %v", e)
		}
	}
}

// neverRefused ends a load whose connections may have been lost, but whose
// attempts to connect were never turned away, and to which no error was answered.
func (tr *traffic) neverRefused(t *testing.T) {
	t.Helper()
	tr.onlyLost(t)
	for _, err := range tr.Failures() {
		if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist) {
			t.Errorf("the client was turned away: %v", err)
		}
	}
}

// section is a connection whose offsets begin at shift.
type section struct {
	*nbdio.Conn
	shift int64
}

func (s section) ReadAt(p []byte, off int64) (int, error)  { return s.Conn.ReadAt(p, off+s.shift) }
func (s section) WriteAt(p []byte, off int64) (int, error) { return s.Conn.WriteAt(p, off+s.shift) }

// verify reads all that a ledger knows of through a connection.
func verify(t *testing.T, book *ledger.Ledger, c *nbdio.Conn, shift int64) {
	t.Helper()
	if err := book.Verify(section{c, shift}); err != nil {
		t.Fatal(err)
	}
}
