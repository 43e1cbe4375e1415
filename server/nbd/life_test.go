package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/nbd/client"
	"github.com/lockstepd/lockstep/server/nbd/nbdtest"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

func TestAClientKilledInMidWriteWritesNothing(t *testing.T) {
	for _, n := range []int{4096, 5 << 20} {
		s, m := serveMemory(t, 64<<20)
		h, nc := s.greet()
		if _, err := h.Go("disk"); err != nil {
			t.Fatal(err)
		}
		b := proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdWrite, Len: uint32(n)})
		if _, err := nc.Write(append(b, pattern(n/2, 1)...)); err != nil {
			t.Fatal(err)
		}
		_ = nc.Close()
		s.dial(client.Options{}) // waits for the one before to be gone
		if !bytes.Equal(m.Content(), make([]byte, 64<<20)) {
			t.Errorf("half a write of %d was carried out", n)
		}
	}
}

func TestASuccessorWaitsForRequestsOfTheDead(t *testing.T) {
	h := hold(block.Write, 10)
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.Hook = h.hook
	closing, mayClose := make(chan struct{}), make(chan struct{})
	var once sync.Once
	b.OnClose = func(string) error {
		once.Do(func() { close(closing) })
		<-mayClose
		return nil
	}
	s := start(t, b, nbd.Limits{})
	first := s.dial(client.Options{})
	if _, err := first.Start(proto.Request{Cmd: proto.CmdWrite, Len: 512}, pattern(512, 1)); err != nil {
		t.Fatal(err)
	}
	r := await(t, "the write", h.held)
	_ = first.Abort()
	await(t, "the backend to be closed", closing)

	opened := make(chan struct{})
	go func() {
		defer close(opened)
		s.dial(client.Options{})
	}()
	eventually(t, "the successor to wait", func() bool { return s.Stats().Handshaking == 1 })
	select {
	case <-opened:
		t.Fatal("the successor was served while a write of the dead connection was in flight")
	default:
	}
	close(mayClose)
	await(t, "the successor to be served", opened)
	r.Done.Complete(r, nil) // too late for anybody, and harmless
}

func TestADeadClientIsFoundThoughItsReaderIsBusy(t *testing.T) {
	h := hold(block.Write, 10)
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.Hook = h.hook
	s := start(t, b, nbd.Limits{Inflight: 2})
	first := s.dial(client.Options{})
	for i := range 5 { // the reader waits for room, and sees no hang-up
		if _, err := first.Start(proto.Request{Cmd: proto.CmdWrite, Off: uint64(i * 512), Len: 512}, pattern(512, 1)); err != nil {
			t.Fatal(err)
		}
	}
	first1, first2 := await(t, "a write", h.held), await(t, "a write", h.held)
	_ = first.Abort()
	s.dial(client.Options{})
	if n := b.Opened("disk"); n != 1 {
		t.Errorf("%d handles are open", n)
	}
	first1.Done.Complete(first1, nil)
	first2.Done.Complete(first2, nil)
	if len(h.held) != 0 {
		t.Error("a request of the dead connection was submitted after its successor was served")
	}
}

