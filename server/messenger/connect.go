package messenger

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/lockstepd/lockstep/server/wire"
)

// dialPeer makes a connection to a peer and runs the handshake on it, within
// the bound on both together.
func (m *Messenger) dialPeer(ctx context.Context, cfg Peer, hello *wire.HelloMsg, secret []byte, within time.Duration) (*admitted, error) {
	deadline := time.Now().Add(within)
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	c, err := m.dialConn(ctx, cfg)
	if err != nil {
		return nil, err
	}
	// The handshake ends with the context, whatever the connection waits for.
	stop := context.AfterFunc(ctx, func() { closeConn(c, true) })
	_ = c.SetDeadline(deadline)
	a, err := dialHandshake(c, hello, cfg.Name, secret)
	if !stop() && err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		// A peer that has let it in meanwhile must not see it closed as the end
		// of a process closes connections.
		closeConn(c, true)
		return nil, fmt.Errorf("handshake with %s at %s: %w", cfg.Name, cfg.Address, err)
	}
	_ = c.SetDeadline(time.Time{})
	return a, nil
}

// dialConn makes the connection alone.
func (m *Messenger) dialConn(ctx context.Context, cfg Peer) (net.Conn, error) {
	dial := m.opt.Dial
	if dial == nil {
		dial = dialTCP
	}
	c, err := dial(ctx, cfg.Bind, cfg.Address)
	if err != nil {
		return nil, err
	}
	tune(c, m.opt.SendBuffer, m.userTimeout())
	if m.opt.TLS == nil {
		return c, nil
	}
	conf, err := m.opt.TLS.Client(cfg.Name)
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("setting up TLS for node %s: %w", cfg.Name, err)
	}
	t := tls.Client(c, conf)
	if err := t.HandshakeContext(ctx); err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("TLS with node %s at %s: %w", cfg.Name, cfg.Address, err)
	}
	return t, nil
}

// userTimeout is how long the kernel waits for a peer to take what was sent. It
// finds the link that is dead alone, while the other one lives; a peer that is
// silent altogether is found sooner by its pings.
func (m *Messenger) userTimeout() time.Duration { return max(2*m.mon.Promise().Tick, 2*time.Second) }

// probe connects to where the peer listens, and hangs up.
func (m *Messenger) probe(ctx context.Context, cfg Peer) error {
	ctx, cancel := context.WithTimeout(ctx, m.opt.HandshakeTimeout)
	defer cancel()
	dial := m.opt.Dial
	if dial == nil {
		dial = dialTCP
	}
	c, err := dial(ctx, cfg.Bind, cfg.Address)
	if err == nil {
		_ = c.Close()
	}
	return err
}

// accept runs the accepter until the listener is closed. One whose socket was
// lost is replaced.
func (m *Messenger) accept(ln net.Listener) {
	defer func() { m.accepted(ln) }()
	fsm := newFSM(minBackoff, maxBackoff)
	for {
		c, err := ln.Accept()
		if err != nil {
			if m.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
				return
			}
			if socketLost(err) {
				next := m.relisten(ln, err)
				if next == nil {
					return
				}
				ln = next
				continue
			}
			// Out of descriptors, or the like: it may pass.
			m.complain("", "cannot accept peers", err)
			select {
			case <-m.ctx.Done():
				return
			case <-time.After(max(minBackoff, time.Until(failed(fsm, time.Now())))):
			}
			continue
		}
		fsm.SetFreeTries(freeTries)
		host := hostOf(c)
		if !m.unproven.enter(host) {
			_ = c.Close()
			m.complain(host, "too many connections that have proved nothing", fmt.Errorf("closed one from %s", host))
			continue
		}
		m.accepting.Go(func() {
			defer m.unproven.leave(host)
			m.greet(c)
		})
	}
}

func hostOf(c net.Conn) string {
	a := c.RemoteAddr().String()
	if host, _, err := net.SplitHostPort(a); err == nil {
		return host
	}
	return a
}

