package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/reload"
)

// peersHold is the name under which the surroundings keep the listener for peers.
const peersHold = "peers"

// listenForPeers listens at an address, on the socket that is kept for it if
// there is one. A predecessor's that listens elsewhere, because the
// configuration was another one then, is given up.
func (e *engine) listenForPeers(ctx context.Context, at string) (net.Listener, error) {
	bind := func() (net.Listener, error) {
		return messenger.Bind(ctx, messenger.Binding{Address: at, Retries: 3, Delay: 200 * time.Millisecond})
	}
	l, err := e.opts.Listen(peersHold, bind)
	if err != nil || listensAt(l.Addr(), at) {
		return l, err
	}
	e.log.Info("the socket that was kept for peers is at another address than is configured now", "socket", l.Addr().String(), "configured", at)
	if err := l.Close(); err != nil {
		return nil, err
	}
	if e.opts.Release != nil {
		e.opts.Release(peersHold)
	}
	return e.opts.Listen(peersHold, bind)
}

// relisten listens for peers where this node did, when the socket was lost there.
func (e *engine) relisten(ctx context.Context, lost net.Addr) (net.Listener, error) {
	if e.opts.Release != nil {
		e.opts.Release(peersHold) // what is kept for a successor is lost, too
	}
	return e.listenForPeers(ctx, lost.String())
}

// lingering is how long peers find this node at the address that it had, too:
// they learn of the other one at their own pace, and take a node whose address
// nobody listens at for gone.
const lingering = time.Minute

// former is a listener at an address that this node had.
type former struct {
	net.Listener
	end *time.Timer // closes it
}

// applyAddress listens for peers where the configuration says. Those that are
// connected stay; each finds the new place once its configuration has it.
func (e *engine) applyAddress(ctx context.Context, to *config.Local) error {
	at := to.Node.ListenAddress()
	if listensAt(e.msgr.Addr(), at) {
		return nil
	}
	if err := e.listenElsewhere(ctx, at); err != nil {
		return &reload.KeyError{Key: "node." + to.Node.Name + ".address", Err: err}
	}
	e.log.Info("listening for peers elsewhere", "address", e.msgr.Addr().String())
	return nil
}

func (e *engine) listenElsewhere(ctx context.Context, at string) error {
	l, err := e.back(at)
	if l == nil {
		l, err = messenger.Bind(ctx, messenger.Binding{Address: at})
	}
	if err != nil {
		return err
	}
	if e.opts.Release != nil {
		e.opts.Release(peersHold)
	}
	held, err := e.opts.Listen(peersHold, func() (net.Listener, error) { return l, nil })
	if err != nil {
		return errors.Join(err, l.Close())
	}
	before, err := e.msgr.Listen(held)
	if err != nil {
		return errors.Join(err, held.Close())
	}
	e.formers = append(e.formers, former{before, time.AfterFunc(lingering, func() { _ = before.Close() })})
	return nil
}

// back is a listener on the socket of a former one at the address, nil if there is none.
func (e *engine) back(at string) (net.Listener, error) {
	for i, f := range e.formers {
		if !listensAt(f.Addr(), at) || !f.end.Stop() {
			continue
		}
		e.formers = slices.Delete(e.formers, i, i+1)
		file, err := f.Listener.(*net.TCPListener).File()
		if err != nil {
			return nil, err
		}
		defer file.Close()
		l, err := net.FileListener(file)
		return l, errors.Join(err, f.Close())
	}
	return nil, nil
}

// listensAt reports whether a socket takes what comes to an address. A port that
// the kernel chooses is any.
func listensAt(have net.Addr, want string) bool {
	h, w, err := resolve(have, want)
	return err == nil && (w.Port == 0 || h.Port == w.Port) && (h.IP.IsUnspecified() || h.IP.Equal(w.IP))
}

// overlap reports whether two sockets cannot listen side by side.
func overlap(have net.Addr, want string) bool {
	h, w, err := resolve(have, want)
	return err == nil && h.Port == w.Port && (h.IP.IsUnspecified() || w.IP.IsUnspecified() || h.IP.Equal(w.IP))
}

func resolve(have net.Addr, want string) (h, w *net.TCPAddr, err error) {
	h, ok := have.(*net.TCPAddr)
	if !ok {
		return nil, nil, fmt.Errorf("%v is no address of TCP", have)
	}
	if w, err = net.ResolveTCPAddr("tcp", want); err == nil && w.IP == nil {
		w.IP = net.IPv6unspecified // ":PORT"
	}
	return h, w, err
}
