package reconnect

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// A script drives an FSM line by line and writes down what each line changed.
//
//	EVENT [ARG]     something happened
//	run             ask what to do
//	wait            ask how long to wait, and let that time pass
//	+MS             let time pass
//
// What follows the arrow is the trace: what is to be done, how long was
// waited, the state with the milliseconds of backoff, counts of successful and
// attempted connections, and the tries left, each only where it changed.
type script struct {
	t   *testing.T
	fsm *FSM
	now time.Time
}

var epoch = time.UnixMilli(1000)

func newScript(t *testing.T) *script { return &script{t, New(epoch), epoch} }

// facts are what a trace shows changes of.
type facts struct{ state, conns, tries, seqno string }

func (s *script) facts() facts {
	st := s.fsm.Stats(s.now)
	return facts{
		state: fmt.Sprintf("%s/%d", st.State, st.Backoff.Milliseconds()),
		conns: fmt.Sprintf("%d of %d", st.SuccessfulConns, st.AttemptedConnections),
		tries: fmt.Sprintf("%d left", st.TriesLeft),
		seqno: fmt.Sprintf("seqno %d", st.Seqno),
	}
}

// run plays the lines of a script, each "COMMAND => TRACE".
func (s *script) run(text string) {
	s.t.Helper()
	var want, got []string
	for line := range strings.Lines(text) {
		command, trace, _ := strings.Cut(strings.TrimSpace(line), "=>")
		if command = strings.TrimSpace(command); command == "" {
			continue
		}
		want = append(want, command+" => "+strings.TrimSpace(trace))
		got = append(got, command+" => "+s.line(command))
	}
	if diff := cmp.Diff(want, got); diff != "" {
		s.t.Errorf("trace (-want +got):\n%s", diff)
	}
}

func (s *script) line(command string) string {
	before := s.facts()
	trace := s.do(strings.Fields(command))
	after := s.facts()
	for _, c := range [][2]string{
		{before.state, after.state}, {before.conns, after.conns},
		{before.tries, after.tries}, {before.seqno, after.seqno},
	} {
		if c[0] != c[1] {
			trace = append(trace, c[1])
		}
	}
	return strings.Join(trace, ", ")
}

func (s *script) do(words []string) []string {
	arg := 0
	if len(words) > 1 {
		arg, _ = strconv.Atoi(words[1])
	}
	if ms, ok := strings.CutPrefix(words[0], "+"); ok {
		n, _ := strconv.Atoi(ms)
		s.now = s.now.Add(time.Duration(n) * time.Millisecond)
		return nil
	}
	switch words[0] {
	case "run":
		if a := s.fsm.Run(s.now); a != Nothing {
			return []string{a.String()}
		}
		return nil
	case "wait":
		d, ok := s.fsm.Timeout(s.now)
		if !ok {
			return []string{"for ever"}
		}
		s.now = s.now.Add(d)
		return []string{fmt.Sprintf("%d ms", d.Milliseconds())}
	}
	event(s.fsm, words[0], arg, s.now)
	return nil
}

// event tells the FSM of an event by its name.
func event(f *FSM, name string, arg int, now time.Time) {
	ms := time.Duration(arg) * time.Millisecond
	switch name {
	case "enable":
		f.Enable(now)
	case "disable":
		f.Disable(now)
	case "force":
		f.ForceReconnect(now)
	case "connecting":
		f.Connecting(now)
	case "connected":
		f.ConnectSucceeded(now)
	case "failed":
		f.ConnectFailed(now)
	case "disconnected":
		f.Disconnected(now)
	case "activity":
		f.Activity(now)
	case "received":
		f.ReceiveAttempted(now)
	case "listening":
		f.Listening(now)
	case "listen-error":
		f.ListenError(now)
	case "passive":
		f.SetPassive(true, now)
	case "active":
		f.SetPassive(false, now)
	case "always-receives":
		f.ReceivesContinuously()
	case "tries":
		f.SetMaxTries(arg)
	case "free-tries":
		f.SetFreeTries(arg)
	case "most-backoff":
		f.SetBackoff(0, ms)
	case "least-backoff":
		f.SetBackoff(ms, 0)
	case "probe":
		f.SetProbeInterval(ms)
	default:
		panic("no such event: " + name)
	}
}

