package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/lockstepd/lockstep/daemon/monitor"
	"github.com/lockstepd/lockstep/daemon/notify"
	"github.com/lockstepd/lockstep/daemon/title"
	"github.com/lockstepd/lockstep/daemon/vlog"

	"golang.org/x/sys/unix"
)

// Options say what is to be a daemon, and how.
type Options struct {
	Program  string       // names pidfile, sockets, processes
	Version  string       // for the log and crash reports
	Args     []string     // the whole command line, as title.Take returned it
	Title    *title.Title // nil leaves `ps` alone
	Flags    Flags        // resolved
	Modules  []string     // of the log, for -v
	CrashDir string       // for crash reports; "" keeps none
	Dirs     []string     // made at start if missing; they belong to --user
	// StartTimeout bounds the time until the daemon serves (default 90 s),
	// StopTimeout that until it has stopped (default 60 s, see Env.Extend).
	StartTimeout, StopTimeout time.Duration
	Policy                    monitor.Policy
	ProbeArgs                 []string // with which the program must exit 0 before it is started again as planned
	SyslogPath, JournalPath   string   // see vlog.Options
}

func (o Options) withDefaults() Options {
	if o.StartTimeout == 0 {
		o.StartTimeout = 90 * time.Second
	}
	if o.StopTimeout == 0 {
		o.StopTimeout = 60 * time.Second
	}
	if o.Flags.RestartDelay > 0 {
		o.Policy.Floor = o.Flags.RestartDelay
	}
	return o
}

// Main is what runs as the daemon. It returns when it has ended: by itself, or
// because ctx ended.
type Main func(ctx context.Context, env *Env) error

// Run runs main as o.Flags ask for, and returns the exit status of this
// process. With --detach it returns when the daemon serves or has failed.
func Run(o Options, main Main) int {
	p := &process{opts: o.withDefaults(), console: os.Stderr}
	status, err := p.run(main)
	if err != nil {
		p.complain(err)
	}
	return status
}

// process is this execution of the program.
type process struct {
	opts    Options
	stage   stage
	image   image
	console *os.File // the terminal; standard error, unless the monitor listens to that
}

// complain says on the terminal why the process ends.
func (p *process) complain(err error) {
	fmt.Fprintf(p.console, "%s: %v\n", p.opts.Program, err)
}

func (p *process) run(main Main) (int, error) {
	var err error
	if p.stage, err = takeStage(); err != nil {
		return ExitFailed, err
	}
	if p.stage.Console != 0 {
		p.console = os.NewFile(uintptr(p.stage.Console), "console")
		// A monitor that is stopped must not hold up what writes to standard
		// error: what finds no room there is lost.
		if err := unix.SetNonblock(2, true); err != nil {
			return ExitFailed, fmt.Errorf("cannot prepare standard error: %w", err)
		}
	}
	exe, err := os.Executable()
	if err != nil {
		return ExitFailed, fmt.Errorf("cannot find the program's own file: %w", err)
	}
	p.image = image{exe, p.opts.Args}
	if p.stage.Role == roleFirst {
		if err := p.first(); err != nil {
			return ExitStatus(err), err
		}
	}
	if err := seal(); err != nil {
		return ExitFailed, fmt.Errorf("cannot mark the open files: %w", err)
	}
	f := &p.opts.Flags
	switch {
	case p.stage.Role == roleDaemon, p.stage.Role == roleFirst && !f.Detach && !f.Monitor:
		return p.daemon(main)
	case p.stage.Role == roleMonitor, !f.Detach:
		return p.monitor()
	}
	return p.launch()
}

// first prepares what only the process that the user started can: it reads the
// environment that a service manager made for it, makes folders, and becomes
// the user that was asked for.
func (p *process) first() error {
	s := &p.stage
	if wd, err := os.Getwd(); err == nil {
		s.Cwd = wd
	}
	if err := p.serviceManager(); err != nil {
		return &ConfigError{err}
	}
	who, err := lookupUser(p.opts.Flags.User)
	if err != nil {
		return &ConfigError{err}
	}
	if err := p.makeDirs(who); err != nil {
		return err
	}
	if who == nil || s.Switched {
		return nil
	}
	return p.become(who)
}

func (p *process) serviceManager() error {
	s := &p.stage
	if s.Switched { // the first process has seen to it before it became the user
		return nil
	}
	pid := os.Getpid()
	passedFDs, err := notify.Listen(os.Getenv, pid)
	if err != nil {
		return err
	}
	for fd, name := range passedFDs {
		s.Files = append(s.Files, passed{Name: name, FD: fd})
	}
	s.Notify = os.Getenv("NOTIFY_SOCKET")
	s.Watchdog = notify.WatchdogInterval(os.Getenv, pid)
	notify.Forget()
	return nil
}

