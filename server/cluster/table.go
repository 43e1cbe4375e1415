package cluster

import (
	"maps"
	"slices"
	"time"
)

// State is what this node believes of a peer.
//
//	Down ⇄ Connecting → Up
//	  ↑________|_________|      failed, or lost
//	Disconnected ← any          told to stay away; left by connect only
type State uint8

// The states of a node.
const (
	Down State = iota
	Connecting
	Up
	Disconnected
)

func (s State) String() string {
	return [...]string{"down", "connecting", "up", "disconnected"}[s]
}

// Node is what the table holds of one peer. Copies are snapshots.
type Node struct {
	ID          int
	Name        string
	State       State
	Since       time.Time // State was entered
	Because     string    // why State was entered, a sentence
	LastError   string    // of the last attempt to connect, or the last loss
	LastErrorAt time.Time
	Session     uint64
	Incarnation uint64 // of the peer's process; of the last one known
	Connects    uint64 // sessions that came up
	LastUp      time.Time
}

// Table is the node table. It is pure: its owner tells it what happened and
// when, and guards it.
type Table struct {
	nodes    map[int]*Node
	revision uint64
}

// NewTable returns an empty table.
func NewTable() *Table { return &Table{nodes: make(map[int]*Node)} }

// Revision grows with every change.
func (t *Table) Revision() uint64 { return t.revision }

// Add enters a node, or renames it.
func (t *Table) Add(id int, name string, now time.Time) {
	t.revision++
	if n := t.nodes[id]; n != nil {
		n.Name = name
		return
	}
	t.nodes[id] = &Node{ID: id, Name: name, Since: now, Because: "not connected yet"}
}

// Remove forgets a node.
func (t *Table) Remove(id int) {
	if _, ok := t.nodes[id]; ok {
		delete(t.nodes, id)
		t.revision++
	}
}

// Get returns a copy of a node's row.
func (t *Table) Get(id int) (Node, bool) {
	if n := t.nodes[id]; n != nil {
		return *n, true
	}
	return Node{}, false
}

// All returns copies of all rows by id.
func (t *Table) All() []Node {
	out := make([]Node, 0, len(t.nodes))
	for _, id := range slices.Sorted(maps.Keys(t.nodes)) {
		out = append(out, *t.nodes[id])
	}
	return out
}

// Attempt notes that a connection to the node is being made. It changes
// nothing for a node that is up or disconnected.
func (t *Table) Attempt(id int, now time.Time, because string) {
	if n := t.nodes[id]; n != nil && (n.State == Down || n.State == Connecting) {
		t.enter(n, Connecting, now, because)
	}
}

// Failed notes that an attempt came to nothing.
func (t *Table) Failed(id int, now time.Time, err string) {
	n := t.nodes[id]
	if n == nil {
		return
	}
	t.revision++
	n.LastError, n.LastErrorAt = err, now
	if n.State == Connecting {
		t.enter(n, Down, now, err)
	}
}

// Up notes that a session came up, and reports whether the node was not up
// before.
func (t *Table) Up(id int, now time.Time, session, incarnation uint64) bool {
	n := t.nodes[id]
	if n == nil || n.State == Up {
		return false
	}
	n.Session, n.Incarnation, n.LastUp = session, incarnation, now
	n.Connects++
	t.enter(n, Up, now, "both links are established and authenticated")
	return true
}

// Down notes that the node's session ended, and reports whether the node was
// up. A disconnected node stays disconnected.
func (t *Table) Down(id int, now time.Time, because string) bool {
	n := t.nodes[id]
	if n == nil || n.State != Up {
		return false
	}
	n.LastError, n.LastErrorAt = because, now
	n.Session = 0
	t.enter(n, Down, now, because)
	return true
}

// Disconnect notes that the node is to stay away.
func (t *Table) Disconnect(id int, now time.Time, because string) {
	if n := t.nodes[id]; n != nil {
		n.Session = 0
		t.enter(n, Disconnected, now, because)
	}
}

// Connect notes that a disconnected node is wanted again.
func (t *Table) Connect(id int, now time.Time) {
	if n := t.nodes[id]; n != nil && n.State == Disconnected {
		t.enter(n, Down, now, "connect was asked for")
	}
}

// enter changes the state. Since stays where the state stays, so that a node
// which is dialled for the hundredth time shows how long it has been gone.
func (t *Table) enter(n *Node, s State, now time.Time, because string) {
	t.revision++
	wasAway := n.State == Down || n.State == Connecting
	isAway := s == Down || s == Connecting
	if n.State != s && !(wasAway && isAway) {
		n.Since = now
	}
	n.State, n.Because = s, because
}
