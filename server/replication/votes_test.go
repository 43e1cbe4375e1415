package replication

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

// most is how many nodes the model has at most.
const most = 4

// world is a model of the nodes of one device, of nothing but who has a vote,
// who is in contact with whom, and who has heard of the newest data. A leave and
// a return are carried out message by message, and anything may come between
// two of them.
type world struct {
	n     int8
	epoch int8 // of the data: grows when somebody with quorum writes
	node  [most]member
}

type member struct {
	up    bool
	votes [most]int8 // as Votes
	link  uint8      // in contact with
	mute  uint8      // of those, who is taken to have no vote
	knows int8       // the newest data that it has

	// A change of its own vote that is under way.
	step  step
	asked uint8
	said  uint8 // of asked, who has done as it was asked
}

type step int8

const (
	none step = iota
	leaving
	left // on stable storage, and not known to all
	returning
)

func (w *world) full(i int) *Votes {
	var v Votes
	for j, c := range w.node[i].votes {
		v[j] = uint32(c)
	}
	return &v
}

func (w *world) take(i int, v *Votes) {
	for j := range w.node[i].votes {
		w.node[i].votes[j] = int8(v[j])
	}
}

func (w *world) disks() (s NodeSet) {
	for i := range int(w.n) {
		s = s.With(i)
	}
	return s
}

// quorate is what the policy says of what node i sees. One that is about to
// leave is no primary, and votes for none.
func (w *world) quorate(i int) bool {
	m := &w.node[i]
	if !m.up || m.step == leaving || m.step == left {
		return false
	}
	var c Census
	v := w.full(i)
	for j := range int(w.n) {
		switch {
		case j == i || m.link>>j&1 != 0:
			c.UpToDate++
			if j == i && v.Given(i) || j != i && m.mute>>j&1 != 0 {
				c.Voteless++
			}
		case v.Given(j):
			c.Outdated++
		default:
			c.Unknown++
		}
	}
	return QuorumPolicy{Kind: QuorumMajority}.Quorum(c).Quorate
}

func (w *world) here(i int) uint8 { return w.node[i].link | 1<<i }

// wrong is what must never be.
func (w *world) wrong() string {
	for i := range int(w.n) {
		if !w.quorate(i) {
			continue
		}
		newest := int8(0)
		for j := range int(w.n) {
			if w.here(i)>>j&1 == 0 {
				continue
			}
			newest = max(newest, w.node[j].knows)
		}
		if newest < w.epoch {
			return fmt.Sprintf("%d has quorum, and nobody in its reach has the newest data", i)
		}
		for j := range i {
			if w.quorate(j) && w.here(i)&w.here(j) == 0 {
				return fmt.Sprintf("%d and %d both have quorum", j, i)
			}
		}
	}
	return ""
}

// next yields every world that can follow. changes is how often a vote may
// change, epochs how often data may.
func (w *world) next(changes, epochs int8, yield func(world, string)) {
	try := func(what string, i, j int, f func(x *world) bool) {
		x := *w
		if f(&x) {
			yield(x, fmt.Sprintf("%s %d %d", what, i, j))
		}
	}
	for i := range int(w.n) {
		m := &w.node[i]
		if !m.up {
			try("boot", i, i, func(x *world) bool { x.node[i].up = true; return true })
			continue
		}
		try("crash", i, i, func(x *world) bool { x.crash(i); return true })
		try("write", i, i, func(x *world) bool {
			if x.epoch >= epochs || !x.quorate(i) {
				return false
			}
			x.epoch++
			for j := range int(x.n) {
				if x.here(i)>>j&1 != 0 {
					x.node[j].knows = x.epoch
				}
			}
			return true
		})
		try("leave", i, i, func(x *world) bool { return x.begin(i, leaving, changes) })
		try("return", i, i, func(x *world) bool { return x.begin(i, returning, changes) })
		try("go on", i, i, func(x *world) bool { return x.goOn(i) })
		try("give up", i, i, func(x *world) bool { return x.giveUp(i) })
		for j := range int(w.n) {
			if j == i || !w.node[j].up {
				continue
			}
			linked := m.link>>j&1 != 0
			switch {
			case linked && j < i:
				try("cut", i, j, func(x *world) bool { x.cut(i, j); return true })
			case !linked && j < i:
				try("meet", i, j, func(x *world) bool { x.meet(i, j); return true })
			}
			if linked && m.asked>>j&1 != 0 && m.said>>j&1 == 0 {
				try("asks", i, j, func(x *world) bool { return x.hear(i, j) })
			}
		}
	}
}

func (w *world) crash(i int) {
	for j := range int(w.n) {
		if w.node[i].link>>j&1 != 0 {
			w.cut(i, j)
		}
	}
	m := &w.node[i]
	m.up, m.step, m.asked, m.said = false, none, 0, 0
}

func (w *world) cut(i, j int) {
	for _, p := range [][2]int{{i, j}, {j, i}} {
		m, bit := &w.node[p[0]], uint8(1)<<p[1]
		m.link &^= bit
		m.mute &^= bit
		if m.step == leaving && m.asked&bit != 0 || m.step == returning {
			m.step, m.asked, m.said = none, 0, 0
			w.abort(p[0])
		}
		m.asked &^= bit // nobody waits for it
		m.said &^= bit
	}
}

