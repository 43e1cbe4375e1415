package service

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// runTask is a service's Run at work.
type runTask struct {
	cancel context.CancelFunc
	done   chan struct{} // closed when Run has returned and was dealt with
}

// The pauses before restarts, growing from first to most.
const (
	restartFirst = 200 * time.Millisecond
	restartMost  = 30 * time.Second
)

// startRun runs a Runner until it is cancelled or fails.
func (m *Manager) startRun(e *entry) {
	r, ok := e.Service.(Runner)
	if !ok {
		return
	}
	ctx, cancel := context.WithCancel(m.ctx)
	task := &runTask{cancel, make(chan struct{})}
	m.mu.Lock()
	e.run = task
	m.mu.Unlock()
	m.tasks.Go(func() {
		defer close(task.done)
		err := m.guard(e, func() error { return r.Run(ctx) })
		if ctx.Err() == nil {
			m.tasks.Go(func() { m.broke(e, task, err) })
		}
	})
}

// broke deals with a service whose Run ended unasked.
func (m *Manager) broke(e *entry, task *runTask, err error) {
	if err == nil {
		err = errors.New("it ended by itself")
	}
	if m.lock(m.ctx) != nil {
		return // the engine stops
	}
	defer m.unlock()
	m.mu.Lock()
	stale := e.run != task
	if !stale {
		e.run = nil
	}
	m.mu.Unlock()
	if stale {
		return // it was stopped or restarted by a command meanwhile
	}
	m.opts.Logger.Error("service failed", "service", e.Name, "version", e.Version, "err", err)
	m.set(e, Failed, err)
	m.cleanUp(e)
	m.planRestart(e)
}

// cleanUp lets a failed service release what it holds.
func (m *Manager) cleanUp(e *entry) {
	s, ok := e.Service.(Stopper)
	if !ok {
		return
	}
	if err := m.call(m.ctx, e, "stop", orDefault(e.StopTimeout, DefaultStopTimeout), s.Stop); err != nil {
		m.opts.Logger.Warn("a failed service did not clean up", "service", e.Name, "err", err)
	}
}

// planRestart restarts a failed service by its policy, or gives up.
func (m *Manager) planRestart(e *entry) {
	wait, ok := m.nextRestart(e)
	if !ok {
		m.mu.Lock()
		err := fmt.Errorf("service %s failed and is not restarted: %w", e.Name, e.lastErr)
		m.mu.Unlock()
		if e.Policy.Restart && e.Stoppable {
			m.opts.Logger.Error("service stays failed; start it by command once it is mended", "service", e.Name, "err", err)
			return
		}
		select {
		case m.failed <- err:
		default:
		}
		return
	}
	m.opts.Logger.Info("service will be restarted", "service", e.Name, "in", wait)
	m.tasks.Go(func() { m.restartAfter(e, wait) })
}

// nextRestart counts a restart and says how long to wait before it.
func (m *Manager) nextRestart(e *entry) (time.Duration, bool) {
	if !e.Policy.Restart {
		return 0, false
	}
	most := e.Policy.Max
	if most <= 0 {
		most = DefaultRestarts
	}
	since := time.Now().Add(-orDefault(e.Policy.Window, DefaultRestartWindow))
	m.mu.Lock()
	defer m.mu.Unlock()
	e.recent = slices.DeleteFunc(e.recent, func(t time.Time) bool { return t.Before(since) })
	if len(e.recent) >= most {
		return 0, false
	}
	wait := restartFirst
	for range e.recent {
		wait = min(2*wait, restartMost)
	}
	e.recent = append(e.recent, time.Now())
	e.restarts++
	return wait, true
}

// restartAfter starts a failed service again, unless a command was faster.
func (m *Manager) restartAfter(e *entry, wait time.Duration) {
	select {
	case <-time.After(wait):
	case <-m.ctx.Done():
		return
	}
	if m.lock(m.ctx) != nil {
		return
	}
	defer m.unlock()
	if m.ctx.Err() != nil || m.stateOf(e) != Failed {
		return
	}
	if m.start(m.ctx, e) != nil && m.ctx.Err() == nil {
		m.planRestart(e)
	}
}
