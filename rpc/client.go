package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/jsonrpc2"
	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/frame"
	"github.com/lockstepd/lockstep/rpc/unixsock"
)

// Error is what the daemon answered instead of a result.
type Error = api.Error

// ErrTimeout says that no answer came in time. The connection was closed.
var ErrTimeout = errors.New("timed out")

// ErrUnreachable says that there is no daemon to talk to, or none any more.
// The error that wraps it is an *UnreachableError.
var ErrUnreachable = errors.New("the daemon cannot be reached")

// ErrLost says that the connection broke before the answer came: whether the
// command was carried out is not known. It is an ErrUnreachable too.
var ErrLost = fmt.Errorf("the connection was lost before the answer came: %w", ErrUnreachable)

// An UnreachableError says which daemon could not be reached and why; the
// cause is one of the operating system's errors where it has one.
type UnreachableError struct {
	Target string // as it was asked for
	Path   string // of the socket, if it got as far as that
	Cause  error
}

// Error names target, cause, and the next step.
func (e *UnreachableError) Error() string {
	where := e.Target
	if e.Path != "" {
		where = e.Path
	}
	text := fmt.Sprintf("cannot reach %s: %v", where, e.Cause)
	switch {
	case errors.Is(e.Cause, unix.ENOENT), errors.Is(e.Cause, unix.ECONNREFUSED), errors.Is(e.Cause, errNotRunning):
		return text + " (is the daemon running?)"
	case errors.Is(e.Cause, unix.EACCES), errors.Is(e.Cause, unix.EPERM):
		return text + " (try as root, or as a member of the socket's group)"
	}
	return text
}

// Unwrap returns ErrUnreachable and the cause.
func (e *UnreachableError) Unwrap() []error { return []error{ErrUnreachable, e.Cause} }

// DialOptions configure a Client. The zero value will do.
type DialOptions struct {
	// Rundir is where Resolve looks for program names.
	Rundir string

	// Notify is called for each notification, in order, from the goroutine
	// that reads: it must not call the client, and while it runs nothing is
	// read.
	Notify func(method string, params json.RawMessage)

	// Open connects to targets that are neither a path nor a program's name,
	// "ssl:HOST:PORT" say. They are refused where it is nil.
	Open func(ctx context.Context, name string) (net.Conn, error)

	// MaxReply bounds what the daemon may answer; 256 MiB when zero.
	MaxReply int
}

// writeTimeout bounds the sending of a request whose context has no deadline.
const writeTimeout = 30 * time.Second

const (
	defaultMaxReply = 256 << 20
	replyDepth      = 1000
)

// Client is a connection to a daemon. Its methods may be called from any
// number of goroutines at once.
type Client struct {
	nc     net.Conn
	target string
	notify func(method string, params json.RawMessage)
	in     *frame.Reader
	lib    *jsonrpc2.Conn

	mu      sync.Mutex
	texts   map[uint64]chan message // unixctl calls in progress by id, guarded by mu
	textSeq uint64                  // guarded by mu
	fatal   error                   // why the connection ended, guarded by mu

	sending sync.Mutex // held while a request is written

	received atomic.Int64 // when the last message came, in ns of Unix time; 0: none yet
}

// Dial connects to target: the path of a socket, a program's name (see
// Resolve), or a stream's name that o.Open understands.
func Dial(ctx context.Context, target string, o DialOptions) (*Client, error) {
	nc, path, err := dial(ctx, target, o)
	if err != nil {
		if errors.Is(err, ErrUnreachable) {
			return nil, err
		}
		return nil, &UnreachableError{Target: target, Path: path, Cause: err}
	}
	return newClient(nc, target, o), nil
}

func dial(ctx context.Context, target string, o DialOptions) (nc net.Conn, path string, err error) {
	class, rest, isStream := strings.Cut(target, ":")
	switch {
	case isStream && class == "unix":
		path = rest
	case isStream && !strings.Contains(class, "/"):
		if o.Open == nil {
			return nil, target, errors.New("only Unix sockets can be reached from here")
		}
		nc, err = o.Open(ctx, target)
		return nc, target, err
	default:
		if path, err = Resolve(target, o.Rundir); err != nil {
			return nil, "", err
		}
	}
	u, err := unixsock.Dial(ctx, path)
	if err != nil {
		return nil, path, err
	}
	return u, path, nil
}

