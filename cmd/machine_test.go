package cmd_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// kernel finds User Mode Linux; without it the test is skipped, since there is none
// of what it would spoil.
func kernel(t *testing.T, what string) (uml string) {
	t.Helper()
	uml, err := exec.LookPath("linux.uml")
	if err != nil {
		t.Skipf("there is no %s: no User Mode Linux (Debian: user-mode-linux): %v", what, err)
	}
	return uml
}

// boot runs a machine of its own, on this machine's files, which it can't write to,
// whose first program is script, until it halts itself. It returns all that it said,
// and the process for a look at the end of that.
func boot(t *testing.T, uml, memory, script string) (said string, m *proc.Process) {
	t.Helper()
	dir := t.TempDir()
	init, console := filepath.Join(dir, "init"), filepath.Join(dir, "console")
	if err := os.WriteFile(init, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	host := proc.NewHost()
	t.Cleanup(host.Close)
	m, err := host.Start(proc.Spec{Log: console, Argv: []string{uml, "mem=" + memory, "uml_dir=" + dir, "umid=machine",
		"con=null", "con0=null,fd:1", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init=" + init}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Wait(within(t, 4*patience)); err != nil {
		t.Fatalf("%v\n%s", err, m.LogTail(60))
	}
	raw, err := os.ReadFile(console)
	if err != nil {
		t.Fatal(err)
	}
	return string(raw), m
}
