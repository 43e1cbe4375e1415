// Package simtest runs many nodes of a device in one process, over a network
// and disks that fail on demand, in virtual time. A test builds a Cluster in a
// testing/synctest bubble, writes, cuts, kills and restarts, and compares what
// clients were told with what the disks hold. In half of the random histories
// paths and disks differ in how long they take, and who is lost is missed by some
// later than by others.
package simtest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// Options describe a cluster.
type Options struct {
	Nodes    int
	Diskless replication.NodeSet
	Existing replication.NodeSet // disks that were there before the device
	Size     int64
	Protocol replication.Protocol
	Quorum   replication.QuorumPolicy
	FailIO   bool
	Split    replication.SplitPolicy
	// Fence is the fence-peer handler of a node.
	Fence  func(node int, peer string) (status int)
	PassOn bool // what becomes of a failed disk
	// AutoPromote has the first client make its node primary.
	AutoPromote bool
	// DiskTimeout is how long a disk may take for one operation.
	DiskTimeout time.Duration
	// Delay is the longest that a frame is under way.
	Delay time.Duration
	// Latency is how long a frame is under way instead, on one link and one way.
	Latency func(from, to int, link wire.Link) time.Duration
	// Uneven: paths differ in how long frames are under way, each way and on each link, and
	// disks and metadata in how long they take; and of two nodes whose session ends one may
	// hear of it later than the other, and take meanwhile what was sent to it before.
	Uneven bool
	// DiskDelay is the longest that a change of a disk takes.
	DiskDelay time.Duration
	Seed      uint64
	// Extents sizes the activity log: small ones evict.
	Extents     int
	ExtentBytes int64
	// Beside is how many further devices there are, r1 and so on, which are of
	// one consistency group with r0.
	Beside int
	Older  replication.NodeSet // nodes of a version without feature bits
	Log    *slog.Logger
}

// Cluster is a device on several nodes.
type Cluster struct {
	opts  Options
	Nodes []*Node
	// without is the nodes that the configuration does not give the device to, which
	// nodes read when they start.
	without replication.NodeSet
	quorum  replication.QuorumPolicy // that of the beginning
	written atomic.Bool              // some disk has been

	mu  sync.Mutex
	rng *rand.Rand
	cut map[[2]int]bool

	// watches end those of all sessions: one may end with nobody to wait for it.
	watches []context.CancelFunc

	trap atomic.Pointer[Trap]
	// dead is the devices, and the sets of them, by their pointers, that were killed.
	// Nothing that they say is heard: it may rest on what the copies of their disks have not.
	dead sync.Map
}

// Node is one node. Dev is nil while it is down, and while it is up without its devices.
type Node struct {
	c    *Cluster
	ID   int
	Name string
	Dev  *device.Device
	Disk *storetest.Image
	Meta *storetest.Image
	More []*Volume // the devices beside r0

	set    *device.Set               // of its process; nil while that does not run
	slowed map[*storetest.Image]bool // see DiskDelay and Uneven
	read   replication.NodeSet       // without, as it was when the node started
	blank  bool                      // see isBlank

	mu       sync.Mutex // guards what is below
	events   []device.Event
	sessions map[int]*session
	fallen   *fallen // it was powered off
	wrote    string  // part of the metadata that was written last

	hearing sync.WaitGroup // it is being told of sessions that are over
}

// Volume is a device beside r0 on one node.
type Volume struct {
	Dev    *device.Device
	Disk   *storetest.Image
	Meta   *storetest.Image
	fallen fallen
}

// devs is all devices of the node; nil while it has none open.
func (n *Node) devs() (out []*device.Device) {
	if n.Dev == nil {
		return nil
	}
	out = append(out, n.Dev)
	for _, v := range n.More {
		out = append(out, v.Dev)
	}
	return out
}

