package replication

// promote makes a node primary, if it and those in reach agree.
func (w *play) promote(i int) bool {
	if !w.mayPromote(i) {
		return false
	}
	n := &w.node[i]
	w.setDisk(i, UpToDate)
	n.role, n.primary = Primary, int8(i)
	n.stream = w.nextStream()
	n.birth = birth{no: n.birth.no}
	n.head = max(n.head, n.received)
	n.recent, n.hot = 0, 0
	for j := range w.agreeing(i).All() {
		if w.peer(i, j).repl == PausedSyncT {
			w.meet(i, j)
		}
	}
	return true
}

func (w *play) nextStream() (s uint8) {
	for i := range w.n {
		s = max(s, w.node[i].stream, w.node[i].logged, w.node[i].saved.stream)
	}
	return s + 1
}

func (w *play) mayPromote(i int) bool {
	n := &w.node[i]
	if !n.up || n.role == Primary || !n.quorate {
		return false
	}
	for j := range w.others(i).All() {
		p, q := w.peer(i, j), &w.node[j]
		if p.agreed && q.role == Primary || p.session && !p.agreed && !p.refused {
			return false
		}
		if w.fault == promoteUnasked || !p.agreed {
			continue
		}
		if q.primary >= 0 && int(q.primary) != i {
			return false // its vote
		}
	}
	return n.disk == UpToDate || n.disk == Consistent && w.policy.Kind == QuorumOff && !w.pulling(i)
}

func (w *play) demote(i int) bool {
	n := &w.node[i]
	if n.role != Primary || n.op.on {
		return false
	}
	n.role, n.primary, n.receives, n.recent, n.hot = Secondary, -1, 0, 0, 0
	n.birth = birth{no: n.birth.no}
	return true
}

// yield: another is primary. What is under way is never answered.
func (w *play) yield(i int) {
	n := &w.node[i]
	n.role, n.primary, n.receives = Secondary, -1, 0
	n.birth = birth{no: n.birth.no}
	if n.op.on {
		w.setBits(i, w.others(i), 1<<n.op.block)
		if n.op.local { // it is on its way to the disk all the same
			n.data[n.op.block] = n.op.value
		}
	}
	n.op, n.hot = change{}, 0
}

// issue lets a change in and sends it.
func (w *play) issue(i, block int) bool {
	n := &w.node[i]
	if n.role != Primary || n.op.on || !n.quorate || n.disk != UpToDate || n.birth.wanted {
		return false
	}
	o := change{on: true, local: true, block: uint8(block), value: w.answered[block]}
	for j := range w.n {
		o.value = max(o.value, w.node[j].data[block])
		if q := &w.node[j].op; q.on && int(q.block) == block {
			o.value = max(o.value, q.value)
		}
	}
	o.value++
	n.head++
	o.seq, o.wait, o.miss = n.head, n.receives, w.others(i)&^n.receives
	if w.fault != forgetAway {
		w.setBits(i, o.miss, 1<<block)
	}
	for j := range o.miss.All() {
		w.peer(i, j).inSync = false
	}
	n.hot |= 1 << block
	n.op = o
	return true
}

// land has the primary's own disk take the change.
func (w *play) land(i int) bool {
	n := &w.node[i]
	o := &n.op
	if !o.on || !o.local {
		return false
	}
	n.data[o.block] = o.value
	o.local, o.localOK = false, n.disk == UpToDate
	return true
}

// arrive has a replica take it, and confirm.
func (w *play) arrive(i, j int) bool {
	n, q := &w.node[i], &w.node[j]
	o := &n.op
	if !o.on || !o.wait.Has(j) || !w.peer(j, i).agreed || q.role == Primary || !q.disk.HasData() || int(q.primary) != i {
		return false
	}
	q.data[o.block] = o.value
	q.received = max(q.received, o.seq)
	q.recent |= 1 << o.block
	if w.n > 2 {
		q.hot |= 1 << o.block
	}
	if w.fault != forgetAway {
		w.setBits(j, w.all()&^w.takers(i).With(j), 1<<o.block)
	}
	o.wait, o.got, o.acked = o.wait.Without(j), o.got.With(j), true
	return true
}

func (w *play) answer(i int) bool {
	n := &w.node[i]
	o := &n.op
	if !o.on || o.local || o.wait != 0 || n.birth.hold || !n.quorate || !o.localOK && !o.acked {
		return false
	}
	w.answered[o.block] = max(w.answered[o.block], o.value)
	bit := uint8(1) << o.block
	n.hot &^= bit
	for j := range o.got.All() {
		if q := &w.node[j]; int(q.primary) == i && w.peer(j, i).agreed {
			q.hot &^= bit
			q.recent &^= bit
		}
	}
	n.op = change{}
	return true
}

