package main

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// median returns the middle of vs, the mean of the two middle ones where there are two.
func median(vs []float64) float64 {
	if len(vs) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(vs))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

// row is the summary of one target under one workload.
type row struct {
	Figure                  // medians
	ratio, cpuRatio, p999of float64
}

// summarize takes medians of the figures, and of the ratios to the baseline within each round.
func summarize(figures []Figure, workload, target string) row {
	pick := func(target string) []Figure {
		return slices.DeleteFunc(slices.Clone(figures), func(f Figure) bool { return f.Workload != workload || f.Target != target })
	}
	fs, base := pick(target), pick(baseline)
	med := func(get func(Figure) float64) float64 {
		var vs []float64
		for _, f := range fs {
			vs = append(vs, get(f))
		}
		return median(vs)
	}
	ratio := func(get func(Figure) float64) float64 {
		var vs []float64
		for i := range min(len(fs), len(base)) {
			if b := get(base[i]); b > 0 {
				vs = append(vs, get(fs[i])/b)
			}
		}
		return median(vs)
	}
	iops := func(f Figure) float64 { return f.IOPS }
	cpu := func(f Figure) float64 { return f.CPU }
	p999 := func(f Figure) float64 { return f.P999 }
	return row{
		Figure: Figure{Workload: workload, Target: target, IOPS: med(iops), CPU: med(cpu), P999: med(p999),
			MiBs: med(func(f Figure) float64 { return f.MiBs }),
			P50:  med(func(f Figure) float64 { return f.P50 }),
			P99:  med(func(f Figure) float64 { return f.P99 })},
		ratio: ratio(iops), cpuRatio: ratio(cpu), p999of: ratio(p999),
	}
}

// printHeader says what the tables are about, and in which setting they were made.
func printHeader(w io.Writer, host *proc.Host, o options) {
	congestion := "unknown"
	_ = host.Do(func() error {
		b, err := os.ReadFile(congestionControl)
		if err == nil {
			congestion = strings.TrimSpace(string(b))
		}
		return err
	})
	fmt.Fprintf(w, "fio's nbd engine over a Unix socket; device of %d MiB, disks on %s; peers over loopback TCP (%s); %d CPUs.\n",
		o.size, o.dir, congestion, runtime.NumCPU())
	fmt.Fprintf(w, "Medians, rounds: %d of %v. CPU is that of all server processes, in seconds per million I/Os; ratios are to nbdkit within a round.\n",
		o.rounds, o.runtime)
	fmt.Fprintln(w, "nbdkit does not replicate. qemu's quorum remembers no missed write; its remote disks run with TCP_NODELAY set, which stock qemu-nbd lacks.")
}

// report prints a table per workload, and the budgets that were missed.
func report(w io.Writer, loads []workload, targets []*target, figures []Figure) {
	var missed []string
	for _, load := range loads {
		fmt.Fprintf(w, "\n%s\n", load.label)
		tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(tw, "\tIOPS\tMiB/s\tp50 us\tp99 us\tp99.9 us\tCPU\tIOPS ratio\tbudget\tCPU ratio\tbudget\t")
		for _, t := range targets {
			r := summarize(figures, load.name, t.name)
			least, most := budgets(load, t.kind)
			fmt.Fprintf(tw, "%s\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.1f\t%.2f\t%s\t%.2f\t%s\t\n", t.label,
				r.IOPS, r.MiBs, r.P50, r.P99, r.P999, r.CPU, r.ratio, atLeast(least), r.cpuRatio, atMost(most))
			missed = append(missed, misses(load, t.kind, r)...)
		}
		tw.Flush()
	}
	if len(missed) > 0 {
		fmt.Fprintln(w, "\nBudgets missed:")
		for _, m := range missed {
			fmt.Fprintln(w, "  "+m)
		}
	}
}

// ours reports whether a kind is lockstep, to which alone budgets apply.
func ours(k kind) bool { return k.name == fmt.Sprintf("lockstep%d", k.copies) }

func budgets(w workload, k kind) (least, most float64) {
	if !ours(k) {
		return 0, 0
	}
	return w.ratio[k.copies-1], w.cpu[k.copies-1]
}

func atLeast(b float64) string { return bound("≥ ", b) }
func atMost(b float64) string  { return bound("≤ ", b) }

func bound(sign string, b float64) string {
	if b == 0 {
		return ""
	}
	return fmt.Sprintf("%s%.2f", sign, b)
}

// misses names the budgets that a row does not keep.
func misses(w workload, k kind, r row) []string {
	var out []string
	least, most := budgets(w, k)
	if r.ratio < least {
		out = append(out, fmt.Sprintf("%s, %s: IOPS ratio %.2f, at least %.2f promised", w.label, k.label, r.ratio, least))
	}
	if most > 0 && r.cpuRatio > most {
		out = append(out, fmt.Sprintf("%s, %s: CPU ratio %.2f, at most %.2f promised", w.label, k.label, r.cpuRatio, most))
	}
	if ours(k) && w.tail > 0 && r.p999of > w.tail {
		out = append(out, fmt.Sprintf("%s, %s: p99.9 is %.1f times nbdkit's, at most %.1f promised", w.label, k.label, r.p999of, w.tail))
	}
	return out
}