// greet runs the handshake with whoever has connected, and passes the
// connection to its peer.
func (m *Messenger) greet(c net.Conn) {
	stop := context.AfterFunc(m.ctx, func() { _ = c.Close() })
	defer stop()
	_ = c.SetDeadline(time.Now().Add(m.opt.HandshakeTimeout))
	tune(c, m.opt.SendBuffer, m.userTimeout())
	o, err := m.prove(c)
	if err != nil {
		m.turnDown(o, err)
		return
	}
	p := m.peerByID(int(o.hello.From))
	if p == nil || !stop() || !p.post(func() { p.offered(o) }) {
		_ = c.Close() // the node was removed, or we shut down
	}
}

// prove runs TLS, where it is configured, and the handshake up to the proof.
func (m *Messenger) prove(c net.Conn) (*offer, error) {
	known := m.known
	if m.opt.TLS != nil {
		t, err := m.serveTLS(c)
		if err != nil {
			return &offer{c: c}, err
		}
		c, known = t, func(h *wire.HelloMsg) *RefusedError { return m.knownByCertificate(t, h) }
	}
	me := identity{m.opt.Cluster, m.opt.NodeName, m.opt.NodeID, m.Incarnation(), m.opt.Features}
	return acceptHandshake(c, me, m.promise, known, m.allSecrets())
}

func (m *Messenger) serveTLS(c net.Conn) (*tls.Conn, error) {
	conf, err := m.opt.TLS.Server()
	if err != nil {
		return nil, fmt.Errorf("setting up TLS: %w", err)
	}
	ctx, cancel := context.WithTimeout(m.ctx, m.opt.HandshakeTimeout)
	defer cancel()
	t := tls.Server(c, conf)
	if err := t.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("TLS: %w", err)
	}
	return t, nil
}

// knownByCertificate is known for a dialer whose certificate must name it.
func (m *Messenger) knownByCertificate(t *tls.Conn, h *wire.HelloMsg) *RefusedError {
	certs := t.ConnectionState().PeerCertificates
	if len(certs) == 0 {
		return refusal(wire.RefuseUnknown, "the node that calls itself %s showed no certificate", h.Node)
	}
	if err := certs[0].VerifyHostname(h.Node); err != nil {
		return refusal(wire.RefuseUnknown, "the certificate of the node that calls itself %s is not for that name: %v", h.Node, err)
	}
	return m.known(h)
}

func (m *Messenger) promise() (uint32, uint16) {
	p := m.mon.Promise()
	return uint32(p.Tick.Milliseconds()), uint16(p.Pings)
}

// known sees whether a dialer is a configured node.
func (m *Messenger) known(h *wire.HelloMsg) *RefusedError {
	p := m.peerByID(int(h.From))
	if p == nil {
		return refusal(wire.RefuseUnknown, "node %s (id %d) is not configured on node %s", h.Node, h.From, m.opt.NodeName)
	}
	if name := p.name(); name != h.Node {
		return refusal(wire.RefuseUnknown, "node id %d is called %s on node %s, not %s", h.From, name, m.opt.NodeName, h.Node)
	}
	return nil
}

// turnDown ends a connection that did not get through the handshake.
func (m *Messenger) turnDown(o *offer, err error) {
	r, ok := errors.AsType[*RefusedError](err)
	switch {
	case ok:
		o.refuse(r)
	case protocolFault(err):
		r = refusal(wire.RefuseProtocol, "%v", err)
		o.refuse(r)
	default:
		_ = o.c.Close()
		// Who hangs up has his reasons, and is told nothing: a probe, or a dialer
		// whose other link was refused.
		if hungUp(err) || gone(err) || m.ctx.Err() != nil {
			return
		}
		r = refusal(wire.RefuseProtocol, "the handshake was not finished: %v", err)
	}
	m.refusedPeer(o, r)
}

// gate bounds how many connections have proved nothing.
type gate struct {
	all, each int

	// mu guards the two.
	mu   sync.Mutex
	in   int
	from map[string]int
}

func (g *gate) enter(host string) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.in >= g.all || g.from[host] >= g.each {
		return false
	}
	if g.from == nil {
		g.from = make(map[string]int)
	}
	g.in++
	g.from[host]++
	return true
}

func (g *gate) leave(host string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.in--
	if g.from[host]--; g.from[host] == 0 {
		delete(g.from, host)
	}
}
