// Package replication is the heart of lockstep without its hands: roles, disk
// and replication states, generation ids, the handshake decision, quorum and
// the vote on a promotion, all as pure functions of facts. It has no clock,
// socket, disk or goroutine; the device actor gathers the facts, asks, and
// carries out the answer.
//
// The model is DRBD's (generation identifiers, dirty bitmaps, quorum as its
// guide describes them); where we decide differently the code says so.
//
// One limit is known. With quorum off, a disk whose resync was broken off (a mixture)
// may meet a disk that was left in a generation which the mixture has missed, and take
// it for a split brain. It does not where it was told of its present generation by a
// primary whose disk was, when the two agreed, in the generation before: it then knows
// all that this one came from (Gens.Inherit). It can where the primary had no disk, or
// began to be resynced itself since they agreed, and the mixture missed two generations
// or more: the announcement names one. Nothing is merged or lost by it; the two are
// not connected until the mixture's next resync has begun, which tells it the rest.
package replication

import "fmt"

// Role is what a node may do with a device.
type Role uint8

// The roles. At most one node is Primary.
const (
	Secondary Role = iota
	Primary
	UnknownRole // of a peer we have no contact with
)

func (r Role) String() string {
	switch r {
	case Secondary:
		return "secondary"
	case Primary:
		return "primary"
	}
	return "unknown"
}

// DiskState says what a node's data is worth. The order means something:
// a higher state is never a target of a lower one.
type DiskState uint8

// The disk states, with DRBD's meanings.
const (
	DUnknown     DiskState = iota // no contact
	Diskless                      // no disk on this node
	Failed                        // I/O errors; being detached
	Attaching                     // metadata is being read
	Inconsistent                  // a mixture: a resync has not completed
	Outdated                      // a consistent past state; newer data is known to exist
	Consistent                    // consistent; not known yet whether newer data exists
	UpToDate                      // the current data
)

var diskNames = [...]string{"Unknown", "Diskless", "Failed", "Attaching", "Inconsistent", "Outdated", "Consistent", "UpToDate"}

func (s DiskState) String() string {
	if int(s) < len(diskNames) {
		return diskNames[s]
	}
	return fmt.Sprintf("DiskState(%d)", uint8(s))
}

// HasData reports whether a disk in this state holds data that a generation
// id describes.
func (s DiskState) HasData() bool { return s >= Inconsistent }

// ReplState is what goes on between this node and one peer about a device.
type ReplState uint8

// The replication states.
const (
	Off ReplState = iota // no agreement with the peer, or no contact
	Established
	SyncSource
	SyncTarget
	PausedSyncS // agreed, but waits (for a better source, for another resync)
	PausedSyncT
	VerifyS
	VerifyT
	Ahead
	Behind
)

var replNames = [...]string{"Off", "Established", "SyncSource", "SyncTarget", "PausedSyncS", "PausedSyncT", "VerifyS", "VerifyT", "Ahead", "Behind"}

func (s ReplState) String() string {
	if int(s) < len(replNames) {
		return replNames[s]
	}
	return fmt.Sprintf("ReplState(%d)", uint8(s))
}

// Protocol says when a write is complete with respect to a peer.
type Protocol uint8

// The protocols.
const (
	ProtocolA Protocol = 'A' // sent
	ProtocolB Protocol = 'B' // received
	ProtocolC Protocol = 'C' // written
)

func (p Protocol) String() string { return string(rune(p)) }
