package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// Node is one node of a cluster: at any time one lockstepd process or none.
// Its methods are for one goroutine at a time, but for Call, Status and Until.
type Node struct {
	Name    string
	ID      int
	Address string   // of peer links
	Run     string   // rundir
	State   string   // state dir
	Log     string   // what the daemon printed, over all its lives
	Flags   []string // more flags for the daemon
	Env     []string // more variables for its environment

	c      *Cluster
	config string
	proc   *proc.Process
}

// Args returns the command line that starts the node's daemon.
func (n *Node) Args() []string {
	return append([]string{n.c.Daemon(), "--config=" + n.config, "--node=" + n.Name,
		"--state-dir=" + n.State, "--rundir=" + n.Run, "--pidfile", "--unixctl=" + n.Socket()}, n.Flags...)
}

// UseConfig makes the node's next daemon read another configuration file.
func (n *Node) UseConfig(path string) { n.config = path }

// Socket returns the path of the control socket, the same for every life of the node.
func (n *Node) Socket() string { return filepath.Join(n.Run, "ctl") }

// NBD returns the path of a device's NBD socket.
func (n *Node) NBD(device string) string { return filepath.Join(n.Run, device+".nbd") }

// URI returns the NBD URI of a device.
func (n *Node) URI(device string) string {
	return "nbd+unix:///" + device + "?socket=" + n.NBD(device)
}

// Disk returns the path of a device's disk in the state dir.
func (n *Node) Disk(device string) string { return filepath.Join(n.State, device+".img") }

// Pid returns the daemon's pid, or 0.
func (n *Node) Pid() int {
	if !n.Running() {
		return 0
	}
	return n.proc.Pid()
}

// DaemonPid returns the pid of the daemon itself, by its pidfile: under a
// monitor it is another one than Pid.
func (n *Node) DaemonPid() (int, error) {
	b, err := os.ReadFile(filepath.Join(n.Run, "lockstepd.pid"))
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b)))
}

// Proc returns the node's process, the last one when none runs, nil when none ever ran.
func (n *Node) Proc() *proc.Process { return n.proc }

// Running reports whether the daemon's process exists; it may be stopped.
func (n *Node) Running() bool {
	if n.proc == nil {
		return false
	}
	select {
	case <-n.proc.Done():
		return false
	default:
		return true
	}
}

// Launch starts the daemon and does not wait for it.
func (n *Node) Launch() error {
	if n.Running() {
		return fmt.Errorf("%s runs already", n.Name)
	}
	p, err := n.c.host.Start(proc.Spec{Argv: n.Args(), Env: n.Env, Log: n.Log})
	if err != nil {
		return err
	}
	n.proc = p
	return nil
}

// Start starts the daemon and waits until it serves.
func (n *Node) Start(ctx context.Context) error {
	if err := n.Launch(); err != nil {
		return err
	}
	return n.Serving(ctx)
}

// Serving waits until the daemon answers on its control socket.
func (n *Node) Serving(ctx context.Context) error {
	return n.Until(ctx, "it serves", func(Status) bool { return true })
}

// Kill9 ends the daemon with SIGKILL and waits for its end.
func (n *Node) Kill9() {
	if n.proc != nil {
		n.proc.Kill()
		<-n.proc.Done()
	}
}

// Stop freezes the daemon with SIGSTOP.
func (n *Node) Stop() { _ = n.proc.Freeze() } // one that has ended stands still, too

// Cont lets a frozen daemon go on.
func (n *Node) Cont() { n.proc.Signal(syscall.SIGCONT) }

// Term asks the daemon to stop and waits for it; it must end with status 0.
func (n *Node) Term(ctx context.Context) error {
	n.proc.Signal(syscall.SIGTERM)
	st, err := n.proc.Wait(ctx)
	if err != nil {
		return n.explain(err)
	}
	if !st.Success() {
		return n.explain(fmt.Errorf("after SIGTERM it ended with %v", st))
	}
	return nil
}

// Ended waits until the daemon has ended.
func (n *Node) Ended(ctx context.Context) error {
	if _, err := n.proc.Wait(ctx); err != nil {
		return n.explain(err)
	}
	return nil
}

// Restart stops the daemon in order and starts it again.
func (n *Node) Restart(ctx context.Context) error {
	if err := n.Term(ctx); err != nil {
		return err
	}
	return n.Start(ctx)
}

// end ends the daemon, in order when it can, and surely.
func (n *Node) end() {
	if !n.Running() {
		return
	}
	n.Cont()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	pid, _ := n.DaemonPid()
	if n.Term(ctx) != nil {
		n.Kill9()
		n.killOrphan(pid)
	}
}

// killOrphan kills the daemon that a monitor has left behind, if the process
// is that: its command line names this node's state dir, which nobody else's does.
func (n *Node) killOrphan(pid int) {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err == nil && pid > 1 && strings.Contains(string(line), n.State) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // the only error is that it has ended
	}
}

// Lockstepctl runs lockstepctl against this node and returns its output. The
// error, if any, is an *exec.ExitError.
func (n *Node) Lockstepctl(ctx context.Context, args ...string) (string, error) {
	return n.LockstepctlAt(ctx, n.Socket(), args...)
}

// LockstepctlAt is Lockstepctl for another target: the program's name, say,
// which is looked for in this node's rundir.
func (n *Node) LockstepctlAt(ctx context.Context, target string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, n.c.Ctl(), append([]string{"-t", target}, args...)...)
	cmd.Env = append(os.Environ(), "NO_COLOR=1", "LOCKSTEP_RUNDIR="+n.Run)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Until waits until cond holds for the node's status. It gives up when ctx
// ends or the daemon does, and then says what was seen last.
func (n *Node) Until(ctx context.Context, what string, cond func(Status) bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	var last error
	for {
		st, err := n.Status(ctx)
		switch {
		case err == nil && cond(st):
			return nil
		case err == nil:
			last = fmt.Errorf("its status is\n%s", st.summary())
		case ctx.Err() == nil:
			last = err
		}
		select {
		case <-tick.C:
		case <-n.proc.Done():
			return n.explain(fmt.Errorf("wait until %s: the daemon ended", what))
		case <-ctx.Done():
			return n.explain(fmt.Errorf("wait until %s: %w: %w", what, context.Cause(ctx), errors.Join(last)))
		}
	}
}

// explain adds the node's name and the end of its log to an error.
func (n *Node) explain(err error) error {
	return fmt.Errorf("node %s: %w\nthe end of its log:\n%s", n.Name, err, n.proc.LogTail(25))
}
