package simtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
)

var (
	seeds  = flag.Int("seeds", 12, "how many histories the torture runs")
	first  = flag.Uint64("seed", 1, "the first seed")
	bare   = flag.Bool("diskless", false, "give every history of three or more nodes one without a disk, not only every fourth")
	disks  = flag.Int("disks", 0, "how many disks there are in every history of the random ones; 0: as each draws")
	uneven = flag.Bool("uneven", false, "have uneven paths in every one of the random histories, not only in half of them")
	wild   = flag.Bool("wild", false, "let faults pile up; without it each is healed before the next")
)

// answers is within how long disks answer what they were asked before a history ended.
const answers = time.Second

// histories runs so many of them, from the first seed on, each in a time of its own.
func histories(t *testing.T, n int, history func(t *testing.T, seed uint64)) {
	for i := range uint64(n) {
		seed := *first + i
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			journal.begin(t, *logs)
			synctest.Test(t, func(t *testing.T) {
				defer time.Sleep(answers)
				history(t, seed)
			})
		})
	}
}

// ledger is what a client was told, block by block.
type ledger struct {
	next   uint64
	acked  map[int64]uint64          // last acknowledged value
	maybe  map[int64]map[uint64]bool // values written since whose outcome is unknown
	writes int

	// What a power cut may leave: what was durable at the last flush, or any
	// value since.
	floating map[int64]map[uint64]bool
	durable  map[int64]uint64
	cuts     int  // power cuts since that flush
	tears    bool // a write that is not acknowledged may be made in part
	log      *slog.Logger
}

func newLedger() *ledger {
	log := testLog()
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &ledger{
		log:   log,
		acked: map[int64]uint64{}, maybe: map[int64]map[uint64]bool{},
		floating: map[int64]map[uint64]bool{}, durable: map[int64]uint64{},
	}
}

const (
	tortureBlocks = 96
	sector        = 512 // what a power cut does not tear
)

func fill(v uint64) []byte {
	p := make([]byte, block.Unit)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], v)
	}
	return p
}

func (l *ledger) write(ctx context.Context, n *Node, blk int64) {
	v := l.begin(blk)
	err := n.Do(ctx, block.Write, 0, blk*block.Unit*7, fill(v), 0)
	l.log.Debug("the client wrote", "node", n.Name, "block", blk, "value", v, "err", err)
	l.end(blk, v, err)
}

// begin draws the value of a write that is about to be made, and end notes how
// it went.
func (l *ledger) begin(blk int64) (v uint64) {
	l.next++
	add(l.floating, blk, l.next)
	return l.next
}

func (l *ledger) end(blk int64, v uint64, err error) {
	if err == nil {
		l.acked[blk] = v
		l.maybe[blk] = nil
		l.writes++
		return
	}
	add(l.maybe, blk, v)
}

// writeMany writes to many blocks at a time.
func (l *ledger) writeMany(ctx context.Context, n *Node, blks []int64) {
	var rs []*block.Request
	for _, blk := range blks {
		l.next++
		add(l.floating, blk, l.next)
		add(l.maybe, blk, l.next)
		rs = append(rs, &block.Request{Op: block.Write, Off: blk * block.Unit * 7, Len: block.Unit, Data: fill(l.next), Slot: l.next})
	}
	dev := n.Dev
	done := n.burst(rs)
	for range rs {
		select {
		case r := <-done:
			if blk := r.Off / block.Unit / 7; r.Err == nil && !n.c.killed(dev) && !n.Fallen() {
				l.acked[blk] = r.Slot
				l.maybe[blk] = nil
				l.writes++
			}
		case <-ctx.Done():
			return
		}
	}
}

func add(m map[int64]map[uint64]bool, blk int64, v uint64) {
	if m[blk] == nil {
		m[blk] = map[uint64]bool{}
	}
	m[blk][v] = true
}

// flush makes all that was acknowledged durable. What a power cut took before
// it stays possible.
func (l *ledger) flush(ctx context.Context, n *Node) {
	if n.Do(ctx, block.Flush, 0, 0, nil, 0) == nil {
		l.flushed()
	}
}

