// Package api is the wire contract of the control socket: the parameters and
// results of every command as plain structs, and the error codes. Fields are
// only ever added; byte counts are integers, times carry their unit in the
// name. The engine's control package fills these, the companion CLI renders
// them, scripts read them as JSON.
package api

import "time"

// Status is the result of "status": one snapshot of everything a person or a
// script asks first. Revision grows with every change of what it shows;
// "status/wait" takes it.
type Status struct {
	Node         string   `json:"node"`
	ID           int      `json:"id"`
	Version      string   `json:"version"`
	Revision     uint64   `json:"revision"`
	TickTimeMS   int64    `json:"tick_time_ms"`
	MaxPingCount int      `json:"max_ping_count"`
	Nodes        []Node   `json:"nodes"`
	Devices      []Device `json:"devices"`
	// Health is "ok", "degraded" (data is served, redundancy is lost) or
	// "failed" (some device cannot serve); Problems says why, and what to do,
	// the gravest first.
	Health   string    `json:"health"`
	Problems []Problem `json:"problems,omitempty"`
	// ConfigRevision counts applied configurations; ConfigError is set while
	// the file on disk could not be applied.
	ConfigRevision uint64 `json:"config_revision"`
	ConfigError    string `json:"config_error,omitempty"`
	// Overrides are settings that were made by command and that the file does
	// not have; "config/save" writes them there.
	Overrides []ConfigOverride `json:"overrides,omitempty"`
}

// ConfigOverride is a setting that was made by command.
type ConfigOverride struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	File  string `json:"file"` // what the file says, or the default where it is silent
}

// String is the setting in a line for people: "cluster.tick_time = 20s (file: 8s)".
func (o ConfigOverride) String() string { return o.Key + " = " + o.Value + " (file: " + o.File + ")" }

// Problem is one thing that is wrong, in words.
type Problem struct {
	Subject string `json:"subject"` // "node beta", "device r0"
	What    string `json:"what"`
	Do      string `json:"do,omitempty"`
	Failed  bool   `json:"failed,omitempty"` // data cannot be served because of it
}

// Node is one peer as the local node sees it.
type Node struct {
	Name        string    `json:"name"`
	ID          int       `json:"id"`
	State       string    `json:"state"` // up, down, connecting, disconnected
	Address     string    `json:"address"`
	Data        string    `json:"data"` // connected, connecting, down
	Meta        string    `json:"meta"`
	Since       time.Time `json:"since"` // when State was entered
	RTTUS       int64     `json:"rtt_us"`
	MissedPings int       `json:"missed_pings"`
	LastError   string    `json:"last_error"`
}

// NodeDetail is the result of "node/show".
type NodeDetail struct {
	Node
	Incarnation  string `json:"incarnation,omitempty"` // of the peer's process, hex
	Session      string `json:"session,omitempty"`
	Protocol     int    `json:"protocol,omitempty"` // negotiated version
	LastFrameMS  int64  `json:"last_frame_ms"`      // since anything was received; -1: there is no session
	TickTimeMS   int64  `json:"tick_time_ms"`       // promised by the peer
	MaxPingCount int    `json:"max_ping_count"`
	SentBytes    uint64 `json:"sent_bytes"`
	RecvBytes    uint64 `json:"recv_bytes"`
	SentFrames   uint64 `json:"sent_frames"`
	RecvFrames   uint64 `json:"recv_frames"`
	QueuedBytes  int64  `json:"queued_bytes"` // waiting to be sent or acked
	Connects     uint64 `json:"connects"`
	BackoffMS    int64  `json:"backoff_ms"`
	RetryInMS    int64  `json:"retry_in_ms"` // -1: no dial is planned
}

// Device is one replicated device as the local node sees it.
type Device struct {
	Name      string       `json:"name"`
	Size      int64        `json:"size"`
	Role      string       `json:"role"` // primary, secondary
	Disk      string       `json:"disk"` // Diskless … UpToDate
	Quorum    bool         `json:"quorum"`
	Suspended bool         `json:"suspended"`
	Open      int          `json:"open"` // NBD connections
	Peers     []DevicePeer `json:"peers"`
	Group     string       `json:"group,omitempty"` // the consistency group
}