// New makes a cluster whose nodes are down.
func New(o Options) *Cluster {
	if o.Protocol == 0 {
		o.Protocol = replication.ProtocolC
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	c := &Cluster{opts: o, quorum: o.Quorum, rng: rand.New(rand.NewPCG(o.Seed, 1)), cut: map[[2]int]bool{}}
	for i := range o.Nodes {
		n := &Node{c: c, ID: i, Name: fmt.Sprintf("n%d", i), sessions: map[int]*session{}, slowed: map[*storetest.Image]bool{}}
		if !o.Diskless.Has(i) {
			n.EmptyDisk(o.Size)
		}
		for range o.Beside {
			v := &Volume{}
			if n.Disk != nil {
				v.Disk, v.Meta = storetest.NewImage(o.Size), storetest.NewImage(0)
			}
			n.More = append(n.More, v)
		}
		c.Nodes = append(c.Nodes, n)
	}
	return c
}

// StartAll starts every node and connects all that are not cut.
func (c *Cluster) StartAll() error {
	for _, n := range c.Nodes {
		if err := n.Start(); err != nil {
			return err
		}
	}
	return nil
}

// Config is what a node is configured to be when it boots.
func (n *Node) Config() device.Config {
	cfg := device.Config{
		Name: "r0", Handle: uint32(n.ID + 1), Size: n.c.opts.Size, Self: n.ID,
		Protocol: n.c.opts.Protocol, Quorum: n.c.opts.Quorum, DiskTimeout: n.c.opts.DiskTimeout, AfterSplit: n.c.opts.Split,
	}
	cfg.AutoPromote = n.c.opts.AutoPromote
	if n.c.opts.PassOn {
		cfg.OnIOError = device.PassOn
	}
	if n.c.opts.FailIO {
		cfg.OnNoQuorum = device.FailIO
	}
	if n.c.opts.Fence != nil {
		cfg.FencePeer = []string{"fence"}
	}
	for _, m := range n.c.Nodes {
		if n.read.Has(m.ID) {
			continue
		}
		cfg.Nodes = append(cfg.Nodes, device.Node{ID: m.ID, Name: m.Name, Diskless: m.Disk == nil})
	}
	if cfg.Fingerprint = uint64(n.read); cfg.Quorum != n.c.quorum {
		cfg.Fingerprint |= uint64(cfg.Quorum.Kind)<<32 | uint64(cfg.Quorum.N)<<40
	}
	if n.c.opts.Beside > 0 {
		cfg.Group, cfg.Together = "db", []string{"r0"}
		for i := range n.c.opts.Beside {
			cfg.Together = append(cfg.Together, fmt.Sprintf("r%d", i+1))
		}
	}
	return cfg
}

// Start boots a node on its images, or opens its devices where it is up without them.
func (n *Node) Start() error {
	n.read = n.c.without
	o := device.Options{
		Config: n.Config(),
		Log:    n.c.opts.Log.With("node", n.Name),
		Event: func(e device.Event) {
			n.mu.Lock()
			n.events = append(n.events, e)
			n.mu.Unlock()
		},
	}
	if fence := n.c.opts.Fence; fence != nil {
		o.Fence = func(_ context.Context, _ []string, peer string) (int, error) { return fence(n.ID, peer), nil }
	}
	n.watchStorage()
	set := n.set
	if set == nil {
		set = device.NewSet(o.Log)
	}
	dev, err := n.open(set, o, n.Disk, n.Meta)
	if err != nil {
		return err
	}
	for i, v := range n.More {
		o.Name = fmt.Sprintf("r%d", i+1)
		if v.Dev, err = n.open(set, o, v.Disk, v.Meta); err != nil {
			return err
		}
	}
	n.set, n.Dev = set, dev
	for _, m := range n.c.Nodes {
		n.c.connect(n, m)
	}
	return nil
}

// open opens a device, and has it among those that peers in contact can speak with.
func (n *Node) open(set *device.Set, o device.Options, disk, meta *storetest.Image) (*device.Device, error) {
	o.Handle = set.NextHandle()
	dev, err := n.assemble(o, disk, meta)
	if err != nil {
		return nil, err
	}
	dev.Start()
	return dev, set.Add(dev)
}

func (n *Node) assemble(o device.Options, disk, meta *storetest.Image) (*device.Device, error) {
	if disk == nil {
		o.LogExtents, o.LogExtentBytes = n.c.opts.Extents, n.c.opts.ExtentBytes
		return device.New(o)
	}
	if most := n.c.opts.DiskDelay; most > 0 && disk == n.Disk && !n.slowed[disk] {
		n.slow(disk, storetest.OpWrite|storetest.OpPunch, most)
	}
	if n.c.opts.Uneven {
		for _, im := range []*storetest.Image{disk, meta} {
			if !n.slowed[im] && n.c.intN(2) == 0 {
				n.slow(im, storetest.OpRead|storetest.OpWrite|storetest.OpPunch|storetest.OpSync, n.c.spell(50*time.Millisecond))
			}
		}
	}
	bk := device.Backing{Extents: n.c.opts.Extents, ExtentBytes: n.c.opts.ExtentBytes}
	return device.Assemble(o, bk,
		func() (store.Disk, bool, error) {
			size, err := meta.File().Size()
			return disk.DiskOf("disk", o.Size), size == 0 && !n.c.opts.Existing.Has(n.ID), err
		},
		func(mo store.MetaOptions) (*store.Meta, error) { return store.OpenMetaFile(meta.File(), "meta", mo) })
}

// slow has operations on an image take up to most.
func (n *Node) slow(im *storetest.Image, ops storetest.Op, most time.Duration) {
	n.slowed[im] = true
	im.Inject(storetest.Fault{Ops: ops, DelayFunc: func(storetest.Record) time.Duration { return n.c.upTo(most) }})
}

// Stop ends a node in order.
func (n *Node) Stop(ctx context.Context) error {
	n.isBlank()
	var err error
	for _, dev := range n.devs() {
		err = errors.Join(err, dev.Leave(ctx), dev.Close(ctx))
	}
	n.Dev, n.set = nil, nil
	n.c.disconnect(n, "shut down")
	return err
}

// CloseDevices closes the devices of a node in order, which stays in contact with the others.
func (n *Node) CloseDevices(ctx context.Context) error {
	n.isBlank()
	var err error
	for _, dev := range n.devs() {
		err = errors.Join(err, dev.Leave(ctx))
		n.set.Remove(dev)
		err = errors.Join(err, dev.Close(ctx))
	}
	n.Dev = nil
	return err
}

// EmptyDisk gives the node, which is down, a new disk, for each of its devices, and nothing
// that tells of the one before.
func (n *Node) EmptyDisk(size int64) {
	n.Disk, n.Meta, n.blank = storetest.NewImage(size), storetest.NewImage(0), true
	for i := range n.More {
		n.More[i] = &Volume{Disk: storetest.NewImage(size), Meta: storetest.NewImage(0)}
	}
}

// isBlank reports whether the node's disk is as new: it was replaced, and not seen up to
// date since, or has never been one of those that were written to. Two such disks of three
// are a new device, whatever the third holds. Before anything is written none is.
func (n *Node) isBlank() bool {
	if n.Dev != nil && n.Disk != nil {
		n.blank = slices.ContainsFunc(n.devs(), func(d *device.Device) bool {
			st := d.Status()
			if st.Gens.HasPast() {
				n.c.written.Store(true)
			}
			return n.blank && st.Disk != replication.UpToDate || !st.Gens.HasPast()
		})
	}
	return n.blank && n.c.written.Load()
}

// Kill ends a node's process at once: what it had written to its disks is in
// the page cache and stays.
func (n *Node) Kill() { n.crash(storetest.Crash{}) }

// PowerCut ends a node's machine: of what was not synced, a share is lost.
func (n *Node) PowerCut(lost float64) {
	n.crash(storetest.Crash{Seed: n.c.rand(), Lost: lost})
}

func (n *Node) crash(how storetest.Crash) {
	if n.set == nil {
		return
	}
	n.isBlank()                 // it is not to be asked any more
	n.c.dead.Store(n.set, true) // from before its disks are copied
	for _, dev := range n.devs() {
		n.c.dead.Store(dev, true)
	}
	n.PowerOff(how)
	n.Bury()
}

func (c *Cluster) rand() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.Uint64()
}

