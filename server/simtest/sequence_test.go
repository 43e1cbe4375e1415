package simtest

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/store/storetest"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestSequence plays short histories one step after the other, most of them with
// time to settle between: what a storm comes to once in thousands of histories is
// likely here. At the end everything is mended, in any order, and all disks hold
// what was acknowledged, and the same. A history that goes wrong is made as short
// as it can be, and told step by step. A seed is replayed with -run Sequence -seed
// SEED -seeds 1.
func TestSequence(t *testing.T) {
	for i := range uint64(*seeds) * 4 {
		seed := *first + i
		o, list := sequence(seed)
		journal.open()
		err := play(t, o, list)
		if err == nil {
			continue
		}
		if *logs != "" {
			journal.keep(t, *logs, fmt.Sprintf("%s.%d", t.Name(), seed))
		}
		for shorter := true; shorter; {
			shorter = false
			for at := range list {
				less := slices.Delete(slices.Clone(list), at, at+1)
				if play(t, o, less) != nil {
					list, shorter = less, true
					break
				}
			}
		}
		again := play(t, o, list)
		var b strings.Builder
		for _, s := range list {
			fmt.Fprintf(&b, "\n  %v", s)
		}
		t.Errorf("seed %d: %v\nas short as it can be, of %d nodes, %v without a disk:%s\n%v", seed, err, o.Nodes, o.Diskless, b.String(), again)
	}
}

// TestSequencesThatWentWrong are some that TestSequence has found, and which are
// therefore few steps long.
func TestSequencesThatWentWrong(t *testing.T) {
	for name, x := range map[string]struct {
		disks, without int
		steps          string
		passOn         bool
	}{
		"both disks fail a write, which comes to one of them only, and a piece of a resync undoes it there": {
			2, 2, "fail 0 0 300ms;fail 1 0 6s;promote 1 0 5ms;write 1 1 0s;detach 2 0 300ms", false,
		},
		"the last disk fails each write, at once and again, and no disk is taken for current afterwards": {
			2, 0, "promote 0 0 6s;detach 1 0 300ms;off 0 0 300ms;fail 1 0 300ms;promote 0 0 5ms;fail 0 0 300ms;write 0 0 5ms", false,
		},
		"the source of a resync fails a write, which its target has made, and undoes it there": {
			2, 2, "write 3 0 300ms;promote 3 0 300ms;fail 0 0 5ms;invalidate 1 0 5ms;write 1 2 6s", false,
		},
		"a generation comes into force that the one disk in it could not note": {
			2, 2, "leave 0 0 0s;promote 1 0 300ms;rot 1 0 300ms;write 0 1 5ms;start 0 0 300ms;power 2 1 5ms", false,
		},
		"a replica has noted a generation, and does not hear from who made it that it is in force": {
			2, 2, "promote 3 0 300ms;write 3 2 5ms;power 1 1 300ms;promote 0 0 300ms;detach 0 0 5ms;rot 1 0 6s", false,
		},
		"a disk is replaced after the device has grown, of which the configuration knows nothing": {
			3, 0, "grow 0 2 300ms;promote 0 0 0s;replace 2 1 5ms", false,
		},
		"a primary counts on a witness that is told only then that it is one": {
			2, 1, "promote 1 0 0s;detach 1 0 0s;requorum 2 0 6s;write 1 2 6s;requorum 0 2 300ms", false,
		},
		"metadata hangs, and only who makes room has waited for it": {
			3, 1, "requorum 0 0 0s;promote 3 1 6s;hangmeta 2 2 300ms;grow 2 0 0s;detach 1 3 5ms", false,
		},
		"a primary takes its disk back, which bears an older generation than the device, as a new one does": {
			5, 0, "promote 2 3 300ms;detach 2 0 0s;write 3 1 300ms;attach 2 2 300ms;replace 3 3 6s", false,
		},
		"both disks fail a write and stay, each for the other's sake, and both are mixtures": {
			2, 2, "fail 1 0 6s;fail 0 0 300ms;promote 1 0 300ms;write 1 2 300ms", true,
		},
	} {
		var list []step
		for l := range strings.SplitSeq(x.steps, ";") {
			f := strings.Fields(l)
			s := step{do: f[0]}
			s.n, _ = strconv.Atoi(f[1])
			s.m, _ = strconv.Atoi(f[2])
			s.rest, _ = time.ParseDuration(f[3])
			list = append(list, s)
		}
		for seed := range uint64(10) {
			o := devices(seed, x.disks, x.without)
			o.PassOn = x.passOn
			if err := play(t, o, list); err != nil {
				t.Errorf("%s: %v", name, err)
				break
			}
		}
	}
}

