// Package monitor is the restart policy of a supervisor: given how a process
// ended and when, it says whether to start it again, after how long, and why.
// It is pure: it starts nothing, waits for nothing, and takes the time as an
// argument, so that every row of its table is tested without a process.
//
// The table, first match wins:
//
//	the supervisor asked for the end           stop, with the process's status
//	it ended before it ever served             stop, with the process's status
//	it asked for a restart (RestartStatus)     restart at once, not counted
//	it crashed (see Exit.Crashed)              restart, throttled
//	SIGKILL that nobody here asked for         restart, throttled
//	a restart that failed before it served     restart, throttled; "already
//	                                           running" stops: another has taken over
//	anything else: exit 0 or 1, bad            stop, with the process's status
//	configuration, TERM, HUP, …
//
// Throttle: the first restart is immediate; the next ones keep a distance from
// the restart before that starts at Policy.Floor, doubles, and ends at
// Policy.Cap. A process that served for Policy.Healthy starts afresh.
package monitor

import (
	"fmt"
	"strings"
	"time"
)

// RestartStatus is the exit status by which a process asks to be started again.
const RestartStatus = 5

// RunningStatus is the exit status of a process that found another instance running.
const RunningStatus = 3

// Exit is how a process ended.
type Exit struct {
	Code    int    // exit status; meaningless when Signal is set
	Signal  Signal // that killed it, or 0
	Core    bool   // it left a core file
	Report  string // first line of the crash report that it sent, or ""
	Asked   bool   // the supervisor was asked to stop it
	Serving bool   // it had reported that it serves
	OOM     bool   // the kernel ran out of memory and killed something meanwhile
	Hung    bool   // the supervisor killed it because it did not start in time
}

// Crashed reports whether the process died of its own fault: by a signal that
// means so, or, as programs written in Go do, with a crash report and exit status 2.
// A dump that was asked for (SIGQUIT) is no crash.
func (e Exit) Crashed() bool {
	if e.Hung || e.Signal.crash() {
		return true
	}
	return e.Report != "" && !strings.HasPrefix(e.Report, "SIGQUIT")
}

// Status is the exit status that a shell would show for the end.
func (e Exit) Status() int {
	if e.Signal != 0 {
		return 128 + int(e.Signal)
	}
	return e.Code
}

// String says how the process ended: "killed (Segmentation fault), core dumped".
func (e Exit) String() string {
	var b strings.Builder
	switch {
	case e.Signal != 0:
		fmt.Fprintf(&b, "killed (%s)", e.Signal)
	default:
		fmt.Fprintf(&b, "exit status %d", e.Code)
	}
	switch {
	case e.Hung:
		b.WriteString(" after it did not start in time")
	case e.OOM && e.Signal == SIGKILL:
		b.WriteString(", out of memory")
	}
	if e.Report != "" {
		fmt.Fprintf(&b, ", %s", e.Report)
	}
	if e.Core {
		b.WriteString(", core dumped")
	}
	return b.String()
}

// Policy is the pace of restarts. The zero value of a field means its default.
type Policy struct {
	Floor   time.Duration // least distance between two restarts; 10 s
	Cap     time.Duration // where the doubling of the distance ends; 12 times Floor
	Healthy time.Duration // serving for so long forgets earlier crashes; 30 times Floor
}

func (p Policy) withDefaults() Policy {
	def := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	def(&p.Floor, 10*time.Second)
	def(&p.Cap, 12*p.Floor)
	def(&p.Healthy, 30*p.Floor)
	p.Cap = max(p.Cap, p.Floor)
	return p
}

// Decision is what to do now that the process has ended.
type Decision struct {
	Restart bool
	After   time.Duration // before the restart
	Status  int           // of the supervisor itself when it does not restart
	Crash   bool          // the end counts as a crash
	Why     string        // for the log
}

