package nbd

import (
	"context"
	"slices"
	"strings"
	"sync"
)

// exports knows which connections have which export open, and which died with
// requests that may still have an effect.
//
// A client that lost its connection sends its requests again over the next
// one, and then others: were an old copy still on its way, it could land on
// newer data. So whoever opens an export waits for every connection to it
// that is ending, or that the other side has closed, whether we noticed yet
// or not.
type exports struct {
	// mu guards the fields below.
	mu   sync.Mutex
	open map[string]map[*conn]struct{}
	past map[string]*Stats // what ended connections did, by export
}

func (e *exports) init() {
	e.open = make(map[string]map[*conn]struct{})
	e.past = make(map[string]*Stats)
}

// enter notes that c has an export open.
func (e *exports) enter(name string, c *conn) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.open[name] == nil {
		e.open[name] = make(map[*conn]struct{})
	}
	if e.past[name] == nil {
		e.past[name] = new(Stats)
	}
	e.open[name][c] = struct{}{}
}

// leave notes that nothing of c can have an effect any more.
func (c *conn) leave() {
	e := &c.srv.exports
	s := c.stats.snapshot()
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.open[c.state.Export], c)
	e.past[c.state.Export].add(&s)
	close(c.gone)
}

// of returns the connections that have an export open.
func (e *exports) of(name string) []*conn {
	e.mu.Lock()
	defer e.mu.Unlock()
	conns := make([]*conn, 0, len(e.open[name]))
	for c := range e.open[name] {
		conns = append(conns, c)
	}
	return conns
}

// awaitDead returns when every connection to an export that has died is gone.
func (e *exports) awaitDead(ctx context.Context, name string) error {
	for _, c := range e.of(name) {
		if !c.dying() {
			continue
		}
		c.hurry()
		c.log.Debug("a client waits for this connection to end", "export", name)
		select {
		case <-c.gone:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// dying reports whether the connection will end without anybody's doing.
func (c *conn) dying() bool {
	c.out.mu.Lock()
	dead := c.out.dead
	c.out.mu.Unlock()
	return dead || c.sock.hungUp()
}

// Stats returns a snapshot of what the server is doing and has done.
func (s *Server) Stats() ServerStats {
	st := ServerStats{Buffers: s.slabs.Out() + s.bufs.out()}
	st.Exports, st.Connections = s.exports.stats()
	s.mu.Lock()
	defer s.mu.Unlock()
	st.Accepted, st.Refused = s.accepted, s.refused
	st.Handshaking = max(len(s.conns)-len(st.Connections), 0)
	return st
}

// Export returns what all connections to an export did; nothing of one that was
// never opened.
func (s *Server) Export(name string) ExportStats {
	e := &s.exports
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.sumLocked(name, func(*conn, *Stats) {})
}

func (e *exports) stats() ([]ExportStats, []ConnStats) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var exports []ExportStats
	var conns []ConnStats
	for name := range e.past {
		exports = append(exports, e.sumLocked(name, func(c *conn, s *Stats) {
			conns = append(conns, ConnStats{
				Client: c.client, Export: name, Since: c.since, Inflight: int(c.inflight()), Stats: *s,
			})
		}))
	}
	slices.SortFunc(exports, func(a, b ExportStats) int { return strings.Compare(a.Export, b.Export) })
	slices.SortFunc(conns, func(a, b ConnStats) int { return int(a.Client.ID) - int(b.Client.ID) })
	return exports, conns
}

// sumLocked sums an export up and shows each of its open connections.
func (e *exports) sumLocked(name string, each func(*conn, *Stats)) ExportStats {
	x := ExportStats{Export: name, Open: len(e.open[name])}
	if past := e.past[name]; past != nil {
		x.Stats = *past
	}
	for c := range e.open[name] {
		s := c.stats.snapshot()
		x.Stats.add(&s)
		each(c, &s)
	}
	return x
}
