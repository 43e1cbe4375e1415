package nbd

import (
	"context"
	"errors"
	"fmt"
	"math/bits"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/nbd/proto"
)

// ErrUnknownExport is what a Backend answers, wrapped or not, for a name that
// it does not have. Any other error of Open refuses the client with its text.
var ErrUnknownExport = errors.New("no such export")

// Backend is what is exported. Its methods are called concurrently.
type Backend interface {
	// List names the exports, in the order in which clients see them.
	List() []string
	// Info describes an export without opening it. It has no side effects.
	Info(name string) (Info, error)
	// Open opens an export for a client about to enter the transmission
	// phase. It may wait, until ctx ends: because the client left, or the
	// server closes. The client is told the error's text, unless the error is
	// block.ErrDropped: then it is dropped, so that it tries again.
	Open(ctx context.Context, name string, c ClientInfo) (Handle, error)
}

// only is a Backend with one export of another.
type only struct {
	Backend
	export string
}

func (o only) List() []string { return []string{o.export} }

func (o only) Info(name string) (Info, error) {
	if name != o.export && name != "" {
		return Info{}, fmt.Errorf("%w: %q; this socket serves %q", ErrUnknownExport, name, o.export)
	}
	i, err := o.Backend.Info(o.export)
	i.Name = o.export
	return i, err
}

// Handle is an export opened for one connection.
type Handle interface {
	// Info describes the export; its size may grow while it is open.
	Info() Info
	// Submit starts a request. r.Done.Complete is called exactly once,
	// possibly before Submit returns, on any goroutine. Submit is called by
	// the connection's reader, one request after the other: time spent in it
	// delays the requests behind.
	Submit(r *block.Request, b *block.Batch)
	// Extents says what is allocated from off on, in order and without gaps,
	// up to max extents and at least one; fewer than length bytes may be
	// covered. It must be as current as a read. It serves BLOCK_STATUS, not
	// reads, and like Submit is called by the reader.
	Extents(off, length int64, max int) ([]Extent, error)
	// Close returns when every request of the handle is finished or can no
	// longer have an effect. Completions may still come later.
	Close() error
}

// Info describes an export.
type Info struct {
	Name        string // canonical
	Description string
	Size        int64
	ReadOnly    bool
	Rotational  bool
	// MinBlock is the alignment that the export needs: a power of two up to
	// 64 KiB; 0 and 1 mean any. Requests that are not aligned to it are
	// refused. What is advertised is at least 512 where the size allows.
	MinBlock uint32
	// Preferred is the size and alignment that serves best; 0 means 4096.
	Preferred uint32
	// MaxPayload bounds the data of one read or write; 0 means 32 MiB, which
	// is also the most.
	MaxPayload uint32

	Trim, Zeroes, FastZero, Cache bool // what the export can do
	// MultiConn says that a flush on any connection covers what any other
	// connection was told is written.
	MultiConn bool
}

// Extent is a run of bytes in one state.
type Extent struct {
	Off, Len int64
	Hole     bool // not allocated
	Zero     bool // reads as zeroes
}

// ClientInfo says who opens an export.
type ClientInfo struct {
	ID      uint64 // of the connection, unique for the life of the server
	Network string // "unix" or "tcp"
	Addr    string // where the client is: an address, or "pid 1234" over a Unix socket
	PID     int    // over a Unix socket, else 0
	UID     int    // over a Unix socket, else -1
	Resumed bool   // the connection was handed over by an earlier server
}

// flags are the transmission flags that describe i to a client.
func (i *Info) flags(structured bool) proto.TransFlags {
	f := proto.HasFlags | proto.SendFlush | proto.SendFUA
	for _, has := range []struct {
		is   bool
		flag proto.TransFlags
	}{
		{i.ReadOnly, proto.ReadOnly},
		{i.Rotational, proto.Rotational},
		{i.Trim, proto.SendTrim},
		{i.Zeroes, proto.SendWriteZeroes},
		{i.Zeroes && i.FastZero, proto.SendFastZero},
		{i.Cache, proto.SendCache},
		{i.MultiConn, proto.CanMultiConn},
		{structured, proto.SendDF},
	} {
		if has.is {
			f |= has.flag
		}
	}
	return f
}

// blockSizes are what is advertised: minimum, preferred, maximum payload. A
// client that asked for less than 512 is still served, but one that is told
// of 512 (QEMU, the kernel) aligns its requests itself, which is cheaper.
func (i *Info) blockSizes() (least, preferred, most uint32) {
	least = max(i.MinBlock, 512)
	if i.Size > 0 {
		least = min(least, uint32(1)<<min(bits.TrailingZeros64(uint64(i.Size)), 16))
	}
	least = max(least, i.MinBlock, 1)
	return least, max(i.preferred(), least, 512), max(i.maxPayload(), i.preferred(), least)
}

func (i *Info) preferred() uint32 {
	if i.Preferred == 0 {
		return 4096
	}
	return i.Preferred
}

func (i *Info) maxPayload() uint32 {
	if i.MaxPayload == 0 || i.MaxPayload > proto.MaxPayload {
		return proto.MaxPayload
	}
	return i.MaxPayload
}
