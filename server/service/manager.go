package service

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"
)

// Options are what a Manager is made with.
type Options struct {
	Logger *slog.Logger // nil discards
	// Observe is told of every change of state, in order per service. It must
	// not wait, nor call the Manager.
	Observe func(Info)
}

// Manager owns the services of one engine.
type Manager struct {
	opts   Options
	ctx    context.Context // ends when the manager stops; restarts wait on it
	cancel context.CancelFunc
	failed chan error    // the first failure that is the engine's
	ending chan struct{} // closed when StopAll is called
	tasks  sync.WaitGroup

	// op is held by what starts or stops services, so that one such thing
	// happens at a time; it is a channel so that waiting for it can end.
	op chan struct{}

	// ready is held while a service becomes running: of those that start side
	// by side, the log and the observers tell the order in which they will be
	// stopped. It is taken before mu.
	ready sync.Mutex

	// mu guards the fields below and every entry's mutable ones. No service
	// is called under it.
	mu      sync.Mutex
	entries []*entry
	order   int  // counts services that became running
	closed  bool // StopAll was called
}

// entry is one registered service.
type entry struct {
	Spec

	// The rest is guarded by Manager.mu.
	state    State
	since    time.Time
	order    int // when it became running, for the reverse
	lastErr  error
	restarts int
	recent   []time.Time // of restarts, within the policy's window
	run      *runTask    // while Run runs
	checking bool        // a health check has not come back
	health   string
}

// New makes a manager without services.
func New(opts Options) *Manager {
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.DiscardHandler)
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Manager{opts: opts, ctx: ctx, cancel: cancel, failed: make(chan error, 1), ending: make(chan struct{}), op: make(chan struct{}, 1)}
}

// Register adds a service, stopped. Two providers of one ID are refused.
func (m *Manager) Register(s Spec) error {
	if !validName(s.Name) || s.Version < 1 {
		return fmt.Errorf("cannot register service %q version %d: a name of letters, digits, . _ - / : and a version from 1 on are needed", s.Name, s.Version)
	}
	if s.Service == nil {
		return fmt.Errorf("cannot register service %s: it has no implementation", s.ID)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.findLocked(s.ID) != nil {
		return fmt.Errorf("cannot register service %s: it is provided already", s.ID)
	}
	s.Needs = slices.Clone(s.Needs)
	m.entries = append(m.entries, &entry{Spec: s, state: Stopped, since: time.Now()})
	return nil
}

// Unregister removes a service that does not run.
func (m *Manager) Unregister(id ID) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.findLocked(id)
	if e == nil {
		return m.absentLocked(id)
	}
	if e.state != Stopped && e.state != Failed {
		return refuse("cannot remove service %s: it is %s; stop it first", id, e.state)
	}
	m.entries = slices.DeleteFunc(m.entries, func(x *entry) bool { return x == e })
	return nil
}

// Lookup returns the service of exactly that name and version. The error of
// one that is absent lists what there is.
func (m *Manager) Lookup(id ID) (Service, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.findLocked(id); e != nil {
		return e.Service, nil
	}
	return nil, m.absentLocked(id)
}

// Failed delivers the failure of a service whose policy does not restart it:
// the engine cannot go on and should stop.
func (m *Manager) Failed() <-chan error { return m.failed }

func (m *Manager) findLocked(id ID) *entry {
	for _, e := range m.entries {
		if e.ID == id {
			return e
		}
	}
	return nil
}

// absentLocked is the error for an ID that nobody provides.
func (m *Manager) absentLocked(id ID) error {
	var all, versions []string
	for _, e := range m.entries {
		all = append(all, e.ID.String())
		if e.Name == id.Name {
			versions = append(versions, e.ID.String())
		}
	}
	slices.Sort(all)
	slices.Sort(versions)
	switch {
	case len(versions) > 0:
		return fmt.Errorf("there is no service %s; there is %s", id, strings.Join(versions, ", "))
	case len(all) == 0:
		return fmt.Errorf("there is no service %s; there are none", id)
	}
	return fmt.Errorf("there is no service %s; services are %s", id, strings.Join(all, ", "))
}