// These are the situations of Open vSwitch's own suite, and then those that it
// leaves out.
var traces = []struct{ name, script string }{
	{"a disabled one does nothing", `
		run          =>
		wait         => for ever
	`},
	{"a connection that falls silent is probed and given up", `
		enable       => BACKOFF/0
		run          => connect
		connected    => ACTIVE/0, 1 of 1, seqno 1
		wait         => 5000 ms
		run          =>
		wait         => 1 ms
		run          =>
		wait         => 1 ms
		run          =>
		always-receives =>
		wait         => 0 ms
		run          => probe, IDLE/0
		wait         => 5000 ms
		run          => disconnect
		disconnected => BACKOFF/1000, seqno 2
	`},
	{"a connection that took a while falls silent", `
		enable       => BACKOFF/0
		run          => connect
		connecting   => CONNECTING/0
		+500         =>
		run          =>
		connected    => ACTIVE/0, 1 of 1, seqno 1
		wait         => 5000 ms
		run          =>
		wait         => 1 ms
		run          =>
		wait         => 1 ms
		run          =>
		always-receives =>
		wait         => 0 ms
		run          => probe, IDLE/0
		wait         => 5000 ms
		run          => disconnect
		disconnected => BACKOFF/1000, seqno 2
	`},
	{"attempts that time out back off to eight seconds", `
		enable       => BACKOFF/0
		run          => connect
		connecting   => CONNECTING/0
		run          =>
		wait         => 1000 ms
		run          => disconnect
		failed       => BACKOFF/1000, 0 of 1
		wait         => 1000 ms
		run          => connect
		connecting   => CONNECTING/1000
		wait         => 1000 ms
		run          => disconnect
		failed       => BACKOFF/2000, 0 of 2
		wait         => 2000 ms
		run          => connect
		connecting   => CONNECTING/2000
		wait         => 2000 ms
		run          => disconnect
		failed       => BACKOFF/4000, 0 of 3
		wait         => 4000 ms
		run          => connect
		connecting   => CONNECTING/4000
		wait         => 4000 ms
		run          => disconnect
		failed       => BACKOFF/8000, 0 of 4
		wait         => 8000 ms
		run          => connect
		connecting   => CONNECTING/8000
		wait         => 8000 ms
		run          => disconnect
		failed       => BACKOFF/8000, 0 of 5
		wait         => 8000 ms
		run          => connect
		connecting   => CONNECTING/8000
		wait         => 8000 ms
		run          => disconnect
		failed       => BACKOFF/8000, 0 of 6
	`},
	{"connections without data keep the backoff growing", `
		always-receives =>
		enable       => BACKOFF/0
		run          => connect
		connected    => ACTIVE/0, 1 of 1, seqno 1
		wait         => 5000 ms
		run          => probe, IDLE/0
		wait         => 5000 ms
		run          => disconnect
		disconnected => BACKOFF/1000, seqno 2
		wait         => 1000 ms
		run          => connect
		run          => connect
		connected    => ACTIVE/1000, 2 of 2, seqno 3
		wait         => 5000 ms
		run          => probe, IDLE/1000
		wait         => 5000 ms
		run          => disconnect
		disconnected => BACKOFF/2000, seqno 4
		wait         => 2000 ms
		run          => connect
		run          => connect
		connected    => ACTIVE/2000, 3 of 3, seqno 5
		wait         => 5000 ms
		run          => probe, IDLE/2000
		wait         => 5000 ms
		run          => disconnect
		disconnected => BACKOFF/4000, seqno 6
		wait         => 4000 ms
	`},
	{"a brief connection keeps the backoff growing", `
		enable       => BACKOFF/0
		run          => connect
		connecting   => CONNECTING/0
		run          =>
		wait         => 1000 ms
		run          => disconnect
		failed       => BACKOFF/1000, 0 of 1
		wait         => 1000 ms
		run          => connect
		connecting   => CONNECTING/1000
		wait         => 1000 ms
		run          => disconnect
		failed       => BACKOFF/2000, 0 of 2
		wait         => 2000 ms
		run          => connect
		connecting   => CONNECTING/2000
		+500         =>
		run          =>
		connected    => ACTIVE/2000, 1 of 3, seqno 1
		+250         =>
		disconnected => BACKOFF/4000, seqno 2
		run          =>
		wait         => 4000 ms
		run          => connect
	`},
	{"a connection with data that is briefer than the backoff keeps it growing", `
		enable       => BACKOFF/0
		run          => connect
		connecting   => CONNECTING/0
		run          =>
		wait         => 1000 ms
		run          => disconnect
		failed       => BACKOFF/1000, 0 of 1
		wait         => 1000 ms
		run          => connect
		connecting   => CONNECTING/1000
		wait         => 1000 ms
		run          => disconnect
		failed       => BACKOFF/2000, 0 of 2
		wait         => 2000 ms
		run          => connect
		connecting   => CONNECTING/2000
		+500         =>
		run          =>
		connected    => ACTIVE/2000, 1 of 3, seqno 1
		+250         =>
		run          =>
		activity     =>
		+250         =>
		run          =>
		activity     =>
		+250         =>
		run          =>
		activity     =>
		disconnected => BACKOFF/4000, seqno 2
		run          =>
		wait         => 4000 ms
		run          => connect
	`},
	{"a connection with data that outlasts the backoff resets it", `
		enable       => BACKOFF/0
		run          => connect
		connecting   => CONNECTING/0
		run          =>
		wait         => 1000 ms
		run          => disconnect
		failed       => BACKOFF/1000, 0 of 1
		wait         => 1000 ms
		run          => connect
		connecting   => CONNECTING/1000
		wait         => 1000 ms
		run          => disconnect
		failed       => BACKOFF/2000, 0 of 2
		wait         => 2000 ms
		run          => connect
		connecting   => CONNECTING/2000
		+500         =>
		run          =>
		connected    => ACTIVE/2000, 1 of 3, seqno 1
		+2000        =>
		run          =>
		activity     =>
		+2000        =>
		run          =>
		activity     =>
		+2000        =>
		run          =>
		activity     =>
		disconnected => BACKOFF/1000, seqno 2
		run          =>
		wait         => 1000 ms
		run          => connect
	`},
	{"attempts that are refused at once back off", `
		enable       => BACKOFF/0
		run          => connect
		failed       => BACKOFF/1000, 0 of 1
		run          =>
		wait         => 1000 ms
		run          => connect
		failed       => BACKOFF/2000, 0 of 2
		run          =>
		wait         => 2000 ms
	`},
	{"free tries do not back off", `
		free-tries 2 =>
		enable       => BACKOFF/0
		run          => connect
		failed       => 0 of 1
		run          => connect
		wait         => 0 ms
		run          => connect
		failed       => BACKOFF/1000, 0 of 2
		run          =>
		wait         => 1000 ms
	`},
	{"one try is one try", `
		always-receives =>
		tries 1      => 1 left
		enable       => BACKOFF/0, 0 left
		run          => connect
		connected    => ACTIVE/0, 1 of 1, seqno 1
		wait         => 5000 ms
		run          => probe, IDLE/0
		wait         => 5000 ms
		run          => disconnect
		disconnected => VOID/0, seqno 2
	`},
	{"no try is none", `
		tries 0      => 0 left
		enable       =>
		run          =>
		wait         => for ever
	`},
	{"a passive one listens, and again at once", `
		passive      =>
		enable       => BACKOFF/0
		wait         => 0 ms
		run          => connect
		listening    => LISTENING/0
		wait         => for ever
		run          =>
		listen-error => BACKOFF/1000
		wait         => 1000 ms
		run          => connect
		listening    => LISTENING/1000
		connected    => ACTIVE/1000, 1 of 1, seqno 1
		activity     =>
		+1000        =>
		activity     =>
		wait         => 5000 ms
		always-receives =>
		wait         => 0 ms
		run          => probe, IDLE/1000
		wait         => 5000 ms
		run          => disconnect
		disconnected => BACKOFF/0, seqno 2
		wait         => 0 ms
		run          => connect
		listening    => LISTENING/0
	`},

	{"an answered probe", `
		always-receives =>
		enable       => BACKOFF/0
		connected    => ACTIVE/0, 1 of 1, seqno 1
		wait         => 5000 ms
		run          => probe, IDLE/0
		+4999        =>
		run          =>
		activity     => ACTIVE/0
		wait         => 5000 ms
	`},
	{"silence counts once somebody listened to it", `
		enable       => BACKOFF/0
		connected    => ACTIVE/0, 1 of 1, seqno 1
		+4999        =>
		received     =>
		+1001        =>
		run          =>
		wait         => 1 ms
		received     =>
		run          => probe, IDLE/0
		+6000        =>
		run          =>
		received     =>
		run          => disconnect
	`},
	{"no probes", `
		probe 0      =>
		enable       => BACKOFF/0
		connected    => ACTIVE/0, 1 of 1, seqno 1
		wait         => for ever
		+3600000     =>
		run          =>
	`},
	{"a probe interval under a second is a second", `
		always-receives =>
		probe 10     =>
		enable       => BACKOFF/0
		connected    => ACTIVE/0, 1 of 1, seqno 1
		wait         => 1000 ms
		run          => probe, IDLE/0
	`},
	{"a forced reconnect", `
		enable       => BACKOFF/0
		connected    => ACTIVE/0, 1 of 1, seqno 1
		+3000        =>
		activity     =>
		force        => RECONNECT/0, seqno 2
		wait         => 0 ms
		run          => disconnect
		disconnected => BACKOFF/1000
	`},
	{"a forced reconnect during an attempt", `
		enable       => BACKOFF/0
		connecting   => CONNECTING/0
		force        => RECONNECT/0, 0 of 1
		run          => disconnect
		disconnected => BACKOFF/1000
	`},
	{"disabled while connected, and enabled again", `
		enable       => BACKOFF/0
		connected    => ACTIVE/0, 1 of 1, seqno 1
		disable      => VOID/0, seqno 2
		run          =>
		wait         => for ever
		disconnected =>
		enable       => BACKOFF/0
		run          => connect
	`},
	{"a lower bound on backoff", `
		enable       => BACKOFF/0
		failed       => BACKOFF/1000, 0 of 1
		failed       => BACKOFF/2000, 0 of 2
		failed       => BACKOFF/4000, 0 of 3
		most-backoff 3000 => BACKOFF/3000
		failed       => 0 of 4
		least-backoff 20000 =>
		failed       => BACKOFF/20000, 0 of 5
		failed       => 0 of 6
	`},
	{"made passive while it listens not", `
		enable       => BACKOFF/0
		connecting   => CONNECTING/0
		passive      => BACKOFF/0, 0 of 1
		listening    => LISTENING/0
		active       => BACKOFF/0
		run          => connect
	`},
	{"made active with no try left", `
		tries 1      => 1 left
		passive      =>
		enable       => BACKOFF/0, 0 left
		listening    => LISTENING/0
		active       =>
	`},
}

