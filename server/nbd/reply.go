package nbd

import (
	"bytes"
	"encoding/binary"

	"github.com/lockstepd/lockstep/server/nbd/proto"
)

const (
	// headerSpace is what the headers of one round of replies may take.
	headerSpace = 16 << 10
	// roundBufs is how many pieces one round of replies may have.
	roundBufs = 512
	// sparseRead is from which size on a read is looked through for zeroes,
	// and sparseBlock what is found of them.
	sparseRead  = 64 << 10
	sparseBlock = 16 << 10
	// maxLayout bounds the chunks of a sparse read.
	maxLayout = 16
	// maxText bounds an error text: QEMU gives up on chunks over 1000 bytes.
	maxText = 200
	// offsetSize is the offset in front of a chunk of data.
	offsetSize = 8
	// holeSize is the payload of a hole: its offset and length.
	holeSize = 12
	// maxHeader bounds the headers of one reply.
	maxHeader = max(proto.ChunkSize+6+maxText, (maxLayout+1)*(proto.ChunkSize+holeSize))
)

// encode lays out the replies of the sender's ops, as many as one round takes.
// Headers lie side by side, so that a run of replies without data is one
// piece for writev.
func (c *conn) encode() {
	s := &c.out.sender
	if s.headers == nil {
		s.headers = make([]byte, 0, headerSpace)
		s.bufsMem = make([][]byte, 0, roundBufs)
	}
	s.headers, s.bufs, s.piece = s.headers[:0], s.bufsMem[:0], -1
	now := c.srv.now()
	for _, o := range s.ops {
		if headerSpace-len(s.headers) < maxHeader || roundBufs-len(s.bufs) < 2*maxLayout+2 {
			break
		}
		c.stats.done(o, now)
		s.reply(o, c.state.Structured)
		s.encoded++
	}
}

func (s *sender) reply(o *op, structured bool) {
	switch {
	case structured && o.errno != proto.OK:
		s.failure(o)
	case structured && (o.cmd == proto.CmdRead || o.cmd == proto.CmdBlockStatus):
		s.chunks(o)
	default:
		from := len(s.headers)
		s.headers = proto.AppendReply(s.headers, o.errno, o.cookie)
		s.header(from)
		if o.errno == proto.OK && o.cmd == proto.CmdRead {
			s.data(o.Data)
		}
	}
}

// header adds what was appended to headers since from.
func (s *sender) header(from int) {
	if s.piece < 0 {
		s.piece = from
		s.bufs = append(s.bufs, nil)
	}
	s.bufs[len(s.bufs)-1] = s.headers[s.piece:]
}

func (s *sender) data(b []byte) {
	if len(b) > 0 {
		s.bufs = append(s.bufs, b)
		s.piece = -1
	}
}

func (s *sender) failure(o *op) {
	from := len(s.headers)
	text := o.text[:min(len(o.text), maxText)]
	h := proto.AppendChunk(s.headers, proto.ChunkError, true, o.cookie, 6+len(text))
	h = binary.BigEndian.AppendUint32(h, uint32(o.errno))
	h = binary.BigEndian.AppendUint16(h, uint16(len(text)))
	s.headers = append(h, text...)
	s.header(from)
}

func (s *sender) chunks(o *op) {
	switch {
	case o.cmd == proto.CmdBlockStatus:
		from := len(s.headers)
		s.headers = proto.AppendChunk(s.headers, proto.ChunkBlockStatus, true, o.cookie, len(o.Data))
		s.header(from)
		s.data(o.Data)
	case o.split:
		o.sparse()
		for i, e := range o.layout {
			s.part(o, e, i == len(o.layout)-1)
		}
	case o.Len == 0:
		from := len(s.headers)
		s.headers = proto.AppendChunk(s.headers, proto.ChunkNone, true, o.cookie, 0)
		s.header(from)
	default:
		s.part(o, Extent{Off: o.Off, Len: o.Len}, true)
	}
}

// part adds one chunk of a read: data or a hole.
func (s *sender) part(o *op, e Extent, last bool) {
	from := len(s.headers)
	if e.Hole {
		h := proto.AppendChunk(s.headers, proto.ChunkOffsetHole, last, o.cookie, holeSize)
		h = binary.BigEndian.AppendUint64(h, uint64(e.Off))
		s.headers = binary.BigEndian.AppendUint32(h, uint32(e.Len))
		s.header(from)
		return
	}
	h := proto.AppendChunk(s.headers, proto.ChunkOffsetData, last, o.cookie, offsetSize+int(e.Len))
	s.headers = binary.BigEndian.AppendUint64(h, uint64(e.Off))
	s.header(from)
	at := e.Off - o.Off
	s.data(o.Data[at : at+e.Len])
}

// sparse finds runs of zeroes in the data of a large read, which need not be
// sent. It looks at what was read rather than ask for extents first: so it
// says what the read says, whatever is written meanwhile, and costs next to
// nothing where there is data, while finding the end of a run of data costs
// some file systems a walk through all of it.
func (o *op) sparse() {
	o.layout = o.layout[:0]
	for at := int64(0); at < o.Len; {
		n := min(sparseBlock, o.Len-at)
		hole := len(o.layout) < maxLayout-1 && n == sparseBlock && zeroes(o.Data[at:at+n])
		if last := len(o.layout) - 1; last >= 0 && o.layout[last].Hole == hole {
			o.layout[last].Len += n
		} else {
			o.layout = append(o.layout, Extent{Off: o.Off + at, Len: n, Hole: hole, Zero: hole})
		}
		at += n
	}
}

// zeroes reports whether all of b, which is not empty, is zero.
func zeroes(b []byte) bool { return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1]) }