// makeDirs makes the folders that are missing.
func (p *process) makeDirs(who *credentials) error {
	// Clients look for sockets in the rundir; the rest is nobody's business.
	if err := makeDir(p.opts.Flags.RunDir, 0o755, who); err != nil {
		return err
	}
	dirs := p.opts.Dirs
	if f := p.opts.Flags.LogFile; f.Set {
		dirs = append(slices.Clip(dirs), filepath.Dir(f.Value))
	}
	for _, dir := range dirs {
		if err := makeDir(dir, 0o750, who); err != nil {
			return err
		}
	}
	return nil
}

func makeDir(dir string, mode os.FileMode, who *credentials) error {
	if dir == "" {
		return nil
	}
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, os.ErrNotExist) {
		return nil // there; whether it can be used, its use will show
	}
	if err := os.MkdirAll(dir, mode); err != nil {
		return fmt.Errorf("cannot make a folder: %w", err)
	}
	if who == nil || who.uid == os.Getuid() {
		return nil
	}
	if err := os.Chown(dir, who.uid, who.gid); err != nil {
		return fmt.Errorf("cannot give %s to its user: %w", dir, err)
	}
	return nil
}

// newLog starts the log of a stage. A log file that can't be opened is said,
// and does not stop the daemon.
func (p *process) newLog(subprogram string) (*vlog.Vlog, error) {
	f := &p.opts.Flags
	o := vlog.Options{
		Program: p.opts.Program, Subprogram: subprogram, Modules: append([]string{"daemon", "dump", "stderr"}, p.opts.Modules...),
		Console:    p.console,
		SyslogPath: p.opts.SyslogPath, JournalPath: p.opts.JournalPath,
	}
	if subprogram != "" {
		o.Transient, o.MaxSize = true, -1 // the daemon rotates the file they share
	}
	v := vlog.New(o)
	if err := p.setLevels(v); err != nil {
		v.Close()
		return nil, &ConfigError{err}
	}
	path, kept := p.stage.Kept[keptLogFile]
	if !kept && f.LogFile.Set {
		path = f.LogFile.Value
	}
	if path != "" {
		if err := v.OpenFile(path); err != nil {
			v.Logger("vlog").Warn("going on without a log file; it will be tried again", "error", err)
		}
	}
	return v, nil
}

// What a daemon leaves for the next one, by name.
const (
	keptLevels  = "log-levels"
	keptLogFile = "log-file"
)

func (p *process) setLevels(v *vlog.Vlog) error {
	if saved := p.stage.Kept[keptLevels]; saved != "" {
		return v.Restore([]byte(saved))
	}
	if p.consoleIsJournal() {
		// The journal gets everything already, with its fields.
		if err := v.Set("console:off"); err != nil {
			return err
		}
	}
	for _, spec := range p.opts.Flags.Verbose {
		var err error
		if spec == "" {
			err = v.Set()
		} else {
			err = v.Set(spec)
		}
		if err != nil {
			return fmt.Errorf("processing %q: %w", spec, err)
		}
	}
	return nil
}

// consoleIsJournal reports whether what would be the terminal is the journal,
// by the device and inode that systemd says it has.
func (p *process) consoleIsJournal() bool {
	var st unix.Stat_t
	want, fd := os.Getenv("JOURNAL_STREAM"), 2
	if p.stage.Console != 0 {
		fd = p.stage.Console
	}
	if want == "" || unix.Fstat(fd, &st) != nil {
		return false
	}
	return want == fmt.Sprintf("%d:%d", st.Dev, st.Ino)
}

// leaveTerminal puts all that leads to the terminal on /dev/null and leaves the
// working folder, which someone may want to unmount. Where the monitor hears
// standard error, another descriptor leads to the terminal in its place.
func leaveTerminal(noChdir bool, stderr int) error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("cannot leave the terminal: %w", err)
	}
	defer null.Close()
	for _, fd := range []int{0, 1, stderr} {
		if err := unix.Dup3(int(null.Fd()), fd, 0); err != nil {
			return fmt.Errorf("cannot leave the terminal: %w", err)
		}
	}
	if noChdir {
		return nil
	}
	if err := os.Chdir("/"); err != nil {
		return fmt.Errorf("cannot leave the working folder: %w", err)
	}
	return nil
}

// kill ends a child that did not do as it should: first with a request, then
// surely. One that has been waited for gets nothing: its pid may be another's.
func kill(p *os.Process, ended <-chan struct{}, patience time.Duration) {
	_ = p.Signal(syscall.SIGTERM) // fails only if it has ended
	t := time.NewTimer(patience)
	defer t.Stop()
	select {
	case <-ended:
		return
	case <-t.C:
	}
	_ = p.Kill()
	<-ended
}
