package rpc

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/frame"
)

const (
	// drainTimeout and drainBytes bound what is read, and thrown away, of a
	// client that is sending while it is told to stop. A client that is cut
	// off in mid-request would die of SIGPIPE and never show the error.
	drainTimeout = 5 * time.Second
	drainBytes   = 64 << 20

	// goneAfter is how long commands go on whose client, on a connection that
	// cannot tell the two apart, has closed it or its sending half.
	goneAfter = DefaultDeadline
)

// finish is called when reading has ended with err. A client may have closed
// only its sending half and wait for the replies: commands in progress go on,
// unless it is gone for good. A stream that is out of step gets an error as
// its last reply.
func (c *conn) finish(err error) {
	closed := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	if !closed && !broken(err) && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.cancel(errGone)
	}
	c.awaitAnswers(closed)
	if errors.Is(err, io.ErrUnexpectedEOF) || broken(err) {
		c.out.push(c.brokenReply(err))
	}
	if broken(err) {
		c.out.flush()
		drain(c.ctx, c.nc)
	}
}

// broken reports whether the client sent something that makes the rest of the
// stream meaningless.
func broken(err error) bool {
	_, syntax := errors.AsType[*frame.SyntaxError](err)
	_, limit := errors.AsType[*frame.LimitError](err)
	return syntax || limit
}

// brokenReply answers a request that could not be read to its end, in the
// dialect and with the id that its beginning shows.
func (c *conn) brokenReply(err error) []byte {
	c.s.stats.malformed.Add(1)
	m := look(c.in.Partial())
	code, text := api.CodeParse, "cannot parse the request: "+err.Error()
	if limit, ok := errors.AsType[*frame.LimitError](err); ok {
		code, text = api.CodeTooLarge, limit.Error()
	} else if errors.Is(err, io.ErrUnexpectedEOF) {
		text = "cannot parse the request: it breaks off"
	}
	if m.modern() || (m.id == nil && !c.spokeOld) {
		return append(modernError(m.id, api.Errorf(code, "%s", text)), '\n')
	}
	id := m.id
	if id == nil {
		id = []byte("null")
	}
	return legacyError(id, text, c.asJSON.Load())
}

// awaitAnswers waits until all requests that were read are answered. Where the
// client closed its side, and perhaps only the sending half of it, it also
// waits for subscriptions, and watches whether the client goes away, which
// cancels all that.
func (c *conn) awaitAnswers(closed bool) {
	if !closed {
		c.answered.Wait()
		return
	}
	c.watchWhile(func() {
		c.answered.Wait()
		c.following.Wait()
	})
}

// watchWhile waits for wait to return, and meanwhile watches whether the client
// goes away, which cancels its commands.
func (c *conn) watchWhile(wait func()) {
	idle := make(chan struct{})
	var waiter sync.WaitGroup
	waiter.Go(func() {
		wait()
		close(idle)
		c.nc.SetReadDeadline(past) // ends the watch
	})
	if c.watchHangup(idle) {
		c.cancel(errGone)
	}
	waiter.Wait()
	c.nc.SetReadDeadline(time.Time{})
	if c.ctx.Err() != nil { // asked after the deadline is taken off: who ends ctx sets it, later
		c.nc.SetReadDeadline(past)
	}
}

// past is a deadline that wakes a reader at once.
var past = time.Unix(1, 0)

// watchHangup reports whether the client is gone; it returns false once idle
// is closed.
func (c *conn) watchHangup(idle <-chan struct{}) bool {
	u, ok := c.nc.(*net.UnixConn)
	if !ok {
		t := time.NewTimer(goneAfter)
		defer t.Stop()
		select {
		case <-t.C:
			return true
		case <-idle:
			return false
		}
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return true
	}
	return raw.Read(hungUp) == nil
}

// hungUp reports whether both directions of a socket are closed. Each event on
// the socket makes the runtime ask again.
func hungUp(fd uintptr) bool {
	fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP and POLLERR need not be asked for
	for {
		_, err := unix.Poll(fds, 0)
		if err == nil {
			return fds[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
		}
		if !errors.Is(err, syscall.EINTR) {
			return true
		}
	}
}

// drain ends the sending half and takes in what the client still sends.
func drain(ctx context.Context, nc net.Conn) {
	if h, ok := nc.(interface{ CloseWrite() error }); ok {
		h.CloseWrite()
	}
	nc.SetReadDeadline(time.Now().Add(drainTimeout))
	if ctx.Err() != nil { // asked after the deadline is set: who ends ctx sets one too, later
		return
	}
	io.Copy(io.Discard, io.LimitReader(nc, drainBytes))
}

// firstRequest bounds the wait for the request of a client that is refused: an
// error reply wants the id of a request.
const firstRequest = time.Second

// refuse tells a client that there are too many.
func (s *Server) refuse(ctx context.Context, nc net.Conn) {
	defer nc.Close()
	stop := context.AfterFunc(ctx, func() { nc.SetDeadline(past) })
	defer stop()
	if err := handshake(ctx, nc); err != nil {
		return
	}
	nc.SetDeadline(time.Now().Add(firstRequest))
	in := frame.NewReader(nc, frame.Limits{Size: s.lim.RequestBytes, Depth: s.lim.Depth})
	raw, err := in.Next()
	if err != nil {
		raw = in.Partial()
	}
	refusal := api.Errorf(api.CodeBusy, "the daemon has %d control connections, as many as it takes; try again later", s.lim.Connections).
		WithData(api.LimitDetail{Limit: "connections", Value: int64(s.lim.Connections)})
	m := look(raw)
	reply := append(modernError(m.id, refusal), '\n')
	if !m.modern() && m.id != nil {
		reply = legacyError(m.id, refusal.Message, false)
	}
	if _, err := nc.Write(reply); err == nil {
		drain(ctx, nc)
	}
}