func (l *ledger) flushed() {
	if l.cuts > 0 {
		return
	}
	maps.Copy(l.durable, l.acked)
	clear(l.floating)
	for blk, vs := range l.maybe {
		for v := range vs {
			add(l.floating, blk, v)
		}
	}
}

// slip notes that another primary may be without what was not flushed: under protocols A
// and B that is answered before all have it.
func (l *ledger) slip() {
	for blk, vs := range l.floating {
		for v := range vs {
			add(l.maybe, blk, v)
		}
		add(l.maybe, blk, l.durable[blk])
	}
}

// saw notes that a client has read v from a block: a write that was not answered
// has then been made, and what is read from now on is no older.
func (l *ledger) saw(blk int64, p []byte) {
	v := binary.LittleEndian.Uint64(p)
	if l.maybe[blk][v] && bytes.Equal(p, fill(v)) {
		l.acked[blk] = v
		delete(l.maybe[blk], v)
	}
}

// read reads a block through a node that answers, and holds it to that.
func (l *ledger) read(ctx context.Context, n *Node, blk int64) error {
	p := make([]byte, block.Unit)
	if err := n.Do(ctx, block.Read, 0, blk*block.Unit*7, p, 0); err != nil {
		return nil // there was no answer
	}
	l.log.Debug("the client read", "node", n.Name, "block", blk, "value", binary.LittleEndian.Uint64(p))
	if err := l.holds(blk, p); err != nil {
		return fmt.Errorf("read through %s: %w", n.Name, err)
	}
	l.saw(blk, p)
	return nil
}

func (l *ledger) allows(blk int64, v uint64) bool {
	return v == l.acked[blk] || l.maybe[blk][v] || l.cuts > 0 && (v == l.durable[blk] || l.floating[blk][v])
}

// check compares a disk's content with the ledger.
func (l *ledger) check(read func(off int64, p []byte)) error {
	p := make([]byte, block.Unit)
	for blk := range int64(tortureBlocks) {
		read(blk*block.Unit*7, p)
		if err := l.holds(blk, p); err != nil {
			return err
		}
	}
	return nil
}

// holds compares a block's content with the ledger.
func (l *ledger) holds(blk int64, p []byte) error {
	for at := 0; at < block.Unit; at += sector {
		v := binary.LittleEndian.Uint64(p[at:])
		for i := at; i < at+sector; i += 8 {
			if w := binary.LittleEndian.Uint64(p[i:]); w != v {
				return fmt.Errorf("a sector of block %d is torn: %d and %d", blk, v, w)
			}
		}
		if whole := binary.LittleEndian.Uint64(p); v != whole && l.cuts == 0 && !l.tears {
			return fmt.Errorf("block %d is torn: %d and %d", blk, whole, v)
		}
		if !l.allows(blk, v) {
			return fmt.Errorf("block %d holds %d at %d; acknowledged %d, possible %v; durable %d, %d power cuts since",
				blk, v, at, l.acked[blk], l.maybe[blk], l.durable[blk], l.cuts)
		}
	}
	return nil
}

// disksOf is how many disks a history has, which has drawn as many as said: in one of
// eight three more.
func disksOf(seed uint64, drawn int) int {
	switch {
	case *disks > 0:
		return *disks
	case seed%8 == 7:
		return drawn + 3
	}
	return drawn
}

// unevenOf is whether paths are uneven in a history; see Options.Uneven.
func unevenOf(seed uint64) bool {
	return *uneven || rand.New(rand.NewPCG(seed, 61)).IntN(2) == 0
}

// TestTorture runs random histories of writes, kills, partitions and
// promotions, and heals everything: the disks are then identical, and hold what
// clients were told. A seed is replayed with -run Torture -seed SEED -seeds 1;
// -wild lets faults pile up.
func TestTorture(t *testing.T) {
	histories(t, *seeds, torture)
}

// TestTorturesThatWentWrong are histories that once went wrong in a good part of their
// runs, for which there is no shorter way to the same.
func TestTorturesThatWentWrong(t *testing.T) {
	for what, seed := range map[string]uint64{
		"bad blocks stay where no primary has been in contact with all": 62002169,
	} {
		for range 4 {
			t.Run(what, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					defer time.Sleep(answers)
					torture(t, seed)
				})
			})
		}
	}
}

