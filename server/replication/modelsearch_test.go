package replication

import (
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"slices"
)

// warm is n nodes in sync, of which none is primary.
func (m *model) warm() (c cluster) {
	g := NextGen(4)
	l := Gens{Current: g, Base: g, Seen: g, Noted: g}
	l.History[0] = DayOne
	for i := range m.n {
		n := &c.node[i]
		n.up, n.live, n.primary, n.disk, n.stream, n.gens = true, true, -1, UpToDate, 1, lineageOf(&l)
		n.birth.no = n.gens.cur
		for j := range m.n {
			if j != i {
				n.peers[j] = contact{session: true, agreed: true, inSync: true, repl: Established}
			}
		}
	}
	w := play{model: m, cluster: c}
	w.settle()
	w.end()
	return w.cluster
}

// blank is n nodes that have not met: the disks of the last ones were never
// written, the others are in sync.
func (m *model) blank(last int) (c cluster) {
	c = m.warm()
	for i := range m.n {
		n := &c.node[i]
		g := n.gens
		if i >= m.n-last {
			g = lineageOf(&Gens{Current: DayOne, Base: DayOne})
		}
		*n = replica{saved: stable{gens: g, disk: Consistent, current: true}, primary: -1}
	}
	w := play{model: m, cluster: c}
	for i := range m.n {
		w.boot(i)
	}
	w.settle()
	w.end()
	return w.cluster
}

// existing is blank, but that nothing is known of that many of the last disks.
func (m *model) existing(blank, unknown int) (c cluster) {
	c = m.blank(blank)
	w := play{model: m, cluster: c}
	for i := m.n - unknown; i < m.n; i++ {
		w.node[i] = replica{saved: stable{disk: Inconsistent}, primary: -1}
		for b := range blocks {
			w.node[i].data[b] = uint8(3 + i)
		}
		w.boot(i)
	}
	w.settle()
	w.end()
	return w.cluster
}

// longPast is a blank disk among others that have forgotten the first day.
func (m *model) longPast() (c cluster) {
	c = m.blank(1)
	for i := range m.n - 1 {
		n := &c.node[i]
		n.gens.past[0], n.saved.gens.past[0] = 0, 0
	}
	return c
}

// firsts is where histories begin.
func (m *model) firsts() []cluster {
	return []cluster{m.warm(), m.blank(m.n), m.blank(1), m.existing(0, 1), m.existing(m.n, 1), m.existing(0, 2), m.longPast()}
}

// end ends a step: all is stable, and states that mean the same are made the
// same.
func (w *play) end() {
	for i := range w.n {
		if w.node[i].up && w.fault != bearEarly && !w.late {
			w.save(i)
		}
	}
	var birth NodeSet
	for i := range w.n {
		if w.node[i].birth.busy {
			birth = birth.With(i)
		}
	}
	for i := range w.n {
		n := &w.node[i]
		told := false
		for p := range birth.All() {
			told = told || w.node[p].birth.no == n.told
		}
		if !told {
			n.told, n.toldOld, n.toldAway = 0, 0, 0
		}
		if n.voidable == 0 {
			n.before, n.logged = [most]uint8{}, 0
		}
		for j := range n.before {
			if !n.voidable.Has(j) {
				n.before[j] = 0
			}
		}
	}
	w.rank()
}

// rank gives the values of a block, streams, and places in a stream, small
// numbers in the same order.
func (w *play) rank() {
	var all []*uint8
	order := func() {
		var seen [256]bool
		seen[0] = true
		for _, p := range all {
			seen[*p] = true
		}
		var to [256]uint8
		k := uint8(0)
		for v := 1; v < 256; v++ {
			if seen[v] {
				k++
				to[v] = k
			}
		}
		for _, p := range all {
			*p = to[*p]
		}
		all = all[:0]
	}
	for b := range blocks {
		all = append(all, &w.answered[b])
		for i := range w.n {
			n := &w.node[i]
			all = append(all, &n.data[b])
			if n.op.on && int(n.op.block) == b {
				all = append(all, &n.op.value)
			}
		}
		order()
	}
	for i := range w.n {
		n := &w.node[i]
		all = append(all, &n.received, &n.head, &n.op.seq)
	}
	order()
	for i := range w.n {
		n := &w.node[i]
		all = append(all, &n.stream, &n.saved.stream, &n.logged)
		for j := range w.n {
			all = append(all, &n.peers[j].mine.stream, &n.peers[j].theirs.stream)
		}
	}
	order()
}

