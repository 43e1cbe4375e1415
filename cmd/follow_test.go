package cmd_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
)

// tail is a lockstepctl that goes on printing JSON, an object a line.
type tail struct {
	cmd   *exec.Cmd
	lines *bufio.Scanner

	mu  sync.Mutex
	err bytes.Buffer // standard error, guarded by mu
}

func (f *tail) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err.Write(p)
}

func (f *tail) said() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err.String()
}

func follow(t *testing.T, n *cluster.Node, args ...string) *tail {
	t.Helper()
	f := new(tail)
	f.cmd = exec.CommandContext(within(t, 2*patience), filepath.Join(real.dir, "lockstepctl"), append([]string{"-t", n.Socket(), "-f", "json"}, args...)...)
	f.cmd.Stderr = f
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	f.lines = bufio.NewScanner(out)
	f.lines.Buffer(nil, 1<<20)
	return f
}

// until reads objects until one is as wanted.
func (f *tail) until(t *testing.T, what string, wanted func(line []byte) bool) {
	t.Helper()
	for f.lines.Scan() {
		if wanted(f.lines.Bytes()) {
			return
		}
	}
	t.Fatalf("it ended before %s; it said: %s", what, f.said())
}

// end interrupts it, which is no failure.
func (f *tail) end(t *testing.T) {
	t.Helper()
	if err := f.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	for f.lines.Scan() { // Wait wants all of it read
	}
	if err := f.cmd.Wait(); err != nil {
		t.Errorf("after an interrupt: %v; it said: %s", err, f.said())
	}
}

// TestFollowersOutliveTheDaemon restarts it under those who look on, in order
// and with SIGKILL: each event of the next life is shown, from the first on,
// and it is said that there was a restart.
func TestFollowersOutliveTheDaemon(t *testing.T) {
	t.Parallel()
	c := start(t, one())
	n := c.Nodes[0]
	events := follow(t, n, "events", "--after", "1")
	watch := follow(t, n, "status", "--watch")
	life, last := 1, uint64(1)
	seesPrimary := func() {
		t.Helper()
		if out, err := n.Lockstepctl(within(t, patience), "device", "promote", "r0"); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		events.until(t, "the role", func(line []byte) bool {
			var e struct {
				Seq  uint64
				Type string
			}
			if err := json.Unmarshal(line, &e); err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			if e.Seq == 1 {
				life, last = life+1, 0
			}
			if last++; e.Seq != last {
				t.Fatalf("event %d comes in place of %d", e.Seq, last)
			}
			return e.Type == "role"
		})
		watch.until(t, "the role", func(line []byte) bool { return bytes.Contains(line, []byte(`"role":"primary"`)) })
	}
	seesPrimary()
	for i, restart := range []func() error{
		func() error { return n.Restart(within(t, patience)) },
		func() error { n.Kill9(); return n.Start(within(t, patience)) },
	} {
		if err := restart(); err != nil {
			t.Fatal(err)
		}
		watch.until(t, "a status of the next life", func(line []byte) bool { return bytes.Contains(line, []byte(`"role":"secondary"`)) })
		seesPrimary()
		if life != i+2 {
			t.Errorf("%d lives were seen, not %d", life, i+2)
		}
	}
	events.end(t)
	watch.end(t)
	if said := events.said(); strings.Count(said, "lost the connection to") != 2 || strings.Count(said, "the daemon was restarted") != 2 {
		t.Errorf("events said: %s", said)
	}
	if said := watch.said(); strings.Count(said, "lost the connection to") != 2 {
		t.Errorf("status --watch said: %s", said)
	}
}
