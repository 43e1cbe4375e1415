package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/daemon/monitor"
)

// stage is what one execution of the program is told by the one before it. Its
// zero value is that of the process that the user started.
type stage struct {
	Role     string            `json:"role"`
	Detached bool              `json:"detached"`          // a launcher waits; go to the background when serving
	Cwd      string            `json:"cwd,omitempty"`     // where the user was
	Ready    int               `json:"ready,omitempty"`   // descriptors, 0 for none
	Crash    int               `json:"crash,omitempty"`   //
	Link     int               `json:"link,omitempty"`    //
	Pidfile  int               `json:"pidfile,omitempty"` // after executing itself
	Console  int               `json:"console,omitempty"` // the terminal, where standard error is heard by the monitor
	Files    []passed          `json:"files,omitempty"`   // sockets
	Kept     map[string]string `json:"kept,omitempty"`    // log levels and the like
	Memory   *monitor.Memory   `json:"memory,omitempty"`  // of the monitor that this one succeeds
	Monitor  int               `json:"monitor,omitempty"` // its pid
	Switched bool              `json:"switched"`          // already runs as the user asked for
	Notify   string            `json:"notify,omitempty"`  // the service manager's socket
	Watchdog time.Duration     `json:"watchdog,omitempty"`
}

// The roles.
const (
	roleFirst   = ""
	roleMonitor = "monitor"
	roleDaemon  = "daemon"
)

// passed is one socket that a stage gets with its descriptor.
type passed struct {
	Name   string      `json:"name"`
	FD     int         `json:"fd"`
	Conn   bool        `json:"conn,omitempty"`  // a connection; else a listener
	State  int         `json:"state,omitempty"` // descriptor of what is known of the connection
	Socket *socketFile `json:"socket,omitempty"`
}

// passedFiles are the open files of one socket that is passed.
type passedFiles struct {
	socket *os.File
	state  *os.File // of a connection, else nil
}

// take takes over what was passed.
func (p *passed) take() *held {
	h := &held{file: os.NewFile(uintptr(p.FD), p.Name), conn: p.Conn, socket: p.Socket}
	if p.State != 0 {
		h.state = os.NewFile(uintptr(p.State), "state of "+p.Name)
	}
	return h
}

// number notes the descriptors that files have in this process, and lists them.
func number(list []passed, files []passedFiles) []*os.File {
	var all []*os.File
	for i, f := range files {
		list[i].FD, all = int(f.socket.Fd()), append(all, f.socket)
		if f.state != nil {
			list[i].State, all = int(f.state.Fd()), append(all, f.state)
		}
	}
	return all
}

// stageVar is the environment variable with the number of the memory file.
const stageVar = "DAEMON_STAGE_FD"

// maxStage bounds what is read from the memory file.
const maxStage = 64 << 20

// takeStage finds out which stage this is, and removes every trace of how it
// knows: no child of ours must take itself for a stage.
func takeStage() (stage, error) {
	value, ok := os.LookupEnv(stageVar)
	if !ok {
		return stage{}, nil
	}
	if err := os.Unsetenv(stageVar); err != nil {
		return stage{}, err
	}
	fd, err := strconv.Atoi(value)
	if err != nil || fd < 3 {
		return stage{}, fmt.Errorf("%s=%q is not a descriptor; it is not meant to be set by hand", stageVar, value)
	}
	unix.CloseOnExec(fd)
	f := os.NewFile(uintptr(fd), "stage")
	defer f.Close()
	data, err := readMemoryFile(f, maxStage)
	if err != nil {
		return stage{}, err
	}
	return parseStage(data)
}

func parseStage(data []byte) (stage, error) {
	var s stage
	if err := json.Unmarshal(data, &s); err != nil {
		return stage{}, fmt.Errorf("cannot understand the stage: %w", err)
	}
	if s.Role != roleFirst && s.Role != roleMonitor && s.Role != roleDaemon {
		return stage{}, fmt.Errorf("unknown stage %.20q", s.Role)
	}
	for _, fd := range s.descriptors() {
		if fd < 3 {
			return stage{}, fmt.Errorf("descriptor %d can't belong to a stage", fd)
		}
	}
	return s, nil
}

// descriptors lists all descriptors of the stage.
func (s *stage) descriptors() []int {
	var fds []int
	for _, fd := range []int{s.Ready, s.Crash, s.Link, s.Pidfile, s.Console} {
		if fd != 0 {
			fds = append(fds, fd)
		}
	}
	for _, p := range s.Files {
		fds = append(fds, p.FD)
		if p.State != 0 {
			fds = append(fds, p.State)
		}
	}
	return fds
}

