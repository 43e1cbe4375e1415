package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/daemon/coverage"
	"github.com/lockstepd/lockstep/daemon/crash"
	"github.com/lockstepd/lockstep/daemon/memory"
	"github.com/lockstepd/lockstep/daemon/monitor"
	"github.com/lockstepd/lockstep/daemon/notify"
	"github.com/lockstepd/lockstep/daemon/pidfile"
	"github.com/lockstepd/lockstep/daemon/title"
	"github.com/lockstepd/lockstep/daemon/vlog"
)

// daemon is the last stage: it runs main and returns its exit status. The
// error, if any, is for standard error; with a launcher it goes there instead.
func (p *process) daemon(main Main) (int, error) {
	rep := &reporter{}
	if p.stage.Ready != 0 {
		rep.pipe = os.NewFile(uintptr(p.stage.Ready), "readiness")
	}
	status, err := p.serve(main, rep)
	if err == nil || status == exitRestart || !rep.pending() {
		return status, err
	}
	if rep.report(verdict{status: status, text: err.Error()}) == nil {
		return status, nil
	}
	return status, err
}

// serve sets up what surrounds main, in the order in which later parts need
// earlier ones, and takes it down in the reverse order.
func (p *process) serve(main Main, rep *reporter) (int, error) {
	if err := title.SetComm(p.opts.Program); err != nil {
		return ExitFailed, err
	}
	if err := p.privileges(); err != nil {
		return ExitFailed, err
	}
	v, err := p.newLog("")
	if err != nil {
		return ExitStatus(err), err
	}
	defer v.Close()
	log := v.Logger("daemon")
	p.earlierCrashes(v)
	crashed, err := p.crashOutput()
	if err != nil {
		log.Warn("a crash report will not be kept", "error", err)
	}
	defer crashed.remove()
	pf, err := p.takePidfile()
	if err != nil {
		v.LoggerExcept("daemon", vlog.Console).Error(err.Error())
		return ExitStatus(err), err
	}
	e, err := p.newEnv(v, rep)
	if err != nil {
		return ExitFailed, errors.Join(err, removePidfile(pf))
	}
	leave := func() {
		e.sockets.closeAll(!e.monitored()) // the monitor knows whether there is a successor
		if err := removePidfile(pf); err != nil {
			log.Warn("the pidfile stays", "error", err)
		}
		v.Flush()
	}
	e.watchSignals(func(status int) {
		leave()
		os.Exit(status)
	})
	log.Info(fmt.Sprintf("%s %s starting", p.opts.Program, p.opts.Version), "pid", os.Getpid(), "go", runtime.Version())
	err = e.runMain(main)
	return p.end(e, pf, err, leave)
}

// runMain runs the function and, when it has returned, ends everything that
// was started beside it.
func (e *Env) runMain(main Main) error {
	e.startTasks()
	err := outcome(e.ctx, main(e.ctx, e))
	e.cancel(err)
	e.tasks.Wait()
	close(e.over)
	e.link.interrupt() // ends listenToMonitor; sending still works
	e.finished.Wait()
	return err
}

// newEnv makes what the function gets.
func (p *process) newEnv(v *vlog.Vlog, rep *reporter) (*Env, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	e := &Env{
		opts: &p.opts, stage: p.stage, image: p.image, log: v.Logger("daemon"), vlog: v,
		coverage: coverage.NewRegistry(), memory: memory.NewAccount(),
		notifier: notify.New(p.stage.Notify), ctx: ctx, cancel: cancel,
		over: make(chan struct{}), serving: make(chan struct{}), alone: make(chan struct{}), reload: make(chan struct{}, 1), reporter: rep,
	}
	e.sockets = newSockets(p.stage.Files, e.log)
	if p.stage.Link == 0 {
		return e, nil
	}
	l, err := openLink(os.NewFile(uintptr(p.stage.Link), "link"))
	if err != nil {
		return nil, err
	}
	e.link = l
	e.sockets.notify = l.send
	v.OnChange(e.keepLevels)
	return e, nil
}

// keepLevels has the monitor keep the log's settings for the next daemon.
func (e *Env) keepLevels() {
	if e.orphaned.Load() {
		return
	}
	for name, value := range map[string]string{keptLevels: string(e.vlog.Save()), keptLogFile: e.vlog.FilePath()} {
		if err := e.link.send(message{Op: opKeep, Name: name, Value: value}); err != nil {
			e.log.Warn("a restart will lose the log's settings", "error", err)
			return
		}
	}
}

