// Package process runs other programs for the daemon: handlers, helpers and
// external services. A child is checked before it is started, gets only what
// it is meant to get, is the head of a process group of its own, has its
// output taken line by line, and is ended for certain: first with TERM, then
// with KILL, and with it whatever it left in its group.
//
// Every child is waited for by its own pid, never by "any child": others in
// this process wait for theirs.
package process

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/daemon/monitor"
)

// Limit is one resource limit of a child, see setrlimit(2). It takes effect
// right after the program has been executed.
type Limit struct {
	Resource  int
	Soft, Max uint64
}

// Spec says what to run and how. Argv is required.
type Spec struct {
	Name   string   // in messages; default the program's base name
	Argv   []string // the program, looked up in PATH, and its arguments
	Env    []string // the whole environment; nil means PATH alone
	Dir    string   // default /
	Stdin  []byte   // default nothing
	Limits []Limit
	// Ready, if set, is called after the start until it returns nil or its
	// context ends with StartTimeout (default 10 s); then the child is ended
	// and Start fails. It may block; it is called again after a moment when it fails.
	Ready        func(context.Context) error
	StartTimeout time.Duration
	Timeout      time.Duration // for the whole run; 0 is none
	Grace        time.Duration // between TERM and KILL, default 5 s
	// Output takes each line, without its end; stream is "stdout" or "stderr".
	// Default: the lines go to Logger. Both streams may call it at the same time.
	Output func(stream, line string)
	Logger *slog.Logger // default: discard
}

func (s Spec) withDefaults() Spec {
	if s.Name == "" && len(s.Argv) > 0 {
		s.Name = filepath.Base(s.Argv[0])
	}
	if s.Env == nil {
		s.Env = []string{"PATH=" + os.Getenv("PATH")}
	}
	if s.Dir == "" {
		s.Dir = "/"
	}
	if s.StartTimeout == 0 {
		s.StartTimeout = 10 * time.Second
	}
	if s.Grace == 0 {
		s.Grace = 5 * time.Second
	}
	if s.Logger == nil {
		s.Logger = slog.New(slog.DiscardHandler)
	}
	if s.Output == nil {
		log := s.Logger
		name := s.Name
		s.Output = func(stream, line string) { log.Info(line, "program", name, "stream", stream) }
	}
	return s
}

// Check says what is wrong with the spec before anything is started, and
// returns the path of the program.
func (s Spec) Check() (string, error) {
	if len(s.Argv) == 0 || s.Argv[0] == "" {
		return "", errors.New("cannot start a program: its command line is empty")
	}
	for _, words := range [][]string{s.Argv, s.Env} {
		for _, w := range words {
			if strings.ContainsRune(w, 0) {
				return "", fmt.Errorf("cannot start %q: %q has a zero byte", s.Argv[0], w)
			}
		}
	}
	path, err := exec.LookPath(s.Argv[0])
	if errors.Is(err, exec.ErrNotFound) {
		return "", fmt.Errorf("cannot start %q: not found in PATH", s.Argv[0])
	}
	if err != nil {
		return "", fmt.Errorf("cannot start %q: %w", s.Argv[0], err)
	}
	if dir := s.Dir; dir != "" {
		if st, err := os.Stat(dir); err != nil || !st.IsDir() {
			return "", fmt.Errorf("cannot start %q: %s is not a folder", s.Argv[0], dir)
		}
	}
	return path, nil
}

// Process is a child that was started. It is safe for concurrent use.
type Process struct {
	spec Spec
	cmd  *exec.Cmd
	done chan struct{} // closed when the child has ended and its output is taken

	mu     sync.Mutex // guards all below, and keeps a signal from a pid that was reaped
	reaped bool
	asked  bool
	exit   monitor.Exit
}

// Start starts a child. It is ended when ctx ends.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	path, err := spec.Check()
	if err != nil {
		return nil, err
	}
	spec = spec.withDefaults()
	p := &Process{spec: spec, done: make(chan struct{})}
	out, errs := p.lines("stdout"), p.lines("stderr")
	p.cmd = &exec.Cmd{
		Path: path, Args: spec.Argv, Env: spec.Env, Dir: spec.Dir, Stdout: out, Stderr: errs,
		WaitDelay: time.Second, SysProcAttr: &syscall.SysProcAttr{Setpgid: true},
	}
	if spec.Stdin != nil {
		p.cmd.Stdin = bytes.NewReader(spec.Stdin)
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %q: %w", spec.Argv[0], err)
	}
	err = p.limit()
	go p.wait(out, errs)
	go p.guard(ctx) // ends with the child
	if err == nil {
		err = p.ready(ctx)
	}
	if err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

// limit applies the resource limits.
func (p *Process) limit() error {
	for _, l := range p.spec.Limits {
		lim := unix.Rlimit{Cur: l.Soft, Max: l.Max}
		err := unix.Prlimit(p.PID(), l.Resource, &lim, nil)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("cannot limit %s: %w", p.spec.Name, err)
		}
	}
	return nil
}

