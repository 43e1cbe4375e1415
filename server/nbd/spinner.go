package nbd

import "time"

// maxBackoff bounds for how many reads a spinner pauses, as a power of two.
const maxBackoff = 6

// spinner decides whether a reader polls before it sleeps. Waking a sleeper
// takes longer than a whole request from a client that sends one at a time;
// but polling is wasted on a client that thinks, and harmful where the client
// needs the processor. So each poll in vain makes the next ones rarer, and one
// that was worth it makes them usual again.
type spinner struct {
	limit  time.Duration // of a poll; not positive: never
	pause  int           // reads to come without polling
	misses int           // polls in vain, of late
}

// next is how long to poll.
func (s *spinner) next() time.Duration {
	if s.pause > 0 {
		s.pause--
		return 0
	}
	return max(s.limit, 0)
}

// polled tells of a poll that was made.
func (s *spinner) polled(inVain bool) {
	if !inVain {
		s.misses = 0
		return
	}
	s.misses = min(s.misses+1, maxBackoff)
	s.pause = 1<<s.misses - 1
}
