package messenger

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/wire"
)

// ErrNoNode is a command for a node that is not configured.
var ErrNoNode = errors.New("no such node")

// each calls f for the node of that name, or for every node where it is "".
func (m *Messenger) each(node string, f func(p *peer) error) error {
	if node != "" {
		p := m.peerByName(node)
		if p == nil {
			return fmt.Errorf("%w: %s", ErrNoNode, node)
		}
		return f(p)
	}
	var errs []error
	for _, p := range m.allPeers() {
		errs = append(errs, f(p))
	}
	return errors.Join(errs...)
}

// Connect makes a node wanted that was disconnected, and dials it at once. It
// does not wait for it to come up: see WaitUp.
func (m *Messenger) Connect(ctx context.Context, node string) error {
	return m.each(node, func(p *peer) error {
		if err := m.persist(p, false); err != nil {
			return err
		}
		return p.do(ctx, p.connect)
	})
}

func (p *peer) connect() {
	p.m.note(func(t *cluster.Table) { t.Connect(p.id, time.Now()) })
	p.wanted = true
	p.fsm.Enable(time.Now())
	p.hasten()
}

// hasten dials now, or asks the peer to.
func (p *peer) hasten() {
	atOnce(p.fsm, time.Now())
	if p.s == nil && !p.dials() {
		p.knock()
	}
}

// Disconnect ends the session with a node and keeps it away until Connect. It
// returns when the node is down. With persist it stays away across restarts.
func (m *Messenger) Disconnect(ctx context.Context, node string, persist bool) error {
	return m.each(node, func(p *peer) error {
		if persist {
			if err := m.persist(p, true); err != nil {
				return err
			}
		}
		return p.do(ctx, p.disconnect)
	})
}

func (p *peer) disconnect() {
	p.wanted = false
	if s := p.s; s != nil {
		p.endSession(s, Reason{ReasonDisconnect, "disconnect was asked for on node " + p.m.opt.NodeName})
	}
	p.fsm.Disable(time.Now())
	p.m.note(func(t *cluster.Table) { t.Disconnect(p.id, time.Now(), "disconnect was asked for on this node") })
	p.answer(errDisconnected)
}

var errDisconnected = errors.New("the node was disconnected")

func (m *Messenger) persist(p *peer, away bool) error {
	if m.opt.Store == nil {
		if away {
			return errors.New("cannot keep a node disconnected across restarts: this node has no store for it")
		}
		return nil
	}
	if err := m.opt.Store.SetDisconnected(p.name(), away); err != nil {
		return fmt.Errorf("cannot remember whether node %s stays disconnected: %w", p.name(), err)
	}
	return nil
}

// Reconnect drops both links of a node, which come back at once; the session
// goes on and nothing is lost. Where there is no session it dials at once.
func (m *Messenger) Reconnect(ctx context.Context, node string) error {
	return m.each(node, func(p *peer) error { return p.do(ctx, p.reconnect) })
}

func (p *peer) reconnect() {
	s := p.s
	if s == nil || !s.up {
		p.hasten()
		return
	}
	s.links[wire.Meta].sayGoodbye(&wire.GoodbyeMsg{Code: wire.GoodbyeRelink, Reason: "reconnect was asked for on node " + p.m.opt.NodeName})
	p.relink(s, errors.New("reconnect was asked for on this node"))
}