func TestLivingConnectionsDoNotWaitForEachOther(t *testing.T) {
	h := hold(block.Write, 10)
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.Hook = h.hook
	s := start(t, b, nbd.Limits{})
	p, err := s.dial(client.Options{}).Start(proto.Request{Cmd: proto.CmdWrite, Len: 512}, pattern(512, 1))
	if err != nil {
		t.Fatal(err)
	}
	r := await(t, "the write", h.held)
	if err := s.dial(client.Options{}).Flush(); err != nil {
		t.Error(err)
	}
	r.Done.Complete(r, nil)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

func TestGoodbyeWaitsForWhatIsInFlight(t *testing.T) {
	h := hold(block.Write, 10)
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.Hook = h.hook
	s := start(t, b, nbd.Limits{})
	c := s.dial(client.Options{})
	p, err := c.Start(proto.Request{Cmd: proto.CmdWrite, Len: 512}, pattern(512, 1))
	if err != nil {
		t.Fatal(err)
	}
	r := await(t, "the write", h.held)
	closed := make(chan error, 1)
	go func() { closed <- c.Close() }()
	eventually(t, "the goodbye to be sent", func() bool { return s.Stats().Connections[0].Stats.BytesIn == 2*proto.RequestSize+512 })
	r.Done.Complete(r, nil)
	if err := p.Wait(); err != nil {
		t.Errorf("the write before the goodbye: %v", err)
	}
	if err := await(t, "the server to hang up", closed); err != nil {
		t.Error(err)
	}
}

func TestGoodbyeOfAClientThatDoesNotWait(t *testing.T) {
	h := hold(block.Write, 10)
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.Hook = h.hook
	closed := make(chan struct{})
	b.OnClose = func(string) error { close(closed); return nil }
	s := start(t, b, nbd.Limits{})
	hs, nc := s.greet()
	if _, err := hs.Go("disk"); err != nil {
		t.Fatal(err)
	}
	w := proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdWrite, Len: 512})
	w = append(w, pattern(512, 1)...)
	if _, err := nc.Write(proto.AppendRequest(w, proto.Request{Cmd: proto.CmdDisc})); err != nil {
		t.Fatal(err)
	}
	r := await(t, "the write", h.held)
	_ = nc.Close()
	await(t, "the export to be closed though the write hangs", closed)
	r.Done.Complete(r, nil)
}

func TestCloseDropsClientsUnanswered(t *testing.T) {
	h := hold(block.Write, 10)
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.Hook = h.hook
	s := start(t, b, nbd.Limits{})
	c := s.dial(client.Options{})
	p, err := c.Start(proto.Request{Cmd: proto.CmdWrite, Len: 512}, pattern(512, 1))
	if err != nil {
		t.Fatal(err)
	}
	r := await(t, "the write", h.held)
	s.Close()
	if err := p.Wait(); !errors.Is(err, client.ErrLost) {
		t.Errorf("got %v", err)
	}
	r.Done.Complete(r, nil)
	ln, err := net.Listen("unix", socketPath(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), ln); !errors.Is(err, nbd.ErrClosed) {
		t.Errorf("Serve after Close: %v", err)
	}
}

func TestDroppingAnExportLeavesTheOthers(t *testing.T) {
	s := start(t, nbdtest.NewBackend(nbdtest.NewMemory("a", 1<<20), nbdtest.NewMemory("b", 1<<20)), nbd.Limits{})
	a, b := s.dial(client.Options{Export: "a"}), s.dial(client.Options{Export: "b"})
	s.Drop("a")
	await(t, "the connection to be dropped", a.Done())
	if err := b.Flush(); err != nil {
		t.Error(err)
	}
	if err := s.dial(client.Options{Export: "a"}).Flush(); err != nil {
		t.Errorf("the next connection: %v", err)
	}
}

func TestAStuckClientLeavesRoomForOthers(t *testing.T) {
	h := hold(block.Write, 10)
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 8<<20))
	b.Hook = h.hook
	s := start(t, b, nbd.Limits{TotalBytes: 1 << 20})
	p, err := s.dial(client.Options{}).Start(proto.Request{Cmd: proto.CmdWrite, Len: 2 << 20}, pattern(2<<20, 1))
	if err != nil {
		t.Fatal(err)
	}
	r := await(t, "the write", h.held)
	h.off.Store(true)
	c := s.dial(client.Options{})
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			if _, err := c.ReadAt(make([]byte, 1<<20), 0); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	r.Done.Complete(r, nil)
	if err := p.Wait(); err != nil {
		t.Error(err)
	}
}

