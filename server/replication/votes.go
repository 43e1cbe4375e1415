package replication

// Votes is what a node knows of who has a vote among a device's disks. A node
// that stops in order gives its vote up, to those that stay, so that they have
// quorum without it: the last one standing has it alone, and still after a
// restart. Each entry counts the changes of one node's vote: an even number is a
// node that has its vote, an odd one a node that has given it up.
//
// The rules, and why there are never two quorums that share no disk:
//
//   - Nobody relies on a disk's having given up its vote but while that disk is
//     out of reach, and only where all that are out of reach have: then those in
//     reach and those that gave their votes up to them are every disk there is.
//   - Disks that have all given their votes up make no quorum among themselves,
//     however many they are: somebody stayed, and may have gone on. One among
//     them that has its vote will do.
//   - A vote is given up on stable storage before anybody else notes it, after
//     everybody in reach has stopped to count on it (MayLeave).
//   - It is taken back only when everybody in reach, with all that have a vote
//     among them, has noted that on stable storage (MayReturn); one whose disk is
//     not attached has, if that disk says so already. A node whose notes of votes
//     are out of date has no vote itself, then, and gets none before it has met
//     those whose notes are not.
type Votes [MaxNodes]uint32

// Given reports whether a node has given its vote up.
func (v *Votes) Given(id int) bool { return v[id]%2 == 1 }

// Left is who has given up its vote.
func (v *Votes) Left() (s NodeSet) {
	for id := range v {
		if v.Given(id) {
			s = s.With(id)
		}
	}
	return s
}

// Note takes a word on another node's vote, and reports whether it was news.
func (v *Votes) Note(id int, count uint32) bool {
	if count <= v[id] {
		return false
	}
	v[id] = count
	return true
}

// Learn takes over what a peer knows, and reports whether that was news. Of its
// own vote a node knows best; but one whose memory was lost and that had given
// it up has no vote.
func (v *Votes) Learn(peer *Votes, self int) bool {
	news := false
	for id, count := range peer {
		if id != self || count%2 == 1 || !v.Given(self) {
			news = v.Note(id, count) || news
		}
	}
	return news
}

// Holders is who of disks has a vote, self apart.
func (v *Votes) Holders(self int, disks NodeSet) NodeSet { return disks.Without(self) &^ v.Left() }

// MayLeave reports whether self may ask to give its vote up, with those in
// reach: it has one, and nobody that has one is away. It helps nobody where
// somebody is.
func (v *Votes) MayLeave(self int, disks, reach NodeSet) bool {
	holders := v.Holders(self, disks)
	return disks.Has(self) && !v.Given(self) && holders != 0 && holders&^reach == 0
}

// MayReturn reports whether self may ask for its vote back, of those in reach.
// Where nobody has one, nothing less than all of them is certain to know. Those count
// among disks that had one before the configuration changed, until they have been met.
func (v *Votes) MayReturn(self int, disks, reach NodeSet) bool {
	holders := v.Holders(self, disks)
	if holders == 0 {
		holders = disks.Without(self)
	}
	return disks.Has(self) && v.Given(self) && holders&^reach == 0
}

// Give gives a vote up, and Take takes it back. Each returns the new count.
func (v *Votes) Give(id int) uint32 { return v.change(id, true) }

// Take is the reverse of Give.
func (v *Votes) Take(id int) uint32 { return v.change(id, false) }

func (v *Votes) change(id int, given bool) uint32 {
	if v.Given(id) != given {
		v[id]++
	}
	return v[id]
}
