package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sourcegraph/jsonrpc2"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/frame"
)

// conn is one connection. To the JSON-RPC library it is the object stream that
// carries JSON-RPC 2.0, one request at a time; on the way through it
//   - takes out the unixctl requests, which are queued for a goroutine that
//     answers one after the other;
//   - takes batches apart, and puts their replies together again;
//   - answers what is no request;
//   - gives each request a number for an id and its own id back in the reply,
//     since the library knows neither null nor fractions nor large numbers.
type conn struct {
	s     *Server
	nc    net.Conn
	in    *frame.Reader
	out   *outbox
	actor Actor

	// ctx is that of the connection's commands. It ends when the client is
	// gone or the server stops; reading and writing go by nc.
	ctx    context.Context
	cancel context.CancelCauseFunc

	legacyCtx, modernCtx context.Context // ctx, with who called and in which dialect

	followers atomic.Int32   // how many goroutines of Notifier.Go there are
	following sync.WaitGroup // those goroutines

	asJSON   atomic.Bool         // "set-options --format json" was asked for
	slots    chan struct{}       // a token for each JSON-RPC 2.0 request in progress
	queue    chan *legacyRequest // unixctl requests in order
	ended    chan struct{}       // closed when reading has ended and all is answered
	answered sync.WaitGroup      // requests that have not been answered yet
	handlers sync.WaitGroup      // goroutines that run handlers, in time or late

	// Touched by the reading goroutine only.
	batch      [][]byte    // elements of a batch that were not delivered yet
	collecting *batchReply // of that batch
	spokeOld   bool        // the last message was of the unixctl dialect
	answering  bool        // answerLegacy was started

	mu      sync.Mutex
	pending map[uint64]pendingReply // by the number the library knows, guarded by mu
	lastID  uint64                  // guarded by mu
}

// pendingReply is what a reply needs to go where it belongs.
type pendingReply struct {
	id    []byte      // as it came
	batch *batchReply // nil for a request on its own
}

// handshakeTimeout bounds the TLS handshake of a remote client.
const handshakeTimeout = 10 * time.Second

func (s *Server) newConn(ctx context.Context, nc net.Conn) (*conn, error) {
	actor, err := s.identify(nc)
	if err != nil {
		return nil, err
	}
	actor.Conn = s.connSeq.Add(1)
	actor.Role = s.opts.Authorize(actor)
	ctx, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	c := &conn{
		s: s, nc: nc, actor: actor, ctx: ctx, cancel: cancel,
		in:      frame.NewReader(nc, frame.Limits{Size: s.lim.RequestBytes, Depth: s.lim.Depth}),
		out:     newOutbox(s.lim.QueueBytes),
		slots:   make(chan struct{}, s.lim.InProgress),
		queue:   make(chan *legacyRequest, legacyAhead),
		ended:   make(chan struct{}),
		pending: make(map[uint64]pendingReply),
	}
	c.legacyCtx, c.modernCtx = c.callContext(true), c.callContext(false)
	return c, nil
}

// serveConn serves nc to its end, and then waits for handlers that had to be
// answered for, with nothing held but the goroutine.
func (s *Server) serveConn(ctx context.Context, nc net.Conn) {
	c, err := s.open(ctx, nc)
	if err == nil {
		c.serve(ctx)
	}
	nc.Close()
	<-s.conns
	if err != nil {
		s.log.Warn("control connection failed", "remote", nc.RemoteAddr(), "err", err)
		return
	}
	c.handlers.Wait()
}

// open makes a conn of nc.
func (s *Server) open(ctx context.Context, nc net.Conn) (*conn, error) {
	if err := handshake(ctx, nc); err != nil {
		return nil, fmt.Errorf("TLS handshake: %w", err)
	}
	return s.newConn(ctx, nc)
}

func handshake(ctx context.Context, nc net.Conn) error {
	h, ok := nc.(interface{ HandshakeContext(context.Context) error })
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	return h.HandshakeContext(ctx)
}

