package cmd_test

import (
	"cmp"
	"fmt"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/nbdio"
)

// TestModes starts lockstepd in each way in which it can run, as root and as a
// user: it serves, is found by its pidfile, belongs to whom it should, comes
// back from a crash (by its monitor, or when it is started again), stops in
// order, and leaves nothing in its rundir.
func TestModes(t *testing.T) {
	t.Parallel()
	for name, flags := range map[string][]string{
		"foreground": nil, "monitored": {"--monitor"}, "detached": {"--detach"}, "detached and monitored": {"--detach", "--monitor"},
	} {
		for _, as := range []string{"", "nobody"} {
			t.Run(name+" as "+cmp.Or(as, "ourselves"), func(t *testing.T) {
				if as != "" {
					needRoot(t, "another user's daemon")
				}
				m := &mode{T: t, n: layOut(t, one(), nil).Nodes[0], detached: slices.Contains(flags, "--detach"), monitored: slices.Contains(flags, "--monitor"), uid: os.Getuid()}
				m.n.Flags = append([]string{"--unixctl="}, flags...) // where it is by default, as the user's tools expect it
				if as != "" {
					m.uid = give(t, filepath.Dir(filepath.Dir(m.n.Run)), as)
					m.n.Flags = append(m.n.Flags, "--user="+as)
				}
				t.Cleanup(m.kill)
				m.run()
			})
		}
	}
}

// give gives a folder and all that is in it to a user, whose id is returned.
func give(t *testing.T, dir, name string) int {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		missing(t, err.Error())
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, -1)
	}); err != nil {
		t.Fatal(err)
	}
	return uid
}

// mode is one way to run.
type mode struct {
	*testing.T
	n                   *cluster.Node
	detached, monitored bool
	uid                 int
}

func (m *mode) run() {
	m.Helper()
	m.start()
	pid := m.serves(0)
	m.belongs(pid)
	m.background(pid)
	if m.monitored {
		strike(m.T, pid, syscall.SIGSEGV)
		died := pid
		pid = m.serves(died)
		m.tells(died, pid)
	} else {
		strike(m.T, pid, syscall.SIGKILL)
		m.gone(pid)
		m.start() // over all that the other has left behind
		pid = m.serves(pid)
	}
	main := pid
	if m.monitored {
		main = parentOf(m.T, pid)
	}
	strike(m.T, main, syscall.SIGTERM)
	m.gone(main)
	m.gone(pid)
	left, err := filepath.Glob(filepath.Join(m.n.Run, "*"))
	if err != nil || len(left) > 0 {
		m.Errorf("%q are left behind (%v)", left, err)
	}
}

// start starts it; in the background the command ends, successfully, when the daemon serves.
func (m *mode) start() {
	m.Helper()
	if m.n.Running() {
		<-m.n.Proc().Done()
	}
	if err := m.n.Launch(); err != nil {
		m.Fatal(err)
	}
	if !m.detached {
		return
	}
	st, err := m.n.Proc().Wait(within(m.T, patience))
	if err != nil || !st.Success() {
		m.Fatalf("%v, %v:\n%s", st, err, m.n.Proc().LogTail(20))
	}
	if _, err := m.status(); err != nil {
		m.Errorf("the command returned before the daemon served: %v", err)
	}
}

// status asks as a user does who names the program alone.
func (m *mode) status() (string, error) {
	return m.n.LockstepctlAt(within(m.T, patience), "lockstepd", "status")
}

// serves waits until another daemon than old answers, and takes a write; it returns its pid.
func (m *mode) serves(old int) (pid int) {
	m.Helper()
	ctx, last := within(m.T, patience), ""
	if !poll(ctx, func() bool {
		var err error
		if pid, err = m.n.DaemonPid(); err != nil || pid == old {
			return false
		}
		last, err = m.status()
		return err == nil
	}) {
		m.Fatalf("it does not serve: %s\n%s", last, m.n.Proc().LogTail(30))
	}
	var err error
	if !poll(ctx, func() bool {
		var c *nbdio.Conn
		if c, err = nbdio.Dial(ctx, m.n.NBD("r0"), "r0"); err != nil {
			return false
		}
		defer c.Close()
		_, err = c.WriteAt(make([]byte, 4096), 0)
		return err == nil
	}) {
		m.Fatalf("r0 takes no write: %v", err)
	}
	return pid
}

