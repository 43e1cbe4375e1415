package render

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstepd/lockstep/ctl/internal/golden"
	"github.com/lockstepd/lockstep/rpc/api"
)

// now is the time of every golden file.
var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return now.Add(-d) }

func nodes() []api.Node {
	return []api.Node{
		{Name: "beta", ID: 1, State: "up", Address: "192.0.2.2:7799", Data: "connected", Meta: "connected", Since: ago(3*time.Hour + 2*time.Minute), RTTUS: 180},
		{Name: "gamma", ID: 2, State: "up", Address: "192.0.2.3:7799", Data: "connected", Meta: "connected", Since: ago(12 * time.Second), RTTUS: 1240, MissedPings: 2},
		{Name: "delta", ID: 3, State: "down", Address: "[2001:db8:0:1::4]:7799", Data: "connecting", Meta: "down", Since: ago(26 * time.Hour), LastError: "dial tcp [2001:db8:0:1::4]:7799: connect: no route to host"},
	}
}

func devices() []api.Device {
	return []api.Device{
		{Name: "r0", Size: 1 << 30, Role: "primary", Disk: "UpToDate", Quorum: true, Open: 1, Peers: []api.DevicePeer{
			{Node: "beta", Role: "secondary", Disk: "UpToDate", Replication: "Established"},
			{Node: "gamma", Role: "secondary", Disk: "Inconsistent", Replication: "SyncSource", OutOfSync: 557 << 20,
				Resync: &api.Resync{Done: 467 << 20, Total: 1 << 30, Rate: 52 << 20, ETAS: 200}},
			{Node: "delta", Role: "unknown", Disk: "Outdated", Replication: "Off", OutOfSync: 12 << 10},
		}},
		{Name: "home", Size: 20 << 40, Role: "secondary", Disk: "UpToDate", Quorum: true, Peers: []api.DevicePeer{
			{Node: "beta", Role: "primary", Disk: "UpToDate", Replication: "Established"},
		}},
		{Name: "a-device-with-quite-a-long-name-as-people-have", Size: 4096, Role: "secondary", Disk: "Outdated", Suspended: true, Peers: []api.DevicePeer{
			{Node: "delta", Role: "unknown", Disk: "Unknown", Replication: "Off"},
		}},
	}
}

func status() api.Status {
	return api.Status{
		Node: "alpha", ID: 0, Version: "0.1.0", Revision: 1789, TickTimeMS: 8000, MaxPingCount: 4,
		Nodes: nodes(), Devices: devices(), Health: "failed", ConfigRevision: 3,
		Problems: []api.Problem{
			{Subject: "device a-device-with-quite-a-long-name-as-people-have", What: "I/O is suspended: 1 of 2 disks in reach, 2 needed", Do: "lockstepctl device why a-device-with-quite-a-long-name-as-people-have", Failed: true},
			{Subject: "node delta", What: "down: no route to host", Do: "lockstepctl node why delta"},
			{Subject: "device r0", What: "gamma is being resynced, 557.0 MiB out of sync", Do: "lockstepctl device wait r0 synced"},
			{Subject: "configuration", What: "not applied: /etc/lockstep/lockstep.toml:14:8: cluster.tick_time: found \"8\"; a time such as \"8s\" is allowed; /etc/lockstep/lockstep.toml:15:1: cluster.colour: unknown key",
				Do: "mend the file, then: lockstepctl config check; lockstepctl config reload"},
		},
		ConfigError: "/etc/lockstep/lockstep.toml:14:8: cluster.tick_time: found \"8\"; a time such as \"8s\" is allowed\n/etc/lockstep/lockstep.toml:15:1: cluster.colour: unknown key",
		Overrides:   []api.ConfigOverride{{Key: "cluster.tick_time", Value: "20s", File: "8s"}},
	}
}

func calm() api.Status {
	s := status()
	s.Health, s.Problems, s.ConfigError, s.Overrides = "ok", nil, "", nil
	s.Nodes, s.Devices = s.Nodes[:1], s.Devices[1:2]
	return s
}