// step is one thing that happens, and how long nothing else does then.
type step struct {
	do   string
	n, m int
	rest time.Duration
}

func (s step) String() string { return fmt.Sprintf("%s %d %d, then %v", s.do, s.n, s.m, s.rest) }

// Each thing as often as it is likely; the rarer ones are in half of the histories.
var (
	things = strings.Fields("kill kill start start start cut heal isolate rejoin promote promote promote promote demote " +
		"write write write write write detach detach attach leave leave invalidate fail rot off power")
	rarer = slices.Concat(things, strings.Fields("burst burst burst read read stall mute flow hang hangmeta lift lose learn verify grow"))
	// Of these there are one or two in a quarter of the histories.
	works = strings.Fields("replace replace replace requorum requorum onerror resync pause regroup regroup reroll reroll survive survive open open close")
)

func sequence(seed uint64) (o Options, list []step) {
	rng := rand.New(rand.NewPCG(seed, 47))
	n := 2 + rng.IntN(3)
	if rng.IntN(4) == 0 {
		n += 3
	}
	if *disks > 0 {
		n = *disks
	}
	o = devices(seed, n, rng.IntN(3))
	o.FailIO, o.PassOn = rng.IntN(4) == 0, rng.IntN(4) == 0
	if rng.IntN(5) == 0 {
		o.Quorum = replication.QuorumPolicy{Kind: replication.QuorumAll}
	}
	if rng.IntN(8) == 0 {
		o.Protocol = []replication.Protocol{replication.ProtocolA, replication.ProtocolB}[rng.IntN(2)]
	}
	some := things
	if rng.IntN(2) == 0 {
		some = rarer
	}
	rests := []time.Duration{0, 5 * time.Millisecond, 300 * time.Millisecond, 300 * time.Millisecond, 6 * time.Second}
	for range 4 + rng.IntN(16) {
		list = append(list, step{some[rng.IntN(len(some))], rng.IntN(o.Nodes), rng.IntN(o.Nodes), rests[rng.IntN(len(rests))]})
	}
	if rng.IntN(4) == 0 {
		for range 1 + rng.IntN(2) {
			list[rng.IntN(len(list))].do = works[rng.IntN(len(works))]
		}
	}
	o.AutoPromote = slices.ContainsFunc(list, func(s step) bool { return s.do == "open" })
	if rng.IntN(4) == 0 {
		o.Delay = []time.Duration{20 * time.Millisecond, 100 * time.Millisecond}[rng.IntN(2)]
	}
	if rng.IntN(4) == 0 {
		o.DiskDelay = []time.Duration{2 * time.Millisecond, 50 * time.Millisecond}[rng.IntN(2)]
	}
	o.Uneven = unevenOf(o.Seed)
	return o, list
}

// devices is a device on some disks, and on some nodes without one.
func devices(seed uint64, disks, without int) Options {
	o := Options{
		Nodes: disks, Size: 4 * mib, Quorum: majority(), Delay: 2 * time.Millisecond, Seed: seed,
		Extents: 8, ExtentBytes: 64 << 10, DiskTimeout: 2 * time.Second, Log: testLog(),
	}
	for range without {
		o.Diskless = o.Diskless.With(o.Nodes)
		o.Nodes++
	}
	return o
}

// player takes the steps.
type player struct {
	c      *Cluster
	l      *ledger
	rng    *rand.Rand
	faults []*diskFault
	zombie int // a node that was given up and does not know; -1: none
	// clients is how many have a device open.
	clients map[*device.Device]int
}

