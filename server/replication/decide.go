package replication

import "fmt"

// Facts is what one node tells another about a device before they agree on
// anything. Decide takes the facts of both.
type Facts struct {
	Node int
	Role Role
	Disk DiskState
	Size int64
	Gens Gens
	// Dirty is how many units this node's bitmap for the other node marks.
	Dirty int64
	// Crashed: this node was primary when it stopped uncleanly, and has not
	// been in sync with anybody since.
	Crashed bool
	// Live: this node's process has held its disk as up to date: it has not
	// been through a crash since its data was known to be current.
	Live bool
	// Following: a primary in contact counts this node among those that have
	// its writes.
	Following bool
	// Stream names the primary's stint whose writes this node last took part
	// in, and Received how far it got.
	Stream   uint64
	Received uint64
	// Discard: an administrator wants this node's changes thrown away.
	Discard bool
	// Quorate: this node had quorum when it spoke, and, as a primary without a disk, data
	// to serve.
	Quorate bool
	// Primary is whom this node believes to be primary; NoPrimary: nobody.
	Primary int
	// Ordered: the device's quorum makes the generations in force a chain. It is
	// a matter of configuration, the same on both sides.
	Ordered bool
	// Best: every disk of the device is in this node's reach, and no complete one
	// has newer data.
	Best bool
	// Announced is the generation that this node, as primary, has announced and
	// that is not in force; NoGen: none.
	Announced Gen
	// Began is when this node last became primary, in ns since 1970 by its own
	// clock; 0: never.
	Began int64
	// Origin names what the data began as: it was drawn when the device was first
	// written down anywhere, and is the same wherever its data is. 0: not known.
	Origin uint64
	Votes  Votes
	// Newcomer: this node's disk was made for a device that was there, maybe in
	// the place of one that was lost, and has had no part in a quorum since; see
	// Census. Member: it has.
	Newcomer, Member bool
	// Former: the configuration has given the device to other disks since this node's
	// disk was last in a quorum. Met: a majority of those before is in its reach.
	// Regrouped: its generation began among them.
	Former, Met, Regrouped bool
}

// Joins reports whether this node's disk, of which nothing is known, is about to
// be one of the peer's device, which was there without it.
func (f *Facts) Joins(peer *Facts) bool { return f.Adopts(peer) && !f.Member && peer.settled() }

// arrives reports whether this node's disk was made for a device that was there. A bitmap
// that was kept since day one is of the disk that was in its place then.
func (f *Facts) arrives(peer *Facts) bool { return f.Newcomer || f.Joins(peer) }

func (f *Facts) settled() bool { return f.Member || f.HasPast() }

// HasPast reports whether something was ever written to the data, as far as its
// node knows.
func (f *Facts) HasPast() bool { return f.Gens.HasPast() }

// Adopts reports whether this node's disk, on which nothing was ever written,
// is to be of the peer's origin from now on. Anything else gets the origin with
// a generation, from its primary, or with the data, from the source of a resync;
// and what a primary begins is of the primary's own.
func (f *Facts) Adopts(peer *Facts) bool {
	switch {
	case peer.Origin == NoOrigin || f.Origin == peer.Origin || f.HasPast() || f.Role == Primary:
		return false
	case f.Origin == NoOrigin || peer.HasPast():
		return true
	case f.Member != peer.Member:
		return peer.Member
	}
	return peer.Origin < f.Origin // neither is older, and both sides choose the same
}

// NoOrigin is the Origin of data that was begun before there were any.
const NoOrigin = 0

// Foreign reports whether the two disks were never one device's. What the peer
// says of generations and votes then means nothing here.
func (f *Facts) Foreign(peer *Facts) bool {
	return f.Origin != NoOrigin && peer.Origin != NoOrigin && f.Origin != peer.Origin && f.Gens.begun() && peer.Gens.begun()
}

// Knows reports whether this node, without the other, could tell that its data
// is current.
func (f *Facts) Knows() bool { return f.Quorate && f.Disk == UpToDate }

// LeftBehind reports whether a primary has told this node that it goes on without its
// disk. Where generations in force are a chain Gens.Behind tells more.
func (f *Facts) LeftBehind() bool { return f.Disk == Outdated && f.Gens.Noted.After(f.Gens.Current) }

