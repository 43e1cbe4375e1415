package nbd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/nbd/client"
	"github.com/lockstepd/lockstep/server/nbd/nbdtest"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// goData is the data of GO and INFO.
func goData(name string, asked ...proto.Info) []byte {
	b := binary.BigEndian.AppendUint16(proto.AppendString(nil, name), uint16(len(asked)))
	for _, t := range asked {
		b = binary.BigEndian.AppendUint16(b, uint16(t))
	}
	return b
}

// metaData is the data of the metadata context options.
func metaData(name string, queries ...string) []byte {
	b := binary.BigEndian.AppendUint32(proto.AppendString(nil, name), uint32(len(queries)))
	for _, q := range queries {
		b = proto.AppendString(b, q)
	}
	return b
}

func TestOptionsThatAreRefusedLeaveTheStreamIntact(t *testing.T) {
	for _, tc := range []struct {
		name string
		opt  proto.Option
		data []byte
		want proto.Rep
	}{
		{"unknown", 4711, []byte("whatever"), proto.RepErrUnsup},
		{"withdrawn PEEK", 4, nil, proto.RepErrUnsup},
		{"TLS", proto.OptStartTLS, nil, proto.RepErrUnsup},
		{"extended headers", proto.OptExtendedHeaders, nil, proto.RepErrUnsup},
		{"LIST with data", proto.OptList, []byte{0}, proto.RepErrInvalid},
		{"STRUCTURED_REPLY with data", proto.OptStructuredReply, []byte{0}, proto.RepErrInvalid},
		{"data too long", proto.OptGo, make([]byte, 1<<20), proto.RepErrTooBig},
		{"unknown option, data too long", 4711, make([]byte, 1<<20), proto.RepErrTooBig},
		{"GO without data", proto.OptGo, nil, proto.RepErrInvalid},
		{"GO with half a name", proto.OptGo, []byte{0, 0, 0, 9, 'd', 'i'}, proto.RepErrInvalid},
		{"GO with a name too long", proto.OptGo, goData(strings.Repeat("x", proto.MaxString+1)), proto.RepErrInvalid},
		{"GO with fewer requests than said", proto.OptGo, append(proto.AppendString(nil, "disk"), 0, 2, 0, 1), proto.RepErrInvalid},
		{"GO with more behind", proto.OptGo, append(goData("disk"), 0), proto.RepErrInvalid},
		{"GO of an unknown export", proto.OptGo, goData("disc"), proto.RepErrUnknown},
		{"INFO of an unknown export", proto.OptInfo, goData("disc"), proto.RepErrUnknown},
		{"INFO without data", proto.OptInfo, nil, proto.RepErrInvalid},
		{"contexts before structured replies", proto.OptSetMetaContext, metaData("disk", "base:allocation"), proto.RepErrInvalid},
		{"listing them before, too", proto.OptListMetaContext, metaData("disk"), proto.RepErrInvalid},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := serveMemory(t, 1<<20)
			h, _ := s.greet()
			replies, err := h.Option(tc.opt, tc.data)
			if err != nil {
				t.Fatal(err)
			}
			if got := replies[len(replies)-1]; got.Rep != tc.want || len(got.Data) == 0 {
				t.Errorf("answer: %v %q, want %v and a text", got.Rep, got.Data, tc.want)
			}
			if e, err := h.Go("disk"); err != nil || e.Size != 1<<20 {
				t.Errorf("GO afterwards: %+v, %v", e, err)
			}
		})
	}
}

func TestInfoAndGoSayTheSame(t *testing.T) {
	s, _ := serveMemory(t, 1<<20)
	h, _ := s.greet()
	if err := h.StructuredReply(); err != nil {
		t.Fatal(err)
	}
	info, err := h.Info("disk")
	if err != nil {
		t.Fatal(err)
	}
	opened, err := h.Go("disk")
	if err != nil {
		t.Fatal(err)
	}
	want := client.Export{
		Name: "disk", Description: "a disk in memory", Size: 1 << 20,
		Flags: proto.HasFlags | proto.SendFlush | proto.SendFUA | proto.SendTrim | proto.SendWriteZeroes |
			proto.SendFastZero | proto.SendDF | proto.CanMultiConn | proto.SendCache,
		MinBlock: 512, Preferred: 4096, Max: 32 << 20,
	}
	if d := cmp.Diff(want, info) + cmp.Diff(info, opened); d != "" {
		t.Error(d)
	}
}

