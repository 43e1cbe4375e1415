package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"slices"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/server/block"
)

// Peers is how many nodes a device can have: node ids are 0 to Peers-1.
const Peers = 32

// Level is the format level that this version writes.
const Level = 1

// Limits of the format.
const (
	MaxSize      = 256 << 40 // of a device, in bytes
	MaxExtension = 1024      // of Superblock.Ext, in bytes
	MaxDevice    = 128       // of Superblock.Device, in bytes
)

// Flags are what is so of a device on this node.
type Flags uint32

// The flags. ALClean and ALDisabled are kept by Meta; Update leaves them alone.
const (
	Consistent     Flags = 1 << iota // the disk's content is one that some node's disk once had
	WasUpToDate                      // the disk was known to be current
	PrimaryInd                       // this node is primary, or was when it stopped
	CrashedPrimary                   // this node was primary when it crashed
	ALClean                          // no hot extent needs to be turned into bits
	ALDisabled                       // writes are not logged: an unclean stop loses track
	LostQuorum                       // this node was primary when quorum went
	HadQuorum                        // this node had quorum when it last wrote this
	JustCreated                      // nothing was ever written by anybody
	Left                             // this node has left in order, and has no vote
	Newcomer                         // it was made for a device that was there, and has had no part in a quorum yet
	Member                           // it has had the current data where there was quorum
)

func (f Flags) String() string {
	return flagNames(uint32(f), []string{"consistent", "was-up-to-date", "primary", "crashed-primary",
		"log-clean", "log-disabled", "lost-quorum", "had-quorum", "just-created", "left-in-order", "newcomer", "member"})
}

// PeerFlags are what is so of a peer.
type PeerFlags uint32

// The flags of a peer.
const (
	PeerConnected PeerFlags = 1 << iota // its data was in reach when this was written
	PeerOutdated                        // its disk is known to lack writes
	PeerFullSync                        // everything differs, whatever the bitmap says
	PeerFencing                         // it is being fenced
	PeerSeen                            // it was met at least once
	PeerLeft                            // it has left in order, and has no vote
)

func (f PeerFlags) String() string {
	return flagNames(uint32(f), []string{"connected", "outdated", "full-sync", "fencing", "seen", "left-in-order"})
}

func flagNames(f uint32, names []string) string {
	var out []string
	for i := range 32 {
		if f&(1<<i) == 0 {
			continue
		}
		if i < len(names) {
			out = append(out, names[i])
		} else {
			out = append(out, fmt.Sprintf("bit-%d", i))
		}
	}
	if out == nil {
		return "-"
	}
	return strings.Join(out, ",")
}

// Superblock is what a node knows about its copy of a device, apart from which
// blocks differ. It is small, and every change of it is durable at once.
type Superblock struct {
	Device  string    // name of the device
	NodeID  int       // whose copy this is
	Size    int64     // of the device, in bytes; changed by Meta.Resize only
	Created time.Time // of this metadata
	Seq     uint64    // counts the changes of the superblock

	Current uint64        // id of the generation of the content
	Bitmap  [Peers]uint64 // per peer, the generation its bitmap counts from; 0: in sync
	History [Peers]uint64 // earlier generations, newest first

	Flags     Flags
	PeerFlags [Peers]PeerFlags
	Members   uint32 // node ids that have a copy, as a mask

	// Ext belongs to the device's own bookkeeping; store keeps it as it is.
	Ext []byte

	log logSession
}

// logSession is which activity log the superblock speaks of.
type logSession struct {
	gen    uint64 // blocks of the ring with another number belong to the past
	extent int64  // bytes per extent
	slots  int    // extents that can be hot
}

func (s *Superblock) clone() *Superblock {
	c := *s
	c.Ext = bytes.Clone(s.Ext)
	return &c
}

// peers are the node ids about which something is known: bits are set for all
// of them when it is unclear who got what.
func (s *Superblock) peers() []int {
	var out []int
	for id := range Peers {
		known := s.Members&(1<<id) != 0 || s.PeerFlags[id] != 0 || s.Bitmap[id] != 0
		if known && id != s.NodeID {
			out = append(out, id)
		}
	}
	return out
}

// validate reports what a superblock cannot say. It guards both what is about
// to be written and what was read.
func (s *Superblock) validate() error {
	switch {
	case s.Device == "" || len(s.Device) > MaxDevice:
		return fmt.Errorf("a device name has 1 to %d bytes, not %d", MaxDevice, len(s.Device))
	case s.NodeID < 0 || s.NodeID >= Peers:
		return fmt.Errorf("a node id is 0 to %d, not %d", Peers-1, s.NodeID)
	case s.Size <= 0 || s.Size > MaxSize || s.Size%block.Unit != 0:
		return fmt.Errorf("a device's size is a multiple of %d up to %d, not %d", block.Unit, int64(MaxSize), s.Size)
	case len(s.Ext) > MaxExtension:
		return fmt.Errorf("the extension has at most %d bytes, not %d", MaxExtension, len(s.Ext))
	}
	if err := s.log.validate(); err != nil {
		return err
	}
	if s.Size/s.log.extent >= int64(noExtent) {
		return fmt.Errorf("a device of %d bytes needs larger extents than %d bytes", s.Size, s.log.extent)
	}
	return nil
}

