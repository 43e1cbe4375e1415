package server

import (
	"bytes"
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/lockstepd/lockstep/server/reload"
)

// followConfig applies the configuration file whenever it changes, and when
// the surroundings ask for it.
func (e *engine) followConfig(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	wg.Go(func() { e.followRequests(ctx) })
	wg.Go(func() { e.secrets.run(ctx) })
	w := reload.Watcher{Paths: e.conf.Files, Changed: e.conf.FileChanged, Logger: e.opts.Logger("config")}
	return w.Run(ctx)
}

// followRequests answers each request to read the configuration again.
func (e *engine) followRequests(ctx context.Context) {
	for {
		select {
		case <-e.opts.Reload:
			_, err := e.conf.Reload(ctx, reload.Request{Who: "signal"})
			if e.opts.Reloaded != nil {
				e.opts.Reloaded(err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// secretWindow is how long a secret that was replaced is still taken.
const secretWindow = 10 * time.Minute

// rotation takes the cluster from one secret to the next. Nodes read the new
// one at different times, so for a window both are taken; in its first half
// the old one is proved, which every node has, and in the second the new one.
type rotation struct {
	set func(...[]byte) error
	log *slog.Logger

	// mu guards the fields below. set is called under it: it only stores.
	mu       sync.Mutex
	now, old []byte // old is nil outside of a window
	began    time.Time
	changed  chan struct{} // wakes run
}

func newRotation(set func(...[]byte) error, secret []byte, log *slog.Logger) *rotation {
	return &rotation{set: set, now: secret, log: log, changed: make(chan struct{}, 1)}
}

// to begins to replace the secret. Going back to the one before ends the
// window with that.
func (r *rotation) to(secret []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if bytes.Equal(secret, r.now) {
		return nil
	}
	old := r.now
	if bytes.Equal(secret, r.old) {
		old = nil
	}
	use := [][]byte{secret}
	if old != nil {
		use = [][]byte{old, secret}
	}
	if err := r.set(use...); err != nil {
		return err
	}
	r.now, r.old, r.began = secret, old, time.Now()
	select {
	case r.changed <- struct{}{}:
	default:
	}
	return nil
}

// run moves the window on.
func (r *rotation) run(ctx context.Context) {
	for {
		var due <-chan time.Time
		if wait, ok := r.step(); ok {
			due = time.After(wait)
		}
		select {
		case <-due:
		case <-r.changed:
		case <-ctx.Done():
			return
		}
	}
}

// step does what the time asks for, and says when to come again.
func (r *rotation) step() (wait time.Duration, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.old == nil {
		return 0, false
	}
	age := time.Since(r.began)
	switch {
	case age < secretWindow/2:
		return secretWindow/2 - age, true
	case age < secretWindow:
		r.use("the new secret is proved to peers, the old one is still taken", r.now, r.old)
		return secretWindow - age, true
	}
	r.use("the old secret is no longer taken", r.now)
	r.old = nil
	return 0, false
}

func (r *rotation) use(text string, secrets ...[]byte) {
	if err := r.set(secrets...); err != nil {
		r.log.Error("cannot go on replacing the secret", "err", err)
		return
	}
	r.log.Info(text)
}
