package proc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// deadline bounds a wait that should be over in no time.
func deadline(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestProcessOutputAndExit(t *testing.T) {
	h := NewHost()
	defer h.Close()
	log := filepath.Join(t.TempDir(), "log")
	p, err := h.Start(Spec{Argv: []string{"sh", "-c", "echo $WORD; exit 3"}, Env: []string{"WORD=hello"}, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	st, err := p.Wait(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if st.ExitCode() != 3 || p.LogTail(5) != "hello" {
		t.Errorf("got exit %d and log %q", st.ExitCode(), p.LogTail(5))
	}
}

func TestCloseKillsWhatIsLeft(t *testing.T) {
	h := NewHost()
	p, err := h.Start(Spec{Argv: []string{"sleep", "1000"}})
	if err != nil {
		t.Fatal(err)
	}
	p.Signal(syscall.SIGSTOP) // even a stopped process
	h.Close()
	st, err := p.Wait(deadline(t))
	if err != nil {
		t.Fatal(err)
	}
	if ws := st.Sys().(syscall.WaitStatus); ws.Signal() != syscall.SIGKILL {
		t.Errorf("ended with %v, not SIGKILL", st)
	}
	if _, err := h.Start(Spec{Argv: []string{"true"}}); err == nil {
		t.Error("a closed host started a process")
	}
	h.Close() // a second time does no harm
}

func TestFreeze(t *testing.T) {
	h := NewHost()
	defer h.Close()
	p, err := h.Start(Spec{Argv: []string{"sh", "-c", "while :; do :; done"}})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time it stands still already
		if err := p.Freeze(); err != nil {
			t.Fatal(err)
		}
		if stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid())); err != nil || !strings.Contains(string(stat), ") T ") {
			t.Errorf("it goes on: %s, %v", stat, err)
		}
	}
	p.Signal(syscall.SIGCONT)
	p.Kill()
	if _, err := p.Wait(deadline(t)); err != nil {
		t.Fatal(err)
	}
	if err := p.Freeze(); err == nil {
		t.Error("what has ended was frozen")
	}
}

func TestStartSaysWhatIsMissing(t *testing.T) {
	h := NewHost()
	defer h.Close()
	_, err := h.Start(Spec{Argv: []string{"no-such-program-here"}})
	if err == nil || !strings.Contains(err.Error(), "no-such-program-here") {
		t.Errorf("got %v", err)
	}
}

func TestRunReportsOutputOfAFailure(t *testing.T) {
	h := NewHost()
	defer h.Close()
	out, err := h.Run(deadline(t), "sh", "-c", "echo fine")
	if err != nil || string(out) != "fine\n" {
		t.Errorf("got %q, %v", out, err)
	}
	_, err = h.Run(deadline(t), "sh", "-c", "echo because >&2; exit 1")
	if err == nil || !strings.Contains(err.Error(), "because") {
		t.Errorf("got %v", err)
	}
}

func TestNetworkOfItsOwn(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a network namespace needs root")
	}
	h, err := NewNetwork()
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	out, err := h.Run(deadline(t), "cat", "/proc/net/dev")
	if err != nil {
		t.Fatal(err)
	}
	if n := bytes.Count(out, []byte(":")); n != 1 || !bytes.Contains(out, []byte("lo:")) {
		t.Errorf("expected lo and nothing else:\n%s", out)
	}
}

func TestCPU(t *testing.T) {
	if _, err := CPU(os.Getpid()); err != nil {
		t.Error(err)
	}
	if _, err := CPU(0); err == nil {
		t.Error("process 0 has a CPU time")
	}
}
