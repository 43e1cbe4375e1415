package daemon

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// message is one packet between daemon and monitor. One or two descriptors may
// come with it.
type message struct {
	Op     string      `json:"op"`
	Name   string      `json:"name,omitempty"`
	Value  string      `json:"value,omitempty"`
	Socket *socketFile `json:"socket,omitempty"`
	Millis int64       `json:"millis,omitempty"`
}

// The operations. All go from daemon to monitor but opRestart.
const (
	opHold    = "hold"    // keep this listening socket (descriptor) under Name
	opDrop    = "drop"    // close what is kept under Name
	opConn    = "conn"    // keep this connection (first descriptor) for the next daemon, with its state (second)
	opKeep    = "keep"    // give Value to the next daemon under Name
	opExtend  = "extend"  // wait Millis more before killing
	opRestart = "restart" // monitor to daemon: make a planned restart
)

// maxMessage bounds a packet, maxFiles the descriptors that come with it.
const (
	maxMessage = 64 << 10
	maxFiles   = 2
)

// link is one end of the socket between daemon and monitor.
type link struct {
	conn *net.UnixConn

	mu sync.Mutex // one message at a time
}

// newLink makes both ends: ours, and a file for the other process.
func newLink() (*link, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make the link to the daemon: %w", err)
	}
	theirs := os.NewFile(uintptr(fds[1]), "link")
	l, err := openLink(os.NewFile(uintptr(fds[0]), "link"))
	if err != nil {
		theirs.Close()
		return nil, nil, err
	}
	return l, theirs, nil
}

// openLink takes over f.
func openLink(f *os.File) (*link, error) {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("cannot use the link: %w", err)
	}
	uc, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, errors.New("cannot use the link: not a Unix socket")
	}
	return &link{conn: uc}, nil
}

// sendTimeout bounds how long a monitor that is stopped can hold up the daemon.
const sendTimeout = 5 * time.Second

// send passes a message, and descriptors.
func (l *link) send(m message, files ...*os.File) error {
	data, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("cannot encode a message to the monitor: %w", err)
	}
	if len(data) > maxMessage {
		return fmt.Errorf("message to the monitor is too long (%d bytes, at most %d)", len(data), maxMessage)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.conn.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	return withFDs(files, nil, func(fds []int) error {
		if len(fds) == 0 {
			_, err := l.conn.Write(data)
			return err
		}
		_, _, err := l.conn.WriteMsgUnix(data, unix.UnixRights(fds...), nil)
		return err
	})
}

// withFDs lends the descriptors of files, after those in fds. Their method Fd
// would make a socket blocking, for the listener that shares it, too: then
// nothing could end an Accept that waits.
func withFDs(files []*os.File, fds []int, use func(fds []int) error) error {
	if len(files) == 0 {
		return use(fds)
	}
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	var useErr error
	if err := raw.Control(func(fd uintptr) { useErr = withFDs(files[1:], append(fds, int(fd)), use) }); err != nil {
		return err
	}
	return useErr
}

// receive waits for the next message. The caller owns the files that came.
func (l *link) receive() (message, []*os.File, error) {
	buf := make([]byte, maxMessage)
	oob := make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, flags, _, err := l.conn.ReadMsgUnix(buf, oob)
	if err != nil {
		return message{}, nil, err
	}
	files := takeFiles(oob[:oobn])
	if n == 0 {
		closeFiles(files)
		return message{}, nil, net.ErrClosed
	}
	m, err := parseMessage(buf[:n])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = errBadMessage
	}
	if err != nil {
		closeFiles(files)
		return message{}, nil, err
	}
	return m, files, nil
}

var errBadMessage = errors.New("malformed message on the link")

func parseMessage(data []byte) (message, error) {
	var m message
	if err := json.Unmarshal(data, &m); err != nil || m.Op == "" {
		return message{}, errBadMessage
	}
	return m, nil
}

// takeFiles returns the descriptors that came with a message, closed on exec.
func takeFiles(oob []byte) []*os.File {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	var files []*os.File
	for _, m := range msgs {
		fds, err := syscall.ParseUnixRights(&m)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "passed"))
		}
	}
	return files
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

func (l *link) close() {
	if l != nil {
		l.conn.Close()
	}
}

// interrupt ends a receive that waits; sending goes on to work.
func (l *link) interrupt() {
	if l != nil {
		_ = l.conn.SetReadDeadline(time.Unix(1, 0)) // fails only if closed
	}
}