// KnowsBetter reports whether this node can tell that its data is current
// although the other, of the same generation, takes itself for outdated: it
// could tell without it, and the other was not left behind; or it was told; or it is
// the very primary that the other last followed and that left it behind.
func (f *Facts) KnowsBetter(other *Facts) bool {
	return f.Knows() && !other.LeftBehind() || f.Best && f.Disk == UpToDate || f.Role == Primary && f.Stream != 0 && f.Stream == other.Stream
}

// NoPrimary is the Primary of one who knows of none.
const NoPrimary = -1

// Action is what two nodes do about a device.
type Action uint8

// The actions, as seen from the node for which Decide was asked.
const (
	InSync       Action = iota + 1 // nothing differs
	SourceBits                     // I send what either bitmap marks
	TargetBits                     // I receive what either bitmap marks
	SourceFull                     // I send everything
	TargetFull                     // I receive everything
	NoDisk                         // one of us has no data: agree, sync nothing
	PeerOutdated                   // nothing to sync from a mixture, and the peer is behind it
	SelfOutdated                   // likewise, and I am behind
	SplitBrain                     // both moved on from a common past
	Unrelated                      // no common past
	Refuse                         // the two cannot work together on this device
)

var actionNames = [...]string{"", "in-sync", "source-bitmap", "target-bitmap", "source-full", "target-full", "no-disk", "peer-outdated", "self-outdated", "split-brain", "unrelated", "refuse"}

func (a Action) String() string {
	if int(a) < len(actionNames) {
		return actionNames[a]
	}
	return fmt.Sprintf("Action(%d)", uint8(a))
}

// Mirror is the action of the other side.
func (a Action) Mirror() Action {
	switch a {
	case SourceBits:
		return TargetBits
	case TargetBits:
		return SourceBits
	case SourceFull:
		return TargetFull
	case TargetFull:
		return SourceFull
	case PeerOutdated:
		return SelfOutdated
	case SelfOutdated:
		return PeerOutdated
	}
	return a
}

// Decision is an action and why.
type Decision struct {
	Action Action
	Rule   string // stable name of the rule that decided
	Why    string // one sentence
	// Even: the two sides differ only in changes that were not answered, so
	// neither is behind.
	Even bool
	// Yields is who stops being primary by this decision.
	Yields NodeSet
}

func (d Decision) String() string { return d.Action.String() + " (" + d.Rule + "): " + d.Why }

// Sync reports whether data is to be moved.
func (d Decision) Sync() bool { return d.Action >= SourceBits && d.Action <= TargetFull }

// Source reports whether the asking node sends.
func (d Decision) Source() bool { return d.Action == SourceBits || d.Action == SourceFull }

// Outrun reports whether the asking node lacks what the peer's disk has, and that was, or
// may have been, answered.
func (d Decision) Outrun() bool { return d.Sync() && !d.Source() && !d.Even }

// Full reports whether everything is to be moved.
func (d Decision) Full() bool { return d.Action == SourceFull || d.Action == TargetFull }

// strangers: generations and bitmaps of two disks that were never one device's
// mean nothing to each other, whoever has quorum.
func strangers(me, peer *Facts) Decision {
	d := discard(me, peer, Decision{Action: Unrelated, Rule: RuleOrigin,
		Why: fmt.Sprintf("the two disks are not of one device: the data here began as %016x, and that there as %016x", me.Origin, peer.Origin)})
	switch {
	case d.Sync() && d.Source():
		d.Action = SourceFull
	case d.Sync():
		d.Action = TargetFull
	}
	return d
}

// The rules by which disks are kept apart that are of different origins, or sizes.
const (
	RuleOrigin = "origin"
	RuleSize   = "size"
)

const (
	ruleEqual   = "equal-dirty"
	ruleDiscard = "discard"
)

// Chosen reports whether a person, or a policy, has chosen the side that stays.
func (d Decision) Chosen() bool { return d.Rule == ruleDiscard || d.Rule == ruleSplit }