// NewClient makes a client of a connection that is open already.
func NewClient(nc net.Conn, o DialOptions) *Client {
	return newClient(nc, nc.RemoteAddr().String(), o)
}

func newClient(nc net.Conn, target string, o DialOptions) *Client {
	if o.MaxReply <= 0 {
		o.MaxReply = defaultMaxReply
	}
	c := &Client{
		nc: nc, target: target, notify: o.Notify,
		in:    frame.NewReader(nc, frame.Limits{Size: o.MaxReply, Depth: replyDepth}),
		texts: make(map[uint64]chan message),
	}
	c.lib = jsonrpc2.NewConn(context.Background(), clientStream{c}, clientHandler{c},
		jsonrpc2.SetLogger(libraryLog{slog.New(slog.DiscardHandler)}))
	return c
}

// LastReceived returns when the last message came, or zero where none has.
func (c *Client) LastReceived() time.Time {
	if at := c.received.Load(); at != 0 {
		return time.Unix(0, at)
	}
	return time.Time{}
}

// Close ends the connection, and with it the calls in progress.
func (c *Client) Close() error {
	err := c.lib.Close()
	if errors.Is(err, jsonrpc2.ErrClosed) {
		return nil
	}
	return err
}

// Done is closed when the connection has ended.
func (c *Client) Done() <-chan struct{} { return c.lib.DisconnectNotify() }

// Call runs a command in JSON-RPC 2.0. params is a struct, a map or a list,
// or nil; result is a pointer, or nil. The error is an *Error where the daemon
// answered one, and else ErrTimeout, ErrLost or an *UnreachableError. Where ctx
// ends before the answer came the connection is closed: the daemon then
// cancels the command.
func (c *Client) Call(ctx context.Context, method string, params, result any) error {
	err := c.lib.Call(ctx, method, params, result)
	return c.explain(ctx, method, err)
}

func (c *Client) explain(ctx context.Context, method string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*jsonrpc2.Error](err); ok {
		out := &Error{Code: int(e.Code), Message: e.Message}
		if e.Data != nil {
			out.Data = *e.Data
		}
		return out
	}
	if ctx.Err() != nil {
		c.Close()
		return ended(ctx, method)
	}
	if errors.Is(err, jsonrpc2.ErrClosed) || isNetError(err) {
		return c.lost(method)
	}
	return fmt.Errorf("calling %s: %w", method, err)
}

func isNetError(err error) bool {
	_, ok := errors.AsType[net.Error](err)
	return ok
}

func ended(ctx context.Context, method string) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return fmt.Errorf("calling %s: %w waiting for the answer", method, ErrTimeout)
	}
	return fmt.Errorf("calling %s: %w", method, ctx.Err())
}

// lost returns why the connection ended.
func (c *Client) lost(method string) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e, ok := errors.AsType[*Error](c.fatal); ok {
		return e
	}
	if c.fatal != nil {
		return fmt.Errorf("calling %s on %s: %w (%w)", method, c.target, ErrLost, c.fatal)
	}
	return fmt.Errorf("calling %s on %s: %w", method, c.target, ErrLost)
}

// Err returns why the connection has ended, or nil while it has not.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	_, told := errors.AsType[*Error](c.fatal)
	switch {
	case c.fatal == nil, told:
		return c.fatal
	case errors.Is(c.fatal, io.EOF):
		return &UnreachableError{Target: c.target, Cause: errors.New("it closed the connection")}
	}
	return &UnreachableError{Target: c.target, Cause: c.fatal}
}

func (c *Client) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fatal == nil {
		c.fatal = err
	}
	for id, ch := range c.texts {
		close(ch)
		delete(c.texts, id)
	}
}

