package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/cmd/internal/nbdio"
	"github.com/lockstepd/lockstep/cmd/internal/torture"
)

// The kernel's NBD client by netlink, which alone can wait for another socket
// when it has lost its own.
const (
	nbdFamily = "nbd"

	nbdConnect     = 1
	nbdReconfigure = 3

	attrIndex           = 1
	attrSize            = 2
	attrBlockSize       = 3
	attrTimeout         = 4
	attrServerFlags     = 5
	attrSockets         = 7
	attrDeadConnTimeout = 8
	sockItem            = 1
	sockFD              = 1
)

// What the client needs to ride out a crash of its server: requests that were
// in flight are sent again when resendAfter has passed, and new ones wait so
// long for another socket.
const (
	resendAfter = 5 * time.Second
	waitAtMost  = 90 * time.Second
)

// attachAgain attaches the device, and gives the kernel another connection
// whenever it has lost the one it had.
func attachAgain(o *torture.Order) error {
	conn, fd, err := dial(o)
	if err != nil {
		return err
	}
	attrs := u64(attrSize, uint64(conn.Size))
	attrs = append(attrs, u64(attrBlockSize, 4096)...)
	attrs = append(attrs, u64(attrServerFlags, uint64(conn.Flags))...)
	if err := configure(nbdConnect, fd, attrs); err != nil {
		return err
	}
	go func() {
		for {
			hangUp(fd)
			say("lost")
			unix.Close(fd)
			if _, fd, err = dial(o); err == nil {
				err = configure(nbdReconfigure, fd, nil)
			}
			if err != nil {
				say("failed to connect again: %v", err)
				return
			}
			say("again")
		}
	}()
	return nil
}

// dial connects to the server, as soon as that lets the device be opened, and
// returns the socket, in which nothing is left to be read.
func dial(o *torture.Order) (*nbdio.Conn, int, error) {
	var last error
	for range 600 {
		conn, err := nbdio.DialNetwork(context.Background(), "tcp", net.JoinHostPort(o.Host, o.Port), o.Export)
		if err != nil {
			last = err
			time.Sleep(100 * time.Millisecond)
			continue
		}
		defer conn.Raw().Close() // the copy goes on
		f, err := conn.Raw().(*net.TCPConn).File()
		if err != nil {
			return nil, 0, err
		}
		defer f.Close()
		fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
		return conn, fd, err
	}
	return nil, 0, last
}

// hangUp waits until the other side has closed a connection, and a little, so
// that the kernel knows it, too: a new socket for a client that has not lost
// its own is thrown away.
func hangUp(fd int) {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if n, err := unix.Poll(p, -1); n > 0 || err != nil && !errors.Is(err, unix.EINTR) {
			time.Sleep(300 * time.Millisecond)
			return
		}
	}
}

// configure sends the client of device 0 a command, and a socket.
func configure(cmd uint8, fd int, attrs []byte) error {
	attrs = append(attrs, u32(attrIndex, 0)...)
	attrs = append(attrs, u64(attrTimeout, uint64(resendAfter.Seconds()))...)
	attrs = append(attrs, u64(attrDeadConnTimeout, uint64(waitAtMost.Seconds()))...)
	attrs = append(attrs, nested(attrSockets, nested(sockItem, u32(sockFD, uint32(fd))))...)
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_GENERIC)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	reply, err := ask(s, unix.GENL_ID_CTRL, unix.CTRL_CMD_GETFAMILY, attr(unix.CTRL_ATTR_FAMILY_NAME, append([]byte(nbdFamily), 0)))
	if err != nil {
		return fmt.Errorf("look for the NBD client: %w", err)
	}
	family, ok := find(reply, unix.CTRL_ATTR_FAMILY_ID)
	if !ok || len(family) < 2 {
		return errors.New("the kernel's NBD client has no number")
	}
	if _, err := ask(s, binary.NativeEndian.Uint16(family), cmd, attrs); err != nil {
		return fmt.Errorf("NBD command %d: %w", cmd, err)
	}
	return nil
}

// ask sends a generic netlink message, and returns the attributes of the answer
// once it was acknowledged.
func ask(s int, family uint16, cmd uint8, attrs []byte) (reply []byte, err error) {
	const version = 1
	b := binary.NativeEndian.AppendUint32(nil, uint32(unix.SizeofNlMsghdr+unix.GENL_HDRLEN+len(attrs)))
	b = binary.NativeEndian.AppendUint16(b, family)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence number, port
	b = append(b, cmd, version, 0, 0)
	if err := unix.Sendto(s, append(b, attrs...), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	for {
		buf := make([]byte, 64<<10)
		n, _, err := unix.Recvfrom(s, buf, 0)
		if err != nil {
			return nil, err
		}
		for buf = buf[:n]; len(buf) >= unix.SizeofNlMsghdr; {
			size := int(binary.NativeEndian.Uint32(buf))
			if size < unix.SizeofNlMsghdr+4 || size > len(buf) {
				return nil, errors.New("a malformed answer")
			}
			body := buf[unix.SizeofNlMsghdr:size]
			if binary.NativeEndian.Uint16(buf[4:]) == unix.NLMSG_ERROR {
				if code := int32(binary.NativeEndian.Uint32(body)); code != 0 {
					return nil, unix.Errno(-code)
				}
				return reply, nil
			}
			reply = body[unix.GENL_HDRLEN:]
			buf = buf[min(len(buf), aligned(size)):]
		}
	}
}

func aligned(n int) int { return (n + 3) &^ 3 }

func attr(kind uint16, value []byte) []byte {
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(value)))
	b = append(binary.NativeEndian.AppendUint16(b, kind), value...)
	return append(b, make([]byte, aligned(len(b))-len(b))...)
}

func u32(kind uint16, v uint32) []byte { return attr(kind, binary.NativeEndian.AppendUint32(nil, v)) }

func u64(kind uint16, v uint64) []byte { return attr(kind, binary.NativeEndian.AppendUint64(nil, v)) }

func nested(kind uint16, attrs []byte) []byte { return attr(kind|unix.NLA_F_NESTED, attrs) }

// find returns the value of an attribute.
func find(attrs []byte, kind uint16) ([]byte, bool) {
	for len(attrs) >= 4 {
		size := int(binary.NativeEndian.Uint16(attrs))
		if size < 4 || size > len(attrs) {
			return nil, false
		}
		if binary.NativeEndian.Uint16(attrs[2:]) == kind {
			return attrs[4:size], true
		}
		attrs = attrs[min(len(attrs), aligned(size)):]
	}
	return nil, false
}
