package daemon

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"time"

	children "github.com/lockstepd/lockstep/daemon/process"
)

// killPatience is how long a stage that failed to start may take to end.
const killPatience = 5 * time.Second

// launch starts the next stage in a session of its own and waits until the
// daemon serves. It returns the daemon's own exit status if it does not.
func (p *process) launch() (int, error) {
	role := roleDaemon
	if p.opts.Flags.Monitor {
		role = roleMonitor
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)
	c, err := p.spawnDetached(role)
	if err != nil {
		return ExitFailed, err
	}
	t := time.NewTimer(p.opts.StartTimeout + killPatience) // the monitor gives up first
	defer t.Stop()
	select {
	case v := <-c.verdict:
		return p.launched(c, v)
	case sig := <-signals:
		kill(c.cmd.Process, c.ended, killPatience)
		return 128 + int(sig.(syscall.Signal)), fmt.Errorf("interrupted (%v) before the daemon served", sig)
	case <-t.C:
		kill(c.cmd.Process, c.ended, killPatience)
		return ExitFailed, fmt.Errorf("the daemon did not serve within %v and was stopped", p.opts.StartTimeout)
	}
}

// launched turns the child's verdict into the launcher's end.
func (p *process) launched(c *child, v readiness) (int, error) {
	if v.err == nil && v.ready {
		return ExitOK, nil
	}
	if v.err == nil {
		return v.status, errors.New(v.text)
	}
	kill(c.cmd.Process, c.ended, killPatience)
	end := children.ExitOf(c.cmd.ProcessState)
	status := end.Status()
	if status == 0 {
		status = ExitFailed
	}
	if errors.Is(v.err, errDied) {
		return status, fmt.Errorf("the daemon died before it served (%s)", end)
	}
	return status, fmt.Errorf("the daemon failed to start (%s): %w", end, v.err)
}

// readiness is what came, or did not come, through a readiness pipe.
type readiness struct {
	verdict
	err error
}

// child is a stage that was started by this one.
type child struct {
	cmd     *exec.Cmd
	verdict chan readiness // gets one value
	ended   chan struct{}  // closed when it has been waited for
}

// spawnDetached starts the next stage behind --detach.
func (p *process) spawnDetached(role string) (*child, error) {
	s := p.stage
	s.Role, s.Detached = role, true
	files := make([]passedFiles, len(s.Files))
	for i, f := range s.Files {
		files[i].socket = os.NewFile(uintptr(f.FD), f.Name)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	return p.spawn(s, childFiles{sockets: files}, null, &syscall.SysProcAttr{Setsid: true})
}

// spawn starts a stage with a readiness pipe and waits for what comes of it in
// the background.
func (p *process) spawn(s stage, files childFiles, stdin *os.File, attr *syscall.SysProcAttr) (*child, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	files.ready = w
	cmd, err := p.image.start(s, files, stdin, p.stage.Cwd, attr)
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	c := &child{cmd: cmd, verdict: make(chan readiness, 1), ended: make(chan struct{})}
	go func() { // ends with the child, whose end closes the pipe
		defer r.Close()
		v, err := readVerdict(r)
		c.verdict <- readiness{v, err}
	}()
	go func() { // ends with the child
		defer close(c.ended)
		_ = cmd.Wait() // the state says it all
	}()
	return c, nil
}
