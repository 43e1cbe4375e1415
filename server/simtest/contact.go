package simtest

import (
	"sync"
	"time"

	"github.com/lockstepd/lockstep/server/wire"
)

func pair(a, b int) [2]int { return [2]int{min(a, b), max(a, b)} }

// Cut takes the link between two nodes down, Heal up again.
func (c *Cluster) Cut(a, b int) {
	c.mu.Lock()
	c.cut[pair(a, b)] = true
	c.mu.Unlock()
	c.drop(c.Nodes[a], c.Nodes[b], "cut")
}

// Heal undoes Cut.
func (c *Cluster) Heal(a, b int) {
	c.mu.Lock()
	delete(c.cut, pair(a, b))
	c.mu.Unlock()
	c.connect(c.Nodes[a], c.Nodes[b])
}

// Isolate cuts a node off from all others; Rejoin undoes it.
func (c *Cluster) Isolate(a int) {
	for _, n := range c.Nodes {
		if n.ID != a {
			c.Cut(a, n.ID)
		}
	}
}

// Rejoin undoes Isolate.
func (c *Cluster) Rejoin(a int) {
	for _, n := range c.Nodes {
		if n.ID != a {
			c.Heal(a, n.ID)
		}
	}
}

// Stall lets nothing arrive any more that one node sends another on a link, until
// Flow or the end of their session.
func (c *Cluster) Stall(from, to int, link wire.Link) { c.setStuck(from, to, link, true) }

// Flow lets what was stalled arrive, and what follows.
func (c *Cluster) Flow(from, to int, link wire.Link) { c.setStuck(from, to, link, false) }

func (c *Cluster) setStuck(from, to int, link wire.Link, stuck bool) {
	for _, s := range c.sessionsOf(from) {
		if l := s.links[link]; s.to.ID == to {
			l.mu.Lock()
			l.stuck = stuck
			l.mu.Unlock()
			l.cond.Broadcast()
		}
	}
}

// connect makes a session between two nodes that are up and not cut.
func (c *Cluster) connect(a, b *Node) {
	c.mu.Lock()
	cut := c.cut[pair(a.ID, b.ID)]
	c.mu.Unlock()
	if a == b || a.set == nil || b.set == nil || cut || a.Fallen() || b.Fallen() {
		return
	}
	c.hear(a, b, "superseded")
	c.hear(b, a, "superseded")
	a.hearing.Wait()
	b.hearing.Wait()
	if a.hasSession(b.ID) || b.hasSession(a.ID) {
		return // who was given up and does not know comes back when it has learnt of it
	}
	sa, sb := newSession(c, a, b), newSession(c, b, a)
	sa.other, sb.other = sb, sa
	for n, s := range map[*Node]*session{a: sa, b: sb} {
		n.mu.Lock()
		n.sessions[s.to.ID] = s
		n.mu.Unlock()
	}
	sa.start()
	sb.start()
	a.set.SessionUp(sa)
	if c.opts.Uneven {
		time.Sleep(c.spell(10 * time.Millisecond))
	}
	b.set.SessionUp(sb)
	sa.begin()
	sb.begin()
}

func (n *Node) hasSession(with int) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.sessions[with] != nil
}

// longestUnheard is how much later than the other one of two nodes hears that their
// session is over. Two primaries of which one will yield are no split brain for that long.
const longestUnheard = 4 * time.Second

// drop ends the session of two nodes; each learns of it on its own.
func (c *Cluster) drop(a, b *Node, reason string) {
	late := 2 // neither
	if c.opts.Uneven {
		late = c.intN(3)
	}
	var wg sync.WaitGroup
	for i, n := range [][2]*Node{{a, b}, {b, a}} {
		n, peer := n[0], n[1]
		if i == late && c.unheard(n, peer, c.intN(2) == 0) {
			time.AfterFunc(c.spell(longestUnheard), func() { c.hear(n, peer, reason) })
		}
		s := n.takeSession(peer, func(s *session) bool { return n.set == nil || n.fallen != nil || !s.late.Load() })
		if s == nil {
			continue
		}
		if c.opts.Uneven {
			s.leave()
		} else {
			s.end()
		}
		set := n.set
		wg.Go(func() {
			s.wait()
			if set != nil {
				set.SessionDown(s, reason)
			}
		})
	}
	wg.Wait()
	a.hearing.Wait()
	b.hearing.Wait()
}

// takeSession is the node's session with a peer, if it is so, which is the node's no more.
func (n *Node) takeSession(peer *Node, so func(*session) bool) *session {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.sessions[peer.ID]
	if s == nil || !so(s) {
		return nil
	}
	delete(n.sessions, peer.ID)
	return s
}

// unheard ends the session of a node that is up with a peer; it does not hear of that.
// The lease has run out: a peer may not give it up before.
func (c *Cluster) unheard(n, peer *Node, underWayArrives bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	s := n.sessions[peer.ID]
	if s == nil || n.set == nil || n.fallen != nil || s.late.Swap(true) {
		return false
	}
	s.lapsed.Store(true)
	if underWayArrives {
		s.other.leave()
	} else {
		s.end()
	}
	return true
}

// hear lets a node know that its session with a peer is over, if that is so.
func (c *Cluster) hear(n, peer *Node, reason string) {
	s := n.takeSession(peer, func(s *session) bool {
		over := s.late.Load()
		if over {
			n.hearing.Add(1)
		}
		return over
	})
	if s == nil {
		return
	}
	defer n.hearing.Done()
	s.end()
	s.wait()
	s.other.set.SessionDown(s, reason)
}

// allHeard reports whether every node has heard of the end of its sessions.
func (c *Cluster) allHeard() bool {
	for a := range c.Nodes {
		for _, s := range c.sessionsOf(a) {
			if s.late.Load() {
				return false
			}
		}
	}
	return true
}

// CutUnheard cuts two nodes from each other, of which a does not hear before Hear, or
// before they meet again.
func (c *Cluster) CutUnheard(a, b int) {
	c.unheard(c.Nodes[a], c.Nodes[b], false)
	c.Cut(a, b)
}

// Hear undoes a's not having heard.
func (c *Cluster) Hear(a, b int) { c.hear(c.Nodes[a], c.Nodes[b], "cut") }

func (c *Cluster) disconnect(n *Node, reason string) {
	for _, m := range c.Nodes {
		if m != n {
			c.drop(n, m, reason)
		}
	}
}
