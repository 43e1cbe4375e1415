package ctl

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/term"

	"github.com/lockstepd/lockstep/ctl/top"
	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/stream"
)

// OS is the world of the process itself. release is the version that the linker
// gave it, or nothing.
func OS(release string) Env {
	env := Env{
		Release: release,
		In:      os.Stdin, Out: os.Stdout, Err: os.Stderr,
		Getenv: os.Getenv, Dial: dialSocket,
		Interrupts: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		},
		Keyboard: openKeyboard, Inspect: inspect,
		Open:   func(path string) (io.ReadCloser, error) { return os.Open(path) },
		InTerm: term.IsTerminal(int(os.Stdin.Fd())),
	}
	if term.IsTerminal(int(os.Stdout.Fd())) {
		env.OutTerm = tty{os.Stdout}
	}
	if term.IsTerminal(int(os.Stderr.Fd())) {
		env.ErrTerm = tty{os.Stderr}
	}
	return env
}

// inspect has lockstepd read a metadata file: that beside this program, or else
// the one that the shell would find.
func inspect(ctx context.Context, path string) (json.RawMessage, error) {
	program := "lockstepd"
	if self, err := os.Executable(); err == nil {
		if beside := filepath.Join(filepath.Dir(self), program); executable(beside) {
			program = beside
		}
	}
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, program, "--dump-md", path)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		if why := strings.TrimSpace(errs.String()); why != "" {
			return nil, errors.New(strings.TrimPrefix(why, "lockstepd: "))
		}
		return nil, fmt.Errorf("cannot run lockstepd, which reads metadata files: %w", err)
	}
	return out.Bytes(), nil
}

func executable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}

// dialSocket is the Dial of the process itself.
func dialSocket(ctx context.Context, t Target, notify Notify) (Client, error) {
	c, err := rpc.Dial(ctx, t.Name, rpc.DialOptions{
		Rundir: t.Rundir, Notify: notify,
		Open: func(ctx context.Context, name string) (net.Conn, error) { return openStream(ctx, name, t.TLS) },
	})
	if err != nil {
		return nil, err // not c: a nil *rpc.Client in an interface is not nil
	}
	return c, nil
}

// openStream connects to a daemon on another host.
func openStream(ctx context.Context, name string, files stream.Files) (net.Conn, error) {
	var o stream.Options
	if files.Cert != "" || files.Key != "" || files.CA != "" {
		id, err := stream.NewIdentity(files)
		if err != nil {
			return nil, err
		}
		o.TLS = id
	}
	return stream.Open(ctx, name, o)
}

// tty is a standard stream that is a terminal.
type tty struct{ f *os.File }

// Size is that of the terminal, or the usual where it does not say.
func (t tty) Size() (width, height int) {
	w, h, err := term.GetSize(int(t.f.Fd()))
	if err != nil || w <= 0 || h <= 0 {
		return 80, 24
	}
	return w, h
}

// keyboard is the controlling terminal in raw mode, with the goroutine that
// reads it.
type keyboard struct {
	f       *os.File
	before  *term.State
	keys    chan string
	resized chan os.Signal
	changed chan struct{}
	stop    chan struct{}
	reader  sync.WaitGroup
}

// openKeyboard takes the controlling terminal over. It is opened anew, so that
// reading it can be interrupted and standard input is left as it was.
func openKeyboard() (Keyboard, error) {
	f, err := os.OpenFile("/dev/tty", os.O_RDWR|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	before, err := rawMode(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("raw mode: %w", err)
	}
	k := &keyboard{
		f: f, before: before, keys: make(chan string), resized: make(chan os.Signal, 1),
		changed: make(chan struct{}, 1), stop: make(chan struct{}),
	}
	signal.Notify(k.resized, syscall.SIGWINCH)
	k.reader.Go(k.read)
	k.reader.Go(k.watchSize)
	return k, nil
}

// rawMode sets the terminal of f to raw mode without making f blocking, which
// File.Fd would.
func rawMode(f *os.File) (before *term.State, err error) {
	conn, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	ctlErr := conn.Control(func(fd uintptr) { before, err = term.MakeRaw(int(fd)) })
	if ctlErr != nil {
		return nil, ctlErr
	}
	return before, err
}

// read cuts what is typed into keys until Close.
func (k *keyboard) read() {
	defer close(k.keys)
	buf := make([]byte, 256)
	for {
		n, err := k.f.Read(buf)
		for _, key := range top.Keys(string(buf[:n])) {
			select {
			case k.keys <- key:
			case <-k.stop:
				return
			}
		}
		if err != nil && err != io.ErrNoProgress {
			return
		}
	}
}

// watchSize hands on that the size has changed, until Close.
func (k *keyboard) watchSize() {
	for {
		select {
		case <-k.resized:
			select {
			case k.changed <- struct{}{}:
			default: // told already
			}
		case <-k.stop:
			return
		}
	}
}

// Keys implements Keyboard.
func (k *keyboard) Keys() <-chan string { return k.keys }

// Resized implements Keyboard.
func (k *keyboard) Resized() <-chan struct{} { return k.changed }

// Close implements Keyboard.
func (k *keyboard) Close() error {
	signal.Stop(k.resized)
	close(k.stop)
	var err error
	if conn, e := k.f.SyscallConn(); e == nil {
		_ = conn.Control(func(fd uintptr) { err = term.Restore(int(fd), k.before) })
	}
	k.f.Close() // wakes the reader
	k.reader.Wait()
	return err
}