// startTasks starts what goes on beside the function.
func (e *Env) startTasks() {
	e.tasks.Go(func() { e.coverage.Run(e.ctx) })
	e.tasks.Go(func() { e.memory.Run(e.ctx, e.vlog.Logger("memory")) })
	e.tasks.Go(func() {
		<-e.ctx.Done()
		e.told(e.notifier.Stopping())
	})
	if e.link != nil {
		e.finished.Go(e.listenToMonitor)
	}
}

// listenToMonitor obeys the monitor, and notices its end.
func (e *Env) listenToMonitor() {
	for {
		m, files, err := e.link.receive()
		closeFiles(files)
		switch {
		case errors.Is(err, errBadMessage):
			e.log.Warn("the monitor said something that cannot be understood")
		case err != nil:
			e.monitorGone()
			return
		case m.Op == opRestart:
			e.log.Info("the monitor asks for a planned restart")
			e.cancel(ErrRestart)
		}
	}
}

// monitorGone is what follows the monitor's unexpected end: a daemon that
// serves goes on, one that does not yet has nobody who waits for it.
func (e *Env) monitorGone() {
	select {
	case <-e.over:
		return // we closed the link ourselves
	default:
	}
	e.mu.Lock()
	ready := e.ready
	e.mu.Unlock()
	if !ready {
		e.log.Error("the monitor is gone before the daemon served: stopping", "monitor", e.stage.Monitor)
		e.cancel(errNoMonitor)
		return
	}
	e.orphaned.Store(true)
	close(e.alone)
	if fd := e.stage.Console; fd != 0 {
		if err := unix.Dup3(fd, 2, 0); err != nil { // nobody hears standard error any more
			e.log.Warn("standard error leads nowhere", "error", err)
		}
	}
	e.log.Error("the monitor is gone: going on to serve, but a crash will not be followed by a restart; a planned restart starts another monitor", "monitor", e.stage.Monitor)
	e.opts.Title.Set(fmt.Sprintf("%s: serving without its monitor (pid %d is gone)", e.opts.Program, e.stage.Monitor))
}

var errNoMonitor = errors.New("the monitor is gone")

// end takes the daemon down after its function has returned err.
func (p *process) end(e *Env, pf *pidfile.File, err error, leave func()) (int, error) {
	status := ExitStatus(err)
	if status == exitRestart {
		if e.monitored() {
			return status, p.endForMonitor(e, pf)
		}
		status, err = ExitFailed, p.execAgain(e, pf)
	}
	if status == ExitOK {
		e.log.Info("exiting: " + words(err))
		err = nil
	} else {
		e.vlog.LoggerExcept("daemon", vlog.Console).Error("exiting: " + err.Error())
	}
	leave()
	return status, err
}

func (e *Env) monitored() bool { return e.link != nil && !e.orphaned.Load() }

// endForMonitor ends the process for a planned restart: the monitor has the
// listening sockets, and gets the connections now.
func (p *process) endForMonitor(e *Env, pf *pidfile.File) error {
	if err := e.sockets.passHanded(); err != nil {
		e.log.Warn("clients will have to connect again", "error", err)
	}
	e.log.Info("ending for a planned restart")
	return removePidfile(pf)
}

// words says why an orderly end came.
func words(err error) string {
	if err == nil {
		return "done"
	}
	return err.Error()
}

// execAgain replaces this process's program, keeping sockets and pidfile. One
// that has lost its monitor becomes a monitor, which starts a daemon. It returns
// only if that fails.
func (p *process) execAgain(e *Env, pf *pidfile.File) error {
	s := p.stage
	var files []*os.File
	s.Role, s.Ready, s.Crash, s.Link, s.Monitor = roleDaemon, 0, 0, 0, 0
	s.Detached = e.reporter.pending()
	if s.Detached {
		s.Ready = int(e.reporter.pipe.Fd())
		files = append(files, e.reporter.pipe)
	}
	s.Kept = map[string]string{keptLevels: string(e.vlog.Save()), keptLogFile: e.vlog.FilePath()}
	list, sockets := e.sockets.pass()
	s.Files, files = list, append(files, number(list, sockets)...)
	switch {
	case e.orphaned.Load():
		e.log.Info("executing the program anew, as the monitor that is missing")
		s.Role, s.Memory = roleMonitor, &monitor.Memory{}
		if err := removePidfile(pf); err != nil { // it is the next daemon's
			e.log.Warn("the pidfile stays", "error", err)
		}
	case pf != nil:
		e.log.Info("executing the program anew")
		s.Pidfile = int(pf.File().Fd())
		files = append(files, pf.File())
	default:
		e.log.Info("executing the program anew")
	}
	e.vlog.Flush()
	if s.Switched && os.Geteuid() != 0 {
		runtime.LockOSThread() // capabilities belong to the thread that executes
		if err := raiseCaps(); err != nil {
			return err
		}
	}
	return p.image.exec(s, files)
}