func (c *Cluster) delay() time.Duration { return c.upTo(c.opts.Delay) }

// upTo is a random time below most.
func (c *Cluster) upTo(most time.Duration) time.Duration {
	if most == 0 {
		return 0
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Duration(c.rng.Int64N(int64(most)))
}

// spell draws how long something lasts: up to most, every other time of any order of
// magnitude. What is wrong may be so for a moment only, in which much has to come together.
func spell(rng *rand.Rand, most time.Duration) time.Duration {
	if rng.IntN(2) == 0 {
		return time.Microsecond + time.Duration(rng.Int64N(int64(most)))
	}
	return time.Duration(float64(most) * math.Exp2(-10*rng.Float64()))
}

// spell is a time up to most, of any order of magnitude.
func (c *Cluster) spell(most time.Duration) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return spell(c.rng, most)
}

func (c *Cluster) intN(n int) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.rng.IntN(n)
}

// ErrUnanswered means that a request was not answered in time.
var ErrUnanswered = errors.New("not answered")

// Do performs one request on a node and waits for its answer.
func (n *Node) Do(ctx context.Context, op block.Op, flags block.Flags, off int64, data []byte, length int64) error {
	if err := n.c.ask(ctx, n.Dev, op, flags, off, data, length); err != nil {
		return err
	}
	if n.Fallen() {
		return ErrUnanswered
	}
	return nil
}

