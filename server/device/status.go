package device

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// Status is what the device is now, for people and scripts.
type Status struct {
	Name        string
	Size        int64
	Role        replication.Role
	Disk        replication.DiskState
	Quorum      replication.Verdict
	Voteless    bool     // it left in order, and has not got its vote back
	Stayed      []string // then: who has a vote and is not in reach
	Suspended   bool
	Few         bool     // suspended because too few disks are sent changes
	Unfenced    []string // suspended until these are fenced, or back
	InDoubt     bool     // suspended because too few peers are certain to take this node for alive
	Open        int
	Peers       []PeerStatus
	Gens        replication.Gens
	Backing     string
	Grown       bool   // the configuration gives a smaller size
	Detached    bool   // diskless, though this node has a disk for it
	Primary     string // the node that is primary, as far as known
	InFlight    int
	Parked      int // requests that have not been let in
	InHand      int // changes of this disk that wait for it, or are being carried out, because it is slow
	Strays      int // of peers' changes, those whose session ended before the disk had them
	Protocol    replication.Protocol
	Policy      replication.QuorumPolicy
	OnNoQuorum  NoQuorumPolicy
	Stats       Stats
	LastError   string
	Healed      time.Time // the disk last; zero: not since it was opened
	Since       map[string]time.Time
	Differs     []string // peers whose configuration differs in what must agree
	Group       string   // the consistency group; "" for none
	Stalled     string   // a device of the group for whose sake I/O is suspended
	HotExtents  int
	ExtentBytes int64
}

// PeerStatus is the device on one peer.
type PeerStatus struct {
	Node      string
	ID        int
	Contact   bool // its node is up
	Connected bool // and the two have agreed
	Role      replication.Role
	Disk      replication.DiskState
	Repl      replication.ReplState
	OutOfSync int64 // bytes
	Resync    *Progress
	Refused   string
	Decision  replication.Decision
	Since     time.Time
	Gen       replication.Gen
	Left      bool      // it is not in reach, and has left in order
	Verified  *Verified // the outcome of the last verify led here
	Fencing   string    // what the fence-peer handler has come to
	Held      string    // by whom a resync with it is paused
}

// Progress is how far a resync has come, in bytes.
type Progress struct {
	Done, Total, Rate int64
	Left              time.Duration
}

// Status returns a snapshot.
func (d *Device) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	st := Status{
		Name: d.opts.Name, Size: d.cfg.Size, Role: d.role, Disk: d.dstat, Quorum: d.quorum,
		Suspended: d.role == replication.Primary && (d.gate == gateSuspend || d.hold&(holdCopies|holdLease|holdFence) != 0),
		InDoubt:   d.hold&holdLease != 0, Few: d.hold&holdFew != 0, Unfenced: d.strayedNamesLocked(),
		Open: d.opens, Gens: d.gens, InFlight: d.inFlightLocked(), Parked: len(d.parked),
		Protocol: d.cfg.Protocol, Policy: d.cfg.Quorum, OnNoQuorum: d.cfg.OnNoQuorum, LastError: d.lastErr,
		Differs: d.differsLocked(), Stats: d.stats, Since: map[string]time.Time{},
	}
	if st.Voteless = d.votes.Given(d.cfg.Self); st.Voteless {
		for id := range (d.votes.Holders(d.cfg.Self, d.disksSinceLocked()) &^ d.reachLocked()).All() {
			st.Stayed = append(st.Stayed, d.nodeName(id))
		}
	}
	st.InHand, st.Strays = d.crew.inHand(), d.strays
	st.Healed = d.heals.last
	maps.Copy(st.Since, d.since)
	st.Stats.Reads, st.Stats.ReadBytes = d.reads.Load(), d.readBytes.Load()
	if d.disk != nil {
		st.Backing = d.disk.Path()
	}
	st.Group, st.Stalled = d.cfg.Group, d.stalledByLocked()
	st.Grown = d.cfg.Size > d.opts.Size
	st.Detached = d.disk == nil && d.source != nil
	if d.primary >= 0 {
		st.Primary = d.nodeName(d.primary)
	}
	if d.meta != nil {
		ls := d.meta.AL().Stats()
		st.HotExtents, st.ExtentBytes = ls.Hot, ls.ExtentBytes
	}
	for _, p := range d.peers {
		if p != nil {
			st.Peers = append(st.Peers, d.peerStatusLocked(p))
		}
	}
	return st
}

// inFlightLocked is how many of the application's changes are under way, those
// included that wait for their range or for the activity log.
func (d *Device) inFlightLocked() (n int) {
	for _, o := range d.ranges.ops {
		if o.kind == appChange {
			n++
		}
	}
	return n
}

