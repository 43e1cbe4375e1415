package wire

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/lockstepd/lockstep/server/block"
)

// MaxName bounds the names of nodes and devices on the wire.
const MaxName = 64

// Slots is the number of node slots in generation tables.
const Slots = 32

// DeviceFacts is the payload of DevHello: what a node knows of a device when
// it meets a peer, and under which handle it wants to be addressed.
type DeviceFacts struct {
	Name     string
	No       uint32 // grows with every hello of a session; names this set of facts
	Handle   uint32 // put in Header.Dev of every frame about the device
	Role     uint8
	Disk     uint8
	Flags    uint16 // DevFlag…
	Protocol uint8
	Primary  uint8 // whom it believes to be primary; NoNode: nobody
	Size     int64
	Members  uint32 // nodes with a disk
	Config   uint64 // fingerprint of what must agree
	Dirty    int64  // units marked in the sender's bitmap for the receiver
	Stream   uint64
	Received uint64
	// Announced is a generation that the sender, as primary, has announced and
	// that is not in force.
	Announced uint64
	Began     int64 // when the sender last became primary, in ns since 1970; 0: never
	Current   uint64
	Base      uint64 // the newest generation of the sender's data known to have come into force
	Seen      uint64 // the newest generation that the sender knows to be in force
	Noted     uint64 // the newest generation that was announced to the sender
	Bitmap    [Slots]uint64
	History   [Slots]uint64

	// Whole: what follows is there, as it is between nodes with FeatureVotes.
	Whole  bool
	Origin uint64        // of the sender's data; 0: not known
	Votes  [Slots]uint32 // how often each node's vote was given up or taken back; odd: it has none
}

// Flags of DeviceFacts and DeviceState.
const (
	DevFlagCrashed   = 1 << iota // was primary when it stopped uncleanly
	DevFlagLive                  // its process has held its disk as up to date
	DevFlagDiscard               // its changes are to be discarded
	DevFlagQuorate               // has quorum
	DevFlagSyncing               // its disk is being resynced by somebody
	_                            // not used
	DevFlagFollowing             // a primary in contact sends it its writes
	DevFlagBest                  // every disk is in its reach, and no complete one is newer
	DevFlagVoteless              // it has left in order, and not got its vote back yet; in DeviceState
	DevFlagNewcomer              // its disk was made for a device that was there, and has had no part in a quorum yet
	DevFlagMember                // it has had the current data where there was quorum; in DeviceFacts
	DevFlagFormer                // it has to meet the disks that the device was on before, and has no say until then
	DevFlagMet                   // a majority of those is in its reach
	DevFlagRegrouped             // its generation began when the device was on other disks
)

// DeviceState is the payload of DevState: the sender's state after the
// handshake, sent whenever it changes.
type DeviceState struct {
	Role     uint8
	Disk     uint8
	Flags    uint16
	Stream   uint64 // of the sender, when it is primary
	Current  uint64
	Receives uint32 // nodes to which the sender, as primary, sends its writes
	InSync   uint32 // nodes that the sender knows to be in sync with it
	Sees     uint32 // nodes of the device that the sender has contact with
	Primary  uint8  // the node that the sender believes to be primary; 255: none
}

// NoNode stands for no node where a node id is one byte.
const NoNode = 255

// Generation is the payload of NewGen.
type Generation struct {
	No       uint64 // of the change, for the ack
	Old, New uint64
	Away     uint32 // nodes that do not take part
	Stream   uint64
}

// OnlyNote is the second argument of a NewGen which is of no primary: a disk that was
// there before is about to begin the device. Nobody is behind it before its GenCommit. A
// node that does not know of this takes it for a primary's, and is behind at once.
const OnlyNote = 1

// Change is the payload of Prepare, Vote, Commit and Abort: a change that those
// in reach whom it concerns agree on.
type Change struct {
	Tx     uint64
	Kind   uint8 // ChangePromote…
	Node   uint8 // whose change it is
	Yes    bool  // in a Vote
	Again  bool  // in a Vote that is no: the cause passes, ask again
	Force  bool
	Arg    uint64 // ChangeResize: the new size in bytes
	Reason string
}

// Kinds of Change.
const (
	ChangePromote    = 1
	ChangeDetach     = 2 // of the sender's disk
	ChangeResize     = 3
	ChangeInvalidate = 4 // the sender's data
	ChangeDiscard    = 5 // the receiver's changes since a split brain
	ChangeCreate     = 6 // the sender's disk is what the device begins with
	ChangeLeave      = 7 // the sender is about to give its vote up; Arg: whom it asks
	ChangeLeft       = 8 // it has; Arg: the count of its vote
	ChangeReturn     = 9 // the sender is to have its vote again; Arg: its count, and in the lower half whom it asks
)