// abort: those that stopped to count on a vote count on it again.
func (w *world) abort(i int) {
	if w.full(i).Given(i) {
		return
	}
	for j := range int(w.n) {
		w.node[j].mute &^= 1 << i
	}
}

// meet is a handshake: both have what either knew of votes, and the newest data.
func (w *world) meet(i, j int) {
	a, b := w.full(i), w.full(j)
	a.Learn(w.full(j), i)
	b.Learn(w.full(i), j)
	w.take(i, a)
	w.take(j, b)
	data := max(w.node[i].knows, w.node[j].knows)
	for _, p := range [][2]int{{i, j}, {j, i}} {
		m, q := &w.node[p[0]], &w.node[p[1]]
		m.knows = data
		m.link |= 1 << p[1]
		if w.full(p[1]).Given(p[1]) {
			m.mute |= 1 << p[1]
		}
		_ = q
	}
	for _, p := range [][2]int{{i, j}, {j, i}} {
		// Who was asked was not everybody.
		if m := &w.node[p[0]]; m.step == leaving || m.step == returning {
			m.step, m.asked, m.said = none, 0, 0
			w.abort(p[0])
		}
	}
}

func (w *world) begin(i int, s step, changes int8) bool {
	m := &w.node[i]
	v := w.full(i)
	may := v.MayLeave(i, w.disks(), NodeSet(m.link))
	if s == returning {
		may = v.MayReturn(i, w.disks(), NodeSet(m.link))
	}
	if m.step != none || !may || m.votes[i] >= changes {
		return false
	}
	m.step, m.asked, m.said = s, m.link, 0
	return true
}

// hear has j do as i asks, or refuse.
func (w *world) hear(i, j int) bool {
	m, q := &w.node[i], &w.node[j]
	if q.link&^(1<<i)&^m.asked != 0 && m.step != left {
		return false // somebody that i does not see counts on j
	}
	switch m.step {
	case leaving:
		if q.step == left || q.step == leaving && j < i {
			return false // the lower one goes first
		}
		if q.step != none {
			q.step, q.asked, q.said = none, 0, 0
			w.abort(j)
		}
		q.mute |= 1 << i
	case left:
		q.votes[i] = max(q.votes[i], m.votes[i])
	case returning:
		if q.step == leaving {
			return false
		}
		q.votes[i] = max(q.votes[i], m.votes[i]+1)
	}
	m.said |= 1 << j
	return true
}

// goOn is what i does when all have said yes.
func (w *world) goOn(i int) bool {
	m := &w.node[i]
	if m.step == none || m.step != left && m.said != m.asked {
		return false
	}
	switch m.step {
	case leaving:
		heir := false // one that has a vote, and all that i has
		for j := range int(w.n) {
			heir = heir || (m.asked&^m.mute)>>j&1 != 0 && !w.full(i).Given(j) && w.node[j].knows >= m.knows
		}
		if !heir {
			return false
		}
		m.votes[i]++
		m.step, m.said = left, 0
	case left:
		return false // it stops, whoever has heard
	case returning:
		m.votes[i]++
		m.step, m.asked, m.said = none, 0, 0
		for j := range int(w.n) {
			w.node[j].mute &^= 1 << i
		}
	}
	return true
}

func (w *world) giveUp(i int) bool {
	m := &w.node[i]
	if m.step != leaving && m.step != returning {
		return false
	}
	m.step, m.asked, m.said = none, 0, 0
	w.abort(i)
	return true
}

func start(n int) world {
	w := world{n: int8(n)}
	for i := range n {
		w.node[i].up = true
	}
	for i := range n {
		for j := range i {
			w.meet(i, j)
		}
	}
	return w
}

// TestNeverTwoQuorums goes through every history of three nodes that give up
// their votes and take them back, crash, and lose sight of one another at any
// point of it: there are never two that have quorum and share nobody, and who
// has quorum has the newest data in reach.
func TestNeverTwoQuorums(t *testing.T) {
	for n := 2; n <= 3; n++ {
		seen, from, how := map[world]bool{}, map[world]world{}, map[world]string{}
		todo := []world{start(n)}
		seen[todo[0]] = true
		for len(todo) > 0 {
			w := todo[0] // the shortest history first
			todo = todo[1:]
			if bad := w.wrong(); bad != "" {
				t.Errorf("%s: %+v", bad, w)
				for h := how[w]; h != ""; h = how[w] {
					w = from[w]
					t.Logf("%s: %+v", h, w)
				}
				return
			}
			w.next(int8(5-n), 1, func(x world, h string) {
				if !seen[x] {
					seen[x], from[x], how[x] = true, w, h
					todo = append(todo, x)
				}
			})
		}
		t.Logf("%d nodes: %d states", n, len(seen))
	}
}

// TestNeverTwoQuorumsOfMany walks at random through the histories of four.
func TestNeverTwoQuorumsOfMany(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	for range 300 {
		w := start(most)
		var trail []string
		for range 400 {
			var all []world
			var how []string
			w.next(100, 100, func(x world, h string) { all, how = append(all, x), append(how, h) })
			k := r.IntN(len(all))
			w, trail = all[k], append(trail, how[k])
			if bad := w.wrong(); bad != "" {
				t.Fatalf("%s: %+v\n%v", bad, w, trail)
			}
		}
	}
}
