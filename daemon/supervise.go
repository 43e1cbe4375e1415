package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/daemon/crash"
	"github.com/lockstepd/lockstep/daemon/monitor"
	"github.com/lockstepd/lockstep/daemon/notify"
	children "github.com/lockstepd/lockstep/daemon/process"
	"github.com/lockstepd/lockstep/daemon/title"
	"github.com/lockstepd/lockstep/daemon/vlog"
)

// supervisor is the monitor: it starts the daemon, keeps its sockets, and
// starts it again. All its state belongs to the goroutine that runs it.
type supervisor struct {
	*process
	log      *slog.Logger
	vlog     *vlog.Vlog
	policy   *monitor.Monitor
	notifier *notify.Notifier
	reporter *reporter
	signals  chan os.Signal
	held     map[string]*held  // listening sockets, by name
	conns    []passedConn      // handed over by a daemon that is ending
	kept     map[string]string // for the next daemon
	exe      fileID            // the program when we began
	failure  error             // why a daemon failed to start, in its own words
}

// monitor runs the stage that supervises the daemon.
func (p *process) monitor() (int, error) {
	rep := &reporter{}
	if p.stage.Ready != 0 {
		rep.pipe = os.NewFile(uintptr(p.stage.Ready), "readiness")
	}
	status, err := p.supervise(rep)
	if err == nil || !rep.pending() {
		return status, err
	}
	if rep.report(verdict{status: status, text: err.Error()}) == nil {
		return status, nil
	}
	return status, err
}

// commSuffix tells the monitor from the daemon in short process lists.
const commSuffix = "-mon"

func (p *process) supervise(rep *reporter) (int, error) {
	if err := title.SetComm(p.opts.Program + commSuffix); err != nil {
		return ExitFailed, err
	}
	s := &supervisor{
		process: p, policy: monitor.New(p.opts.Policy), reporter: rep, notifier: notify.New(p.stage.Notify),
		signals: make(chan os.Signal, 16), held: map[string]*held{}, kept: p.stage.Kept,
	}
	signal.Notify(s.signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE)
	v, err := p.newLog("monitor")
	if err != nil {
		return ExitStatus(err), err
	}
	defer v.Close()
	s.vlog, s.log, s.exe = v, v.Logger("daemon"), identify(p.image.exe)
	if s.kept == nil {
		s.kept = map[string]string{}
	}
	if p.stage.Memory != nil {
		s.policy.Restore(*p.stage.Memory)
	}
	s.inherit()
	defer s.closeAll()
	return s.run()
}

// inherit takes the sockets that the stage before passed on.
func (s *supervisor) inherit() {
	for _, f := range s.stage.Files {
		h := f.take()
		if f.Conn {
			s.conns = append(s.conns, passedConn{f.Name, *h})
		} else {
			s.held[f.Name] = h
		}
	}
}

// run starts daemons until the policy says that it is over.
func (s *supervisor) run() (int, error) {
	for {
		d, err := s.once()
		if err != nil || !d.Restart {
			return d.Status, err
		}
		if d.After > 0 && !s.wait(d.After) {
			s.log.Info("stopped while waiting to restart the daemon")
			return ExitOK, nil
		}
		if !d.Crash {
			s.upgrade() // returns if there is nothing to upgrade to
		}
		s.policy.Restarted(time.Now())
	}
}

// wait lets time pass before a restart. HUP ends it early; TERM and INT end it
// for good: then wait returns false. The service manager's watchdog is fed
// meanwhile: supervision is at work, and being killed for waiting would help nobody.
func (s *supervisor) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	feed, stop := s.feeder()
	defer stop()
	for {
		select {
		case <-t.C:
			return true
		case <-feed:
			s.told(s.notifier.Alive())
		case sig := <-s.signals:
			switch sig {
			case syscall.SIGTERM, syscall.SIGINT:
				return false
			case syscall.SIGHUP:
				return true
			}
		}
	}
}

// feeder ticks at the pace of the service manager's watchdog, if it has one.
func (s *supervisor) feeder() (<-chan time.Time, func()) {
	if s.stage.Watchdog <= 0 {
		return nil, func() {}
	}
	tick := time.NewTicker(s.stage.Watchdog / 3)
	return tick.C, tick.Stop
}

func (s *supervisor) told(err error) {
	if err != nil {
		s.log.Warn("notification failed", "error", err)
	}
}

