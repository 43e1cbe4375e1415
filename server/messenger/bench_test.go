package messenger

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// echo is a handler that answers each Write with a WriteAck, as a peer's
// device does, and counts what arrives.
type echo struct {
	up    chan *Session
	reply bool
	got   atomic.Int64
	each  chan struct{} // told of every frame, where it is set
}

func (e *echo) SessionUp(s *Session)         { e.up <- s }
func (e *echo) SessionDown(*Session, Reason) {}
func (e *echo) HandleFrame(s *Session, f *wire.Frame, b *block.Batch) {
	e.got.Add(1)
	if e.reply && f.Type == wire.Write {
		s.Send(&wire.Header{Type: wire.WriteAck, Arg: [3]uint64{f.Arg[1], 1}}, nil, nil, b)
	}
	if e.each != nil {
		e.each <- struct{}{}
	}
}

// benchPair connects two messengers and returns the sender's session.
func benchPair(b *testing.B, change func(o *Options)) (*Session, *echo, *echo) {
	b.Helper()
	var hs [2]*echo
	var ms [2]*Messenger
	var lns [2]net.Listener
	for i := range lns {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		lns[i] = ln
	}
	for i := range ms {
		hs[i] = &echo{up: make(chan *Session, 4), reply: i == 1}
		o := Options{
			Cluster: "bench", NodeName: nodeName(i), NodeID: i, Secrets: [][]byte{testSecret}, Listener: lns[i], Handler: hs[i],
			Peers: []Peer{{Name: nodeName(1 - i), ID: 1 - i, Address: lns[1-i].Addr().String()}}, Log: slog.New(slog.DiscardHandler),
			SpinData: DefaultSpin, SpinMeta: DefaultSpin,
		}
		if change != nil {
			change(&o)
		}
		m, err := New(o)
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Start(); err != nil {
			b.Fatal(err)
		}
		ms[i] = m
		b.Cleanup(func() { _ = m.Close(context.Background()) })
	}
	<-hs[1].up
	return <-hs[0].up, hs[0], hs[1]
}

// BenchmarkRoundTrip is one 4 KiB write to the peer and its ack back, one at a
// time.
func BenchmarkRoundTrip(b *testing.B) {
	for _, spin := range []bool{false, true} {
		b.Run(map[bool]string{false: "park", true: "spin"}[spin], func(b *testing.B) {
			s, mine, _ := benchPair(b, func(o *Options) {
				if !spin {
					o.SpinData, o.SpinMeta = 0, 0
				}
			})
			mine.each = make(chan struct{}, 1)
			p := pattern(4096)
			b.ReportAllocs()
			for b.Loop() {
				s.Send(&wire.Header{Type: wire.Write}, p, nil, nil)
				<-mine.each
			}
		})
	}
}

// BenchmarkPipelined is 4 KiB writes and their acks, 32 in flight in batches
// of 16, as a busy client makes them.
func BenchmarkPipelined(b *testing.B) {
	s, mine, _ := benchPair(b, nil)
	mine.each = make(chan struct{}, 64)
	pool := block.NewPool(1 << 20)
	buf := pool.Get()
	var batch block.Batch
	b.ReportAllocs()
	b.SetBytes(4096)
	inflight := 0
	for b.Loop() {
		s.Send(&wire.Header{Type: wire.Write}, buf.B[:4096], buf, &batch)
		if inflight++; inflight%16 == 0 {
			batch.Finish()
		}
		for inflight >= 32 {
			<-mine.each
			inflight--
		}
	}
	batch.Finish()
	for ; inflight > 0; inflight-- {
		<-mine.each
	}
}

// BenchmarkBulk is 1 MiB writes, 8 in flight.
func BenchmarkBulk(b *testing.B) {
	s, mine, _ := benchPair(b, nil)
	mine.each = make(chan struct{}, 64)
	pool := block.NewPool(1 << 20)
	buf := pool.Get()
	b.SetBytes(1 << 20)
	b.ReportAllocs()
	inflight := 0
	for b.Loop() {
		s.Send(&wire.Header{Type: wire.Write}, buf.B, buf, nil)
		for inflight++; inflight >= 8; inflight-- {
			<-mine.each
		}
	}
	for ; inflight > 0; inflight-- {
		<-mine.each
	}
}

// BenchmarkRawTCP is the yardstick: the same bytes over one connection, with
// one byte back per write.
func BenchmarkRawTCP(b *testing.B) {
	for _, c := range []struct {
		name          string
		size, flights int
	}{{"4k-roundtrip", 4096, 1}, {"4k-32", 4096, 32}, {"1m-8", 1 << 20, 8}} {
		b.Run(c.name, func(b *testing.B) { rawTCP(b, c.size, c.flights) })
	}
}

func rawTCP(b *testing.B, size, flights int) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		p := make([]byte, size)
		for {
			if _, err := io.ReadFull(c, p); err != nil {
				return
			}
			if _, err := c.Write(p[:1]); err != nil {
				return
			}
		}
	}()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	p, back := make([]byte, size), make([]byte, 1)
	b.SetBytes(int64(size))
	inflight := 0
	for b.Loop() {
		if _, err := c.Write(p); err != nil {
			b.Fatal(err)
		}
		for inflight++; inflight >= flights; inflight-- {
			if _, err := io.ReadFull(c, back); err != nil {
				b.Fatal(err)
			}
		}
	}
	c.Close()
	<-done
}
