package proc

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Process is a process that was started here.
type Process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when the process has ended and was reaped
}

func (p *Process) reap() {
	defer close(p.done)
	_ = p.cmd.Wait() // how it ended is in ProcessState
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

func (p *Process) exited() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Signal sends a signal; to a process that has ended it does nothing.
func (p *Process) Signal(s syscall.Signal) {
	_ = p.cmd.Process.Signal(s) // the only error is that it has ended
}

// Freeze stops the process with SIGSTOP and returns when all its threads stand
// still. SIGCONT has it go on.
func (p *Process) Freeze() error {
	p.Signal(syscall.SIGSTOP)
	for {
		if err := unix.Waitid(unix.P_PID, p.Pid(), nil, unix.WSTOPPED|unix.WNOWAIT, nil); err != unix.EINTR {
			return err
		}
	}
}

// Kill sends SIGKILL.
func (p *Process) Kill() { p.Signal(syscall.SIGKILL) }

// Wait waits until the process has ended and says how.
func (p *Process) Wait(ctx context.Context) (*os.ProcessState, error) {
	select {
	case <-p.done:
		return p.cmd.ProcessState, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("%s (pid %d) has not ended: %w", p.cmd.Path, p.Pid(), context.Cause(ctx))
	}
}

// LogTail returns the last lines of the process's log.
func (p *Process) LogTail(lines int) string {
	if p.log == "" {
		return ""
	}
	b, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	return tail(b, lines)
}

// tail returns the last lines of b.
func tail(b []byte, lines int) string {
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// boundedBuffer keeps the first 16 MiB that are written to it.
type boundedBuffer struct{ buf []byte }

func (b *boundedBuffer) Write(p []byte) (int, error) {
	const limit = 16 << 20
	b.buf = append(b.buf, p[:min(len(p), limit-len(b.buf))]...)
	return len(p), nil
}

// CPU returns the user and system time of a process in clock ticks of 10 ms.
func CPU(pid int) (ticks uint64, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
	}
	// The second field is the program's name in parentheses and may hold anything; the times are fields 14 and 15.
	_, rest, ok := bytes.Cut(b, []byte(") "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is not as expected", pid)
	}
	var user, sys uint64
	if _, err := fmt.Sscan(fields[11]+" "+fields[12], &user, &sys); err != nil {
		return 0, fmt.Errorf("/proc/%d/stat is not as expected: %w", pid, err)
	}
	return user + sys, nil
}
