package service

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// ID names what a service provides: two services with one ID are the same to
// those who need them.
type ID struct {
	Name    string
	Version int
}

// String is "NAME@VERSION".
func (id ID) String() string { return id.Name + "@" + strconv.Itoa(id.Version) }

// ParseID reads "NAME" or "NAME@VERSION"; the version is 0 where there is none.
func ParseID(s string) (ID, error) {
	name, version, given := strings.Cut(s, "@")
	if !validName(name) {
		return ID{}, fmt.Errorf("%q is no name of a service", s)
	}
	if !given {
		return ID{Name: name}, nil
	}
	v, err := strconv.Atoi(version)
	if err != nil || v < 1 {
		return ID{}, fmt.Errorf("%q has no valid version; write NAME@VERSION", s)
	}
	return ID{name, v}, nil
}

func validName(s string) bool {
	if s == "" || len(s) > 128 {
		return false
	}
	return !strings.ContainsFunc(s, func(r rune) bool {
		return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-/:", r)
	})
}

// Service is a part of the engine.
type Service interface {
	// Start returns when the service is ready, or why it cannot be. ctx
	// bounds the start only; a service that goes on working is a Runner.
	Start(ctx context.Context) error
}

// Stopper is a service that has to do something to stop.
type Stopper interface {
	// Stop returns when the service has stopped, or ErrBusy (wrapped with
	// what it is busy with): it is then asked again, for a bounded time.
	Stop(ctx context.Context) error
}

// Runner is a service that works on its own once it is started.
type Runner interface {
	// Run works until ctx ends, which it does after Stop. Returning before
	// that, with an error or without, is a failure.
	Run(ctx context.Context) error
}

// Reloader is a service that takes changes while it runs.
type Reloader interface {
	Reload(ctx context.Context) error
}

// HealthChecker is a service that knows how it is.
type HealthChecker interface {
	// Health is nil, or what is wrong. It should not wait for anything; one
	// that does is reported as such, and nobody waits for it.
	Health() error
}

// Statser is a service with statistics.
type Statser interface {
	// Stats must not wait for anything. Nobody changes what it returned.
	Stats() map[string]any
}

// ErrBusy is what Stop returns while it cannot stop yet.
var ErrBusy = errors.New("busy")

// Policy says what is done about a service that fails while it runs.
type Policy struct {
	// Restart starts it again. Without, its failure is the engine's: see
	// Manager.Failed.
	Restart bool
	// Within Window at most Max restarts are tried; then it stays failed.
	// Zero values are 5 in 10 minutes.
	Max    int
	Window time.Duration
}

// Spec is the registration of a service.
type Spec struct {
	ID
	Service Service
	Needs   []ID // are running before it starts and until it has stopped
	Policy  Policy
	// Contained says that a panic in the service's own methods leaves nothing
	// behind that others rely on: it is recovered and counts as a failure.
	// Without, it ends the process.
	Contained bool
	// Stoppable says that commands may stop, start and restart it while the
	// rest runs.
	Stoppable bool
	// Manual services are not started with the others.
	Manual bool

	StartTimeout time.Duration // 0 is DefaultStartTimeout
	StopTimeout  time.Duration // 0 is DefaultStopTimeout; it bounds busy too
}

// The defaults of Spec and Policy.
const (
	DefaultStartTimeout  = 60 * time.Second
	DefaultStopTimeout   = 15 * time.Second
	DefaultRestarts      = 5
	DefaultRestartWindow = 10 * time.Minute
)

// State is where a service is in its life.
type State string

// The states.
const (
	Stopped  State = "stopped"
	Starting State = "starting"
	Running  State = "running"
	Stopping State = "stopping"
	Failed   State = "failed"
)

// Info is what there is to know of a service.
type Info struct {
	Name      string
	Version   int
	State     State
	Since     time.Time // when State was entered
	Health    string    // "ok", or what is wrong
	Restarts  int       // by its policy
	Needs     []string
	NeededBy  []string // that run now
	Stoppable bool
	LastError string
	Stats     map[string]any
}

// StartError is the failure of one service to start.
type StartError struct {
	ID  ID
	Err error
}

// Error names the service.
func (e *StartError) Error() string {
	return fmt.Sprintf("cannot start service %s: %v", e.ID.Name, e.Err)
}

// Unwrap is what the service said: its exit status, for instance, is found
// through it.
func (e *StartError) Unwrap() error { return e.Err }

// PanicError is a panic of a contained service.
type PanicError struct {
	Value any
	Stack []byte
}

// Error is the panic's value, the first line of it; the rest and the stack are
// logged.
func (e *PanicError) Error() string {
	line, _, _ := strings.Cut(fmt.Sprint(e.Value), "\n")
	return "panic: " + line
}

// RefusedError is a command that is refused because of the state of things.
type RefusedError struct{ Text string }

// Error says what is refused and why.
func (e *RefusedError) Error() string { return e.Text }

func refuse(format string, args ...any) error {
	return &RefusedError{fmt.Sprintf(format, args...)}
}