// run of one daemon, from its start to its end.
type term struct {
	*child
	link     *link
	messages chan linked
	crash    *os.File    // where the crash report comes from
	report   chan []byte // the crash report, complete when the daemon has ended
	stderr   *overheard
	heard    bool // the verdict has come
	serving  bool
	later    []os.Signal // to be passed on when it serves
	asked    bool        // it was asked to stop
	hung     bool        // it was killed because it did not start in time
	kill     *time.Timer
	due      time.Time // when kill fires
	ooms     uint64    // kills for lack of memory before it was started
}

// linked is a message with its descriptors.
type linked struct {
	message
	files []*os.File
}

// once runs one daemon and decides what follows.
func (s *supervisor) once() (monitor.Decision, error) {
	t, err := s.start()
	if err != nil {
		d := s.policy.Exited(0, monitor.Exit{Code: ExitFailed}, time.Now())
		if !d.Restart {
			return d, err
		}
		s.log.Error(err.Error())
		return d, nil
	}
	s.setTitle(t)
	s.watch(t)
	return s.ended(t)
}

// start starts a daemon with its pipes and its link.
func (s *supervisor) start() (*term, error) {
	l, theirs, err := newLink()
	if err != nil {
		return nil, err
	}
	defer theirs.Close()
	r, w, err := os.Pipe()
	if err != nil {
		l.close()
		return nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	defer w.Close()
	heard, stderr, err := overhear(os.Stderr, s.vlog.LoggerExcept("stderr", vlog.Console))
	if err != nil {
		l.close()
		r.Close()
		return nil, err
	}
	defer stderr.Close() // if the daemon has not got it, heard ends with that
	st, sockets := s.childStage()
	t := &term{link: l, messages: make(chan linked), crash: r, report: make(chan []byte, 1), stderr: heard, ooms: oomKills(os.DirFS("/"))}
	t.child, err = s.spawn(st, childFiles{crash: w, link: theirs, stderr: stderr, sockets: sockets}, os.Stdin, &syscall.SysProcAttr{Setpgid: true})
	if err != nil {
		l.close()
		r.Close()
		return nil, err
	}
	s.dropConns()                                // the daemon has them now
	go func() { t.report <- crash.Collect(r) }() // ended waits for it
	go t.receive()
	t.kill, t.due = time.NewTimer(s.opts.StartTimeout), time.Now().Add(s.opts.StartTimeout)
	return t, nil
}

func (s *supervisor) childStage() (stage, []passedFiles) {
	st := stage{
		Role: roleDaemon, Detached: s.stage.Detached, Kept: s.kept, Monitor: os.Getpid(),
		Notify: s.stage.Notify, Watchdog: s.stage.Watchdog, Cwd: s.stage.Cwd, Switched: s.stage.Switched,
	}
	var files []passedFiles
	for name, h := range s.held {
		st.Files = append(st.Files, passed{Name: name, Socket: h.socket})
		files = append(files, passedFiles{h.file, nil})
	}
	for _, c := range s.conns {
		st.Files = append(st.Files, passed{Name: c.name, Conn: true})
		files = append(files, passedFiles{c.file, c.state})
	}
	return st, files
}

// receive passes on what the daemon sends until its end of the link is closed.
func (t *term) receive() {
	defer close(t.messages)
	for {
		m, files, err := t.link.receive()
		if err == errBadMessage {
			continue
		}
		if err != nil {
			return
		}
		t.messages <- linked{m, files}
	}
}

// watch does what there is to do while the daemon runs.
func (s *supervisor) watch(t *term) {
	messages := t.messages
	feed, stop := s.feeder()
	defer stop()
	for {
		select {
		case <-feed:
			// While it starts or stops, which is bounded, the daemon can't feed the watchdog itself.
			if !t.serving || t.asked {
				s.told(s.notifier.Alive())
			}
		case m, ok := <-messages:
			if !ok {
				messages = nil
				continue
			}
			s.obey(t, m)
		case v := <-t.verdict:
			s.verdict(t, v)
		case sig := <-s.signals:
			s.signal(t, sig)
		case <-t.kill.C:
			s.overdue(t)
		case <-t.ended:
			s.drain(t)
			return
		}
	}
}

// drain takes what the daemon had sent before it ended.
func (s *supervisor) drain(t *term) {
	_ = t.link.conn.SetReadDeadline(time.Now().Add(time.Second)) // a child of the daemon's may hold the other end
	for m := range t.messages {
		s.obey(t, m)
	}
	if !t.heard { // it comes now that the daemon, the only writer, has ended
		s.verdict(t, <-t.verdict)
	}
	t.link.close()
	t.kill.Stop()
}

// obey does what the daemon asks for.
func (s *supervisor) obey(t *term, m linked) {
	switch m.Op {
	case opHold:
		if len(m.files) == 1 {
			s.hold(m.Name, &held{file: m.files[0], socket: m.Socket})
			return
		}
	case opDrop:
		s.hold(m.Name, nil)
	case opConn:
		if len(m.files) == 2 {
			s.conns = append(s.conns, passedConn{m.Name, held{file: m.files[0], conn: true, state: m.files[1]}})
			return
		}
	case opKeep:
		s.kept[m.Name] = m.Value
		s.follow(m)
	case opExtend:
		if d := time.Duration(m.Millis) * time.Millisecond; t.asked && time.Now().Add(d).After(t.due) {
			t.killAfter(d) // more time is never less
		}
	}
	closeFiles(m.files)
}

// follow has the monitor's own log do as the daemon's.
func (s *supervisor) follow(m linked) {
	var err error
	switch {
	case m.Name == keptLevels:
		err = s.vlog.Restore([]byte(m.Value))
	case m.Name == keptLogFile && m.Value == "":
		_ = s.vlog.CloseFile() // none may be open
	case m.Name == keptLogFile && m.Value != s.vlog.FilePath():
		err = s.vlog.OpenFile(m.Value)
	}
	if err != nil {
		s.log.Warn("cannot follow the daemon's log settings", "error", err)
	}
}

func (s *supervisor) hold(name string, h *held) {
	if old := s.held[name]; old != nil {
		old.close()
	}
	if h == nil {
		delete(s.held, name)
		return
	}
	s.held[name] = h
}

// verdict takes note that the daemon serves, or of why it does not.
func (s *supervisor) verdict(t *term, v readiness) {
	t.heard = true
	if v.err != nil || !v.ready {
		if v.err == nil {
			s.failure = errors.New(v.text)
			s.vlog.LoggerExcept("daemon", vlog.Console).Error("the daemon failed to start: " + v.text)
		}
		return
	}
	t.serving = true
	if !t.asked { // else the timer bounds its stop
		t.kill.Stop()
	}
	s.policy.Serving(time.Now())
	s.setTitle(t)
	for _, sig := range t.later {
		s.signal(t, sig)
	}
	if !s.reporter.pending() {
		return
	}
	if err := s.background(); err != nil {
		s.log.Warn(err.Error())
	}
	if err := s.reporter.report(verdict{ready: true}); err != nil {
		s.log.Warn("nobody waits any more for the daemon to serve", "error", err)
	}
}

// background leaves the terminal, once the first daemon serves.
func (s *supervisor) background() error {
	if err := s.vlog.Set("console:off"); err != nil {
		return err
	}
	s.vlog.Flush()
	return leaveTerminal(s.opts.Flags.NoChdir, 2)
}

// signal passes a signal on to the daemon.
func (s *supervisor) signal(t *term, sig os.Signal) {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT:
		s.log.Info(fmt.Sprintf("asked to stop (%v): stopping the daemon", sig), "pid", t.pid())
		if !t.asked {
			t.asked = true
			t.killAfter(s.opts.StopTimeout)
		}
		t.signal(sig)
	case syscall.SIGHUP, syscall.SIGUSR1:
		switch {
		case !t.serving: // it may not be ready for signals yet, and die of them
			if !slices.Contains(t.later, sig) {
				t.later = append(t.later, sig)
			}
		case sig == syscall.SIGHUP && identify(s.image.exe) != s.exe:
			s.requestUpgrade(t)
		default:
			t.signal(sig)
		}
	}
}

