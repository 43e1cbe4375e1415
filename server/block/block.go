// Package block holds the types in which the engine's parts speak of blocks:
// extents, requests, refcounted buffers, and the batch through which a reader
// gathers the output of many requests into few system calls. It depends on
// the standard library only and does no I/O.
package block

import (
	"errors"
	"fmt"
)

// Unit is what one bit of a dirty bitmap covers, in bytes. It is a format
// constant: device sizes are multiples of it.
const Unit = 4096

// Amount is a number of bytes for people to read, in the largest binary unit
// that leaves at least one: "512 B", "1.5 MiB".
func Amount(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	// What would be rounded up to 1024 of one unit is one of the next.
	v, unit := float64(n)/(1<<10), 0
	for v >= 1023.95 && unit < len(binaryUnits)-1 {
		v /= 1 << 10
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, binaryUnits[unit])
}

const binaryUnits = "KMGTPE"

// Op is what a Request asks for.
type Op uint8

// The operations of a block device.
const (
	Read Op = iota + 1
	Write
	Flush
	Trim        // the content may become anything that reads the same everywhere: zeroes here
	WriteZeroes // the content becomes zeroes
	Cache       // bring near; never fails for lack of memory
)

func (o Op) String() string {
	switch o {
	case Read:
		return "read"
	case Write:
		return "write"
	case Flush:
		return "flush"
	case Trim:
		return "trim"
	case WriteZeroes:
		return "write-zeroes"
	case Cache:
		return "cache"
	}
	return fmt.Sprintf("op(%d)", uint8(o))
}

// Changes reports whether the operation changes content.
func (o Op) Changes() bool { return o == Write || o == Trim || o == WriteZeroes }

// Flags modify an operation.
type Flags uint8

// The flags of a Request.
const (
	FUA      Flags = 1 << iota // durable on every in-sync replica before it completes
	NoHole                     // WriteZeroes: allocate rather than punch
	FastZero                   // WriteZeroes: fail with ErrNotSupported rather than write zeroes slowly
)

// Extent is a range of bytes of a device.
type Extent struct {
	Off, Len int64
}

// End is the offset behind the last byte.
func (e Extent) End() int64 { return e.Off + e.Len }

// Overlaps reports whether e and f share a byte.
func (e Extent) Overlaps(f Extent) bool { return e.Off < f.End() && f.Off < e.End() }

// Contains reports whether f lies within e.
func (e Extent) Contains(f Extent) bool { return e.Off <= f.Off && f.End() <= e.End() }

// Units is e grown to whole bitmap units.
func (e Extent) Units() Extent {
	off := e.Off &^ (Unit - 1)
	return Extent{off, (e.End()+Unit-1)&^(Unit-1) - off}
}

func (e Extent) String() string { return fmt.Sprintf("[%d,+%d)", e.Off, e.Len) }

// Errors with which a Request completes. An NBD server maps each to its errno;
// anything else is an I/O error.
var (
	ErrRange        = errors.New("beyond the end of the device")
	ErrInvalid      = errors.New("invalid request")
	ErrReadOnly     = errors.New("the device is not writable here")
	ErrNoSpace      = errors.New("no space left on the backing disk")
	ErrNotSupported = errors.New("not supported by the backing disk")
	ErrIO           = errors.New("I/O error")
	// ErrDropped means that the outcome is unknown and the consumer must ask
	// again over a new connection: it is answered by closing the connection,
	// never by an error reply, which consumers take as final.
	ErrDropped = errors.New("connection must be dropped")
)

// Request is one operation on a device on its way through the engine. Whoever
// submits it owns it again when Done.Complete is called, which happens exactly
// once, possibly before Submit returns, on any goroutine.
type Request struct {
	Op    Op
	Flags Flags
	Off   int64
	Len   int64
	// Data is the content to write (len Len), or the destination of a read.
	// It stays valid and unchanged until completion.
	Data []byte
	// Buf owns Data's memory where that is shared; the engine retains it for
	// as long as a peer may still need to be sent Data. It may be nil: then
	// whoever needs Data beyond completion copies it.
	Buf *Buf
	// Err is the outcome, set before Done.Complete.
	Err error
	// Done is told of completion.
	Done Completer
	// Slot is the submitter's own: an index or a cookie.
	Slot uint64
}

// Extent is the range r speaks of.
func (r *Request) Extent() Extent { return Extent{r.Off, r.Len} }

// Completer is told when a request has completed. Complete must not block:
// it queues the answer and touches its flusher in the batch.
type Completer interface {
	Complete(r *Request, b *Batch)
}
