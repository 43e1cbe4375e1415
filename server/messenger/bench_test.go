package messenger

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/cluster"
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
func BenchmarkPipelined(b *testing.B) { pipelined(b, nil) }

func pipelined(b *testing.B, change func(o *Options)) {
	s, mine, _ := benchPair(b, change)
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
	perSecond(b)
}

func perSecond(b *testing.B) { b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "messages/s") }

// BenchmarkBulk is 1 MiB writes, 8 in flight.
func BenchmarkBulk(b *testing.B) { bulk(b, nil) }

func bulk(b *testing.B, change func(o *Options)) {
	s, mine, _ := benchPair(b, change)
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
	perSecond(b)
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
	rawConn(b, size, flights, func(c net.Conn, _ bool) net.Conn { return c })
}

// rawConn sends over one connection, which wrap may put something around.
func rawConn(b *testing.B, size, flights int, wrap func(c net.Conn, dialled bool) net.Conn) {
	b.Helper()
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
		c = wrap(c, false)
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
	c = wrap(c, true)
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
	perSecond(b)
	c.Close()
	<-done
}

// BenchmarkPing is the round trip of a ping ahead of the queue: on idle links,
// and while the data link carries all it can in both directions.
func BenchmarkPing(b *testing.B) {
	for _, load := range []bool{false, true} {
		b.Run(map[bool]string{false: "idle", true: "loaded"}[load], func(b *testing.B) {
			s, _, _ := benchPair(b, func(o *Options) { o.SpinData, o.SpinMeta = 0, 0 })
			stop := make(chan struct{})
			done := make(chan struct{})
			go func() {
				defer close(done)
				pool := block.NewPool(1 << 20)
				buf := pool.Get()
				for load {
					select {
					case <-stop:
						return
					default:
						if s.Queued(wire.Data) < 16<<20 {
							s.Send(&wire.Header{Type: wire.SyncData}, buf.B, buf, nil)
						} else {
							time.Sleep(50 * time.Microsecond)
						}
					}
				}
			}()
			var total time.Duration
			for b.Loop() {
				s.rtt.Store(0)
				s.Ping(cluster.Promise{Tick: DefaultTick, Pings: DefaultPingCount})
				for s.RTT() == 0 {
					time.Sleep(20 * time.Microsecond)
				}
				total += s.RTT()
			}
			b.ReportMetric(float64(total.Microseconds())/float64(b.N), "µs/ping")
			close(stop)
			<-done
		})
	}
}

// BenchmarkTLS is BenchmarkPipelined and BenchmarkBulk over TLS, and TLS alone
// beside them.
func BenchmarkTLS(b *testing.B) {
	ca := newAuthority(b)
	secure := func(o *Options) { o.TLS = ca.issue(o.NodeName, o.NodeName) }
	b.Run("session-4k-32", func(b *testing.B) { pipelined(b, secure) })
	b.Run("session-1m-8", func(b *testing.B) { bulk(b, secure) })
	server, err := ca.issue("s", "s").Server()
	if err != nil {
		b.Fatal(err)
	}
	client, err := ca.issue("c", "s").Client("s")
	if err != nil {
		b.Fatal(err)
	}
	wrap := func(c net.Conn, dialled bool) net.Conn {
		if dialled {
			return tls.Client(c, client)
		}
		return tls.Server(c, server)
	}
	b.Run("alone-4k-32", func(b *testing.B) { rawConn(b, 4096, 32, wrap) })
	b.Run("alone-1m-8", func(b *testing.B) { rawConn(b, 1<<20, 8, wrap) })
}

// BenchmarkSigned is BenchmarkPipelined and BenchmarkBulk with a MAC on every
// frame.
func BenchmarkSigned(b *testing.B) {
	sign := func(o *Options) { o.Sign = true }
	b.Run("4k-32", func(b *testing.B) { pipelined(b, sign) })
	b.Run("1m-8", func(b *testing.B) { bulk(b, sign) })
}

// BenchmarkIdleCluster is 32 nodes in one process at T = 8 s with nothing to
// do: CPU of one node, and memory of one peer.
func BenchmarkIdleCluster(b *testing.B) {
	const nodes = 32
	before := residentKiB(b)
	var ms []*Messenger
	var lns []net.Listener
	for range nodes {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		lns = append(lns, ln)
	}
	up := make(chan *Session, nodes*nodes)
	for i := range nodes {
		o := Options{Cluster: "bench", NodeName: nodeName(i), NodeID: i, Secrets: [][]byte{testSecret}, Listener: lns[i], Handler: &echo{up: up}}
		for j := range nodes {
			if j != i {
				o.Peers = append(o.Peers, Peer{Name: nodeName(j), ID: j, Address: lns[j].Addr().String()})
			}
		}
		m, err := New(o)
		if err != nil {
			b.Fatal(err)
		}
		if err := m.Start(); err != nil {
			b.Fatal(err)
		}
		ms = append(ms, m)
	}
	for range nodes * (nodes - 1) {
		<-up
	}
	for b.Loop() {
		start, cpu := time.Now(), cpuTime()
		time.Sleep(5 * time.Second)
		b.ReportMetric(float64(cpuTime()-cpu)/float64(time.Since(start))/nodes*100, "%cpu/node")
	}
	b.ReportMetric((residentKiB(b)-before)/(nodes*(nodes-1)), "KiB-resident/peer")
	for _, m := range ms {
		_ = m.Close(context.Background())
	}
}

func residentKiB(b *testing.B) float64 {
	b.Helper()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Fatal(err)
	}
	pages, err := strconv.Atoi(strings.Fields(string(text))[1])
	if err != nil {
		b.Fatal(err)
	}
	return float64(pages) * float64(os.Getpagesize()) / 1024
}

func cpuTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