func (d *Device) peerStatusLocked(p *peer) PeerStatus {
	ps := PeerStatus{
		Node: p.name, ID: p.id, Contact: p.session != nil, Connected: p.agreed, Role: p.role, Disk: p.disk, Repl: p.repl,
		Refused: p.refused, Decision: p.decision, Since: p.since, Gen: d.gens.Bitmap[p.id],
	}
	switch {
	case p.fence.busy:
		ps.Fencing = "the fence-peer handler is at work, and requests wait for it"
	case p.fence.done:
		ps.Fencing = "it is fenced, and counts as outdated"
	case p.fence.failed:
		ps.Fencing = "the fence-peer handler has failed, and is asked again every minute; until then, or until the node is back, requests wait"
	}
	switch {
	case p.hold:
		ps.Held = "here"
	case p.held:
		ps.Held = "on " + p.name
	}
	if !p.agreed {
		ps.Role = replication.UnknownRole
		ps.Left = d.votes.Given(p.id)
	}
	if p.diskless && !p.agreed {
		ps.Disk = replication.Diskless
	}
	if d.meta != nil && !p.diskless {
		ps.OutOfSync = d.meta.Bitmap(p.id).Count() * block.Unit
	}
	ps.Repl, ps.Resync = d.verifyProgressLocked(p)
	ps.Verified = p.verified
	if p.repl == replication.SyncSource || p.repl == replication.SyncTarget {
		if p.paused() {
			ps.Repl += replication.PausedSyncS - replication.SyncSource // likewise for the target
		}
		g := &Progress{Done: p.sync.done, Total: max(p.sync.total, p.sync.done), Rate: int64(p.sync.rate)}
		if g.Rate > 0 {
			g.Left = time.Duration(float64(g.Total-g.Done) / p.sync.rate * float64(time.Second))
		}
		ps.Resync = g
	}
	return ps
}

// tellClosedLocked tells the peers that the device is no longer served here.
func (d *Device) tellClosedLocked(reason string) {
	b := &block.Batch{}
	for _, p := range d.peers {
		// In the middle of a handshake, too: it may wait for answers to what it asked
		// before that.
		if p != nil && p.handle != 0 {
			p.send(wire.Header{Type: wire.DevClosed}, []byte(reason), nil, b)
		}
	}
	// Queued; the links send it on their own.
	d.done.Go(b.Finish)
}

// OpenFor admits a client: with auto-promotion the first one makes this node
// the primary, for which it may have to wait.
func (d *Device) OpenFor(ctx context.Context) error {
	wctx, cancel := context.WithTimeout(ctx, d.opts.PromoteWait)
	defer cancel()
	return d.open(wctx, false)
}

// ReopenFor is OpenFor for a client that this node, as primary, served before
// a planned restart: it has the device open, so that it waits for as long as
// ctx, and the role is restored though it was not taken automatically.
func (d *Device) ReopenFor(ctx context.Context) error { return d.open(ctx, true) }

func (d *Device) open(ctx context.Context, served bool) error {
	d.mu.Lock()
	d.opens++
	primary := d.role == replication.Primary
	auto := d.cfg.AutoPromote
	d.mu.Unlock()
	if primary {
		return nil
	}
	err := error(d.refuse("open", "this node is secondary and auto_promote is off",
		"run \"lockstepctl device promote "+d.opts.Name+"\" first", false))
	if served || auto {
		err = d.Promote(ctx, false)
	}
	if err != nil {
		d.Released(context.WithoutCancel(ctx))
		return err
	}
	if auto {
		d.markAuto(true)
	}
	return nil
}

// Released is the counterpart of OpenFor: the client is gone, and everything
// it asked for is finished. The last one of an automatically promoted device
// demotes it.
func (d *Device) Released(ctx context.Context) {
	d.mu.Lock()
	d.opens--
	last := d.opens == 0 && d.autoPromoted && d.role == replication.Primary && !d.closing
	d.touchLocked()
	d.mu.Unlock()
	if !last || !d.groupUnused() {
		return
	}
	if err := d.Demote(ctx); err != nil {
		if r, ok := errors.AsType[*RefusedError](err); !ok || !r.Again {
			d.log.Info("still primary after the last client left", "err", err)
		}
		return
	}
	d.markAuto(false)
}