func play(t *testing.T, o Options, list []step) (err error) {
	synctest.Test(t, func(t *testing.T) {
		p := &player{c: New(o), l: newLedger(), rng: rand.New(rand.NewPCG(o.Seed, 53)), zombie: -1, clients: map[*device.Device]int{}}
		defer func() {
			p.lift()
			for _, n := range p.c.Nodes {
				n.Kill()
			}
			p.c.StopWatches()
			time.Sleep(answers)
		}()
		if err = p.c.StartAll(); err != nil {
			return
		}
		time.Sleep(time.Second)
		for _, s := range list {
			if err = p.take(s); err != nil {
				err = fmt.Errorf("%v: %w", s, err)
				return
			}
			time.Sleep(s.rest)
		}
		if err = p.mend(); err == nil {
			err = p.judge()
		}
		if err != nil {
			for _, n := range p.c.Nodes {
				if n.Dev != nil {
					err = fmt.Errorf("%w\n%s: %v", err, n.Name, n.Dev.Status().Gens)
				}
			}
			err = fmt.Errorf("%w\n%s", err, p.c.Describe())
		}
	})
	return err
}

func (p *player) within(d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	defer cancel()
	return f(ctx)
}

// take takes a step, or none where it does not apply: a refusal is no fault.
func (p *player) take(s step) error {
	n, m := p.c.Nodes[s.n], p.c.Nodes[s.m]
	switch s.do {
	case "start":
		return p.start(n)
	case "cut", "heal":
		if n == m {
			return nil
		}
		if s.do == "cut" {
			p.c.Cut(s.n, s.m)
		} else {
			p.c.Heal(s.n, s.m)
		}
		return nil
	case "isolate":
		p.c.Isolate(s.n)
		return nil
	case "rejoin":
		p.c.Rejoin(s.n)
		return nil
	case "off":
		p.all(s, (*Node).Kill)
		return p.startAll(s)
	case "power":
		p.all(s, func(n *Node) { n.PowerCut(float64(s.n) / float64(len(p.c.Nodes))) })
		p.l.cuts++
		return p.startAll(s)
	case "write":
		p.write(int64(s.n*len(p.c.Nodes)+s.m) % 6)
		return nil
	case "burst":
		p.burst()
		return nil
	case "read":
		return p.read(int64(s.n*len(p.c.Nodes)+s.m) % 6)
	case "stall", "mute":
		if n != m {
			p.c.Stall(s.n, s.m, map[string]wire.Link{"stall": wire.Data, "mute": wire.Meta}[s.do])
		}
		return nil
	case "flow":
		p.flow()
		return nil
	case "lift":
		p.lift()
		return nil
	case "lose":
		if n.Dev != nil && p.zombie < 0 {
			p.zombie = s.n
			p.c.GiveUp(s.n)
		}
		return nil
	case "learn":
		p.learn()
		return nil
	case "replace":
		p.replace(n)
		return nil
	case "requorum", "onerror":
		return p.configure(s)
	case "regroup", "reroll":
		return p.regroup(s)
	case "survive":
		return p.survive(s)
	}
	if n.Dev == nil {
		return nil
	}
	_ = p.within(2*time.Second, func(ctx context.Context) error { return p.at(ctx, s.do, n) })
	return nil
}

// at is a step at a node that runs.
func (p *player) at(ctx context.Context, do string, n *Node) error {
	switch do {
	case "kill":
		n.Kill()
	case "promote":
		for _, m := range p.c.Nodes {
			if m != n && m.Dev != nil && m.Dev.Status().Role == replication.Primary {
				_ = m.Dev.Demote(ctx)
			}
		}
		return n.Dev.Promote(ctx, false)
	case "demote":
		return n.Dev.Demote(ctx)
	case "leave":
		p.lift() // who leaves waits for its disk
		return p.within(5*time.Second, n.Stop)
	case "detach":
		return n.Dev.Detach(ctx)
	case "attach":
		p.lift()
		return n.Dev.Attach(ctx)
	case "invalidate":
		return n.Dev.Invalidate(ctx)
	case "grow":
		return n.Dev.Resize(ctx, n.Dev.Size()+16*block.Unit)
	case "verify":
		_, err := n.Dev.Verify("")
		return err
	case "resync":
		_, err := n.Dev.Resync(ctx, "")
		return err
	case "pause":
		return n.Dev.PauseResync("")
	case "open":
		err := n.Dev.OpenFor(ctx)
		if err == nil {
			p.clients[n.Dev]++
		}
		return err
	case "close":
		if p.clients[n.Dev] > 0 {
			p.clients[n.Dev]--
			n.Dev.Released(ctx)
		}
	case "fail", "rot", "hang", "hangmeta":
		im := n.Disk
		if do == "rot" || do == "hangmeta" {
			im = n.Meta
		}
		f := storetest.Fault{Ops: storetest.OpWrite | storetest.OpSync, Err: syscall.EIO}
		if do == "hang" || do == "hangmeta" {
			f.Hang, f.Err = true, nil
		}
		if im != nil {
			p.faults = append(p.faults, &diskFault{im, im.Inject(f)})
		}
	}
	return nil
}

