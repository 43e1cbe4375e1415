package replication

import (
	"fmt"
	"slices"
)

// MaxNodes is how many nodes a cluster has at most; ids are below it.
const MaxNodes = 32

// HistoryLen is how many past generations are remembered.
const HistoryLen = 32

// Gen identifies a generation of a device's data. A new one begins when the set
// of disks that receive writes changes. Two disks of one generation differ at
// most in what bitmaps and activity logs cover.
//
// The upper bits are a number, higher than that of every generation its primary
// could know of; the lower ones are random. With quorum, the generations that
// come into force are a chain, and their numbers tell which is later: a replica
// notes none that is not above all it has noted, and any two quorums share a
// replica.
type Gen uint64

// randomBits is how many bits of a Gen are random.
const randomBits = 36

// NextGen is a generation above all of known.
func NextGen(random uint64, known ...Gen) Gen {
	var top Gen
	for _, g := range known {
		top = max(top, g)
	}
	return (top>>randomBits+1)<<randomBits | Gen(random&(1<<randomBits-1))
}

// After reports whether g bears a higher number than other.
func (g Gen) After(other Gen) bool { return g>>randomBits > other>>randomBits }

// newest is which of two generations has the higher number.
func newest(a, b Gen) Gen {
	if b.After(a) {
		return b
	}
	return a
}

// The generations that no primary began.
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
	// Base is the newest generation of this data that is known to have come into
	// force: Current, or what a tentative Current was built on.
	Base Gen
	// Seen is the newest generation that is known to be in force, whoever has it.
	Seen Gen
	// Noted is the newest generation that a primary has announced to this node,
	// be it a part of it or not: it will note none that is not above it.
	Noted   Gen
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

// HasPast reports whether something was ever written in a generation that a
// primary began.
func (gs *Gens) HasPast() bool { return gs.Current != NoGen && gs.Current != DayOne }

// begun reports whether a generation that a primary began is known to have come
// into force.
func (gs *Gens) begun() bool { return gs.Base != NoGen && gs.Base != DayOne }

// Knows reports whether g is an ancestor of gs.Current that gs remembers.
func (gs *Gens) Knows(g Gen) bool {
	return g != NoGen && (slices.Contains(gs.Bitmap[:], g) || slices.Contains(gs.History[:], g))
}

// reachesBack reports whether the bitmap of node's slot has been kept since g, an
// ancestor of Current, or since before it: the node came to g by way of a third.
// It holds nothing older than since, but for what it has marked itself.
func (gs *Gens) reachesBack(node int, g Gen) bool {
	since := gs.Bitmap[node]
	return since == g || since != NoGen && g.After(since)
}

// MayNote reports whether this node may note g: once again, or because it is
// above all it has noted. Two primaries that cannot hear each other then never
// both bring a generation of one number into force.
func (gs *Gens) MayNote(g Gen) bool { return g == gs.Noted || g.After(gs.Noted) }

// Tentative reports whether Current is not known to be in force: nothing was
// answered in it as far as this node knows.
func (gs *Gens) Tentative() bool { return gs.Base != gs.Current }

// Behind reports whether a generation is in force of which this data has
// nothing.
func (gs *Gens) Behind() bool {
	return gs.Seen.After(gs.Base) && gs.Seen != gs.Current && !gs.Knows(gs.Seen)
}

// Learn takes the word of a peer on what is in force, and reports whether that
// was news.
func (gs *Gens) Learn(peer *Gens) bool {
	old := *gs
	gs.Seen = newest(gs.Seen, peer.Seen)
	if peer.Current == gs.Current && !peer.Tentative() || gs.Seen == gs.Current && gs.Current != NoGen {
		gs.Base = gs.Current
	}
	return *gs != old
}

// Heard notes generations that are in force, or may be, at nodes with a disk.
func (gs Gens) Heard(seen ...Gen) Gens {
	for _, g := range seen {
		gs.Seen = newest(gs.Seen, g)
	}
	return gs
}

// InForce notes that g is in force.
func (gs Gens) InForce(g Gen) Gens {
	gs.Seen = newest(gs.Seen, g)
	if gs.Current == g {
		gs.Base = g
	}
	return gs
}

// Bump starts a new generation, which is tentative.
//
//	away is the set of nodes (other than self)
//
// that do not take part in it: their slot remembers the old generation unless
// it already remembers an older one, so that what they miss from here on is
// told by their bitmap.
//
// The result must be durable before any write of the new generation is
// admitted and before any write that missed a node of away is completed.
func (gs Gens) Bump(next Gen, away NodeSet) Gens {
	old := gs.Current
	gs.Current = next
	gs.Noted = newest(gs.Noted, next)
	for id := range away.All() {
		if gs.Bitmap[id] == NoGen {
			gs.Bitmap[id] = old
		}
	}
	gs.pushHistory(old)
	return gs
}

// Undo has g, which began after was and came to be on no disk, not have begun. That
// it was noted stands: that is a promise.
func (gs Gens) Undo(g Gen, was *Gens) Gens {
	if gs.Current == g {
		gs.Current, gs.Base, gs.Bitmap, gs.History = was.Current, was.Base, was.Bitmap, was.History
	}
	if gs.Seen == g {
		gs.Seen = was.Seen
	}
	return gs
}

// Forgo has g, which was noted and never came into force, not have begun, for one that
// follows old as it did: that is what those bear who had not noted g.
func (gs Gens) Forgo(g, old Gen) Gens {
	if gs.Current == g && gs.Tentative() && old != NoGen {
		gs.Current = old
	}
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
	out := Gens{
		Current: src.Current, Base: src.Base, Seen: newest(gs.Seen, src.Seen), Noted: newest(gs.Noted, src.Noted),
		Bitmap: src.Bitmap, History: src.History,
	}
	if out.Current == gs.Current && !gs.Tentative() || out.Current == out.Seen && out.Current != NoGen {
		out.Base = out.Current // the source may not have heard of it yet
	}
	out.pushHistory(out.Bitmap[self])
	out.Bitmap[self] = NoGen
	// Until the end our slot for the source says that we differ from it.
	out.Bitmap[source] = src.Current
	return out
}

// Recall remembers generations, the oldest first, that Current has come from and
// in which this node took no part: it was a mixture meanwhile, or none in contact.
// Without them a disk that was left in one of them would seem to have gone its own
// way.
func (gs Gens) Recall(past ...Gen) Gens {
	for _, g := range past {
		if !gs.Knows(g) {
			gs.pushHistory(g)
		}
	}
	return gs
}

// Inherit recalls all that src came from, and src itself, of which Current came.
func (gs Gens) Inherit(src *Gens) Gens {
	past := src.History
	slices.Reverse(past[:])
	gs = gs.Recall(past[:]...)
	gs = gs.Recall(src.Bitmap[:]...)
	return gs.Recall(src.Current)
}

// BeginSync is the beginning of a resync at its source: the target bears g from now on, and
// its bitmap is taken off as it gets what is marked. What a disk lacks that was left in an
// older generation the bitmap tells no longer: a new disk in the target's place is one, where
// nothing had been written when the target was last in sync.
func (gs Gens) BeginSync(peer int, g Gen) Gens {
	was := gs.Bitmap[peer]
	gs.Bitmap[peer] = g
	gs.pushHistory(was)
	return gs
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