func torture(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 7))
	nodes := disksOf(seed, 2+rng.IntN(3))
	o := Options{
		Nodes: nodes, Size: 4 * mib, Quorum: majority(), Delay: time.Duration(1+rng.IntN(3)) * time.Millisecond,
		Seed: seed, Uneven: unevenOf(seed), Extents: 8, ExtentBytes: 64 << 10, Log: testLog(),
	}
	if rng.IntN(4) == 0 {
		o.Protocol = replication.ProtocolB
	}
	if seed%2 == 0 {
		// Some changes are done at once, and some take many times as long as a
		// link's reader is kept by one.
		o.DiskDelay = time.Duration(rng.IntN(8)) * time.Millisecond
	}
	if (seed%4 == 1 || *bare) && nodes > 2 {
		o.Diskless = replication.Of(int(seed/4) % nodes)
	}
	c := New(o)
	if err := c.StartAll(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		for _, n := range c.Nodes {
			n.Kill()
		}
	}()
	h := &history{t: t, c: c, rng: rng, l: newLedger(), power: seed%3 == 0, rots: rotting(seed)}
	h.owner = func(int64) *ledger { return h.l }
	h.changes = seed%4 == 3 && o.Protocol != replication.ProtocolB && h.rots == nil
	if h.changes {
		h.synced() // what never met is two devices
	}
	if *wild {
		for range 12 {
			h.rot()
			h.act()
			if h.changes {
				h.change()
			}
		}
		h.heal()
		return
	}
	for range 5 {
		h.rot()
		h.write()
		h.fault()
		h.write()
		h.write()
		h.heal()
	}
}

// fault does one thing to the healthy cluster.
func (h *history) fault() {
	n := h.node()
	switch h.rng.IntN(7) {
	case 0, 1:
		h.kill(n)
	case 2:
		h.c.Isolate(n.ID)
	case 3:
		h.leave(n)
	case 4:
		h.lastStanding()
	case 5:
		if h.rots != nil && len(h.disks()) == 2 {
			return // what is bad on one and gone with the other is lost
		}
		h.replace()
	default:
		if m := h.node(); m != n {
			h.c.Cut(n.ID, m.ID)
		}
	}
}

type history struct {
	t           *testing.T
	c           *Cluster
	rng         *rand.Rand
	l           *ledger
	grown, step int64 // the largest size that was asked for, and by how much more it grows
	// power: kills are power cuts; a third of the histories.
	power bool
	// rots: blocks go bad, in half of the histories; nil: in the others.
	rots *rand.Rand
	// changes: disks are replaced, and nodes lose and get a disk of the device. Not where
	// an answer speaks of one disk, or where one good copy is all that there may be.
	changes bool
	lost    int // bad blocks that nobody had a good copy of
	// early: under protocols A and B, when a client flushes; nil: under C.
	early *rand.Rand
	// owner is whose account a block is on.
	owner func(blk int64) *ledger
}

// kill ends a node, its power with it in histories of power cuts.
func (h *history) kill(n *Node) {
	if n.Dev == nil {
		return
	}
	if !h.power {
		if *wild && h.c.opts.Protocol == replication.ProtocolB {
			h.l.cuts++ // what was only received is as good as in a cache
		}
		n.Kill()
		return
	}
	if *wild {
		h.l.cuts++ // one at a time takes nothing that was acknowledged
	}
	n.PowerCut(float64(h.rng.IntN(5)) / 4)
}

// leave ends a node in order, or its devices alone.
func (h *history) leave(n *Node) {
	if n.Dev == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	n.leave(ctx, h.rng)
}

func (n *Node) leave(ctx context.Context, rng *rand.Rand) {
	end := n.Stop
	if rng.IntN(3) == 0 {
		end = n.CloseDevices
	}
	_ = end(ctx) // what it could not finish is compared when it is back
}

