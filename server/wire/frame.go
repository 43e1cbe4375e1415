// Package wire is the peer protocol: frames, their limits, and the encoding of
// what they carry. It does no I/O and allocates nothing before a length was
// checked. PROTOCOL.md beside this file lists every frame and what each
// version speaks.
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
)

// Format constants.
const (
	Magic      = 0x314b534c // "LSK1" as it lies on the wire
	HeaderSize = 72

	// MinVersion and MaxVersion are the protocol versions that this build speaks.
	MinVersion = 1
	MaxVersion = 1

	// MaxPayload bounds a frame's payload. Larger requests are cut by the sender.
	MaxPayload = 1 << 20
	// MaxControlPayload bounds the payload of frames that carry no bulk data.
	MaxControlPayload = 64 << 10
)

// Link names one of the two connections of a node pair.
type Link uint8

// The links of a session.
const (
	Data Link = iota // bulk: writes, resync data, reads
	Meta             // small and urgent: acks, pings, state
)

func (l Link) String() string {
	if l == Data {
		return "data"
	}
	return "meta"
}

// Header is the fixed part of a frame. Args mean what the Type says.
type Header struct {
	Version uint8
	Type    Type
	Flags   uint16
	Dev     uint32 // the receiver's handle of the device; 0: the node itself
	Len     uint32 // of the payload
	Seq     uint64 // position in this link's stream, from 1; 0: outside the stream
	AckData uint64 // every data frame up to this one was received
	AckMeta uint64 // every meta frame up to this one was received
	Arg     [3]uint64
	CRC     uint32 // of the payload, Castagnoli
}

// Frame flags.
const (
	FlagFUA      = 1 << iota // Write, Zero: durable before it is acked
	FlagNoHole               // Zero: allocate
	FlagFastZero             // Zero: refuse rather than write slowly
	FlagTrim                 // Zero: content need not be allocated
	FlagError                // a reply that reports failure
	FlagRecvAck              // Write: ack on receipt (protocol B)
	FlagNoAck                // Write: the sender waits for no ack before completing (protocol A)
	FlagSync                 // Write: repairs; belongs to a resync, not to the application
	FlagMAC                  // a keyed MAC of 16 bytes follows the payload

	knownFlags = 1<<iota - 1

	// FlagAgain, beside FlagError, is a VerifyReply's: a bad block has been healed
	// meanwhile, and the piece can be compared if it is asked for again.
	FlagAgain = FlagTrim
)

// Errors of decoding, in the order in which a header is checked.
var (
	ErrMagic   = errors.New("bad magic: not a lockstep peer, or the stream is damaged")
	ErrVersion = errors.New("protocol version not spoken here")
	ErrType    = errors.New("unknown frame type")
	ErrFlags   = errors.New("unknown frame flag")
	ErrLength  = errors.New("payload longer than its frame type allows")
	ErrCRC     = errors.New("checksum does not match: damaged in transit")
	ErrPayload = errors.New("malformed payload")
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum is the CRC32C of p.
func Checksum(p []byte) uint32 { return crc32.Checksum(p, castagnoli) }

// Put encodes h into dst, which holds HeaderSize bytes.
func (h *Header) Put(dst []byte) {
	_ = dst[HeaderSize-1]
	le := binary.LittleEndian
	le.PutUint32(dst[0:], Magic)
	dst[4] = h.Version
	dst[5] = uint8(h.Type)
	le.PutUint16(dst[6:], h.Flags)
	le.PutUint32(dst[8:], h.Dev)
	le.PutUint32(dst[12:], h.Len)
	le.PutUint64(dst[16:], h.Seq)
	le.PutUint64(dst[24:], h.AckData)
	le.PutUint64(dst[32:], h.AckMeta)
	le.PutUint64(dst[40:], h.Arg[0])
	le.PutUint64(dst[48:], h.Arg[1])
	le.PutUint64(dst[56:], h.Arg[2])
	le.PutUint32(dst[64:], h.CRC)
	le.PutUint32(dst[68:], Checksum(dst[:68]))
}

// Decode reads a header from src, which holds HeaderSize bytes, and checks
// magic, version, type, flags, length and checksum, in that order. version is
// the one that was negotiated, or 0 where any that we speak will do.
//
// The checksum comes last so that a peer of another protocol is told what it
// is rather than that its bytes are damaged; a damaged length can therefore
// not be trusted before Decode has returned nil.
func (h *Header) Decode(src []byte, version uint8) error {
	_ = src[HeaderSize-1]
	le := binary.LittleEndian
	if m := le.Uint32(src[0:]); m != Magic {
		return fmt.Errorf("%w (%#08x)", ErrMagic, m)
	}
	h.Version = src[4]
	if h.Version < MinVersion || h.Version > MaxVersion || version != 0 && h.Version != version {
		return fmt.Errorf("%w (%d)", ErrVersion, h.Version)
	}
	h.Type = Type(src[5])
	max, ok := h.Type.MaxPayload()
	if !ok {
		return fmt.Errorf("%w (%d)", ErrType, src[5])
	}
	h.Flags = le.Uint16(src[6:])
	if h.Flags&^knownFlags != 0 {
		return fmt.Errorf("%w (%#04x in %v)", ErrFlags, h.Flags, h.Type)
	}
	h.Dev = le.Uint32(src[8:])
	h.Len = le.Uint32(src[12:])
	if h.Len > max {
		return fmt.Errorf("%w (%v: %d, at most %d)", ErrLength, h.Type, h.Len, max)
	}
	if le.Uint32(src[68:]) != Checksum(src[:68]) {
		return fmt.Errorf("%w (header of %v)", ErrCRC, h.Type)
	}
	h.Seq = le.Uint64(src[16:])
	h.AckData = le.Uint64(src[24:])
	h.AckMeta = le.Uint64(src[32:])
	h.Arg[0] = le.Uint64(src[40:])
	h.Arg[1] = le.Uint64(src[48:])
	h.Arg[2] = le.Uint64(src[56:])
	h.CRC = le.Uint32(src[64:])
	return nil
}

// CheckPayload compares the payload with the header's checksum.
func (h *Header) CheckPayload(p []byte) error {
	if h.Len == 0 {
		return nil
	}
	if Checksum(p) != h.CRC {
		return fmt.Errorf("%w (payload of %v)", ErrCRC, h.Type)
	}
	return nil
}
