// Package proto is the NBD protocol as numbers and layouts: what the server
// and the client of this project agree on. It does no I/O and keeps no state.
//
// The protocol has two phases. In the handshake the client sends options, each
// answered by one or more option replies, until one of them (GO or
// EXPORT_NAME) enters the transmission phase. There the client sends requests
// and the server answers each, in any order, by a simple reply or by the
// chunks of a structured one. All integers are big endian.
package proto

import "strconv"

// Magic numbers.
const (
	MagicServer     = 0x4e42444d41474943 // "NBDMAGIC", the server's first word
	MagicOption     = 0x49484156454f5054 // "IHAVEOPT", before every option and second in the greeting
	MagicOptReply   = 0x0003e889045565a9
	MagicRequest    = 0x25609513
	MagicReply      = 0x67446698
	MagicStructured = 0x668e33ef
)

// Flags of the greeting, the same bits for the server and the client.
const (
	FixedNewstyle = 1 << iota // unknown options are answered, not fatal
	NoZeroes                  // EXPORT_NAME's answer is not padded
)

// Option is what a client asks for in the handshake.
type Option uint32

// The options.
const (
	OptExportName      Option = 1
	OptAbort           Option = 2
	OptList            Option = 3
	OptStartTLS        Option = 5
	OptInfo            Option = 6
	OptGo              Option = 7
	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
	OptExtendedHeaders Option = 11
)

func (o Option) String() string {
	switch o {
	case OptExportName:
		return "EXPORT_NAME"
	case OptAbort:
		return "ABORT"
	case OptList:
		return "LIST"
	case OptStartTLS:
		return "STARTTLS"
	case OptInfo:
		return "INFO"
	case OptGo:
		return "GO"
	case OptStructuredReply:
		return "STRUCTURED_REPLY"
	case OptListMetaContext:
		return "LIST_META_CONTEXT"
	case OptSetMetaContext:
		return "SET_META_CONTEXT"
	case OptExtendedHeaders:
		return "EXTENDED_HEADERS"
	}
	return "option " + strconv.FormatUint(uint64(o), 10)
}

// Rep is the type of an option reply; those with the top bit set are errors.
type Rep uint32

// The option replies.
const (
	RepAck         Rep = 1
	RepServer      Rep = 2
	RepInfo        Rep = 3
	RepMetaContext Rep = 4

	RepErrUnsup             Rep = 1<<31 + 1
	RepErrPolicy            Rep = 1<<31 + 2
	RepErrInvalid           Rep = 1<<31 + 3
	RepErrPlatform          Rep = 1<<31 + 4
	RepErrTLSRequired       Rep = 1<<31 + 5
	RepErrUnknown           Rep = 1<<31 + 6
	RepErrShutdown          Rep = 1<<31 + 7
	RepErrBlockSizeRequired Rep = 1<<31 + 8
	RepErrTooBig            Rep = 1<<31 + 9
)

// IsError reports whether the reply refuses the option.
func (r Rep) IsError() bool { return r&(1<<31) != 0 }

func (r Rep) String() string {
	switch r {
	case RepAck:
		return "ACK"
	case RepServer:
		return "SERVER"
	case RepInfo:
		return "INFO"
	case RepMetaContext:
		return "META_CONTEXT"
	case RepErrUnsup:
		return "not supported"
	case RepErrPolicy:
		return "refused"
	case RepErrInvalid:
		return "invalid option"
	case RepErrPlatform:
		return "not supported on this platform"
	case RepErrTLSRequired:
		return "TLS required"
	case RepErrUnknown:
		return "unknown export"
	case RepErrShutdown:
		return "shutting down"
	case RepErrBlockSizeRequired:
		return "block sizes must be negotiated"
	case RepErrTooBig:
		return "too big"
	}
	return "reply " + strconv.FormatUint(uint64(r), 10)
}

// Info is the type of an item that INFO and GO can ask for and answer with.
type Info uint16

// The information items.
const (
	InfoExport      Info = 0 // size and transmission flags; always sent
	InfoName        Info = 1 // the canonical name
	InfoDescription Info = 2
	InfoBlockSize   Info = 3 // minimum, preferred, maximum payload
)

