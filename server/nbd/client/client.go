// Package client is a small NBD client: enough for tests, demonstrations and
// fault injection. Requests run concurrently over one connection; the parts of
// the handshake can be had one by one, and the connection itself be reached,
// to do what no proper client does.
package client

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// Options say how to connect.
type Options struct {
	Export string
	// Simple asks for neither structured replies nor metadata contexts.
	Simple bool
}

// Client is a connection in the transmission phase. Its methods may be called
// concurrently.
type Client struct {
	nc         net.Conn
	export     Export
	structured bool
	context    uint32 // id of base:allocation; 0: not agreed on

	// sending is held while a request is written.
	sending sync.Mutex

	// mu guards the fields below.
	mu     sync.Mutex
	calls  map[uint64]*call
	cookie uint64
	err    error // why the connection ended
	done   chan struct{}
}

// Error is an error reply.
type Error struct {
	Cmd   proto.Cmd
	Errno proto.Errno
	Text  string // of the server, may be empty
}

func (e *Error) Error() string {
	if e.Text == "" {
		return fmt.Sprintf("%v: %v", e.Cmd, e.Errno)
	}
	return fmt.Sprintf("%v: %v: %s", e.Cmd, e.Errno, e.Text)
}

// Unwrap makes errors.Is(err, proto.ENOSPC) work.
func (e *Error) Unwrap() error { return e.Errno }

// ErrLost is in the error of every request whose outcome is unknown, since the
// connection ended before its reply.
var ErrLost = errors.New("connection lost")

// Extent is a run of bytes in one state of base:allocation.
type Extent struct {
	Len        int64
	Hole, Zero bool
}

// Dial connects to a server and opens an export.
func Dial(ctx context.Context, network, addr string, o Options) (*Client, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	c, err := New(ctx, nc, o)
	if err != nil {
		_ = nc.Close()
		return nil, fmt.Errorf("NBD server at %s: %w", addr, err)
	}
	return c, nil
}

// List asks a server for its exports.
func List(ctx context.Context, network, addr string) ([]string, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	defer func() { _ = nc.Close() }()
	defer interrupt(ctx, nc)()
	h, err := Greet(nc, proto.FixedNewstyle|proto.NoZeroes)
	if err != nil {
		return nil, err
	}
	names, err := h.List()
	if err != nil {
		return nil, err
	}
	return names, h.Abort()
}

// New opens an export over a fresh connection. The connection is the client's
// only if there is no error.
func New(ctx context.Context, nc net.Conn, o Options) (*Client, error) {
	defer interrupt(ctx, nc)()
	c := &Client{nc: nc, calls: make(map[uint64]*call), done: make(chan struct{})}
	if err := c.negotiate(o); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, err
	}
	go c.receive()
	return c, nil
}