// DevicePeer is what the local node knows of a device on one peer.
type DevicePeer struct {
	Node        string  `json:"node"`
	Role        string  `json:"role"` // primary, secondary, unknown
	Disk        string  `json:"disk"`
	Replication string  `json:"replication"`
	OutOfSync   int64   `json:"out_of_sync"` // bytes
	Resync      *Resync `json:"resync"`
	// Refused is why nothing is replicated with a peer that is up; SplitBrain,
	// that both sides were written since they were last in sync.
	Refused    string `json:"refused,omitempty"`
	SplitBrain bool   `json:"split_brain,omitempty"`
	// Verified is the outcome of the last verify with the peer that was led here.
	Verified *Verified `json:"verified,omitempty"`
}

// Verified is the outcome of a verify, in bytes.
type Verified struct {
	At      time.Time `json:"at"`
	Differ  int64     `json:"differ"`
	Skipped int64     `json:"skipped"`           // could not be compared
	Stopped string    `json:"stopped,omitempty"` // why it did not come to its end
}

// Resync is the progress of a resync or verify, in bytes.
type Resync struct {
	Done  int64 `json:"done"`
	Total int64 `json:"total"`
	Rate  int64 `json:"rate"` // bytes per second
	ETAS  int64 `json:"eta_s"`
}

// DeviceDetail is the result of "device/show".
type DeviceDetail struct {
	Device
	Protocol       string   `json:"protocol"`
	QuorumPolicy   string   `json:"quorum_policy"`
	OnNoQuorum     string   `json:"on_no_quorum"`
	Backing        string   `json:"backing"` // path, or "" when diskless
	NBD            []string `json:"nbd"`     // listening addresses, as NBD URIs
	CurrentGen     string   `json:"current_generation"`
	BitmapGens     []GenRef `json:"bitmap_generations"`
	ALExtents      int      `json:"al_extents"`       // hot now
	ALExtentBytes  int64    `json:"al_extent_bytes"`  // size of one
	CrashCostBytes int64    `json:"crash_cost_bytes"` // what a crash now would resync, at most
	InFlight       int      `json:"in_flight"`
	Reads          uint64   `json:"reads"`
	Writes         uint64   `json:"writes"`
	ReadBytes      uint64   `json:"read_bytes"`
	WriteBytes     uint64   `json:"write_bytes"`
	Flushes        uint64   `json:"flushes"`
	// ReadErrors is how often this node's disk could not read. What could not be
	// read was healed, that is, rewritten with what a peer has: so many bytes; or,
	// Unhealed times, it was not.
	ReadErrors  uint64 `json:"read_errors,omitempty"`
	HealedBytes uint64 `json:"healed_bytes,omitempty"`
	Unhealed    uint64 `json:"unhealed,omitempty"`
	// What requests over NBD took in the last minute, from read to reply: half
	// of them no longer, 99 of 100 no longer. 0 where there were none.
	ReadP50US  int64 `json:"read_p50_us"`
	ReadP99US  int64 `json:"read_p99_us"`
	WriteP50US int64 `json:"write_p50_us"`
	WriteP99US int64 `json:"write_p99_us"`
}

// Metadata is the result of "device/dump-md": what the metadata of a device on
// this node says.
type Metadata struct {
	Path        string          `json:"path"`
	InUse       bool            `json:"in_use"` // by a daemon: the rest may be changing
	Device      string          `json:"device"`
	NodeID      int             `json:"node_id"`
	Size        int64           `json:"size"`
	Created     time.Time       `json:"created"`
	Level       int             `json:"format_level"`
	Superblocks []string        `json:"superblocks"` // what is in either place for one
	Flags       string          `json:"flags"`
	Members     string          `json:"members"`
	Generation  string          `json:"generation"`
	History     string          `json:"history"`
	Clean       bool            `json:"clean"` // the last stop needs no recovery
	ExtentBytes int64           `json:"al_extent_bytes"`
	Extents     int             `json:"al_extents"` // that can be hot
	Hot         []MetadataRange `json:"al_hot"`     // what a recovery marks
	Peers       []MetadataPeer  `json:"peers"`
	Problems    []string        `json:"problems"`
}