// seal marks everything that this process inherited as not to be inherited
// further: the stage's descriptors, and whatever the caller left open.
// Descriptors that we open are never inherited, so all that are inheritable are not ours.
func seal() error {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		// No /proc: mark all, by number.
		return unix.CloseRange(3, ^uint(0), unix.CLOSE_RANGE_CLOEXEC)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd > 2 {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// memfd writes the stage to a memory file.
func (s *stage) memfd() (*os.File, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("cannot encode the stage: %w", err)
	}
	return memoryFile("stage", data)
}

// memoryFile returns a file without a name that holds data.
func memoryFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot make a memory file: %w", err)
	}
	f := os.NewFile(uintptr(fd), name)
	if _, err := f.WriteAt(data, 0); err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot write a memory file: %w", err)
	}
	return f, nil
}

// readMemoryFile returns what such a file holds, up to a bound.
func readMemoryFile(f *os.File, most int64) ([]byte, error) {
	data, err := io.ReadAll(io.NewSectionReader(f, 0, most))
	if err != nil {
		return nil, fmt.Errorf("cannot read a memory file: %w", err)
	}
	return data, nil
}

// image is the program as it is executed again.
type image struct {
	exe  string   // absolute path
	args []string // with args[0]
}

// childFiles are the open files that go with a stage, by the role they play.
type childFiles struct {
	ready, crash, link *os.File
	stderr             *os.File      // standard error, if it is not ours; then ours is passed, too
	sockets            []passedFiles // one for each stage.Files
}

// start executes the program again as a child. dir may be gone: then / it is.
func (im image) start(s stage, files childFiles, stdin *os.File, dir string, attr *syscall.SysProcAttr) (*exec.Cmd, error) {
	extra := []*os.File{nil} // the memory file, when it is known what goes into it
	add := func(f *os.File) int {
		if f == nil {
			return 0
		}
		extra = append(extra, f)
		return 2 + len(extra)
	}
	s.Ready, s.Crash, s.Link, s.Pidfile, s.Console = add(files.ready), add(files.crash), add(files.link), 0, 0
	stderr := os.Stderr
	if files.stderr != nil {
		stderr, s.Console = files.stderr, add(os.Stderr)
	}
	s.Files = slices.Clone(s.Files)
	for i, f := range files.sockets {
		s.Files[i].FD, s.Files[i].State = add(f.socket), add(f.state)
	}
	mem, err := s.memfd()
	if err != nil {
		return nil, err
	}
	defer mem.Close()
	extra[0] = mem
	if st, err := os.Stat(dir); err != nil || !st.IsDir() {
		dir = "/"
	}
	cmd := &exec.Cmd{
		Path: im.path(), Args: im.args, Dir: dir, Env: withStage(3), ExtraFiles: extra,
		Stdin: stdin, Stdout: os.Stdout, Stderr: stderr, SysProcAttr: attr,
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", im.exe, err)
	}
	return cmd, nil
}

// path is where the program is now: at its name, or, if that is gone in the
// middle of an upgrade, the very file that is running.
func (im image) path() string {
	if unix.Access(im.exe, unix.X_OK) == nil {
		return im.exe
	}
	return "/proc/self/exe"
}

// probeTimeout bounds the trial of a program.
const probeTimeout = 10 * time.Second

// probe runs the program that would be executed next with harmless arguments.
func (im image) probe(ctx context.Context, args []string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, probeTimeout, fmt.Errorf("no end within %v", probeTimeout))
	defer cancel()
	cmd := exec.CommandContext(ctx, im.path(), args...)
	cmd.WaitDelay = time.Second // for a child of its own that holds the pipe
	out, err := cmd.CombinedOutput()
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s: %w: %.2000s", im.exe, strings.Join(args, " "), errors.Join(err, context.Cause(ctx)), bytes.TrimSpace(out))
}

// exec executes the program again in this process. It returns only on failure.
func (im image) exec(s stage, files []*os.File) error {
	mem, err := s.memfd()
	if err != nil {
		return err
	}
	defer mem.Close()
	for _, f := range append(files, mem) {
		if err := inheritable(f); err != nil {
			return err
		}
	}
	return fmt.Errorf("cannot execute %s: %w", im.exe, syscall.Exec(im.path(), im.args, withStage(int(mem.Fd()))))
}

func inheritable(f *os.File) error {
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETFD, 0); err != nil {
		return fmt.Errorf("cannot pass %s on: %w", f.Name(), err)
	}
	return nil
}

func withStage(fd int) []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, stageVar+"=") })
	return append(env, stageVar+"="+strconv.Itoa(fd))
}