// TransFlags describe an export to the client.
type TransFlags uint16

// The transmission flags.
const (
	HasFlags        TransFlags = 1 << 0 // always set
	ReadOnly        TransFlags = 1 << 1
	SendFlush       TransFlags = 1 << 2
	SendFUA         TransFlags = 1 << 3
	Rotational      TransFlags = 1 << 4
	SendTrim        TransFlags = 1 << 5
	SendWriteZeroes TransFlags = 1 << 6
	SendDF          TransFlags = 1 << 7 // only with structured replies
	CanMultiConn    TransFlags = 1 << 8 // a flush covers what any connection was told is written
	SendCache       TransFlags = 1 << 10
	SendFastZero    TransFlags = 1 << 11 // only with SendWriteZeroes
)

// Cmd is a command of the transmission phase.
type Cmd uint16

// The commands.
const (
	CmdRead        Cmd = 0
	CmdWrite       Cmd = 1
	CmdDisc        Cmd = 2
	CmdFlush       Cmd = 3
	CmdTrim        Cmd = 4
	CmdCache       Cmd = 5
	CmdWriteZeroes Cmd = 6
	CmdBlockStatus Cmd = 7
)

func (c Cmd) String() string {
	switch c {
	case CmdRead:
		return "READ"
	case CmdWrite:
		return "WRITE"
	case CmdDisc:
		return "DISC"
	case CmdFlush:
		return "FLUSH"
	case CmdTrim:
		return "TRIM"
	case CmdCache:
		return "CACHE"
	case CmdWriteZeroes:
		return "WRITE_ZEROES"
	case CmdBlockStatus:
		return "BLOCK_STATUS"
	}
	return "command " + strconv.FormatUint(uint64(c), 10)
}

// CmdFlags modify a command.
type CmdFlags uint16

// The command flags.
const (
	FlagFUA      CmdFlags = 1 << iota // durable before the reply; legal on every command
	FlagNoHole                        // WRITE_ZEROES: allocate
	FlagDF                            // READ: answer in one chunk
	FlagReqOne                        // BLOCK_STATUS: one extent
	FlagFastZero                      // WRITE_ZEROES: refuse rather than write slowly
)

// Chunk is the type of a chunk of a structured reply; those with the top bit
// set are errors.
type Chunk uint16

// The chunks.
const (
	ChunkNone        Chunk = 0
	ChunkOffsetData  Chunk = 1
	ChunkOffsetHole  Chunk = 2
	ChunkBlockStatus Chunk = 5
	ChunkError       Chunk = 1<<15 + 1
	ChunkErrorOffset Chunk = 1<<15 + 2
)

// IsError reports whether the chunk tells of failure.
func (c Chunk) IsError() bool { return c&(1<<15) != 0 }

// ChunkDone marks the last chunk of a reply.
const ChunkDone = 1

// Extent flags of the base:allocation context.
const (
	StateHole = 1 << iota // not allocated
	StateZero             // reads as zeroes
)

// ContextAllocation is the name of the one metadata context there is.
const ContextAllocation = "base:allocation"

// Limits of the protocol.
const (
	MaxString     = 4096 // of names, descriptions and error texts
	MaxPayload    = 32 << 20
	RequestSize   = 28
	ReplySize     = 16
	ChunkSize     = 20
	OptionSize    = 16
	OptReplySize  = 20
	GreetingSize  = 18
	ExportPadding = 124
)

// Errno is an error as it travels: Linux's numbers, whatever the host's are.
type Errno uint32

// The errors.
const (
	OK        Errno = 0
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// Error makes an Errno usable as an error.
func (e Errno) Error() string {
	switch e {
	case OK:
		return "no error"
	case EPERM:
		return "operation not permitted"
	case EIO:
		return "input/output error"
	case ENOMEM:
		return "cannot allocate memory"
	case EINVAL:
		return "invalid argument"
	case ENOSPC:
		return "no space left on device"
	case EOVERFLOW:
		return "value too large"
	case ENOTSUP:
		return "operation not supported"
	case ESHUTDOWN:
		return "server is shutting down"
	}
	return "error " + strconv.FormatUint(uint64(e), 10)
}
