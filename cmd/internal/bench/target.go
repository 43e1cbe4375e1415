package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// kind is one of the things that are compared.
type kind struct {
	name   string
	label  string
	copies int // disks that every write reaches
	start  func(ctx context.Context, b *bench, k kind) (*target, error)
}

// baseline is the kind that ratios are taken against.
const baseline = "nbdkit"

func kinds() []kind {
	return []kind{
		{baseline, "nbdkit file", 1, startNbdkit},
		{"lockstep1", "lockstep, 1 node", 1, startLockstep},
		{"lockstep2", "lockstep, 2 nodes", 2, startLockstep},
		{"lockstep3", "lockstep, 3 nodes", 3, startLockstep},
		{"quorum2", "qemu quorum, 2 disks", 2, startQuorum},
		{"quorum3", "qemu quorum, 3 disks", 3, startQuorum},
	}
}

func targetNames() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name)
	}
	return names
}

// choose splits the names of -only into targets and workloads; none of a sort
// means all of it. The baseline is always measured.
func choose(only string) ([]kind, []workload, error) {
	ks, ws := kinds(), workloads()
	if only == "" {
		return ks, ws, nil
	}
	names := strings.Split(only, ",")
	for _, n := range names {
		if !slices.Contains(targetNames(), n) && !slices.Contains(workloadNames(), n) {
			return nil, nil, fmt.Errorf("-only %s: no such target or workload; there are %s and %s",
				n, strings.Join(targetNames(), ", "), strings.Join(workloadNames(), ", "))
		}
	}
	not := func(n string) bool { return !slices.Contains(names, n) }
	if t := slices.DeleteFunc(slices.Clone(ks), func(k kind) bool { return k.name != baseline && not(k.name) }); len(t) > 1 || !not(baseline) {
		ks = t
	}
	if w := slices.DeleteFunc(slices.Clone(ws), func(w workload) bool { return not(w.name) }); len(w) > 0 {
		ws = w
	}
	return ks, ws, nil
}

// target is a server, or a set of them, that runs.
type target struct {
	kind
	uri   string
	pids  []int // all server processes, for their CPU time
	close func() error
}

// cpu returns the CPU time of all server processes in seconds.
func (t *target) cpu() (float64, error) {
	var sum uint64
	for _, pid := range t.pids {
		ticks, err := proc.CPU(pid)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", t.name, err)
		}
		sum += ticks
	}
	const ticksPerSecond = 100 // USER_HZ, the same on every Linux that Go runs on
	return float64(sum) / ticksPerSecond, nil
}

func startLockstep(ctx context.Context, b *bench, k kind) (*target, error) {
	cfg := cluster.Three(strconv.FormatInt(b.o.size, 10) + "MiB")
	cfg.Nodes = cfg.Nodes[:k.copies]
	c, err := cluster.New(cluster.Options{Bin: b.o.bin, Dir: b.dir, Host: b.host}, cfg)
	if err != nil {
		return nil, err
	}
	t := &target{kind: k, uri: c.Nodes[0].URI("r0"), close: c.Close}
	if err := c.Start(ctx); err != nil {
		return t, err
	}
	if err := c.Until(ctx, "r0 is in sync", cluster.InSync("r0")); err != nil {
		return t, err
	}
	for _, n := range c.Nodes {
		t.pids = append(t.pids, n.Pid())
	}
	return t, nil
}

// disk makes a sparse file for a peer's disk.
func (b *bench) disk(name string) (string, error) {
	path := filepath.Join(b.dir, name+".raw")
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return path, f.Truncate(b.o.size << 20)
}

func startNbdkit(ctx context.Context, b *bench, k kind) (*target, error) {
	disk, err := b.disk(k.name)
	if err != nil {
		return nil, err
	}
	t := &target{kind: k, close: func() error { return nil }}
	sock := filepath.Join(b.dir, "nbdkit.sock")
	if err := b.server(t, "nbdkit", "-f", "-U", sock, "file", disk); err != nil {
		return t, err
	}
	t.uri = "nbd+unix:///?socket=" + sock
	return t, b.accepting(ctx, "unix", sock)
}

