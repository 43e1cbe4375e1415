package messenger

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"
)

// Listen accepts peers at ln, too, which becomes the listener of Addr; whoever is
// connected stays. It returns the listener before, which the caller closes when
// no peer looks for this node there any more. Start is over.
func (m *Messenger) Listen(ln net.Listener) (before net.Listener, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.ctx.Err() != nil {
		return nil, errClosed
	}
	before = m.listeners[len(m.listeners)-1]
	m.listeners = append(m.listeners, ln)
	m.accepting.Go(func() { m.accept(ln) }) // before Close waits: it gets the mutex first
	return before, nil
}

// accepted is the end of an accepter.
func (m *Messenger) accepted(ln net.Listener) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.listeners) > 1 {
		m.listeners = slices.DeleteFunc(m.listeners, func(l net.Listener) bool { return l == ln })
	}
}

// Addr is the address on which peers are accepted.
func (m *Messenger) Addr() net.Addr {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.listeners[len(m.listeners)-1].Addr()
}

// Rebind moves this node to another port, as b says but never the present one,
// and makes it another entity: it has a new incarnation, every session ends, with
// the frames that were not acked at hand, and peers that find the new place begin
// anew. It returns when all that is done. Where there is no other port nothing
// has changed. Listen is for a move in which sessions stay.
func (m *Messenger) Rebind(ctx context.Context, b Binding) error {
	if at, ok := m.Addr().(*net.TCPAddr); ok {
		b.Avoid = append(slices.Clone(b.Avoid), at.Port)
	}
	ln, err := Bind(ctx, b)
	if err != nil {
		return fmt.Errorf("cannot move to another port: %w", err)
	}
	m.mu.Lock()
	if m.ctx.Err() != nil {
		m.mu.Unlock()
		return errors.Join(errClosed, ln.Close())
	}
	before := m.listeners
	m.listeners, m.binding = []net.Listener{ln}, b
	m.accepting.Go(func() { m.accept(ln) }) // before Close waits, as in Listen
	m.mu.Unlock()
	for _, l := range before {
		_ = l.Close() // it makes its accepter return
	}
	return m.renew(ctx)
}

// renew makes this node another entity, and returns when no session of what it
// was is left.
func (m *Messenger) renew(ctx context.Context) error {
	m.incarnation.Store(newCookie())
	r := Reason{ReasonRebound, fmt.Sprintf("node %s begins a new life at %v", m.opt.NodeName, m.Addr())}
	m.log.Warn("this node listens elsewhere, as another entity: every session begins anew", "address", m.Addr().String(), "incarnation", fmt.Sprintf("%016x", m.Incarnation()))
	return m.each("", func(p *peer) error {
		err := p.do(ctx, func() {
			if s := p.s; s != nil && s.local != m.Incarnation() {
				p.endSession(s, r)
			}
			atOnce(p.fsm, time.Now())
		})
		if errors.Is(err, errClosed) {
			return nil // it has no session any more
		}
		return err
	})
}

// socketLost reports whether no connection will ever be accepted again on a
// socket: somebody shut it down, as "ss --kill" does, or it is none. Other
// failures, such as too few descriptors, pass.
func socketLost(err error) bool {
	for _, e := range [...]error{syscall.EINVAL, syscall.EBADF, syscall.ENOTSOCK, syscall.EOPNOTSUPP} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// relisten puts another listener in the place of one whose socket was lost; nil:
// nobody is to listen there any more. At the same address sessions go on, and
// peers find this node again; at another one it is another entity.
func (m *Messenger) relisten(lost net.Listener, why error) net.Listener {
	again := m.relistener(lost)
	if again == nil {
		return nil
	}
	_ = lost.Close() // its address must be free; there is nothing else to it
	m.log.Warn("the socket on which peers are accepted was lost; listening anew", "address", lost.Addr().String(), "because", why)
	fsm := newFSM(minBackoff, maxBackoff)
	for {
		ln, err := again(m.ctx, lost.Addr())
		if err == nil {
			return m.replace(lost, ln)
		}
		if m.ctx.Err() != nil {
			return nil
		}
		m.complain("", "cannot accept peers", err)
		select {
		case <-m.ctx.Done():
			return nil
		case <-time.After(max(minBackoff, time.Until(failed(fsm, time.Now())))):
		}
	}
}

// relistener is how another listener is made in the place of one that was lost;
// nil: peers look for this node elsewhere by now, or it is not known how.
func (m *Messenger) relistener(lost net.Listener) func(context.Context, net.Addr) (net.Listener, error) {
	m.mu.Lock()
	b, present := m.binding, m.listeners[len(m.listeners)-1]
	m.mu.Unlock()
	switch {
	case m.ctx.Err() != nil || present != lost:
		return nil
	case b.Address != "":
		return func(ctx context.Context, _ net.Addr) (net.Listener, error) { return Bind(ctx, b) }
	case m.opt.Relisten == nil:
		m.log.Error("the socket on which peers are accepted was lost; restart this node", "address", lost.Addr().String())
	}
	return m.opt.Relisten
}

// replace is relisten's end.
func (m *Messenger) replace(lost, ln net.Listener) net.Listener {
	m.mu.Lock()
	at := slices.Index(m.listeners, lost)
	if m.ctx.Err() != nil || at < 0 {
		m.mu.Unlock()
		_ = ln.Close() // nobody wants it any more
		return nil
	}
	m.listeners[at] = ln
	m.mu.Unlock()
	m.log.Info("peers are accepted again", "address", ln.Addr().String())
	if ln.Addr().String() != lost.Addr().String() {
		_ = m.renew(m.ctx) // it fails with the messenger's end only
	}
	return ln
}