// belongs checks whose the process is, what it may still do, and whose its files are.
func (m *mode) belongs(pid int) {
	m.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		m.Fatal(err)
	}
	if want := fmt.Sprintf("\nUid:\t%d\t%d\t%d\t%d\n", m.uid, m.uid, m.uid, m.uid); !strings.Contains(string(b), want) {
		m.Errorf("the process does not belong to %d:\n%s", m.uid, b)
	}
	for _, dir := range []string{m.n.Run, m.n.State} {
		paths, err := filepath.Glob(filepath.Join(dir, "*"))
		if err != nil || len(paths) == 0 {
			m.Fatalf("%s is empty (%v)", dir, err)
		}
		for _, path := range paths {
			st, err := os.Lstat(path)
			if err != nil {
				m.Fatal(err)
			}
			if uid := int(st.Sys().(*syscall.Stat_t).Uid); uid != m.uid {
				m.Errorf("%s belongs to %d, not to %d", path, uid, m.uid)
			}
		}
	}
}

// background checks that what is in the background holds on to nothing of the
// place and the terminal that it was started from.
func (m *mode) background(pid int) {
	m.Helper()
	if !m.detached {
		return
	}
	links := map[string]string{"cwd": "/", "fd/0": os.DevNull, "fd/1": os.DevNull, "fd/2": os.DevNull}
	pids := []int{pid}
	if m.monitored {
		pids = append(pids, parentOf(m.T, pid))
	}
	for _, p := range pids {
		for name, want := range links {
			if p == pid && m.monitored && name == "fd/2" {
				m.hears(parentOf(m.T, pid), pid)
				continue
			}
			if to, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", p, name)); err != nil || to != want {
				m.Errorf("%s of process %d is %q, not %q (%v)", name, p, to, want, err)
			}
		}
	}
}

// hears checks that a daemon's standard error leads to its monitor.
func (m *mode) hears(monitor, pid int) {
	m.Helper()
	pipe, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/2", pid))
	if err != nil || !strings.HasPrefix(pipe, "pipe:") {
		m.Errorf("standard error of process %d is %q (%v)", pid, pipe, err)
	}
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", monitor))
	if err != nil || !slices.ContainsFunc(fds, func(fd string) bool { to, _ := os.Readlink(fd); return to == pipe }) {
		m.Errorf("the monitor does not hear %s (%v)", pipe, err)
	}
}

// tells checks what there is to be seen of a crash: the monitor's title, and
// the report.
func (m *mode) tells(died, pid int) {
	m.Helper()
	monitor := parentOf(m.T, pid)
	for p, want := range map[int]string{pid: "lockstepd", monitor: "lockstepd-mon"} {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", p)); err != nil || strings.TrimSpace(string(b)) != want {
			m.Errorf("process %d is called %q, not %q (%v)", p, b, want, err)
		}
	}
	title, want := "", fmt.Sprintf("monitoring pid %d (1 crash: pid %d died", pid, died)
	if !poll(within(m.T, patience), func() bool {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", monitor))
		title = string(b)
		return err == nil && strings.Contains(title, want)
	}) {
		m.Errorf("the monitor's title is %q, not %q", title, want)
	}
	if log := m.n.Proc().LogTail(1000); strings.Contains(log, "|control|WARN|") {
		m.Errorf("the control socket does not come back as it was:\n%s", log)
	}
	reports, err := filepath.Glob(filepath.Join(m.n.State, "crash", fmt.Sprintf("crash-*-%d.txt", died)))
	if err != nil || len(reports) != 1 {
		m.Fatalf("there are %d crash reports of process %d (%v)", len(reports), died, err)
	}
	if b, err := os.ReadFile(reports[0]); err != nil || !strings.Contains(string(b), "SIGSEGV") || !strings.Contains(string(b), "goroutine ") {
		m.Errorf("the crash report says (%v)\n%.2000s", err, b)
	}
}

// gone waits until a process has ended. One in the background may never be
// waited for by anybody; then it has ended when its last thread but the first
// has, for until then its files are open.
func (m *mode) gone(pid int) {
	m.Helper()
	if !poll(within(m.T, patience), func() bool {
		state, _ := procStat(pid)
		threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)) // none where it is gone
		return state == "" || state == "Z" && len(threads) <= 1
	}) {
		m.Fatalf("process %d does not end", pid)
	}
}

// kill ends what a failed test leaves running in the background.
func (m *mode) kill() {
	pid, err := m.n.DaemonPid()
	if err != nil {
		return
	}
	if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || !strings.Contains(string(line), m.n.State) {
		return
	}
	if _, parent := procStat(pid); m.monitored && m.detached && parent > 1 {
		_ = syscall.Kill(parent, syscall.SIGKILL) // else it would start another
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// procStat returns the state and the parent of a process, "" if there is none.
func procStat(pid int) (state string, parent int) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", 0
	}
	// Behind the name, which may hold anything.
	_, rest, _ := strings.Cut(string(b), ") ")
	if _, err := fmt.Sscan(rest, &state, &parent); err != nil {
		return "", 0
	}
	return state, parent
}

func parentOf(t *testing.T, pid int) int {
	t.Helper()
	state, parent := procStat(pid)
	if state == "" || parent <= 1 {
		t.Fatalf("process %d has no parent", pid)
	}
	return parent
}