// killed: of a device, or a set of them.
func (c *Cluster) killed(what any) bool {
	_, dead := c.dead.Load(what)
	return dead
}

func (c *Cluster) ask(ctx context.Context, dev *device.Device, op block.Op, flags block.Flags, off int64, data []byte, length int64) error {
	if dev == nil {
		return ErrUnanswered
	}
	w := make(completion, 1)
	r := &block.Request{Op: op, Flags: flags, Off: off, Len: length, Data: data, Done: w}
	if data != nil {
		r.Len = int64(len(data))
	}
	b := &block.Batch{}
	dev.Submit(r, b)
	b.Finish()
	select {
	case <-w:
		if c.killed(dev) {
			return ErrUnanswered
		}
		return r.Err
	case <-ctx.Done():
		return ErrUnanswered
	}
}

type completion chan struct{}

// Complete implements block.Completer.
func (c completion) Complete(*block.Request, *block.Batch) { c <- struct{}{} }

// Describe prints what every node thinks, for failure messages.
func (c *Cluster) Describe() string {
	var sb strings.Builder
	for _, n := range c.Nodes {
		if n.Dev == nil {
			fmt.Fprintf(&sb, "%s down\n", n.Name)
			continue
		}
		for _, dev := range n.devs() {
			describe(&sb, n, dev)
		}
	}
	return sb.String()
}

func describe(sb *strings.Builder, n *Node, dev *device.Device) {
	st := dev.Status()
	fmt.Fprintf(sb, "%s %s %v %v quorum=%v(%s) suspended=%v inflight=%d gen=%v base=%v seen=%v noted=%v primary=%s err=%s\n", n.Name, dev.Name(), st.Role, st.Disk,
		st.Quorum.Quorate, st.Quorum.Why, st.Suspended, st.InFlight, st.Gens.Current, st.Gens.Base, st.Gens.Seen, st.Gens.Noted, st.Primary, st.LastError)
	for _, p := range st.Peers {
		fmt.Fprintf(sb, "    %s connected=%v %v %v %v oos=%d slot=%v refused=%q decision=%v\n", p.Node, p.Connected, p.Role, p.Disk, p.Repl, p.OutOfSync, p.Gen, p.Refused, p.Decision)
	}
	for line := range strings.Lines(dev.Dump()) {
		sb.WriteString("        " + line)
	}
}
