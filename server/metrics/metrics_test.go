package metrics

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/service"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// full are sources that show every metric.
func full() Sources {
	return Sources{
		Version: "1.2.3",
		Nodes:   func() []messenger.NodeInfo { return []messenger.NodeInfo{{Name: "beta", State: "up", Connects: 3}} },
		Tick:    func() time.Duration { return 8 * time.Second },
		Devices: func() []device.Status {
			return []device.Status{{Name: "r0", Size: 1 << 30, Role: replication.Primary, Disk: replication.UpToDate,
				Peers: []device.PeerStatus{{Node: "beta", Resync: &device.Progress{Done: 5, Total: 10}}}}}
		},
		NBD: func() nbd.ServerStats {
			x := nbd.ExportStats{Export: "r0", Open: 1}
			x.Stats.Read.Latency[4], x.Stats.Read.Latency[7], x.Stats.Read.Nanos = 1, 1, 9000 // of 4 and of 7 µs
			return nbd.ServerStats{Exports: []nbd.ExportStats{x}, Connections: []nbd.ConnStats{{Export: "r0", Inflight: 2}}}
		},
		Commands: func() Commands {
			return Commands{Requests: 7, Each: map[string]Command{"status": {Requests: 7, Failures: 2, Took: 1500 * time.Millisecond}}}
		},
		Services: func() []service.Info { return []service.Info{{Name: "nbd", State: service.Running, Health: "ok"}} },
		Handlers: func() []events.HandlerStats {
			return []events.HandlerStats{{Event: "nodedown", Command: []string{"/bin/a"}}, {Event: "nodedown", Command: []string{"/bin/a"}}}
		},
		Events: func() uint64 { return 9 },
		Counts: func() map[events.Count]uint64 {
			return map[events.Count]uint64{{Type: events.QuorumLost, Device: "r0"}: 3, {Type: events.NodeDown, Node: "beta"}: 2}
		},
		Config: func() Config { return Config{Revision: 4, Applied: true} },
	}
}

