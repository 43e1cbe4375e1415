// Package pidfile makes the file that says which process is the daemon.
//
// The lock is the truth, not the number: a classic POSIX write lock, held by
// the very process whose pid is in the file, is what `ovs-appctl -t NAME`
// checks, what keeps a second instance out, and what ends with the process
// however it ends. A file without a lock is a leftover, whatever it contains
// and whichever pid namespace wrote it.
//
// The file appears complete: it is written and locked under a name of its own
// and then renamed, so no reader sees an empty file or a number without its
// lock. Replacing a leftover happens under a lock on the leftover, which makes
// exactly one of any number of simultaneous starts succeed.
//
// POSIX locks have a trap: closing any descriptor of the file drops them. So a
// File is never reopened by this process, and stays reachable until Close.
package pidfile

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// RunningError says that another instance holds the pidfile.
type RunningError struct {
	Path string
	PID  int // 0 if it can't be known
}

// Error names the pid, as scripts expect.
func (e *RunningError) Error() string {
	if e.PID == 0 {
		return fmt.Sprintf("%s: already running (its pid can't be seen from here), aborting", e.Path)
	}
	return fmt.Sprintf("%s: already running as pid %d, aborting", e.Path, e.PID)
}

// File is a pidfile that this process holds.
type File struct {
	path string
	file *os.File
}

// tries bounds the races that Create goes through with other starts.
const tries = 100

// Create takes the pidfile for this process. It fails with a *RunningError if
// another process holds it.
func Create(path string) (*File, error) {
	for range tries {
		f, err := create(path)
		if err != nil || f != nil {
			return f, err
		}
	}
	return nil, fmt.Errorf("pidfile %s: it keeps changing; is something else rewriting it?", path)
}

// create makes one attempt; nil without an error means that another start came between.
func create(path string) (*File, error) {
	old, err := lockLeftover(path)
	switch {
	case errors.Is(err, errChanged):
		return nil, nil
	case err != nil:
		return nil, err
	case old != nil:
		defer old.Close() // held until the new file is in its place
	}
	tmp, err := prepare(path)
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	if old != nil {
		err = os.Rename(tmp.Name(), path)
	} else {
		err = os.Link(tmp.Name(), path)
	}
	if err != nil {
		tmp.Close()
		if errors.Is(err, fs.ErrExist) {
			return nil, nil
		}
		return nil, fmt.Errorf("pidfile: %w", err)
	}
	return &File{path, tmp}, nil
}

// Overwrite takes the pidfile whoever holds it.
func Overwrite(path string) (*File, error) {
	tmp, err := prepare(path)
	if err != nil {
		return nil, err
	}
	if err := os.Rename(tmp.Name(), path); err != nil {
		tmp.Close()
		os.Remove(tmp.Name())
		return nil, fmt.Errorf("pidfile: %w", err)
	}
	return &File{path, tmp}, nil
}

// Adopt is for a process that replaced its own program (exec) and so still
// holds the lock through file.
func Adopt(path string, file *os.File) *File { return &File{path, file} }

var errChanged = errors.New("the pidfile changed meanwhile")

// lockLeftover locks the file at path if there is one and nobody holds it.
func lockLeftover(path string) (*os.File, error) {
	// O_NONBLOCK: never wait in open for what turns out to be a named pipe.
	f, err := os.OpenFile(path, os.O_RDWR|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("pidfile: %w", err)
	}
	if err := claim(path, f); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

func claim(path string, f *os.File) error {
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("pidfile: %w", err)
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("pidfile %s: not a regular file; remove it or choose another path", path)
	}
	if err := lock(f); err != nil {
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			return &RunningError{path, holder(f)}
		}
		return fmt.Errorf("pidfile %s: cannot lock: %w", path, err)
	}
	if !isAt(f, path) {
		return errChanged
	}
	return nil
}

func lock(f *os.File) error {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	return unix.FcntlFlock(f.Fd(), unix.F_SETLK, &l)
}

// holder finds the pid of the process that keeps us from the lock. The kernel
// says 0 for a process of another pid namespace; then the number in the file,
// which that process wrote as it sees itself, is the best there is.
func holder(f *os.File) int {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart}
	if err := unix.FcntlFlock(f.Fd(), unix.F_GETLK, &l); err == nil && l.Type != unix.F_UNLCK && l.Pid > 0 {
		return int(l.Pid)
	}
	var buf [32]byte
	n, _ := f.ReadAt(buf[:], 0)
	return Parse(buf[:n])
}

// Parse returns the pid in the contents of a pidfile, or 0.
func Parse(data []byte) int {
	pid, err := strconv.Atoi(string(bytes.TrimSpace(data)))
	if err != nil || pid < 1 || pid > 1<<22 {
		return 0
	}
	return pid
}

// prepare makes a complete pidfile, locked by us, under a name of its own.
func prepare(path string) (*os.File, error) {
	name := fmt.Sprintf("%s.tmp%d", path, os.Getpid())
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("pidfile: %w", err) // a leftover of an earlier process with our pid
	}
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, fmt.Errorf("pidfile: %w", err)
	}
	_, err = fmt.Fprintf(f, "%d\n", os.Getpid())
	if err == nil {
		err = lock(f)
	}
	if err != nil {
		f.Close()
		os.Remove(name)
		return nil, fmt.Errorf("pidfile %s: %w", name, err)
	}
	return f, nil
}

// isAt reports whether path still names the file that f is.
func isAt(f *os.File, path string) bool {
	a, err := f.Stat()
	if err != nil {
		return false
	}
	b, err := os.Lstat(path)
	return err == nil && os.SameFile(a, b)
}

// Path returns where the file is.
func (p *File) Path() string { return p.path }

// File returns the descriptor that holds the lock, for a process that is about
// to replace its program. Closing it drops the lock.
func (p *File) File() *os.File { return p.file }

// Remove unlinks the file if it is still ours, and drops the lock. A successor
// that has overwritten the file keeps it: the file is first moved aside, looked
// at, and put back if it turns out to be the successor's.
func (p *File) Remove() error {
	defer p.file.Close()
	if !isAt(p.file, p.path) {
		return nil
	}
	aside := fmt.Sprintf("%s.del%d", p.path, os.Getpid())
	if err := os.Rename(p.path, aside); err != nil {
		return fmt.Errorf("pidfile: %w", err)
	}
	if !isAt(p.file, aside) {
		// Link, not rename: whoever came even later stays.
		if err := os.Link(aside, p.path); err != nil && !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("pidfile: cannot put back the successor's: %w", err)
		}
	}
	if err := os.Remove(aside); err != nil {
		return fmt.Errorf("pidfile: %w", err)
	}
	return nil
}