// check is what must be in every state.
func (w *play) check() {
	primaries := 0
	w.checkMarks()
	for i := range w.n {
		n := &w.node[i]
		if !n.up {
			continue
		}
		for j := range i {
			p, q := w.peer(i, j), w.peer(j, i)
			if p.agreed && q.agreed && p.inSync && q.inSync && w.differ(i, j)&^(n.bits[j]|w.node[j].bits[i]) != 0 {
				w.wrong(fmt.Sprintf("%d and %d are in sync and differ", i, j))
			}
		}
		serves := n.role == Primary && n.quorate && n.disk == UpToDate
		if serves {
			primaries++
		}
		if !w.ordered() || !serves && !w.mayPromote(i) {
			continue
		}
		for b := range blocks {
			if n.data[b] < w.answered[b] {
				w.wrong(fmt.Sprintf("%d is, or may become, primary and lacks an answered change of block %d", i, b))
			}
		}
	}
	if w.ordered() && primaries > 1 {
		w.wrong("two primaries have quorum")
	}
}

// checkMarks: what differs between two nodes, up or not, a mark of one of them
// covers, or an activity log, or the account of a primary's last changes. That
// holds of any two, whatever their generations: a bitmap reaches back as far as
// anybody asks. Only of a disk of which nothing is known nobody marks anything.
func (w *play) checkMarks() {
	for i := range w.n {
		for j := range i {
			a, b := &w.node[i], &w.node[j]
			unknown := func(n *replica) bool { return n.gens.cur == 0 && n.saved.gens.cur == 0 }
			covered := a.bits[j] | b.bits[i] | a.hot | b.hot | a.recent | b.recent
			if w.differ(i, j)&^covered != 0 && !unknown(a) && !unknown(b) {
				w.wrong(fmt.Sprintf("%d and %d differ in what nothing covers", j, i))
			}
		}
	}
}

// move is a step by its name.
type move struct {
	what   string
	do     func(w *play, i, j int) bool
	pair   bool
	weight int  // how often a walk takes it
	mends  bool // it brings the nodes together
}

func simple(f func(w *play, i int) bool) func(w *play, i, j int) bool {
	return func(w *play, i, _ int) bool { return f(w, i) }
}

// wake is a handshake: of two that come into contact, or once more of two that are
// neither in sync nor on their way there.
func wake(w *play, i, j int) bool {
	again := w.peer(i, j).session
	if j > i || !w.node[j].up || again && !w.restless(i, j) && !w.restless(j, i) {
		return false
	}
	w.meet(i, j)
	return true
}

// restless: a pair is neither in sync nor on its way there.
func (w *play) restless(i, j int) bool {
	n, p, q := &w.node[i], w.peer(i, j), &w.node[j]
	if !p.agreed {
		return true
	}
	ahead := q.role == Primary || n.disk == Outdated && q.disk == UpToDate
	behind := ahead && q.gens.cur != n.gens.cur
	under := p.pulling && p.joined || w.peer(j, i).pulling && w.peer(j, i).joined
	return !under && (!p.inSync || behind || n.bits[j] != 0)
}

// moves are all steps.
var moves = []move{
	{"boot", simple((*play).boot), false, 4, true},
	{"save", simple((*play).saveLate), false, 12, true},
	{"land", simple((*play).land), false, 12, true},
	{"arrive", (*play).arrive, true, 12, true},
	{"answer", simple((*play).answer), false, 12, true},
	{"announce", func(w *play, i, _ int) bool { return w.announce(i, 4) }, false, 12, true},
	{"announce below", func(w *play, i, _ int) bool { return w.announceAgain(i, 2) }, false, 12, true},
	{"announce above", func(w *play, i, _ int) bool { return w.announceAgain(i, 6) }, false, 12, true},
	{"note", (*play).note, true, 12, true},
	{"take", simple((*play).take), false, 12, true},
	{"commit", (*play).commit, true, 12, true},
	{"join", (*play).join, true, 12, true},
	{"copy 0", func(w *play, i, j int) bool { return w.copyBlock(i, j, 0) }, true, 12, true},
	{"copy 1", func(w *play, i, j int) bool { return w.copyBlock(i, j, 1) }, true, 12, true},
	{"source done", (*play).sourceDone, true, 12, true},
	{"target done", (*play).targetDone, true, 12, true},
	{"pull", simple((*play).pull), false, 12, true},
	{"meet", wake, true, 6, true},
	{"promote", simple((*play).promote), false, 4, false},
	{"demote", simple((*play).demote), false, 2, false},
	{"issue 0", func(w *play, i, _ int) bool { return w.issue(i, 0) }, false, 6, false},
	{"issue 1", func(w *play, i, _ int) bool { return w.issue(i, 1) }, false, 6, false},
	{"cut", func(w *play, i, j int) bool { return j < i && w.cut(i, j) }, true, 2, false},
	{"crash", simple((*play).crash), false, 1, false},
}

// announceAgain is announce where another generation of that number is.
func (w *play) announceAgain(i int, spot id) bool {
	try := *w
	return !try.announce(i, 4) && w.announce(i, spot)
}

// try takes the step with nodes i and j; nil: it cannot be taken.
func (mv *move) try(m *model, c *cluster, i, j int) *play {
	if mv.pair == (i == j) || !c.node[i].up && mv.what != "boot" {
		return nil
	}
	w := &play{model: m, cluster: *c}
	if !mv.do(w, i, j) {
		return nil
	}
	w.settle()
	w.end()
	w.check()
	return w
}

