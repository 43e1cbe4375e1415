package service

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
)

// StartAll starts every service that is not manual, each when what it needs
// runs. When one fails, what was started is stopped in the reverse order and
// the error is its *StartError.
func (m *Manager) StartAll(ctx context.Context) error {
	if err := m.lock(ctx); err != nil {
		return err
	}
	defer m.unlock()
	plan, err := m.plan()
	if err != nil {
		return err
	}
	if err := m.startPlan(ctx, plan); err != nil {
		m.opts.Logger.Error("stopping what was started", "err", err)
		return errors.Join(err, m.stopList(context.WithoutCancel(ctx), m.running()))
	}
	return nil
}

// plan is what StartAll starts. It fails where a need is not provided, is
// manual, or where services need each other in a circle.
func (m *Manager) plan() ([]*entry, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, errStopped
	}
	var plan []*entry
	for _, e := range m.entries {
		if e.Manual || e.state == Running {
			continue
		}
		for _, id := range e.Needs {
			need := m.findLocked(id)
			if need == nil {
				return nil, &StartError{e.ID, m.absentLocked(id)}
			}
			if need.Manual && need.state != Running {
				return nil, &StartError{e.ID, fmt.Errorf("it needs %s, which is not started with the others", id)}
			}
		}
		plan = append(plan, e)
	}
	return plan, m.circleLocked(plan)
}

// circleLocked finds services that need each other.
func (m *Manager) circleLocked(plan []*entry) error {
	const visiting, done = 1, 2
	mark := map[*entry]int{}
	var trail []string
	var visit func(e *entry) error
	visit = func(e *entry) error {
		if mark[e] == done {
			return nil
		}
		trail = append(trail, e.ID.String())
		if mark[e] == visiting {
			return fmt.Errorf("services need each other: %s", strings.Join(trail[slices.Index(trail, e.ID.String()):], " → "))
		}
		mark[e] = visiting
		for _, id := range e.Needs {
			if need := m.findLocked(id); need != nil {
				if err := visit(need); err != nil {
					return err
				}
			}
		}
		mark[e] = done
		trail = trail[:len(trail)-1]
		return nil
	}
	for _, e := range plan {
		if err := visit(e); err != nil {
			return err
		}
	}
	return nil
}

// startPlan starts the services side by side, each behind what it needs, and
// returns the first failure when all have started or given up.
func (m *Manager) startPlan(ctx context.Context, plan []*entry) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	ready := map[ID]chan struct{}{}
	for _, e := range plan {
		ready[e.ID] = make(chan struct{})
	}
	var wg sync.WaitGroup
	for _, e := range plan {
		wg.Go(func() {
			for _, id := range e.Needs {
				if !await(ctx, ready[id]) {
					return
				}
			}
			if err := m.start(ctx, e); err != nil {
				cancel(err)
				return
			}
			close(ready[e.ID])
		})
	}
	wg.Wait()
	return context.Cause(ctx)
}

// await waits for a need; one that is not in the plan runs already.
func await(ctx context.Context, ready <-chan struct{}) bool {
	if ready == nil {
		return ctx.Err() == nil
	}
	select {
	case <-ready:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// start takes one service from stopped or failed to running.
func (m *Manager) start(ctx context.Context, e *entry) error {
	m.set(e, Starting, nil)
	begin := time.Now()
	err := m.call(ctx, e, "start", orDefault(e.StartTimeout, DefaultStartTimeout), e.Service.Start)
	if _, other := errors.AsType[*StartError](context.Cause(ctx)); err != nil && other {
		m.opts.Logger.Info("service not started", "service", e.Name, "version", e.Version, "because", context.Cause(ctx))
		m.set(e, Stopped, nil)
		return err
	}
	if err != nil {
		m.opts.Logger.Error("service failed to start", "service", e.Name, "version", e.Version, "err", err)
		m.set(e, Failed, err)
		return &StartError{e.ID, err}
	}
	m.ready.Lock()
	defer m.ready.Unlock()
	m.opts.Logger.Info("service started", "service", e.Name, "version", e.Version, "took", time.Since(begin))
	m.set(e, Running, nil)
	m.startRun(e)
	return nil
}

// call runs one of a service's methods for a bounded time. A method that does
// not come back keeps its goroutine; nobody waits for it any longer.
func (m *Manager) call(ctx context.Context, e *entry, what string, limit time.Duration, fn func(context.Context) error) error {
	late := fmt.Errorf("it did not %s within %v", what, limit)
	ctx, cancel := context.WithTimeoutCause(ctx, limit, late)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- m.guard(e, func() error { return fn(ctx) }) }()
	select {
	case err := <-done:
		if err != nil && errors.Is(err, context.DeadlineExceeded) && errors.Is(context.Cause(ctx), late) {
			return late
		}
		return err
	case <-ctx.Done():
	}
	// A method that heeds ctx comes back now; it gets a moment to say why, or
	// to have done it after all.
	select {
	case err := <-done:
		if err == nil || !errors.Is(err, ctx.Err()) {
			return err
		}
	case <-time.After(grace):
	}
	return context.Cause(ctx)
}

// grace is how long a method may take to notice that its time is over.
const grace = time.Second

// guard turns the panic of a contained service into an error.
func (m *Manager) guard(e *entry, fn func() error) (err error) {
	if e.Contained {
		defer func() {
			if v := recover(); v != nil {
				p := &PanicError{v, debug.Stack()}
				m.opts.Logger.Error("service panicked", "service", e.Name, "version", e.Version, "panic", v, "stack", string(p.Stack))
				err = p
			}
		}()
	}
	return fn()
}

func orDefault(d, def time.Duration) time.Duration {
	if d <= 0 {
		return def
	}
	return d
}
