package replication

import "fmt"

// meet is a handshake: both sides' facts, the decision, and what follows from it.
func (w *play) meet(i, j int) {
	for range 6 {
		if w.meetOnce(i, j) {
			return
		}
	}
	w.wrong(fmt.Sprintf("%d and %d never agree", i, j))
}

// meetOnce reports false where the facts have changed on the way.
func (w *play) meetOnce(i, j int) bool {
	for _, p := range [][2]int{{i, j}, {j, i}} {
		if w.peer(p[0], p[1]).agreed {
			w.part(p[0], p[1])
		}
		*w.peer(p[0], p[1]) = contact{session: true}
	}
	for news := true; news; {
		w.census(i)
		w.census(j)
		a, b := w.facts(i, j), w.facts(j, i)
		news = w.learn(i, &b)
		news = w.learn(j, &a) || news
	}
	a, b := w.facts(i, j), w.facts(j, i)
	da, db := Decide(&a, &b), Decide(&b, &a)
	w.rules[da.Rule]++
	w.rules[db.Rule]++
	if da.Rule == "reaches-back" && b.Disk == Inconsistent || db.Rule == "reaches-back" && a.Disk == Inconsistent {
		w.rules[reachesMixture]++
	}
	if da.Action != db.Action.Mirror() || da.Yields != db.Yields {
		w.wrong(fmt.Sprintf("%d concludes %v and %d %v", i, da, j, db))
		return true
	}
	if w.fault == dropEqual && da.Sync() && a.Gens.Current == b.Gens.Current {
		w.node[i].bits[j], w.node[j].bits[i] = 0, 0
		da.Action, db.Action = InSync, InSync
	}
	w.judge(i, j, da)
	switch da.Action {
	case SplitBrain, Unrelated, Refuse:
		w.peer(i, j).refused, w.peer(j, i).refused = true, true
		return true
	}
	w.prepare(i, j, da)
	w.prepare(j, i, db)
	if da.Action == InSync && w.node[i].bits[j]|w.node[j].bits[i] != 0 {
		return false
	}
	w.enter(i, j, da, &a, &b)
	w.enter(j, i, db, &b, &a)
	return true
}

// reachesMixture counts where a bitmap reaches back to the generation of a mixture.
const reachesMixture = "reaches-back to a mixture"

// learn takes a peer's word on what is in force.
func (w *play) learn(i int, theirs *Facts) bool {
	n := &w.node[i]
	if !theirs.Ordered || n.quorate && n.disk == UpToDate {
		return false
	}
	g := n.gens.gens()
	if !g.Learn(&theirs.Gens) {
		return false
	}
	n.gens = lineageOf(&g)
	if n.role == Primary && w.behind(i) {
		w.yield(i)
	}
	if n.disk > Outdated && w.behind(i) {
		w.setDisk(i, Outdated)
	}
	return true
}

// judge holds a decision against the data.
func (w *play) judge(i, j int, d Decision) {
	differ := w.differ(i, j)
	marked := w.node[i].bits[j] | w.node[j].bits[i]
	switch {
	case d.Action == InSync && differ != 0:
		w.wrong(fmt.Sprintf("%d and %d are taken to be in sync (%s) and differ", i, j, d.Rule))
	case w.mistaken(i, j, d):
		w.wrong(fmt.Sprintf("%d and %d conclude %v, and the data of one comes from that of the other", i, j, d))
	case d.Sync() && !d.Full() && differ&^marked != 0:
		w.wrong(fmt.Sprintf("%d and %d differ in what no bitmap marks, and the decision is %v", i, j, d))
	}
}

// mistaken: a decision takes two complete disks for diverged of which one's
// generation has come from the other's, or has the older one send. (Of a mixture
// that was told of no more than some generations this is not always known.)
func (w *play) mistaken(i, j int, d Decision) bool {
	a, b := &w.node[i], &w.node[j]
	mine, theirs := w.comesFrom(a.gens.cur, b.gens.cur), w.comesFrom(b.gens.cur, a.gens.cur)
	if !mine && !theirs {
		return false
	}
	return d.Rule == "diverged" || d.Rule == "unrelated" || (d.Rule == "tentative" || d.Rule == "both-tentative") && d.Source() != mine
}

// comesFrom: generation g has come from another.
func (w *play) comesFrom(g, from id) bool {
	for ; g != 0; g = w.parent[g] {
		if g == from {
			return true
		}
	}
	return false
}

// differ is the blocks in which two nodes differ, but for those of a change that
// is on its way to both.
func (w *play) differ(i, j int) (d uint8) {
	for b := range blocks {
		if w.node[i].data[b] != w.node[j].data[b] {
			d |= 1 << b
		}
	}
	for p := range w.n {
		o := &w.node[p].op
		takes := func(k int) bool {
			return k == p || w.peer(p, k).agreed && o.wait.Has(k) || o.got.Has(k) && w.node[k].data[o.block] == o.value
		}
		if o.on && takes(i) && takes(j) {
			d &^= 1 << o.block
		}
	}
	return d
}

