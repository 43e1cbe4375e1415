package client

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/lockstepd/lockstep/server/nbd/proto"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// scripted is the server's side of a pipe: it shakes hands and then says what
// it is told to the first request, whatever that asks.
func scripted(t testing.TB, structured bool, say []byte) net.Conn {
	ours, theirs := net.Pipe()
	go func() {
		defer func() { _ = theirs.Close() }()
		b := binary.BigEndian.AppendUint64(nil, proto.MagicServer)
		b = binary.BigEndian.AppendUint64(b, proto.MagicOption)
		_, _ = theirs.Write(binary.BigEndian.AppendUint16(b, proto.FixedNewstyle|proto.NoZeroes))
		_, _ = io.ReadFull(theirs, make([]byte, 4))
		for answer(theirs, structured) {
		}
		_, _ = io.ReadFull(theirs, make([]byte, proto.RequestSize)) // it answers, and does not foretell
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		_, _ = theirs.Write(say)
	}()
	return ours
}

// answer answers one option, and reports whether there will be another.
func answer(nc net.Conn, structured bool) bool {
	var b [proto.OptionSize]byte
	if _, err := io.ReadFull(nc, b[:]); err != nil {
		return false
	}
	o, _ := proto.ParseOption(b[:])
	_, _ = io.CopyN(io.Discard, nc, int64(o.Len))
	var out []byte
	switch {
	case o.Option == proto.OptGo:
		export := binary.BigEndian.AppendUint64([]byte{0, 0}, 1<<20)
		out = proto.AppendOptReply(out, o.Option, proto.RepInfo, binary.BigEndian.AppendUint16(export, uint16(proto.HasFlags)))
		out = proto.AppendOptReply(out, o.Option, proto.RepAck, nil)
	case !structured:
		out = proto.AppendOptReply(out, o.Option, proto.RepErrUnsup, nil)
	case o.Option == proto.OptSetMetaContext:
		out = proto.AppendOptReply(out, o.Option, proto.RepMetaContext, append([]byte{0, 0, 0, 7}, proto.ContextAllocation...))
		out = proto.AppendOptReply(out, o.Option, proto.RepAck, nil)
	default:
		out = proto.AppendOptReply(out, o.Option, proto.RepAck, nil)
	}
	_, err := nc.Write(out)
	return err == nil && o.Option != proto.OptGo
}

func chunk(t proto.Chunk, last bool, payload ...byte) []byte {
	return append(proto.AppendChunk(nil, t, last, 1, len(payload)), payload...)
}

func TestRepliesThatMakeNoSenseEndTheConnection(t *testing.T) {
	for _, tc := range []struct {
		name       string
		structured bool
		say        []byte
	}{
		{"hang-up", false, nil},
		{"garbage", false, []byte("HTTP/1.1 400 Bad Request")},
		{"half a reply", false, proto.AppendReply(nil, proto.OK, 1)[:9]},
		{"half of the data", false, append(proto.AppendReply(nil, proto.OK, 1), 1, 2, 3)},
		{"to no request", false, proto.AppendReply(nil, proto.OK, 99)},
		{"a simple reply to a read", true, proto.AppendReply(nil, proto.OK, 1)},
		{"data before the request", true, chunk(proto.ChunkOffsetData, true, 0, 0, 0, 0, 0, 0, 0, 0, 1)},
		{"data behind the request", true, chunk(proto.ChunkOffsetData, true, 0, 0, 0, 0, 0, 0, 0x22, 0, 1)},
		{"data shorter than its offset", true, chunk(proto.ChunkOffsetData, true, 0, 0, 0)},
		{"a hole too long", true, chunk(proto.ChunkOffsetHole, true, 0, 0, 0, 0, 0, 0, 0x10, 0, 0xff, 0, 0, 0)},
		{"an error without errno", true, chunk(proto.ChunkError, true, 0)},
		{"a chunk too long", true, proto.AppendChunk(nil, proto.ChunkError, true, 1, 1<<30)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := New(t.Context(), scripted(t, tc.structured, tc.say), Options{Export: "x"})
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.ReadAt(make([]byte, 512), 4096); !errors.Is(err, ErrLost) {
				t.Errorf("got %v", err)
			}
			if err := c.Flush(); !errors.Is(err, ErrLost) {
				t.Errorf("the next request: %v", err)
			}
			_ = c.Abort()
		})
	}
}

func TestErrorRepliesAreErrors(t *testing.T) {
	say := chunk(proto.ChunkError, true, append([]byte{0, 0, 0, 28, 0, 4}, "full"...)...)
	c, err := New(t.Context(), scripted(t, true, say), Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.ReadAt(make([]byte, 512), 0)
	if !errors.Is(err, proto.ENOSPC) || err.Error() != "READ: no space left on device: full" {
		t.Errorf("got %v", err)
	}
	_ = c.Abort()
}

func TestDialingEndsWithItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer func() { _ = theirs.Close() }()
		ctx := t.Context()
		go func() { _, _ = io.Copy(io.Discard, theirs) }()
		began := time.Now()
		stop := time.AfterFunc(time.Hour, func() { _ = theirs.Close() })
		defer stop.Stop()
		short, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if _, err := New(short, ours, Options{}); err == nil || time.Since(began) != time.Minute {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		_ = ours.Close()
	})
}

func FuzzReplies(f *testing.F) {
	f.Add(proto.AppendReply(nil, proto.OK, 1), false)
	f.Add(append(proto.AppendReply(nil, proto.OK, 1), make([]byte, 512)...), false)
	f.Add(chunk(proto.ChunkOffsetHole, true, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 2, 0), true)
	f.Add(chunk(proto.ChunkBlockStatus, true, 0, 0, 0, 7, 0, 0, 2, 0, 0, 0, 0, 3), true)
	f.Add(chunk(proto.ChunkError, true, 0, 0, 0, 5, 0, 2, 'n', 'o'), true)
	f.Fuzz(func(t *testing.T, say []byte, structured bool) {
		c, err := New(t.Context(), scripted(t, structured, say), Options{})
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 512)
		if n, err := c.ReadAt(p, 4096); err == nil && n != 512 {
			t.Errorf("%d bytes and no error", n)
		}
		_ = c.Abort()
	})
}
