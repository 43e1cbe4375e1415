package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 100}, 3}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v) = %v, want %v", c.in, got, c.want)
		}
	}
}

func TestChoose(t *testing.T) {
	for _, c := range []struct {
		only           string
		targets, loads int
		err            string
	}{
		{"", len(kinds()), len(workloads()), ""},
		{"lockstep3", 2, len(workloads()), ""}, // the baseline comes with it
		{"nbdkit", 1, len(workloads()), ""},
		{"write4k-q1", len(kinds()), 1, ""},
		{"quorum2,lockstep2,read4k-q32", 3, 1, ""},
		{"lockstep9", 0, 0, "no such target or workload"},
	} {
		ks, ws, err := choose(c.only)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%q: got error %v", c.only, err)
			}
			continue
		}
		if err != nil || len(ks) != c.targets || len(ws) != c.loads {
			t.Errorf("%q: got %d targets, %d workloads, %v", c.only, len(ks), len(ws), err)
		}
	}
}

func TestParseRefusesNonsense(t *testing.T) {
	for _, args := range [][]string{{"-rounds", "0"}, {"-runtime", "10ms"}, {"-size", "1"}, {"extra"}, {"-no-such-flag"}} {
		if _, err := parse(args, io.Discard); err == nil {
			t.Errorf("%q was taken", args)
		}
	}
}

func TestFigureReadsFio(t *testing.T) {
	report := `{"jobs":[{"error":0,
		"read":{"iops":0,"total_ios":0},
		"write":{"iops":1000.5,"total_ios":4002,"clat_ns":{"percentile":{"50.000000":20000,"99.000000":90000,"99.900000":150000}}},
		"sync":{"lat_ns":{"percentile":{"50.000000":1000}}}}]}`
	f, ios, err := figure([]byte(report), workload{bs: 1 << 20})
	if err != nil || ios != 4002 || f.IOPS != 1000.5 || f.MiBs != 1000.5 || f.P50 != 20 || f.P99 != 90 || f.P999 != 150 {
		t.Errorf("got %+v, %d, %v", f, ios, err)
	}
	f, _, err = figure([]byte(report), workload{sync: true})
	if err != nil || f.P50 != 1 {
		t.Errorf("latencies of flushes: got %+v, %v", f, err)
	}
	for _, bad := range []string{"", "{}", `{"jobs":[{"error":5}]}`, `{"jobs":[{"error":0}]}`} {
		if _, _, err := figure([]byte(bad), workload{}); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func TestReportNamesMissedBudgets(t *testing.T) {
	var figures []Figure
	add := func(target string, iops, cpu, p999 float64) {
		figures = append(figures, Figure{Workload: "write4k-q32", Target: target, IOPS: iops, CPU: cpu, P999: p999})
	}
	for range 3 {
		add("nbdkit", 100, 10, 5)
		add("lockstep1", 120, 9, 5)  // kept
		add("lockstep2", 50, 30, 90) // both missed
		add("quorum2", 10, 90, 90)   // promises nothing
	}
	var targets []*target
	for _, k := range kinds() {
		if k.name != "lockstep3" && k.name != "quorum3" {
			targets = append(targets, &target{kind: k})
		}
	}
	var out bytes.Buffer
	report(&out, workloads()[1:2], targets, figures)
	_, missed, found := strings.Cut(out.String(), "Budgets missed:\n")
	if want := "  4k random write, depth 32, lockstep, 2 nodes: IOPS ratio 0.50, at least 0.60 promised\n" +
		"  4k random write, depth 32, lockstep, 2 nodes: CPU ratio 3.00, at most 2.50 promised\n"; !found || missed != want {
		t.Errorf("got\n%s", out.String())
	}
}

// TestRatiosAreTakenWithinARound: the machine was slow in the second round for both alike.
func TestRatiosAreTakenWithinARound(t *testing.T) {
	figures := []Figure{
		{Workload: "w", Target: "nbdkit", IOPS: 100}, {Workload: "w", Target: "lockstep1", IOPS: 90},
		{Workload: "w", Target: "nbdkit", IOPS: 50}, {Workload: "w", Target: "lockstep1", IOPS: 45},
		{Workload: "w", Target: "nbdkit", IOPS: 70}, {Workload: "w", Target: "lockstep1", IOPS: 63},
	}
	if r := summarize(figures, "w", "lockstep1"); r.ratio < 0.899 || r.ratio > 0.901 || r.IOPS != 63 {
		t.Errorf("got ratio %v of %v IOPS", r.ratio, r.IOPS)
	}
}
