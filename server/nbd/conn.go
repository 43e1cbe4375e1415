package nbd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// Why a connection ends.
var (
	errBye      = errors.New("the client said goodbye")
	errDropped  = errors.New("dropped, so that the client asks again")
	errStopped  = errors.New("stopped between two requests")
	errPassed   = errors.New("handed over")
	errGone     = errors.New("the client is gone")
	errShutdown = errors.New("the server is closing")
)

// conn is one connection. Its fields belong to the goroutine that serves it
// (the reader) unless they say otherwise.
type conn struct {
	srv     *Server
	backend Backend // as the listener shows it
	nc      net.Conn
	log     *slog.Logger
	client  ClientInfo
	since   time.Time

	// Set before the transmission phase, and constant in it.
	sock   socket
	handle Handle
	state  State
	limits Limits

	info     Info
	in       inbox
	big      bigWrite
	prefix   []byte // what an earlier server had read of the stream
	skip     int64  // bytes of a refused payload still to be ignored
	need     int    // bytes from inbox.head on that the next step needs in one piece
	batch    block.Batch
	gathered int   // requests submitted since the batch was finished
	bytes    int64 // and bytes to be read for them
	now      int64
	free     *op
	weight   int64 // of all ops accepted, a total
	calm     bool  // the last read brought one small request at most
	polling  polling

	accepted atomic.Int64 // ops, a total; the reader adds
	stop     atomic.Bool  // stop between two requests
	opened   atomic.Bool  // the handshake is over; set before stop is looked at
	out      outbox
	kick     chan struct{} // wakes the writer; only the sender sends
	ended    chan struct{} // closed when the writer is to end
	gone     chan struct{} // closed when nothing of this connection can have an effect any more
	stats    counters

	// mu guards cause.
	mu    sync.Mutex
	cause error // why the connection was killed
}

// bigWrite is a write whose payload does not fit a slab: it is read into a
// buffer of its own.
type bigWrite struct {
	req  proto.Request
	buf  *block.Buf
	have int
}

func newConn(s *Server, nc net.Conn, id uint64) *conn {
	c := &conn{
		srv: s, backend: s.backend, nc: nc, limits: s.limits, since: time.Now(),
		client: clientInfo(nc, id),
		kick:   make(chan struct{}, 1),
		ended:  make(chan struct{}),
		gone:   make(chan struct{}),
		in:     inbox{pool: s.slabs, limit: s.limits.Slabs},
		need:   proto.RequestSize,
	}
	c.out.changed.L = &c.out.mu
	c.log = s.log.With("client", c.client.Addr, "conn", id)
	return c
}

// kill ends the connection: the socket is closed, what completes later gets no
// reply. The first cause is kept.
func (c *conn) kill(cause error) {
	c.mu.Lock()
	if c.cause == nil {
		c.cause = cause
	}
	c.mu.Unlock()
	if c.out.kill() {
		_ = c.nc.Close() // the other side is told nothing either way
	}
}

// why is the cause for which the connection was killed, or else err.
func (c *conn) why(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cause != nil {
		return c.cause
	}
	return err
}

// serve runs the connection from the greeting to its end.
func (c *conn) serve(ctx context.Context) {
	defer func() { _ = c.nc.Close() }()
	if err := c.handshake(ctx); err != nil {
		c.kill(err)
		c.log.Debug("handshake ended", "cause", c.why(err))
		if c.handle != nil {
			c.closeExport()
		}
		return
	}
	c.transmit()
}

// transmit runs the transmission phase.
func (c *conn) transmit() {
	c.log.Info("client connected", "export", c.state.Export)
	c.opened.Store(true)
	_ = c.nc.SetDeadline(time.Time{})
	var writer sync.WaitGroup
	writer.Go(c.writer)
	err := c.read()
	if c.finish(err) && errors.Is(err, errStopped) {
		err = c.srv.pass(c)
	}
	c.kill(err)
	c.sweep()
	writer.Wait()
	c.closeExport()
	c.in.close()
	c.log.Info("client left", "export", c.state.Export, "cause", c.why(err))
}

// finish lets requests in flight end where that is still of use: after the
// client said goodbye, and before the connection is passed on. It reports
// whether everything was answered.
func (c *conn) finish(err error) bool {
	switch {
	case errors.Is(err, errBye) && c.inflight() > 0:
		// Whoever says goodbye may hang up without waiting.
		stop := make(chan struct{})
		var watcher sync.WaitGroup
		watcher.Go(func() { c.watchGoodbye(stop) })
		done := c.drained()
		close(stop)
		_ = c.nc.SetReadDeadline(time.Now())
		watcher.Wait()
		return done
	case errors.Is(err, errStopped):
		return c.drained()
	}
	return false
}

// watchGoodbye stops waiting for answers when nobody is there to hear them.
func (c *conn) watchGoodbye(stop <-chan struct{}) {
	if !c.sock.watch() {
		return
	}
	select {
	case <-stop:
	default:
		c.hurry()
	}
}

// hurry has the reader not wait for requests in flight any more.
func (c *conn) hurry() {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.hurry = true
	c.out.tell()
}

// drained waits until every request was answered, and reports whether it was:
// it is not if the connection was killed, or is to hurry.
func (c *conn) drained() bool {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	for c.inflight() > 0 && !o.dead && !o.hurry {
		o.wait()
	}
	return !o.dead && c.inflight() == 0
}

// sweep releases what is left in the outbox of a killed connection, and ends
// the writer.
func (c *conn) sweep() {
	c.senderIdle()
	c.Flush(nil)
	c.senderIdle()
	close(c.ended)
}

// closeExport has the backend finish or fence every request; then a successor
// may be served.
func (c *conn) closeExport() {
	if err := c.handle.Close(); err != nil {
		c.log.Warn("closing the export failed", "export", c.state.Export, "err", err)
	}
	c.leave()
}

func (c *conn) senderIdle() {
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	for c.out.sending {
		c.out.wait()
	}
}

// stopReading has the reader return at the next request boundary, the first of
// which comes after the handshake.
func (c *conn) stopReading() {
	c.stop.Store(true)
	when := time.Now()
	if !c.opened.Load() {
		when = when.Add(c.limits.Grace)
	}
	_ = c.nc.SetReadDeadline(when)
	c.out.mu.Lock()
	defer c.out.mu.Unlock()
	c.out.tell()
}

// export is the state in which another server goes on.
func (c *conn) export() State {
	s := c.state
	s.Skip = c.skip
	if c.big.buf != nil {
		s.Pending = proto.AppendRequest(nil, c.big.req)
		s.Pending = append(s.Pending, c.big.buf.B[:c.big.have]...)
	}
	s.Pending = append(s.Pending, c.in.unread()...)
	s.Pending = append(s.Pending, c.prefix...)
	return s
}

// readError puts a failed read into words.
func (c *conn) readError(err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded) && c.stop.Load():
		return errStopped
	case errors.Is(err, io.EOF) && (len(c.in.unread()) > 0 || c.big.buf != nil || c.skip > 0):
		return errors.New("the client hung up in the middle of a request")
	case errors.Is(err, io.EOF):
		return errors.New("the client hung up")
	}
	return err
}