// resolve finds the service that a command names, "NAME" or "NAME@VERSION".
func (m *Manager) resolve(name string) (*entry, error) {
	id, err := ParseID(name)
	if err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if id.Version > 0 {
		if e := m.findLocked(id); e != nil {
			return e, nil
		}
		return nil, m.absentLocked(id)
	}
	var found []*entry
	for _, e := range m.entries {
		if e.Name == id.Name {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		var names []string
		for _, e := range m.entries {
			names = append(names, e.Name)
		}
		slices.Sort(names)
		return nil, fmt.Errorf("there is no service %s; services are %s", id.Name, strings.Join(slices.Compact(names), ", "))
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("service %s has more than one version: write NAME@VERSION", id.Name)
}

// List tells of every service, by name and version.
func (m *Manager) List() []Info {
	m.mu.Lock()
	entries := slices.Clone(m.entries)
	m.mu.Unlock()
	slices.SortFunc(entries, func(a, b *entry) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), cmp.Compare(a.Version, b.Version))
	})
	out := make([]Info, len(entries))
	for i, e := range entries {
		out[i] = m.describe(e)
	}
	return out
}

// Names lists the services' names, in order, without asking the services.
func (m *Manager) Names() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]string, len(m.entries))
	for i, e := range m.entries {
		out[i] = e.Name
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Show tells of one service, by "NAME" or "NAME@VERSION".
func (m *Manager) Show(name string) (Info, error) {
	e, err := m.resolve(name)
	if err != nil {
		return Info{}, err
	}
	return m.describe(e), nil
}

func (m *Manager) describe(e *entry) Info {
	health := m.checkHealth(e)
	var stats map[string]any
	if s, ok := e.Service.(Statser); ok {
		_ = m.guard(e, func() error { stats = s.Stats(); return nil })
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	info := m.infoLocked(e)
	info.Health, info.Stats = health, stats
	return info
}

// infoLocked is what the manager knows without asking the service.
func (m *Manager) infoLocked(e *entry) Info {
	info := Info{
		Name: e.Name, Version: e.Version, State: e.state, Since: e.since,
		Health: healthOf(e.state, e.lastErr), Restarts: e.restarts, Stoppable: e.Stoppable,
	}
	for _, id := range e.Needs {
		info.Needs = append(info.Needs, id.String())
	}
	for _, d := range m.dependentsLocked(e) {
		info.NeededBy = append(info.NeededBy, d.ID.String())
	}
	if e.lastErr != nil {
		info.LastError = e.lastErr.Error()
	}
	return info
}

// dependentsLocked are the services that are not stopped and need e.
func (m *Manager) dependentsLocked(e *entry) []*entry {
	var out []*entry
	for _, d := range m.entries {
		if slices.Contains(d.Needs, e.ID) && (d.state == Running || d.state == Starting || d.state == Stopping) {
			out = append(out, d)
		}
	}
	return out
}

// set moves a service to another state and tells the observer.
func (m *Manager) set(e *entry, s State, err error) {
	m.mu.Lock()
	e.state, e.since = s, time.Now()
	if err != nil {
		e.lastErr = err
	}
	if s == Running {
		m.order++
		e.order, e.lastErr = m.order, nil
	}
	info := m.infoLocked(e)
	m.mu.Unlock()
	if m.opts.Observe != nil {
		m.opts.Observe(info)
	}
}

func (m *Manager) stateOf(e *entry) State {
	m.mu.Lock()
	defer m.mu.Unlock()
	return e.state
}

// lock waits for other starts and stops to end.
func (m *Manager) lock(ctx context.Context) error {
	select {
	case m.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("services are being started or stopped: %w", context.Cause(ctx))
	}
}

// lockOpen is lock for what is pointless once the manager stops: it does not
// wait for that to end, for what is being stopped may be waiting for us.
func (m *Manager) lockOpen(ctx context.Context) error {
	select {
	case <-m.ending:
		return errStopped
	default:
	}
	select {
	case m.op <- struct{}{}:
		return nil
	case <-m.ending:
		return errStopped
	case <-ctx.Done():
		return fmt.Errorf("services are being started or stopped: %w", context.Cause(ctx))
	}
}

func (m *Manager) unlock() { <-m.op }

// errStopped is why nothing starts any more.
var errStopped = errors.New("the engine is stopping")
