package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// lockName is the file in a state directory that its user has locked.
const lockName = "lock"

// Lock is a state directory that is ours. It is given up by Unlock, or by the
// end of the process, however it ends.
type Lock struct{ f *os.File }

// LockedError says that a state directory is in use.
type LockedError struct {
	Dir string
	PID int // of who uses it; 0 if unknown
}

func (e *LockedError) Error() string {
	who := "another process"
	if e.PID != 0 {
		who = fmt.Sprintf("process %d", e.PID)
	}
	return fmt.Sprintf("state directory %s is in use by %s; stop it, or use another directory (--state-dir)", e.Dir, who)
}

// Is makes a LockedError an ErrInUse.
func (e *LockedError) Is(target error) bool { return target == ErrInUse }

// LockStateDir locks a state directory, which must exist.
func LockStateDir(dir string) (*Lock, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock state directory %s: %w", dir, plain(err))
	}
	if err := flock(f); err != nil {
		defer f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, &LockedError{Dir: dir, PID: readPID(f)}
		}
		return nil, fmt.Errorf("cannot lock state directory %s: %w", dir, err)
	}
	// The number is for the message above only; the lock holds without it.
	if err := writePID(f); err != nil {
		return nil, errors.Join(fmt.Errorf("cannot write to state directory %s: %w", dir, plain(err)), f.Close())
	}
	return &Lock{f}, nil
}

func writePID(f *os.File) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	_, err := f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	return err
}

func readPID(f *os.File) int {
	text, err := io.ReadAll(io.LimitReader(f, 32))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid < 0 {
		return 0
	}
	return pid
}

// Unlock gives the directory up. The file stays: were it removed, two others
// could each lock a file of that name.
func (l *Lock) Unlock() error { return l.f.Close() }
