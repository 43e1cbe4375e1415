package ctl

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestTheProgramStaysSmall: what the daemon needs must not find its way into
// the companion, which is started many times.
func TestTheProgramStaysSmall(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../cmd/lockstepctl").Output()
	if err != nil {
		t.Fatal(err)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		for _, heavy := range []string{
			"github.com/lockstepd/lockstep/server", "github.com/lockstepd/lockstep/daemon", "github.com/prometheus", "github.com/fsnotify",
			"github.com/pelletier", "github.com/gorilla", "net/http", "testing",
		} {
			if dep == heavy || strings.HasPrefix(dep, heavy+"/") {
				t.Errorf("lockstepctl contains %s", dep)
			}
		}
	}
}

// BenchmarkStart compares the whole life of "lockstepctl version" with that of
// "ovs-appctl version", on the same socket, in wall and CPU time.
func BenchmarkStart(b *testing.B) {
	path := serve(b)
	ours := filepath.Join(b.TempDir(), "lockstepctl")
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", ours, "../cmd/lockstepctl")
	if out, err := build.CombinedOutput(); err != nil {
		b.Fatalf("%v\n%s", err, out)
	}
	for _, program := range []string{ours, "ovs-appctl"} {
		b.Run(filepath.Base(program), func(b *testing.B) {
			if _, err := exec.LookPath(program); err != nil {
				b.Skip(err)
			}
			var cpu time.Duration
			for b.Loop() {
				cmd := exec.Command(program, "-t", path, "version")
				if out, err := cmd.CombinedOutput(); err != nil {
					b.Fatalf("%v\n%s", err, out)
				}
				cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
			}
			b.ReportMetric(float64(cpu.Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}
