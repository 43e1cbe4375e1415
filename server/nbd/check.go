package nbd

import (
	"encoding/binary"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

const (
	// maxExtents bounds the extents of one block status reply.
	maxExtents = 4096
)

// allowed are the flags of each command. FUA is legal on all of them.
var allowed = [commands]proto.CmdFlags{
	proto.CmdRead:        proto.FlagFUA | proto.FlagDF,
	proto.CmdWrite:       proto.FlagFUA,
	proto.CmdFlush:       proto.FlagFUA,
	proto.CmdTrim:        proto.FlagFUA,
	proto.CmdCache:       proto.FlagFUA,
	proto.CmdWriteZeroes: proto.FlagFUA | proto.FlagNoHole | proto.FlagFastZero,
	proto.CmdBlockStatus: proto.FlagFUA | proto.FlagReqOne,
}

// check says whether a request can be passed on, and if not, why.
func (c *conn) check(r proto.Request) (proto.Errno, string) {
	if errno, text := c.checkCommand(r); errno != proto.OK {
		return errno, text
	}
	if r.Cmd == proto.CmdFlush {
		if r.Off != 0 || r.Len != 0 {
			return proto.EINVAL, "a flush has no offset and no length"
		}
		return proto.OK, ""
	}
	return c.checkRange(r)
}

func (c *conn) checkCommand(r proto.Request) (proto.Errno, string) {
	i := &c.info
	switch {
	case int(r.Cmd) >= commands:
		return proto.EINVAL, "unknown command"
	case r.Flags&^allowed[r.Cmd] != 0:
		return proto.EINVAL, "the command does not have that flag"
	case r.Flags&proto.FlagDF != 0 && !c.state.Structured:
		return proto.EINVAL, "DF needs structured replies"
	case r.Flags&proto.FlagFastZero != 0 && !i.FastZero:
		return proto.EINVAL, "the export does not offer fast zeroes"
	case r.Cmd == proto.CmdTrim && !i.Trim,
		r.Cmd == proto.CmdWriteZeroes && !i.Zeroes,
		r.Cmd == proto.CmdCache && !i.Cache:
		return proto.EINVAL, "the export does not offer that command"
	case r.Cmd == proto.CmdBlockStatus && !c.state.Allocation:
		return proto.EINVAL, "no metadata context was agreed on"
	case operations[r.Cmd].Changes() && i.ReadOnly:
		return proto.EPERM, "the export is read-only"
	}
	return proto.OK, ""
}

func (c *conn) checkRange(r proto.Request) (proto.Errno, string) {
	if !c.within(r) {
		c.info = c.handle.Info() // it may have grown
		if !c.within(r) {
			return rangeErrno(r.Cmd == proto.CmdWrite || r.Cmd == proto.CmdWriteZeroes), "beyond the end of the export"
		}
	}
	switch mask := uint64(max(c.info.MinBlock, 1) - 1); {
	case payload(r) > int64(c.info.maxPayload()):
		if r.Flags&proto.FlagDF != 0 {
			return proto.EOVERFLOW, "longer than the maximum payload"
		}
		return proto.EINVAL, "longer than the maximum payload"
	case (r.Off|uint64(r.Len))&mask != 0:
		return proto.EINVAL, "not aligned to the minimum block size"
	case r.Len == 0 && r.Cmd == proto.CmdBlockStatus:
		return proto.EINVAL, "the status of no bytes at all"
	}
	return proto.OK, ""
}

// within reports whether a request lies within the export.
func (c *conn) within(r proto.Request) bool {
	size := uint64(max(c.info.Size, 0))
	return r.Off <= size && uint64(r.Len) <= size-r.Off
}

// blockStatus answers what is allocated.
func (c *conn) blockStatus(o *op, r proto.Request) {
	most := maxExtents
	if r.Flags&proto.FlagReqOne != 0 {
		most = 1
	}
	var found []Extent
	if found, o.Err = c.handle.Extents(o.Off, o.Len, most); o.Err == nil {
		c.encodeExtents(o, found, most)
	}
	c.complete(o, &c.batch)
}

// encodeExtents makes the payload of a block status reply of what the backend
// said: without gaps from the start of the request, and not beyond its end.
func (c *conn) encodeExtents(o *op, found []Extent, most int) {
	o.reply = c.srv.bufs.get(4 + 8*maxExtents)
	b := binary.BigEndian.AppendUint32(o.reply.B[:0], allocationID)
	at, n := o.Off, 0
	for _, e := range found {
		if e.Off > at || n == most {
			break
		}
		end := min(e.Off+e.Len, o.Extent().End())
		if end <= at {
			continue
		}
		b = appendExtent(b, end-at, e)
		at = end
		n++
	}
	if n == 0 { // a backend that knows nothing: all of it is data
		b = appendExtent(b, o.Len, Extent{})
	}
	o.Data = b
}

// appendExtent adds a run, or makes the one before longer if it is alike.
func appendExtent(b []byte, n int64, e Extent) []byte {
	var state uint32
	if e.Hole {
		state |= proto.StateHole
	}
	if e.Zero {
		state |= proto.StateZero
	}
	if at := len(b) - 8; at >= 4 && binary.BigEndian.Uint32(b[at+4:]) == state {
		binary.BigEndian.PutUint32(b[at:], binary.BigEndian.Uint32(b[at:])+uint32(n))
		return b
	}
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	return binary.BigEndian.AppendUint32(b, state)
}

var _ block.Completer = (*op)(nil)