// replace has a node that died come back with an empty disk, where another certainly
// has all that was answered: its disk was written to by whoever answered.
func (p *player) replace(n *Node) {
	if n.Disk == nil || !p.c.heldBeside(n, p.zombie) {
		return
	}
	n.Kill()
	n.EmptyDisk(n.Disk.Size())
}

// configure has all nodes, one after the other, go over to another quorum or to
// another way with errors.
func (p *player) configure(s step) error {
	o := &p.c.opts
	switch majority := majority(); {
	case s.do == "onerror" && s.m%2 == 0:
		o.FailIO = !o.FailIO
	case s.do == "onerror":
		o.PassOn = !o.PassOn
	case s.n%2 == 1:
		disks := o.Nodes - o.Diskless.Len()
		o.Quorum = replication.QuorumPolicy{Kind: replication.QuorumCount, N: disks/2 + 1}
	case o.Quorum == majority:
		o.Quorum = replication.QuorumPolicy{Kind: replication.QuorumAll}
	default:
		o.Quorum = majority
	}
	for i := range p.c.Nodes {
		if m := p.c.Nodes[(s.n+i)%len(p.c.Nodes)]; m.Dev != nil {
			if err := m.Dev.Reconfigure(m.Config()); err != nil {
				return err
			}
		}
		time.Sleep(s.rest / 4)
	}
	return nil
}

// regroup has all nodes come back, after a crash or in order, with a configuration in
// which a disk more, or one less, is the device's.
func (p *player) regroup(s step) error {
	c, n := p.c, p.c.Nodes[s.n]
	to, ok := c.regrouped(n)
	if !ok {
		return nil
	}
	end := func(n *Node) {
		if s.m%2 == 0 && n.Dev != nil {
			p.lift()
			_ = p.within(5*time.Second, n.Stop)
		}
		n.Kill()
	}
	if s.do == "reroll" {
		return p.reroll(s, to, end)
	}
	p.all(s, end)
	c.without = to
	return p.startAll(s)
}

// regrouped is who has no disk of the device when n's is taken out, or given back. On most
// of those that are left something has to be: a majority of new disks is another device.
func (c *Cluster) regrouped(n *Node) (without replication.NodeSet, ok bool) {
	without = c.without ^ replication.Of(n.ID)
	written, blank := 0, 0
	for _, m := range c.Nodes {
		switch {
		case m.Disk == nil || without.Has(m.ID):
		case m.isBlank():
			blank++
		default:
			written++
		}
	}
	return without, written > blank && n.Disk != nil
}

// giveBack ends all nodes where the configuration has taken disks out, which it has again
// when they are begun.
func (c *Cluster) giveBack(end func(*Node)) {
	if c.without == 0 {
		return
	}
	for _, n := range c.Nodes {
		end(n)
	}
	c.without = 0
}

// regroup has all nodes come back with a configuration in which a disk is the device's no
// longer, or again: together, or one by one, with pauses of so many thirds.
func (c *Cluster) regroup(n *Node, rng *rand.Rand, end, begin func(*Node), wait func(thirds int)) {
	to, ok := c.regrouped(n)
	if !ok {
		return
	}
	together := rng.IntN(2) == 0
	if together {
		for _, m := range c.Nodes {
			end(m)
		}
	}
	c.without = to
	for _, i := range rng.Perm(len(c.Nodes)) {
		if !together {
			end(c.Nodes[i])
			wait(3)
		}
		begin(c.Nodes[i])
		wait(1)
	}
}

