package nbd_test

import (
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/nbd/nbdtest"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// sockets returns the two ends of a Unix socket.
func sockets(t testing.TB) (a, b *net.UnixConn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket")
		nc, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		ends[i] = nc.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// converse has a server read sent and then a hang-up, and returns all that it
// answers.
func converse(t testing.TB, sent []byte) []byte {
	ours, theirs := sockets(t)
	ln := newPipeListener()
	s := nbd.NewServer(nbd.Options{Backend: nbdtest.NewBackend(nbdtest.NewMemory("disk", 1<<20))})
	served := make(chan error, 1)
	go func() { served <- s.Serve(t.Context(), ln) }()
	ln.conns <- theirs
	go func() {
		_, _ = ours.Write(sent) // the server may hang up before it has read it all
		_ = ours.CloseWrite()
	}()
	_ = ours.SetDeadline(time.Now().Add(patience))
	got, err := io.ReadAll(ours)
	if os.IsTimeout(err) {
		t.Errorf("the server kept the connection of a client that hung up")
	}
	_ = ours.Close()
	s.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if n := s.Stats().Buffers; n != 0 {
		t.Errorf("%d buffers were not given back", n)
	}
	return got
}

// greeting is what a server says first.
const greeting = "NBDMAGICIHAVEOPT\x00\x03"

func FuzzHandshake(f *testing.F) {
	flags := binary.BigEndian.AppendUint32(nil, proto.FixedNewstyle|proto.NoZeroes)
	for _, o := range []struct {
		opt  proto.Option
		data []byte
	}{
		{proto.OptExportName, []byte("disk")},
		{proto.OptAbort, nil},
		{proto.OptList, nil},
		{proto.OptStartTLS, nil},
		{proto.OptInfo, goData("disk", proto.InfoBlockSize, proto.InfoName, proto.InfoDescription, 99)},
		{proto.OptGo, goData("disk", proto.InfoBlockSize)},
		{proto.OptStructuredReply, nil},
		{proto.OptListMetaContext, metaData("disk")},
		{proto.OptSetMetaContext, metaData("disk", proto.ContextAllocation)},
		{proto.OptExtendedHeaders, nil},
		{4711, []byte("whatever")},
	} {
		f.Add(append(flags, proto.AppendOption(nil, o.opt, o.data)...))
	}
	all := append(flags, proto.AppendOption(nil, proto.OptStructuredReply, nil)...)
	all = proto.AppendOption(all, proto.OptSetMetaContext, metaData("disk", proto.ContextAllocation))
	all = proto.AppendOption(all, proto.OptGo, goData("disk"))
	f.Add(proto.AppendRequest(all, proto.Request{Cmd: proto.CmdBlockStatus, Len: 4096}))
	f.Add(append(flags, "IHAVEOPT\x00\x00\x00\x07\xff\xff\xff\xff"...))
	f.Fuzz(func(t *testing.T, sent []byte) {
		got := converse(t, sent)
		rest, ok := bytes.CutPrefix(got, []byte(greeting))
		if !ok {
			t.Fatalf("greeting: %q", got[:min(len(got), 40)])
		}
		// Option replies are well formed up to the transmission phase.
		for len(rest) >= proto.OptReplySize {
			r, err := proto.ParseOptReply(rest)
			if err != nil {
				return
			}
			if int(r.Len) > len(rest)-proto.OptReplySize {
				return // cut short by the hang-up
			}
			rest = rest[proto.OptReplySize+int(r.Len):]
		}
	})
}

func FuzzTransmission(f *testing.F) {
	for _, tc := range badRequests {
		f.Add(proto.AppendRequest(nil, tc.req), false)
	}
	write := proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdWrite, Cookie: 1, Off: 512, Len: 1024})
	write = append(write, pattern(1024, 1)...)
	f.Add(proto.AppendRequest(write, proto.Request{Cmd: proto.CmdRead, Cookie: 2, Off: 512, Len: 1024}), true)
	f.Add(write[:700], false)
	f.Add(proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdRead, Len: 1 << 20}), true)
	f.Add(proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdBlockStatus, Len: 1 << 20}), true)
	f.Add(proto.AppendRequest(nil, proto.Request{Cmd: proto.CmdDisc}), true)
	f.Fuzz(func(t *testing.T, requests []byte, structured bool) {
		sent := binary.BigEndian.AppendUint32(nil, proto.FixedNewstyle|proto.NoZeroes)
		if structured {
			sent = proto.AppendOption(sent, proto.OptStructuredReply, nil)
			sent = proto.AppendOption(sent, proto.OptSetMetaContext, metaData("disk", proto.ContextAllocation))
		}
		sent = proto.AppendOption(sent, proto.OptGo, goData("disk"))
		got := converse(t, append(sent, requests...))
		if structured {
			return
		}
		// Greeting, the export's size and flags, the ACK; then simple replies,
		// each to a request.
		const ready = len(greeting) + proto.OptReplySize + 12 + proto.OptReplySize
		replies(t, got[min(len(got), ready):], requests)
	})
}

// replies checks that what a server answered is a run of simple replies to
// requests that were sent.
func replies(t *testing.T, got, requests []byte) {
	lens := make(map[uint64]map[uint32]bool) // of reads, by cookie
	for len(requests) >= proto.RequestSize {
		r, err := proto.ParseRequest(requests)
		if err != nil {
			break
		}
		if lens[r.Cookie] == nil {
			lens[r.Cookie] = make(map[uint32]bool)
		}
		n := proto.RequestSize
		if r.Cmd == proto.CmdWrite {
			n += int(r.Len)
		}
		if r.Cmd == proto.CmdRead {
			lens[r.Cookie][r.Len] = true
		} else {
			lens[r.Cookie][0] = true
		}
		requests = requests[min(n, len(requests)):]
	}
	for len(got) >= proto.ReplySize {
		if binary.BigEndian.Uint32(got) != proto.MagicReply {
			t.Fatalf("not a reply: %x", got[:proto.ReplySize])
		}
		errno, known := binary.BigEndian.Uint32(got[4:]), lens[binary.BigEndian.Uint64(got[8:])]
		got = got[proto.ReplySize:]
		switch {
		case known == nil:
			t.Fatal("a reply to no request")
		case errno != 0:
		case len(known) > 1:
			return // requests of one cookie: which one this answers cannot be told
		case !known[0]:
			for n := range known {
				got = got[min(int(n), len(got)):]
			}
		}
	}
}
