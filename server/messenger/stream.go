package messenger

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// errAgain tells that the socket takes, or has, nothing at present.
var errAgain = errors.New("the socket takes, or has, no more at present")

// stream is one connection of a link. Sockets are read and written by system
// calls of our own on their non-blocking descriptors: so a read may spin for a
// moment before it parks, and whoever has something to send can try without
// ever waiting. Other connections (TLS, pipes in tests) go through Read and
// Write.
type stream struct {
	c   net.Conn
	raw syscall.RawConn // nil: use Read and Write

	// Of the goroutine that reads.
	rd rawRead

	// Of whoever holds the right to write.
	wr   rawWrite
	segs [][]byte
	flat []byte // gathers segments where there is no raw

	wake chan struct{} // capacity 1: the right to write passes to the writer goroutine

	// The link's lock guards these.
	writing bool  // somebody holds the right to write, and looks again before giving it up
	gone    bool  // the writer goroutine has ended
	err     error // why nothing more will be sent

	closeOnce sync.Once
	closed    chan struct{}
	done      sync.WaitGroup // the reader and the writer goroutine
}

type rawRead struct {
	// mu is the right to read. The reader goroutine holds it, but for as long
	// as it is parked; it guards all that is read into, and the fields below.
	mu   sync.Mutex
	fn   func(fd uintptr) bool
	p    []byte
	n    int
	err  error
	spin time.Duration
	// again asks the reader to return without having read: p is p no longer,
	// or there is something else to do.
	again bool
	try   func(fd uintptr) // for Messenger.Help; its outcome is in n and err

	// missed is set by the reader goroutine when it was woken up, maybe in vain
	// since somebody else has the right to read: he looks again before he goes.
	missed atomic.Bool

	// Of the reader goroutine.
	asleep bool // it has given mu away to park
	parked bool // the last spin was in vain
}

type rawWrite struct {
	fn    func(fd uintptr) bool
	block bool
	n     int
	err   error
	iov   []unix.Iovec
	msg   unix.Msghdr
}

func newStream(c net.Conn) *stream {
	st := &stream{c: c, wake: make(chan struct{}, 1), closed: make(chan struct{})}
	switch c := c.(type) {
	case *net.TCPConn:
		st.raw, _ = c.SyscallConn()
	case *net.UnixConn:
		st.raw, _ = c.SyscallConn()
	}
	st.rd.fn, st.rd.try = st.recv, st.tryRecv
	st.rd.mu.Lock()
	st.wr.fn = st.send
	return st
}

// read fills p with what there is, at least one byte, or returns nothing where
// it was asked to look around. Before it parks it spins for that long. Its
// caller holds the right to read.
func (st *stream) read(p []byte, spin time.Duration) (int, error) {
	if st.raw == nil {
		return st.c.Read(p)
	}
	r := &st.rd
	for {
		r.p, r.n, r.err, r.spin, r.parked = p, 0, nil, spin, false
		err := st.raw.Read(r.fn)
		if r.asleep { // it was not woken up by something to read
			r.mu.Lock()
			r.asleep = false
		}
		late := errors.Is(err, os.ErrDeadlineExceeded)
		if late {
			_ = st.c.SetReadDeadline(time.Time{}) // a closed connection says so again
		}
		switch {
		case r.again:
			r.again = false
			return 0, nil
		case late:
			continue // it had looked around before it was asked to
		case err != nil:
			return 0, err
		case r.n == 0 && r.err == nil:
			return 0, io.EOF
		}
		return r.n, r.err
	}
}

// recv is called by the runtime's poller; false parks the goroutine until the
// socket is readable.
func (st *stream) recv(fd uintptr) bool {
	r := &st.rd
	if r.asleep {
		// In this order, or neither would see what came.
		if r.missed.Store(true); !r.mu.TryLock() {
			return false
		}
		r.asleep = false
	}
	if r.again {
		return true
	}
	var deadline time.Time
	for {
		if st.tryRecv(fd); r.n > 0 || r.err != errAgain {
			return true
		}
		r.err = nil
		if r.spin > 0 {
			now := time.Now()
			if deadline.IsZero() {
				deadline = now.Add(r.spin)
			}
			if now.Before(deadline) {
				runtime.Gosched()
				continue
			}
			r.spin, r.parked = 0, true // woken up, there is no need to spin again
		}
		r.asleep = true
		r.mu.Unlock()
		return false
	}
}

