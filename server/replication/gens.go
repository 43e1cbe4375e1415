package replication

import (
	"fmt"
	"slices"
)

// MaxNodes is how many nodes a cluster has at most; ids are below it.
const MaxNodes = 32

// HistoryLen is how many past generations are remembered.
const HistoryLen = 32

// Gen identifies a generation of a device's data: a random number drawn when
// the set of disks that receive writes changes. Two disks of one generation
// differ at most in what bitmaps and activity logs cover.
type Gen uint64

// The generations that are not random.
const (
	NoGen  Gen = 0
	DayOne Gen = 4 // just created, never written: all zeroes on every node
)

func (g Gen) String() string {
	switch g {
	case NoGen:
		return "none"
	case DayOne:
		return "day-one"
	}
	return fmt.Sprintf("%016x", uint64(g))
}

// Gens is what a node knows of generations. Bitmap[p] is the generation since
// which the bitmap of node p's slot has been kept, NoGen where p was last seen
// in sync. History holds older ones, newest first.
type Gens struct {
	Current Gen
	Bitmap  [MaxNodes]Gen
	History [HistoryLen]Gen
}

// pushHistory remembers g as a past generation.
func (gs *Gens) pushHistory(g Gen) {
	if g == NoGen || g == gs.Current || slices.Contains(gs.History[:], g) {
		return
	}
	copy(gs.History[1:], gs.History[:HistoryLen-1])
	gs.History[0] = g
}

// Knows reports whether g is an ancestor of gs.Current that gs remembers.
func (gs *Gens) Knows(g Gen) bool {
	return g != NoGen && (slices.Contains(gs.Bitmap[:], g) || slices.Contains(gs.History[:], g))
}

// Bump starts a new generation. away is the set of nodes (other than self)
// that do not take part in it: their slot remembers the old generation unless
// it already remembers an older one, so that what they miss from here on is
// told by their bitmap.
//
// The result must be durable before any write of the new generation is
// admitted and before any write that missed a node of away is completed.
func (gs Gens) Bump(next Gen, away NodeSet) Gens {
	old := gs.Current
	gs.Current = next
	for id := range away.All() {
		if gs.Bitmap[id] == NoGen {
			gs.Bitmap[id] = old
		}
	}
	gs.pushHistory(old)
	return gs
}

// AdoptSource is what a resync target takes over when its resync *begins*:
// it is then Inconsistent in the source's generation. Taking over at the
// beginning rather than at the end (as DRBD does) makes an interrupted resync
// an ordinary case: the target is a mixture in a generation it names, so a
// third node of an older generation finds out that it is outdated from the
// target alone.
//
// The target's own generations are forgotten: where they are ancestors of the
// source's data the source knows them, and where they are not they are not
// ancestors of the target's either, from now on.
func (gs Gens) AdoptSource(src *Gens, self, source int) Gens {
	out := Gens{Current: src.Current, Bitmap: src.Bitmap, History: src.History}
	out.pushHistory(out.Bitmap[self])
	out.Bitmap[self] = NoGen
	// Until the end our slot for the source says that we differ from it.
	out.Bitmap[source] = src.Current
	return out
}

// FinishSync is the end of a resync, on either side: the two are one.
func (gs Gens) FinishSync(peer int) Gens {
	g := gs.Bitmap[peer]
	gs.Bitmap[peer] = NoGen
	gs.pushHistory(g)
	return gs
}

// NodeSet is a set of node ids.
type NodeSet uint32

// Of makes a set.
func Of(ids ...int) NodeSet {
	var s NodeSet
	for _, id := range ids {
		s |= 1 << id
	}
	return s
}

// Has reports membership.
func (s NodeSet) Has(id int) bool { return s>>id&1 != 0 }

// With adds, Without removes.
func (s NodeSet) With(id int) NodeSet    { return s | 1<<id }
func (s NodeSet) Without(id int) NodeSet { return s &^ (1 << id) }

// Len is the number of members.
func (s NodeSet) Len() int {
	n := 0
	for range s.All() {
		n++
	}
	return n
}

// All yields the members in ascending order.
func (s NodeSet) All() func(yield func(int) bool) {
	return func(yield func(int) bool) {
		for id := range MaxNodes {
			if s.Has(id) && !yield(id) {
				return
			}
		}
	}
}
