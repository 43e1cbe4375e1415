package monitor

import (
	"testing"
	"testing/quick"
	"time"
)

const sigQuitReport = "SIGQUIT: quit"

// TestTableWhileServing walks every signal and the exit statuses of a daemon
// that serves: which of them is followed by a restart.
func TestTableWhileServing(t *testing.T) {
	restarted := map[Signal]bool{
		SIGABRT: true, SIGALRM: true, SIGBUS: true, SIGFPE: true, SIGILL: true, SIGPIPE: true,
		SIGSEGV: true, SIGXCPU: true, SIGXFSZ: true, SIGKILL: true,
	}
	for sig := Signal(1); sig <= 64; sig++ {
		d := serving().Exited(7, Exit{Signal: sig, Serving: true}, at(1))
		if d.Restart != restarted[sig] {
			t.Errorf("killed (%s): restart %v, want %v", sig, d.Restart, restarted[sig])
		}
		if !d.Restart && d.Status != 128+int(sig) {
			t.Errorf("killed (%s): status %d", sig, d.Status)
		}
	}
	for code := range 256 {
		d := serving().Exited(7, Exit{Code: code, Serving: true}, at(1))
		if want := code == RestartStatus; d.Restart != want {
			t.Errorf("exit status %d: restart %v, want %v", code, d.Restart, want)
		}
		if !d.Restart && d.Status != code {
			t.Errorf("exit status %d: status %d", code, d.Status)
		}
	}
}

func TestTable(t *testing.T) {
	for _, tc := range []struct {
		name   string
		served bool // an earlier daemon, or this one
		exit   Exit
		want   Decision // without After and Why
	}{
		{"go panic", true, Exit{Code: 2, Report: "panic: x", Serving: true}, Decision{Restart: true, Crash: true}},
		{"go fatal error", true, Exit{Code: 2, Report: "fatal error: all goroutines are asleep", Serving: true}, Decision{Restart: true, Crash: true}},
		{"go with a signal from outside", true, Exit{Code: 2, Report: "SIGSEGV: segmentation violation", Serving: true}, Decision{Restart: true, Crash: true}},
		{"a dump that was asked for", true, Exit{Code: 2, Report: sigQuitReport, Serving: true}, Decision{Status: 2}},
		{"bad configuration while serving", true, Exit{Code: 2, Serving: true}, Decision{Status: 2}},
		{"planned restart", true, Exit{Code: RestartStatus, Serving: true}, Decision{Restart: true}},
		{"planned restart before it served", true, Exit{Code: RestartStatus}, Decision{Restart: true, Crash: true}},
		{"first start: clean exit", false, Exit{}, Decision{}},
		{"first start: failure", false, Exit{Code: 7}, Decision{Status: 7}},
		{"first start: crash", false, Exit{Signal: SIGSEGV}, Decision{Status: 139}},
		{"first start: panic", false, Exit{Code: 2, Report: "panic: x"}, Decision{Status: 2}},
		{"first start: restart asked for", false, Exit{Code: RestartStatus}, Decision{Status: RestartStatus}},
		{"first start: hangs", false, Exit{Signal: SIGKILL, Hung: true}, Decision{Status: 137}},
		{"restart: failure", true, Exit{Code: 1}, Decision{Restart: true, Crash: true}},
		{"restart: bad configuration", true, Exit{Code: 2}, Decision{Restart: true, Crash: true}},
		{"restart: already running", true, Exit{Code: RunningStatus}, Decision{Status: RunningStatus}},
		{"restart: clean exit before serving", true, Exit{}, Decision{Restart: true, Crash: true}},
		{"restart: crash", true, Exit{Signal: SIGBUS}, Decision{Restart: true, Crash: true}},
		{"restart: TERM before serving", true, Exit{Signal: SIGTERM}, Decision{Restart: true, Crash: true}},
		{"restart: hangs", true, Exit{Signal: SIGKILL, Hung: true}, Decision{Restart: true, Crash: true}},
		{"asked: clean", true, Exit{Asked: true, Serving: true}, Decision{}},
		{"asked: by the signal", true, Exit{Asked: true, Signal: SIGTERM}, Decision{}},
		{"asked: interrupt", true, Exit{Asked: true, Signal: SIGINT}, Decision{}},
		{"asked: failed", true, Exit{Asked: true, Code: 1}, Decision{Status: 1}},
		{"asked: killed", true, Exit{Asked: true, Signal: SIGKILL}, Decision{Status: 137}},
		{"asked: crash", true, Exit{Asked: true, Signal: SIGSEGV}, Decision{Status: 139}},
		{"asked: while restarting as planned", true, Exit{Asked: true, Code: RestartStatus, Serving: true}, Decision{}},
		{"asked: before it ever served", false, Exit{Asked: true, Signal: SIGTERM}, Decision{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m := New(Policy{})
			if tc.served {
				m.Serving(at(0))
			}
			got := m.Exited(7, tc.exit, at(1))
			if got.Why == "" {
				t.Error("no reason given")
			}
			got.After, got.Why = 0, ""
			if got != tc.want {
				t.Errorf("got %+v, want %+v", got, tc.want)
			}
		})
	}
}

// serving returns a monitor whose daemon serves since second 0.
func serving() *Monitor {
	m := New(Policy{})
	m.Serving(at(0))
	return m
}

func at(seconds float64) time.Time {
	return time.Unix(1000, 0).Add(time.Duration(seconds * float64(time.Second)))
}