// WaitFor blocks until the device is in a state that a script waits for:
// "uptodate" (this disk), "connected" (every peer), "synced" (every disk up to
// date, and every vote back), "primary", "secondary".
func (d *Device) WaitFor(ctx context.Context, what string) error {
	var cond func() bool
	switch what {
	case "uptodate":
		cond = func() bool { return d.dstat == replication.UpToDate }
	case "connected":
		cond = func() bool { return d.everyPeer(func(p *peer) bool { return p.agreed }) }
	case "synced", "":
		cond = func() bool {
			return (d.dstat == replication.UpToDate || d.dstat == replication.Diskless) && d.votes.Left()&d.disks == 0 && d.everyPeer(func(p *peer) bool {
				return p.agreed && (p.diskless || p.disk == replication.UpToDate && p.repl == replication.Established && !d.markedLocked(p.id))
			})
		}
	case "primary":
		cond = func() bool { return d.role == replication.Primary }
	case "secondary":
		cond = func() bool { return d.role == replication.Secondary }
	default:
		return fmt.Errorf("cannot wait for %q: want uptodate, connected, synced, primary or secondary", what)
	}
	return d.wait(ctx, cond)
}

func (d *Device) everyPeer(ok func(*peer) bool) bool {
	for _, p := range d.peers {
		if p != nil && !ok(p) {
			return false
		}
	}
	return true
}

// Why explains the device's state: what is so, since when, because of what,
// and what would change it.
type Why struct {
	State         string
	Since         time.Time
	Because, Next []string
}

// Why explains.
func (d *Device) Why() Why {
	st := d.Status()
	w := Why{State: fmt.Sprintf("%v, disk %v", st.Role, st.Disk), Since: latest(st.Since, "role", "disk")}
	if st.Suspended {
		w.State += ", I/O suspended"
		w.Since = latest(st.Since, "role", "disk", "gate")
	}
	if st.Policy.Kind == replication.QuorumOff {
		w.Because = append(w.Because, st.Quorum.Why)
	} else {
		w.Because = append(w.Because, "quorum ("+st.Policy.String()+"): "+st.Quorum.Why)
	}
	if st.InDoubt {
		w.Because = append(w.Because, "answers wait: this node was paused, or hears nothing, and too few peers are certain to take it for alive still")
		w.Next = append(w.Next, "they answer within a moment, or are found to be down within the tick time")
	}
	if st.Few {
		w.Because = append(w.Because, "answers wait: as many disks as make quorum do not get what is written, since their resync has not begun; without the others it would be lost")
		w.Next = append(w.Next, "those resyncs begin by themselves (lockstepctl device why, on their nodes, tells what they wait for); another node that comes back ends it, too")
	}
	if len(st.Unfenced) > 0 {
		w.Next = append(w.Next, "start or reconnect "+strings.Join(st.Unfenced, ", ")+", or correct fence_peer in the configuration: after a lockstepctl config reload the new handler is asked")
	}
	if st.Group != "" {
		w.Because = append(w.Because, fmt.Sprintf("of group %q: it is promoted, demoted and suspended together with the group's other devices", st.Group))
	}
	if st.Stalled != "" {
		w.Because = append(w.Because, "its I/O waits because that of "+st.Stalled+", of the same group, does")
		w.Next = append(w.Next, "see: lockstepctl device why "+st.Stalled)
	}
	if !st.Quorum.Quorate {
		w.Next = append(w.Next, "quorum returns when enough of the device's nodes are up: lockstepctl node list")
		if st.Role == replication.Primary {
			w.Next = append(w.Next, "if those are lost for good: a lower quorum in the configuration, and lockstepctl config reload; what they have that this node has not is given up")
		}
	}
	if len(st.Differs) > 0 {
		w.Because = append(w.Because, "configured otherwise, in what nodes must agree on, than "+strings.Join(st.Differs, ", "))
		w.Next = append(w.Next, "have all nodes read the same file: lockstepctl config reload on each; until then no connection that is lost is agreed on again")
	}
	if st.LastError != "" {
		w.Because = append(w.Because, "last error: "+st.LastError)
	}
	if st.Grown {
		w.Because = append(w.Because, fmt.Sprintf("the device has grown to %s, of which the configuration knows nothing yet", block.Amount(st.Size)))
		w.Next = append(w.Next, fmt.Sprintf("set size = \"%dKiB\" in the configuration of every node", st.Size>>10))
	}
	w.explainVote(&st)
	w.explainDisk(&st)
	for i := range st.Peers {
		w.explainPeer(&st, &st.Peers[i])
	}
	return w
}

// latest is when the last of several things changed.
func latest(since map[string]time.Time, of ...string) (at time.Time) {
	for _, what := range of {
		if t := since[what]; t.After(at) {
			at = t
		}
	}
	return at
}

