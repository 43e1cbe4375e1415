package replication

import "slices"

// The model: the nodes of one device, each with a disk of a few blocks. What is
// said of generations, who has quorum, and what two nodes conclude when they meet
// is said by this package; the model holds the data, the marks and the activity
// logs, and does in each step what server/device does, in the smallest form:
//
//   - A change is issued, reaches each disk in a step of its own, and is answered
//     in another. What it misses is marked when it is issued, or when somebody is
//     lost meanwhile; then the generation that tells is noted by each that takes
//     part, taken by the primary, and brought into force at each before the
//     change is answered. Anything may come between two of these steps.
//   - Links are cut and made, nodes crash and start again. A crash turns what the
//     activity log holds into marks.
//   - A resync is begun, its marks are joined, its blocks are copied, and it ends
//     at the source and then at the target, each in a step.
//
// What is left out: caches of disks (what was written is durable), frames under
// way (a node knows at once what a peer in agreement with it says of itself; two
// nodes come to an agreement, and part, in one step), votes that are given up,
// nodes without a disk, and what an administrator does.

const (
	blocks  = 2
	pastMax = 28
)

// id is a Gen in one byte: five bits of number, three of what is random.
type id uint8

const dayOneID id = 1

func (i id) gen() Gen {
	switch i {
	case 0:
		return NoGen
	case dayOneID:
		return DayOne
	}
	return Gen(i>>3)<<randomBits | Gen(i&7)
}

func idOf(g Gen) id {
	switch g {
	case NoGen:
		return 0
	case DayOne:
		return dayOneID
	}
	return id(g>>randomBits<<3) | id(g&7)
}

// lineage is Gens, small. The order of the past means nothing but for what is
// forgotten, and nothing is.
type lineage struct {
	cur, base, seen, noted id
	slot                   [most]id
	past                   [pastMax]id
}

func (l *lineage) gens() (g Gens) {
	g.Current, g.Base, g.Seen, g.Noted = l.cur.gen(), l.base.gen(), l.seen.gen(), l.noted.gen()
	for i, s := range l.slot {
		g.Bitmap[i] = s.gen()
	}
	for i, p := range l.past {
		if p == 0 {
			break
		}
		g.History[i] = p.gen()
	}
	return g
}

func lineageOf(g *Gens) (l lineage) {
	l.cur, l.base, l.seen, l.noted = idOf(g.Current), idOf(g.Base), idOf(g.Seen), idOf(g.Noted)
	for i := range l.slot {
		l.slot[i] = idOf(g.Bitmap[i])
	}
	n := 0
	for _, p := range g.History {
		if p == NoGen {
			break
		}
		l.past[n] = idOf(p) // more of a past than there is room for is a fault of the model's bounds
		n++
	}
	slices.Sort(l.past[:n])
	return l
}

// replica is a node with its disk.
type replica struct {
	up   bool
	data [blocks]uint8

	// What the metadata holds of it is stable.
	stable
	saved stable // as it is on stable storage; the same, unless a fault has it late
	bits  [most]uint8
	hot   uint8 // blocks in the activity log

	// What a crash forgets.
	best, live, quorate bool
	primary             int8
	received, head      uint8
	recent              uint8 // blocks of the primary's changes that may not be everywhere
	logged              uint8 // the stream whose changes were under way at a crash
	before              [most]uint8
	voidable            NodeSet // whose marks in before are what was marked before the crash
	receives            NodeSet
	peers               [most]contact
	op                  change
	birth               birth

	// What a replica was told of a generation.
	told     id
	toldOld  id
	toldAway NodeSet
}

// stable is the superblock, and the state of the disk that goes with it.
type stable struct {
	gens    lineage
	disk    DiskState
	current bool // it was up to date when that was last known
	role    Role
	crashed bool
	stream  uint8
}

// birth is a generation that a primary begins.
type birth struct {
	wanted, busy, committing, again, owed, hold bool
	stint                                       bool // there was one in this stint
	no, old                                     id
	away, wait, has                             NodeSet
}