// lastStanding has all but one leave in order. That one goes on, alone, and may
// then be lost, and those that left come back without it.
func (h *history) lastStanding() {
	order := h.rng.Perm(len(h.c.Nodes))
	for _, i := range order[1:] {
		h.leave(h.c.Nodes[i])
		h.write()
	}
	last := h.c.Nodes[order[0]]
	if h.rng.IntN(2) == 0 {
		last.Kill()
		h.start(last)
		h.write()
	}
	if h.rng.IntN(2) == 0 {
		last.Kill() // with its power, what was not flushed would be gone
		for _, i := range order[1:] {
			h.start(h.c.Nodes[i])
		}
		time.Sleep(time.Second)
		h.write()
	}
}

// replace has one node miss what the others write, and another lose its disk and
// get a new one; the two meet before those come back that have what was written.
func (h *history) replace() {
	order := h.rng.Perm(len(h.c.Nodes))
	stale, replaced := h.c.Nodes[order[0]], h.c.Nodes[order[1]]
	if stale.Disk == nil || replaced.Disk == nil || len(h.disks()) < 3 && len(h.disks()) < len(h.c.Nodes) {
		return // who is replaced may be the only one that has what is written meanwhile
	}
	if slices.ContainsFunc(h.disks(), (*Node).isBlank) {
		return // two new disks may be a majority, which is another device
	}
	h.c.Isolate(stale.ID)
	h.write()
	if !h.spared(stale, replaced) {
		return // what is lost now, no complete disk has
	}
	if h.c.opts.Protocol == replication.ProtocolB {
		time.Sleep(time.Second) // what was only received may be on no disk but the one that is lost
	}
	for _, i := range order[1:] {
		h.c.Nodes[i].Kill()
	}
	replaced.EmptyDisk(replaced.c.opts.Size)
	h.start(replaced)
	h.c.Rejoin(stale.ID)
	time.Sleep(time.Second)
	h.write()
}

// spared reports whether another disk than those of two nodes is up to date.
func (h *history) spared(stale, replaced *Node) bool {
	for _, n := range h.disks() {
		if n != stale && n != replaced && n.Dev != nil && n.Dev.Status().Disk == replication.UpToDate {
			return true
		}
	}
	return len(h.c.Nodes) == 2
}

// disks is the nodes that have one.
func (h *history) disks() (ns []*Node) {
	for _, n := range h.c.Nodes {
		if n.Disk != nil {
			ns = append(ns, n)
		}
	}
	return ns
}

func (h *history) node() *Node { return h.c.Nodes[h.rng.IntN(len(h.c.Nodes))] }

// change replaces a disk, or changes who has one.
func (h *history) change() {
	n := h.node()
	switch h.rng.IntN(8) {
	case 0, 1:
		if n.Disk != nil && h.c.heldBeside(n, -1) {
			n.Kill()
			n.EmptyDisk(n.c.opts.Size)
		}
	case 2:
		h.c.regroup(n, h.rng, h.kill, h.begin, func(thirds int) { h.wait(100 * thirds) })
	}
}

// act does one thing to the cluster, and writes through whoever lets it.
func (h *history) act() {
	n := h.node()
	switch h.rng.IntN(10) {
	case 0:
		h.kill(n)
	case 8, 9:
		h.leave(n)
	case 1:
		if h.up() > 1 && len(h.c.Nodes) > 2 {
			h.kill(n)
		}
	case 2, 3:
		h.begin(n)
	case 4:
		h.c.Isolate(n.ID)
	case 5:
		h.c.Rejoin(n.ID)
	case 6:
		if m := h.node(); m != n {
			h.c.Cut(n.ID, m.ID)
		}
	case 7:
		if m := h.node(); m != n {
			h.c.Heal(n.ID, m.ID)
		}
	}
	h.write()
}

func (h *history) up() (n int) {
	for _, x := range h.c.Nodes {
		if x.Dev != nil {
			n++
		}
	}
	return n
}