// privileges ends what only the stages before needed.
func (p *process) privileges() error {
	if p.stage.Switched && os.Geteuid() != 0 {
		return dropAmbient()
	}
	return nil
}

// takePidfile takes the pidfile if one is asked for; after executing itself,
// the process has it already.
func (p *process) takePidfile() (*pidfile.File, error) {
	f := &p.opts.Flags
	switch {
	case !f.Pidfile.Set:
		return nil, nil
	case p.stage.Pidfile != 0:
		return pidfile.Adopt(f.Pidfile.Value, os.NewFile(uintptr(p.stage.Pidfile), "pidfile")), nil
	case f.OverwritePidfile:
		return pidfile.Overwrite(f.Pidfile.Value)
	}
	return pidfile.Create(f.Pidfile.Value)
}

func removePidfile(pf *pidfile.File) error {
	if pf == nil {
		return nil
	}
	return pf.Remove()
}

// crashFile is where the runtime writes when nobody is there to read a pipe.
type crashFile struct{ path string }

// remove removes the file, empty after an orderly end.
func (c *crashFile) remove() {
	if c == nil || c.path == "" {
		return
	}
	os.Remove(c.path) // nothing is lost: there was no crash
}

// crashOutput has the runtime report crashes of all goroutines: to the
// monitor, or without one to a file that the next start finds.
func (p *process) crashOutput() (*crashFile, error) {
	if os.Getenv("GOTRACEBACK") == "" {
		debug.SetTraceback(traceback())
	}
	if p.stage.Crash != 0 {
		f := os.NewFile(uintptr(p.stage.Crash), "crash report")
		defer f.Close()
		return nil, debug.SetCrashOutput(f, debug.CrashOptions{})
	}
	if p.opts.CrashDir == "" {
		return nil, nil
	}
	if err := os.MkdirAll(p.opts.CrashDir, 0o750); err != nil {
		return nil, err
	}
	path := filepath.Join(p.opts.CrashDir, fmt.Sprintf("%s%d", runningPrefix, os.Getpid()))
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o640)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return &crashFile{path}, debug.SetCrashOutput(f, debug.CrashOptions{})
}

// traceback is the detail of crash reports: all goroutines, and a core file
// where the operator allows core files.
func traceback() string {
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_CORE, &lim) == nil && lim.Cur > 0 {
		return "crash"
	}
	return "all"
}

const runningPrefix = "running-"

// earlierCrashes turns what unmonitored daemons before this one left behind
// into crash reports, and logs them.
func (p *process) earlierCrashes(v *vlog.Vlog) {
	left, err := filepath.Glob(filepath.Join(p.opts.CrashDir, runningPrefix+"*"))
	if err != nil || p.opts.CrashDir == "" {
		return
	}
	for _, path := range left {
		if pid := pidfile.Parse([]byte(filepath.Base(path)[len(runningPrefix):])); pid == 0 || pid != os.Getpid() && alive(pid) {
			continue
		}
		if err := p.earlierCrash(v, path); err != nil {
			v.Logger("daemon").Warn("cannot read an earlier crash report", "error", err)
		}
	}
}

func (p *process) earlierCrash(v *vlog.Vlog, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	report := crash.Collect(f)
	if st, err := f.Stat(); err == nil && len(report) > 0 {
		p.keepReport(v, report, "an earlier daemon", 0, st.ModTime())
	}
	return os.Remove(path)
}

func alive(pid int) bool { return unix.Kill(pid, 0) != unix.ESRCH }

// keepReport writes a crash report to the log and to a file of its own.
func (p *process) keepReport(v *vlog.Vlog, report []byte, who string, pid int, at time.Time) {
	log := v.Logger("daemon")
	heading := fmt.Sprintf("%s %s: %s crashed: %s", p.opts.Program, p.opts.Version, who, crash.Headline(report))
	log.Error(heading)
	logLines(v, "crash", report, maxLoggedReport)
	if p.opts.CrashDir == "" {
		return
	}
	path, err := crash.Save(p.opts.CrashDir, heading, report, pid, at)
	if path != "" {
		log.Error("crash report kept in " + path)
	}
	if err != nil {
		log.Warn(err.Error())
	}
}

// maxLoggedReport bounds the part of a crash report that goes to the log.
const maxLoggedReport = 256 << 10