// split is a device that both nodes wrote to without each other, and one that
// is at the wrong peer.
func split() api.Status {
	const why = "both sides were written since they were last in sync"
	s := calm()
	s.Health = "degraded"
	s.Problems = []api.Problem{{Subject: "device home", What: "split brain with beta: " + why, Do: "lockstepctl device why home"}}
	off := api.DevicePeer{Node: "beta", Role: "unknown", Disk: "Unknown", Replication: "Off", OutOfSync: 4 << 20, Refused: why}
	other := s.Devices[0]
	other.Name, other.Peers = "pub", []api.DevicePeer{off}
	off.SplitBrain = true
	s.Devices[0].Peers = []api.DevicePeer{off}
	s.Devices = append(s.Devices, other)
	return s
}

func splitDetail() api.DeviceDetail {
	return api.DeviceDetail{Device: split().Devices[0], Protocol: "A", QuorumPolicy: "off", OnNoQuorum: "suspend-io", Backing: "/dev/vg0/home",
		CurrentGen: "9A3C5E7F01B2D4C6", ALExtentBytes: 4 << 20, InFlight: 1}
}

func many(n int) api.Status {
	s := calm()
	s.Health = "degraded"
	for i := range n {
		d := s.Devices[0]
		d.Name = fmt.Sprintf("disk%03d", i)
		s.Devices = append(s.Devices, d)
	}
	s.Devices = append(s.Devices, devices()[0])
	return s
}

func nodeDetail(i int) api.NodeDetail {
	d := api.NodeDetail{
		Node: nodes()[i], Incarnation: "5f0c11e2a90b7d44", Session: "00000000000001a7", Protocol: 1, LastFrameMS: 240,
		TickTimeMS: 8000, MaxPingCount: 4, SentBytes: 12 << 30, RecvBytes: 93 << 20, SentFrames: 3_400_120, RecvFrames: 41_000,
		QueuedBytes: 128 << 10, Connects: 3, BackoffMS: 8000, RetryInMS: -1,
	}
	if d.State != "up" {
		d.LastFrameMS, d.RetryInMS, d.Incarnation, d.Session, d.TickTimeMS, d.MaxPingCount = -1, 5300, "", "", 0, 0
	}
	return d
}

func deviceDetail() api.DeviceDetail {
	return api.DeviceDetail{
		Device: devices()[0], Protocol: "C", QuorumPolicy: "majority", OnNoQuorum: "suspend-io", Backing: "/var/lib/lockstep/r0.img",
		NBD:        []string{"nbd+unix:///r0?socket=/run/lockstep/r0.nbd", "nbd://127.0.0.1:10809/r0"},
		CurrentGen: "9A3C5E7F01B2D4C6", BitmapGens: []api.GenRef{{Node: "beta", Gen: "0000000000000000"}, {Node: "delta", Gen: "77AA00BB11CC22DD"}},
		ALExtents: 61, ALExtentBytes: 4 << 20, CrashCostBytes: 244 << 20, InFlight: 12,
		Reads: 1_203_000, Writes: 81_000, ReadBytes: 4 << 30, WriteBytes: 331 << 20, Flushes: 812, ReadP50US: 85, ReadP99US: 640, WriteP50US: 210, WriteP99US: 1900,
	}
}

func whyDevice() api.Why {
	return api.Why{
		Subject: "device r0", State: "suspended", Since: ago(95 * time.Second),
		Because: []string{"it has no quorum: 1 of 3 replicas can be reached, and a majority is 2", "beta is down since 11:58:25: no ping was answered for 8 s"},
		Next:    []string{"quorum comes back, and requests go on, when beta or gamma can be reached", "on_no_quorum = \"io-error\" would fail requests instead of holding them"},
	}
}

func services() []api.Service {
	return []api.Service{
		{Name: "config", Version: 1, State: "running", Since: ago(time.Hour), Health: "ok"},
		{Name: "cluster", Version: 1, State: "running", Since: ago(time.Hour), Health: "ok", Needs: []string{"config@1", "messenger@1", "events@1"}},
		{Name: "metrics", Version: 2, State: "failed", Since: ago(time.Minute), Health: "listen tcp 127.0.0.1:9799: bind: address already in use", Restarts: 4, Needs: []string{"config"}},
		{Name: "handlers", Version: 1, State: "stopped", Since: ago(time.Minute), Health: "ok"},
	}
}