func TestFlagsAndSizesFollowTheExport(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*nbd.Info)
		want   client.Export
	}{
		{"bare", func(i *nbd.Info) { *i = nbd.Info{Name: "disk", Size: 1 << 20} },
			client.Export{Flags: proto.HasFlags | proto.SendFlush | proto.SendFUA, MinBlock: 512, Preferred: 4096, Max: 32 << 20}},
		{"read-only and rotational", func(i *nbd.Info) {
			*i = nbd.Info{Name: "disk", Size: 1 << 20, ReadOnly: true, Rotational: true}
		}, client.Export{Flags: proto.HasFlags | proto.SendFlush | proto.SendFUA | proto.ReadOnly | proto.Rotational, MinBlock: 512, Preferred: 4096, Max: 32 << 20}},
		{"own sizes", func(i *nbd.Info) {
			*i = nbd.Info{Name: "disk", Size: 1 << 20, MinBlock: 4096, Preferred: 65536, MaxPayload: 1 << 20}
		}, client.Export{Flags: proto.HasFlags | proto.SendFlush | proto.SendFUA, MinBlock: 4096, Preferred: 65536, Max: 1 << 20}},
		{"odd size", func(i *nbd.Info) { *i = nbd.Info{Name: "disk", Size: 1<<20 - 2} },
			client.Export{Flags: proto.HasFlags | proto.SendFlush | proto.SendFUA, MinBlock: 2, Preferred: 4096, Max: 32 << 20}},
		{"fast zeroes need zeroes", func(i *nbd.Info) { *i = nbd.Info{Name: "disk", Size: 1 << 20, FastZero: true} },
			client.Export{Flags: proto.HasFlags | proto.SendFlush | proto.SendFUA, MinBlock: 512, Preferred: 4096, Max: 32 << 20}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := nbdtest.NewMemory("disk", 1<<20).Change(tc.change)
			h, _ := start(t, nbdtest.NewBackend(m), nbd.Limits{}).greet()
			got, err := h.Go("disk")
			if err != nil {
				t.Fatal(err)
			}
			tc.want.Name, tc.want.Size = "disk", m.Info().Size
			if d := cmp.Diff(tc.want, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestListNamesEveryExport(t *testing.T) {
	s := start(t, nbdtest.NewBackend(nbdtest.NewMemory("a", 1<<20), nbdtest.NewMemory("b", 1<<20)), nbd.Limits{})
	got, err := client.List(t.Context(), "unix", s.addr)
	if d := cmp.Diff([]string{"a", "b"}, got); d != "" || err != nil {
		t.Error(d, err)
	}
}

func TestTheEmptyNameIsTheOnlyExport(t *testing.T) {
	one, _ := serveMemory(t, 1<<20)
	if c := one.dial(client.Options{}); c.Export().Name != "disk" {
		t.Errorf("opened %q", c.Export().Name)
	}
	two := start(t, nbdtest.NewBackend(nbdtest.NewMemory("a", 1<<20), nbdtest.NewMemory("b", 1<<20)), nbd.Limits{})
	_, err := client.Dial(t.Context(), "unix", two.addr, client.Options{})
	if e, ok := errors.AsType[*client.OptError](err); !ok || e.Rep != proto.RepErrUnknown || !strings.Contains(e.Text, "name one") {
		t.Errorf("with two exports: %v", err)
	}
}

func TestAListenerOfOneExportShowsNoOther(t *testing.T) {
	s := start(t, nbdtest.NewBackend(nbdtest.NewMemory("a", 1<<20), nbdtest.NewMemory("b", 2<<20)), nbd.Limits{})
	addr := socketPath(t)
	ln, err := net.Listen("unix", addr)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.ServeOnly(t.Context(), ln, "b") }()
	if got, err := client.List(t.Context(), "unix", addr); err != nil || len(got) != 1 || got[0] != "b" {
		t.Errorf("list: %v, %v", got, err)
	}
	for _, tc := range []struct {
		name string
		ok   bool
	}{{"b", true}, {"", true}, {"a", false}, {"c", false}} {
		c, err := client.Dial(t.Context(), "unix", addr, client.Options{Export: tc.name})
		if (err == nil) != tc.ok {
			t.Errorf("%q: %v", tc.name, err)
		}
		if err == nil {
			if c.Size() != 2<<20 {
				t.Errorf("%q is the wrong export", tc.name)
			}
			_ = c.Abort()
		}
	}
	s.Close()
	if err := await(t, "Serve to return", served); err != nil {
		t.Error(err)
	}
}

func TestExportNameOpensTheOldWay(t *testing.T) {
	for _, flags := range []uint32{0, proto.FixedNewstyle, proto.NoZeroes, proto.FixedNewstyle | proto.NoZeroes} {
		t.Run(fmt.Sprintf("client flags %d", flags), func(t *testing.T) {
			s, _ := serveMemory(t, 1<<20)
			nc := s.connect()
			h, err := client.Greet(nc, flags)
			if err != nil {
				t.Fatal(err)
			}
			e, err := h.ExportName("disk", flags&proto.NoZeroes == 0)
			if err != nil || e.Size != 1<<20 || e.Flags&proto.SendFUA == 0 {
				t.Fatalf("%+v, %v", e, err)
			}
			readSimple(t, nc, 1)
		})
	}
}

// readSimple reads 512 bytes over a bare connection with simple replies.
func readSimple(t *testing.T, nc net.Conn, cookie uint64) {
	t.Helper()
	if _, err := nc.Write(proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdRead, Cookie: cookie, Len: 512})); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, proto.ReplySize+512)
	if _, err := io.ReadFull(nc, b); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b[:proto.ReplySize], proto.AppendReply(nil, proto.OK, cookie)) {
		t.Errorf("reply %x", b[:proto.ReplySize])
	}
}