// serve runs the connection: the library's goroutine reads, one writes, one
// answers the unixctl dialect. It returns when all is answered and sent.
func (c *conn) serve(ctx context.Context) {
	defer c.cancel(errGone)
	stop := context.AfterFunc(ctx, func() {
		c.cancel(errStopping)
		c.nc.SetReadDeadline(past)                          // wakes the reader
		time.AfterFunc(2*lastWord, func() { c.nc.Close() }) // of a client that does not read
	})
	defer stop()

	var writer sync.WaitGroup
	writer.Go(c.write)
	jsonrpc2.NewConn(context.WithoutCancel(ctx), c, c, jsonrpc2.SetLogger(libraryLog{c.s.log}))
	<-c.ended
	c.out.close()
	writer.Wait()
}

func (c *conn) write() {
	err := c.out.run(c.nc, c.s.lim.WriteTimeout)
	if err == nil {
		return
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.s.stats.cutOff.Add(1)
		c.s.log.Warn("control connection cut off: its client does not read", "actor", c.actor.String(), "pid", c.actor.PID)
	}
	c.cancel(errGone)
	c.nc.SetReadDeadline(past)
}

// Close is what the library calls, once, when reading has ended. The connection
// goes on until its replies are sent.
func (c *conn) Close() error {
	close(c.ended)
	return nil
}

// ReadObject hands the library the next JSON-RPC 2.0 request. It returns
// io.EOF when no more will come and all that came is answered.
func (c *conn) ReadObject(v any) error {
	for {
		raw, batch, err := c.next()
		if err != nil {
			c.finish(err)
			return io.EOF
		}
		if c.sort(raw, batch, v.(json.Unmarshaler)) {
			return nil
		}
	}
}

// next returns the next message, and the batch it is of.
func (c *conn) next() ([]byte, *batchReply, error) {
	for {
		if len(c.batch) > 0 {
			raw := c.batch[0]
			c.batch = c.batch[1:]
			return raw, c.collecting, nil
		}
		c.endBatch()
		raw, err := c.in.Next()
		if err != nil || raw[0] == '{' {
			return raw, nil, err
		}
		c.beginBatch(raw)
	}
}

// sort stores the message in v if it is a request that the library is to see,
// and deals with any other.
func (c *conn) sort(raw []byte, batch *batchReply, v json.Unmarshaler) bool {
	m := look(raw)
	if batch == nil && !m.modern() {
		c.spokeOld = true
		c.acceptLegacy(m.legacy())
		return false
	}
	c.spokeOld = false
	fault := m.fault()
	if !m.modern() {
		fault = `a batch holds objects with "jsonrpc":"2.0"`
	}
	if fault != "" {
		c.reject(m.id, batch, fault)
		return false
	}
	id, req := c.rewrite(m, batch)
	if err := v.UnmarshalJSON(req); err != nil {
		p := c.recall(id)
		c.reply(p, modernError(p.id, api.Errorf(api.CodeInvalidRequest, "%v", err)))
		return false
	}
	return true
}

// reject answers a message that is no request of JSON-RPC 2.0.
func (c *conn) reject(id []byte, batch *batchReply, fault string) {
	c.s.stats.malformed.Add(1)
	if !goodID(id) {
		id = nil
	}
	batch.expect()
	c.reply(pendingReply{id, batch}, modernError(id, api.Errorf(api.CodeInvalidRequest, "%s", fault)))
}

// rewrite returns the request for the library, with a number for an id.
func (c *conn) rewrite(m message, batch *batchReply) (id uint64, req []byte) {
	req = make([]byte, 0, len(m.method)+len(m.params)+64)
	req = append(append(req, `{"jsonrpc":"2.0","method":`...), m.method...)
	if unlessNull(m.params) != nil {
		req = append(append(req, `,"params":`...), m.params...)
	}
	if m.id != nil {
		batch.expect()
		id = c.remember(pendingReply{append([]byte(nil), m.id...), batch})
		req = fmt.Appendf(req, `,"id":%d`, id)
	}
	return id, append(req, '}')
}