func (w *Why) explainVote(st *Status) {
	if !st.Voteless {
		return
	}
	w.Because = append(w.Because, "this node left in order and gave its vote up: who stayed may have gone on without it")
	if len(st.Stayed) == 0 {
		w.Next = append(w.Next, "it gets its vote back in a moment, from those in reach")
		return
	}
	w.Next = append(w.Next, fmt.Sprintf("it gets its vote back when %s, which stayed, is in reach", strings.Join(st.Stayed, ", ")))
	if !st.Quorum.Quorate {
		w.Next = append(w.Next, fmt.Sprintf("if %s is lost for good: lockstepctl device promote %s --force, which gives up what was written there since", strings.Join(st.Stayed, ", "), st.Name))
	}
}

func (w *Why) explainDisk(st *Status) {
	if st.InHand > 0 {
		w.Because = append(w.Because, fmt.Sprintf("the disk takes long: %d changes wait for it", st.InHand))
		w.Next = append(w.Next, "they go on when it answers; disk_timeout in the configuration says when to give it up")
	}
	if st.Strays > 0 {
		w.Because = append(w.Because, fmt.Sprintf("%d changes of a peer that was lost have not reached the disk yet; until they have, nothing is agreed with any peer", st.Strays))
	}
	if n := st.Stats.ReadErrors; n > 0 {
		because := fmt.Sprintf("the disk has failed %d reads; %s were healed, that is, rewritten with what a peer has", n, block.Amount(int64(st.Stats.MendedBytes)))
		if !st.Healed.IsZero() {
			because += ", the last at " + st.Healed.Format(time.RFC3339)
		}
		if st.Stats.Unmended > 0 {
			because += fmt.Sprintf("; %d times no peer could give a good copy", st.Stats.Unmended)
		}
		w.Because = append(w.Because, because)
		w.Next = append(w.Next, "compare it all, and heal what else is bad: lockstepctl device verify "+st.Name+"; replace a disk that goes on failing")
	}
	switch st.Disk {
	case replication.Diskless, replication.Failed:
		if st.Detached {
			w.Because = append(w.Because, "the disk is detached; reads and writes go to the peers' disks")
			w.Next = append(w.Next, "attach it again, and it is resynced: lockstepctl device attach "+st.Name)
		}
	case replication.Consistent:
		w.Because = append(w.Because, "the disk is consistent, but whether a peer has newer data is not known yet")
		w.Next = append(w.Next, "it becomes UpToDate when enough peers are in reach to tell")
	case replication.Outdated:
		w.Because = append(w.Because, "newer data exists on a peer")
		w.Next = append(w.Next, "it is resynced when a peer with current data is in reach")
	case replication.Inconsistent:
		w.Because = append(w.Because, "a resync of this disk has not completed")
		w.Next = append(w.Next, "it goes on when its source is in reach")
	}
}

// amount is a number of bytes, of which there may be none.
func amount(bytes int64) string {
	if bytes == 0 {
		return "nothing is"
	}
	return block.Amount(bytes)
}