func TestTraces(t *testing.T) {
	for _, tt := range traces {
		t.Run(tt.name, func(t *testing.T) { newScript(t).run(tt.script) })
	}
}

// reach returns an FSM in each state, with the clock at epoch.
func reach(s State) *FSM {
	f := New(epoch)
	f.ReceivesContinuously()
	path := map[State]string{
		Void: "", Backoff: "enable", Connecting: "enable connecting", Active: "enable connected",
		Reconnect: "enable connected force", Listening: "passive enable listening",
		Idle: "enable connected",
	}[s]
	for e := range strings.FieldsSeq(path) {
		event(f, e, 0, epoch)
	}
	if s == Idle {
		f.Run(epoch.Add(DefaultProbeInterval))
	}
	return f
}

// TestEveryEventInEveryState lists the state after each event in each state.
func TestEveryEventInEveryState(t *testing.T) {
	const (
		v, b, c = Void, Backoff, Connecting
		a, i    = Active, Idle
		r, l    = Reconnect, Listening
	)
	for _, tt := range []struct {
		event string
		want  [states]State // from Void, Backoff, Connecting, Active, Idle, Reconnect, Listening
	}{
		{"enable", [states]State{b, b, c, a, i, r, l}},
		{"disable", [states]State{v, v, v, v, v, v, v}},
		{"force", [states]State{v, b, r, r, r, r, l}},
		{"connecting", [states]State{c, c, c, c, c, c, c}},
		{"connected", [states]State{a, a, a, a, i, a, a}},
		{"failed", [states]State{b, b, b, b, b, b, b}},
		{"disconnected", [states]State{v, b, b, b, b, b, b}},
		{"activity", [states]State{v, b, c, a, a, r, l}},
		{"received", [states]State{v, b, c, a, i, r, l}},
		{"listening", [states]State{l, l, l, l, l, l, l}},
		{"listen-error", [states]State{v, b, c, a, i, r, b}},
		{"passive", [states]State{v, b, b, a, i, b, l}},
		{"active", [states]State{v, b, c, a, i, r, b}},
	} {
		for s := range State(states) {
			f := reach(s)
			if f.State() != s {
				t.Fatalf("got to %v instead of %v", f.State(), s)
			}
			event(f, tt.event, 0, epoch.Add(DefaultProbeInterval))
			if got := f.State(); got != tt.want[s] {
				t.Errorf("%s in %v: %v, want %v", tt.event, s, got, tt.want[s])
			}
			if f.Connected() != (f.State() == Active || f.State() == Idle) {
				t.Errorf("%s in %v: connected is %v", tt.event, s, f.Connected())
			}
		}
	}
}