// cut ends the contact of two nodes.
func (w *play) cut(i, j int) bool {
	if !w.peer(i, j).session {
		return false
	}
	w.lose(i, j)
	w.lose(j, i)
	return true
}

func (w *play) lose(i, j int) {
	p := w.peer(i, j)
	if p.agreed {
		w.part(i, j)
	}
	*p = contact{}
}

// part ends i's agreement with j.
func (w *play) part(i, j int) {
	n, p := &w.node[i], w.peer(i, j)
	inSync := p.repl == Established && w.node[j].disk == UpToDate
	*p = contact{session: p.session}
	n.birth.has = n.birth.has.Without(j)
	if n.birth.busy && n.birth.wait.Has(j) {
		n.birth.wait = n.birth.wait.Without(j)
		n.birth.again = true
	}
	if n.receives.Has(j) {
		n.receives = n.receives.Without(j)
		w.exclude(i, j, inSync)
	}
	if int(n.primary) == j {
		w.primaryLost(i, j)
	}
}

// exclude: the primary goes on without a peer.
func (w *play) exclude(i, j int, inSync bool) {
	n := &w.node[i]
	if inSync || w.needsGen(i) {
		n.birth.wanted = true
		n.birth.again = n.birth.busy
	}
	o := &n.op
	if !o.on || !o.wait.Has(j) {
		return
	}
	if n.birth.wanted && w.fault != answerEarly {
		n.birth.hold = true
	}
	if w.fault != forgetMissed {
		n.bits[j] |= 1 << o.block
	}
	o.wait, o.miss = o.wait.Without(j), o.miss.With(j)
	for r := range n.receives.All() {
		if w.fault != forgetShared && r != j {
			w.node[r].bits[j] |= 1 << o.block
		}
	}
}

// primaryLost: what may not be everywhere is marked against all, and those in
// contact compare.
func (w *play) primaryLost(i, p int) {
	n := &w.node[i]
	n.primary = -1
	if n.recent == 0 || w.fault == skipReconcile {
		return
	}
	w.setBits(i, w.others(i), n.recent)
	for j := range w.agreeing(i).Without(p).All() {
		w.part(i, j)
		w.part(j, i)
	}
}

func (w *play) crash(i int) bool {
	if !w.node[i].up {
		return false
	}
	for j := range w.others(i).All() {
		if w.peer(i, j).session {
			w.lose(j, i)
		}
	}
	old := w.node[i]
	w.node[i] = replica{data: old.data, bits: old.bits, hot: old.hot, saved: old.saved, primary: -1}
	return true
}

func (w *play) boot(i int) bool {
	n := &w.node[i]
	if n.up {
		return false
	}
	n.up = true
	n.stable = n.saved
	n.crashed = n.crashed || n.role == Primary
	n.role = Secondary
	n.logged, n.stream = n.stream, 0
	switch {
	case n.disk == Inconsistent:
	case !n.current:
		n.disk = Outdated
	default:
		n.disk = Consistent
	}
	if n.disk > Outdated && w.behind(i) {
		w.setDisk(i, Outdated)
	}
	if n.hot != 0 {
		n.before, n.voidable = n.bits, w.others(i)
		if w.fault != forgetLog {
			w.setBits(i, w.others(i), n.hot)
		}
		n.hot = 0
	} else {
		n.logged = 0
	}
	return true
}

// announce begins a generation. spot is where among those of its number its
// random part comes.
func (w *play) announce(i int, spot id) bool {
	n := &w.node[i]
	g := &n.birth
	if g.busy || !g.wanted && !g.owed || n.role != Primary || !n.quorate || n.receives == 0 && n.disk != UpToDate {
		return false
	}
	known := []Gen{g.no.gen(), n.gens.noted.gen()}
	for j := range w.n {
		known = append(known, n.gens.slot[j].gen())
		if j != i && w.peer(i, j).agreed {
			known = append(known, w.node[j].gens.noted.gen(), w.node[j].gens.cur.gen())
		}
	}
	next := idOf(NextGen(uint64(spot), known...))
	if next>>3 > w.highest || w.known(next) {
		return false
	}
	g.old, g.no = n.gens.cur, next
	if n.disk < UpToDate && !w.pulling(i) {
		g.old = 0
	}
	w.parent[next] = g.old
	g.busy, g.committing, g.owed = true, false, false
	g.away = w.all() &^ w.takers(i)
	g.wait, g.has = w.agreeing(i), 0
	return true
}

// known: somebody has heard of a generation.
func (w *play) known(g id) bool {
	has := func(l *lineage) bool {
		if l.cur == g || l.noted == g || l.seen == g {
			return true
		}
		for _, h := range l.past {
			if h == g {
				return true
			}
		}
		return false
	}
	for i := range w.n {
		if n := &w.node[i]; has(&n.gens) || has(&n.saved.gens) || n.birth.no == g {
			return true
		}
	}
	return false
}

