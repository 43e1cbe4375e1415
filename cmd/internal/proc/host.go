package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host is a place where processes are started: this machine's network, or a
// network namespace of its own. All of its processes are forked by one
// goroutine locked to one thread, for two reasons: a network namespace belongs
// to a thread, and a child's parent-death signal is sent when the thread that
// forked it ends.
type Host struct {
	work chan func()
	done chan struct{} // closed when the thread has ended

	mu    sync.Mutex // guards procs and closed
	procs []*Process
	down  bool
}

// NewHost returns a host on this machine's network.
func NewHost() *Host {
	h, _ := newHost(func() error { return nil })
	return h
}

// NewNetwork returns a host whose processes have a network of their own with
// nothing but a loopback interface. The kernel removes it with its last
// process. It needs CAP_SYS_ADMIN.
func NewNetwork() (*Host, error) {
	return newHost(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		return loopbackUp()
	})
}

func newHost(enter func() error) (*Host, error) {
	h := &Host{work: make(chan func()), done: make(chan struct{})}
	entered := make(chan error)
	go func() {
		defer close(h.done)
		runtime.LockOSThread() // never unlocked: the thread ends with this goroutine
		entered <- enter()
		for f := range h.work {
			f()
		}
	}()
	if err := <-entered; err != nil {
		close(h.work)
		<-h.done
		return nil, err
	}
	return h, nil
}

// loopbackUp sets the interface lo of the calling thread's network up.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open a socket to set lo up: %w", err)
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	return nil
}

// Spec says what to start.
type Spec struct {
	Argv []string
	Env  []string // added to this process's environment
	Dir  string   // working folder; "" is this process's
	Log  string   // file to which stdout and stderr are appended; "" discards them
}

// Start starts a process. The caller ends it, or Close does.
func (h *Host) Start(s Spec) (*Process, error) {
	cmd := exec.Command(s.Argv[0], s.Argv[1:]...)
	cmd.Dir = s.Dir
	cmd.Env = append(os.Environ(), s.Env...)
	// A process group of its own: Ctrl-C on the terminal reaches the owner alone, who ends its processes in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if s.Log != "" {
		f, err := os.OpenFile(s.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
		if err != nil {
			return nil, fmt.Errorf("open the log of %s: %w", s.Argv[0], err)
		}
		defer f.Close() // the child has its own copy
		cmd.Stdout, cmd.Stderr = f, f
	}
	if err := h.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Argv[0], err)
	}
	p := &Process{cmd: cmd, log: s.Log, done: make(chan struct{})}
	go p.reap()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.procs = slices.DeleteFunc(h.procs, (*Process).exited)
	h.procs = append(h.procs, p)
	return p, nil
}

// Run runs a program to its end and returns its standard output. An error
// carries the last lines of all that it printed.
func (h *Host) Run(ctx context.Context, argv ...string) ([]byte, error) {
	var out, errOut boundedBuffer
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = &out, &errOut
	cmd.WaitDelay = 5 * time.Second
	if err := h.Do(cmd.Start); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	if err := cmd.Wait(); err != nil {
		return out.buf, fmt.Errorf("%q: %w\n%s\n%s", argv, err, tail(out.buf, 15), tail(errOut.buf, 15))
	}
	return out.buf, nil
}

// Do runs f on the host's thread and so in its network: sockets that f opens
// belong there. It must not take long.
func (h *Host) Do(f func() error) error {
	h.mu.Lock()
	down := h.down
	h.mu.Unlock()
	if down {
		return errors.New("the host is closed")
	}
	err := make(chan error, 1)
	select {
	case h.work <- func() { err <- f() }:
		return <-err
	case <-h.done:
		return errors.New("the host is closed")
	}
}

// Close kills what is still running and waits for it, then ends the thread.
// Start and Run must not be called at the same time or later.
func (h *Host) Close() {
	h.mu.Lock()
	if h.down {
		h.mu.Unlock()
		return
	}
	h.down = true
	procs := h.procs
	h.mu.Unlock()
	for _, p := range procs {
		p.Kill()
	}
	for _, p := range procs {
		<-p.done
	}
	close(h.work)
	<-h.done
}
