package events

import "slices"

// The types of events. Scripts and handlers name them; they are only added to.
const (
	NodeUp        = "nodeup"
	NodeDown      = "nodedown"
	Relinked      = "node-relinked"  // a link to a peer was cut and came back in time
	HostPaused    = "host-paused"    // this process did not run for a while
	MissedPing    = "missed-ping"    // a peer is silent, its tick time is not over yet
	PeerRefused   = "peer-refused"   // a handshake failed: wrong cluster, secret, id, version
	TickTime      = "tick-time"      // the tick time changes or has changed
	Role          = "role"           // a device's role changed, here or at a peer
	Disk          = "disk"           // a disk state changed
	Replication   = "replication"    // a replication state changed
	Quorum        = "quorum"         // any change of quorum
	QuorumLost    = "quorum-lost"    // a device lost its quorum
	QuorumGained  = "quorum-gained"  // a device has its quorum again
	Suspended     = "suspended"      // a device holds back its clients' requests
	Resumed       = "resumed"        // it answers them again
	Resync        = "resync"         // a resync started, went on, or ended
	ResyncDone    = "resync-done"    // a resync ended and the disks are equal
	OutOfSync     = "out-of-sync"    // blocks differ, or may, from a peer's
	Generation    = "generation"     // a device's data got a new generation id
	Verify        = "verify"         // a verify started, went on, or ended
	SplitBrain    = "split-brain"    // both sides have written; nothing is merged
	IOError       = "io-error"       // a disk failed a request
	Fence         = "fence"          // a peer is to be fenced, or was
	DeviceChange  = "device"         // a device was added, removed, resized
	Config        = "config"         // a configuration was applied
	ConfigRefused = "config-refused" // a configuration was not applied
	Service       = "service"        // a service started, stopped, failed
)

// Any in a filter stands for every type.
const Any = "*"

// Types lists every type there is.
func Types() []string {
	return []string{
		NodeUp, NodeDown, Relinked, HostPaused, MissedPing, PeerRefused, TickTime,
		Role, Disk, Replication, Quorum, QuorumLost, QuorumGained, Suspended, Resumed,
		Resync, ResyncDone, OutOfSync, Generation, Verify, SplitBrain, IOError, Fence,
		DeviceChange, Config, ConfigRefused, Service,
	}
}

// Known reports whether t is a type, or Any.
func Known(t string) bool { return t == Any || slices.Contains(Types(), t) }
