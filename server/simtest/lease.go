package simtest

import (
	"sync"
	"time"
)

// LeaseLeft implements device.Leaser: the word of a peer that has given this
// side up holds no longer, whether this side knows of it or not.
func (s *session) LeaseLeft() time.Duration {
	if s.lapsed.Load() {
		return 0
	}
	return time.Hour
}

// Doubt has a node's leases run out, or come back: it does not hear whether
// its peers still take it for alive.
func (c *Cluster) Doubt(a int, on bool) {
	for _, s := range c.sessionsOf(a) {
		s.lapsed.Store(on || s.late.Load())
	}
}

func (c *Cluster) sessionsOf(a int) []*session {
	n := c.Nodes[a]
	n.mu.Lock()
	defer n.mu.Unlock()
	var all []*session
	for _, s := range n.sessions {
		all = append(all, s)
	}
	return all
}

// GiveUp has the others give a node up, as when its process is stopped: it
// does not know of it before Learn. Nothing passes either way any more.
func (c *Cluster) GiveUp(a int) {
	c.Doubt(a, true)
	var wg sync.WaitGroup
	for _, s := range c.sessionsOf(a) {
		s.end()
		other := s.other
		other.from.mu.Lock()
		delete(other.from.sessions, a)
		other.from.mu.Unlock()
		wg.Go(func() {
			other.wait()
			s.set.SessionDown(other, "given up")
		})
	}
	wg.Wait()
}

// Learn lets a node that was given up notice, and connects it again.
func (c *Cluster) Learn(a int) {
	n := c.Nodes[a]
	for _, s := range c.sessionsOf(a) {
		if s.to.hasSession(a) {
			continue // begun since, by a node that was started anew
		}
		n.mu.Lock()
		delete(n.sessions, s.to.ID)
		n.mu.Unlock()
		s.end()
		s.wait()
		if n.set != nil {
			n.set.SessionDown(s, "it gave this node up")
		}
	}
	c.Rejoin(a)
}