// reroll is regroup, node by node: some work with the new configuration while others do
// still with the old one.
func (p *player) reroll(s step, to replication.NodeSet, end func(*Node)) (err error) {
	p.c.without = to
	p.all(s, func(n *Node) {
		if n.Dev == nil && n.ID != s.n || err != nil {
			return
		}
		end(n)
		p.write(int64(s.n) % 6)
		err = p.start(n)
		time.Sleep(s.rest / 4)
	})
	return err
}

// survive has the disks of all nodes but one, or two, be lost for good, where that one has
// all that was answered: an administrator takes them out, and goes on by force with what
// is left.
func (p *player) survive(s step) error {
	c, n := p.c, p.c.Nodes[s.n]
	if p.zombie >= 0 || n.Dev == nil || n.Disk == nil || !hasAll(n.Dev.Status()) {
		return nil
	}
	lost := replication.NodeSet(0)
	for _, m := range c.Nodes {
		if m.Disk == nil || c.without.Has(m.ID) || m == n || m.ID == s.m {
			continue
		}
		lost = lost.With(m.ID)
	}
	p.lift()
	p.all(s, (*Node).Kill)
	for id := range lost.All() {
		c.Nodes[id].EmptyDisk(n.Disk.Size())
	}
	c.without |= lost
	if err := p.startAll(s); err != nil {
		return err
	}
	return p.within(10*time.Second, func(ctx context.Context) error { return n.Dev.Promote(ctx, true) })
}

// hasAll reports whether a device's disk certainly has all that was answered: it was
// written to by whoever answered, which is this node.
func hasAll(st device.Status) bool {
	return st.Role == replication.Primary && st.Disk == replication.UpToDate && st.Quorum.Quorate && !st.Suspended && st.InHand == 0
}

// heldBeside reports whether a node but n certainly has all that was answered, of each
// device; zombie is one that was given up. A primary that has not heard of losses yet would
// take a quorum for one that is of new disks, which are another device; and two new disks
// may be a majority.
func (c *Cluster) heldBeside(n *Node, zombie int) bool {
	if c.opts.Uneven && !c.allHeard() || slices.ContainsFunc(c.Nodes, func(m *Node) bool { return m != n && m.isBlank() }) {
		return false
	}
	lacks := func(d *device.Device) bool { return !hasAll(d.Status()) }
	return slices.ContainsFunc(c.Nodes, func(m *Node) bool {
		return m != n && m.ID != zombie && m.Disk != nil && m.Dev != nil && !slices.ContainsFunc(m.devs(), lacks)
	})
}

// learn has a node notice that it was given up.
func (p *player) learn() {
	if p.zombie < 0 {
		return
	}
	p.lift() // a session ends when the disks have let go of it
	z := p.zombie
	p.zombie = -1
	p.c.Learn(z)
}

// flow lets all that was stalled arrive.
func (p *player) flow() {
	for i := range p.c.Nodes {
		for j := range p.c.Nodes {
			p.c.Flow(i, j, wire.Data)
			p.c.Flow(i, j, wire.Meta)
		}
	}
}

func (p *player) lift() {
	for _, f := range p.faults {
		f.im.Lift(f.in)
		f.in.Release()
	}
	p.faults = nil
}

func (p *player) start(n *Node) error {
	if n.Dev != nil || p.c.without.Has(n.ID) {
		return nil
	}
	p.lift() // a node starts with what it can read and write
	return n.Start()
}

func (p *player) all(s step, f func(*Node)) {
	for i := range p.c.Nodes {
		f(p.c.Nodes[(s.m+i)%len(p.c.Nodes)])
	}
}

// startAll starts all nodes, in either direction.
func (p *player) startAll(s step) error {
	k := len(p.c.Nodes)
	for i := range k {
		if s.n%2 == 0 {
			i = k - 1 - i
		}
		if err := p.start(p.c.Nodes[(s.m+i)%k]); err != nil {
			return err
		}
		time.Sleep(s.rest / 4)
	}
	return nil
}