// prepare is what is made durable before a node agrees.
func (w *play) prepare(i, j int, d Decision) {
	n := &w.node[i]
	behind := d.Outrun() || d.Action == SelfOutdated
	if n.role == Primary && (d.Yields.Has(i) || behind && n.disk > Outdated) {
		w.yield(i)
	}
	if behind && n.disk > Outdated && !w.backed(i, j) {
		w.setDisk(i, Outdated)
		w.force(i)
	}
}

// backed: i is in sync with the primary, which is not j.
func (w *play) backed(i, j int) bool {
	n := &w.node[i]
	if n.primary < 0 || int(n.primary) == j || int(n.primary) == i || n.disk != UpToDate {
		return false
	}
	p := w.peer(i, int(n.primary))
	return p.agreed && p.repl == Established && w.node[n.primary].disk == UpToDate
}

// enter enters an agreement.
func (w *play) enter(i, j int, d Decision, mine, theirs *Facts) {
	n, p, q := &w.node[i], w.peer(i, j), &w.node[j]
	*p = contact{session: true, agreed: true, even: d.Even}
	if q.role == Primary && n.role != Primary && (n.stream != q.stream || int(n.primary) != j) {
		w.follow(i, j)
	}
	switch {
	case d.Action == InSync:
		p.inSync, p.repl = true, Established
		w.turn(i, func(g Gens) Gens { return g.FinishSync(j) })
		best := inSyncState(mine, theirs)
		n.best = n.best || theirs.Best
		if w.behind(i) && !n.best {
			best = min(best, Outdated)
		}
		w.setDisk(i, best)
		n.crashed = false
	case d.Sync() && d.Source():
		p.repl = PausedSyncS
		if d.Full() {
			n.bits[j] = 1<<blocks - 1
		}
		if n.gens.slot[j] == 0 {
			n.gens.slot[j] = n.gens.cur
		}
	case d.Sync():
		p.repl, p.full = PausedSyncT, d.Full()
		p.mine, p.theirs = gistOf(mine), gistOf(theirs)
	default:
		p.repl = Established
	}
}

// inSyncState is what two disks are that hold the same.
func inSyncState(a, b *Facts) DiskState {
	lo, hi := a, b
	if lo.Disk > hi.Disk {
		lo, hi = hi, lo
	}
	if lo.Disk <= Outdated && !lo.Ordered && !hi.KnowsBetter(lo) {
		return lo.Disk
	}
	return hi.Disk
}

// pull begins a resync from the best source.
func (w *play) pull(i int) bool {
	now, best := -1, -1
	for j := range w.agreeing(i).All() {
		switch {
		case w.peer(i, j).pulling:
			now = j
		case w.mayPull(i, j) && (best < 0 || w.node[j].role == Primary || w.node[best].role != Primary && w.node[j].disk > w.node[best].disk):
			best = j
		}
	}
	if best < 0 || now >= 0 && (w.node[best].role != Primary || w.node[now].role == Primary) {
		return false
	}
	if now >= 0 {
		w.giveUp(i, now)
		w.peer(i, now).repl = PausedSyncT
	}
	p := w.peer(i, best)
	f := w.facts(i, best)
	if gistOf(&f) != p.mine {
		w.meet(i, best) // it was agreed on other data than the disk holds now
		return true
	}
	w.beginPull(i, best)
	return true
}

func (w *play) mayPull(i, j int) bool {
	p, q := w.peer(i, j), &w.node[j]
	if p.repl != PausedSyncT || q.disk < Consistent || w.pulling(j) && q.role != Primary {
		return false
	}
	for k := range w.agreeing(i).All() { // the two would take turns
		if k != j && w.peer(i, k).inSync && p.even && !w.peer(j, k).agreed {
			return false
		}
	}
	n := &w.node[i]
	switch {
	case q.role == Primary || n.role == Primary:
		return true
	case n.primary >= 0:
		return w.node[n.primary].disk != UpToDate && q.disk == UpToDate
	}
	return !w.primaryAbout(i)
}

func (w *play) beginPull(i, j int) {
	n, p := &w.node[i], w.peer(i, j)
	for k := range w.others(i).All() {
		q := w.peer(i, k)
		q.inSync = q.inSync && k == j
		if q.repl == SyncSource { // a mixture is no source
			w.endSync(i, k)
			q.repl = PausedSyncS
		}
	}
	p.pulling, p.repl = true, SyncTarget
	whole := p.even && p.theirs.gens.cur == n.gens.cur && p.theirs.live() && n.live && !w.primaryAbout(i)
	switch {
	case w.fault == copyComplete:
	case whole:
		w.setDisk(i, Consistent)
	default:
		w.setDisk(i, Inconsistent)
	}
	if p.full && w.fault != adoptUnmarked {
		w.setBits(i, w.others(i), 1<<blocks-1)
	}
	src := p.theirs.gens.gens()
	w.turn(i, func(g Gens) Gens { return g.AdoptSource(&src, i, j) })
	if !p.full && w.node[j].role == Primary && n.logged != 0 && p.theirs.stream == n.logged && n.voidable.Has(j) {
		n.bits[j] = n.before[j]
		n.voidable = n.voidable.Without(j)
	}
	p.mine, p.theirs = gist{}, gist{}
}