// TestRunInEveryState lists what Run asks for before and at the deadline.
func TestRunInEveryState(t *testing.T) {
	for s, want := range map[State]struct {
		after time.Duration // of reaching it; -1: never
		act   Action
		then  State
	}{
		Void:       {-1, Nothing, Void},
		Backoff:    {0, Connect, Backoff},
		Connecting: {time.Second, Disconnect, Connecting},
		Active:     {5 * time.Second, Probe, Idle},
		Idle:       {10 * time.Second, Disconnect, Idle},
		Reconnect:  {0, Disconnect, Reconnect},
		Listening:  {-1, Nothing, Listening},
	} {
		f := reach(s)
		at, ok := f.Deadline(epoch)
		if want.after < 0 {
			if ok || f.Run(epoch.Add(time.Hour)) != Nothing {
				t.Errorf("%v has a deadline", s)
			}
			continue
		}
		if !ok || at.Sub(epoch) != want.after {
			t.Errorf("%v: deadline after %v, want %v", s, at.Sub(epoch), want.after)
		}
		if got := f.Run(at.Add(-time.Millisecond)); got != Nothing {
			t.Errorf("%v: too early it asks to %v", s, got)
		}
		if got := f.Run(at); got != want.act || f.State() != want.then {
			t.Errorf("%v: %v and %v, want %v and %v", s, got, f.State(), want.act, want.then)
		}
	}
}