// CallText runs a command in the unixctl dialect and returns its text, as
// ovs-appctl would print it. The error is as that of Call; the dialect has no
// codes, so that of an *Error is CodeFailed.
func (c *Client) CallText(ctx context.Context, method string, args ...string) (string, error) {
	id, answer, err := c.expectText()
	if err != nil {
		return "", c.lost(method)
	}
	if err := c.send(textRequest(id, method, args)); err != nil {
		c.forgetText(id)
		return "", c.explain(ctx, method, err)
	}
	select {
	case m, ok := <-answer:
		if !ok {
			return "", c.lost(method)
		}
		return textAnswer(m)
	case <-ctx.Done():
		c.forgetText(id)
		c.Close()
		return "", ended(ctx, method)
	}
}

func textRequest(id uint64, method string, args []string) []byte {
	req := frame.AppendQuote(fmt.Appendf(nil, `{"id":%d,"method":`, id), method)
	req = append(req, `,"params":[`...)
	for i, arg := range args {
		if i > 0 {
			req = append(req, ',')
		}
		req = frame.AppendQuote(req, arg)
	}
	return append(req, "]}"...)
}

func textAnswer(m message) (string, error) {
	if m.failure != nil {
		text, err := frame.Unquote(m.failure)
		if err != nil {
			text = string(m.failure)
		}
		return "", &Error{Code: api.CodeFailed, Message: strings.TrimSuffix(text, "\n")}
	}
	text, err := frame.Unquote(m.result)
	if err != nil {
		return string(m.result), nil // "set-options --format json" was called
	}
	return text, nil
}

func (c *Client) expectText() (uint64, chan message, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.lib.DisconnectNotify():
		return 0, nil, jsonrpc2.ErrClosed
	default:
	}
	if c.fatal != nil {
		return 0, nil, c.fatal
	}
	c.textSeq++
	ch := make(chan message, 1)
	c.texts[c.textSeq] = ch
	return c.textSeq, ch, nil
}

func (c *Client) forgetText(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.texts, id)
}

func (c *Client) send(msg []byte) error {
	c.sending.Lock()
	defer c.sending.Unlock()
	if err := c.nc.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return err
	}
	_, err := c.nc.Write(msg)
	return err
}

// clientStream is the object stream of the JSON-RPC library. Replies of the
// unixctl dialect do not get as far as the library.
type clientStream struct{ c *Client }

func (s clientStream) WriteObject(obj any) error {
	raw, err := obj.(json.Marshaler).MarshalJSON()
	if err != nil {
		return err
	}
	return s.c.send(append(raw, '\n'))
}

func (s clientStream) ReadObject(v any) error {
	for {
		raw, err := s.c.in.Next()
		if err != nil {
			s.c.fail(err)
			return err
		}
		s.c.received.Store(time.Now().UnixNano())
		m := look(raw)
		switch {
		case m.method == nil && m.orphan():
			err := answerTo(m)
			s.c.fail(err)
			return err
		case m.modern():
			return v.(json.Unmarshaler).UnmarshalJSON(raw)
		}
		s.c.deliver(m)
	}
}

// orphan reports whether the message answers no request: the daemon could not
// read one, or refuses the connection.
func (m *message) orphan() bool { return m.id == nil || string(m.id) == "null" }

// answerTo makes an error of the message.
func answerTo(m message) error {
	e := new(Error)
	if json.Unmarshal(m.failure, e) == nil && e.Message != "" {
		return e
	}
	_, err := textAnswer(m)
	return err
}

// deliver hands a unixctl reply to the call that waits for it. What nobody
// waits for is dropped.
func (c *Client) deliver(m message) {
	var id uint64
	if json.Unmarshal(m.id, &id) != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if ch := c.texts[id]; ch != nil {
		delete(c.texts, id)
		ch <- m.clone()
	}
}

func (s clientStream) Close() error {
	err := s.c.nc.Close()
	s.c.fail(net.ErrClosed)
	return err
}

// clientHandler takes the notifications.
type clientHandler struct{ c *Client }

// Handle implements the library's Handler.
func (h clientHandler) Handle(_ context.Context, _ *jsonrpc2.Conn, req *jsonrpc2.Request) {
	if h.c.notify == nil || !req.Notif {
		return
	}
	var params json.RawMessage
	if req.Params != nil {
		params = *req.Params
	}
	h.c.notify(req.Method, params)
}