// change is a change of the application's under way.
type change struct {
	on, local, localOK, acked bool
	block, value, seq         uint8
	wait, got, miss           NodeSet
}

// contact is what a node knows of another.
type contact struct {
	session, agreed, refused, inSync bool
	repl                             ReplState
	full, even                       bool // of the decision
	pulling, joined, ended           bool
	mine, theirs                     gist
}

// gist is what of the facts matters after a handshake.
type gist struct {
	gens    lineage
	disk    DiskState
	role    Role
	stream  uint8
	primary int8
	flags   uint8
}

// cluster is a state of the model.
type cluster struct {
	node     [most]replica
	answered [blocks]uint8
	parent   [256]id // the generation from which each has come
}

// fault is a deliberate mistake in what the model does with the package.
type fault uint8

const (
	noFault fault = iota
	forgetMissed
	forgetAway
	forgetShared
	bearEarly
	answerEarly
	dropEqual
	adoptUnmarked
	forgetLog
	skipReconcile
	unjoined
	promoteUnasked
	copyComplete
	finishEarly
	takeName
	endUnreached
	inheritFreely
	forgetPast
	faults
)

var faultNames = [faults]string{
	"none",
	"what a lost peer missed of a change under way is not marked",
	"what is written while a peer is away is not marked",
	"the replicas are not told what a lost one missed",
	"a generation is borne, and built on, before it is stable",
	"a change that missed a peer is answered before there is a generation that tells",
	"marks are dropped where both sides are in one generation",
	"a disk bears the generations of its source before it has marked against the others what it lacks",
	"a crash does not turn the activity log into marks",
	"the survivors of a primary do not mark its last changes",
	"the target of a resync does not take the marks of its source",
	"nobody votes on a promotion",
	"a disk that is being resynced passes for complete",
	"a resync ends with marks left",
	"a disk of which nothing is known takes the name of a generation",
	"a resync ends while a primary does not send its target changes",
	"the target of a resync takes its marks against all others for void",
	"a mixture does not recall the generations that it missed",
}

func (f fault) String() string { return faultNames[f] }

// model is what does not change in the course of a history.
type model struct {
	n       int
	policy  QuorumPolicy
	fault   fault
	rules   map[string]int
	highest id   // number of a generation
	late    bool // what a node knows is not at once stable
}

// play is a state on its way to the next.
type play struct {
	*model
	cluster
	bad string
}

func (w *play) wrong(what string) {
	if w.bad == "" {
		w.bad = what
	}
}

func (w *play) all() NodeSet           { return NodeSet(1)<<w.n - 1 }
func (w *play) others(i int) NodeSet   { return w.all().Without(i) }
func (w *play) ordered() bool          { return w.policy.Ordered(w.n) }
func (w *play) peer(i, j int) *contact { return &w.node[i].peers[j] }

// turn changes a node's generations by a function of the package.
func (w *play) turn(i int, f func(Gens) Gens) {
	g := f(w.node[i].gens.gens())
	w.node[i].gens = lineageOf(&g)
}

// save makes what a node knows stable.
func (w *play) save(i int) {
	n := &w.node[i]
	s := n.stable
	if s.disk == Consistent {
		s.current = n.saved.current // which is to know nothing new
	} else {
		s.current = s.disk == UpToDate
	}
	n.current, n.saved = s.current, s
}

// saveLate has what a node knows become stable, where that is not at once.
func (w *play) saveLate(i int) bool {
	if !w.late || w.node[i].saved == w.node[i].stable {
		return false
	}
	w.save(i)
	return true
}

// force makes it stable where somebody is about to rely on it.
func (w *play) force(i int) {
	if w.fault != bearEarly {
		w.save(i)
	}
}

func (w *play) agreeing(i int) (s NodeSet) {
	for j := range w.n {
		if j != i && w.peer(i, j).agreed {
			s = s.With(j)
		}
	}
	return s
}