// MetadataRange is a range of bytes of the device.
type MetadataRange struct {
	Off int64 `json:"offset"`
	Len int64 `json:"bytes"`
}

// MetadataPeer is what is known of a peer.
type MetadataPeer struct {
	ID         int    `json:"id"`
	Flags      string `json:"flags"`
	Generation string `json:"generation"`
	OutOfSync  int64  `json:"out_of_sync"` // bytes
	Runs       int    `json:"runs"`
}

// GenRef is the generation id held for one peer.
type GenRef struct {
	Node string `json:"node"`
	Gen  string `json:"generation"`
}

// Why is the result of "node/why" and "device/why": what is so, since when,
// because of what, and what would change it.
type Why struct {
	Subject string    `json:"subject"`
	State   string    `json:"state"`
	Since   time.Time `json:"since"`
	Because []string  `json:"because"`
	Next    []string  `json:"next"`
}

// Tick is the result of "tick/get".
type Tick struct {
	TickTimeMS   int64 `json:"tick_time_ms"`
	MaxPingCount int   `json:"max_ping_count"`
	TargetMS     int64 `json:"target_ms,omitempty"`    // while a change is under way
	RemainingMS  int64 `json:"remaining_ms,omitempty"` // of the transition
}

// TickSet is the result of "tick/set": "unchanged", "change_initiated" or
// "ongoing_change_to".
type TickSet struct {
	Result   string `json:"result"`
	TargetMS int64  `json:"target_ms"`
}

// Event is one entry of the numbered event stream.
type Event struct {
	Seq    uint64         `json:"seq"`
	Time   time.Time      `json:"time"`
	Type   string         `json:"type"` // nodeup, nodedown, role, disk, replication, quorum, resync, config, service, split-brain, …
	Node   string         `json:"node,omitempty"`
	Device string         `json:"device,omitempty"`
	Text   string         `json:"text"` // one sentence
	Data   map[string]any `json:"data,omitempty"`
}

// Lost is sent in place of events that a subscriber was too slow to take.
type Lost struct {
	Count uint64 `json:"count"`
	From  uint64 `json:"from"` // first sequence number lost
	To    uint64 `json:"to"`
}

// Subscribe are the params of "events/subscribe". After is the last sequence
// number already seen; 0 starts with the next event. Stream is whose number
// that is: of another life of the daemon, all that is kept of this one follows.
type Subscribe struct {
	Types  []string `json:"types,omitempty"`
	After  uint64   `json:"after,omitempty"`
	Stream string   `json:"stream,omitempty"`
}

// Subscribed is its result; events follow as notifications "event" and "lost".
type Subscribed struct {
	Seq    uint64 `json:"seq"`    // of the newest event now
	Missed uint64 `json:"missed"` // events after After that are no longer kept
	Stream string `json:"stream"` // names the stream that Seq counts in: one life of the daemon
}

// Service is one row of "service/list".
type Service struct {
	Name     string    `json:"name"`
	Version  int       `json:"version"`
	State    string    `json:"state"` // stopped, starting, running, stopping, failed
	Since    time.Time `json:"since"`
	Health   string    `json:"health"` // ok, or what is wrong
	Restarts int       `json:"restarts"`
	Needs    []string  `json:"needs"`
}

// CmapEntry is one key of the object database.
type CmapEntry struct {
	Key   string `json:"key"`
	Type  string `json:"type"` // i8 … u64, flt, dbl, str, bin
	Value any    `json:"value"`
	RO    bool   `json:"ro,omitempty"`
}

// ConfigChange is one row of "config/diff".
type ConfigChange struct {
	Key   string `json:"key"`
	Old   string `json:"old"`
	New   string `json:"new"`
	How   string `json:"how"` // live, restarts-service, needs-restart, refused
	Why   string `json:"why,omitempty"`
	Where string `json:"where,omitempty"` // file:line:column
}

// Version is the result of "version".
type Version struct {
	Program string `json:"program"`
	Version string `json:"version"`
	Go      string `json:"go"`
}
