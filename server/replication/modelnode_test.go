package replication

// settle has every node draw its conclusions, until there are none.
func (w *play) settle() {
	for range 64 {
		was := w.cluster
		for i := range w.n {
			if w.node[i].up {
				w.conclude(i)
			}
		}
		if w.cluster == was {
			return
		}
	}
	w.wrong("the nodes never come to rest")
}

// conclude is what a node does of itself when it knows of its peers what it does.
func (w *play) conclude(i int) {
	n := &w.node[i]
	for j := range w.agreeing(i).All() {
		w.hear(i, j)
	}
	if n.disk > Inconsistent && w.pulling(i) && w.primaryAbout(i) {
		w.setDisk(i, Inconsistent)
	}
	w.census(i)
	w.upgrade(i)
	w.census(i)
	if n.role == Primary {
		w.addReceivers(i)
		if !n.birth.wanted {
			n.birth.wanted = w.needsGen(i)
			n.birth.again = n.birth.again || n.birth.wanted && n.birth.busy && n.birth.committing
		}
	} else {
		n.receives = 0
	}
	w.settleBirth(i)
	for j := range w.agreeing(i).All() {
		w.voidMarks(i, j)
	}
}

// hear takes what a peer says of itself.
func (w *play) hear(i, j int) {
	n, p, q := &w.node[i], w.peer(i, j), &w.node[j]
	switch {
	case q.role != Primary && int(n.primary) == j:
		n.primary, n.recent = -1, 0 // it demoted in order
	case q.role == Primary && n.role != Primary && (int(n.primary) != j || n.stream != q.stream):
		w.follow(i, j)
	}
	syncing := w.pulling(j) && q.role != Primary
	p.inSync = p.inSync && q.disk >= Outdated && !syncing
	if p.pulling && (q.disk < Consistent || syncing) {
		w.giveUp(i, j)
		p.repl = PausedSyncT
	}
}

// giveUp: i no longer pulls from j.
func (w *play) giveUp(i, j int) {
	w.endSync(i, j)
	if w.peer(j, i).repl == SyncSource {
		w.endSync(j, i)
		w.peer(j, i).repl = PausedSyncS
	}
}

func (w *play) endSync(i, j int) {
	p := w.peer(i, j)
	p.pulling, p.joined, p.ended = false, false, false
}

func (w *play) upgrade(i int) {
	n := &w.node[i]
	if w.pulling(i) {
		return
	}
	if n.disk == Outdated && w.nothingNewer(i) {
		w.setDisk(i, Consistent)
	}
	if n.disk == Outdated && w.everybodyBehind(i) {
		n.best = true
		w.setDisk(i, Consistent)
	}
	if n.disk < Outdated || n.disk == UpToDate || w.behind(i) && !n.best {
		return
	}
	for j := range w.agreeing(i).All() {
		if w.peer(i, j).inSync && w.node[j].disk == UpToDate && w.node[j].gens.cur == n.gens.cur {
			w.setDisk(i, UpToDate)
			return
		}
	}
	if n.disk == Outdated {
		return
	}
	w.census(i)
	if !n.quorate {
		return
	}
	for j := range w.others(i).All() {
		p := w.peer(i, j)
		if p.session && !p.agreed && !p.refused || p.agreed && p.repl == PausedSyncT || !p.agreed && w.policy.Kind == QuorumOff {
			return
		}
	}
	w.setDisk(i, UpToDate)
}

func (w *play) nothingNewer(i int) bool {
	if !w.ordered() || w.behind(i) || w.node[i].primary >= 0 {
		return false
	}
	for j := range w.agreeing(i).All() {
		if p := w.peer(i, j); w.node[j].role == Primary || p.repl == PausedSyncT && !p.even {
			return false
		}
	}
	return true
}

func (w *play) everybodyBehind(i int) bool {
	for j := range w.others(i).All() {
		p, q := w.peer(i, j), &w.node[j]
		if p.agreed && q.disk == Inconsistent {
			continue
		}
		if !p.agreed || q.disk > Outdated || !(p.inSync || p.repl == PausedSyncS || p.repl == SyncSource) {
			return false
		}
	}
	return true
}

func (w *play) addReceivers(i int) {
	n := &w.node[i]
	for j := range w.agreeing(i).All() {
		if n.receives.Has(j) || !w.isReceiver(i, j) {
			continue
		}
		n.receives = n.receives.With(j)
		if o := &n.op; o.on && !o.local && o.wait == 0 {
			o.wait = o.wait.With(j) // it is held: sent to who came back
		}
	}
}

func (w *play) isReceiver(i, j int) bool {
	p, q := w.peer(i, j), &w.node[j]
	if !q.disk.HasData() {
		return false
	}
	switch p.repl {
	case SyncSource:
		return true
	case Established:
		return p.inSync || q.disk == UpToDate || w.pulling(j)
	case SyncTarget, PausedSyncT:
		return q.disk == UpToDate
	}
	return false
}

// needsGen: the next change must begin a generation.
func (w *play) needsGen(i int) bool {
	n := &w.node[i]
	g := n.gens.gens()
	if !g.HasPast() || g.Tentative() || w.behind(i) {
		return true
	}
	for j := range (w.others(i) &^ n.receives).All() {
		if slot := n.gens.slot[j]; !n.birth.stint || slot == 0 || slot == n.gens.cur {
			return true
		}
	}
	return false
}

// inSyncSet is who is in sync with i, as far as it knows.
func (w *play) inSyncSet(i int) (s NodeSet) {
	n := &w.node[i]
	least := UpToDate
	if n.disk == Consistent {
		least = Consistent
	}
	if n.disk >= least {
		s = s.With(i)
	}
	for j := range w.agreeing(i).All() {
		if p := w.peer(i, j); p.inSync && p.repl == Established && w.node[j].disk >= least && n.bits[j] == 0 {
			s = s.With(j)
		}
	}
	return s
}

// voidMarks: what is in sync with the primary, with which i is in sync, is in sync
// with i.
func (w *play) voidMarks(i, p int) {
	n := &w.node[i]
	in := w.inSyncSet(p)
	if int(n.primary) != p || n.disk != UpToDate || !in.Has(i) || w.peer(i, p).repl != Established {
		return
	}
	for j := range in.Without(i).Without(p).All() {
		q := w.peer(i, j)
		if n.bits[j] == 0 && (q.inSync || n.gens.slot[j] == 0 && !q.agreed) {
			continue
		}
		n.bits[j] = 0
		w.turn(i, func(g Gens) Gens { return g.FinishSync(j) })
		if q.agreed && q.repl != SyncTarget {
			w.endSync(i, j)
			q.inSync, q.repl = true, Established
		}
	}
}
