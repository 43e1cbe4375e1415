package daemon

import (
	"errors"
	"fmt"
	"os"
	"os/user"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// credentials are what --user asks for.
type credentials struct {
	name     string
	uid, gid int
}

// lookupUser understands USER[:GROUP], names or numbers; nil for "".
func lookupUser(spec string) (*credentials, error) {
	if spec == "" {
		return nil, nil
	}
	name, group, grouped := strings.Cut(spec, ":")
	u, err := user.Lookup(name)
	if _, unknown := errors.AsType[user.UnknownUserError](err); unknown {
		u, err = user.LookupId(name)
	}
	if err != nil || name == "" {
		return nil, fmt.Errorf("--user %s: there is no user %q", spec, name)
	}
	gid := u.Gid
	if grouped {
		g, err := lookupGroup(group)
		if err != nil {
			return nil, fmt.Errorf("--user %s: there is no group %q", spec, group)
		}
		gid = g
	}
	c := &credentials{name: u.Username}
	if c.uid, err = strconv.Atoi(u.Uid); err != nil {
		return nil, fmt.Errorf("--user %s: uid %q is no number", spec, u.Uid)
	}
	if c.gid, err = strconv.Atoi(gid); err != nil {
		return nil, fmt.Errorf("--user %s: gid %q is no number", spec, gid)
	}
	return c, nil
}

func lookupGroup(name string) (string, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		g, err = user.LookupGroupId(name)
	}
	if err != nil {
		return "", err
	}
	return g.Gid, nil
}

// keptCaps are the capabilities that a daemon needs as another user: ports
// below 1024, and memory that is not swapped out.
var keptCaps = []uintptr{unix.CAP_NET_BIND_SERVICE, unix.CAP_IPC_LOCK}

// become executes the program again in this process as the user. It returns
// only on failure, or at once if this is the user already.
func (p *process) become(who *credentials) error {
	if os.Getuid() == who.uid && os.Geteuid() == who.uid {
		return nil
	}
	if os.Geteuid() != 0 {
		return &ConfigError{fmt.Errorf("--user %s: only root can become another user", p.opts.Flags.User)}
	}
	if err := p.ownLogFile(who); err != nil {
		return err
	}
	s := p.stage
	s.Switched = true
	files := make([]*os.File, len(s.Files))
	for i, f := range s.Files {
		files[i] = os.NewFile(uintptr(f.FD), f.Name)
	}
	if err := seal(); err != nil {
		return fmt.Errorf("cannot mark the open files: %w", err)
	}
	// Credentials belong to a thread, and executing a program makes the
	// calling thread the process: so only this thread changes.
	runtime.LockOSThread()
	if err := who.take(); err != nil {
		return fmt.Errorf("cannot become user %s: %w", who.name, err)
	}
	return p.image.exec(s, files)
}

// ownLogFile makes the log file, which may be in a folder of root's, and gives
// it to the user.
func (p *process) ownLogFile(who *credentials) error {
	f := p.opts.Flags.LogFile
	if !f.Set {
		return nil
	}
	file, err := os.OpenFile(f.Value, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return nil // the daemon will say so, and go on
	}
	defer file.Close()
	if st, err := file.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil
	}
	if err := file.Chown(who.uid, who.gid); err != nil {
		return fmt.Errorf("cannot give the log file to %s: %w", who.name, err)
	}
	return nil
}

// take changes the credentials of the calling thread: no supplementary groups,
// the user and group, and of the capabilities those in keptCaps, also in the
// program that is executed next.
func (c *credentials) take() error {
	if err := dropBounding(); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("cannot keep capabilities: %w", err)
	}
	if err := thread("setgroups", unix.SYS_SETGROUPS, 0, 0, 0); err != nil {
		return err
	}
	gid, uid := uintptr(c.gid), uintptr(c.uid)
	if err := thread("setresgid", unix.SYS_SETRESGID, gid, gid, gid); err != nil {
		return err
	}
	if err := thread("setresuid", unix.SYS_SETRESUID, uid, uid, uid); err != nil {
		return err
	}
	return raiseCaps()
}

// thread makes a system call for the calling thread alone, which those of
// package syscall of the same names avoid.
func thread(name string, call, a, b, c uintptr) error {
	if _, _, errno := syscall.RawSyscall(call, a, b, c); errno != 0 {
		return fmt.Errorf("%s: %w", name, errno)
	}
	return nil
}

// dropBounding gives up all other capabilities for good.
func dropBounding() error {
	for cap := uintptr(0); cap <= 63; cap++ {
		if kept(cap) {
			continue
		}
		err := unix.Prctl(unix.PR_CAPBSET_DROP, cap, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			return nil // beyond the last one that this kernel has
		}
		if err != nil {
			return fmt.Errorf("cannot drop capability %d: %w", cap, err)
		}
	}
	return nil
}

func kept(cap uintptr) bool {
	return slices.Contains(keptCaps, cap)
}

// raiseCaps makes the kept capabilities effective, inheritable and ambient, as
// far as this process has them.
func raiseCaps() error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have, want [2]unix.CapUserData
	if err := unix.Capget(&hdr, &have[0]); err != nil {
		return fmt.Errorf("capget: %w", err)
	}
	for _, c := range keptCaps {
		bit := uint32(1) << (c % 32)
		if have[c/32].Permitted&bit != 0 {
			w := &want[c/32]
			w.Permitted, w.Effective, w.Inheritable = w.Permitted|bit, w.Effective|bit, w.Inheritable|bit
		}
	}
	if err := thread("capset", unix.SYS_CAPSET, uintptr(unsafe.Pointer(&hdr)), uintptr(unsafe.Pointer(&want[0])), 0); err != nil {
		return err
	}
	for _, c := range keptCaps {
		if want[c/32].Permitted&(1<<(c%32)) == 0 {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, c, 0, 0); err != nil {
			return fmt.Errorf("cannot pass capability %d on: %w", c, err)
		}
	}
	return nil
}

// dropAmbient keeps programs that the daemon starts from getting its
// capabilities: it has them itself, and does not pass them on. A binary that
// is linked with C can't do it for all its threads.
func dropAmbient() error {
	_, _, errno := syscall.AllThreadsSyscall(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0)
	if errno != 0 && errno != syscall.ENOTSUP {
		return fmt.Errorf("cannot keep capabilities from children: %w", errno)
	}
	return nil
}