func TestStreamsThatAreBrokenAreDropped(t *testing.T) {
	valid := binary.BigEndian.AppendUint32(nil, proto.FixedNewstyle|proto.NoZeroes)
	for name, sent := range map[string][]byte{
		"garbage":                []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"),
		"unknown client flags":   {0, 0, 0, 4},
		"garbage for an option":  append(valid, "IHAVEOPX\x00\x00\x00\x01\x00\x00\x00\x00"...),
		"unknown EXPORT_NAME":    append(valid, proto.AppendOption(nil, proto.OptExportName, []byte("disc"))...),
		"endless EXPORT_NAME":    append(valid, proto.AppendOption(nil, proto.OptExportName, make([]byte, 5000))...),
		"garbage for a request":  append(append(valid, proto.AppendOption(nil, proto.OptGo, goData("disk"))...), make([]byte, 28)...),
		"a hang-up in an option": append(valid, "IHAVEOPT"...),
	} {
		t.Run(name, func(t *testing.T) {
			s, _ := serveMemory(t, 1<<20)
			nc := s.connect().(*net.UnixConn)
			if _, err := nc.Write(sent); err != nil {
				t.Fatal(err)
			}
			if strings.HasPrefix(name, "a hang-up") {
				if err := nc.CloseWrite(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := io.Copy(io.Discard, nc); errors.Is(err, context.DeadlineExceeded) {
				t.Error("the connection was kept")
			}
			s.dial(client.Options{}) // and others are served
		})
	}
}

func TestAbortIsAcknowledged(t *testing.T) {
	s, _ := serveMemory(t, 1<<20)
	h, _ := s.greet()
	if err := h.Abort(); err != nil {
		t.Error(err)
	}
}

func TestMetaContexts(t *testing.T) {
	reps := func(t *testing.T, h *client.Handshake, o proto.Option, data []byte) []string {
		t.Helper()
		all, err := h.Option(o, data)
		if err != nil {
			t.Fatal(err)
		}
		var s []string
		for _, r := range all {
			if r.Rep == proto.RepMetaContext {
				s = append(s, string(r.Data[4:]))
			} else {
				s = append(s, r.Rep.String())
			}
		}
		return s
	}
	for _, tc := range []struct {
		name string
		opt  proto.Option
		data []byte
		want []string
	}{
		{"list all", proto.OptListMetaContext, metaData("disk"), []string{"base:allocation", "ACK"}},
		{"list a namespace", proto.OptListMetaContext, metaData("disk", "base:"), []string{"base:allocation", "ACK"}},
		{"list another", proto.OptListMetaContext, metaData("disk", "qemu:"), []string{"ACK"}},
		{"set", proto.OptSetMetaContext, metaData("disk", "base:allocation"), []string{"base:allocation", "ACK"}},
		{"set among others", proto.OptSetMetaContext, metaData("disk", "qemu:dirty-bitmap:x", "base:allocation"), []string{"base:allocation", "ACK"}},
		{"set knows no wildcard", proto.OptSetMetaContext, metaData("disk", "base:"), []string{"ACK"}},
		{"set none", proto.OptSetMetaContext, metaData("disk"), []string{"ACK"}},
		{"unknown export", proto.OptSetMetaContext, metaData("disc", "base:allocation"), []string{"unknown export"}},
		{"more queries than there are", proto.OptSetMetaContext, metaData("disk")[:8], []string{"invalid option"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s, _ := serveMemory(t, 1<<20)
			h, _ := s.greet()
			if err := h.StructuredReply(); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tc.want, reps(t, h, tc.opt, tc.data)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestAContextCountsOnlyForItsExport(t *testing.T) {
	for _, tc := range []struct {
		name string
		sets []string // exports, one after the other; "!" makes the option fail
		want proto.Errno
	}{
		{"agreed on", []string{"a"}, proto.OK},
		{"for another", []string{"b"}, proto.EINVAL},
		{"replaced", []string{"a", "b"}, proto.EINVAL},
		{"lost by a failure", []string{"a", "!"}, proto.EINVAL},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := start(t, nbdtest.NewBackend(nbdtest.NewMemory("a", 1<<20), nbdtest.NewMemory("b", 1<<20)), nbd.Limits{})
			h, nc := s.greet()
			if err := h.StructuredReply(); err != nil {
				t.Fatal(err)
			}
			for _, x := range tc.sets {
				if _, err := h.SetMetaContext(x); err != nil && x != "!" {
					t.Fatal(err)
				}
			}
			if _, err := h.Go("a"); err != nil {
				t.Fatal(err)
			}
			if _, err := nc.Write(proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdBlockStatus, Len: 4096})); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, proto.ChunkSize+4)
			if _, err := io.ReadFull(nc, b); err != nil {
				t.Fatal(err)
			}
			got := proto.OK
			if proto.Chunk(binary.BigEndian.Uint16(b[6:])) == proto.ChunkError {
				got = proto.Errno(binary.BigEndian.Uint32(b[proto.ChunkSize:]))
			}
			if got != tc.want {
				t.Errorf("BLOCK_STATUS: %v, want %v", got, tc.want)
			}
		})
	}
}

func TestARefusedOpenTellsTheClientWhy(t *testing.T) {
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.OnOpen = func(context.Context, string, nbd.ClientInfo) error {
		return errors.New("cannot promote disk: peer beta is primary")
	}
	s := start(t, b, nbd.Limits{})
	_, err := client.Dial(t.Context(), "unix", s.addr, client.Options{Export: "disk"})
	if e, ok := errors.AsType[*client.OptError](err); !ok || e.Rep != proto.RepErrPolicy || e.Text != "cannot promote disk: peer beta is primary" {
		t.Errorf("got %v", err)
	}
}

func TestAnOpenThatCannotBeAnsweredDropsTheClient(t *testing.T) {
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	b.OnOpen = func(context.Context, string, nbd.ClientInfo) error {
		return fmt.Errorf("suspended: %w", block.ErrDropped)
	}
	s := start(t, b, nbd.Limits{})
	h, _ := s.greet()
	if _, err := h.Go("disk"); !errors.Is(err, io.EOF) {
		t.Errorf("got %v, want a hang-up", err)
	}
}

func TestAnOpenEndsWhenTheClientHangsUp(t *testing.T) {
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	opening, gaveUp := make(chan struct{}), make(chan struct{})
	b.OnOpen = func(ctx context.Context, _ string, _ nbd.ClientInfo) error {
		close(opening)
		<-ctx.Done()
		close(gaveUp)
		return context.Cause(ctx)
	}
	s := start(t, b, nbd.Limits{})
	_, nc := s.greet()
	if _, err := nc.Write(proto.AppendOption(nil, proto.OptGo, goData("disk"))); err != nil {
		t.Fatal(err)
	}
	await(t, "the open", opening)
	_ = nc.Close()
	await(t, "the open to be given up", gaveUp)
}

func TestTheBackendIsToldWhoOpens(t *testing.T) {
	b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
	seen := make(chan nbd.ClientInfo, 1)
	b.OnOpen = func(_ context.Context, _ string, c nbd.ClientInfo) error { seen <- c; return nil }
	start(t, b, nbd.Limits{}).dial(client.Options{})
	if c := await(t, "the open", seen); c.Network != "unix" || c.PID == 0 || c.UID < 0 || c.ID != 1 || !strings.HasPrefix(c.Addr, "pid ") {
		t.Errorf("%+v", c)
	}
}

func TestOptionsAreLimited(t *testing.T) {
	s := start(t, nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20)), nbd.Limits{Options: 5})
	h, _ := s.greet()
	for range 5 {
		if _, err := h.List(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.List(); err == nil {
		t.Error("one option too many was answered")
	}
}

func TestConnectionsAreLimited(t *testing.T) {
	s := start(t, nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20)), nbd.Limits{Connections: 2})
	first := s.dial(client.Options{})
	s.dial(client.Options{})
	if _, err := client.Dial(t.Context(), "unix", s.addr, client.Options{}); err == nil {
		t.Fatal("a connection too many was served")
	}
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "room for a connection", func() bool {
		c, err := client.Dial(t.Context(), "unix", s.addr, client.Options{})
		if err != nil {
			return false
		}
		return c.Close() == nil
	})
	if st := s.Stats(); st.Refused == 0 {
		t.Errorf("nothing was counted as refused: %+v", st)
	}
}