// tryRecv receives what there is into p, or says errAgain.
func (st *stream) tryRecv(fd uintptr) {
	r := &st.rd
	for {
		n, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(r.p))), uintptr(len(r.p)), unix.MSG_DONTWAIT, 0, 0)
		switch e {
		case 0:
			r.n, r.err = int(n), nil
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			r.n, r.err = 0, errAgain
		default:
			r.n, r.err = 0, e
		}
		return
	}
}

// write sends segs, as much as the socket takes; where block is set it waits
// until it takes something. errAgain comes with n == 0 only.
func (st *stream) write(block bool) (int, error) {
	if st.raw == nil {
		return st.writeFlat()
	}
	w := &st.wr
	w.iov = w.iov[:0]
	for _, s := range st.segs {
		w.iov = append(w.iov, unix.Iovec{Base: unsafe.SliceData(s), Len: uint64(len(s))})
	}
	w.msg = unix.Msghdr{Iov: unsafe.SliceData(w.iov), Iovlen: uint64(len(w.iov))}
	w.block, w.n, w.err = block, 0, nil
	if err := st.raw.Write(w.fn); err != nil {
		return 0, err
	}
	return w.n, w.err
}

// send is called by the runtime's poller; false parks the goroutine until the
// socket is writable.
func (st *stream) send(fd uintptr) bool {
	w := &st.wr
	for {
		n, _, e := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&w.msg)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		switch e {
		case 0:
			w.n = int(n)
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			if w.block {
				return false
			}
			w.err = errAgain
			return true
		default:
			w.err = e
			return true
		}
	}
}

// writeFlat sends the segments through one Write per 64 KiB: a TLS record for
// every header would cost more than the copy.
func (st *stream) writeFlat() (int, error) {
	const chunk = 64 << 10
	st.flat = st.flat[:0]
	for _, s := range st.segs {
		room := chunk - len(st.flat)
		if len(s) > room {
			st.flat = append(st.flat, s[:room]...)
			break
		}
		st.flat = append(st.flat, s...)
	}
	return st.c.Write(st.flat)
}

// unread is how many bytes wait in the socket; 0 where that cannot be known.
func (st *stream) unread() int {
	n := 0
	if st.raw != nil {
		_ = st.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	}
	return n
}

// close ends the connection, and with it the reader and the writer. hard drops
// what the kernel still holds to be sent: it must not linger.
func (st *stream) close(hard bool) {
	st.closeOnce.Do(func() {
		close(st.closed)
		closeConn(st.c, hard)
	})
}

// closeConn closes a connection; hard as in stream.close.
func closeConn(c net.Conn, hard bool) {
	// TLS would wait to say that it closes; a Goodbye has said more.
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok && hard {
		_ = l.SetLinger(0) // best effort: the close below counts
	}
	_ = c.Close() // the connection is given up whatever Close says
}

// tune sets the options of a fresh connection. All are best effort: a
// connection without them works, more slowly.
func tune(c net.Conn, sendBuffer int, userTimeout time.Duration) {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		c = t.NetConn()
	}
	tc, ok := c.(*net.TCPConn)
	if !ok {
		return
	}
	_ = tc.SetNoDelay(true)
	if sendBuffer > 0 {
		_ = tc.SetWriteBuffer(sendBuffer)
	}
	raw, err := tc.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(userTimeout.Milliseconds()))
	})
}

// hungUp reports whether the error of a read means that the peer closed the
// connection in the way that the end of its process does.
func hungUp(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// gone reports whether a connection broke.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
}

// refused reports whether nobody listens at the peer's address.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