// note has a replica note the primary's generation, and confirm.
func (w *play) note(i, j int) bool {
	g, q := &w.node[i].birth, &w.node[j]
	if !g.busy || g.committing || !g.wait.Has(j) || !w.peer(j, i).agreed {
		return false
	}
	next, lin := g.no, q.gens.gens()
	if q.disk > Inconsistent && w.pulling(j) {
		w.setDisk(j, Inconsistent)
	}
	if w.ordered() && !lin.MayNote(next.gen()) {
		w.meet(i, j)
		return true
	}
	old, src := g.old.gen(), w.node[i].gens.gens()
	if w.fault == forgetPast {
		old = NoGen
	}
	comeFrom := func(x Gens) Gens {
		if q.disk == Inconsistent && old != NoGen && src.Current == old {
			x = x.Inherit(&src)
		}
		return x.Recall(old)
	}
	q.gens.noted = next
	q.told, q.toldOld, q.toldAway = next, 0, g.away
	switch {
	case g.away.Has(j):
		if q.disk > Outdated {
			w.setDisk(j, Outdated)
		}
		if q.disk == Inconsistent && q.gens.cur != next && (q.gens.cur != 0 || w.fault == takeName) {
			w.turn(j, func(x Gens) Gens { return comeFrom(x.Bump(next.gen(), w.others(j))) })
		}
	case g.old != 0 && q.gens.cur != g.old && q.gens.cur != next && q.disk != Inconsistent:
		w.meet(i, j)
		return true
	case q.gens.cur != next:
		q.toldOld = q.gens.cur
		others := w.others(j)
		if !g.away.Has(i) {
			others = others.Without(i)
		}
		w.turn(j, func(x Gens) Gens { return comeFrom(x.Bump(next.gen(), others)) })
	}
	w.force(j)
	g.wait, g.has = g.wait.Without(j), g.has.With(j)
	return true
}

// settleBirth abandons a generation, or ends it.
func (w *play) settleBirth(i int) {
	n := &w.node[i]
	g := &n.birth
	g.wait &= w.agreeing(i)
	if !g.busy || g.wait != 0 || g.committing && w.late && n.saved.gens != n.gens {
		return
	}
	switch {
	case n.role != Primary:
		g.busy, g.committing = false, false
	case !n.quorate:
		g.busy, g.committing, g.wanted, g.again, g.owed = false, false, true, false, true
	case g.committing:
		again := g.again && g.hold
		g.busy, g.committing, g.wanted, g.again = false, false, g.again, false
		if !again {
			g.hold = false
		}
	}
}

// take has the primary take over what all have noted.
func (w *play) take(i int) bool {
	n := &w.node[i]
	g := &n.birth
	if !g.busy || g.committing || g.wait != 0 || !n.quorate || n.role != Primary {
		return false
	}
	g.committing, g.stint = true, true
	away := w.others(i) &^ (n.receives & g.has)
	next := g.no.gen()
	bears := n.disk == UpToDate || w.pulling(i)
	w.turn(i, func(x Gens) Gens {
		if bears {
			x = x.Bump(next, away)
		}
		return x.InForce(next)
	})
	g.wait = w.agreeing(i)
	if g.wait&^g.has != 0 {
		g.wait &= g.has
		g.again = true
	}
	for j := range w.others(i).All() {
		if p := w.peer(i, j); p.session && !p.agreed {
			w.meet(i, j)
		}
	}
	return true
}

// commit has a replica know that the generation is in force.
func (w *play) commit(i, j int) bool {
	g, q := &w.node[i].birth, &w.node[j]
	if !g.busy || !g.committing || !g.wait.Has(j) || !w.peer(j, i).agreed {
		return false
	}
	if w.late && w.node[i].saved.gens != w.node[i].gens {
		return false
	}
	if q.told != g.no {
		w.meet(i, j)
		return true
	}
	if q.gens.cur == q.told && q.gens.base != q.gens.cur && q.toldOld != 0 {
		for k := range w.others(j).All() {
			if !q.toldAway.Has(k) && q.gens.slot[k] == q.toldOld {
				w.turn(j, func(x Gens) Gens { return x.FinishSync(k) })
			}
		}
	}
	w.turn(j, func(x Gens) Gens { return x.InForce(q.told.gen()) })
	if q.disk > Outdated && w.behind(j) {
		w.setDisk(j, Outdated)
	}
	w.force(j)
	g.wait, g.has = g.wait.Without(j), g.has.With(j)
	for k := range (q.toldAway &^ NodeSet(1<<i)).All() {
		if k != j && w.peer(j, k).agreed && q.gens.seen.gen().After(w.node[k].gens.seen.gen()) {
			w.meet(j, k)
		}
	}
	return true
}