func TestStats(t *testing.T) {
	f := New(epoch)
	at := func(ms int) time.Time { return epoch.Add(time.Duration(ms) * time.Millisecond) }
	if s := f.Stats(at(5)); s.SinceConnect != -1 || s.SinceDisconnect != -1 || s.StateFor != 5*time.Millisecond {
		t.Errorf("a new one: %+v", s)
	}
	f.Enable(at(10))
	f.ConnectSucceeded(at(100))
	f.Activity(at(150))
	f.Disconnected(at(200))
	f.ConnectSucceeded(at(300))
	want := Stats{
		State: Active, StateFor: 50 * time.Millisecond, Created: epoch,
		LastActivity: at(150), LastConnected: at(300), LastDisconnected: at(200),
		SinceConnect: 50 * time.Millisecond, SinceDisconnect: 150 * time.Millisecond,
		TotalConnected: 150 * time.Millisecond, Backoff: time.Second, Connected: true, Seqno: 3,
		AttemptedConnections: 2, SuccessfulConns: 2, TriesLeft: Forever,
	}
	if diff := cmp.Diff(want, f.Stats(at(350))); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestJitterShortensWaitsAndNothingElse(t *testing.T) {
	f := New(epoch)
	f.SetJitter(func(d time.Duration) time.Duration { return d / 2 })
	f.Enable(epoch)
	for _, backoff := range []time.Duration{1, 2, 4, 8, 8} {
		f.ConnectFailed(epoch)
		if got := f.Stats(epoch).Backoff; got != backoff*time.Second {
			t.Errorf("backoff %v, want %v", got, backoff*time.Second)
		}
		if d, _ := f.Timeout(epoch); d != backoff*time.Second/2 {
			t.Errorf("waits %v after a backoff of %v", d, backoff*time.Second)
		}
	}
	f.SetJitter(func(d time.Duration) time.Duration { return 2 * d })
	f.ConnectFailed(epoch)
	if d, _ := f.Timeout(epoch); d != 8*time.Second {
		t.Errorf("a draw beyond the backoff is taken: %v", d)
	}
}

func TestTheFloorIsASecondUnlessItIsSet(t *testing.T) {
	const ms = time.Millisecond
	for _, c := range []struct{ floor, least, most, wantLeast, wantMost time.Duration }{
		{0, 100 * ms, 500 * ms, time.Second, time.Second},
		{0, 0, 0, time.Second, 8 * time.Second},
		{100 * ms, 100 * ms, 400 * ms, 100 * ms, 400 * ms},
		{100 * ms, 10 * ms, 50 * ms, 100 * ms, 100 * ms},
		{100 * ms, 0, 0, 100 * ms, 8 * time.Second},
		{-1, 0, time.Second, time.Millisecond, time.Second},
	} {
		f := New(epoch)
		if c.floor != 0 {
			f.SetFloor(c.floor)
		}
		f.SetBackoff(c.least, c.most)
		f.Enable(epoch)
		f.ConnectFailed(epoch)
		if got := f.Stats(epoch).Backoff; got != c.wantLeast {
			t.Errorf("%+v: the least backoff is %v", c, got)
		}
		for range 20 {
			f.ConnectFailed(epoch)
		}
		if got := f.Stats(epoch).Backoff; got != c.wantMost {
			t.Errorf("%+v: the most backoff is %v", c, got)
		}
		f.Connecting(epoch)
		if d, _ := f.Timeout(epoch); d < time.Second {
			t.Errorf("%+v: an attempt is given %v", c, d)
		}
	}
}

func TestNamesAreOpenVSwitchs(t *testing.T) {
	for s, want := range []string{"VOID", "BACKOFF", "CONNECTING", "ACTIVE", "IDLE", "RECONNECT", "LISTENING", "State(7)"} {
		if got := State(s).String(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// FuzzFSM plays random events: the machine never panics, its backoff stays
// within bounds, its counts add up, and its deadline is never in the past for
// a state that Run would leave alone.
func FuzzFSM(f *testing.F) {
	events := strings.Fields("enable disable force connecting connected failed disconnected activity received " +
		"listening listen-error passive active always-receives tries free-tries most-backoff least-backoff probe run")
	f.Add([]byte{0, 19, 4, 200, 19, 7, 6, 19})
	f.Fuzz(func(t *testing.T, data []byte) {
		m, now := New(epoch), epoch
		for _, b := range data {
			now = now.Add(time.Duration(b) * 10 * time.Millisecond)
			if name := events[int(b)%len(events)]; name == "run" {
				m.Run(now)
			} else {
				event(m, name, int(b), now)
			}
			s := m.Stats(now)
			if s.Backoff < 0 || s.Backoff > m.maxBackoff && s.State == Backoff && !m.passive && s.Backoff > 20*time.Second {
				t.Fatalf("backoff %v", s.Backoff)
			}
			if s.SuccessfulConns > s.AttemptedConnections {
				t.Fatalf("%d of %d", s.SuccessfulConns, s.AttemptedConnections)
			}
			if s.Connected != (s.Seqno%2 == 1) {
				t.Fatalf("seqno %d, connected %v", s.Seqno, s.Connected)
			}
		}
	})
}