// Monitor remembers what earlier ends mean for the next one. Its zero value is
// not ready; use New. It is not safe for concurrent use.
type Monitor struct {
	policy    Policy
	served    bool      // some process has served: from now on restarts are retried
	servingAt time.Time // when the current process began to serve
	restarted time.Time // when the last restart was made
	streak    int       // throttled restarts since the process was last healthy
	crashes   int       // since the supervisor began
	last      string    // "pid 17 died, killed (Segmentation fault)"
}

// New returns a monitor that has seen nothing yet.
func New(p Policy) *Monitor { return &Monitor{policy: p.withDefaults()} }

// Memory is what must survive when the supervisor itself is replaced.
type Memory struct {
	Crashes int    `json:"crashes"`
	Last    string `json:"last,omitempty"`
}

// Memory returns what Restore takes.
func (m *Monitor) Memory() Memory { return Memory{m.crashes, m.last} }

// Restore makes m the successor of a supervisor whose process had served.
func (m *Monitor) Restore(mem Memory) {
	m.served, m.crashes, m.last = true, mem.Crashes, mem.Last
}

// Serving notes that the process now serves.
func (m *Monitor) Serving(now time.Time) { m.served, m.servingAt = true, now }

// Restarted notes that the process has been started again.
func (m *Monitor) Restarted(now time.Time) { m.restarted = now }

// Crashes returns the number of crashes so far.
func (m *Monitor) Crashes() int { return m.crashes }

// Exited decides what follows the end of process pid.
func (m *Monitor) Exited(pid int, e Exit, now time.Time) Decision {
	what := fmt.Sprintf("pid %d died, %s", pid, e)
	switch {
	case e.Asked:
		return stop(askedStatus(e), what+", as asked")
	case !m.served:
		return stop(e.Status(), what+" before it served")
	case !e.Crashed() && e.Signal == 0 && e.Code == RestartStatus && e.Serving:
		return Decision{Restart: true, Why: what + " to be restarted"}
	case e.Crashed(), e.Signal == SIGKILL:
		return m.restart(what, e, now)
	case !e.Serving && (e.Signal != 0 || e.Code != RunningStatus):
		return m.restart(what+" before it served", e, now)
	}
	return stop(e.Status(), what+", exiting")
}

func stop(status int, why string) Decision { return Decision{Status: status, Why: why} }

// askedStatus is 0 for an end by the very signal that was passed on.
func askedStatus(e Exit) int {
	if e.Signal == SIGTERM || e.Signal == SIGINT || e.Signal == 0 && e.Code == RestartStatus {
		return 0
	}
	return e.Status()
}

func (m *Monitor) restart(what string, e Exit, now time.Time) Decision {
	m.crashes++
	m.last = what
	if e.Serving && now.Sub(m.servingAt) >= m.policy.Healthy {
		m.streak = 0
	}
	d := Decision{Restart: true, Crash: true, Why: m.words() + ", restarting"}
	if gap := m.gap(); gap > 0 {
		d.After = max(0, m.restarted.Add(gap).Sub(now))
		if d.After > 0 {
			d.Why = fmt.Sprintf("%s, waiting until %v since last restart", m.words(), gap)
		}
	}
	m.streak++
	return d
}

// gap is the least distance to the restart before.
func (m *Monitor) gap() time.Duration {
	if m.streak == 0 {
		return 0
	}
	gap := m.policy.Floor
	for range m.streak - 1 {
		if gap *= 2; gap >= m.policy.Cap {
			return m.policy.Cap
		}
	}
	return gap
}

// words is "2 crashes: pid 17 died, killed (Segmentation fault)".
func (m *Monitor) words() string {
	if m.crashes == 1 {
		return "1 crash: " + m.last
	}
	return fmt.Sprintf("%d crashes: %s", m.crashes, m.last)
}

// Title is what `ps` shows of a supervisor whose process is pid.
func (m *Monitor) Title(pid int) string {
	state := "healthy"
	if m.crashes > 0 {
		state = m.words()
	}
	return fmt.Sprintf("monitoring pid %d (%s)", pid, state)
}