// join joins the marks of both sides of a resync.
func (w *play) join(i, j int) bool {
	p, q := w.peer(i, j), w.peer(j, i)
	if !p.pulling || p.joined || w.node[j].disk < Outdated || w.pulling(j) && w.node[j].role != Primary {
		return false
	}
	w.node[j].bits[i] |= w.node[i].bits[j]
	w.force(i)
	q.inSync, q.repl = false, SyncSource
	w.passMarks(i, j)
	p.joined = true
	if w.differ(i, j)&^w.node[i].bits[j] != 0 {
		w.wrong(fmt.Sprintf("the resync of %d from %d leaves out what differs", i, j))
	}
	return true
}

// passMarks has the target know what the source marks, and what is about to
// change there against all others.
func (w *play) passMarks(i, j int) {
	n := &w.node[i]
	if w.fault != unjoined {
		n.bits[j] |= w.node[j].bits[i]
	}
	w.setBits(i, w.others(i).Without(j), n.bits[j])
}

// copyBlock brings a block to the target.
func (w *play) copyBlock(i, j, b int) bool {
	p, n, q := w.peer(i, j), &w.node[i], &w.node[j]
	bit := uint8(1) << b
	if !p.pulling || !p.joined || p.ended || n.bits[j]&bit == 0 || w.peer(j, i).repl != SyncSource || n.op.on && int(n.op.block) == b {
		return false
	}
	for k := range w.n { // what is newer is not overwritten by what was read before it
		o := &w.node[k].op
		has := func(x int) bool { return x == k && !o.local || o.got.Has(x) }
		if o.on && int(o.block) == b && (k == j || has(i) && !has(j)) {
			return false // nor is what is under way at the source read
		}
	}
	if w.ordered() && n.data[b] >= w.answered[b] && q.data[b] < w.answered[b] {
		w.wrong(fmt.Sprintf("%d's answered change of block %d is overwritten by %d's older data", i, b, j))
	}
	n.data[b] = q.data[b]
	n.bits[j] &^= bit
	q.bits[i] &^= bit
	return true
}

// sourceDone ends a resync at its source.
func (w *play) sourceDone(i, j int) bool {
	p, q := w.peer(i, j), w.peer(j, i)
	if !p.pulling || !p.joined || p.ended || w.node[i].bits[j] != 0 && w.fault != finishEarly || q.repl != SyncSource {
		return false
	}
	if w.node[j].bits[i] != 0 && w.fault != finishEarly {
		w.passMarks(i, j)
		return true
	}
	if pr := int(w.node[j].primary); pr >= 0 && pr != j && pr != i && !w.takers(pr).Has(i) && w.fault != endUnreached {
		return false // the target may miss changes of the primary without noticing
	}
	w.turn(j, func(g Gens) Gens { return g.FinishSync(i) })
	w.force(j)
	f := w.facts(j, i)
	q.inSync, q.repl = true, Established
	w.node[j].crashed = false
	p.ended, p.theirs = true, gistOf(&f)
	return true
}

// targetDone ends it at its target.
func (w *play) targetDone(i, j int) bool {
	n, p := &w.node[i], w.peer(i, j)
	if !p.pulling || !p.ended {
		return false
	}
	src := p.theirs.gens.gens()
	w.turn(i, func(g Gens) Gens {
		switch {
		case n.role == Primary:
		case !g.Knows(src.Current):
			g = g.AdoptSource(&src, i, j)
		case w.fault != forgetPast:
			g = g.Inherit(&src)
		}
		return g.FinishSync(j)
	})
	in := w.inSyncSet(j)
	if w.fault == inheritFreely {
		in = w.all()
	}
	if n.primary >= 0 && int(n.primary) != j {
		in &= w.takers(int(n.primary))
	}
	for k := range in.Without(i).Without(j).All() {
		if int(n.primary) != i {
			n.bits[k] = 0
		}
	}
	n.crashed = false
	disk := p.theirs.disk
	*p = contact{session: true, agreed: true, inSync: true, repl: Established}
	w.setDisk(i, max(disk, Outdated))
	w.settle()
	for k := range w.agreeing(i).Without(j).All() {
		if w.peer(i, k).agreed && !w.peer(i, k).inSync {
			w.part(i, k)
			w.part(k, i)
		}
	}
	return true
}