func TestServeEndsWithItsContextAndItsConnections(t *testing.T) {
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	s := start(t, b, nbd.Limits{})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.Serve(ctx, ln) }()
	overTCP, err := client.Dial(t.Context(), "tcp", ln.Addr().String(), client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = overTCP.Abort() }()
	overUnix := s.dial(client.Options{})
	cancel()
	if err := await(t, "Serve to return", served); err != nil {
		t.Error(err)
	}
	await(t, "its connection to be dropped", overTCP.Done())
	if err := overUnix.Flush(); err != nil {
		t.Errorf("a connection of the other listener: %v", err)
	}
	eventually(t, "its handle to be closed", func() bool { return b.Opened("disk") == 1 })
}

// brokenListener fails as a process does that has run out of descriptors.
type brokenListener struct {
	net.Listener
	failures atomic.Int32
}

func (l *brokenListener) Accept() (net.Conn, error) {
	if l.failures.Add(-1) >= 0 {
		return nil, os.NewSyscallError("accept", errTooMany)
	}
	return l.Listener.Accept()
}

func TestRunningOutOfDescriptorsPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ln := &brokenListener{Listener: newPipeListener()}
		ln.failures.Store(20)
		s := nbd.NewServer(nbd.Options{Backend: nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))})
		served := make(chan error, 1)
		began := time.Now()
		go func() { served <- s.Serve(t.Context(), ln) }()
		c, err := client.New(t.Context(), ln.Listener.(*pipeListener).dial(), client.Options{})
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(began); d < 5*time.Second || d > time.Minute {
			t.Errorf("it took %v", d)
		}
		_ = c.Abort()
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

