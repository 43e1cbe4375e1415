// Package device is one replicated block device on one node: the write path
// with its interval lock and completion, reads, flushes, the handshake with
// each peer, generations, promotion, and resync.
//
// A device has one mutex, which guards all of its state and is never held over
// I/O. Hot frames and requests are handled inline on the goroutine that read
// them; everything that must wait (metadata, handshakes, votes) is done in
// order by the device's worker. Changes of the disk are carried out by whoever
// finishes the batch that they came with, and by goroutines of the device's own
// (crew) while the disk is slow. Decisions are made by package replication from
// facts; this package gathers the facts and carries the decisions out.
//
// Lock order: what a post is told with (block.Post), then Device.mu, then the
// crew's, a session's queue, the activity log, a bitmap.
package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/wire"
)

// Session is the contact with one peer, while there is one. Frames of a link
// arrive in the order in which they were sent; nothing is lost while the
// session lasts.
type Session interface {
	// Send queues one frame on the link of its type, and never blocks. buf, if
	// not nil, owns payload and is retained until the peer has the frame;
	// otherwise payload is copied.
	Send(h *wire.Header, payload []byte, buf *block.Buf, b *block.Batch)
	PeerID() int
}

// Node is a member of a device.
type Node struct {
	ID       int
	Name     string
	Diskless bool
}

// NoQuorumPolicy is what becomes of I/O without quorum.
type NoQuorumPolicy uint8

// The policies.
const (
	SuspendIO NoQuorumPolicy = iota // I/O waits for quorum
	FailIO                          // I/O fails
)

// IOErrorPolicy is what becomes of a disk that fails.
type IOErrorPolicy uint8

// The policies.
const (
	Detach IOErrorPolicy = iota // the device goes on with the peers' disks
	PassOn                      // the disk stays, and is mended from a peer
)

// Config is what a device is configured to be. All but Name, Handle, Size, Self,
// Nodes, FlushEvery and PromoteWait can change while it runs.
type Config struct {
	Name        string
	Handle      uint32 // how peers address it; unique in this process, never 0
	Size        int64
	Self        int
	Nodes       []Node
	Protocol    replication.Protocol
	Quorum      replication.QuorumPolicy
	OnNoQuorum  NoQuorumPolicy
	AutoPromote bool
	AfterSplit  replication.SplitPolicy
	ResyncRate  int64  // bytes per second; 0: as fast as the application allows
	Fingerprint uint64 // of what must agree between nodes
	// Group is the consistency group, "" for none, and Together the names of all
	// devices in it.
	Group    string
	Together []string
	// FlushEvery bounds how much an abrupt loss of a peer's cache costs in
	// resync; 0 means two seconds.
	FlushEvery time.Duration
	// OnIOError is what becomes of a disk that fails: that cannot write, or flush,
	// or take back a block that it could not read.
	OnIOError IOErrorPolicy
	// DiskTimeout is how long an operation of the disk may take before the disk
	// counts as failed; 0: as long as it likes.
	DiskTimeout time.Duration
	// FencePeer is the fence-peer handler, a program and its arguments; nil
	// where there is none.
	FencePeer []string
	// PromoteWait is how long an opening client waits for promotion; 0 means
	// ten seconds.
	PromoteWait time.Duration
}

// disks are the nodes that have a disk of the device.
func (c *Config) disks() (ids replication.NodeSet) {
	for _, n := range c.Nodes {
		if !n.Diskless {
			ids = ids.With(n.ID)
		}
	}
	return ids
}

// Event tells of a change that people and handlers care about.
type Event struct {
	Type string // role, disk, replication, quorum, resync, split-brain, io-error, generation
	Peer string
	Text string
	Data map[string]any
}

// Options are what a device needs of its surroundings.
type Options struct {
	Config
	Disk store.Disk  // nil: diskless
	Meta *store.Meta // nil exactly when Disk is
	// LogExtents and LogExtentBytes size the activity log of the nodes with a
	// disk; 0 for the defaults.
	LogExtents     int
	LogExtentBytes int64
	Log            *slog.Logger
	// Event is called with the device's mutex held: it must not block or call
	// back.
	Event func(Event)
	// Fence runs a fence-peer handler for a peer and returns its exit status;
	// nil where nothing can be run.
	Fence func(ctx context.Context, handler []string, peer string) (status int, err error)
	// Changed is called, under the same rule, when what Status shows changed.
	Changed func()
}

