package replication

import (
	"fmt"
	"strconv"
)

// QuorumPolicy is how many of a device's disks must be in reach before its
// data is changed.
type QuorumPolicy struct {
	Kind QuorumKind
	N    int // for QuorumCount
}

// QuorumKind is the kind of a QuorumPolicy.
type QuorumKind uint8

// The kinds.
const (
	QuorumOff QuorumKind = iota
	QuorumMajority
	QuorumAll
	QuorumCount
)

// ParseQuorum reads "off", "majority", "all" or a number.
func ParseQuorum(s string) (QuorumPolicy, error) {
	switch s {
	case "off":
		return QuorumPolicy{}, nil
	case "majority":
		return QuorumPolicy{Kind: QuorumMajority}, nil
	case "all":
		return QuorumPolicy{Kind: QuorumAll}, nil
	}
	n, err := strconv.Atoi(s)
	if err != nil || n < 1 || n > MaxNodes {
		return QuorumPolicy{}, fmt.Errorf("quorum %q: want off, majority, all or a number of nodes", s)
	}
	return QuorumPolicy{Kind: QuorumCount, N: n}, nil
}

func (p QuorumPolicy) String() string {
	switch p.Kind {
	case QuorumOff:
		return "off"
	case QuorumMajority:
		return "majority"
	case QuorumAll:
		return "all"
	}
	return strconv.Itoa(p.N)
}

// need is how many of n voters make quorum.
func (p QuorumPolicy) need(n int) int {
	switch p.Kind {
	case QuorumMajority:
		return n/2 + 1
	case QuorumAll:
		return n
	case QuorumCount:
		return p.N
	}
	return 0
}

// PassesOver reports whether lacking of n disks are as many as quorum takes: what
// they do not have could then be passed over without any of the others. Where two
// quorums may share no disk, somebody has chosen to live with that.
func (p QuorumPolicy) PassesOver(lacking, n int) bool { return p.Ordered(n) && lacking >= p.need(n) }

// Ordered reports whether any two quorums of n disks share one: generations
// that came into force are then a chain.
func (p QuorumPolicy) Ordered(n int) bool { return p.Kind != QuorumOff && 2*p.need(n) > n }

// Census counts the disks of a device as one node sees them.
type Census struct {
	UpToDate int // in reach, with the current data (this node's own included)
	Present  int // in reach, without it
	Outdated int // out of reach, and known on stable storage to take no part
	Unknown  int // out of reach; may be working
	// Idle is how many nodes in reach are without their disk, which has not given
	// up its vote: when it is back, it counts.
	Idle int
	// Voteless is how many of those in reach have given up their votes (Votes).
	Voteless int
	// Newcomers is how many of those in reach may have replaced a disk that was
	// lost, and do not know what that one was part of. 0 where the device itself is
	// new.
	Newcomers int
	// Regrouped is how many of Unknown are in reach, but were on a device of other disks
	// before, and have no say until they have met a majority of those.
	Regrouped int
	// Tiebreakers are the device's diskless nodes.
	TiebreakersPresent, TiebreakersMissing int
	// Had: there was quorum until now. A tiebreaker keeps quorum, never gives it.
	Had bool
}

// Verdict is whether there is quorum, and why.
type Verdict struct {
	Quorate bool
	Why     string
}

// Quorum applies the policy. A disk that is known to take no part, because it
// left in order or was fenced, cannot be of somebody's majority, so where all
// that are missing are known to be such, those that remain decide among
// themselves (last man standing). In turn, those that left in order are no
// majority without one that stayed, nor with a new disk in its place. Where the
// others are in reach and merely without their disks, half will do: those that
// come back are no majority.
func (p QuorumPolicy) Quorum(c Census) Verdict {
	if p.Kind == QuorumOff {
		return Verdict{true, "quorum is off"}
	}
	here := c.UpToDate + c.Present
	all := here + c.Outdated + c.Unknown + c.Idle
	voters := all
	if c.Unknown == 0 && c.Idle == 0 && p.Kind == QuorumMajority {
		voters = here
	}
	need := p.need(voters)
	switch {
	case c.Regrouped > 0 && here < need:
		return Verdict{false, fmt.Sprintf("%d of the disks in reach took part in another set of disks, and have to meet a majority of that first: start its nodes, put back in the configuration if need be; or, if they are lost, promote with --force", c.Regrouped)}
	case c.UpToDate == 0:
		return Verdict{false, "no disk with current data is in reach"}
	case p.Kind == QuorumMajority && c.Voteless == here && all > here:
		return Verdict{false, fmt.Sprintf("every disk in reach (%d of %d) has left in order since, and one that stayed may have gone on", here, all)}
	case p.Ordered(all) && c.Newcomers > 0 && c.Unknown > 0 && c.Newcomers+c.Unknown >= p.need(all):
		return Verdict{false, fmt.Sprintf("%d of the %d disks in reach are new, and with their predecessors those away may have gone on", c.Newcomers, here)}
	case p.Ordered(all) && c.Newcomers == here && c.Outdated > 0:
		return Verdict{false, fmt.Sprintf("every disk in reach (%d of %d) is new, and those that take no part left it to its predecessor, which may have gone on", here, all)}
	case here >= need && c.Outdated > 0 && c.Unknown+c.Idle == 0 && p.Kind == QuorumMajority:
		return Verdict{true, fmt.Sprintf("%d of %d disks in reach, and the others are known to take no part", here, here+c.Outdated)}
	case here >= need:
		return Verdict{true, fmt.Sprintf("%d of %d disks in reach, %d needed", here, voters, need)}
	case p.Kind == QuorumMajority && c.Unknown == 0 && 2*here >= all:
		return Verdict{true, fmt.Sprintf("%d of %d disks in reach, and the nodes of the others are, without their disks", here, all)}
	case p.Kind == QuorumMajority && voters%2 == 0 && here == need-1 && c.Had &&
		c.TiebreakersPresent > c.TiebreakersMissing:
		return Verdict{true, fmt.Sprintf("%d of %d disks in reach, and a tiebreaker keeps the quorum there was", here, voters)}
	}
	return Verdict{false, fmt.Sprintf("%d of %d disks in reach, %d needed", here, voters, need)}
}
