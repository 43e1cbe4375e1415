// Command bench measures lockstep with one, two and three nodes side by side
// with what a user would take instead: nbdkit serving a file, without
// replication, and qemu-storage-daemon's quorum of one local and one or two
// remote disks. All of them are up at once, with their disks on a tmpfs; fio's
// nbd engine drives one after the other, in interleaved rounds, so that a noisy
// machine is noisy for all. Figures are medians over the rounds, ratios are
// taken within a round.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

type options struct {
	bin     string
	dir     string
	size    int64 // MiB
	rounds  int
	runtime time.Duration
	only    string
	json    string
	netns   bool
	cc      string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout, os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			os.Exit(0)
		}
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.StringVar(&o.bin, "bin", "bin", "`folder` that holds lockstepd and lockstepctl")
	f.StringVar(&o.dir, "dir", "/dev/shm", "`folder` for the disks, best on a tmpfs")
	f.Int64Var(&o.size, "size", 1024, "size of the device in `MiB`")
	f.IntVar(&o.rounds, "rounds", 3, "rounds per workload; the median counts")
	f.DurationVar(&o.runtime, "runtime", 4*time.Second, "measured `time` per run, in whole seconds")
	f.StringVar(&o.only, "only", "", "comma-separated `names` of targets and workloads to measure\ntargets: "+
		strings.Join(targetNames(), " ")+"\nworkloads: "+strings.Join(workloadNames(), " "))
	f.StringVar(&o.json, "json", "", "also write every single figure to `file` as JSON")
	f.BoolVar(&o.netns, "netns", os.Getuid() == 0, "run in a network namespace of its own (needs root)")
	f.StringVar(&o.cc, "congestion", "reno", "TCP congestion control in that namespace; bbr, some machines' default, is slow on loopback")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if f.NArg() > 0 || o.rounds < 1 || o.runtime < time.Second || o.size < 16 {
		return o, errors.New("usage: no arguments; at least 1 round of 1s on 16 MiB (bench -h lists the flags)")
	}
	return o, nil
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (err error) {
	o, err := parse(args, stderr)
	if err != nil {
		return err
	}
	kinds, loads, err := choose(o.only)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(o.dir, "lockstep-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if err := enoughRoom(o, kinds); err != nil {
		return err
	}
	host, err := newHost(o)
	if err != nil {
		return err
	}
	defer host.Close()
	b := &bench{host: host, dir: dir, o: o, progress: stderr}
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.start(ctx, kinds); err != nil {
		return err
	}
	figures, err := b.measure(ctx, loads)
	if err != nil {
		return err
	}
	printHeader(stdout, host, o)
	report(stdout, loads, b.targets, figures)
	return writeJSON(o.json, figures)
}

// congestionControl is the sysctl of the network of the thread that opens it.
const congestionControl = "/proc/sys/net/ipv4/tcp_congestion_control"

func newHost(o options) (*proc.Host, error) {
	if !o.netns {
		return proc.NewHost(), nil
	}
	h, err := proc.NewNetwork()
	if err != nil {
		return nil, err
	}
	if err := h.Do(func() error { return os.WriteFile(congestionControl, []byte(o.cc), 0o644) }); err != nil {
		h.Close()
		return nil, fmt.Errorf("-congestion %s: %w", o.cc, err)
	}
	return h, nil
}

func writeJSON(path string, figures []Figure) error {
	if path == "" {
		return nil
	}
	out, err := json.MarshalIndent(figures, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Clean(path), append(out, '\n'), 0o644)
}

// enoughRoom refuses to start what would not fit in memory: disks on a tmpfs
// that fills up fail in ways that look like a server's fault.
func enoughRoom(o options, kinds []kind) error {
	var fs syscall.Statfs_t
	if err := syscall.Statfs(o.dir, &fs); err != nil {
		return fmt.Errorf("look at %s: %w", o.dir, err)
	}
	disks := int64(0)
	for _, k := range kinds {
		disks += int64(k.copies)
	}
	need, have := disks*o.size, int64(fs.Bavail)*fs.Bsize>>20
	if need+need/8 > have {
		return fmt.Errorf("%d disks of %d MiB do not fit in %s, which has %d MiB left (use -size or -only)", disks, o.size, o.dir, have)
	}
	return nil
}
