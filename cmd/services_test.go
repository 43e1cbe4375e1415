package cmd_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
)

// TestS2TheDaemonStopsInTheReverse: every service of a real daemon, those that
// the configuration has brought later included, stops in the exact reverse of
// the order in which they started, each with its line in the log.
func TestS2TheDaemonStopsInTheReverse(t *testing.T) {
	t.Parallel()
	n := startConfigured(t, "")
	n.add(t, "\n[[device]]\nname = \"r1\"\nsize = \"1MiB\"\n\n[metrics]\nlisten = \""+n.c.IP(0)+":9799\"\n")
	n.untilKey(t, "services.metrics.state", "running")
	n.untilKey(t, "services.nbd/r1/unix.state", "running")
	p := n.Proc()
	if err := n.Term(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	var started, stopped []string
	for _, m := range regexp.MustCompile(`service (started|stopped) service=(\S+)`).FindAllStringSubmatch(p.LogTail(10000), -1) {
		if m[1] == "started" {
			started = append(started, m[2])
		} else {
			stopped = append(stopped, m[2])
		}
	}
	slices.Reverse(stopped)
	if len(started) < 15 || !slices.Equal(started, stopped) {
		t.Errorf("started %q\nstopped, from the last to the first, %q", started, stopped)
	}
}

// TestS4MembersJoinLeaveAndReturnInOrder: whatever befalls a peer, in the middle
// of a resync too, what every device tells of it lies between its nodeup and the
// next: no agreement before, none left over after.
func TestS4MembersJoinLeaveAndReturnInOrder(t *testing.T) {
	t.Parallel()
	cfg := quick()
	cfg.Devices[0].ResyncRate = "1MiB/s"
	cfg.Devices = append(cfg.Devices, cluster.Device{Name: "r1", Size: "1MiB", Quorum: "majority"})
	c := start(t, cfg)
	alpha, beta := c.Node("alpha"), c.Node("beta")
	conn := open(t, alpha)
	for round := range 3 {
		beta.Kill9()
		until(t, alpha, "beta is down", cluster.PeerDown("beta"))
		if _, err := conn.WriteAt(make([]byte, 8<<20), 0); err != nil {
			t.Fatal(err)
		}
		launch(t, beta)
		until(t, alpha, "beta resyncs", func(s cluster.Status) bool {
			p := s.Device("r0").Peer("beta")
			return p.Resync != nil || p.Disk == "UpToDate" && round > 0
		})
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	inSync(t, c, "r0")
	if out, err := alpha.Lockstepctl(within(t, patience), "tick", "set", "3"); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	up, agreed, ups, downs := false, map[string]bool{}, 0, 0
	for _, e := range eventsOf(t, alpha, "tick-time") {
		if e.Node != "beta" {
			continue
		}
		what := fmt.Sprintf("event %d, %s of %q: %s", e.Seq, e.Type, e.Device, e.Text)
		switch e.Type {
		case "nodeup":
			if up || len(agreed) > 0 {
				t.Errorf("%s, while it is up: %t, and %v agree with it", what, up, agreed)
			}
			up = true
			ups++
		case "nodedown":
			if !up {
				t.Errorf("%s, and it was not up", what)
			}
			up = false
			downs++
		case "replication":
			switch {
			case strings.HasSuffix(e.Text, "-> Off"):
				delete(agreed, e.Device)
			case !up:
				t.Errorf("%s, and it is not up", what)
			default:
				agreed[e.Device] = true
			}
		}
	}
	if ups != 4 || downs != 3 || len(agreed) != 2 {
		t.Errorf("up %d times, down %d times, in the end %v agree", ups, downs, agreed)
	}
}

// told is an event as it is told to subscribers.
type told struct {
	Seq                      uint64
	Type, Node, Device, Text string
}

// eventsOf are all events of a node from its start to the first of a type.
func eventsOf(t *testing.T, n *cluster.Node, last string) (out []told) {
	t.Helper()
	conn, err := net.Dial("unix", n.Socket())
	check(t, err)
	defer conn.Close()
	deadline, _ := within(t, patience).Deadline()
	check(t, conn.SetDeadline(deadline))
	fmt.Fprintf(conn, `{"jsonrpc":"2.0","id":1,"method":"events/subscribe","params":{"after":%d}}`+"\n", uint64(math.MaxUint64))
	dec := json.NewDecoder(conn)
	for {
		var m struct {
			Method string
			Params told
		}
		check(t, dec.Decode(&m))
		if m.Method == "lost" {
			t.Fatal("events were lost")
		}
		if m.Method == "event" {
			out = append(out, m.Params)
		}
		if m.Params.Type == last {
			return out
		}
	}
}

// TestS12OutputIsStableAndExitCodesTell: what has not changed is shown by the
// same bytes, to people and to programs; how it went is in the exit code.
func TestS12OutputIsStableAndExitCodesTell(t *testing.T) {
	t.Parallel()
	n := startConfigured(t, "")
	still, last := 0, ""
	if !poll(within(t, patience), func() bool { // the start is over
		now := n.must(t, nil, "-f", "json", "status")
		if still++; now != last {
			still, last = 0, now
		}
		return still == 10
	}) {
		t.Fatal("the status never stands still")
	}
	for _, args := range [][]string{
		{"status"}, {"-f", "json", "status"}, {"-f", "json", "--pretty", "status"}, {"-f", "json", "service", "list"}, {"-f", "json", "config", "show"},
		{"config", "show"}, {"-f", "json", "device", "list"}, {"cmap", "dump", "config."}, {"-f", "json", "cmap", "dump", "devices."}, {"list-commands"},
	} {
		first := n.must(t, nil, args...)
		for range 4 {
			if again := n.must(t, nil, args...); again != first {
				t.Errorf("%q: first\n%s\nand then\n%s", args, first, again)
			}
		}
		if slices.Contains(args, "json") && !json.Valid([]byte(first)) {
			t.Errorf("%q is no JSON:\n%s", args, first)
		}
	}
	n.edit(t, "max_ping_count = 4", "max_ping_count = 1")
	n.untilSaid(t, "max_ping_count")
	for line, want := range map[string]int{
		"status": 0, "status --check": 5, "status nothing": 1, "device promote nothing": 1, "config reload": 1, "config check": 1,
		"statsu": 2, "cmap get": 2, "service stop messenger": 1, "cmap get user.nothing": 1,
	} {
		if out, got := n.ctl(t, strings.Fields(line)...); got != want {
			t.Errorf("%s: exit %d, not %d:\n%s", line, got, want, out)
		}
	}
	n.edit(t, "max_ping_count = 1", "max_ping_count = 4")
	n.untilKey(t, "runtime.config.error", "")
	if out, got := n.ctl(t, "status", "--check"); got != 0 {
		t.Errorf("mended: exit %d\n%s", got, out)
	}
	if err := n.Term(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	if out, got := n.ctl(t, "status"); got != 3 {
		t.Errorf("nobody runs: exit %d\n%s", got, out)
	}
}

// TestHandlersRunProgramsWithinTheirLimits: a real program is told of its event
// in variables and on standard input, without a shell between; one that fails is
// run again, one that takes too long is ended with all that it started; how each
// ended is in service show, in the health and in the log.
func TestHandlersRunProgramsWithinTheirLimits(t *testing.T) {
	t.Parallel()
	n := layOutConfigured(t, "")
	at := func(name string) string { return filepath.Join(n.c.Dir, name) }
	handler := func(event, script, more string) string {
		return fmt.Sprintf("\n[[handler]]\nevent = %q\ncommand = [\"/bin/sh\", \"-c\", %q, \"a  b;$(x)\"]\n%s\n", event, script, more)
	}
	n.add(t, handler("config", "echo \"$0 $LOCKSTEP_EVENT $LOCKSTEP_DATA_REVISION $(wc -l)\" >> "+at("told"), "")+
		handler("config", "echo x >> "+at("failed")+"; exit 3", "retries = 1")+
		handler("config", "echo $$ > "+at("slow")+"; sleep 1000 & wait", "timeout = \"1s\"")+
		handler("config", "echo never >> "+at("filtered"), "device = [\"r0\"]"))
	launch(t, n.Node)
	n.must(t, nil, "cmap", "set", "config.cluster.max_ping_count", "str", "6")
	shows := func(lines ...string) {
		t.Helper()
		var out string
		if !poll(within(t, patience), func() bool {
			out, _ = n.ctl(t, "service", "show", "handlers")
			out = regexp.MustCompile(` +`).ReplaceAllString(out, " ")
			return !slices.ContainsFunc(lines, func(l string) bool { return !strings.Contains(out, l) })
		}) {
			t.Fatalf("not %q in\n%s", lines, out)
		}
	}
	shows("handlers.1.succeeded 1", "handlers.1.last exit status 0", "handlers.2.failed 1", "handlers.2.retried 1", "handlers.2.last exit status 3",
		"handlers.3.failed 1", "handlers.3.last took longer than 1s", "handlers.4.succeeded 0", "handlers.4.failed 0")
	shows("health handler 2 (config) failed: exit status 3")
	for name, want := range map[string]string{"told": "a  b;$(x) config 2 1\n", "failed": "x\nx\n"} {
		if raw, err := os.ReadFile(at(name)); err != nil || string(raw) != want {
			t.Errorf("%s: %q, %v; not %q", name, raw, err, want)
		}
	}
	if _, err := os.Stat(at("filtered")); err == nil {
		t.Error("a handler of another device ran")
	}
	raw, err := os.ReadFile(at("slow"))
	check(t, err)
	var group int
	if _, err := fmt.Sscan(string(raw), &group); err != nil || group < 2 {
		t.Fatalf("%q, %v", raw, err)
	}
	if !poll(within(t, patience), func() bool { return errors.Is(syscall.Kill(-group, 0), syscall.ESRCH) }) {
		t.Error("what a slow handler started is still there")
	}
	if log := n.Proc().LogTail(1000); !strings.Contains(log, "handler failed") || !strings.Contains(log, "exit status 3") {
		t.Errorf("the log says nothing:\n%s", log)
	}
	n.must(t, []string{`lockstep_handler_results_total{command="/bin/sh",event="config",handler="2",result="failed"} 1`}, "metrics")
}