func changes() []api.ConfigChange {
	return []api.ConfigChange{
		{Key: "cluster.tick_time", Old: "8s", New: "20s", How: "live", Where: "lockstep.toml:4:1"},
		{Key: "device.r0.size", Old: "2GiB", New: "1GiB", How: "refused", Why: "a device cannot shrink while it is open", Where: "lockstep.toml:31:1"},
		{Key: "metrics.listen", New: "127.0.0.1:9799", How: "restarts-service", Where: "lockstep.toml:52:1"},
	}
}

func events() []api.Event {
	at := time.Date(2026, 3, 1, 11, 59, 58, 120e6, time.UTC)
	return []api.Event{
		{Seq: 1, Time: at, Type: "nodedown", Node: "beta", Text: "no ping was answered for 8 s"},
		{Seq: 2, Time: at.Add(time.Second), Type: "replication", Node: "beta", Device: "r0", Text: "Established -> Off"},
		{Seq: 3, Time: at.Add(2 * time.Second), Type: "config", Text: "revision 4 applied\nby root\x1b[2J"},
	}
}

func cmapEntries() []api.CmapEntry {
	return []api.CmapEntry{
		{Key: "user.site", Type: "str", Value: "north"}, {Key: "nodes.beta.rtt_us", Type: "u64", Value: float64(180), RO: true},
		{Key: "cluster.load", Type: "dbl", Value: 0.25},
	}
}

// pictures are all that is rendered, by name.
func pictures() map[string]func(Options) string {
	return map[string]func(Options) string{
		"status":       func(o Options) string { return Status(o, status()) },
		"status-calm":  func(o Options) string { return Status(o, calm()) },
		"status-split": func(o Options) string { return Status(o, split()) },
		"status-many":  func(o Options) string { o.Height = 24; return Status(o, many(40)) },
		"status-check": func(o Options) string { return Check(o, calm()) + "\n" + Check(o, status()) },
		"nodes":        func(o Options) string { return Nodes(o, nodes()) },
		"node-list":    func(o Options) string { return NodeList(o, nodes()) },
		"node-up":      func(o Options) string { return Node(o, nodeDetail(0)) },
		"node-down":    func(o Options) string { return Node(o, nodeDetail(2)) },
		"devices":      func(o Options) string { return Devices(o, devices()) },
		"device":       func(o Options) string { return Device(o, deviceDetail()) },
		"device-split": func(o Options) string { return Devices(o, split().Devices) + "\n" + Device(o, splitDetail()) },
		"why":          func(o Options) string { return Why(o, whyDevice()) },
		"services":     func(o Options) string { return Services(o, services()) },
		"service":      func(o Options) string { return Service(o, services()[2]) },
		"config-diff":  func(o Options) string { return Changes(o, changes()) },
		"events":       func(o Options) string { return each(o, Event, events()) },
		"cmap":         func(o Options) string { return Cmap(o, cmapEntries()) },
		"cmap-changes": func(o Options) string { return each(o, CmapChange, cmapChanges()) },
		"tick": func(o Options) string {
			return Tick(o, api.Tick{TickTimeMS: 8000, MaxPingCount: 4, TargetMS: 20000, RemainingMS: 42000})
		},
		"tick-set":  func(o Options) string { return each(o, TickSet, tickSets()) },
		"handshake": func(o Options) string { return Handshake(o, handshake()) },
		"answer":    func(o Options) string { return each(o, Answer, rawAnswers()) },
		"progress":  func(o Options) string { return progressLines(o) },
		"empty": func(o Options) string {
			return Nodes(o, nil) + Devices(o, nil) + Services(o, nil) + Changes(o, nil) + Cmap(o, nil)
		},
	}
}

func each[T any](o Options, f func(Options, T) string, list []T) string {
	var b strings.Builder
	for _, v := range list {
		b.WriteString(f(o, v))
	}
	return b.String()
}

func cmapChanges() []api.CmapChange {
	e := func(v any) *api.CmapEntry { return &api.CmapEntry{Key: "k", Type: "str", Value: v} }
	return []api.CmapChange{
		{Key: "nodes.beta.state", Op: "modified", Old: e("up"), New: e("down")},
		{Key: "user.site", Op: "added", New: e("north")}, {Key: "user.old", Op: "deleted", Old: e("south")},
	}
}