// TestThrottle crashes a daemon immediately after each restart: the first
// restart is at once, the next keep growing distances, up to the cap.
func TestThrottle(t *testing.T) {
	m := serving()
	crash := Exit{Signal: SIGSEGV, Serving: true}
	now := at(1)
	for i, want := range []time.Duration{0, 10, 20, 40, 80, 120, 120, 120} {
		d := m.Exited(7, crash, now)
		if d.After != want*time.Second {
			t.Fatalf("crash %d: restart after %v, want %v", i+1, d.After, want*time.Second)
		}
		now = now.Add(d.After)
		m.Restarted(now)
		m.Serving(now)
	}
}

func TestThrottleCountsFromTheLastRestart(t *testing.T) {
	m := serving()
	m.Exited(7, Exit{Signal: SIGSEGV, Serving: true}, at(1))
	m.Restarted(at(1))
	m.Serving(at(1))
	if d := m.Exited(8, Exit{Signal: SIGSEGV, Serving: true}, at(5)); d.After != 6*time.Second {
		t.Errorf("4 s after a restart: wait %v, want 6s", d.After)
	}
	m.Restarted(at(11))
	m.Serving(at(11))
	if d := m.Exited(9, Exit{Signal: SIGSEGV, Serving: true}, at(100)); d.After != 0 {
		t.Errorf("89 s after a restart: wait %v, want none", d.After)
	}
}

func TestHealthForgetsEarlierCrashes(t *testing.T) {
	m := serving()
	now := at(1)
	for range 5 {
		now = now.Add(m.Exited(7, Exit{Signal: SIGSEGV, Serving: true}, now).After)
		m.Restarted(now)
		m.Serving(now)
	}
	now = now.Add(5 * time.Minute)
	if d := m.Exited(7, Exit{Signal: SIGSEGV, Serving: true}, now); d.After != 0 {
		t.Errorf("after 5 healthy minutes: wait %v, want none", d.After)
	}
	m.Restarted(now)
	if d := m.Exited(8, Exit{Code: 1}, now); d.After != 10*time.Second {
		t.Errorf("second failure in a row: wait %v, want 10s", d.After)
	}
}

func TestPlannedRestartsAreNeitherCountedNorDelayed(t *testing.T) {
	m := serving()
	for i := range 20 {
		d := m.Exited(7, Exit{Code: RestartStatus, Serving: true}, at(float64(i)))
		if !d.Restart || d.After != 0 || d.Crash {
			t.Fatalf("planned restart %d: %+v", i, d)
		}
		m.Restarted(at(float64(i)))
		m.Serving(at(float64(i)))
	}
	if m.Crashes() != 0 {
		t.Errorf("%d crashes counted", m.Crashes())
	}
}

// TestNothingStaysDown asserts, for random histories after a daemon once
// served, that a crash is always followed by a restart within the cap.
func TestNothingStaysDown(t *testing.T) {
	check := func(gaps []uint16, kinds []uint8) bool {
		m := New(Policy{Floor: time.Second, Cap: 8 * time.Second, Healthy: time.Minute})
		now := at(0)
		m.Serving(now)
		for i, gap := range gaps {
			now = now.Add(time.Duration(gap) * time.Millisecond)
			e := Exit{Signal: SIGSEGV, Serving: true}
			if i < len(kinds) {
				e.Serving = kinds[i]&1 == 0
				if kinds[i]&2 != 0 {
					e.Signal, e.Code, e.Report = 0, 2, "panic: x"
				}
			}
			d := m.Exited(i, e, now)
			if !d.Restart || d.After < 0 || d.After > 8*time.Second {
				return false
			}
			now = now.Add(d.After)
			m.Restarted(now)
			if e.Serving {
				m.Serving(now)
			}
		}
		return true
	}
	if err := quick.Check(check, nil); err != nil {
		t.Error(err)
	}
}

func TestTitles(t *testing.T) {
	m := serving()
	if got := m.Title(7); got != "monitoring pid 7 (healthy)" {
		t.Error(got)
	}
	m.Exited(7, Exit{Signal: SIGSEGV, Core: true, Serving: true}, at(1))
	if got, want := m.Title(8), "monitoring pid 8 (1 crash: pid 7 died, killed (Segmentation fault), core dumped)"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	m.Exited(8, Exit{Signal: SIGKILL, OOM: true, Serving: true}, at(2))
	if got, want := m.Title(9), "monitoring pid 9 (2 crashes: pid 8 died, killed (Killed), out of memory)"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

func TestMemorySurvivesAnUpgrade(t *testing.T) {
	old := serving()
	old.Exited(7, Exit{Signal: SIGSEGV, Serving: true}, at(1))
	m := New(Policy{})
	m.Restore(old.Memory())
	if m.Title(9) != old.Title(9) {
		t.Errorf("title %q, want %q", m.Title(9), old.Title(9))
	}
	if d := m.Exited(9, Exit{Code: 1}, at(2)); !d.Restart {
		t.Error("a failed start after an upgrade is not retried")
	}
}

func TestWords(t *testing.T) {
	for want, e := range map[string]Exit{
		"exit status 3":                                  {Code: 3},
		"killed (Segmentation fault)":                    {Signal: SIGSEGV},
		"killed (signal 40)":                             {Signal: 40},
		"exit status 2, panic: x":                        {Code: 2, Report: "panic: x"},
		"killed (Aborted), core dumped":                  {Signal: SIGABRT, Core: true},
		"killed (Killed) after it did not start in time": {Signal: SIGKILL, Hung: true},
	} {
		if got := e.String(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestPolicyDefaults(t *testing.T) {
	if p := (Policy{}).withDefaults(); p != (Policy{10 * time.Second, 2 * time.Minute, 5 * time.Minute}) {
		t.Errorf("%+v", p)
	}
	if p := (Policy{Floor: time.Hour, Cap: time.Minute}).withDefaults(); p.Cap != time.Hour {
		t.Errorf("a cap below the floor: %+v", p)
	}
}