// Decide says what me and peer do about the device they share. It is
// symmetric: Decide(a, b).Action == Decide(b, a).Action.Mirror(), so both
// sides come to the same end without a further word. First match wins.
//
// A dirty bit is never dropped: where the generations are equal and either
// bitmap is not empty the answer is a resync (the case in which LINBIT/drbd#145
// loses data).
func Decide(me, peer *Facts) Decision {
	if d, ok := precondition(me, peer); ok {
		return d
	}
	if me.Foreign(peer) {
		return strangers(me, peer)
	}
	if me.Role == Primary && rival(me, peer) || peer.Role == Primary && rival(peer, me) {
		return twoPrimaries(me, peer)
	}
	if d, ok := dayOne(me, peer); ok {
		return d
	}
	if me.Gens.Current == peer.Gens.Current {
		return equal(me, peer)
	}
	if d, ok := announced(me, peer); ok {
		return d
	}
	d := ancestry(me, peer)
	if me.Ordered {
		return fromMixture(me, peer, ordered(me, peer, d))
	}
	if d.Action == SplitBrain {
		d = tentative(me, peer, d)
	}
	// Who has quorum, where not any two share a disk, need not know of what the other
	// has answered while it had one.
	if d.Action == SplitBrain || d.Action == Unrelated {
		return discard(me, peer, d)
	}
	return fromMixture(me, peer, d)
}

// announced: the peer noted a generation that its primary then did not bring
// into force. It is no further than the primary.
func announced(me, peer *Facts) (Decision, bool) {
	const rule, why = "announced", "the replica noted a generation that its primary did not bring into force"
	switch {
	case me.Role == Primary && me.Announced != NoGen && peer.Gens.Current == me.Announced:
		return Decision{Action: SourceBits, Rule: rule, Why: why}, true
	case peer.Role == Primary && peer.Announced != NoGen && me.Gens.Current == peer.Announced:
		return Decision{Action: TargetBits, Rule: rule, Why: why}, true
	}
	return Decision{}, false
}

// ordered corrects what ancestry says where it is of another mind than the
// order of the generations in force: what went apart from those was never
// answered.
func ordered(me, peer *Facts, d Decision) Decision {
	mine := later(me, peer)
	if !d.Sync() || d.Source() != mine {
		d = Decision{Action: resync(me, peer, mine), Rule: "later", Why: "the sender's generation is the later one in force"}
	}
	if me.Gens.Base == peer.Gens.Base {
		d.Even = true // neither has more that was answered
	}
	return d
}

// later reports whether me's data comes after the peer's, of two that are not
// of one generation. It is an order over all nodes: every reason is a fact
// about one of them.
func later(me, peer *Facts) bool {
	m, p := &me.Gens, &peer.Gens
	switch {
	case m.Base != p.Base:
		return m.Base > p.Base
	case me.Role != peer.Role:
		return me.Role == Primary
	}
	return m.Current > p.Current
}

// rival: another acts as primary on the peer's side.
func rival(me, peer *Facts) bool {
	return peer.Role == Primary || peer.Primary != NoPrimary && peer.Primary != me.Node
}

// tentative: a generation that was announced and never came into force gives
// way to one that did, if that comes from what was in force before it: else, where
// generations are no chain, something was answered on either side. Of two that never did,
// and that come from one which did, neither has more that was answered.
func tentative(me, peer *Facts, split Decision) Decision {
	switch m, p := me.Gens.Tentative(), peer.Gens.Tentative(); {
	case !m && !p:
		return split
	case m && p:
		if me.Gens.Base == NoGen || me.Gens.Base != peer.Gens.Base {
			return split
		}
		return Decision{Action: resync(me, peer, stays(me, peer)), Rule: "both-tentative", Why: "neither side's generation ever came into force"}
	}
	gone, stays := me, peer
	if peer.Gens.Tentative() {
		gone, stays = peer, me
	}
	if base := gone.Gens.Base; gone.Gens.begun() && base != stays.Gens.Current && !stays.Gens.Knows(base) {
		return split
	}
	return Decision{Action: resync(me, peer, peer.Gens.Tentative()), Rule: "tentative", Why: "one side's generation never came into force"}
}

// stays reports whether me is the source of two of which neither has more that was
// answered. It is an order over all nodes: every reason is a fact about one of them.
func stays(me, peer *Facts) bool {
	m, p := min(me.Disk, Consistent), min(peer.Disk, Consistent) // it may be in the midst of finding out that it is current
	switch {
	case m != p:
		return m > p
	case me.Role != peer.Role:
		return me.Role == Primary
	}
	return me.Gens.Current > peer.Gens.Current
}

// resync is the shortest resync in which me sends, or receives where it is not
// the source.
func resync(me, peer *Facts, source bool) Action {
	a := TargetFull
	if sharedSlot(me, peer) {
		a = TargetBits
	}
	if source {
		a = a.Mirror()
	}
	return a
}

// sharedSlot: both bitmaps count from one generation.
func sharedSlot(me, peer *Facts) bool {
	g := me.Gens.Bitmap[peer.Node]
	return g != NoGen && g == peer.Gens.Bitmap[me.Node]
}