func tickSets() []api.TickSet {
	return []api.TickSet{{Result: "unchanged", TargetMS: 8000}, {Result: "change_initiated", TargetMS: 500}, {Result: "ongoing_change_to", TargetMS: 200000}, {Result: "else"}}
}

func handshake() api.Handshake {
	return api.Handshake{Device: "r0", Node: "beta", Action: "become sync target", Text: "beta's data has this node's current generation in its history, so it is newer: 12.0 MiB would be fetched from it"}
}

func rawAnswers() []json.RawMessage {
	return []json.RawMessage{
		json.RawMessage(`"r0 is primary now"`), json.RawMessage(`null`), json.RawMessage(`{"text":"done"}`), json.RawMessage(`7`), json.RawMessage(`[]`),
		json.RawMessage(`["a","b\u001b"]`), json.RawMessage(`{"b":true,"a":{"y":2.5,"x":[1,2],"z":[]},"list":[{"argv":["/bin/sh","<&>"],"n":1},{"n":2}]}`),
		json.RawMessage(`[{"name":"x","n":1},{"name":"yy","m":"z"}]`), json.RawMessage(`not json`),
	}
}

func progressLines(o Options) string {
	var b strings.Builder
	d := devices()[0]
	two := devices()[0]
	two.Peers[2].Resync = &api.Resync{Done: 0, Total: 12 << 10}
	for _, dev := range []api.Device{d, two, devices()[1], devices()[2], split().Devices[0]} {
		b.WriteString(DeviceProgress(o.Width, dev) + "\n")
	}
	for _, r := range []api.Resync{{}, {Total: 100}, {Done: 99999, Total: 100000, Rate: 1, ETAS: 1}, {Done: 5, Total: 4}, {Done: 1, Total: 1 << 62, Rate: 1 << 40, ETAS: 1 << 62}} {
		b.WriteString(Progress(o.Width, r) + "\n")
	}
	return b.String()
}

// TestGolden renders everything for narrow, wide and no terminals, with colour
// and without.
func TestGolden(t *testing.T) {
	looks := map[string]Options{
		"80":        {Width: 80, Height: 24, Now: now},
		"200":       {Width: 200, Height: 50, Now: now},
		"80-color":  {Width: 80, Height: 24, Now: now, Color: true},
		"200-color": {Width: 200, Height: 50, Now: now, Color: true},
		"pipe":      {Now: now},
	}
	for name, picture := range pictures() {
		for look, o := range looks {
			t.Run(name+"-"+look, func(t *testing.T) { golden.Check(t, name+"-"+look, picture(o)) })
		}
	}
}

// TestNothingIsWiderThanTheTerminal holds for every picture and many widths,
// but for what has no table: event and cmap lines are left to the terminal.
func TestNothingIsWiderThanTheTerminal(t *testing.T) {
	free := map[string]bool{"events": true, "cmap": true, "cmap-changes": true, "answer": true, "tick-set": true}
	for name, picture := range pictures() {
		if free[name] {
			continue
		}
		for _, w := range []int{60, 72, 80, 100, 132, 200} {
			for line := range strings.Lines(picture(Options{Width: w, Height: 24, Now: now})) {
				if n := width(strings.TrimSuffix(line, "\n")); n > w {
					t.Errorf("%s at %d columns has a line of %d:\n%s", name, w, n, line)
				}
			}
		}
	}
}

// TestColourIsAllThatColourChanges: without its escapes, a coloured picture is
// the plain one.
func TestColourIsAllThatColourChanges(t *testing.T) {
	for name, picture := range pictures() {
		plain := picture(Options{Width: 80, Height: 24, Now: now})
		colored := picture(Options{Width: 80, Height: 24, Now: now, Color: true})
		for _, c := range append(codes[:], "0") {
			colored = strings.ReplaceAll(colored, "\x1b["+c+"m", "")
		}
		if diff := cmp.Diff(plain, colored); diff != "" {
			t.Errorf("%s (-plain +coloured):\n%s", name, diff)
		}
		if strings.Contains(plain, "\x1b") {
			t.Errorf("%s has escapes without colour", name)
		}
	}
}