// killAfter sets when the daemon is killed if it has not ended.
func (t *term) killAfter(d time.Duration) {
	t.kill.Reset(d)
	t.due = time.Now().Add(d)
}

func (t *term) pid() int { return t.cmd.Process.Pid }

func (t *term) signal(sig os.Signal) {
	_ = t.cmd.Process.Signal(sig) // fails only if it has ended, which watch sees
}

// overdue ends a daemon that did not start, or did not stop, in time.
func (s *supervisor) overdue(t *term) {
	if t.asked {
		s.log.Error("the daemon did not stop in time: killing it", "pid", t.pid(), "after", s.opts.StopTimeout)
	} else {
		t.hung = true
		s.failure = fmt.Errorf("the daemon did not serve within %v and was killed", s.opts.StartTimeout)
		s.log.Error(s.failure.Error(), "pid", t.pid())
	}
	// ABRT makes it leave a report of what all its goroutines did; then KILL is certain.
	if t.hung {
		t.signal(syscall.SIGABRT)
		select {
		case <-t.ended:
		case <-time.After(killPatience):
		}
	}
	t.signal(syscall.SIGKILL)
}

// crashPatience bounds the wait for the end of a crash report after the end of
// the process, should a child of its own hold the pipe open.
const crashPatience = 2 * time.Second

