package config

import "time"

// Limits of what a configuration may hold.
const (
	MaxNodes       = 32
	MaxDevices     = 4096
	MaxHandlers    = 256
	MaxFileBytes   = 4 << 20
	MinSecretBytes = 16
	MaxSecretBytes = 4096

	BlockBytes    Size = 4 << 10  // sizes are multiples of it
	MaxDeviceSize Size = 16 << 40 // 16 TiB

	MinTickTime     = 100 * time.Millisecond
	MaxTickTime     = time.Hour
	MinMaxPingCount = 4
	MaxMaxPingCount = 1000
)

// Config is one valid configuration.
type Config struct {
	// Path is the file it came from, as it was given.
	Path     string
	Cluster  Cluster
	Nodes    []*Node
	Devices  []*Device
	Control  Control
	Log      Log
	Metrics  Metrics
	Handlers []*Handler
}

// Cluster is the [cluster] table.
type Cluster struct {
	Name string
	// SecretFile is the path as written; Secret is what was in it.
	SecretFile   string
	Secret       Secret
	TickTime     time.Duration // T
	MaxPingCount int           // I
	Sign         bool          // sign the frames of links that have no TLS
	TLS          TLS

	src source
}

// TLS names the files of the cluster's certificates. All three are set, or none.
type TLS struct {
	CA, Cert, Key string

	// content is a digest of what was in the files, so that a new
	// certificate under the same name is seen as a change.
	content [32]byte

	src source
}

// Enabled reports whether links use TLS.
func (t TLS) Enabled() bool { return t.CA != "" }

// Node is one [[node]].
type Node struct {
	Name    string
	ID      int
	Address string // HOST:PORT where peers reach it
	Bind    string // HOST:PORT to listen on, where that differs

	src source
}

// ListenAddress is where the node listens for its peers.
func (n *Node) ListenAddress() string {
	if n.Bind != "" {
		return n.Bind
	}
	return n.Address
}

// Device is one [[device]]. What holds on one node, with the overrides of
// [device.on.NODE] applied, is [Config.Local].
type Device struct {
	Name        string
	Size        Size
	Disk        string
	Nodes       Names // resolved: all nodes where the file names none
	Protocol    Protocol
	Quorum      Quorum
	OnNoQuorum  string // OnNoQuorumSuspend or OnNoQuorumError
	AutoPromote bool
	ResyncRate  Rate
	NBD         Names
	Group       string // devices of one group share one order of writes; "" is none
	// OnIOError is OnIOErrorDetach (a disk that fails is taken out, and the device
	// goes on with the peers') or OnIOErrorPassOn (it stays, and is mended from a
	// peer). A read error is healed in either case, on the primary and on a replica
	// alike, where a peer has the data: the block is rewritten, and what this key
	// says applies to a disk that cannot take it back, or that loses it again at
	// once. An error with no peer to turn to is the client's, and the disk stays.
	OnIOError string
	// DiskTimeout is how long an operation of the disk may take before the disk is
	// taken out; 0 is as long as it likes.
	DiskTimeout time.Duration
	ALExtents   int
	ALExtent    Size
	// AfterSB0Pri, AfterSB1Pri and AfterSB2Pri say how a split brain is
	// resolved when it is found with that many primaries.
	AfterSB0Pri string
	AfterSB1Pri string
	AfterSB2Pri string
	// FencePeer is the argv of the fence-peer handler, by DRBD's contract: a
	// primary that loses a peer which could be promoted, and not know of it, runs it, and
	// suspends I/O until it ended: one in sync and, where no quorum decides, one that has
	// not noted on its disk that it is behind. Exit status 3 (the peer's disk is inconsistent), 4
	// (outdated) and 7 (shot) let it go on with the peer counted as outdated, 5
	// (unreachable) where this disk is current; with 6 (the peer is primary) it
	// gives the role up; after any other, requests wait for the peer, and it runs again every minute. A node that is to
	// be promoted while a peer is out of reach, and no quorum says that it may, runs it
	// first: 3, 4 and 7 let it be promoted. Empty is none.
	FencePeer []string
	On        map[string]*Override

	src source
}

// Override is one [device.on.NODE].
type Override struct {
	Disk     string // "" leaves the device's
	Diskless bool
	NBD      Names // nil leaves the device's

	src source
}

// Values of Device.OnNoQuorum and Device.OnIOError.
const (
	OnNoQuorumSuspend = "suspend-io"
	OnNoQuorumError   = "io-error"
	OnIOErrorDetach   = "detach"
	OnIOErrorPassOn   = "pass-on"
)

// Control is the [control] table.
type Control struct {
	AdminGroups Names
	ReadGroups  Names
	// AdminNames and ReadNames are common names of certificates that the CA of
	// [cluster] tls has signed: who may do what over the network.
	AdminNames Names
	ReadNames  Names
	Listen     Names // "pssl:PORT[:IP]", for remote administration

	src source
}

// Addresses are where Listen is, as HOST:PORT.
func (c *Control) Addresses() []string {
	out := make([]string, 0, len(c.Listen))
	for _, s := range c.Listen {
		if at, why := parseRemote(s); why == "" {
			out = append(out, at)
		}
	}
	return out
}

// Log is the [log] table. File is "" for standard error.
type Log struct {
	File   string
	Level  string // debug, info, warn, error
	Format string // text, json

	src source
}

// Metrics is the [metrics] table. Listen is "" where there is no listener.
type Metrics struct {
	Listen string

	src source
}

// Handler is one [[handler]]: a command run on events of one type.
type Handler struct {
	Event       string   // a type of package events, or "*"
	Command     []string // argv; there is no shell
	Device      Names    // only events of these devices; empty is all
	Node        Names    // only events of these nodes; empty is all
	Timeout     time.Duration
	MaxParallel int
	Retries     int

	src source
}

// Node returns the node of that name, or nil.
func (c *Config) Node(name string) *Node {
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// Device returns the device of that name, or nil.
func (c *Config) Device(name string) *Device {
	for _, d := range c.Devices {
		if d.Name == name {
			return d
		}
	}
	return nil
}
