package torture

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// Addresses in the network namespace that the machines share with the nodes.
const (
	tap      = "tap0"
	HostIP   = "10.77.0.1" // where the nodes' NBD servers listen
	hostNet  = HostIP + "/24"
	guestNet = "10.77.0.2/24"
)

// Kernel finds User Mode Linux and its NBD client; the error says what is
// missing.
func Kernel() (program, module string, err error) {
	program, err = exec.LookPath("linux.uml")
	if err != nil {
		return "", "", fmt.Errorf("no User Mode Linux (Debian: user-mode-linux): %w", err)
	}
	found, err := filepath.Glob("/usr/lib/uml/modules/*/kernel/drivers/block/nbd.ko")
	if err != nil || len(found) == 0 {
		return "", "", errors.Join(errors.New("no nbd.ko for User Mode Linux in /usr/lib/uml/modules"), err)
	}
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	if err != nil {
		return "", "", fmt.Errorf("no way for User Mode Linux into a network: %w", err)
	}
	return program, found[len(found)-1], f.Close()
}

// Plug gives a network namespace the interface that machines attach to.
func Plug(ctx context.Context, h *proc.Host) error {
	for _, argv := range [][]string{
		{"ip", "tuntap", "add", tap, "mode", "tap"},
		{"ip", "addr", "add", hostNet, "dev", tap},
		{"ip", "link", "set", tap, "up"},
	} {
		if _, err := h.Run(ctx, argv...); err != nil {
			return fmt.Errorf("make the machines' network: %w", err)
		}
	}
	return nil
}

// Machine is one life of a kernel.
type Machine struct {
	Console string // file of all that it printed
	proc    *proc.Process
}

// Boot starts a machine that does what it is ordered. Its root file system is
// this machine's, read-only; dir, a new folder, takes what it leaves behind.
// init is the program cmd/internal/torture/guest.
func Boot(h *proc.Host, dir, init string, o Order) (*Machine, error) {
	program, module, err := Kernel()
	if err != nil {
		return nil, err
	}
	o.Module, o.Net, o.Host = module, guestNet, HostIP
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	raw, err := json.Marshal(o)
	if err != nil {
		return nil, err
	}
	order := filepath.Join(dir, "order.json")
	if err := os.WriteFile(order, raw, 0o600); err != nil {
		return nil, err
	}
	m := &Machine{Console: filepath.Join(dir, "console")}
	m.proc, err = h.Start(proc.Spec{
		Argv: []string{program, "mem=192M", "uml_dir=" + dir, "umid=machine", "quiet", "con=null", "con0=null,fd:1",
			"root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", "init=" + init,
			"vec0:transport=tap,ifname=" + tap + ",depth=64,gro=1",
			// What the kernel does not know is the environment of init.
			"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "TORTURE_ORDER=" + order},
		Log: m.Console,
	})
	return m, err
}

// Learn is what the machine has said so far; kept takes the promises.
func (m *Machine) Learn(kept []Kept) (Report, error) {
	raw, err := os.ReadFile(m.Console)
	if err != nil {
		return Report{}, err
	}
	return Learn(raw, kept)
}

// Until waits until the machine's report is as wanted. It gives up when the
// machine has ended, or found something wrong.
func (m *Machine) Until(ctx context.Context, writers int, what string, ok func(Report) bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		ended := m.ended() // before the last look at its console
		r, err := m.Learn(make([]Kept, writers))
		switch {
		case err != nil:
			return err
		case len(r.Failed) > 0:
			return fmt.Errorf("wait until %s: the machine says: %q\n%s", what, r.Failed, m.proc.LogTail(30))
		case ok(r):
			return nil
		case ended:
			return fmt.Errorf("wait until %s: the machine has ended\n%s", what, m.proc.LogTail(30))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w; the machine says\n%s", what, context.Cause(ctx), m.proc.LogTail(30))
		}
	}
}

// Log is the end of what the machine has printed.
func (m *Machine) Log() string { return m.proc.LogTail(30) }

func (m *Machine) ended() bool {
	select {
	case <-m.proc.Done():
		return true
	default:
		return false
	}
}

// Kill is the power cut: the kernel and all that runs in it end at once. They
// are one process group.
func (m *Machine) Kill() {
	_ = syscall.Kill(-m.proc.Pid(), syscall.SIGKILL) // the only error is that all have ended
	<-m.proc.Done()
}

// Halted waits for the end of a machine that ends in order.
func (m *Machine) Halted(ctx context.Context) error {
	_, err := m.proc.Wait(ctx)
	return err
}
