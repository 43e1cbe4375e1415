package nbd

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// sendBuffer is asked for on every connection: the default of 208 KiB has a
// server that answers large reads wait for the client at every turn.
const sendBuffer = 1 << 20

// feeder is what a socket reads into.
type feeder interface {
	// space returns where to put what arrives.
	space() []byte
	// parking is called when nothing arrived and the reader is about to
	// sleep; space is asked for again afterwards.
	parking()
}

// socket is a connection as the transmission phase needs it.
type socket interface {
	// read puts what has arrived into f's space and returns how much. It
	// sleeps if nothing has.
	read(f feeder) (int, error)
	// write sends bufs in one go and returns how many bytes were taken. Unless
	// wait is set it does not block: it returns less, and no error.
	write(bufs [][]byte, wait bool) (int, error)
	// hungUp reports whether the other side is gone, even if not all that it
	// sent was read yet.
	hungUp() bool
	// watch returns when the other side hangs up or the socket is closed
	// (true), or something arrives, or the read deadline passes.
	watch() bool
}

// poller is a socket that can be read without sleeping.
type poller interface {
	// poll is read, but for returning 0 and no error where nothing has arrived.
	poll(f feeder) (int, error)
}

// newSocket prepares nc for transmission.
func newSocket(nc net.Conn) socket {
	if b, ok := nc.(interface{ SetWriteBuffer(int) error }); ok {
		_ = b.SetWriteBuffer(sendBuffer) // a smaller one is slower, no more
	}
	if sc, ok := nc.(syscall.Conn); ok {
		if rc, err := sc.SyscallConn(); err == nil {
			return newRawSocket(rc)
		}
	}
	return &plainSocket{nc}
}

// plainSocket is any net.Conn: one that cannot tell whether it would block, so
// that every write is left to the connection's writer.
type plainSocket struct{ net.Conn }

func (s *plainSocket) read(f feeder) (int, error) {
	n, err := s.Read(f.space())
	if n > 0 {
		err = nil
	}
	return n, err
}

func (s *plainSocket) write(bufs [][]byte, wait bool) (int, error) {
	if !wait {
		return 0, nil
	}
	b := net.Buffers(append([][]byte(nil), bufs...))
	n, err := b.WriteTo(s.Conn)
	return int(n), err
}

func (s *plainSocket) hungUp() bool { return false }
func (s *plainSocket) watch() bool  { return false }

// maxIovecs is the kernel's limit, and more than one send uses.
const maxIovecs = 1024

// rawSocket is a descriptor used without the net package's bookkeeping per
// call. One goroutine reads and one writes at a time. The callbacks are made
// once, since a closure per call would be an allocation per call.
type rawSocket struct {
	rc syscall.RawConn

	// Of the reader.
	onRead  func(fd uintptr) bool
	onWatch func(fd uintptr) bool
	onPoll  func(fd uintptr) bool
	feed    feeder
	nread   int
	readErr error
	gone    bool

	// Of the writer.
	onWrite  func(fd uintptr) bool
	bufs     [][]byte
	iov      []unix.Iovec
	wait     bool
	nwritten int
	writeErr error
}

func newRawSocket(rc syscall.RawConn) *rawSocket {
	s := &rawSocket{rc: rc}
	s.onRead, s.onPoll, s.onWatch, s.onWrite = s.tryRead, s.tryPoll, s.tryWatch, s.tryWrite
	return s
}

func (s *rawSocket) read(f feeder) (int, error) { return s.receive(f, s.onRead) }

func (s *rawSocket) poll(f feeder) (int, error) { return s.receive(f, s.onPoll) }

func (s *rawSocket) receive(f feeder, how func(fd uintptr) bool) (int, error) {
	s.feed = f
	s.nread, s.readErr = 0, nil
	if err := s.rc.Read(how); err != nil {
		return 0, err
	}
	return s.nread, s.readErr
}

func (s *rawSocket) tryPoll(fd uintptr) bool {
	s.once(fd)
	return true
}

// tryRead receives once; false means that the caller is to sleep until there
// is something.
func (s *rawSocket) tryRead(fd uintptr) bool {
	if s.once(fd) {
		return true
	}
	s.feed.parking()
	return false
}

// once receives what there is, and reports whether there was something.
func (s *rawSocket) once(fd uintptr) bool {
	p := s.feed.space()
	for {
		n, err := unix.Read(int(fd), p)
		switch {
		case err == nil && n == 0:
			s.readErr = io.EOF
		case err == nil:
			s.nread = n
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return false
		default:
			s.readErr = os.NewSyscallError("read", err)
		}
		return true
	}
}

func (s *rawSocket) write(bufs [][]byte, wait bool) (int, error) {
	s.bufs, s.wait = bufs, wait
	s.nwritten, s.writeErr = 0, nil
	err := s.rc.Write(s.onWrite)
	s.bufs = nil
	if err == nil {
		err = s.writeErr
	}
	return s.nwritten, err
}

// tryWrite sends once; false means that the caller is to sleep until there is
// room.
func (s *rawSocket) tryWrite(fd uintptr) bool {
	for {
		n, err := s.send(int(fd))
		switch {
		case err == nil:
			s.nwritten = n
			return true
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			return !s.wait
		}
		s.writeErr = os.NewSyscallError("write", err)
		return true
	}
}

func (s *rawSocket) send(fd int) (int, error) {
	if len(s.bufs) == 1 {
		return unix.Write(fd, s.bufs[0])
	}
	s.iov = s.iov[:0]
	for _, b := range s.bufs[:min(len(s.bufs), maxIovecs)] {
		s.iov = append(s.iov, unix.Iovec{Base: &b[0]})
		s.iov[len(s.iov)-1].SetLen(len(b))
	}
	n, err := writev(fd, s.iov)
	clear(s.iov)
	return n, err
}

func (s *rawSocket) hungUp() bool {
	gone := false
	err := s.rc.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	})
	return gone || err != nil
}

func (s *rawSocket) watch() bool {
	s.gone = false
	err := s.rc.Read(s.onWatch)
	return s.gone || err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}

func (s *rawSocket) tryWatch(fd uintptr) bool {
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(int(fd), b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch err {
		case unix.EINTR:
			continue
		case unix.EAGAIN:
			return false
		}
		s.gone = n <= 0
		return true
	}
}