func (w *play) behind(i int) bool {
	if !w.ordered() {
		return false
	}
	g := w.node[i].gens.gens()
	return g.Behind()
}

func (w *play) setDisk(i int, s DiskState) {
	n := &w.node[i]
	if n.disk == s {
		return
	}
	n.disk = s
	n.best = n.best && s > Outdated
	n.live = s == UpToDate || n.live && s >= Outdated
}

func (w *play) setBits(i int, to NodeSet, marks uint8) {
	for j := range to.All() {
		if j != i {
			w.node[i].bits[j] |= marks
		}
	}
}

func (w *play) pulling(i int) bool {
	for j := range w.n {
		if w.peer(i, j).pulling {
			return true
		}
	}
	return false
}

// tracks is whom i's announcement says to be primary.
func (w *play) tracks(i int) int8 {
	if w.node[i].role == Primary {
		return int8(i)
	}
	return w.node[i].primary
}

// primaryAbout: i knows of a primary.
func (w *play) primaryAbout(i int) bool {
	if w.node[i].primary >= 0 || w.node[i].role == Primary {
		return true
	}
	for j := range w.agreeing(i).All() {
		if w.tracks(j) >= 0 {
			return true
		}
	}
	return false
}

// takers is who gets the changes of a primary, itself among them.
func (w *play) takers(p int) NodeSet {
	s := w.node[p].receives
	if w.node[p].role == Primary && w.node[p].disk.HasData() {
		s = s.With(p)
	}
	return s
}

func (w *play) census(i int) {
	n := &w.node[i]
	c := Census{Had: n.quorate}
	if n.disk >= Consistent {
		c.UpToDate++
	} else {
		c.Present++
	}
	for j := range w.others(i).All() {
		p, q := w.peer(i, j), &w.node[j]
		switch {
		case !p.agreed:
			c.Unknown++
		case q.disk == UpToDate || q.disk == Consistent && p.repl == Established:
			c.UpToDate++
		default:
			c.Present++
		}
	}
	n.quorate = w.policy.Quorum(c).Quorate
}

// following: a primary in contact sends its changes here.
func (w *play) following(i int) bool {
	n := &w.node[i]
	if n.primary < 0 || int(n.primary) == i || n.disk != UpToDate {
		return false
	}
	return w.peer(i, int(n.primary)).agreed && w.node[n.primary].receives.Has(i)
}

func (w *play) facts(i, j int) Facts {
	n := &w.node[i]
	f := Facts{
		Node: i, Role: n.role, Disk: n.disk, Size: 1, Gens: n.gens.gens(),
		Crashed: n.crashed, Live: n.live, Following: w.following(i), Best: n.best,
		Stream: uint64(n.stream), Received: uint64(n.received), Quorate: n.quorate,
		Primary: int(n.primary), Ordered: w.ordered(), Origin: 1, Member: true,
	}
	if n.role == Primary && n.birth.no != n.gens.cur && n.disk == UpToDate {
		f.Announced = n.birth.no.gen()
	}
	if f.Primary == j {
		f.Primary = NoPrimary
	}
	if n.role == Primary {
		f.Received = uint64(n.head)
	}
	for b := range blocks {
		f.Dirty += int64(n.bits[j] >> b & 1)
	}
	return f
}

func gistOf(f *Facts) gist {
	g := gist{gens: lineageOf(&f.Gens), disk: f.Disk, role: f.Role, stream: uint8(f.Stream), primary: int8(f.Primary)}
	for i, on := range []bool{f.Dirty > 0, f.Crashed, f.Live, f.Following, f.Best, f.Announced != NoGen} {
		if on {
			g.flags |= 1 << i
		}
	}
	return g
}

func (g *gist) live() bool { return g.flags&4 != 0 }

// follow begins to follow a primary's stint.
func (w *play) follow(i, p int) {
	n := &w.node[i]
	n.primary, n.stream, n.received = int8(p), w.node[p].stream, 0
	n.recent, n.hot = 0, 0 // what was hot is marked where it matters
}