// Layout of a superblock. Bytes that are not named are zero.
const (
	sbBytes    = 4096
	sbMagic    = "lockstep metadata"
	sbLevel    = 20
	sbCRC      = 24
	sbSeq      = 32
	sbCreated  = 40
	sbSize     = 48
	sbNode     = 56
	sbFlags    = 60
	sbMembers  = 64
	sbNameLen  = 68
	sbExtLen   = 70
	sbCurrent  = 72
	sbLogGen   = 80
	sbLogBytes = 88
	sbLogSlots = 96
	sbName     = 128
	sbBitmap   = 256
	sbHistory  = sbBitmap + Peers*8
	sbPeer     = sbHistory + Peers*8
	sbExt      = 1024
)

// encode writes s to the sbBytes of out.
func (s *Superblock) encode(out []byte) {
	le := binary.LittleEndian
	clear(out[:sbBytes])
	copy(out, sbMagic)
	le.PutUint32(out[sbLevel:], Level)
	le.PutUint64(out[sbSeq:], s.Seq)
	le.PutUint64(out[sbCreated:], uint64(unixNano(s.Created)))
	le.PutUint64(out[sbSize:], uint64(s.Size))
	le.PutUint32(out[sbNode:], uint32(s.NodeID))
	le.PutUint32(out[sbFlags:], uint32(s.Flags))
	le.PutUint32(out[sbMembers:], s.Members)
	le.PutUint16(out[sbNameLen:], uint16(len(s.Device)))
	le.PutUint16(out[sbExtLen:], uint16(len(s.Ext)))
	le.PutUint64(out[sbCurrent:], s.Current)
	le.PutUint64(out[sbLogGen:], s.log.gen)
	le.PutUint64(out[sbLogBytes:], uint64(s.log.extent))
	le.PutUint32(out[sbLogSlots:], uint32(s.log.slots))
	copy(out[sbName:][:MaxDevice], s.Device)
	for i := range Peers {
		le.PutUint64(out[sbBitmap+i*8:], s.Bitmap[i])
		le.PutUint64(out[sbHistory+i*8:], s.History[i])
		le.PutUint32(out[sbPeer+i*4:], uint32(s.PeerFlags[i]))
	}
	copy(out[sbExt:][:MaxExtension], s.Ext)
	le.PutUint32(out[sbCRC:], superblockSum(out))
}

// unixNano writes a time down; no time is 0.
func unixNano(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixNano()
}

func fromUnixNano(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC()
}

// superblockSum is the checksum of a superblock with the checksum left out.
func superblockSum(in []byte) uint32 {
	sum := crc32.Checksum(in[:sbCRC], castagnoli())
	return crc32.Update(sum, castagnoli(), in[sbCRC+4:sbBytes])
}

// errBlank is the error of a superblock slot that was never written.
var errBlank = fmt.Errorf("never written")

// superblockLevel checks that in is a whole superblock and returns its level.
func superblockLevel(in []byte) (uint32, error) {
	le := binary.LittleEndian
	switch {
	case len(in) < sbBytes:
		return 0, fmt.Errorf("%d of %d bytes", len(in), sbBytes)
	case allZero(in[:sbBytes]):
		return 0, errBlank
	case string(in[:len(sbMagic)]) != sbMagic:
		return 0, fmt.Errorf("not a superblock")
	case le.Uint32(in[sbCRC:]) != superblockSum(in):
		return 0, fmt.Errorf("wrong checksum")
	}
	return le.Uint32(in[sbLevel:]), nil
}

// decodeSuperblock reads a superblock of this version's level.
func decodeSuperblock(in []byte) (*Superblock, error) {
	level, err := superblockLevel(in)
	if err != nil {
		return nil, err
	}
	if level != Level {
		return nil, fmt.Errorf("level %d, not %d", level, Level)
	}
	le := binary.LittleEndian
	nameLen, extLen := int(le.Uint16(in[sbNameLen:])), int(le.Uint16(in[sbExtLen:]))
	if nameLen > MaxDevice || extLen > MaxExtension {
		return nil, fmt.Errorf("a name of %d and an extension of %d bytes", nameLen, extLen)
	}
	s := &Superblock{
		Device:  string(in[sbName:][:nameLen]),
		NodeID:  int(le.Uint32(in[sbNode:])),
		Size:    int64(le.Uint64(in[sbSize:])),
		Created: fromUnixNano(int64(le.Uint64(in[sbCreated:]))),
		Seq:     le.Uint64(in[sbSeq:]),
		Current: le.Uint64(in[sbCurrent:]),
		Flags:   Flags(le.Uint32(in[sbFlags:])),
		Members: le.Uint32(in[sbMembers:]),
		Ext:     slices.Clone(in[sbExt:][:extLen]),
		log: logSession{
			gen:    le.Uint64(in[sbLogGen:]),
			extent: int64(le.Uint64(in[sbLogBytes:])),
			slots:  int(le.Uint32(in[sbLogSlots:])),
		},
	}
	for i := range Peers {
		s.Bitmap[i] = le.Uint64(in[sbBitmap+i*8:])
		s.History[i] = le.Uint64(in[sbHistory+i*8:])
		s.PeerFlags[i] = PeerFlags(le.Uint32(in[sbPeer+i*4:]))
	}
	return s, s.validate()
}

func allZero(p []byte) bool {
	for _, c := range p {
		if c != 0 {
			return false
		}
	}
	return true
}