// WaitUp waits until a node is up, and returns how its next attempt to connect
// fails if it does. All who wait get the same answer.
func (m *Messenger) WaitUp(ctx context.Context, node string) error {
	p := m.peerByName(node)
	if p == nil {
		return fmt.Errorf("%w: %s", ErrNoNode, node)
	}
	answer := make(chan error, 1)
	err := p.do(ctx, func() {
		switch {
		case p.s != nil && p.s.up:
			answer <- nil
		case !p.wanted:
			answer <- errDisconnected
		default:
			p.waiters = append(p.waiters, answer)
		}
	})
	if err != nil {
		return err
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// AddNode begins to keep a session with one more node.
func (m *Messenger) AddNode(n Peer) error {
	if err := m.opt.checkPeer(n); err != nil {
		return err
	}
	return m.addPeer(n, true)
}

// RemoveNode ends the session with a node and forgets it.
func (m *Messenger) RemoveNode(ctx context.Context, node string) error {
	p := m.peerByName(node)
	if p == nil {
		return fmt.Errorf("%w: %s", ErrNoNode, node)
	}
	m.mu.Lock()
	delete(m.peers, p.id)
	m.mu.Unlock()
	p.post(func() {
		p.reason = &Reason{ReasonRemoved, "node " + node + " was removed from the configuration"}
		p.cancel()
	})
	select {
	case <-p.done:
		m.note(func(t *cluster.Table) { t.Remove(p.id) })
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// ChangeNode gives a node a new address or bind address: the session goes on,
// over new links. A new name for an id is a removal and an addition.
func (m *Messenger) ChangeNode(ctx context.Context, n Peer) error {
	if err := m.opt.checkPeer(n); err != nil {
		return err
	}
	p := m.peerByName(n.Name)
	if p == nil || p.id != n.ID {
		return fmt.Errorf("%w: %s (id %d)", ErrNoNode, n.Name, n.ID)
	}
	if *p.cfg.Load() == n {
		return nil
	}
	return p.do(ctx, func() {
		before := p.cfg.Swap(&n)
		if p.s == nil || !p.s.up || before.Address == n.Address {
			p.reconnect()
			return
		}
		p.moved = true
		p.helpers.Go(func() { p.follow(n) })
	})
}

// followPause is the pace at which a peer is looked for at its new address.
const followPause = 300 * time.Millisecond

// follow has the links made anew when the peer is at its new address. Nodes
// learn of a move at their own pace: the session is not put at risk before.
func (p *peer) follow(to Peer) {
	tick := time.NewTicker(followPause)
	defer tick.Stop()
	for *p.cfg.Load() == to {
		if p.m.probe(p.ctx, to) == nil {
			p.post(func() {
				if *p.cfg.Load() == to {
					p.moved = false
					p.reconnect()
				}
			})
			return
		}
		select {
		case <-p.ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// SetTick begins a change of the tick time: here, and, unless local is set, on
// every node that is up. The answer is this node's.
func (m *Messenger) SetTick(tick, transition time.Duration, local bool) (cluster.SetResult, time.Duration, error) {
	tick = tick.Round(time.Millisecond)
	res, target, err := m.mon.Set(tick, transition)
	if err != nil || res != cluster.ChangeInitiated {
		return res, target, err
	}
	m.tickChanging(tick, "this node")
	if local {
		return res, target, nil
	}
	for _, p := range m.allPeers() {
		if s := p.sess.Load(); s != nil {
			h := wire.Header{Type: wire.TickSet, Arg: [3]uint64{uint64(tick.Milliseconds()), uint64(transition.Milliseconds())}}
			s.Send(&h, nil, nil, nil)
		}
	}
	return res, target, nil
}

// tickAsked is called for a TickSet of a peer. One that asks for nonsense is
// refused here, which harms nobody: nodes with different tick times get along.
func (m *Messenger) tickAsked(s *Session, h *wire.Header) {
	const most = uint64(cluster.MaxTick / time.Millisecond)
	tick := time.Duration(min(h.Arg[0], most+1)) * time.Millisecond
	transition := time.Duration(min(h.Arg[1], most+1)) * time.Millisecond
	res, target, err := m.mon.Set(tick, transition)
	switch {
	case err != nil:
		m.log.Warn("a peer asked for a tick time that is not allowed", "node", s.PeerName(), "because", err)
	case res == cluster.ChangeInitiated:
		m.tickChanging(tick, "node "+s.PeerName())
	default:
		m.log.Info("a peer asked for a tick time", "node", s.PeerName(), "asked", tick, "answer", res.String(), "target", target)
	}
}

func (m *Messenger) tickChanging(tick time.Duration, who string) {
	m.log.Info("the tick time changes", "to", tick, "asked by", who)
	m.emit(cluster.Event{Type: cluster.TickChanging, Text: fmt.Sprintf("the tick time changes to %v, as %s was asked", tick, who)})
}

// SetPingCount changes how many pings fall into the tick time, on this node.
func (m *Messenger) SetPingCount(n int) error { return m.mon.SetPings(n) }

// GetTick tells the tick time, and of a change under way.
func (m *Messenger) GetTick() cluster.TickInfo { return m.mon.Get() }