// pipeListener hands out one end of pipes, for servers in virtual time.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "pipe"} }

func (l *pipeListener) dial() net.Conn {
	a, b := net.Pipe()
	l.conns <- b
	return a
}

func TestAHandshakeHasItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := nbd.NewServer(nbd.Options{Backend: nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))})
		ln := newPipeListener()
		var served sync.WaitGroup
		served.Go(func() {
			if err := s.Serve(t.Context(), ln); err != nil {
				t.Error(err)
			}
		})
		nc, began := ln.dial(), time.Now()
		h, err := client.Greet(nc, proto.FixedNewstyle|proto.NoZeroes)
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Second) // virtual
		if _, err := h.List(); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Read(make([]byte, 1)); err == nil || time.Since(began) != 30*time.Second {
			t.Errorf("dropped after %v: %v", time.Since(began), err)
		}
		s.Close()
		served.Wait()
	})
}

func TestAnOpenThatTakesLongIsNotTheClientsFault(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))
		b.OnOpen = func(context.Context, string, nbd.ClientInfo) error {
			time.Sleep(time.Hour) // virtual
			return nil
		}
		s := nbd.NewServer(nbd.Options{Backend: b})
		ln := newPipeListener()
		var served sync.WaitGroup
		served.Go(func() { _ = s.Serve(t.Context(), ln) })
		c, err := client.New(t.Context(), ln.dial(), client.Options{Export: "disk"})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour) // an idle client is kept
		if _, err := c.WriteAt(pattern(4096, 1), 0); err != nil {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		s.Close()
		served.Wait()
	})
}
