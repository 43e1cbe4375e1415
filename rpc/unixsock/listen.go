package unixsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Options say how a socket is made.
type Options struct {
	Mode os.FileMode // 0770 when zero
	GID  int         // the group that owns it; 0 for the process's own

	// Link is the path of a symbolic link to the socket: a name that stays
	// the same over restarts. It is left alone where it leads to a live
	// socket of another process. Empty for none.
	Link string
}

// Listener is a listening socket that removes its own file, and nobody else's,
// when it is closed.
type Listener struct {
	*net.UnixListener
	path string
	id   inode
	link string // "" if there is none of ours

	once sync.Once
	err  error
}

// inode tells whether a path still leads to the file it once did.
type inode struct{ dev, ino uint64 }

func inodeOf(path string) (inode, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return inode{}, err
	}
	st := info.Sys().(*syscall.Stat_t)
	return inode{uint64(st.Dev), st.Ino}, nil
}

// Listen makes a socket at path and listens on it. A socket that a dead
// process left there is replaced; ErrInUse says that its process lives,
// ErrNotSocket that the path holds something else.
func Listen(path string, o Options) (*Listener, error) {
	l, err := listen(path, o)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", path, err)
	}
	return l, nil
}

func listen(path string, o Options) (*Listener, error) {
	unlock, err := lockDir(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := clearPath(path); err != nil {
		return nil, err
	}
	ln, err := bind(path)
	if err != nil {
		return nil, err
	}
	l := &Listener{UnixListener: ln, path: path}
	if l.id, err = inodeOf(path); err == nil {
		err = publish(path, o)
	}
	if err == nil && o.Link != "" {
		l.link, err = makeLink(path, o.Link)
	}
	if err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// bind makes the socket with mode 0600, so that nobody can connect before
// owner and mode are right.
func bind(path string) (*net.UnixListener, error) {
	name, release, err := short(path)
	if err != nil {
		return nil, err
	}
	defer release()
	private := func(_, _ string, c syscall.RawConn) error {
		var failed error
		err := c.Control(func(fd uintptr) { failed = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failed)
	}
	ln, err := (&net.ListenConfig{Control: private}).Listen(context.Background(), "unix", name)
	if err != nil {
		return nil, cause(err)
	}
	u := ln.(*net.UnixListener)
	u.SetUnlinkOnClose(false)
	return u, nil
}

// publish gives the socket its owner and mode.
func publish(path string, o Options) error {
	if o.GID != 0 {
		if err := os.Lchown(path, -1, o.GID); err != nil {
			return err
		}
	}
	mode := o.Mode
	if mode == 0 {
		mode = 0o770
	}
	return os.Chmod(path, mode)
}

// clearPath removes what a dead process left at path.
func clearPath(path string) error {
	if err := probe(path); err != nil {
		return err
	}
	err := os.Remove(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// makeLink makes link lead to path, unless it leads to a live socket that is
// not path. It returns the link if it is ours.
func makeLink(path, link string) (string, error) {
	target := path
	if filepath.Dir(path) == filepath.Dir(link) {
		target = filepath.Base(path)
	}
	if old, err := os.Readlink(link); err == nil {
		if old != target && probe(resolveLink(link, old)) != nil {
			return "", nil
		}
	} else if probe(link) != nil {
		return "", nil
	}
	tmp := link + "." + strconv.Itoa(os.Getpid()) + ".tmp"
	if err := os.Remove(tmp); err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", err
	}
	if err := os.Symlink(target, tmp); err != nil {
		return "", err
	}
	if err := os.Rename(tmp, link); err != nil {
		return "", errors.Join(err, os.Remove(tmp))
	}
	return link, nil
}

func resolveLink(link, target string) string {
	if filepath.IsAbs(target) {
		return target
	}
	return filepath.Join(filepath.Dir(link), target)
}

// Path returns the path of the socket.
func (l *Listener) Path() string { return l.path }

// Link returns the symbolic link that leads here, or "".
func (l *Listener) Link() string { return l.link }

// Close removes the socket's file and the link if they are still ours, and
// stops listening. It may be called more than once.
func (l *Listener) Close() error {
	l.once.Do(func() {
		l.err = errors.Join(l.unlink(), l.UnixListener.Close())
	})
	return l.err
}

func (l *Listener) unlink() error {
	unlock, err := lockDir(filepath.Dir(l.path))
	if err != nil {
		return err
	}
	defer unlock()
	if l.link != "" {
		if old, err := os.Readlink(l.link); err == nil && resolveLink(l.link, old) == l.path {
			os.Remove(l.link)
		}
	}
	if id, err := inodeOf(l.path); err != nil || id != l.id {
		return nil
	}
	return os.Remove(l.path)
}

const (
	lockRetry   = 10 * time.Millisecond
	lockTimeout = 5 * time.Second
)

// lockDir keeps other daemons of this package from looking at and replacing
// sockets in dir meanwhile: between the question whether somebody listens and
// the removal, nobody may begin to.
func lockDir(dir string) (unlock func(), err error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	for {
		err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { unix.Close(fd) }, nil
		case errors.Is(err, unix.EWOULDBLOCK) && wait(ctx, lockRetry), errors.Is(err, unix.EINTR):
		default:
			unix.Close(fd)
			return nil, &os.PathError{Op: "lock", Path: dir, Err: err}
		}
	}
}

// CleanStale removes the sockets PROGRAM.PID.ctl in dir that dead processes
// left behind, and returns their names. That nobody listens decides; the
// number may mean another process by now, or one in another PID namespace.
func CleanStale(dir, program string) ([]string, error) {
	unlock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var removed []string
	var faults []error
	for _, e := range entries {
		if e.Type() != os.ModeSocket || !isPidSocket(e.Name(), program) {
			continue
		}
		path := filepath.Join(dir, e.Name())
		if probe(path) != nil {
			continue
		}
		if err := os.Remove(path); err != nil {
			faults = append(faults, err)
			continue
		}
		removed = append(removed, e.Name())
	}
	return removed, errors.Join(faults...)
}

func isPidSocket(name, program string) bool {
	pid, ok := strings.CutPrefix(name, program+".")
	if !ok {
		return false
	}
	pid, ok = strings.CutSuffix(pid, ".ctl")
	if !ok {
		return false
	}
	n, err := strconv.Atoi(pid)
	return err == nil && n > 0 && n != os.Getpid()
}
