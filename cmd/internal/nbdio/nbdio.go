// Package nbdio is the smallest NBD client that reads, writes and flushes: one
// request at a time on one connection, simple replies. It shares no code with
// the server that it tests.
package nbdio

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// Protocol constants, by their names in the NBD protocol's text.
const (
	nbdMagic      = 0x4e42444d41474943 // "NBDMAGIC"
	optMagic      = 0x49484156454f5054 // "IHAVEOPT"
	replyMagic    = 0x3e889045565a9
	requestMagic  = 0x25609513
	simpleMagic   = 0x67446698
	flagNewstyle  = 1 << 0
	flagNoZeroes  = 1 << 1
	optGo         = 7
	repAck        = 1
	repInfo       = 3
	infoExport    = 0
	maxReply      = 1 << 16
	cmdRead       = 0
	cmdWrite      = 1
	cmdDisconnect = 2
	cmdFlush      = 3
	// FUA asks that a write be durable before it is answered.
	FUA = 1 << 0
)

// Conn is a connection to an export. Its methods may be called by several
// goroutines; they take turns.
type Conn struct {
	Size  int64
	Flags uint16 // transmission flags

	conn   net.Conn
	mu     sync.Mutex // serializes requests, and guards r and cookie
	r      *bufio.Reader
	cookie uint64
}

// Error is an error reply of the server; errors.Is finds the errno in it.
type Error struct {
	What  string
	Errno syscall.Errno
}

func (e *Error) Error() string { return e.What + ": the server answered: " + e.Errno.Error() }
func (e *Error) Unwrap() error { return e.Errno }

// Dial connects to an export over a Unix socket.
func Dial(ctx context.Context, socket, export string) (*Conn, error) {
	return DialNetwork(ctx, "unix", socket, export)
}

// DialNetwork connects to an export.
func DialNetwork(ctx context.Context, network, address, export string) (*Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, address)
	if err != nil {
		return nil, err
	}
	c := &Conn{conn: nc, r: bufio.NewReaderSize(nc, 64<<10)}
	stop := context.AfterFunc(ctx, func() { nc.Close() })
	err = c.handshake(export)
	if !stop() {
		err = errors.Join(context.Cause(ctx), err)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open NBD export %q at %s: %w", export, address, err), nc.Close())
	}
	return c, nil
}

func (c *Conn) handshake(export string) error {
	hello := make([]byte, 18)
	if _, err := io.ReadFull(c.r, hello); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(hello) != nbdMagic || binary.BigEndian.Uint64(hello[8:]) != optMagic {
		return errors.New("not an NBD server of the newstyle kind")
	}
	b := binary.BigEndian.AppendUint32(nil, flagNewstyle|flagNoZeroes)
	b = binary.BigEndian.AppendUint64(b, optMagic)
	b = binary.BigEndian.AppendUint32(b, optGo)
	b = binary.BigEndian.AppendUint32(b, uint32(4+len(export)+2))
	b = binary.BigEndian.AppendUint32(b, uint32(len(export)))
	b = append(b, export...)
	b = binary.BigEndian.AppendUint16(b, 0)
	if _, err := c.conn.Write(b); err != nil {
		return err
	}
	for {
		kind, payload, err := c.optionReply()
		switch {
		case err != nil:
			return err
		case kind == repAck:
			return nil
		case kind&(1<<31) != 0:
			return fmt.Errorf("refused (error %d): %s", kind&^(1<<31), payload)
		case kind == repInfo && len(payload) >= 12 && binary.BigEndian.Uint16(payload) == infoExport:
			c.Size = int64(binary.BigEndian.Uint64(payload[2:]))
			c.Flags = binary.BigEndian.Uint16(payload[10:])
		}
	}
}

func (c *Conn) optionReply() (kind uint32, payload []byte, err error) {
	var h [20]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(h[16:])
	if binary.BigEndian.Uint64(h[:]) != replyMagic || n > maxReply {
		return 0, nil, errors.New("a malformed option reply")
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(c.r, payload)
	return binary.BigEndian.Uint32(h[12:]), payload, err
}

// request sends a request and reads its reply.
func (c *Conn) request(what string, flags, cmd uint16, off int64, length int, out, in []byte) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cookie++
	b := binary.BigEndian.AppendUint32(nil, requestMagic)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, cmd)
	b = binary.BigEndian.AppendUint64(b, c.cookie)
	b = binary.BigEndian.AppendUint64(b, uint64(off))
	b = binary.BigEndian.AppendUint32(b, uint32(length))
	bufs := net.Buffers{b, out}
	if _, err := bufs.WriteTo(c.conn); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if cmd == cmdDisconnect {
		return nil
	}
	var h [16]byte
	if _, err := io.ReadFull(c.r, h[:]); err != nil {
		return fmt.Errorf("%s: read the reply: %w", what, err)
	}
	if binary.BigEndian.Uint32(h[:]) != simpleMagic || binary.BigEndian.Uint64(h[8:]) != c.cookie {
		return fmt.Errorf("%s: a reply that was not asked for: % x", what, h)
	}
	if errno := binary.BigEndian.Uint32(h[4:]); errno != 0 {
		return &Error{What: what, Errno: syscall.Errno(errno)}
	}
	if _, err := io.ReadFull(c.r, in); err != nil {
		return fmt.Errorf("%s: read the data: %w", what, err)
	}
	return nil
}

// ReadAt reads len(p) bytes at off.
func (c *Conn) ReadAt(p []byte, off int64) (int, error) {
	if err := c.request("read", 0, cmdRead, off, len(p), nil, p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteAt writes p at off.
func (c *Conn) WriteAt(p []byte, off int64) (int, error) { return c.WriteFlags(p, off, 0) }

// WriteFlags writes p at off with command flags.
func (c *Conn) WriteFlags(p []byte, off int64, flags uint16) (int, error) {
	if err := c.request("write", flags, cmdWrite, off, len(p), p, nil); err != nil {
		return 0, err
	}
	return len(p), nil
}

// Command sends a request without data and reads its reply: whatever the
// command, so that servers can be asked for what they must refuse.
func (c *Conn) Command(flags, cmd uint16, off int64, length int) error {
	return c.request(fmt.Sprintf("command %d", cmd), flags, cmd, off, length, nil, nil)
}

// Flush makes all answered writes durable.
func (c *Conn) Flush() error { return c.request("flush", 0, cmdFlush, 0, 0, nil, nil) }

// Raw returns the connection itself, for sending what this client never would.
func (c *Conn) Raw() net.Conn { return c.conn }

// Close closes the connection, with no farewell when a request is under way.
func (c *Conn) Close() error {
	if c.mu.TryLock() {
		c.mu.Unlock()
		// A server that is gone already is as good as one that was told.
		_ = c.request("disconnect", 0, cmdDisconnect, 0, 0, nil, nil)
	}
	return c.conn.Close()
}