func TestStatsCountWhatPassed(t *testing.T) {
	b := nbdtest.NewBackend(nbdtest.NewMemory("a", 1<<20), nbdtest.NewMemory("b", 1<<20))
	s := start(t, b, nbd.Limits{})
	c := s.dial(client.Options{Export: "a"})
	for range 3 {
		if _, err := c.WriteAt(pattern(4096, 1), 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.ReadAt(make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	_ = c.Do(proto.Request{Cmd: proto.CmdRead, Off: 2 << 20, Len: 512}, make([]byte, 512))
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
	s.dial(client.Options{Export: "b"})
	check := func(st nbd.Stats, where string) {
		t.Helper()
		if st.Write.Requests != 3 || st.Write.Bytes != 3*4096 || st.Read.Requests != 2 || st.Read.Bytes != 512 || st.Read.Errors != 1 || st.Flush.Requests != 1 {
			t.Errorf("%s: %+v", where, st)
		}
		var n uint64
		for _, v := range st.Write.Latency {
			n += v
		}
		if n != 3 || st.Write.Nanos == 0 {
			t.Errorf("%s: latencies %v", where, st.Write.Latency)
		}
	}
	st := s.Stats()
	if len(st.Connections) != 2 || len(st.Exports) != 2 || st.Exports[0].Open != 1 || st.Connections[0].Export != "a" || st.Accepted != 2 {
		t.Fatalf("%+v", st)
	}
	check(st.Connections[0].Stats, "connection")
	check(st.Exports[0].Stats, "export")
	check(s.Export("a").Stats, "export alone")
	if x := s.Export("c"); x != (nbd.ExportStats{Export: "c"}) {
		t.Errorf("of an export that was never opened: %+v", x)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the connection to be forgotten", func() bool { return len(s.Stats().Connections) == 1 })
	check(s.Stats().Exports[0].Stats, "export, afterwards")
	if s.Stats().Exports[0].Open != 0 {
		t.Error("it is still open")
	}
}

func TestConnectionsAreHandedOver(t *testing.T) {
	m := nbdtest.NewMemory("disk", 64<<20)
	old := start(t, nbdtest.NewBackend(m), nbd.Limits{})
	var clients []*client.Client
	for range 3 {
		clients = append(clients, old.dial(client.Options{}))
	}
	var stop atomic.Bool
	var wg sync.WaitGroup
	var rounds atomic.Int64
	for w := range 12 {
		wg.Go(func() {
			c, base := clients[w%3], int64(w)*5<<20
			sizes := []int{512, 4096, 100 << 10, 5 << 20}
			for i := 0; !stop.Load(); i++ {
				p := pattern(sizes[(w+i)%4], byte(i))
				if _, err := c.WriteAt(p, base); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				got := make([]byte, len(p))
				if _, err := c.ReadAt(got, base); err != nil || !bytes.Equal(got, p) {
					t.Errorf("read back: %v", err)
					return
				}
				rounds.Add(1)
			}
		})
	}
	t.Cleanup(func() {
		stop.Store(true)
		wg.Wait()
	})
	servers := []*testServer{old}
	for range 5 { // each server hands over to the next, under load
		n := rounds.Load()
		eventually(t, "some traffic", func() bool { return rounds.Load() > n+20 || t.Failed() })
		last := servers[len(servers)-1]
		eventually(t, "every connection to be resumed", func() bool { return len(last.Stats().Connections) == 3 })
		passed := last.HandOver(t.Context())
		if len(passed) != 3 {
			t.Fatalf("%d connections were handed over", len(passed))
		}
		next := start(t, nbdtest.NewBackend(m), nbd.Limits{})
		servers = append(servers, next)
		for _, p := range passed {
			nc, err := net.FileConn(p.File)
			if err != nil {
				t.Fatal(err)
			}
			_ = p.File.Close()
			var resumed sync.WaitGroup
			resumed.Go(func() {
				if err := next.Resume(t.Context(), nc, p.State); err != nil {
					t.Errorf("Resume: %v", err)
				}
			})
			t.Cleanup(func() { next.Close(); resumed.Wait() })
		}
	}
	n := rounds.Load()
	eventually(t, "some traffic", func() bool { return rounds.Load() > n+20 || t.Failed() })
	stop.Store(true)
	wg.Wait()
}

// TestAHandOverBeforeTheExportIsOpenAgain hands a connection on, with half a
// request, through a server that could not open the export in its time.
func TestAHandOverBeforeTheExportIsOpenAgain(t *testing.T) {
	m := nbdtest.NewMemory("disk", 64<<20)
	first := start(t, nbdtest.NewBackend(m), nbd.Limits{})
	h, nc := first.greet()
	if _, err := h.Go("disk"); err != nil {
		t.Fatal(err)
	}
	w := append(proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdWrite, Cookie: 7, Len: 5 << 20}), pattern(5<<20, 1)...)
	if _, err := nc.Write(w[:1<<20]); err != nil {
		t.Fatal(err)
	}
	eventually(t, "half the write to arrive", func() bool {
		conns := first.Stats().Connections
		return len(conns) == 1 && conns[0].Stats.BytesIn == 1<<20
	})
	pass := func(p nbd.Passed, to *nbd.Server) chan error {
		c, err := net.FileConn(p.File)
		if err != nil {
			t.Fatal(err)
		}
		_ = p.File.Close()
		ended := make(chan error, 1)
		go func() { ended <- to.Resume(t.Context(), c, p.State) }()
		return ended
	}
	handed := func(s *nbd.Server) nbd.Passed {
		passed := s.HandOver(t.Context())
		if len(passed) != 1 || len(passed[0].State.Pending) != 1<<20 {
			t.Fatalf("%d connections were handed over", len(passed))
		}
		return passed[0]
	}
	b, opening := nbdtest.NewBackend(m), make(chan struct{})
	b.OnOpen = func(ctx context.Context, _ string, c nbd.ClientInfo) error {
		if !c.Resumed {
			t.Error("the backend is not told that the client was resumed")
		}
		close(opening)
		<-ctx.Done()
		return context.Cause(ctx)
	}
	second := nbd.NewServer(nbd.Options{Backend: b}) // it needs no listener
	ended := pass(handed(first.Server), second)
	await(t, "the export to be opened", opening)
	p := handed(second)
	if err := await(t, "Resume to return", ended); err != nil {
		t.Errorf("Resume: %v", err)
	}
	third := start(t, nbdtest.NewBackend(m), nbd.Limits{})
	ended = pass(p, third.Server)
	if _, err := nc.Write(w[1<<20:]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, make([]byte, 16)); err != nil {
		t.Fatalf("no answer: %v", err)
	}
	if !bytes.Equal(m.Content()[:5<<20], pattern(5<<20, 1)) {
		t.Error("the write is not what was sent")
	}
	_ = nc.Close()
	if err := await(t, "Resume to return", ended); err != nil {
		t.Errorf("Resume: %v", err)
	}
}

// TestAHandOverWaitsForHandshakes: a client that has connected is not turned
// away because it has not chosen its export yet, nor one whose export is just
// being opened.
func TestAHandOverWaitsForHandshakes(t *testing.T) {
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	opening, open := make(chan struct{}, 2), make(chan struct{})
	b.OnOpen = func(ctx context.Context, _ string, _ nbd.ClientInfo) error {
		opening <- struct{}{}
		select {
		case <-open:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	s := start(t, b, nbd.Limits{Grace: patience})
	choosing, _ := s.greet()
	waiting, _ := s.greet()
	chosen := make(chan error, 2)
	choose := func(h *client.Handshake) {
		_, err := h.Go("disk")
		chosen <- err
	}
	go choose(waiting)
	await(t, "an export to be opened", opening)
	passed := make(chan []nbd.Passed, 1)
	go func() { passed <- s.HandOver(t.Context()) }()
	eventually(t, "the server to take no more clients", func() bool {
		nc, err := net.Dial("unix", s.addr)
		if err == nil {
			_ = nc.Close()
		}
		return err != nil
	})
	go choose(choosing)
	await(t, "the other export to be opened", opening)
	close(open)
	for range 2 {
		if err := await(t, "the choice to be answered", chosen); err != nil {
			t.Error(err)
		}
	}
	got := await(t, "the hand-over", passed)
	if len(got) != 2 {
		t.Errorf("%d connections were handed over", len(got))
	}
	for _, p := range got {
		_ = p.File.Close()
	}
}

func TestWhatCannotBeHandedOverIsDropped(t *testing.T) {
	h := hold(block.Write, 10)
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.Hook = h.hook
	s := start(t, b, nbd.Limits{Grace: time.Millisecond})
	stuck, idle := s.dial(client.Options{}), s.dial(client.Options{})
	p, err := stuck.Start(proto.Request{Cmd: proto.CmdWrite, Len: 512}, pattern(512, 1))
	if err != nil {
		t.Fatal(err)
	}
	r := await(t, "the write", h.held)
	_, greeted := s.greet() // in its handshake
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer cancel()
		_, _ = io.Copy(io.Discard, greeted) // dropped at once
		eventually(t, "the idle one to be handed over", func() bool { return len(s.Stats().Connections) == 1 })
	}()
	passed := s.HandOver(ctx)
	if len(passed) != 1 || passed[0].State.Export != "disk" || !passed[0].State.Structured || !passed[0].State.Allocation {
		t.Errorf("handed over: %+v", passed)
	}
	for _, p := range passed {
		_ = p.File.Close()
	}
	if err := p.Wait(); !errors.Is(err, client.ErrLost) {
		t.Errorf("the write in flight: %v", err)
	}
	_ = idle.Abort()
	r.Done.Complete(r, nil)
}

func TestPanicsOnASecondCompletion(t *testing.T) {
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	caught := make(chan any, 1)
	b.Hook = func(r *block.Request, batch *block.Batch) bool {
		r.Done.Complete(r, batch)
		func() {
			defer func() { caught <- recover() }()
			r.Done.Complete(r, batch)
		}()
		return true
	}
	if err := start(t, b, nbd.Limits{}).dial(client.Options{}).Flush(); err != nil {
		t.Error(err)
	}
	if await(t, "the panic", caught) == nil {
		t.Error("nobody noticed")
	}
}