// server starts a process of a target. The host of the bench ends it.
func (b *bench) server(t *target, argv ...string) error {
	log := filepath.Join(b.dir, t.name+".log")
	p, err := b.host.Start(proc.Spec{Argv: argv, Log: log})
	if err != nil {
		return err
	}
	t.pids = append(t.pids, p.Pid())
	return nil
}

// startQuorum starts the remote disks, each a qemu-nbd on a TCP port, and
// qemu-storage-daemon with a quorum of a local file and them. Flushes and
// write errors are as the stock programs have them; Nagle's algorithm, which
// qemu-nbd leaves on and which stalls it for 40 ms at depth, is taken off.
func startQuorum(ctx context.Context, b *bench, k kind) (*target, error) {
	t := &target{kind: k, close: func() error { return nil }}
	local, err := b.disk(k.name + "-0")
	if err != nil {
		return nil, err
	}
	argv := []string{"qemu-storage-daemon",
		"--blockdev", `{"driver":"raw","node-name":"d0","file":{"driver":"file","filename":"` + local + `"}}`}
	children := []string{`"d0"`}
	for i := 1; i < k.copies; i++ {
		port, err := b.remote(ctx, t, i)
		if err != nil {
			return t, err
		}
		node := "d" + strconv.Itoa(i)
		argv = append(argv, "--blockdev", fmt.Sprintf(
			`{"driver":"nbd","node-name":%q,"export":"r","server":{"type":"inet","host":"127.0.0.1","port":"%d"}}`, node, port))
		children = append(children, strconv.Quote(node))
	}
	sock := filepath.Join(b.dir, k.name+".sock")
	argv = append(argv,
		"--blockdev", fmt.Sprintf(`{"driver":"quorum","node-name":"q","children":[%s],"vote-threshold":%d,"read-pattern":"fifo"}`,
			strings.Join(children, ","), k.copies/2+k.copies%2),
		"--nbd-server", "addr.type=unix,addr.path="+sock,
		"--export", "type=nbd,id=e,node-name=q,name=q,writable=on")
	if err := b.server(t, argv...); err != nil {
		return t, err
	}
	if err := b.accepting(ctx, "unix", sock); err != nil {
		return t, err
	}
	t.uri = "nbd+unix:///q?socket=" + sock
	return t, noDelay(t.pids)
}

// remote starts a qemu-nbd on a free port.
func (b *bench) remote(ctx context.Context, t *target, i int) (int, error) {
	disk, err := b.disk(fmt.Sprintf("%s-%d", t.name, i))
	if err != nil {
		return 0, err
	}
	port, err := b.freePort()
	if err != nil {
		return 0, err
	}
	if err := b.server(t, "qemu-nbd", "-t", "-e", "8", "-f", "raw", "-b", "127.0.0.1", "-p", strconv.Itoa(port), "-x", "r", disk); err != nil {
		return 0, err
	}
	return port, b.accepting(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
}

// freePort finds a port of 127.0.0.1 on which nobody listens.
func (b *bench) freePort() (port int, err error) {
	err = b.host.Do(func() error {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return err
		}
		port = l.Addr().(*net.TCPAddr).Port
		return l.Close()
	})
	return port, err
}

// accepting waits until something accepts connections at an address.
func (b *bench) accepting(ctx context.Context, network, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := b.host.Do(func() error {
			c, err := net.DialTimeout(network, address, time.Second)
			if err != nil {
				return err
			}
			return c.Close()
		})
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("nothing accepts at %s: %w", address, err)
		}
	}
}

// noDelay sets TCP_NODELAY on every TCP socket of the processes. The option
// belongs to the socket, not to the process, so a copy of its descriptor will do.
func noDelay(pids []int) error {
	for _, pid := range pids {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
		if err != nil {
			return err
		}
		pidfd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return fmt.Errorf("open process %d: %w", pid, err)
		}
		for _, e := range fds {
			n, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			if fd, err := unix.PidfdGetfd(pidfd, n, 0); err == nil {
				// It fails on everything that is not a TCP socket.
				_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
				_ = unix.Close(fd)
			}
		}
		_ = unix.Close(pidfd)
	}
	return nil
}