// next yields every state that can follow.
func (m *model) next(c *cluster, yield func(w *play, mv uint8, i, j int)) {
	for k := range moves {
		for i := range m.n {
			for j := range m.n {
				if w := moves[k].try(m, c, i, j); w != nil {
					yield(w, uint8(k), i, j)
				}
			}
		}
	}
}

// trail is how a state came about.
type trail struct {
	from int32
	mv   uint8
	i, j int8
}

// search goes through every history of so many steps, the shortest first, and
// returns how many states there are, and a history that went wrong.
func (m *model) search(first cluster, depth int) (states int, lines []string, bad string) {
	seed := maphash.MakeSeed()
	seen := map[uint64]struct{}{maphash.Comparable(seed, first): {}}
	how := []trail{{from: -1}}
	todo, at := []cluster{first}, []int32{0}
	for left := depth - 1; left >= 0; left-- {
		var more []cluster
		var moreAt []int32
		for k := range todo {
			m.next(&todo[k], func(w *play, mv uint8, i, j int) {
				h := maphash.Comparable(seed, w.cluster)
				if _, ok := seen[h]; ok && w.bad == "" || bad != "" {
					return
				}
				seen[h] = struct{}{}
				how = append(how, trail{at[k], mv, int8(i), int8(j)})
				if bad = w.bad; left > 0 {
					more, moreAt = append(more, w.cluster), append(moreAt, int32(len(how)-1))
				}
			})
			if bad != "" {
				return len(how), m.tell(how), bad
			}
		}
		todo, at = more, moreAt
	}
	return len(how), nil, ""
}

func (m *model) tell(how []trail) (lines []string) {
	for k := int32(len(how) - 1); k > 0; k = how[k].from {
		lines = append(lines, moves[how[k].mv].name(int(how[k].i), int(how[k].j)))
	}
	slices.Reverse(lines)
	return lines
}

func (mv *move) name(i, j int) string {
	if mv.pair {
		return fmt.Sprintf("%s %d %d", mv.what, i, j)
	}
	return fmt.Sprintf("%s %d", mv.what, i)
}

// walk goes on at random, and returns where it came to, how, and what went wrong.
func (m *model) walk(r *rand.Rand, c cluster, steps int) (last cluster, lines []string, bad string) {
	for range steps {
		var to *play
		var name string
		sum := 0
		m.next(&c, func(w *play, mv uint8, i, j int) {
			sum += moves[mv].weight
			if w.bad != "" || to == nil || to.bad == "" && r.IntN(sum) < moves[mv].weight {
				to, name = w, moves[mv].name(i, j)
			}
		})
		if to == nil {
			break
		}
		lines = append(lines, name)
		if to.bad != "" {
			return c, lines, to.bad
		}
		c = to.cluster
	}
	return c, lines, ""
}

// recover has all nodes up and in contact and goes on, with no further mishap,
// until nothing is left to do. They then hold the same, and nobody waits: where
// three waited for one another in a circle this would not end so.
func (m *model) recover(c cluster, trace func(string)) (bad string) {
	roomy := *m
	roomy.highest += 8
	w, at := &play{model: &roomy, cluster: c}, [2]int{}
	for range 500 {
		if !roomy.goOn(w, &at, trace) {
			return m.whole(w)
		}
		if w.bad != "" {
			return w.bad
		}
	}
	return "the nodes do not come to rest"
}

// whole is what is wanting when the nodes have come to rest.
func (m *model) whole(w *play) string {
	for i := range m.n {
		if w.node[i].gens.cur == 0 {
			return "" // an administrator has to say what the disk is worth
		}
		for j := range m.n {
			if w.peer(i, j).refused {
				return "" // likewise, of a split brain
			}
		}
	}
	for i := range m.n {
		if w.node[i].disk != UpToDate && m.policy.Kind != QuorumOff || w.node[i].data != w.node[0].data {
			return fmt.Sprintf("%d does not come to have the current data", i)
		}
	}
	return ""
}

// goOn takes the next step that brings the nodes together, each in its turn. Another
// handshake of two that have agreed comes when there is nothing else: it is waited
// for. at is where each of the two turns is.
func (m *model) goOn(w *play, at *[2]int, trace func(string)) bool {
	for k := range at {
		for range len(moves) * m.n * m.n {
			at[k] = (at[k] + 1) % (len(moves) * m.n * m.n)
			mv, i, j := &moves[at[k]/(m.n*m.n)], at[k]/m.n%m.n, at[k]%m.n
			if again := mv.what == "meet" && w.peer(i, j).agreed; !mv.mends || again != (k == 1) {
				continue
			}
			if x := mv.try(m, &w.cluster, i, j); x != nil && (x.bad != "" || x.cluster != w.cluster) {
				trace(mv.name(i, j))
				*w = *x
				return true
			}
		}
	}
	return false
}
