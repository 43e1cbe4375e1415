package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// workload is a job for fio, and the least ratios to the baseline that are
// promised for one, two and three nodes.
type workload struct {
	name  string
	label string
	args  []string
	bs    int64 // bytes
	read  bool
	sync  bool       // latencies are those of the flushes
	ratio [3]float64 // least IOPS
	cpu   [3]float64 // most CPU per I/O; 0: nothing promised
	tail  float64    // most p99.9; 0: nothing promised
}

func workloads() []workload {
	return []workload{
		{name: "write4k-q1", label: "4k random write, depth 1", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1"},
			bs: 4 << 10, ratio: [3]float64{0.95, 0.45, 0.38}, tail: 3},
		{name: "write4k-q32", label: "4k random write, depth 32", args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=32"},
			bs: 4 << 10, ratio: [3]float64{1.15, 0.60, 0.45}, cpu: [3]float64{1, 2.5, 4}},
		{name: "fsync4k-q1", label: "4k random write, depth 1, flush after each (latencies are the flush's)",
			args: []string{"--rw=randwrite", "--bs=4k", "--iodepth=1", "--fsync=1"},
			bs:   4 << 10, sync: true, ratio: [3]float64{0.80, 0.45, 0.40}},
		{name: "read4k-q32", label: "4k random read, depth 32", args: []string{"--rw=randread", "--bs=4k", "--iodepth=32"},
			bs: 4 << 10, read: true, ratio: [3]float64{1.40, 1.40, 1.40}},
		{name: "write1m-q8", label: "1M sequential write, depth 8", args: []string{"--rw=write", "--bs=1M", "--iodepth=8"},
			bs: 1 << 20, ratio: [3]float64{0.90, 0.60, 0.45}},
	}
}

func workloadNames() []string {
	var names []string
	for _, w := range workloads() {
		names = append(names, w.name)
	}
	return names
}

// Figure is what one run measured.
type Figure struct {
	Workload string  `json:"workload"`
	Target   string  `json:"target"`
	Round    int     `json:"round"`
	IOPS     float64 `json:"iops"`
	MiBs     float64 `json:"mib_per_s"`
	P50      float64 `json:"p50_us"`
	P99      float64 `json:"p99_us"`
	P999     float64 `json:"p999_us"`
	CPU      float64 `json:"server_cpu_s_per_million_ios"`
}

// bench is everything that runs.
type bench struct {
	host     *proc.Host
	dir      string
	o        options
	progress io.Writer
	targets  []*target
}

// start starts the targets and fills their disks, so that no run pays for
// memory that is touched for the first time.
func (b *bench) start(ctx context.Context, ks []kind) error {
	for _, k := range ks {
		fmt.Fprintf(b.progress, "starting %s\n", k.label)
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		t, err := k.start(ctx, b, k)
		if t != nil {
			b.targets = append(b.targets, t)
		}
		if err == nil {
			_, err = b.fio(ctx, t, "--rw=write", "--bs=1M", "--iodepth=8")
		}
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w", k.label, err)
		}
	}
	return nil
}

func (b *bench) close() error {
	var errs []error
	for _, t := range slices.Backward(b.targets) {
		errs = append(errs, t.close())
	}
	return errors.Join(errs...)
}

// measure runs all workloads on all targets, in interleaved rounds.
func (b *bench) measure(ctx context.Context, loads []workload) ([]Figure, error) {
	var all []Figure
	for _, w := range loads {
		for round := range b.o.rounds {
			for _, t := range b.targets {
				f, err := b.once(ctx, t, w)
				if err != nil {
					return nil, fmt.Errorf("%s, %s: %w", t.label, w.label, err)
				}
				f.Round = round + 1
				fmt.Fprintf(b.progress, "%-12s round %d  %-10s %9.0f IOPS\n", w.name, f.Round, t.name, f.IOPS)
				all = append(all, f)
			}
		}
	}
	return all, nil
}

// once warms a target up and measures one run. The CPU time is taken around
// the whole run, and so is the number of I/Os.
func (b *bench) once(ctx context.Context, t *target, w workload) (Figure, error) {
	if _, err := b.fio(ctx, t, append(w.args, "--time_based", "--runtime=1")...); err != nil {
		return Figure{}, err
	}
	before, err := t.cpu()
	if err != nil {
		return Figure{}, err
	}
	out, err := b.fio(ctx, t, append(w.args, "--time_based", fmt.Sprintf("--runtime=%d", int(b.o.runtime.Seconds())))...)
	if err != nil {
		return Figure{}, err
	}
	after, err := t.cpu()
	if err != nil {
		return Figure{}, err
	}
	f, ios, err := figure(out, w)
	f.Workload, f.Target = w.name, t.name
	f.CPU = (after - before) / float64(ios) * 1e6
	return f, err
}

func (b *bench) fio(ctx context.Context, t *target, args ...string) ([]byte, error) {
	// The nbd engine talks on standard output, so the report goes to a file.
	out := filepath.Join(b.dir, "fio.json")
	argv := append([]string{"fio", "--name=b", "--ioengine=nbd", "--uri=" + t.uri, "--direct=1",
		fmt.Sprintf("--size=%dm", b.o.size), "--output-format=json", "--output=" + out}, args...)
	if _, err := b.host.Run(ctx, argv...); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
}

// direction is the half of fio's report that is about reads or about writes.
type direction struct {
	IOPS  float64 `json:"iops"`
	Total uint64  `json:"total_ios"`
	Clat  latency `json:"clat_ns"`
}

type latency struct {
	Percentile map[string]float64 `json:"percentile"`
}

// figure reads fio's JSON report.
func figure(out []byte, w workload) (Figure, uint64, error) {
	var rep struct {
		Jobs []struct {
			Error int       `json:"error"`
			Read  direction `json:"read"`
			Write direction `json:"write"`
			Sync  struct {
				Lat latency `json:"lat_ns"`
			} `json:"sync"`
		} `json:"jobs"`
	}
	if err := json.Unmarshal(out, &rep); err != nil {
		return Figure{}, 0, fmt.Errorf("read fio's report: %w", err)
	}
	if len(rep.Jobs) != 1 || rep.Jobs[0].Error != 0 {
		return Figure{}, 0, errors.New("fio reports an error")
	}
	d := rep.Jobs[0].Write
	if w.read {
		d = rep.Jobs[0].Read
	}
	if d.Total == 0 {
		return Figure{}, 0, errors.New("fio did no I/O")
	}
	lat := d.Clat
	if w.sync {
		lat = rep.Jobs[0].Sync.Lat
	}
	us := func(p string) float64 { return lat.Percentile[p] / 1000 }
	return Figure{IOPS: d.IOPS, MiBs: d.IOPS * float64(w.bs) / (1 << 20),
		P50: us("50.000000"), P99: us("99.000000"), P999: us("99.900000")}, d.Total, nil
}
