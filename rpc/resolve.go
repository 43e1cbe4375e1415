package rpc

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Resolve returns the path of the control socket that target means: target
// itself if it has a slash, else that of the program of that name whose
// pidfile is in rundir, as "ovs-appctl -t" looks it up: the process that is
// named in the pidfile must hold a lock on it.
//
// Where the holder cannot be seen or named (another PID namespace, a pidfile
// that may not be opened), or there is no pidfile, the socket PROGRAM.ctl is
// taken, if there is one.
func Resolve(target, rundir string) (path string, err error) {
	if strings.Contains(target, "/") {
		return target, nil
	}
	if target == "" {
		return "", errors.New("no target: give a socket's path or a program's name")
	}
	pid, err := readPidfile(filepath.Join(rundir, target+".pid"))
	if err == nil {
		path = filepath.Join(rundir, fmt.Sprintf("%s.%d.ctl", target, pid))
		if _, err = os.Stat(path); err == nil {
			return path, nil
		}
	}
	stable := filepath.Join(rundir, target+".ctl")
	if _, statErr := os.Stat(stable); statErr == nil {
		return stable, nil
	}
	return "", &UnreachableError{Target: target, Cause: err}
}

// errNotRunning says that no process holds the lock of a pidfile.
var errNotRunning = errors.New("no process holds its lock: the daemon is not running")

// readPidfile returns the pid in the file if that process holds its lock.
func readPidfile(path string) (int, error) {
	f, err := os.Open(path) // who holds a lock can be asked without the right to write
	if err != nil {
		return 0, fmt.Errorf("cannot read pidfile: %w", err)
	}
	defer f.Close()
	pid, err := parsePid(f)
	if err != nil {
		return 0, fmt.Errorf("pidfile %s: %w", path, err)
	}
	holder, err := lockHolder(f)
	switch {
	case err != nil:
		return 0, fmt.Errorf("pidfile %s: %w", path, err)
	case holder != pid:
		return 0, fmt.Errorf("pidfile %s names process %d, but process %d holds its lock", path, pid, holder)
	}
	return pid, nil
}

// maxPidfile bounds what is read of a file that should hold one number.
const maxPidfile = 64

func parsePid(r io.Reader) (int, error) {
	text, err := io.ReadAll(io.LimitReader(r, maxPidfile))
	if err != nil {
		return 0, err
	}
	first, _, _ := strings.Cut(string(text), "\n")
	pid, err := strconv.Atoi(strings.TrimSpace(first))
	if err != nil || pid <= 0 {
		return 0, fmt.Errorf("it holds %q, not a process id", first)
	}
	return pid, nil
}

// lockHolder returns the process that holds a write lock on f: 0 if it is in a
// PID namespace that this process cannot see, -1 for a lock without owner.
func lockHolder(f *os.File) (int, error) {
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &lock); err != nil {
		return 0, fmt.Errorf("asking who holds its lock: %w", err)
	}
	if lock.Type == unix.F_UNLCK {
		return 0, errNotRunning
	}
	return int(lock.Pid), nil
}
