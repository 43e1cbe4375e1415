package api

// The params of commands that take any. Fields are in the order in which
// positional arguments fill them; a field that may be left out is omitempty.

// NodeParams name a node: "node/show", "node/why" need one; "node/connect" and
// "node/reconnect" mean every peer without.
type NodeParams struct {
	Node string `json:"node,omitempty"`
}

// NodeDisconnectParams are the params of "node/disconnect"; every peer without
// Node. Persist keeps the peer disconnected across restarts.
type NodeDisconnectParams struct {
	Node    string `json:"node,omitempty"`
	Persist bool   `json:"persist,omitempty"`
}

// DeviceParams name a device: "status" (all when left out) and the device
// commands that need no more.
type DeviceParams struct {
	Device string `json:"device,omitempty"`
}

// StatusWaitParams are the params of "status/wait", which answers with a
// Status as soon as its revision is greater than this one, or with the present
// one when the command's deadline comes first.
type StatusWaitParams struct {
	Revision uint64 `json:"revision"`
}

// TickSetParams are the params of "tick/set". Fractions of a second are
// allowed. Local changes this node alone.
type TickSetParams struct {
	Seconds    float64 `json:"seconds"`
	Transition float64 `json:"transition,omitempty"` // seconds
	Local      bool    `json:"local,omitempty"`
}

// DeviceCreateParams are the params of "device/create".
type DeviceCreateParams struct {
	Device       string `json:"device"`
	FromExisting bool   `json:"from_existing,omitempty"` // what the disk holds becomes the device's data
}

// DevicePromoteParams are the params of "device/promote". What stands in the way
// and passes by itself is waited for, five seconds at most; TimeoutMS is how long
// where the client waits less than that for its answer. Daemons before it was there
// refuse it, with CodeInvalidParams, and have done nothing then: clients ask without.
type DevicePromoteParams struct {
	Device    string `json:"device"`
	Force     bool   `json:"force,omitempty"`
	TimeoutMS int64  `json:"timeout_ms,omitempty"`
}

// DeviceResyncParams are the params of "device/resync" (every peer without
// Node), which answers once the work is under way, so that "status" shows it
// from then on. Pause stops a resync until it is asked for again.
type DeviceResyncParams struct {
	Device string `json:"device"`
	Node   string `json:"node,omitempty"`
	Pause  bool   `json:"pause,omitempty"`
}

// DeviceVerifyParams are the params of "device/verify" (every peer without
// Node), which answers once the work is under way. Stop ends it.
type DeviceVerifyParams struct {
	Device string `json:"device"`
	Node   string `json:"node,omitempty"`
	Stop   bool   `json:"stop,omitempty"`
}

// DevicePeerParams are the params of "device/handshake".
type DevicePeerParams struct {
	Device string `json:"device"`
	Node   string `json:"node,omitempty"`
}

// DeviceResizeParams are the params of "device/resize".
type DeviceResizeParams struct {
	Device string `json:"device"`
	Size   int64  `json:"size"` // bytes
}

// The states that "device/wait" can wait for.
const (
	WaitUpToDate  = "uptodate"  // the local disk is UpToDate
	WaitConnected = "connected" // every peer of the device is connected
	WaitSynced    = "synced"    // connected, nothing is out of sync, and no vote given up is still to come back
	WaitPrimary   = "primary"   // the device is primary here
)

// DeviceWaitParams are the params of "device/wait", which answers with the
// Device when it is in the state, and with an error when the time is over.
type DeviceWaitParams struct {
	Device    string `json:"device"`
	For       string `json:"for,omitempty"`        // WaitSynced when left out
	TimeoutMS int64  `json:"timeout_ms,omitempty"` // none when left out
}

// The ways out of a split brain, for "device/resolve".
const (
	KeepLocal    = "keep-local"    // the peers take this node's data
	DiscardLocal = "discard-local" // this node takes a peer's data
)

// DeviceResolveParams are the params of "device/resolve".
type DeviceResolveParams struct {
	Device string `json:"device"`
	Choice string `json:"choice"`
}

// Handshake is the result of "device/handshake": what a handshake with a peer
// would decide now, without doing it.
type Handshake struct {
	Device string `json:"device"`
	Node   string `json:"node"`
	Action string `json:"action"`
	Text   string `json:"text"` // one sentence
	// Rule is the stable name of the rule that decides. Agreed: the two have
	// agreed on something already, which a new handshake would void. Mine and
	// Theirs are the bytes that either side has marked for the other.
	Rule   string `json:"rule,omitempty"`
	Agreed bool   `json:"agreed,omitempty"`
	Mine   int64  `json:"mine,omitempty"`
	Theirs int64  `json:"theirs,omitempty"`
}

// ConfigFileParams name a file to look at in place of the daemon's own.
type ConfigFileParams struct {
	File string `json:"file,omitempty"`
}

// ConfigReloadParams are the params of "config/reload". Partial applies what
// can be applied while running and leaves what needs a restart.
type ConfigReloadParams struct {
	Partial bool `json:"partial,omitempty"`
}

// ConfigRollbackParams are the params of "config/rollback".
type ConfigRollbackParams struct {
	Revision uint64 `json:"revision"`
}

// ServiceParams name a service.
type ServiceParams struct {
	Service string `json:"service"`
}

// CmapKeyParams name one key of the object database.
type CmapKeyParams struct {
	Key string `json:"key"`
}

// CmapSetParams are the params of "cmap/set". The value is written as text and
// read as Type says.
type CmapSetParams struct {
	Key   string `json:"key"`
	Type  string `json:"type"`
	Value string `json:"value"`
}

// CmapLoadParams are the params of "cmap/load": the text of a batch file, lines
// "KEY TYPE VALUE", "^KEY" and "^^PREFIX".
type CmapLoadParams struct {
	Lines string `json:"lines"`
}

// CmapPrefixParams choose keys, all when left out.
type CmapPrefixParams struct {
	Prefix string `json:"prefix,omitempty"`
}

// CmapChange is the notification "cmap" that follows "cmap/track"; "lost" takes
// the place of changes that a tracker was too slow to take.
type CmapChange struct {
	Key  string     `json:"key"`
	Op   string     `json:"op"` // added, modified, deleted
	Old  *CmapEntry `json:"old,omitempty"`
	New  *CmapEntry `json:"new,omitempty"`
	Node string     `json:"node,omitempty"`
}

// Done is the result of a command that changes something and has nothing else
// to show: what was done, in one sentence.
type Done struct {
	Text string `json:"text"`
}
