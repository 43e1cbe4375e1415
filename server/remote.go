package server

import (
	"context"
	"fmt"
	"net"
	"slices"
	"sync/atomic"

	"github.com/lockstepd/lockstep/server/cmap"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/control"
	"github.com/lockstepd/lockstep/server/reload"
	"github.com/lockstepd/lockstep/server/service"
)

// remote is one address where commands come in from other hosts.
type remote struct {
	e     *engine
	at    string
	files control.Certificates
	l     atomic.Pointer[door]
}

func remoteName(at string) string { return "control/" + cmap.Name(at) }

func (r *remote) holdName() string { return "control:" + r.at }

// remoteSpec keeps a remote's service and returns its registration.
func (e *engine) remoteSpec(at string, files control.Certificates) service.Spec {
	r := &remote{e: e, at: at, files: files}
	e.remotes[at] = r
	return service.Spec{ID: id(remoteName(at)), Service: r, Needs: ids("control"), Stoppable: true, Policy: service.Policy{Restart: true}}
}

// Start listens.
func (r *remote) Start(context.Context) error {
	l, err := r.e.opts.Listen(r.holdName(), func() (net.Listener, error) { return control.ListenRemote(r.at) })
	if err != nil {
		return fmt.Errorf("cannot listen for remote administration on %s: %w", r.at, err)
	}
	r.l.Store(&door{Listener: l})
	return nil
}

// Health says why nobody gets in.
func (r *remote) Health() error { return r.l.Load().health() }

// Stats counts the sessions that came in here.
func (r *remote) Stats() map[string]any { return r.l.Load().stats() }

// Stop leaves the sessions to the end of Run.
func (r *remote) Stop(context.Context) error { return nil }

// Run answers until ctx ends.
func (r *remote) Run(ctx context.Context) error {
	err := r.e.control.ServeRemote(ctx, r.l.Load(), r.files)
	if !r.e.ending.Load() && r.e.opts.Release != nil {
		r.e.opts.Release(r.holdName())
	}
	return err
}

// certificates are the files by which remote sessions are secured.
func certificates(l *config.Local) control.Certificates {
	t := &l.Cluster.TLS
	return control.Certificates{CA: l.Resolve(t.CA), Cert: l.Resolve(t.Cert), Key: l.Resolve(t.Key)}
}

// applyRemotes listens for remote administration where the configuration says
// so, and nowhere else.
func (e *engine) applyRemotes(ctx context.Context, to *config.Local) error {
	if e.control == nil {
		return nil
	}
	want, files := to.Control.Addresses(), certificates(to)
	for at, r := range e.remotes {
		if slices.Contains(want, at) && r.files == files {
			continue
		}
		if err := e.end(ctx, remoteName(at)); err != nil {
			return &reload.KeyError{Key: "control.listen", Err: err}
		}
		delete(e.remotes, at)
	}
	for _, at := range want {
		if e.remotes[at] != nil {
			continue
		}
		if err := e.begin(ctx, e.remoteSpec(at, files)); err != nil {
			delete(e.remotes, at)
			return &reload.KeyError{Key: "control.listen", Err: err}
		}
	}
	return nil
}
