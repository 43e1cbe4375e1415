package service

import "time"

// healthWait is how long anybody waits for a health check.
const healthWait = 50 * time.Millisecond

// healthOf is the health that follows from the state alone.
func healthOf(s State, last error) string {
	if s == Failed && last != nil {
		return last.Error()
	}
	if s == Running {
		return "ok"
	}
	return string(s)
}

// checkHealth asks a running service how it is. A check that does not come
// back is not asked again, and is itself what is wrong.
func (m *Manager) checkHealth(e *entry) string {
	m.mu.Lock()
	health := healthOf(e.state, e.lastErr)
	h, ok := e.Service.(HealthChecker)
	if !ok || e.state != Running {
		m.mu.Unlock()
		return health
	}
	if e.checking {
		m.mu.Unlock()
		return "the health check does not answer"
	}
	e.checking = true
	m.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.noteHealth(e, m.guard(e, h.Health))
	}()
	select {
	case <-done:
		m.mu.Lock()
		defer m.mu.Unlock()
		return e.health
	case <-time.After(healthWait):
		return "the health check does not answer"
	}
}

func (m *Manager) noteHealth(e *entry, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.checking, e.health = false, "ok"
	if err != nil {
		e.health = err.Error()
	}
}
