package simtest

import (
	"sync"

	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// A point is a moment in what a node does at which a test can stop it: before
// each operation on stable storage, before each frame that it sends, and before
// each that it takes. "Before the sync of X" is after the write of X, when it
// is not durable yet; "before the acknowledgement of X is sent", when it is.
// The names are below; a frame's is that of its type.

// diskPoint names an operation on a disk; "" for one that changes nothing.
func diskPoint(r storetest.Record) string {
	switch r.Op {
	case storetest.OpWrite:
		return "disk: before a write"
	case storetest.OpSync:
		return "disk: before a sync"
	case storetest.OpPunch:
		return "disk: before zeroes"
	case storetest.OpTruncate:
		return "disk: before it grows"
	}
	return ""
}

// metaPart is the part of the metadata file at an offset.
func metaPart(off int64) string {
	switch {
	case off < 16<<10:
		return "superblock"
	case off < 1<<20:
		return "activity log"
	}
	return "bitmap"
}

// metaPoint names an operation on a metadata file. A sync is named for what
// was written last.
func (n *Node) metaPoint(r storetest.Record) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	switch r.Op {
	case storetest.OpWrite:
		n.wrote = metaPart(r.Off)
		return n.wrote + ": before its write"
	case storetest.OpPunch:
		n.wrote = metaPart(r.Off)
		return n.wrote + ": before it becomes a hole"
	case storetest.OpTruncate:
		n.wrote = "metadata"
		return "metadata: before it grows"
	case storetest.OpSync:
		if n.wrote != "" {
			return n.wrote + ": before its sync"
		}
	}
	return ""
}

func sendPoint(t wire.Type) string { return t.String() + ": before it is sent" }
func takePoint(t wire.Type) string { return t.String() + ": before it is taken" }

// A Trap does something when a node comes to a point.
type Trap struct {
	point  string
	on     [2]*Node // the nodes that it is for; nil: whoever
	spring func(at *Node, with *Node)

	mu       sync.Mutex // guards what is below
	skip     int
	passed   int
	fired    bool
	at, with *Node // when spring has run
}

// SetTrap has spring called once, when the point is come to for the time after
// skip others: at is the node, with the peer if the point is of a frame. spring
// runs in the midst of what at does, whatever it holds, and must not wait for
// anything. There is one trap at a time.
func (c *Cluster) SetTrap(point string, skip int, spring func(at, with *Node)) *Trap {
	t := &Trap{point: point, spring: spring, skip: skip}
	c.trap.Store(t)
	return t
}

// SetTrapOn is that for the first time that one node comes to the point with another.
func (c *Cluster) SetTrapOn(at, with *Node, point string, spring func(at, with *Node)) *Trap {
	t := &Trap{point: point, on: [2]*Node{at, with}, spring: spring}
	c.trap.Store(t)
	return t
}

// Now has the trap skip nothing more.
func (t *Trap) Now() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.skip = 0
}

// Sprung is the node at which the trap sprang, or nil.
func (t *Trap) Sprung() *Node {
	at, _ := t.Pair()
	return at
}

// Pair is the node at which the trap sprang, and the peer of the frame.
func (t *Trap) Pair() (at, with *Node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.at, t.with
}

// Passed is how often the point was come to.
func (t *Trap) Passed() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.passed
}

func (c *Cluster) pass(point string, at, with *Node) {
	t := c.trap.Load()
	if t == nil || point != t.point || t.on[0] != nil && t.on != [2]*Node{at, with} {
		return
	}
	t.mu.Lock()
	t.passed++
	hit := !t.fired && t.passed > t.skip
	t.fired = t.fired || hit
	t.mu.Unlock()
	if hit {
		t.spring(at, with)
		t.mu.Lock()
		t.at, t.with = at, with
		t.mu.Unlock()
	}
}

// watchStorage reports what is done on a node's images.
func (n *Node) watchStorage() {
	if n.Disk == nil {
		return
	}
	n.Disk.OnOp(func(r storetest.Record) { n.c.pass(diskPoint(r), n, nil) })
	n.Meta.OnOp(func(r storetest.Record) { n.c.pass(n.metaPoint(r), n, nil) })
}

// fallen is what a crash leaves.
type fallen struct{ disk, meta *storetest.Image }

// PowerOff ends a node's machine at this instant, from wherever it is called:
// nothing reaches its storage or its peers any more. Who calls it from the
// midst of what the node does calls Bury later.
func (n *Node) PowerOff(how storetest.Crash) {
	if n.Disk != nil {
		n.Disk.Crash()
		n.Meta.Crash()
	}
	for _, v := range n.More {
		if v.Disk == nil {
			continue
		}
		v.Disk.Crash()
		v.Meta.Crash()
	}
	for _, s := range n.c.sessionsOf(n.ID) {
		if n.c.opts.Uneven {
			s.leave()
		} else {
			s.end()
		}
	}
	for _, v := range n.More {
		if v.Disk == nil {
			continue
		}
		v.fallen = fallen{v.Disk.CrashClone(how), v.Meta.CrashClone(how)}
	}
	f := &fallen{}
	if n.Disk != nil {
		f.disk, f.meta = n.Disk.CrashClone(how), n.Meta.CrashClone(how)
	}
	n.mu.Lock()
	n.fallen = f
	n.mu.Unlock()
}

// Fallen reports whether the node was powered off and not buried yet: what it
// still says was never said.
func (n *Node) Fallen() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fallen != nil
}

// Bury lets the peers of a node that was powered off notice. It can start again.
func (n *Node) Bury() {
	devs := n.devs()
	n.mu.Lock()
	f := n.fallen
	n.fallen, n.wrote = nil, ""
	n.mu.Unlock()
	if f == nil {
		return
	}
	n.Disk, n.Meta = f.disk, f.meta
	for _, v := range n.More {
		v.Disk, v.Meta = v.fallen.disk, v.fallen.meta
	}
	if n.set != nil {
		n.c.dead.Store(n.set, true)
	}
	for _, dev := range devs {
		n.c.dead.Store(dev, true)
	}
	n.Dev, n.set = nil, nil
	n.c.disconnect(n, "killed")
	for _, dev := range devs {
		dev.Abandon()
	}
}

// Sever stops a session where it is, from wherever it is called: nothing passes
// any more. Cut tells the two of it.
func (c *Cluster) Sever(a, b *Node) {
	for _, s := range c.sessionsOf(a.ID) {
		if s.to == b {
			s.end()
		}
	}
}

// Points lists the points at which something is done to stable storage, or
// something is said that rests on it.
func Points() []string {
	p := []string{
		"disk: before a write", "disk: before a sync", "disk: before zeroes", "disk: before it grows",
		"superblock: before its write", "superblock: before its sync",
		"activity log: before its write", "activity log: before its sync",
		"bitmap: before its write", "bitmap: before its sync", "bitmap: before it becomes a hole",
		"metadata: before it grows",
	}
	for _, t := range []wire.Type{
		wire.Write, wire.Zero, wire.WriteAck, wire.FlushReq, wire.FlushAck, wire.PeerFloor,
		wire.NewGen, wire.NewGenAck, wire.GenCommit, wire.GenDone, wire.Receivers, wire.Marks,
		wire.DevHello, wire.DevAgree, wire.DevState, wire.Bits, wire.SyncReq, wire.SyncData, wire.SyncAck, wire.SyncDone,
		wire.Prepare, wire.Vote, wire.Commit,
	} {
		p = append(p, sendPoint(t), takePoint(t))
	}
	return p
}