func precondition(me, peer *Facts) (Decision, bool) {
	if !me.Disk.HasData() || !peer.Disk.HasData() {
		return noDisk(me, peer), true
	}
	if me.Size != peer.Size {
		return Decision{Action: Refuse, Rule: RuleSize, Why: fmt.Sprintf("the device is %d bytes here and %d there", me.Size, peer.Size)}, true
	}
	return Decision{}, false
}

// twoPrimaries: one that lost quorum acknowledged nothing since, so it yields
// to one that has it and all that it had acknowledged before. Two that both
// believe in themselves have diverged whatever their generations say.
func twoPrimaries(me, peer *Facts) Decision {
	split := Decision{Action: SplitBrain, Rule: "two-primaries", Why: "both sides are primary"}
	wins, judged := judge(me, peer)
	if !judged {
		return discard(me, peer, split)
	}
	m, p := *me, *peer
	m.Primary, p.Primary = NoPrimary, NoPrimary
	loser := &p
	if !wins {
		loser = &m
	}
	if loser.Role != Primary {
		return followsAnother
	}
	loser.Role = Secondary
	d := Decide(&m, &p)
	if d.Action == SplitBrain || d.Sync() && d.Source() != wins {
		if !me.Ordered {
			return discard(me, peer, split)
		}
		d = Decision{Action: resync(me, peer, wins), Rule: "yielding", Why: "what was done without quorum was never answered"}
	}
	d.Yields = Of(loser.Node)
	d.Why = "the primary without quorum yields; " + d.Why
	return d
}

// judge says which of two primaries, or of a primary and one that follows
// another, goes on. Without quorum nobody can tell.
func judge(me, peer *Facts) (wins, judged bool) {
	if me.Quorate != peer.Quorate {
		return me.Quorate, true
	}
	// Neither can answer anything without the other.
	return wouldLead(me, peer), me.Ordered
}

// followsAnother: the one that has quorum is primary; the other follows one that
// has not.
var followsAnother = Decision{Action: Refuse, Rule: "rival", Why: "the side without quorum follows another primary"}

// noDisk: there is no data to compare, but of two primaries one yields all the
// same: it may write to the other's disk.
func noDisk(me, peer *Facts) Decision {
	d := Decision{Action: NoDisk, Rule: "no-disk", Why: "at least one side has no disk, so there is nothing to compare"}
	if !(me.Role == Primary && rival(me, peer) || peer.Role == Primary && rival(peer, me)) {
		return d
	}
	wins, judged := judge(me, peer)
	if !judged {
		return Decision{Action: SplitBrain, Rule: "two-primaries", Why: "both sides are primary, or follow different ones, and one has no disk: demote one of them"}
	}
	loser := peer
	if !wins {
		loser = me
	}
	if loser.Role != Primary {
		return followsAnother
	}
	d.Yields, d.Why = Of(loser.Node), "the primary without quorum yields; "+d.Why
	return d
}

// wouldLead reports whether, of two primaries neither of which has quorum, me
// stays one.
func wouldLead(me, peer *Facts) bool {
	if me.Role != peer.Role {
		return me.Role == Primary // the other follows one that is not here
	}
	if me.Gens.Current != peer.Gens.Current {
		return later(me, peer)
	}
	src, _ := direction(me, peer)
	return src == me.Node
}

// dayOne handles disks that were never written: a fresh one joins whatever
// exists; two fresh ones are equal without looking.
func dayOne(me, peer *Facts) (Decision, bool) {
	mine, theirs := me.Gens.Current, peer.Gens.Current
	switch {
	case mine == NoGen && theirs == NoGen:
		return Decision{Action: NoDisk, Rule: "both-unknown", Why: "neither side's disk is known to hold this device's data"}, true
	case mine == NoGen && theirs == DayOne || mine == DayOne && theirs == NoGen:
		// A blank disk overwrites nothing that was there before it.
		return Decision{Action: NoDisk, Rule: "existing", Why: "one side's disk held something before, and the other's is blank: an administrator says which counts (lockstepctl device create, with or without --from-existing)"}, true
	case mine == NoGen:
		return Decision{Action: TargetFull, Rule: "unknown", Why: "nothing is known of this disk's data"}, true
	case theirs == NoGen:
		return Decision{Action: SourceFull, Rule: "unknown", Why: "nothing is known of the data of the peer's disk"}, true
	case mine == theirs:
		return Decision{}, false
	case mine == DayOne && (me.arrives(peer) || !peer.Gens.Knows(DayOne)):
		return Decision{Action: TargetFull, Rule: "fresh", Why: "this disk is new"}, true
	case theirs == DayOne && (peer.arrives(me) || !me.Gens.Knows(DayOne)):
		return Decision{Action: SourceFull, Rule: "fresh", Why: "the peer's disk is new"}, true
	}
	return Decision{}, false
}

