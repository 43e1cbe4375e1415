package nbdio

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// serve starts an NBD server that is not ours.
func serve(t *testing.T, args ...string) (socket string) {
	if _, err := exec.LookPath("nbdkit"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal(err)
		}
		t.Skip("no nbdkit to test against (Debian: nbdkit)")
	}
	h := proc.NewHost()
	t.Cleanup(h.Close)
	socket = filepath.Join(t.TempDir(), "s")
	if _, err := h.Start(proc.Spec{Argv: append([]string{"nbdkit", "-f", "-U", socket}, args...)}); err != nil {
		t.Fatal(err)
	}
	return socket
}

// dial connects as soon as the server is there.
func dial(t *testing.T, socket, export string) (*Conn, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		c, err := Dial(ctx, socket, export)
		if !errors.Is(err, os.ErrNotExist) && !errors.Is(err, syscall.ECONNREFUSED) {
			return c, err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, err
		}
	}
}

func TestAgainstNbdkit(t *testing.T) {
	c, err := dial(t, serve(t, "memory", "8M"), "")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.Size != 8<<20 {
		t.Errorf("size %d", c.Size)
	}
	want := bytes.Repeat([]byte("lockstep"), 1<<17)
	if _, err := c.WriteAt(want, 4096); err != nil {
		t.Fatal(err)
	}
	if _, err := c.WriteFlags(want[:512], 4096, FUA); err != nil {
		t.Fatal(err)
	}
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	got := make([]byte, len(want))
	if _, err := c.ReadAt(got, 4096); err != nil || !bytes.Equal(got, want) {
		t.Errorf("read back: %v", err)
	}
	if _, err := c.ReadAt(got, 8<<20); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("read beyond the end: %v", err)
	}
	if err := c.Flush(); err != nil {
		t.Errorf("after an error reply: %v", err)
	}
}

func TestRefusedExport(t *testing.T) {
	c, err := dial(t, serve(t, "eval", "open=exit 1"), "x")
	if err == nil {
		t.Errorf("got a connection, of size %d", c.Size)
	}
}

func TestDialStopsWithItsContext(t *testing.T) {
	socket := serve(t, "eval", "open=sleep 100", "get_size=echo 4096")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for { // until the server is there, and then a while
		short, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		_, err := Dial(short, socket, "")
		stop()
		if errors.Is(err, context.DeadlineExceeded) {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatal(err)
		}
	}
}