func (c *conn) remember(p pendingReply) uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lastID++
	c.pending[c.lastID] = p
	return c.lastID
}

func (c *conn) recall(id uint64) pendingReply {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.pending[id]
	delete(c.pending, id)
	return p
}

// WriteObject sends a reply that the library has encoded, under the id that
// the request came with.
func (c *conn) WriteObject(obj any) error {
	raw, err := obj.(json.Marshaler).MarshalJSON()
	if err != nil {
		return err
	}
	var number uint64
	var member string
	var value []byte
	for key, v := range frame.Members(raw) {
		switch string(key) {
		case `"id"`:
			if err := json.Unmarshal(v, &number); err != nil {
				return err
			}
		case `"result"`, `"error"`:
			member, value = string(key[1:len(key)-1]), v
		}
	}
	p := c.recall(number)
	return c.reply(p, modernReply(p.id, member, value))
}

// reply sends a reply of JSON-RPC 2.0, or adds it to those of its batch.
func (c *conn) reply(p pendingReply, msg []byte) error {
	if p.batch != nil {
		if msg = p.batch.add(msg); msg == nil {
			return nil
		}
	}
	return c.out.push(append(msg, '\n'))
}

// Handle runs a JSON-RPC 2.0 request that the library has read. It waits for
// one of the connection's slots, so that a client that sends faster than its
// commands run is slowed down, and one whose commands hang is told.
func (c *conn) Handle(_ context.Context, lib *jsonrpc2.Conn, req *jsonrpc2.Request) {
	if !c.acquire() {
		c.replyModern(lib, req, result{}, api.Errorf(api.CodeBusy,
			"%d requests of this connection are in progress; wait for one of them", cap(c.slots)).
			WithData(api.LimitDetail{Limit: "in_progress", Value: int64(cap(c.slots))}))
		return
	}
	var in input
	if req.Params != nil {
		in.raw = *req.Params
	}
	c.answered.Add(1)
	c.handlers.Go(func() {
		c.call(c.modernCtx, req.Method, in, func(r result, err error) {
			defer c.answered.Done()
			c.replyModern(lib, req, r, err)
			<-c.slots
		}, nil)
	})
}

func (c *conn) acquire() bool {
	select {
	case c.slots <- struct{}{}:
		return true
	default:
	}
	t := time.NewTimer(c.s.lim.Busy)
	defer t.Stop()
	select {
	case c.slots <- struct{}{}:
		return true
	case <-t.C:
	case <-c.ctx.Done():
	}
	return false
}

// callContext returns the context of the connection's commands in a dialect.
func (c *conn) callContext(legacy bool) context.Context {
	return context.WithValue(c.ctx, callerKey{}, &caller{c.actor, &Notifier{c, legacy}})
}

func (c *conn) replyModern(lib *jsonrpc2.Conn, req *jsonrpc2.Request, r result, err error) {
	if req.Notif {
		if err != nil {
			c.s.log.Debug("notification failed", "method", req.Method, "err", err)
		}
		return
	}
	var raw json.RawMessage
	if err == nil {
		raw, err = r.json()
	}
	resp := &jsonrpc2.Response{ID: req.ID}
	if err != nil {
		resp.Error = libraryError(wireError(err))
	} else {
		resp.Result = &raw
	}
	if err := lib.SendResponse(c.ctx, resp); err != nil && !errors.Is(err, ErrGone) {
		c.s.log.Debug("cannot send a reply", "method", req.Method, "err", err)
	}
}

// libraryLog takes what the JSON-RPC library has to say.
type libraryLog struct{ log *slog.Logger }

// Printf implements the library's Logger.
func (l libraryLog) Printf(format string, args ...any) {
	l.log.Debug(fmt.Sprintf(format, args...))
}