// equal: one generation; what differs, if anything, is in the bitmaps.
func equal(me, peer *Facts) Decision {
	mi, pi := me.Disk == Inconsistent, peer.Disk == Inconsistent
	switch {
	case mi && pi:
		return Decision{Action: NoDisk, Rule: "both-inconsistent", Why: "both disks are mixtures; both wait for a complete one"}
	case pi:
		return Decision{Action: SourceBits, Rule: "peer-inconsistent", Why: "same generation, and the peer's resync was interrupted"}
	case mi:
		return Decision{Action: TargetBits, Rule: "self-inconsistent", Why: "same generation, and this disk's resync was interrupted"}
	}
	switch {
	case me.Ordered: // what either has heard of, both have heard of
	case me.Disk == Outdated && peer.Disk > Outdated && !peer.KnowsBetter(me):
		return Decision{Action: PeerOutdated, Rule: "equal-outdated", Why: "this node knows that there is newer data than this generation"}
	case peer.Disk == Outdated && me.Disk > Outdated && !me.KnowsBetter(peer):
		return Decision{Action: SelfOutdated, Rule: "equal-outdated", Why: "the peer knows that there is newer data than this generation"}
	}
	if me.Dirty == 0 && peer.Dirty == 0 && !me.Crashed && !peer.Crashed {
		return Decision{Action: InSync, Rule: "equal", Why: "same generation, and neither side knows of a difference"}
	}
	src, why := direction(me, peer)
	if me.Dirty == 0 && peer.Dirty == 0 {
		return Decision{Action: InSync, Rule: "equal-clean", Why: "same generation, and no write was under way when a side stopped"}
	}
	if src == me.Node {
		return Decision{Action: SourceBits, Rule: ruleEqual, Even: true, Why: "same generation with differences: " + why}
	}
	return Decision{Action: TargetBits, Rule: ruleEqual, Even: true, Why: "same generation with differences: " + why}
}

// direction chooses who sends among two of one generation that differ in
// blocks whose writes were never acknowledged by all. Whoever sends, nothing
// that was acknowledged is lost; but the choice must be an order over all
// nodes, lest three of them wait for one another in a circle. So every reason
// is a fact about one node, never about a pair.
func direction(me, peer *Facts) (source int, why string) {
	for _, k := range keys {
		m, p := k.of(me), k.of(peer)
		if m == p {
			continue
		}
		if m > p {
			return me.Node, k.why
		}
		return peer.Node, k.why
	}
	if me.Node < peer.Node {
		return me.Node, tieWhy
	}
	return peer.Node, tieWhy
}

const tieWhy = "nothing tells them apart, so the lower node id sends"

var keys = []struct {
	of  func(*Facts) uint64
	why string
}{
	{func(f *Facts) uint64 { return flag(f.Disk >= Consistent) }, "the other side is outdated"},
	{func(f *Facts) uint64 { return flag(f.Role == Primary) }, "the primary's data is what its application saw"},
	{func(f *Facts) uint64 { return flag(f.Following) }, "it has what the present primary writes"},
	// A power cut may have taken from a cache what had been acknowledged; who
	// kept running has it.
	{func(f *Facts) uint64 { return flag(f.Live) }, "it kept running while the other stopped"},
	{func(f *Facts) uint64 { return flag(f.Crashed) }, "both stopped, and the primary's data is what its application saw"},
	{func(f *Facts) uint64 { return f.Stream }, "they followed different primaries"},
	{func(f *Facts) uint64 { return f.Received }, "it received more of the lost primary's writes"},
}