// readyPause is the pace at which readiness is asked for.
const readyPause = 20 * time.Millisecond

// ready waits until the child says that it is ready.
func (p *Process) ready(ctx context.Context) error {
	if p.spec.Ready == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, p.spec.StartTimeout)
	defer cancel()
	t := time.NewTicker(readyPause)
	defer t.Stop()
	for {
		err := p.spec.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s ended before it was ready: %s", p.spec.Name, p.Exit())
		case <-ctx.Done():
			return fmt.Errorf("%s was not ready within %v: %w", p.spec.Name, p.spec.StartTimeout, err)
		case <-t.C:
		}
	}
}

// guard ends the child when its time is over.
func (p *Process) guard(ctx context.Context) {
	var limit <-chan time.Time
	if p.spec.Timeout > 0 {
		t := time.NewTimer(p.spec.Timeout)
		defer t.Stop()
		limit = t.C
	}
	select {
	case <-p.done:
		return
	case <-ctx.Done():
	case <-limit:
		p.spec.Logger.Warn(fmt.Sprintf("%s did not end within %v and is stopped", p.spec.Name, p.spec.Timeout))
	}
	p.Stop()
}

// wait waits for the child's end. Before the child is reaped its pid, which is
// also its group's, can't belong to anyone else: that is the moment to end the
// rest of the group.
func (p *Process) wait(outputs ...*lineWriter) {
	defer close(p.done)
	for unix.Waitid(unix.P_PID, p.PID(), nil, unix.WEXITED|unix.WNOWAIT, nil) == unix.EINTR {
		continue
	}
	p.mu.Lock()
	_ = unix.Kill(-p.PID(), unix.SIGKILL) // fails if nobody is left
	p.reaped = true
	p.mu.Unlock()
	_ = p.cmd.Wait() // the state says it all
	for _, o := range outputs {
		o.flush()
	}
	p.mu.Lock()
	p.exit = ExitOf(p.cmd.ProcessState)
	p.exit.Asked, p.exit.Serving = p.asked, true
	p.mu.Unlock()
}

// ExitOf translates how a process ended.
func ExitOf(st *os.ProcessState) monitor.Exit {
	ws, ok := st.Sys().(syscall.WaitStatus)
	if !ok {
		return monitor.Exit{Code: st.ExitCode()}
	}
	if ws.Signaled() {
		return monitor.Exit{Signal: monitor.Signal(ws.Signal()), Core: ws.CoreDump()}
	}
	return monitor.Exit{Code: ws.ExitStatus()}
}

// PID returns the child's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended and all its output has been taken.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit returns how the child ended; it waits until it has.
func (p *Process) Exit() monitor.Exit {
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit
}

// Signal sends a signal to the child's whole group; to one that has ended, nothing.
func (p *Process) Signal(sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reaped {
		return nil
	}
	if err := unix.Kill(-p.PID(), sig); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("cannot signal %s: %w", p.spec.Name, err)
	}
	return nil
}

// Stop ends the child: TERM, and KILL after the grace time. It returns when
// the child has ended.
func (p *Process) Stop() {
	p.mu.Lock()
	p.asked = true
	p.mu.Unlock()
	p.signal(syscall.SIGTERM)
	t := time.NewTimer(p.spec.Grace)
	defer t.Stop()
	select {
	case <-p.done:
		return
	case <-t.C:
	}
	p.signal(syscall.SIGKILL)
	<-p.done
}

func (p *Process) signal(sig syscall.Signal) {
	if err := p.Signal(sig); err != nil {
		p.spec.Logger.Error(err.Error())
	}
}

// Run starts a child and waits for its end.
func Run(ctx context.Context, spec Spec) (monitor.Exit, error) {
	p, err := Start(ctx, spec)
	if err != nil {
		return monitor.Exit{}, err
	}
	return p.Exit(), nil
}

// Supervise keeps a child running by the monitor's restart policy, until ctx
// ends or the policy says that it is over. A child that can't be started
// again is tried again later.
func Supervise(ctx context.Context, spec Spec, policy monitor.Policy) error {
	spec = spec.withDefaults()
	m := monitor.New(policy)
	for {
		d, err := superviseOnce(ctx, spec, m)
		if ctx.Err() != nil {
			return nil
		}
		if !d.Restart {
			if err == nil && d.Status != 0 {
				err = errors.New(d.Why)
			}
			return err
		}
		spec.Logger.Warn(spec.Name + ": " + d.Why)
		t := time.NewTimer(d.After)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil
		case <-t.C:
		}
		m.Restarted(time.Now())
	}
}

func superviseOnce(ctx context.Context, spec Spec, m *monitor.Monitor) (monitor.Decision, error) {
	p, err := Start(ctx, spec)
	if err != nil {
		return m.Exited(0, monitor.Exit{Code: 1}, time.Now()), err
	}
	m.Serving(time.Now())
	e := p.Exit()
	return m.Exited(p.PID(), e, time.Now()), nil
}
