package nbd_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/nbd/client"
	"github.com/lockstepd/lockstep/server/nbd/nbdtest"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience bounds waits that end at once unless something is broken.
const patience = 20 * time.Second

// testServer is a server on a Unix socket.
type testServer struct {
	*nbd.Server
	t    testing.TB
	addr string
}

// socketPath returns a path short enough for a Unix socket.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func start(t testing.TB, b nbd.Backend, l nbd.Limits) *testServer {
	t.Helper()
	return serveOptions(t, nbd.Options{Backend: b, Limits: l})
}

func serveOptions(t testing.TB, o nbd.Options) *testServer {
	t.Helper()
	addr := socketPath(t)
	ln, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s := &testServer{nbd.NewServer(o), t, addr}
	var served sync.WaitGroup
	served.Go(func() {
		if err := s.Serve(context.Background(), ln); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	t.Cleanup(func() {
		s.Close()
		served.Wait()
	})
	return s
}

func (s *testServer) dial(o client.Options) *client.Client {
	s.t.Helper()
	c, err := client.Dial(s.t.Context(), "unix", s.addr, o)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = c.Abort() })
	return c
}

// connect returns a bare connection.
func (s *testServer) connect() net.Conn {
	s.t.Helper()
	nc, err := net.Dial("unix", s.addr)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		s.t.Fatal(err)
	}
	return nc
}

// greet returns a connection past the greeting.
func (s *testServer) greet() (*client.Handshake, net.Conn) {
	s.t.Helper()
	nc := s.connect()
	h, err := client.Greet(nc, proto.FixedNewstyle|proto.NoZeroes)
	if err != nil {
		s.t.Fatal(err)
	}
	return h, nc
}

// serveMemory starts a server with one memory disk called "disk".
func serveMemory(t testing.TB, size int64) (*testServer, *nbdtest.Memory) {
	m := nbdtest.NewMemory("disk", size)
	return start(t, nbdtest.NewBackend(m), nbd.Limits{}), m
}

// await waits for ch, which something is expected to close or feed.
func await[T any](t testing.TB, what string, ch <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

// eventually polls for a state that is reached by itself.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

func pattern(n int, seed byte) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = byte(i*7+i>>8) ^ seed
	}
	return p
}

func errno(err error) proto.Errno {
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Errno
	}
	return proto.OK
}

// errTooMany is what accept says when the process has no descriptors left.
const errTooMany = unix.EMFILE