// ended decides what follows the daemon's end, and logs it.
func (s *supervisor) ended(t *term) (monitor.Decision, error) {
	_ = t.crash.SetReadDeadline(time.Now().Add(crashPatience)) // a pipe of ours has deadlines
	report := t.stderr.end(<-t.report)
	t.crash.Close()
	e := children.ExitOf(t.cmd.ProcessState)
	e.Report, e.Asked, e.Serving, e.Hung = crash.Headline(report), t.asked, t.serving, t.hung
	e.OOM = oomKills(os.DirFS("/")) > t.ooms
	if e.Core {
		s.noMoreCores()
	}
	d := s.policy.Exited(t.pid(), e, time.Now())
	if len(report) > 0 && e.Crashed() {
		s.keepReport(s.vlog, report, fmt.Sprintf("pid %d", t.pid()), t.pid(), time.Now())
	}
	if !planned(d) {
		s.dropConns()
	}
	level := slog.LevelInfo
	if d.Crash {
		level = slog.LevelError
	}
	s.log.Log(context.Background(), level, d.Why)
	s.opts.Title.Set(s.title(s.policy.Title(t.pid())))
	return d, s.startFailure(e, d)
}

func planned(d monitor.Decision) bool { return d.Restart && !d.Crash }

// startFailure is what the launcher, or the terminal, is told when the very
// first daemon never served.
func (s *supervisor) startFailure(e monitor.Exit, d monitor.Decision) error {
	if d.Restart || e.Serving || e.Asked && s.failure == nil {
		return nil
	}
	if s.failure != nil {
		return s.failure
	}
	return fmt.Errorf("the daemon died before it served (%s)", e)
}

// dropConns closes connections that were handed over. After a crash nobody
// knows where they are in their conversation.
func (s *supervisor) dropConns() {
	for _, c := range s.conns {
		c.close()
	}
	s.conns = nil
}

// noMoreCores keeps later crashes from filling the disk with core files: one tells enough.
func (s *supervisor) noMoreCores() {
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		s.log.Warn("cannot turn core files off", "error", err)
	}
}

func (s *supervisor) title(text string) string { return s.opts.Program + ": " + text }

func (s *supervisor) setTitle(t *term) { s.opts.Title.Set(s.title(s.policy.Title(t.pid()))) }

// closeAll gives up all sockets: supervision is over.
func (s *supervisor) closeAll() {
	for _, h := range s.held {
		h.socket.remove()
		h.close()
	}
	s.dropConns()
}

// fileID tells whether a file has been replaced.
type fileID struct {
	dev, ino uint64
	mtime    int64
}

func identify(path string) fileID {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return fileID{}
	}
	return fileID{uint64(st.Dev), st.Ino, st.Mtim.Nano()}
}

// requestUpgrade tries the new program, and if it runs asks the daemon for a
// planned restart, after which the monitor itself becomes the new program.
func (s *supervisor) requestUpgrade(t *term) {
	if err := s.image.probe(context.Background(), s.opts.ProbeArgs); err != nil {
		s.log.Error("the new program would not start; the old one goes on", "error", err)
		return
	}
	s.log.Info("the program has been replaced: asking the daemon for a planned restart")
	if err := t.link.send(message{Op: opRestart}); err != nil {
		s.log.Error("cannot ask the daemon for a planned restart", "error", err)
	}
}

// upgrade replaces the monitor's own program if it has changed on disk and
// works. It returns if not.
func (s *supervisor) upgrade() {
	now := identify(s.image.exe)
	if now == s.exe || now == (fileID{}) {
		return
	}
	s.exe = now
	if err := s.image.probe(context.Background(), s.opts.ProbeArgs); err != nil {
		s.log.Error("the new program would not start; the monitor stays as it is", "error", err)
		return
	}
	st, sockets := s.childStage()
	st.Role, st.Monitor, st.Memory = roleMonitor, 0, new(s.policy.Memory())
	files := number(st.Files, sockets)
	s.log.Info("the monitor executes the new program")
	s.vlog.Flush()
	if err := s.image.exec(st, files); err != nil {
		s.log.Error("the monitor stays as it is", "error", err)
	}
}
