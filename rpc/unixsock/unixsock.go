// Package unixsock makes and finds Unix sockets with the care that a daemon's
// control socket needs: any length of path, no moment with a wrong mode, no
// socket of a live daemon stolen, none of a dead one in the way, and nothing
// removed that is somebody else's.
package unixsock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ErrInUse says that somebody listens on the path.
var ErrInUse = errors.New("a live process listens on it")

// ErrNotSocket says that there is something else at the path.
var ErrNotSocket = errors.New("it exists and is not a socket")

// maxPath is what fits into a sockaddr_un, with its zero byte.
const maxPath = 107

// short returns a name for path that fits into a socket address, for as long
// as release was not called.
func short(path string) (name string, release func(), err error) {
	if strings.HasPrefix(path, "@") {
		path = "./" + path // to package net it would name an abstract socket
	}
	if len(path) <= maxPath {
		return path, func() {}, nil
	}
	dir, base := filepath.Split(path)
	fd, err := unix.Open(filepath.Clean(dir), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	name = fmt.Sprintf("/proc/self/fd/%d/%s", fd, base)
	if len(name) > maxPath {
		unix.Close(fd)
		return "", nil, fmt.Errorf("the name %q is too long for a socket", base)
	}
	return name, func() { unix.Close(fd) }, nil
}

// retryDial is the pause after which Dial tries again where the listener's
// backlog is full. The kernel does not let a Unix socket wait.
const retryDial = 20 * time.Millisecond

// Dial connects to the socket at path. While the listener's backlog is full it
// tries again until ctx ends.
func Dial(ctx context.Context, path string) (*net.UnixConn, error) {
	name, release, err := short(path)
	if err != nil {
		return nil, err
	}
	defer release()
	var d net.Dialer
	for {
		nc, err := d.DialContext(ctx, "unix", name)
		switch {
		case err == nil:
			return nc.(*net.UnixConn), nil
		case timedOut(err), errors.Is(err, unix.EAGAIN) && !wait(ctx, retryDial):
			return nil, fmt.Errorf("its queue of connections is full: %w", ended(ctx)) // nothing else takes time
		case !errors.Is(err, unix.EAGAIN):
			if info, e := os.Stat(path); e == nil && info.Mode().Type() != os.ModeSocket {
				return nil, ErrNotSocket // which the kernel calls a refused connection
			}
			return nil, cause(err)
		}
	}
}

// ended returns why ctx ends. The dialler may find its deadline passed a moment
// before ctx does.
func ended(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return context.DeadlineExceeded
}

func timedOut(err error) bool {
	t, ok := errors.AsType[net.Error](err)
	return ok && t.Timeout() && !errors.Is(err, unix.EAGAIN) // which calls itself a timeout
}

// cause takes off the layers that would name the path once more, and perhaps
// as it was shortened.
func cause(err error) error {
	if op, ok := errors.AsType[*net.OpError](err); ok {
		err = op.Err
	}
	if sys, ok := errors.AsType[*os.SyscallError](err); ok {
		err = sys.Err
	}
	return err
}

func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// probeTimeout bounds the question whether somebody listens.
const probeTimeout = time.Second

// probe reports whether somebody listens on path: nil says that there is
// nothing or only what a dead process left behind.
func probe(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != os.ModeSocket {
		return ErrNotSocket
	}
	ctx, cancel := context.WithTimeout(context.Background(), probeTimeout)
	defer cancel()
	nc, err := Dial(ctx, path)
	switch {
	case err == nil:
		nc.Close()
		return ErrInUse
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return ErrInUse // its backlog is full
	}
	return fmt.Errorf("cannot tell whether it is in use: %w", err)
}
