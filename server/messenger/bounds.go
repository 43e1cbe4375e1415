package messenger

import (
	"fmt"

	"github.com/lockstepd/lockstep/server/wire"
)

// limit bounds what is kept for a link.
type limit struct {
	bytes  int64
	frames int
}

// overflow ends a session whose peer takes too little.
func (s *Session) overflow(k wire.Link) {
	lim := s.limit[k]
	s.end(Reason{ReasonOverflow, fmt.Sprintf("the peer does not take what it is sent: its %v queue is over %d MiB or %d frames", k, lim.bytes>>20, lim.frames)})
}

// boundAll cuts the peer with the longest queues where all of them together are
// too long. It is for links that keep more than an equal part of what all may:
// unless there is one, all are within it.
func (m *Messenger) boundAll() {
	var total, most int64
	var longest *Session
	m.mu.Lock()
	for _, p := range m.peers {
		if s := p.sess.Load(); s != nil {
			n := s.Queued(wire.Data) + s.Queued(wire.Meta)
			if total += n; n > most {
				most, longest = n, s
			}
		}
	}
	m.mu.Unlock()
	if total > m.opt.MaxQueuedAll {
		longest.end(Reason{ReasonOverflow, fmt.Sprintf("the queues for all peers are over %d MiB together, and %d MiB of it is this one's", m.opt.MaxQueuedAll>>20, most>>20)})
	}
}