func text(t *testing.T, s Sources) string {
	t.Helper()
	m, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	out, err := m.Text(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestEveryPartIsShown(t *testing.T) {
	out := text(t, full())
	for _, want := range []string{
		`lockstep_info{version="1.2.3"} 1`,
		`lockstep_node_up{node="beta"} 1`,
		`lockstep_tick_time_seconds 8`,
		`lockstep_link_queue_bytes{link="data",node="beta"} 0`,
		`lockstep_device_primary{device="r0"} 1`,
		`lockstep_device_disk_state{device="r0",state="UpToDate"} 1`,
		`lockstep_resync_done_bytes{device="r0",node="beta"} 5`,
		`lockstep_nbd_in_flight{device="r0"} 2`,
		`lockstep_nbd_request_seconds_bucket{command="read",device="r0",le="8e-06"} 2`,
		`lockstep_nbd_request_seconds_sum{command="read",device="r0"} 9e-06`,
		`lockstep_control_requests_total 7`,
		`lockstep_control_command_requests_total{command="status"} 7`,
		`lockstep_control_command_failures_total{command="status"} 2`,
		`lockstep_control_command_seconds_total{command="status"} 1.5`,
		`lockstep_device_events_total{device="r0",type="quorum-lost"} 3`,
		`lockstep_device_events_total{device="r0",type="resync-done"} 0`,
		`lockstep_node_events_total{node="beta",type="nodedown"} 2`,
		`lockstep_service_running{service="nbd"} 1`,
		`lockstep_handler_queue{command="/bin/a",event="nodedown",handler="2"} 0`,
		`lockstep_events_total 9`,
		`lockstep_config_revision 4`,
	} {
		if !strings.Contains(out, want+"\n") {
			t.Errorf("there is no %q in\n%s", want, out)
		}
	}
}

func TestWithoutSourcesThereIsNoError(t *testing.T) {
	if out := text(t, Sources{}); !strings.Contains(out, "lockstep_info") {
		t.Error(out)
	}
}

// described are our metrics with their types and help.
func described(t *testing.T) map[string]string {
	t.Helper()
	help, out := map[string]string{}, map[string]string{}
	for line := range strings.Lines(text(t, full())) {
		f := strings.SplitN(strings.TrimSpace(line), " ", 4)
		switch {
		case len(f) < 4 || !strings.HasPrefix(f[2], "lockstep_"):
		case f[1] == "HELP":
			help[f[2]] = f[3]
		case f[1] == "TYPE":
			out[f[2]] = f[3] + " | " + help[f[2]]
		}
	}
	return out
}

func TestMETRICSDescribesEveryNameAndNoOther(t *testing.T) {
	raw, err := os.ReadFile("METRICS.md")
	if err != nil {
		t.Fatal(err)
	}
	var want strings.Builder
	all := described(t)
	for _, name := range slices.Sorted(maps.Keys(all)) {
		want.WriteString("| `" + name + "` | " + all[name] + " |\n")
	}
	if _, table, _ := strings.Cut(string(raw), "|---|---|---|\n"); table != want.String() {
		t.Errorf("METRICS.md is not up to date; its table has to be\n%s", want.String())
	}
}

var suffix = regexp.MustCompile(`_(bucket|sum|count)$`)

// labelled are our metrics with the names of their labels.
func labelled(t *testing.T) map[string][]string {
	t.Helper()
	out := map[string][]string{}
	for line := range strings.Lines(text(t, full())) {
		if name, rest, ok := strings.Cut(line, "{"); ok && strings.HasPrefix(name, "lockstep_") {
			for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(rest, -1) {
				name := suffix.ReplaceAllString(name, "")
				out[name] = append(out[name], l[1])
			}
		}
	}
	return out
}

// labelsOf are the labels that an expression, or a legend, speaks of.
func labelsOf(text string) []string {
	var out []string
	for _, by := range regexp.MustCompile(`by \(([^)]*)\)`).FindAllStringSubmatch(text, -1) {
		out = append(out, strings.Split(by[1], ", ")...)
	}
	for _, l := range regexp.MustCompile(`(\w+)=~?"|{{(\w+)}}`).FindAllStringSubmatch(text, -1) {
		out = append(out, l[1]+l[2])
	}
	return out
}

func TestTheDashboardAsksForMetricsThatThereAre(t *testing.T) {
	raw, err := os.ReadFile("grafana.json")
	if err != nil {
		t.Fatal(err)
	}
	var board struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr, LegendFormat string }
		}
	}
	if err := json.Unmarshal(raw, &board); err != nil {
		t.Fatal(err)
	}
	all, labels, asked := described(t), labelled(t), 0
	for _, p := range board.Panels {
		if p.Title == "" || len(p.Targets) == 0 {
			t.Errorf("panel %q asks for nothing", p.Title)
		}
		for _, target := range p.Targets {
			names := regexp.MustCompile(`lockstep_\w+`).FindAllString(target.Expr, -1)
			asked += len(names)
			for _, n := range names {
				if all[n] == "" && all[suffix.ReplaceAllString(n, "")] == "" {
					t.Errorf("panel %q asks for %s, which there is not", p.Title, n)
				}
				for _, l := range labelsOf(target.Expr + target.LegendFormat) {
					if !slices.Contains(labels[suffix.ReplaceAllString(n, "")], l) && !slices.Contains([]string{"instance", "le"}, l) {
						t.Errorf("panel %q speaks of the label %s, which %s has not", p.Title, l, n)
					}
				}
			}
		}
	}
	if asked < len(board.Panels) {
		t.Errorf("%d panels ask for %d metrics", len(board.Panels), asked)
	}
}

func TestScrapesAreServedUntilTheEnd(t *testing.T) {
	m, err := New(full())
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { s <- m.Serve(ctx, l) }()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for path, want := range map[string]string{"/metrics": "lockstep_node_up", "/": "/metrics"} {
		resp, err := client.Get("http://" + l.Addr().String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s, %v", path, body, err)
		}
	}
	if got := m.Scrapes(); got != (Scrapes{All: 1}) || m.Health() != nil {
		t.Errorf("%+v, %v", got, m.Health())
	}
	cancel()
	if err := <-s; err != nil {
		t.Error(err)
	}
}

// TestAScrapeThatFailsIsTold, until one succeeds.
func TestAScrapeThatFailsIsTold(t *testing.T) {
	s := full()
	twice := true // two nodes of one name are two values of one metric
	s.Nodes = func() []messenger.NodeInfo {
		if twice {
			return []messenger.NodeInfo{{Name: "beta"}, {Name: "beta"}}
		}
		return nil
	}
	m, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Text(t.Context()); err == nil || m.Scrapes() != (Scrapes{All: 1, Failed: 1}) || !strings.Contains(fmt.Sprint(m.Health()), "the last scrape failed: error gathering metrics") {
		t.Errorf("%v, %+v, %v", err, m.Scrapes(), m.Health())
	}
	twice = false
	if _, err := m.Text(t.Context()); err != nil || m.Scrapes() != (Scrapes{All: 2, Failed: 1}) || m.Health() != nil {
		t.Errorf("%v, %+v, %v", err, m.Scrapes(), m.Health())
	}
}