func flag(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// ancestry compares generations that differ.
func ancestry(me, peer *Facts) Decision {
	m, p := &me.Gens, &peer.Gens
	theyMoved, weMoved := p.Bitmap[me.Node] == m.Current, m.Bitmap[peer.Node] == p.Current
	switch {
	case theyMoved && !weMoved:
		return Decision{Action: TargetBits, Rule: "peer-moved-on", Why: "the peer moved on from this disk's generation and kept a bitmap of it"}
	case weMoved && !theyMoved:
		return Decision{Action: SourceBits, Rule: "moved-on", Why: "this node moved on from the peer's generation and kept a bitmap of it"}
	}
	mOld, pOld := p.Knows(m.Current), m.Knows(p.Current)
	switch {
	case mOld && pOld:
		return Decision{Action: SplitBrain, Rule: "crossed", Why: "each side remembers the other's generation as its past"}
	case mOld && p.reachesBack(me.Node, m.Current):
		return Decision{Action: TargetBits, Rule: "peer-reaches-back", Why: "this disk's generation is in the peer's past, and the peer's bitmap is of before it"}
	case pOld && m.reachesBack(peer.Node, p.Current):
		return Decision{Action: SourceBits, Rule: "reaches-back", Why: "the peer's generation is in this disk's past, and the bitmap is of before it"}
	// A bitmap that was kept since that generation for another node would do only
	// as long as that node is not being resynced, and only of this peer.
	case mOld:
		return Decision{Action: TargetFull, Rule: "peer-history", Why: "this disk's generation is in the peer's past, and no bitmap reaches back to it"}
	case pOld:
		return Decision{Action: SourceFull, Rule: "history", Why: "the peer's generation is in this disk's past, and no bitmap reaches back to it"}
	case commonPast(m, p):
		return Decision{Action: SplitBrain, Rule: "diverged", Why: "both sides were written since they were last in sync"}
	}
	return Decision{Action: Unrelated, Rule: "unrelated", Why: "the two disks have no generation in common"}
}

func commonPast(a, b *Gens) bool {
	for _, g := range a.History {
		if g != NoGen && b.Knows(g) {
			return true
		}
	}
	for _, g := range a.Bitmap {
		if g != NoGen && b.Knows(g) {
			return true
		}
	}
	return false
}

// fromMixture corrects a direction that would copy from a mixture: it then
// says who is outdated, and both wait for a complete disk.
func fromMixture(me, peer *Facts, d Decision) Decision {
	if !d.Sync() {
		return d
	}
	src := peer
	if d.Source() {
		src = me
	}
	if src.Disk != Inconsistent {
		return d
	}
	other := me
	if d.Source() {
		other = peer
	}
	if other.Disk == Inconsistent {
		return Decision{Action: NoDisk, Rule: "both-inconsistent", Why: "both disks are mixtures; both wait for a complete one"}
	}
	if other.Knows() || other.Best && other.Disk > Outdated || neverInForce(src, other) {
		// The generation that the mixture names lives nowhere any more, or never
		// came into force.
		act := SourceFull
		if d.Source() {
			act = TargetFull
		}
		return Decision{Action: act, Rule: "last-complete", Why: "the newest generation is on no complete disk, and every disk was asked"}
	}
	if d.Source() {
		return Decision{Action: PeerOutdated, Rule: d.Rule + "-mixture", Why: "the peer is behind this disk, whose own resync has not completed"}
	}
	return Decision{Action: SelfOutdated, Rule: d.Rule + "-mixture", Why: "this disk is behind the peer's, whose own resync has not completed"}
}

// neverInForce reports whether the generation that a mixture names cannot have
// come into force, or is one that the complete disk has everything of.
func neverInForce(mixture, complete *Facts) bool {
	if mixture.Ordered {
		g := complete.Gens
		g.Learn(&mixture.Gens)
		return !g.Behind()
	}
	return mixture.Gens.Tentative() && !complete.Gens.Tentative() && complete.Disk > Outdated
}

// notForMixture says why nothing is discarded for the disk of the side that would stay.
func notForMixture(winner *Facts) string {
	return fmt.Sprintf("; nothing is discarded for node %d's, which is a mixture until its resync is complete", winner.Node)
}

// discard resolves a divergence where an administrator has said whose changes
// go.
func discard(me, peer *Facts, d Decision) Decision {
	if me.Discard == peer.Discard {
		return d
	}
	winner, loser := me, peer
	if me.Discard {
		winner, loser = peer, me
	}
	if loser.Role == Primary {
		d.Why += "; the side whose changes are to be discarded must be secondary first"
		return d
	}
	if winner.Disk == Inconsistent {
		d.Why += notForMixture(winner)
		return d
	}
	return Decision{Action: resync(me, peer, peer.Discard), Rule: ruleDiscard, Why: "an administrator chose to discard one side's changes"}
}
