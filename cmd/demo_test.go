package cmd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDemo runs the main job as `make run` does, to its verification and to
// Ctrl-C, which is no failure and leaves nothing behind.
func TestDemo(t *testing.T) {
	bin := real.build(t)
	dir, log := t.TempDir(), filepath.Join(t.TempDir(), "out")
	f, err := os.Create(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.CommandContext(within(t, 2*time.Minute), filepath.Join(bin, "demo"), "-bin", bin, "-dir", dir)
	cmd.Stdout, cmd.Stderr = f, f
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	said := func(text string) bool {
		out, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(out), text)
	}
	interrupted := false
	if !poll(within(t, 2*time.Minute), func() bool {
		if !interrupted && said("until Ctrl-C") {
			interrupted = cmd.Process.Signal(os.Interrupt) == nil
		}
		return len(ended) > 0
	}) {
		t.Error("the demo does not end")
	}
	if err := <-ended; err != nil || !interrupted || !said("identical, and what was written") || !said("Interrupted.") {
		out, _ := os.ReadFile(log)
		t.Errorf("the demo failed: %v\n%s", err, out)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("the demo left %q behind", left)
	}
}
