package nbd

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

const (
	// gatherOps and gatherBytes bound what is gathered before replies are
	// sent: enough to make few system calls, not so much that the client runs
	// dry meanwhile.
	gatherOps   = 64
	gatherBytes = 256 << 10
	// calmBytes is the most that a lone small request brings.
	calmBytes = 16 << 10
)

// read serves requests until the connection is to end, and says why.
func (c *conn) read() error {
	for {
		n, err := c.receive()
		if err == nil {
			c.now = c.srv.now()
			c.stats.received(n)
			before := c.accepted.Load()
			err = c.consume(n)
			c.calm = n <= calmBytes && c.accepted.Load()-before <= 1
		}
		c.finishBatch()
		if err != nil {
			return err
		}
	}
}

// receive reads what there is into the inbox, or into the big write that is
// under way.
func (c *conn) receive() (int, error) {
	if len(c.prefix) > 0 {
		n := copy(c.space(), c.prefix)
		c.prefix = c.prefix[n:]
		return n, nil
	}
	for {
		if c.stop.Load() {
			return 0, errStopped
		}
		n, err := c.poll()
		if n == 0 && err == nil {
			n, err = c.sock.read(c)
		}
		if err == nil {
			return n, nil
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && !c.stop.Load() {
			_ = c.nc.SetReadDeadline(time.Time{}) // left over from opening the export
			continue
		}
		return 0, c.readError(err)
	}
}

// space is where the next read goes.
func (c *conn) space() []byte {
	if c.big.buf != nil {
		return c.big.buf.B[c.big.have:c.big.req.Len]
	}
	return c.in.space(c.need)
}

// parking lets go of memory before the reader sleeps.
func (c *conn) parking() { c.in.rest() }

func (c *conn) finishBatch() {
	c.gathered, c.bytes = 0, 0
	c.batch.Finish()
}

// consume handles what a read of n bytes brought.
func (c *conn) consume(n int) error {
	if c.big.buf != nil {
		if c.big.have += n; c.big.have == int(c.big.req.Len) {
			c.submitBig()
		}
		return nil
	}
	c.in.tail += n
	for {
		if c.skip > 0 {
			c.skipSome()
		}
		c.need = proto.RequestSize
		b := c.in.unread()
		if len(b) < proto.RequestSize {
			return nil
		}
		r, err := proto.ParseRequest(b)
		if err != nil {
			return fmt.Errorf("request: %w", err)
		}
		if more, err := c.handleRequest(r, b); err != nil || !more {
			return err
		}
	}
}

// skipSome ignores what has arrived of a refused write's payload.
func (c *conn) skipSome() {
	n := min(c.skip, int64(c.in.tail-c.in.head))
	c.in.head += int(n)
	c.skip -= n
}

// handleRequest handles the request at the front of b, if it is there with all
// its payload; if not, it sets need and returns false.
func (c *conn) handleRequest(r proto.Request, b []byte) (bool, error) {
	if r.Cmd == proto.CmdDisc {
		return false, errBye
	}
	if errno, text := c.check(r); errno != proto.OK {
		if err := c.room(0); err != nil {
			return false, err
		}
		c.in.head += proto.RequestSize
		if r.Cmd == proto.CmdWrite {
			c.skip = int64(r.Len)
		}
		c.refuse(r, errno, text)
		return true, nil
	}
	total := proto.RequestSize
	if r.Cmd == proto.CmdWrite {
		total += int(r.Len)
	}
	if total > slabSize {
		return false, c.beginBig(r, b[proto.RequestSize:])
	}
	if len(b) < total {
		c.need = total
		return false, nil
	}
	if err := c.room(payload(r)); err != nil {
		return false, err
	}
	c.in.head += total
	c.submit(r, b[proto.RequestSize:total])
	if c.gathered >= gatherOps || c.bytes >= gatherBytes {
		c.finishBatch()
	}
	return true, nil
}

// payload is the data that a request carries or asks for.
func payload(r proto.Request) int64 {
	if r.Cmd == proto.CmdRead || r.Cmd == proto.CmdWrite {
		return int64(r.Len)
	}
	return 0
}

// room waits until one more request, of so many bytes, may be in flight. A
// request larger than all that may be waits until it is alone.
func (c *conn) room(weight int64) error {
	if c.fits(weight) {
		return nil
	}
	return c.awaitRoom(weight)
}

func (c *conn) awaitRoom(weight int64) error {
	o := &c.out
	o.mu.Lock()
	defer o.mu.Unlock()
	for !c.fits(weight) {
		if c.gathered > 0 {
			// What was gathered must go out, or nothing would complete.
			o.mu.Unlock()
			c.finishBatch()
			o.mu.Lock()
			continue
		}
		switch {
		case o.dead:
			return c.why(errGone)
		case o.hurry:
			return errGone
		case c.stop.Load():
			return errStopped
		}
		o.wait()
	}
	return nil
}

// fits reports whether there is room for one more request of so many bytes. A
// request that is alone always fits, so that whoever waits for room is woken
// by a request of its own, even where others take all there is.
func (c *conn) fits(weight int64) bool {
	inflight, held := c.inflight(), c.weight-c.out.bytes.Load()
	return inflight == 0 || inflight < int64(c.limits.Inflight) &&
		held+weight <= c.limits.InflightBytes && c.srv.held.Load()+weight <= c.limits.TotalBytes
}

// inflight is how many requests were read and not yet answered.
func (c *conn) inflight() int64 {
	recycled := c.out.recycled.Load() // first, so that the result is not negative
	return c.accepted.Load() - recycled
}

// beginBig starts reading the payload of a write that does not fit a slab;
// have is what has arrived of it.
func (c *conn) beginBig(r proto.Request, have []byte) error {
	if err := c.room(int64(r.Len)); err != nil {
		return err
	}
	c.big = bigWrite{req: r, buf: c.srv.bufs.get(int(r.Len))}
	c.big.have = copy(c.big.buf.B[:r.Len], have)
	c.in.head = c.in.tail // a request that large takes all there is
	return nil
}

func (c *conn) submitBig() {
	r, buf := c.big.req, c.big.buf
	c.big = bigWrite{}
	c.need = proto.RequestSize
	o := c.newOp(r)
	o.Buf, o.Data = buf, buf.B[:r.Len]
	c.start(o)
}

// newOp takes an op from the free list.
func (c *conn) newOp(r proto.Request) *op {
	if c.free == nil {
		c.out.mu.Lock()
		c.free, c.out.free = c.out.free, nil
		c.out.mu.Unlock()
	}
	o := c.free
	if o == nil {
		o = &op{c: c}
	} else {
		c.free = o.next
	}
	o.reset()
	o.cookie, o.cmd, o.arrived = r.Cookie, r.Cmd, c.now
	o.Off, o.Len, o.asked = int64(r.Off), int64(r.Len), int64(r.Len)
	o.weight = payload(r)
	o.Op, o.Flags = operation(r)
	c.accepted.Add(1)
	c.gathered++
	c.charge(o)
	o.pending = true
	return o
}

// charge counts o's payload as in flight, until it is recycled.
func (c *conn) charge(o *op) {
	if o.weight > 0 {
		c.weight += o.weight
		c.srv.held.Add(o.weight)
	}
}

// operations are the engine's words for the commands that have one.
var operations = [commands]block.Op{
	proto.CmdRead:        block.Read,
	proto.CmdWrite:       block.Write,
	proto.CmdFlush:       block.Flush,
	proto.CmdTrim:        block.Trim,
	proto.CmdCache:       block.Cache,
	proto.CmdWriteZeroes: block.WriteZeroes,
}

func operation(r proto.Request) (block.Op, block.Flags) {
	if int(r.Cmd) >= commands {
		return 0, 0
	}
	op := operations[r.Cmd]
	var f block.Flags
	if r.Flags&proto.FlagFUA != 0 && op.Changes() {
		f |= block.FUA
	}
	if r.Flags&proto.FlagNoHole != 0 {
		f |= block.NoHole
	}
	if r.Flags&proto.FlagFastZero != 0 {
		f |= block.FastZero
	}
	return op, f
}

// submit hands a request, with its payload if it is a write, to the backend.
func (c *conn) submit(r proto.Request, data []byte) {
	o := c.newOp(r)
	switch {
	case r.Len == 0 && r.Cmd != proto.CmdFlush:
		c.complete(o, &c.batch) // nothing to do is done
		return
	case r.Cmd == proto.CmdBlockStatus:
		c.blockStatus(o, r)
		return
	case r.Cmd == proto.CmdWrite:
		c.attach(o, data)
	case r.Cmd == proto.CmdRead:
		o.split = c.state.Structured && r.Flags&proto.FlagDF == 0 && o.Len >= sparseRead
		o.reply = c.srv.bufs.get(int(o.Len))
		o.Data = o.reply.B[:o.Len]
		c.bytes += o.Len
	}
	c.start(o)
}

// attach gives o its payload: a slice of the slab, or a copy where the slab
// must not be held.
func (c *conn) attach(o *op, data []byte) {
	if o.Buf = c.in.share(); o.Buf != nil {
		o.Data = data
		return
	}
	o.Buf = c.srv.bufs.get(len(data))
	o.Data = o.Buf.B[:copy(o.Buf.B, data)]
}

func (c *conn) start(o *op) {
	c.handle.Submit(&o.Request, &c.batch)
}

// refuse answers a request that does not reach the backend.
func (c *conn) refuse(r proto.Request, errno proto.Errno, text string) {
	o := c.newOp(proto.Request{Cmd: r.Cmd, Cookie: r.Cookie})
	o.errno, o.text = errno, text
	c.complete(o, &c.batch)
}

// complete takes an op whose outcome is known.
func (c *conn) complete(o *op, b *block.Batch) {
	if o.Err != nil {
		if errors.Is(o.Err, block.ErrDropped) {
			c.kill(errDropped)
		}
		o.errno, o.text = outcome(&o.Request)
	}
	if o.Buf != nil {
		o.Buf.Release()
		o.Buf, o.Data = nil, nil
	}
	switch {
	case !c.out.push(o):
		c.out.discard(o)
	case b == nil:
		c.Flush(nil)
	default:
		b.Touch(c)
	}
}
