package cmd_test

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestDemo runs the main job as `make run` does, to its verification.
func TestDemo(t *testing.T) {
	bin := real.build(t)
	dir := t.TempDir()
	cmd := exec.CommandContext(within(t, 2*time.Minute), filepath.Join(bin, "demo"), "-bin", bin, "-dir", dir, "-once")
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || !strings.Contains(string(out), "identical, and what was written") {
		t.Errorf("the demo failed: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) > 0 {
		t.Errorf("the demo left %q behind", left)
	}
}