// write has whoever is primary write and flush.
func (p *player) write(blk int64) {
	for _, n := range p.c.Nodes {
		if n.Dev == nil || n.Dev.Status().Role != replication.Primary {
			continue
		}
		_ = p.within(300*time.Millisecond, func(ctx context.Context) error {
			p.l.write(ctx, n, blk)
			p.l.flush(ctx, n)
			return nil
		})
		return
	}
}

// burst has whoever is primary write to many blocks at a time.
func (p *player) burst() {
	for _, n := range p.c.Nodes {
		if n.Dev != nil && n.Dev.Status().Role == replication.Primary {
			_ = p.within(300*time.Millisecond, func(ctx context.Context) error {
				p.l.writeMany(ctx, n, []int64{0, 1, 2, 3, 4, 5})
				return nil
			})
			return
		}
	}
}

// read reads from every node that takes itself for the primary.
func (p *player) read(blk int64) error {
	for _, n := range p.c.Nodes {
		if n.Dev == nil || n.Dev.Status().Role != replication.Primary {
			continue
		}
		if err := p.within(300*time.Millisecond, func(ctx context.Context) error { return p.l.read(ctx, n, blk) }); err != nil && p.keeps() {
			return err
		}
	}
	return nil
}

// keeps reports whether what was answered is to be there whatever is lost. Else all
// disks have to hold the same.
func (p *player) keeps() bool { return p.c.opts.Protocol == replication.ProtocolC }

// mend undoes everything.
func (p *player) mend() error {
	p.lift()
	p.learn()
	p.flow()
	if p.c.without != 0 {
		p.all(step{}, (*Node).Kill)
		p.c.without = 0
	}
	for _, i := range p.rng.Perm(len(p.c.Nodes)) {
		p.c.Rejoin(i)
		if err := p.start(p.c.Nodes[i]); err != nil {
			return err
		}
		_, _ = p.c.Nodes[i].Dev.Resync(context.Background(), "")
		time.Sleep(time.Duration(p.rng.IntN(300)) * time.Millisecond)
	}
	time.Sleep(p.c.opts.DiskTimeout + time.Second)
	for _, i := range p.rng.Perm(len(p.c.Nodes)) {
		n := p.c.Nodes[i]
		for try := 0; n.Disk != nil && n.Dev.Status().Detached; try++ {
			err := p.within(5*time.Second, n.Dev.Attach)
			if err != nil && try == 50 {
				return fmt.Errorf("attach the disk of %s: %w", n.Name, err)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	return nil
}

// judge compares the disks with each other and with what was acknowledged.
func (p *player) judge() error {
	for range 2 { // what was suspended goes on then
		for _, n := range p.c.Nodes {
			if err := p.within(2*time.Minute, func(ctx context.Context) error { return n.Dev.WaitFor(ctx, "synced") }); err != nil {
				return fmt.Errorf("%s does not get in sync: %w", n.Name, err)
			}
		}
		time.Sleep(5 * time.Second)
	}
	var first *Node
	for _, n := range p.c.Nodes {
		if n.Disk == nil {
			continue
		}
		if err := p.l.check(func(off int64, b []byte) { n.Disk.Peek(b, off) }); err != nil && p.keeps() {
			return fmt.Errorf("%s: %w", n.Name, err)
		}
		if first == nil {
			first = n
		}
		if n.Dev.Size() != first.Dev.Size() {
			return fmt.Errorf("%s has a size of %d, and %s of %d", first.Name, first.Dev.Size(), n.Name, n.Dev.Size())
		}
		a, b := make([]byte, n.Dev.Size()), make([]byte, n.Dev.Size())
		first.Disk.Peek(a, 0)
		if n.Disk.Peek(b, 0); !bytes.Equal(a, b) {
			return fmt.Errorf("the disks of %s and %s differ", first.Name, n.Name)
		}
	}
	for _, n := range p.c.Nodes {
		if n.Dev.Status().Role == replication.Primary {
			return nil
		}
	}
	if err := p.within(10*time.Second, func(ctx context.Context) error { return first.Dev.Promote(ctx, false) }); err != nil {
		return fmt.Errorf("nobody can be promoted: %w", err)
	}
	return nil
}
