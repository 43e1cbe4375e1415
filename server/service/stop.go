package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// StopAll stops every service in the exact reverse of the order in which they
// became ready, one after the other. A service that fails to stop, or stays
// busy beyond its bound, is named in the error and left behind; the others
// are stopped all the same. Nothing starts any more afterwards. Calling it
// again is safe.
func (m *Manager) StopAll(ctx context.Context) error {
	m.mu.Lock()
	if !m.closed {
		close(m.ending)
	}
	m.closed = true
	m.mu.Unlock()
	if err := m.lock(ctx); err != nil {
		return err
	}
	err := m.stopList(ctx, m.running())
	m.cancel()
	m.unlock()
	m.tasks.Wait()
	return err
}

// running are the services to stop, the last started first.
func (m *Manager) running() []*entry {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []*entry
	for _, e := range m.entries {
		if e.state == Running {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *entry) int { return cmp.Compare(b.order, a.order) })
	return out
}

func (m *Manager) stopList(ctx context.Context, list []*entry) error {
	var errs []error
	for _, e := range list {
		if err := m.stop(ctx, e); err != nil {
			m.set(e, Failed, err)
			errs = append(errs, err)
			m.endRun(e, time.Now().Add(grace))
		}
	}
	return errors.Join(errs...)
}

// The pauses between askings of a busy service.
const (
	busyFirst = 20 * time.Millisecond
	busyMost  = time.Second
)

// stop takes a running service to stopped. With an error it is still in the
// state Stopping: the caller knows whether it goes on running.
func (m *Manager) stop(ctx context.Context, e *entry) error {
	m.set(e, Stopping, nil)
	begin := time.Now()
	limit := orDefault(e.StopTimeout, DefaultStopTimeout)
	until := begin.Add(limit)
	if s, ok := e.Service.(Stopper); ok {
		if err := m.stopBusy(ctx, e, s, until); err != nil {
			m.opts.Logger.Error("service failed to stop", "service", e.Name, "version", e.Version, "err", err)
			return fmt.Errorf("cannot stop service %s: %w", e.Name, err)
		}
	}
	if !m.endRun(e, until) {
		err := fmt.Errorf("cannot stop service %s: it did not stop within %v", e.Name, limit)
		m.opts.Logger.Error("service failed to stop", "service", e.Name, "version", e.Version, "err", err)
		return err
	}
	m.opts.Logger.Info("service stopped", "service", e.Name, "version", e.Version, "took", time.Since(begin))
	m.set(e, Stopped, nil)
	return nil
}

// stopBusy asks a service to stop until it is no longer busy.
func (m *Manager) stopBusy(ctx context.Context, e *entry, s Stopper, until time.Time) error {
	wait := busyFirst
	for {
		err := m.call(ctx, e, "stop", max(time.Until(until), time.Millisecond), s.Stop)
		if !errors.Is(err, ErrBusy) {
			return err
		}
		if time.Until(until) < wait {
			return fmt.Errorf("%w for %v", err, orDefault(e.StopTimeout, DefaultStopTimeout))
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
		wait = min(2*wait, busyMost)
	}
}

// endRun ends a service's Run and waits for it, and reports whether it ended.
func (m *Manager) endRun(e *entry, until time.Time) bool {
	m.mu.Lock()
	task := e.run
	e.run = nil
	m.mu.Unlock()
	if task == nil {
		return true
	}
	task.cancel()
	select {
	case <-task.done:
		return true
	case <-time.After(max(time.Until(until), time.Millisecond)):
		return false
	}
}

// Start starts a service by command, "NAME" or "NAME@VERSION". One that runs
// is left alone.
func (m *Manager) Start(ctx context.Context, name string) error {
	return m.command(ctx, name, func(e *entry) error { return m.startByCommand(ctx, e) })
}

// Stop stops a service by command. It is refused where the service has to
// run, or where others that run need it.
func (m *Manager) Stop(ctx context.Context, name string) error {
	return m.command(ctx, name, func(e *entry) error { return m.stopByCommand(ctx, e) })
}

// Restart stops a service, if it runs, and starts it.
func (m *Manager) Restart(ctx context.Context, name string) error {
	return m.command(ctx, name, func(e *entry) error {
		if err := m.stopByCommand(ctx, e); err != nil {
			return err
		}
		return m.startByCommand(ctx, e)
	})
}

// Reload lets a running service take its changed configuration.
func (m *Manager) Reload(ctx context.Context, name string) error {
	return m.command(ctx, name, func(e *entry) error {
		r, ok := e.Service.(Reloader)
		if !ok {
			return refuse("service %s has nothing to reload", e.Name)
		}
		if s := m.stateOf(e); s != Running {
			return refuse("cannot reload service %s: it is %s", e.Name, s)
		}
		return m.call(ctx, e, "reload", orDefault(e.StartTimeout, DefaultStartTimeout), r.Reload)
	})
}

func (m *Manager) command(ctx context.Context, name string, do func(*entry) error) error {
	e, err := m.resolve(name)
	if err != nil {
		return err
	}
	if err := m.lockOpen(ctx); err != nil {
		return err
	}
	defer m.unlock()
	m.mu.Lock()
	closed := m.closed
	m.mu.Unlock()
	if closed {
		return errStopped
	}
	return do(e)
}

func (m *Manager) startByCommand(ctx context.Context, e *entry) error {
	if m.stateOf(e) == Running {
		return nil
	}
	m.mu.Lock()
	var missing []string
	for _, id := range e.Needs {
		if need := m.findLocked(id); need == nil || need.state != Running {
			missing = append(missing, id.String())
		}
	}
	m.mu.Unlock()
	if len(missing) > 0 {
		return refuse("cannot start service %s: it needs %s, which does not run", e.Name, strings.Join(missing, ", "))
	}
	return m.start(ctx, e)
}

func (m *Manager) stopByCommand(ctx context.Context, e *entry) error {
	if !e.Stoppable {
		return refuse("cannot stop service %s: lockstep does not work without it", e.Name)
	}
	m.mu.Lock()
	state := e.state
	var users []string
	for _, d := range m.dependentsLocked(e) {
		users = append(users, d.ID.String())
	}
	m.mu.Unlock()
	if len(users) > 0 {
		return refuse("cannot stop service %s: %s needs it; stop that first", e.Name, strings.Join(users, ", "))
	}
	switch state {
	case Stopped:
		return nil
	case Failed:
		m.set(e, Stopped, nil)
		return nil
	}
	return m.keepIfBusy(e, m.stop(ctx, e))
}

// keepIfBusy sorts out a stop that failed: a busy service goes on as before,
// any other is failed.
func (m *Manager) keepIfBusy(e *entry, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, ErrBusy):
		m.set(e, Running, nil)
	default:
		m.set(e, Failed, err)
		m.endRun(e, time.Now().Add(grace))
	}
	return err
}
