package nbd

import (
	"errors"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// op is one request of a client, from the moment it is decoded until its
// reply is sent. Ops are recycled by their connection.
type op struct {
	block.Request
	c       *conn
	cookie  uint64
	cmd     proto.Cmd
	pending bool        // not completed yet
	errno   proto.Errno // of the reply
	text    string      // explains errno
	asked   int64       // bytes the client spoke of
	weight  int64       // bytes held in flight
	arrived int64       // when it was read, in nanoseconds of the server's clock
	// reply is what follows the reply's header: the destination of a read, or
	// the encoded extents of a block status. Its memory goes back once sent.
	reply *block.Buf
	// split says that zeroes in a read need not be sent; layout is then where
	// they are.
	split  bool
	layout []Extent
	next   *op // in the list of free ones
}

// Complete takes the outcome of a request from the backend.
func (o *op) Complete(_ *block.Request, b *block.Batch) { o.c.complete(o, b) }

// reset makes o as new, keeping what is its own for life.
func (o *op) reset() {
	c, layout := o.c, o.layout[:0]
	*o = op{c: c, layout: layout}
	o.Done = o
}

// drop gives back the memory that o holds.
func (o *op) drop() {
	if o.Buf != nil {
		o.Buf.Release()
		o.Buf = nil
	}
	if o.reply != nil {
		o.reply.Release()
		o.reply = nil
	}
	o.Data = nil
}

// outcome is the errno and the text for the error of a request.
func outcome(r *block.Request) (proto.Errno, string) {
	err := r.Err
	switch {
	case errors.Is(err, block.ErrRange):
		return rangeErrno(r.Op.Changes() && r.Op != block.Trim), err.Error()
	case errors.Is(err, block.ErrInvalid):
		return proto.EINVAL, err.Error()
	case errors.Is(err, block.ErrReadOnly):
		return proto.EPERM, err.Error()
	case errors.Is(err, block.ErrNoSpace):
		return proto.ENOSPC, err.Error()
	case errors.Is(err, block.ErrNotSupported) && r.Flags&block.FastZero != 0:
		return proto.ENOTSUP, err.Error()
	case errors.Is(err, block.ErrNotSupported):
		return proto.EINVAL, err.Error()
	}
	return proto.EIO, err.Error()
}

// rangeErrno is the answer to a request beyond the end: the protocol wants
// writers to learn that there is no space.
func rangeErrno(writes bool) proto.Errno {
	if writes {
		return proto.ENOSPC
	}
	return proto.EINVAL
}