// Device is a replicated block device on this node.
type Device struct {
	opts Options
	log  *slog.Logger
	work queue

	ctx    context.Context // ends with the device
	cancel context.CancelFunc
	done   sync.WaitGroup

	// readable is the disk from which reads may be answered without asking
	// further, nil where that is not so. It mirrors state under mu for the hot
	// path.
	readable         atomic.Pointer[diskRef]
	leases           atomic.Pointer[leaseSet] // whose word quorum rests on; nil: to be chosen
	reads, readBytes atomic.Uint64
	buffers          *block.Pool // for reads on behalf of others

	mu    sync.Mutex
	cfg   Config
	disk  store.Disk // nil: diskless, or detached
	meta  *store.Meta
	role  replication.Role
	dstat replication.DiskState
	gens  replication.Gens
	taken *replication.Gens           // what the metadata of a disk that is being taken in say; see Create
	peers [replication.MaxNodes]*peer // nil: not a member
	disks replication.NodeSet         // members with a disk, self included

	stream       uint64 // of this node's stint as primary, or of the one it follows
	leader       int    // whose stream that is or was
	received     uint64 // last change of that stream that arrived here
	floor        uint64 // every change of that stream up to here is everywhere
	shift, epoch uint64 // epochs of the activity log: see newEpochLocked
	began        int64  // when this node last became primary, ns since 1970
	crashed      bool   // was primary when it stopped uncleanly
	origin       uint64 // of the disk's data; replication.NoOrigin: not known
	begins       uint64 // without a disk, as primary: see beginsLocked
	votes        replication.Votes
	votesNews    bool                  // not all of votes and origin is durable
	votesKept    replication.Votes     // what of votes this disk's metadata has, or had when it was attached last
	newcomer     bool                  // see replication.Census
	former       []replication.NodeSet // see regroup.go, as the next two
	met          bool
	moved        replication.Gen
	heralding    *heralding // see Create
	member       bool       // has had the current data where there was quorum
	leaving      bool       // is about to stop, and asks to give its vote up
	detaching    bool       // likewise for its disk
	claimed      uint32     // the count at which this node asked last for its vote back
	returning    bool       // asks for its vote back
	poll         poll
	live         bool // the disk has been up to date while this process held it
	best         bool // every disk was in reach, and no complete one had newer data
	// After an unclean stop: the stream that was followed, and the marks per
	// peer as they were before those of the activity log were added.
	logStream uint64
	beforeLog [replication.MaxNodes][]block.Extent

	ranges     ranges
	window     window
	recent     recent
	free       []*op
	ready      []*op // whose range has become free
	running    bool  // runReadyLocked is at work on it
	refreshing bool  // refreshLocked is at work
	fitting    bool  // room is being made on a disk that is smaller than the device

	gate       gate
	parked     []*block.Request // admitted when the gate opens
	hold       holdReason       // why finished changes are not answered yet
	held       []*op
	stranded   []*op           // changes that are sent to nobody yet, see strandsLocked
	drain      uint64          // the last of the changes that these wait for
	applied    uint64          // changes that reached the disk
	synced     uint64          // of those, how many had when it was last synced for the sake of the next primary
	genStint   bool            // this node has begun a generation since it became primary
	served     replication.Gen // in which the disks were when it did; where lags, what it serves
	lags       bool            // its own disk was attached since, and has not yet what it serves
	needGen    bool            // the next change must start a new generation
	genBusy    bool            // a new generation is being made durable
	genAgain   bool            // another is wanted after it
	genNo      uint64
	genOld     replication.Gen // what it follows
	genNew     replication.Gen // what is being announced
	genAway    replication.NodeSet
	committing bool            // all have it, and are noting that
	genHeld    bool            // the primary itself is noting it
	genOwed    bool            // one was announced and given up
	genNoted   replication.Gen // as a replica: what the primary announced last, and the number of that change
	genNotedNo uint64
	genNotedAt time.Time // that was
	announcer  int       // of that
	genBy      *peer     // the primary, while it counts on this disk for that; nil: it does not, or no longer
	genStream  uint64    // of its stint
	floorSent  uint64
	genWait    replication.NodeSet // nodes that have not confirmed it
	genHas     replication.NodeSet // nodes that have noted it in the contact of now
	receives   replication.NodeSet // nodes that are sent changes
	rolls      uint32              // how often that, or the primary's own disk, has changed
	roll       roll                // as a replica: the last that the primary told
	account    *store.ActivityLog  // of a primary without a disk; see activityLocked

	heals  heals
	relays int // reads that other peers answer for a peer
	flush  flushState
	remote map[uint64]*remoteRead
	nextID uint64

	quorum       replication.Verdict
	tied         bool // and it rests on tiebreakers
	primary      int  // the node that is primary, as far as known; -1: none
	change       changeState
	opens        int
	tagged       []*op               // source reads that wait for the primary's writes
	unmade       map[uint64]bool     // the primary's changes that this disk has failed and stayed
	given        map[uint64]bool     // those that the primary gave up, and that may be on their way here
	pulls        bool                // some piece of a resync may be asked for
	eras         uint64              // resyncs served
	stintEnds    context.CancelFunc  // has those that wait for the activity log look again; nil: nobody does
	pressed      uint64              // epoch that the activity log waits for to become stable; 0: none
	discard      replication.NodeSet // peers against which our changes are to be discarded
	conceded     replication.NodeSet // of those, the ones for which a policy decided that
	closing      bool
	stopped      bool         // see close.go
	autoPromoted bool         // the last client's leaving demotes
	att          *attachment  // of disk
	departing    bool         // something of the last disk is still under way
	metaLimit    *limiter     // of meta's file; nil where there is none
	dropped      *leaving     // a disk that has failed, until its metadata is given up, too
	frozen       int          // changes wait for as many reasons
	busy         bool         // changes come in, from the application or the primary
	changes      uint64       // that had come at the last tick
	size         atomic.Int64 // cfg.Size, for those who check requests without the mutex
	room         int64        // how much disk and metadata cover; at least cfg.Size
	admin        string       // an administrator's change under way
	planned      planState
	source       *source // where a disk comes from; nil: this node has none

	crew    crew
	strays  int // see strayLocked
	al      alQueue
	bulk    bulkQueue
	group   atomic.Pointer[Group] // nil: none
	watch   chan struct{}         // closed and replaced whenever state changes
	rooms   chan struct{}         // holds a token while room is made
	since   map[string]time.Time
	stats   Stats
	lastErr string
	revs    uint64
}