// What names the change, as in "r0: cannot WHAT".
func (c *Change) What() string {
	switch c.Kind {
	case ChangePromote:
		return "promote"
	case ChangeDetach:
		return "detach"
	case ChangeResize:
		return "resize"
	case ChangeInvalidate:
		return "invalidate"
	case ChangeDiscard:
		return "resolve"
	case ChangeCreate:
		return "create"
	case ChangeLeave, ChangeLeft:
		return "leave"
	case ChangeReturn:
		return "return to"
	}
	return fmt.Sprintf("change (%d)", c.Kind)
}

// encoder appends little-endian fields.
type encoder struct{ b []byte }

func (e *encoder) u8(v uint8)   { e.b = append(e.b, v) }
func (e *encoder) u16(v uint16) { e.b = binary.LittleEndian.AppendUint16(e.b, v) }
func (e *encoder) u32(v uint32) { e.b = binary.LittleEndian.AppendUint32(e.b, v) }
func (e *encoder) u64(v uint64) { e.b = binary.LittleEndian.AppendUint64(e.b, v) }
func (e *encoder) str(s string) {
	s = s[:min(len(s), math.MaxUint16)]
	e.b = binary.LittleEndian.AppendUint16(e.b, uint16(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) bool(v bool) {
	if v {
		e.u8(1)
	} else {
		e.u8(0)
	}
}

// decoder takes little-endian fields; the first fault sticks.
type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) take(n int) []byte {
	if d.bad || len(d.b) < n {
		d.bad = true
		return make([]byte, 8)[:min(n, 8)]
	}
	p := d.b[:n]
	d.b = d.b[n:]
	return p
}

func (d *decoder) u8() uint8   { return d.take(1)[0] }
func (d *decoder) u16() uint16 { return binary.LittleEndian.Uint16(d.take(2)) }
func (d *decoder) u32() uint32 { return binary.LittleEndian.Uint32(d.take(4)) }
func (d *decoder) u64() uint64 { return binary.LittleEndian.Uint64(d.take(8)) }

func (d *decoder) bool() bool {
	switch d.u8() {
	case 0:
		return false
	case 1:
		return true
	}
	d.bad = true
	return false
}

func (d *decoder) str(most int) string {
	n := int(binary.LittleEndian.Uint16(d.take(2)))
	if d.bad || n > most || n > len(d.b) {
		d.bad = true
		return ""
	}
	return string(d.take(n))
}

// done reports whether all was well and nothing is left over.
func (d *decoder) done(what Type) error {
	if d.bad || len(d.b) != 0 {
		return fmt.Errorf("%w (%v)", ErrPayload, what)
	}
	return nil
}

// Append encodes f after dst.
func (f *DeviceFacts) Append(dst []byte) []byte {
	e := encoder{dst}
	e.str(f.Name)
	e.u32(f.No)
	e.u32(f.Handle)
	e.u8(f.Role)
	e.u8(f.Disk)
	e.u16(f.Flags)
	e.u8(f.Protocol)
	e.u8(f.Primary)
	e.u64(uint64(f.Size))
	e.u32(f.Members)
	e.u64(f.Config)
	e.u64(uint64(f.Dirty))
	e.u64(f.Stream)
	e.u64(f.Received)
	e.u64(f.Announced)
	e.u64(uint64(f.Began))
	e.u64(f.Current)
	e.u64(f.Base)
	e.u64(f.Seen)
	e.u64(f.Noted)
	for _, g := range f.Bitmap {
		e.u64(g)
	}
	for _, g := range f.History {
		e.u64(g)
	}
	if f.Whole {
		e.u64(f.Origin)
		for _, n := range f.Votes {
			e.u32(n)
		}
	}
	return e.b
}

// Decode reads a DevHello payload.
func (f *DeviceFacts) Decode(p []byte) error {
	d := decoder{b: p}
	f.Name = d.str(MaxName)
	f.No = d.u32()
	f.Handle = d.u32()
	f.Role = d.u8()
	f.Disk = d.u8()
	f.Flags = d.u16()
	f.Protocol = d.u8()
	f.Primary = d.u8()
	f.Size = int64(d.u64())
	f.Members = d.u32()
	f.Config = d.u64()
	f.Dirty = int64(d.u64())
	f.Stream = d.u64()
	f.Received = d.u64()
	f.Announced = d.u64()
	f.Began = int64(d.u64())
	f.Current = d.u64()
	f.Base = d.u64()
	f.Seen = d.u64()
	f.Noted = d.u64()
	for i := range f.Bitmap {
		f.Bitmap[i] = d.u64()
	}
	for i := range f.History {
		f.History[i] = d.u64()
	}
	if f.Whole = len(d.b) > 0; f.Whole {
		f.Origin = d.u64()
		for i := range f.Votes {
			f.Votes[i] = d.u32()
		}
	}
	if f.Handle == 0 || f.Size < 0 || f.Dirty < 0 {
		d.bad = true
	}
	return d.done(DevHello)
}

// Append encodes s after dst.
func (s *DeviceState) Append(dst []byte) []byte {
	e := encoder{dst}
	e.u8(s.Role)
	e.u8(s.Disk)
	e.u16(s.Flags)
	e.u64(s.Stream)
	e.u64(s.Current)
	e.u32(s.Receives)
	e.u32(s.InSync)
	e.u32(s.Sees)
	e.u8(s.Primary)
	return e.b
}

// Decode reads a DevState payload.
func (s *DeviceState) Decode(p []byte) error {
	d := decoder{b: p}
	s.Role = d.u8()
	s.Disk = d.u8()
	s.Flags = d.u16()
	s.Stream = d.u64()
	s.Current = d.u64()
	s.Receives = d.u32()
	s.InSync = d.u32()
	s.Sees = d.u32()
	s.Primary = d.u8()
	return d.done(DevState)
}

// Append encodes g after dst.
func (g *Generation) Append(dst []byte) []byte {
	e := encoder{dst}
	e.u64(g.No)
	e.u64(g.Old)
	e.u64(g.New)
	e.u32(g.Away)
	e.u64(g.Stream)
	return e.b
}

// Decode reads a NewGen payload.
func (g *Generation) Decode(p []byte) error {
	d := decoder{b: p}
	g.No = d.u64()
	g.Old = d.u64()
	g.New = d.u64()
	g.Away = d.u32()
	g.Stream = d.u64()
	return d.done(NewGen)
}

// Append encodes c after dst.
func (c *Change) Append(dst []byte) []byte {
	e := encoder{dst}
	e.u64(c.Tx)
	e.u8(c.Kind)
	e.u8(c.Node)
	e.bool(c.Yes)
	e.bool(c.Again)
	e.bool(c.Force)
	e.u64(c.Arg)
	e.str(c.Reason)
	return e.b
}

// Decode reads the payload of a Prepare, Vote, Commit or Abort.
func (c *Change) Decode(p []byte) error {
	d := decoder{b: p}
	c.Tx = d.u64()
	c.Kind = d.u8()
	c.Node = d.u8()
	c.Yes = d.bool()
	c.Again = d.bool()
	c.Force = d.bool()
	c.Arg = d.u64()
	c.Reason = d.str(1024)
	return d.done(Prepare)
}

// AppendRun encodes a run of dirty units: pairs of varints, the gap to the
// previous run's end and the length, both in units.
func AppendRun(dst []byte, gap, length uint64) []byte {
	dst = binary.AppendUvarint(dst, gap)
	return binary.AppendUvarint(dst, length)
}

// Runs decodes a Bits payload whose first gap counts from unit from, and calls
// each with every run in bytes. A run beyond size is a fault. It returns the
// unit behind the last run.
func Runs(p []byte, from uint64, size int64, each func(block.Extent)) (uint64, error) {
	at := from
	for len(p) > 0 {
		gap, n := binary.Uvarint(p)
		if n <= 0 {
			return 0, fmt.Errorf("%w (%v: gap)", ErrPayload, Bits)
		}
		p = p[n:]
		length, n := binary.Uvarint(p)
		if n <= 0 || length == 0 {
			return 0, fmt.Errorf("%w (%v: length)", ErrPayload, Bits)
		}
		p = p[n:]
		units := uint64(size) / block.Unit
		if gap > units || length > units || at+gap+length > units {
			return 0, fmt.Errorf("%w (%v: run beyond the end of the device)", ErrPayload, Bits)
		}
		at += gap
		each(block.Extent{Off: int64(at) * block.Unit, Len: int64(length) * block.Unit})
		at += length
	}
	return at, nil
}
