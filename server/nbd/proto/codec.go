package proto

import (
	"encoding/binary"
	"errors"
)

// ErrMagic means that a word which must be a magic number is not: the stream
// is damaged, or the other side does not speak NBD.
var ErrMagic = errors.New("bad magic: not NBD, or the stream is damaged")

// Request is the header of a request.
type Request struct {
	Flags  CmdFlags
	Cmd    Cmd
	Cookie uint64
	Off    uint64
	Len    uint32
}

// ParseRequest decodes the first RequestSize bytes of b, which must be there.
func ParseRequest(b []byte) (Request, error) {
	_ = b[RequestSize-1]
	if binary.BigEndian.Uint32(b) != MagicRequest {
		return Request{}, ErrMagic
	}
	return Request{
		Flags:  CmdFlags(binary.BigEndian.Uint16(b[4:])),
		Cmd:    Cmd(binary.BigEndian.Uint16(b[6:])),
		Cookie: binary.BigEndian.Uint64(b[8:]),
		Off:    binary.BigEndian.Uint64(b[16:]),
		Len:    binary.BigEndian.Uint32(b[24:]),
	}, nil
}

// AppendRequest encodes r.
func AppendRequest(b []byte, r Request) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicRequest)
	b = binary.BigEndian.AppendUint16(b, uint16(r.Flags))
	b = binary.BigEndian.AppendUint16(b, uint16(r.Cmd))
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	b = binary.BigEndian.AppendUint64(b, r.Off)
	return binary.BigEndian.AppendUint32(b, r.Len)
}

// AppendReply encodes a simple reply's header.
func AppendReply(b []byte, e Errno, cookie uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicReply)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// AppendChunk encodes the header of a structured reply's chunk, n bytes of
// payload to follow.
func AppendChunk(b []byte, t Chunk, last bool, cookie uint64, n int) []byte {
	flags := uint16(0)
	if last {
		flags = ChunkDone
	}
	b = binary.BigEndian.AppendUint32(b, MagicStructured)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, uint16(t))
	b = binary.BigEndian.AppendUint64(b, cookie)
	return binary.BigEndian.AppendUint32(b, uint32(n))
}

// OptionHeader is what precedes an option's data.
type OptionHeader struct {
	Option Option
	Len    uint32
}

// ParseOption decodes the first OptionSize bytes of b, which must be there.
func ParseOption(b []byte) (OptionHeader, error) {
	_ = b[OptionSize-1]
	if binary.BigEndian.Uint64(b) != MagicOption {
		return OptionHeader{}, ErrMagic
	}
	return OptionHeader{Option(binary.BigEndian.Uint32(b[8:])), binary.BigEndian.Uint32(b[12:])}, nil
}

// AppendOption encodes an option with its data.
func AppendOption(b []byte, o Option, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// OptReplyHeader is what precedes an option reply's data.
type OptReplyHeader struct {
	Option Option
	Rep    Rep
	Len    uint32
}

// ParseOptReply decodes the first OptReplySize bytes of b, which must be there.
func ParseOptReply(b []byte) (OptReplyHeader, error) {
	_ = b[OptReplySize-1]
	if binary.BigEndian.Uint64(b) != MagicOptReply {
		return OptReplyHeader{}, ErrMagic
	}
	return OptReplyHeader{
		Option: Option(binary.BigEndian.Uint32(b[8:])),
		Rep:    Rep(binary.BigEndian.Uint32(b[12:])),
		Len:    binary.BigEndian.Uint32(b[16:]),
	}, nil
}

// AppendOptReply encodes an option reply with its data.
func AppendOptReply(b []byte, o Option, r Rep, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicOptReply)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(r))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// AppendString encodes a string with its length before it.
func AppendString(b []byte, s string) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(s)))
	return append(b, s...)
}

// Fields takes an option's data apart. A field that is not there, or a string
// longer than MaxString, makes it bad; everything read from then on is zero.
type Fields struct {
	rest []byte
	bad  bool
}

// NewFields starts at the front of b.
func NewFields(b []byte) *Fields { return &Fields{rest: b} }

func (f *Fields) take(n int) []byte {
	if f.bad || n > len(f.rest) {
		f.bad = true
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}

// Uint16 reads two bytes.
func (f *Fields) Uint16() uint16 {
	if b := f.take(2); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

// Uint32 reads four bytes.
func (f *Fields) Uint32() uint32 {
	if b := f.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// Uint64 reads eight bytes.
func (f *Fields) Uint64() uint64 {
	if b := f.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

// Text reads a string with its length before it.
func (f *Fields) Text() string {
	n := f.Uint32()
	if n > MaxString {
		f.bad = true
		return ""
	}
	return string(f.take(int(n)))
}

// Rest reads what is left.
func (f *Fields) Rest() []byte { return f.take(len(f.rest)) }

// Left is how many bytes are left.
func (f *Fields) Left() int { return len(f.rest) }

// OK reports whether every field read so far was there.
func (f *Fields) OK() bool { return !f.bad }