// diskRef makes an atomic pointer of an interface.
type diskRef struct{ disk store.Disk }

// Stats are counters since the device was opened.
type Stats struct {
	Reads, Writes, Flushes, Trims uint64
	ReadBytes, WriteBytes         uint64
	RemoteReads, PeerWrites       uint64
	ResyncBytes, ResyncZeroBytes  uint64
	Generations                   uint64
	// What the disk could not read: how often, and ranges that were healed, their
	// bytes, and ranges that could not be.
	ReadErrors, Mended, MendedBytes, Unmended uint64
}

// defaults of Config.
const (
	defaultFlushEvery  = 2 * time.Second
	defaultPromoteWait = 10 * time.Second
)

// New makes a device of an opened disk and its metadata. Run must follow.
func New(o Options) (*Device, error) {
	if (o.Disk == nil) != (o.Meta == nil) {
		return nil, errors.New("device: a disk and its metadata come together")
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Event == nil {
		o.Event = func(Event) {}
	}
	if o.Changed == nil {
		o.Changed = func() {}
	}
	if o.FlushEvery == 0 {
		o.FlushEvery = defaultFlushEvery
	}
	if o.Disk != nil {
		o.Disk = limitDisk(o.Disk, o.DiskTimeout)
	}
	if o.PromoteWait == 0 {
		o.PromoteWait = defaultPromoteWait
	}
	d := &Device{
		opts: o, cfg: o.Config, log: o.Log.With("device", o.Name),
		disk: o.Disk, meta: o.Meta, primary: -1,
		remote: map[uint64]*remoteRead{}, buffers: block.NewPool(wire.MaxPayload), watch: make(chan struct{}), rooms: make(chan struct{}, 1), since: map[string]time.Time{},
	}
	d.work.init()
	d.al.init()
	d.bulk.init()
	d.flush.init()
	d.disks = o.disks()
	for _, n := range o.Nodes {
		if n.ID != o.Self {
			p := &peer{d: d, id: n.ID, name: n.Name, diskless: n.Diskless, since: time.Now()}
			p.acks.p = p
			d.peers[n.ID] = p
		}
	}
	if o.Disk != nil {
		d.att = newAttachment()
	}
	d.load()
	d.size.Store(d.cfg.Size)
	b := &block.Batch{}
	d.mu.Lock()
	d.evaluateLocked(b)
	d.mu.Unlock()
	b.Finish()
	return d, nil
}

// load takes over what the metadata says.
func (d *Device) load() {
	if d.meta == nil {
		d.dstat = replication.Diskless
		return
	}
	sb := d.meta.Superblock()
	d.gens = gensOf(&sb)
	if len(sb.Ext) >= extLen {
		d.began = int64(binary.LittleEndian.Uint64(sb.Ext[extBegan:]))
	}
	d.origin, d.votes = originOf(&sb), votesOf(&sb)
	d.votesKept = d.votes
	d.recallLocked(&sb)
	d.room = sb.Size
	d.cfg.Size = max(d.cfg.Size, grownTo(&sb))
	d.crashed = sb.Flags&(store.CrashedPrimary|store.PrimaryInd) != 0
	d.dstat = diskStateOf(&sb)
	d.behindLocked("it stopped so")
}

// grownTo is the size that the device had at last, as far as its metadata knows.
func grownTo(sb *store.Superblock) int64 {
	if len(sb.Ext) < extLen {
		return 0
	}
	return min(int64(binary.LittleEndian.Uint64(sb.Ext[extSize:])), sb.Size)
}

// diskStateOf is what a disk's data is worth by its own word.
func diskStateOf(sb *store.Superblock) replication.DiskState {
	switch {
	case sb.Flags&store.Consistent == 0:
		return replication.Inconsistent
	case sb.Flags&store.WasUpToDate == 0:
		return replication.Outdated
	}
	return replication.Consistent
}

// Name is the device's name.
func (d *Device) Name() string { return d.opts.Name }

// Handle is how peers address the device.
func (d *Device) Handle() uint32 { return d.opts.Handle }

// Size is the device's size in bytes.
func (d *Device) Size() int64 { return d.size.Load() }

// Start starts the device's goroutines; Close ends them.
func (d *Device) Start() {
	ctx, cancel := context.WithCancel(context.Background())
	d.ctx, d.cancel = ctx, cancel
	d.done.Go(func() { d.work.run(ctx) })
	d.done.Go(func() { d.al.run(ctx, d) })
	d.done.Go(func() { d.flush.run(ctx, d) })
	d.done.Go(func() { d.bulk.run(ctx, d) })
	d.done.Go(func() { d.ticker(ctx) })
}

// ErrOpen means that clients hold the device open.
var ErrOpen = errors.New("the device is open")

// touchLocked wakes everybody who waits for a state of the device.
func (d *Device) touchLocked() {
	close(d.watch)
	d.watch = make(chan struct{})
	d.revs++
	d.opts.Changed()
}

// wait calls cond with the mutex held until it is true or ctx ends.
func (d *Device) wait(ctx context.Context, cond func() bool) error {
	for {
		d.mu.Lock()
		ok := cond()
		w := d.watch
		d.mu.Unlock()
		if ok {
			return nil
		}
		select {
		case <-w:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (d *Device) eventLocked(typ string, p *peer, format string, args ...any) {
	e := Event{Type: typ, Text: fmt.Sprintf(format, args...)}
	l := d.log
	if p != nil {
		e.Peer = p.name
		l = l.With("peer", p.name)
	}
	l.Info(e.Text, "event", typ)
	d.opts.Event(e)
}

// randomID is a number that is never 0.
func randomID() uint64 {
	for {
		if id := rand.Uint64(); id != 0 {
			return id
		}
	}
}

// queue runs functions in order on one goroutine. It is unbounded; what puts
// into it is bounded by peers and administrators, not by I/O.
type queue struct {
	mu     sync.Mutex
	fns    []func()
	wake   chan struct{}
	closed bool
}

func (q *queue) init() { q.wake = make(chan struct{}, 1) }

// do queues f. After close it is a no-op.
func (q *queue) do(f func()) {
	q.mu.Lock()
	if !q.closed {
		q.fns = append(q.fns, f)
	}
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

func (q *queue) close() {
	q.mu.Lock()
	q.closed = true
	q.fns = nil
	q.mu.Unlock()
}

func (q *queue) run(ctx context.Context) {
	for {
		q.mu.Lock()
		fns := q.fns
		q.fns = nil
		q.mu.Unlock()
		for _, f := range fns {
			if ctx.Err() != nil {
				return
			}
			f()
		}
		if len(fns) > 0 {
			continue
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
	}
}

// ticker drives what happens by the clock: background flushes, the pace of a
// resync, votes that never came.
func (d *Device) ticker(ctx context.Context) {
	t := time.NewTicker(100 * time.Millisecond)
	defer t.Stop()
	last := time.Now()
	retold := last
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			b := &block.Batch{}
			d.mu.Lock()
			if now.Sub(last) >= d.opts.FlushEvery {
				last = now
				d.backgroundFlushLocked(b)
			}
			d.tickDeadLocked()
			d.tickFailsLocked(now, b)
			d.tickSyncLocked(now, b)
			d.tickVerifyLocked(now, b)
			d.tickChangeLocked(now)
			d.tickHealsLocked(now, b)
			d.tickFencesLocked(now, b)
			if d.hold&holdLease != 0 {
				d.evaluateLocked(b)
			}
			d.tellFloorLocked(b)
			if now.Sub(retold) >= retell {
				retold = now
				d.retellLocked(b)
			}
			d.mu.Unlock()
			b.Finish()
		}
	}
}