// write promotes where there is no usable primary, then writes for a while,
// some of it while the next thing happens.
func (h *history) write() {
	var p *Node
	for _, n := range h.c.Nodes {
		if n.Dev != nil && !n.Fallen() {
			if st := n.Dev.Status(); st.Role == replication.Primary && st.Quorum.Quorate {
				p = n
			}
		}
	}
	if p == nil {
		n := h.node()
		if n.Dev == nil || n.Fallen() {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
		defer cancel()
		if err := n.Dev.Promote(ctx, false); err != nil {
			return
		}
		p = n
		h.read(p)
		if h.rng.IntN(4) == 0 {
			return // it is primary, and writes nothing
		}
	}
	for range 1 + h.rng.IntN(12) {
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		h.l.write(ctx, p, int64(h.rng.IntN(tortureBlocks)))
		cancel()
	}
	if h.rng.IntN(2) == 0 {
		var many []int64
		for _, blk := range h.rng.Perm(tortureBlocks)[:1+h.rng.IntN(40)] {
			many = append(many, int64(blk))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(h.rng.IntN(500))*time.Millisecond)
		h.l.writeMany(ctx, p, many)
		cancel()
	}
	if h.rng.IntN(3) == 0 {
		// One whose outcome the next step decides.
		ctx, cancel := context.WithTimeout(context.Background(), time.Microsecond)
		h.l.write(ctx, p, int64(h.rng.IntN(tortureBlocks)))
		cancel()
	}
	if h.rng.IntN(3) == 0 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		h.l.flush(ctx, p)
		cancel()
	}
	h.read(p)
	if h.rng.IntN(4) == 0 {
		time.Sleep(spell(h.rng, 4*time.Second))
	}
}

// read reads what is not certain, as a client may.
func (h *history) read(p *Node) {
	for blk := range int64(tortureBlocks) {
		if len(h.l.maybe[blk]) == 0 {
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), 500*time.Millisecond)
		err := h.l.read(ctx, p, blk)
		cancel()
		if err != nil {
			h.t.Fatalf("%v\n%s", err, h.c.Describe())
		}
	}
}

// heal brings everything back and checks the end.
func (h *history) heal() {
	h.c.giveBack(h.kill)
	for _, n := range h.c.Nodes {
		if n.Dev == nil {
			if err := n.Start(); err != nil {
				h.t.Fatal(err)
			}
		}
	}
	for i := range h.c.Nodes {
		for j := range i {
			h.c.Heal(i, j)
		}
	}
	if h.rots != nil {
		h.attach()
	}
	h.rewrite()
	h.synced()
	h.settle()
	h.synced() // what was in flight may have been what kept a disk out of sync
	h.scrub()
	h.compare()
	if err := h.l.check(func(off int64, p []byte) { h.disks()[0].Disk.Peek(p, off) }); err != nil {
		h.t.Fatalf("%v\n%s", err, h.c.Describe())
	}
}

// synced waits until every disk is in sync.
func (h *history) synced() {
	for _, n := range h.c.Nodes {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
		err := n.Dev.WaitFor(ctx, "synced")
		cancel()
		if err != nil {
			h.t.Fatalf("%s does not get in sync: %v\n%s", n.Name, errors.Unwrap(err), h.c.Describe())
		}
	}
}

// settle waits until nothing is in flight: what was suspended goes on now.
func (h *history) settle() {
	for range 60 {
		time.Sleep(time.Second)
		busy := false
		for _, n := range h.c.Nodes {
			st := n.Dev.Status()
			busy = busy || st.InFlight > 0 || st.Parked > 0
		}
		if !busy {
			return
		}
	}
	h.t.Fatalf("something stays in flight\n%s", h.c.Describe())
}

// compare fails if two disks differ, and says what each holds.
func (h *history) compare() {
	h.t.Helper()
	for blk := range int64(tortureBlocks) {
		p := make([]byte, 8)
		var held []uint64
		same := true
		for _, n := range h.disks() {
			n.Disk.Peek(p, blk*block.Unit*7)
			held = append(held, binary.LittleEndian.Uint64(p))
			same = same && held[0] == held[len(held)-1]
		}
		if !same {
			h.t.Errorf("block %d (at %d): the disks hold %v; acknowledged %d, possible %v", blk, blk*block.Unit*7, held, h.l.acked[blk], h.l.maybe[blk])
		}
	}
	if h.t.Failed() {
		h.t.Fatal(h.c.Describe())
	}
	if h.grown == 0 {
		h.c.mustEqual(h.t)
	}
}
