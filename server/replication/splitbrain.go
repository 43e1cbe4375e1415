package replication

import "fmt"

// SplitPolicy says how a split brain is resolved without a person, by how many
// of the two sides are primary when they meet. The words are DRBD's; "" is
// "disconnect", which leaves it to a person. What a policy discards, somebody
// was told is safe: none is on by default.
type SplitPolicy struct {
	None string // disconnect, discard-younger-primary, discard-older-primary, discard-zero-changes, discard-least-changes
	One  string // disconnect, consensus, discard-secondary, call-pri-lost-after-sb, violently-as0p
	Two  string // disconnect, call-pri-lost-after-sb, violently-as0p
}

// ruleSplit is the rule of a decision that a policy made.
const ruleSplit = "after-split-brain"

// Resolved reports whether a policy resolved a split brain by this decision.
func (d Decision) Resolved() bool { return d.Rule == ruleSplit }

// Resolve applies a policy to a split brain that Decide has found; any other
// decision it leaves alone, and two primaries of which one has no disk: there is
// nothing to discard. Like Decide it is symmetric.
func (p SplitPolicy) Resolve(me, peer *Facts, d Decision) Decision {
	if d.Action != SplitBrain || me.Discard != peer.Discard || !me.Disk.HasData() || !peer.Disk.HasData() {
		return d
	}
	primaries := 0
	for _, f := range [...]*Facts{me, peer} {
		if f.Role == Primary {
			primaries++
		}
	}
	loser, why := p.loser(me, peer, primaries)
	if loser == nil {
		if why != "" {
			d.Why += "; " + why
		}
		return d
	}
	winner := me
	if loser == me {
		winner = peer
	}
	if winner.Disk == Inconsistent {
		if winner.Role == Primary || loser.Disk == Inconsistent {
			d.Why += notForMixture(winner)
			return d
		}
		winner, loser = loser, winner
		why = fmt.Sprintf("%s, and node %d's disk is a mixture", why, loser.Node)
	}
	if loser.Role != Primary && loser.Primary != NoPrimary && loser.Primary != winner.Node {
		// Else it would be resynced from each of two primaries in turn, for good.
		d.Why += fmt.Sprintf("; node %d follows node %d, and its changes are discarded with that one's", loser.Node, loser.Primary)
		return d
	}
	out := Decision{
		Action: resync(me, peer, loser != me), Rule: ruleSplit,
		Why: fmt.Sprintf("%s; resolved by %s: node %d's changes are discarded", d.Why, why, loser.Node),
	}
	if loser.Role == Primary {
		out.Yields = Of(loser.Node)
	}
	return out
}

// loser is whose changes go and by which policy; nobody's, and why, where the
// policy leaves it to a person.
func (p SplitPolicy) loser(me, peer *Facts, primaries int) (*Facts, string) {
	switch primaries {
	case 0:
		return p.asNone("after_sb_0pri", me, peer)
	case 1:
		return p.asOne(me, peer)
	}
	key := "after_sb_2pri"
	switch p.Two {
	case "violently-as0p":
		return p.asNone(key+" = violently-as0p", me, peer)
	case "call-pri-lost-after-sb":
		loser, why := p.asNone(key, me, peer)
		return lost(loser, why)
	}
	return nil, ""
}

func (p SplitPolicy) asOne(me, peer *Facts) (*Facts, string) {
	key := "after_sb_1pri"
	secondary := me
	if me.Role == Primary {
		secondary = peer
	}
	switch p.One {
	case "discard-secondary":
		return secondary, key + " = discard-secondary"
	case "violently-as0p":
		return p.asNone(key+" = violently-as0p", me, peer)
	case "consensus":
		loser, why := p.asNone(key+" = consensus", me, peer)
		if loser != secondary {
			return nil, key + " = consensus: after_sb_0pri would not discard the secondary's changes"
		}
		return loser, why
	case "call-pri-lost-after-sb":
		loser, why := p.asNone(key, me, peer)
		if loser == secondary {
			return loser, why
		}
		return lost(loser, why)
	}
	return nil, ""
}

// lost leaves it to the handler of the event split-brain to take the losing
// primary down.
func lost(loser *Facts, why string) (*Facts, string) {
	if loser == nil {
		return nil, why
	}
	return nil, fmt.Sprintf("node %d, a primary, has lost by %s: demote it, and its changes are discarded", loser.Node, why)
}

// asNone is the policy for no primaries.
func (p SplitPolicy) asNone(key string, me, peer *Facts) (*Facts, string) {
	why := key + " = " + p.None
	if counts := p.None == "discard-zero-changes" || p.None == "discard-least-changes"; counts && !sharedSlot(me, peer) {
		// A third has come between: what is marked is not what either has changed. By that
		// three could discard their changes for each other's, round and round.
		return nil, why + ": how much either side has changed since is not known"
	}
	switch p.None {
	case "discard-zero-changes":
		switch {
		case me.Dirty == 0 && peer.Dirty > 0:
			return me, why
		case peer.Dirty == 0 && me.Dirty > 0:
			return peer, why
		}
		return nil, why + ": both sides have changes"
	case "discard-least-changes":
		if me.Dirty == peer.Dirty {
			return byNode(me, peer), why
		}
		if me.Dirty < peer.Dirty {
			return me, why
		}
		return peer, why
	case "discard-younger-primary", "discard-older-primary":
		if me.Began == 0 || peer.Began == 0 || me.Began == peer.Began {
			return nil, why + ": which side became primary first is not known"
		}
		younger, older := me, peer
		if me.Began < peer.Began {
			younger, older = peer, me
		}
		if p.None == "discard-older-primary" {
			return older, why
		}
		return younger, why
	}
	return nil, ""
}

// byNode breaks a tie: the higher id loses.
func byNode(me, peer *Facts) *Facts {
	if me.Node > peer.Node {
		return me
	}
	return peer
}