// interrupt has ctx's end interrupt nc; the function returned ends that.
func interrupt(ctx context.Context, nc net.Conn) func() {
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

func (c *Client) negotiate(o Options) error {
	h, err := Greet(c.nc, proto.FixedNewstyle|proto.NoZeroes)
	if err != nil {
		return err
	}
	if !o.Simple {
		c.structured = h.StructuredReply() == nil
		if c.structured {
			c.context, _ = h.SetMetaContext(o.Export) // BlockStatus will say that it is not there
		}
	}
	c.export, err = h.Go(o.Export)
	return err
}

// Export describes what is open.
func (c *Client) Export() Export { return c.export }

// Size is the export's size.
func (c *Client) Size() int64 { return c.export.Size }

// Conn is the connection, for those who want to break it.
func (c *Client) Conn() net.Conn { return c.nc }

// closePatience bounds how long Close waits for the server.
const closePatience = 10 * time.Second

// Close says goodbye and waits a while for the server to hang up, which it
// does when everything in flight is answered.
func (c *Client) Close() error {
	_ = c.nc.SetDeadline(time.Now().Add(closePatience))
	err := c.sendRequest(proto.Request{Cmd: proto.CmdDisc}, nil)
	if err != nil {
		_ = c.nc.Close()
	}
	<-c.done
	_ = c.nc.Close()
	return err
}

// Abort hangs up at once.
func (c *Client) Abort() error {
	err := c.nc.Close()
	<-c.done
	return err
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.done }

// call is a request under way. The receiver owns it until done is closed.
type call struct {
	cmd     proto.Cmd
	off     int64
	data    []byte // destination of a read
	extents []Extent
	err     error
	done    chan struct{}
}

// Do sends a request and waits for its reply: data is the payload of a write,
// or the destination of a read. It is the way to send what the other methods
// would not.
func (c *Client) Do(r proto.Request, data []byte) error {
	_, err := c.do(r, data)
	return err
}

func (c *Client) do(r proto.Request, data []byte) (*call, error) {
	k, err := c.Start(r, data)
	if err != nil {
		return nil, err
	}
	<-k.call.done
	return k.call, k.call.err
}

// Pending is a request that was sent.
type Pending struct{ call *call }

// Wait waits for the reply.
func (p Pending) Wait() error {
	<-p.call.done
	return p.call.err
}

// Start sends a request and does not wait. The cookie is chosen here.
func (c *Client) Start(r proto.Request, data []byte) (Pending, error) {
	k := &call{cmd: r.Cmd, off: int64(r.Off), done: make(chan struct{})}
	payload := data
	if r.Cmd != proto.CmdWrite {
		k.data, payload = data, nil
	}
	c.mu.Lock()
	if c.err != nil {
		defer c.mu.Unlock()
		return Pending{}, c.err
	}
	c.cookie++
	r.Cookie = c.cookie
	c.calls[r.Cookie] = k
	c.mu.Unlock()
	if err := c.sendRequest(r, payload); err != nil {
		// The receiver fails the call when it notices.
		_ = c.nc.Close()
	}
	return Pending{k}, nil
}

func (c *Client) sendRequest(r proto.Request, payload []byte) error {
	b := net.Buffers{proto.AppendRequest(nil, r)}
	if len(payload) > 0 {
		b = append(b, payload)
	}
	c.sending.Lock()
	defer c.sending.Unlock()
	_, err := b.WriteTo(c.nc)
	return err
}

func length(p []byte) uint32 { return uint32(len(p)) }

// span cuts [off, off+n) into pieces that one request can carry.
func span(off int64, n, most int64, each func(off, at, n int64) error) error {
	for at := int64(0); at < n; at += most {
		if err := each(off+at, at, min(most, n-at)); err != nil {
			return err
		}
	}
	return nil
}

func (c *Client) maxPayload() int64 {
	if c.export.Max == 0 {
		return proto.MaxPayload
	}
	return int64(min(c.export.Max, proto.MaxPayload))
}

// ReadAt reads len(p) bytes.
func (c *Client) ReadAt(p []byte, off int64) (int, error) {
	n := 0
	err := span(off, int64(len(p)), c.maxPayload(), func(off, at, m int64) error {
		part := p[at : at+m]
		err := c.Do(proto.Request{Cmd: proto.CmdRead, Off: uint64(off), Len: length(part)}, part)
		if err == nil {
			n += len(part)
		}
		return err
	})
	return n, err
}

// WriteAt writes p.
func (c *Client) WriteAt(p []byte, off int64) (int, error) { return c.write(p, off, 0) }

// WriteFUA writes p durably.
func (c *Client) WriteFUA(p []byte, off int64) (int, error) { return c.write(p, off, proto.FlagFUA) }

func (c *Client) write(p []byte, off int64, f proto.CmdFlags) (int, error) {
	n := 0
	err := span(off, int64(len(p)), c.maxPayload(), func(off, at, m int64) error {
		part := p[at : at+m]
		err := c.Do(proto.Request{Cmd: proto.CmdWrite, Flags: f, Off: uint64(off), Len: length(part)}, part)
		if err == nil {
			n += len(part)
		}
		return err
	})
	return n, err
}

// Flush makes what was written durable.
func (c *Client) Flush() error { return c.Do(proto.Request{Cmd: proto.CmdFlush}, nil) }

// Trim gives up a range.
func (c *Client) Trim(off int64, n uint32) error {
	return c.Do(proto.Request{Cmd: proto.CmdTrim, Off: uint64(off), Len: n}, nil)
}

// WriteZeroes zeroes a range.
func (c *Client) WriteZeroes(off int64, n uint32, f proto.CmdFlags) error {
	return c.Do(proto.Request{Cmd: proto.CmdWriteZeroes, Flags: f, Off: uint64(off), Len: n}, nil)
}

// Cache brings a range near.
func (c *Client) Cache(off int64, n uint32) error {
	return c.Do(proto.Request{Cmd: proto.CmdCache, Off: uint64(off), Len: n}, nil)
}

// BlockStatus says what is allocated from off on.
func (c *Client) BlockStatus(off int64, n uint32, f proto.CmdFlags) ([]Extent, error) {
	if c.context == 0 {
		return nil, errors.New("the server did not agree on " + proto.ContextAllocation)
	}
	k, err := c.do(proto.Request{Cmd: proto.CmdBlockStatus, Flags: f, Off: uint64(off), Len: n}, nil)
	if err != nil {
		return nil, err
	}
	return k.extents, nil
}

// receive takes replies until the connection ends, and then fails what is
// under way.
func (c *Client) receive() {
	err := c.receiveAll()
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		err = nil
	}
	_ = c.nc.Close()
	lost := ErrLost
	if err != nil {
		lost = fmt.Errorf("%w: %w", ErrLost, err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = lost
	for _, k := range c.calls {
		k.err = lost
		close(k.done)
	}
	c.calls = nil
	close(c.done)
}

func (c *Client) find(cookie uint64) (*call, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if k := c.calls[cookie]; k != nil {
		return k, nil
	}
	return nil, fmt.Errorf("a reply to no request: cookie %#x", cookie)
}

func (c *Client) finish(cookie uint64, k *call) {
	c.mu.Lock()
	delete(c.calls, cookie)
	c.mu.Unlock()
	close(k.done)
}

func (c *Client) receiveAll() error {
	for {
		var m [4]byte
		if _, err := io.ReadFull(c.nc, m[:]); err != nil {
			return err
		}
		var err error
		switch binary.BigEndian.Uint32(m[:]) {
		case proto.MagicReply:
			err = c.simpleReply()
		case proto.MagicStructured:
			err = c.chunk()
		default:
			err = proto.ErrMagic
		}
		if err != nil {
			return err
		}
	}
}

func (c *Client) simpleReply() error {
	var b [proto.ReplySize - 4]byte
	if _, err := io.ReadFull(c.nc, b[:]); err != nil {
		return err
	}
	f := proto.NewFields(b[:])
	errno, cookie := proto.Errno(f.Uint32()), f.Uint64()
	k, err := c.find(cookie)
	if err != nil {
		return err
	}
	switch {
	case errno != proto.OK:
		k.err = &Error{Cmd: k.cmd, Errno: errno}
	case k.cmd == proto.CmdRead && c.structured:
		return errors.New("a read was answered by a simple reply")
	case k.cmd == proto.CmdRead:
		if _, err := io.ReadFull(c.nc, k.data); err != nil {
			return err
		}
	}
	c.finish(cookie, k)
	return nil
}

func (c *Client) chunk() error {
	var b [proto.ChunkSize - 4]byte
	if _, err := io.ReadFull(c.nc, b[:]); err != nil {
		return err
	}
	f := proto.NewFields(b[:])
	flags, kind, cookie, n := f.Uint16(), proto.Chunk(f.Uint16()), f.Uint64(), int64(f.Uint32())
	k, err := c.find(cookie)
	if err != nil {
		return err
	}
	if err := c.chunkPayload(k, kind, n); err != nil {
		return fmt.Errorf("chunk of type %d: %w", kind, err)
	}
	if flags&proto.ChunkDone != 0 {
		c.finish(cookie, k)
	}
	return nil
}

var errMalformed = errors.New("malformed")

func (c *Client) chunkPayload(k *call, kind proto.Chunk, n int64) error {
	if kind == proto.ChunkOffsetData {
		return c.readData(k, n)
	}
	if n > 1<<20 {
		return errMalformed
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(c.nc, b); err != nil {
		return err
	}
	f := proto.NewFields(b)
	switch {
	case kind == proto.ChunkNone:
	case kind == proto.ChunkOffsetHole:
		part, err := k.part(int64(f.Uint64()), int64(f.Uint32()))
		clear(part)
		return err
	case kind == proto.ChunkBlockStatus:
		f.Uint32() // the id of the only context there is
		for f.Left() > 0 && f.OK() {
			n, state := f.Uint32(), f.Uint32()
			k.extents = append(k.extents, Extent{int64(n), state&proto.StateHole != 0, state&proto.StateZero != 0})
		}
	case kind.IsError():
		e := &Error{Cmd: k.cmd, Errno: proto.Errno(f.Uint32())}
		if m := int(f.Uint16()); m <= f.Left() {
			e.Text = string(f.Rest()[:m])
		}
		k.err = e
	}
	if !f.OK() {
		return errMalformed
	}
	return nil
}

func (c *Client) readData(k *call, n int64) error {
	var b [8]byte
	if _, err := io.ReadFull(c.nc, b[:]); err != nil {
		return err
	}
	part, err := k.part(int64(binary.BigEndian.Uint64(b[:])), n-8)
	if err != nil {
		return err
	}
	_, err = io.ReadFull(c.nc, part)
	return err
}

// part is where [off, off+n) of a read belongs.
func (k *call) part(off, n int64) ([]byte, error) {
	at := off - k.off
	if k.cmd != proto.CmdRead || at < 0 || n < 0 || at+n > int64(len(k.data)) {
		return nil, errMalformed
	}
	return k.data[at : at+n], nil
}