func (w *Why) explainPeer(st *Status, p *PeerStatus) {
	switch {
	case p.Refused != "":
		w.Because = append(w.Because, fmt.Sprintf("%s is refused: %s", p.Node, p.Refused))
		switch {
		case p.Decision.Rule == replication.RuleOrigin:
			w.Next = append(w.Next, fmt.Sprintf("put the right disk and metadata back where they are wrong; or, on the node whose data may go: lockstepctl device resolve %s --discard-local", st.Name))
		case p.Decision.Rule == replication.RuleSize:
			w.Next = append(w.Next, fmt.Sprintf("give the smaller disk room for the larger size, and restart its node; what is in the way: lockstepctl device why %s, there", st.Name))
		case p.Decision.Action == replication.SplitBrain:
			next := fmt.Sprintf("choose whose changes go: lockstepctl device resolve %s --discard-local on the node that is to lose them", st.Name)
			if !slices.Contains(w.Next, next) {
				w.Next = append(w.Next, next)
			}
		}
	case !p.Connected && p.Fencing != "":
		w.Because = append(w.Because, p.Node+" is not in reach; "+p.Fencing)
		w.Next = append(w.Next, "why "+p.Node+" is not in reach: lockstepctl node why "+p.Node)
	case !p.Connected && p.Contact:
		w.Because = append(w.Because, fmt.Sprintf("%s is up, and has not said how the device is there; %s out of sync", p.Node, amount(p.OutOfSync)))
		w.Next = append(w.Next, fmt.Sprintf("see whether %s has the device: lockstepctl device show %s, there", p.Node, st.Name))
	case !p.Connected && p.Left:
		w.Because = append(w.Because, fmt.Sprintf("%s is not in reach; it left in order, so quorum does without it; %s out of sync", p.Node, amount(p.OutOfSync)))
		w.Next = append(w.Next, p.Node+" gets what it missed, and its vote, when it is in reach again; why it is not: lockstepctl node why "+p.Node)
	case !p.Connected:
		w.Because = append(w.Because, fmt.Sprintf("%s is not in reach; %s out of sync", p.Node, amount(p.OutOfSync)))
		w.Next = append(w.Next, p.Node+" gets what it missed when it is in reach again; why it is not: lockstepctl node why "+p.Node)
	default:
		w.Because = append(w.Because, fmt.Sprintf("%s: replication %v, disk %v; when it connected: %s", p.Node, p.Repl, p.Disk, p.Decision.Why))
		if v := p.Verified; v != nil && v.Differ > 0 && p.OutOfSync > 0 {
			w.Because = append(w.Because, fmt.Sprintf("a verify with %s found that %s differ, at %s", p.Node, block.Amount(v.Differ), v.At.UTC().Format(time.RFC3339)))
			w.Next = append(w.Next, fmt.Sprintf("overwrite what differs, with the primary's data where there is one: lockstepctl device resync %s --node %s", st.Name, p.Node))
		}
		if p.Held != "" {
			w.Because = append(w.Because, "the resync with "+p.Node+" is paused "+p.Held)
			w.Next = append(w.Next, "let it go on: lockstepctl device resync "+st.Name)
		}
	}
	if p.Resync != nil {
		left := ""
		if p.Resync.Left > 0 {
			left = fmt.Sprintf(", %v left", p.Resync.Left.Round(time.Second))
		}
		what := "resync"
		if p.Repl == replication.VerifyS || p.Repl == replication.VerifyT {
			what = "verify"
		}
		w.Next = append(w.Next, fmt.Sprintf("%s with %s: %s of %s done%s", what, p.Node, block.Amount(p.Resync.Done), block.Amount(p.Resync.Total), left))
	}
}

// Dump describes what is in flight, for the log and for tests that fail.
func (d *Device) Dump() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	var sb strings.Builder
	fmt.Fprintf(&sb, "gate=%d hold=%d needGen=%v genBusy=%v committing=%v genWait=%b receives=%b primary=%d stream=%x received=%d floor=%d window=%d..%d parked=%d held=%d flush={busy=%v wait=%b local=%v asked=%d flowed=%d}\n",
		d.gate, d.hold, d.needGen, d.genBusy, d.committing, d.genWait, d.receives, d.primary, d.stream, d.received, d.floor,
		d.window.floor, d.window.head, len(d.parked), len(d.held), d.flush.busy, d.flush.wait, d.flush.local, len(d.flush.asked), d.flush.flowed)
	fmt.Fprintf(&sb, "crew in hand=%d delay=%d strays=%d votes left=%b news=%v tagged=%d unmade=%d\n", d.crew.inHand(), d.crew.delay.Load(), d.strays, d.votes.Left(), d.votesNews, len(d.tagged), len(d.unmade))
	if d.meta != nil {
		fmt.Fprintf(&sb, "log %+v shift=%d epoch=%d\n", d.meta.AL().Stats(), d.shift, d.epoch)
	}
	for i, o := range d.ranges.ops {
		if i == 20 {
			fmt.Fprintf(&sb, "and %d more\n", len(d.ranges.ops)-i)
			break
		}
		fmt.Fprintf(&sb, "op kind=%d %v %v seq=%d need=%b wait=%b local=%v logged=%v finished=%v answered=%v blockers=%d\n",
			o.kind, o.what, o.ext, o.seq, o.need, o.wait, o.local, o.log != nil, o.finished, o.answered, o.blockers)
	}
	for _, p := range d.peers {
		if p != nil {
			fmt.Fprintf(&sb, "peer %s agreed=%v heard=%v inSync=%v sync={pulling=%v ready=%v ops=%d sent=%d cursor=%d fresh=%d syncing=%v} stable=%d missed=%v lacks=%v undo=%v\n",
				p.name, p.agreed, p.heard, p.inSync, p.sync.pulling, p.sync.ready, len(p.sync.ops), len(p.sync.sent), p.sync.cursor, p.sync.freshN, p.sync.syncing, p.stable, p.missed, p.lacks, p.undo)
		}
	}
	return sb.String()
}
