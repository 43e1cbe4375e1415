package cluster

import "time"

// Event is something that happened to a node or to the cluster as this node
// sees it.
type Event struct {
	Type        string // NodeUp and its like
	Time        time.Time
	Node        string // empty where the event is this node's own
	ID          int
	Reason      string // nodedown: why, one of the reason words
	Text        string // one sentence for people
	Session     uint64
	Incarnation uint64
	Missed      int // ping-missed
}

// The types of events.
const (
	NodeUp       = "nodeup"
	NodeDown     = "nodedown"
	NodeRefused  = "node-refused"  // a handshake was turned down; once per cause and minute
	NodeRelinked = "node-relinked" // a link was cut and came back within the session
	PingMissed   = "ping-missed"
	PingHeard    = "ping-heard"
	TickChanging = "tick-changing"
	TickChanged  = "tick-changed"
	HostPaused   = "host-paused"
)
