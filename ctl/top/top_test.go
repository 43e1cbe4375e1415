package top

import (
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstepd/lockstep/ctl/internal/golden"
	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

// same compares a screen with a file of testdata.
func same(t *testing.T, name, screen string) {
	t.Helper()
	golden.Check(t, name, screen+"\n")
}

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var (
	narrow = render.Options{Width: 80, Height: 24, Now: now}
	wide   = render.Options{Width: 200, Height: 50, Now: now}
)

// status is a cluster of so many devices and peers.
func status(devices, peers int) api.Status {
	s := api.Status{
		Node: "alpha", Version: "0.1.0", Revision: 9, TickTimeMS: 8000, MaxPingCount: 4, Health: "degraded",
		Problems: []api.Problem{{Subject: "node n02", What: "down for 26 s: no ping was answered"}, {Subject: "device r001", What: "resyncing"}},
	}
	for i := range peers {
		n := api.Node{Name: fmt.Sprintf("n%02d", i+1), ID: i + 1, State: "up", Data: "connected", Meta: "connected",
			Address: fmt.Sprintf("192.0.2.%d:7799", i+2), Since: now.Add(-time.Hour), RTTUS: int64(150 + i)}
		if i == 1 {
			n.State, n.Data, n.Meta, n.Since, n.LastError = "down", "connecting", "down", now.Add(-26*time.Second), "i/o timeout"
		}
		s.Nodes = append(s.Nodes, n)
	}
	for i := range devices {
		d := api.Device{Name: fmt.Sprintf("r%03d", i), Size: 1 << 30, Role: "primary", Disk: "UpToDate", Quorum: true, Open: 1,
			Peers: []api.DevicePeer{{Node: "n01", Role: "secondary", Disk: "UpToDate", Replication: "Established"}}}
		if i == 1 {
			d.Peers[0] = api.DevicePeer{Node: "n01", Role: "secondary", Disk: "Inconsistent", Replication: "SyncSource", OutOfSync: 600 << 20,
				Resync: &api.Resync{Done: 424 << 20, Total: 1 << 30, Rate: 80 << 20, ETAS: 7}}
		}
		if i == 2 {
			d.Suspended, d.Quorum = true, false
		}
		s.Devices = append(s.Devices, d)
	}
	return s
}

// detail is a device with counters so far.
func detail(name string, writes, reads uint64, p99 int64) api.DeviceDetail {
	return api.DeviceDetail{Device: api.Device{Name: name}, Writes: writes, Reads: reads,
		WriteBytes: writes * 4096, ReadBytes: reads * 4096, ReadP50US: p99 / 8, ReadP99US: p99 / 2, WriteP50US: p99 / 4, WriteP99US: p99, InFlight: 3}
}

// busy is a model that has seen two looks at its devices.
func busy(devices, peers int) *Model {
	var m Model
	for look := range uint64(2) {
		m.Status(status(devices, peers))
		for i := range devices {
			m.Detail(detail(fmt.Sprintf("r%03d", i), look*uint64(1000*i), look*uint64(500*(devices-i)), int64(200+100*i)), now.Add(time.Duration(look)*time.Second))
		}
	}
	return &m
}

func TestScreens(t *testing.T) {
	for name, o := range map[string]render.Options{"80x24": narrow, "200x50": wide} {
		t.Run(name, func(t *testing.T) {
			same(t, "few-"+name, busy(3, 2).View(o))
			same(t, "many-"+name, busy(60, 31).View(o))
			same(t, "empty-"+name, new(Model).View(o))
			var fresh Model
			fresh.Status(status(3, 2))
			same(t, "fresh-"+name, fresh.View(o))
			m := busy(60, 2)
			press(m, o, "s", "s", PageDown)
			same(t, "writes-page2-"+name, m.View(o))
			press(m, o, "?")
			same(t, "help-"+name, m.View(o))
			press(m, o, "x", "/", "r", "0", "1")
			same(t, "typing-"+name, m.View(o))
			press(m, o, Enter)
			m.Note("cannot reach lockstepd: it does not run")
			same(t, "note-"+name, m.View(o))
			o.Color = true
			same(t, "few-color-"+name, busy(3, 2).View(o))
		})
	}
}

func press(m *Model, o render.Options, keys ...string) (quit bool) {
	for _, k := range keys {
		quit = m.Key(k, o)
	}
	return quit
}

// TestScreensFitExactly holds for odd sizes too: as many lines as the terminal
// has, none wider.
func TestScreensFitExactly(t *testing.T) {
	for _, w := range []int{20, 40, 60, 79, 80, 81, 132, 250} {
		for _, h := range []int{5, 6, 10, 24, 60} {
			for _, m := range []*Model{new(Model), busy(3, 2), busy(100, 31)} {
				lines := strings.Split(m.View(render.Options{Width: w, Height: h, Now: now}), "\n")
				if len(lines) != h {
					t.Errorf("%dx%d: %d lines", w, h, len(lines))
				}
				for _, l := range lines {
					if n := utf8.RuneCountInString(l); n > w && w >= 60 {
						t.Errorf("%dx%d: a line of %d: %s", w, h, n, l)
					}
				}
			}
		}
	}
}

func names(m *Model, o render.Options) string { return strings.Join(m.Visible(o), " ") }

func TestOrders(t *testing.T) {
	o := render.Options{Width: 80, Height: 16, Now: now}
	m := busy(9, 0)
	for _, want := range []string{"r000 r001", "r002 r001", "r008 r007", "r000 r001", "r008 r007", "r001 r000", "r000 r001"} {
		if got := names(m, o); !strings.HasPrefix(got, want) {
			t.Errorf("by %s: %s; want it to begin with %s", orderNames[m.order], got, want)
		}
		press(m, o, "s")
	}
	m = busy(9, 0)
	press(m, o, "r")
	if got := names(m, o); !strings.HasPrefix(got, "r008 r007") {
		t.Errorf("reversed: %s", got)
	}
}

func TestScrollingStaysWithinTheDevices(t *testing.T) {
	m := busy(30, 0)
	o := narrow
	for _, c := range []struct{ key, first, last string }{ // r001 takes two lines
		{Up, "r000", "r017"}, {Down, "r001", "r018"}, {"k", "r000", "r017"}, {"j", "r001", "r018"}, {PageUp, "r000", "r017"},
		{PageDown, "r011", "r029"}, {End, "r011", "r029"}, {Down, "r011", "r029"}, {PageDown, "r011", "r029"},
		{Home, "r000", "r017"}, {"G", "r011", "r029"}, {"k", "r010", "r028"}, {"g", "r000", "r017"},
	} {
		press(m, o, c.key)
		got := m.Visible(o)
		if got[0] != c.first || got[len(got)-1] != c.last {
			t.Errorf("after %s: %s to %s, want %s to %s", c.key, got[0], got[len(got)-1], c.first, c.last)
		}
	}
}

func TestFilter(t *testing.T) {
	m := busy(30, 0)
	press(m, narrow, "/", "0", "7", "x", Backspace)
	if got := names(m, narrow); got != "r007" {
		t.Errorf("filtered by 07: %s", got)
	}
	if press(m, narrow, "q"); m.filter != "07q" {
		t.Errorf("a q in the filter: %q", m.filter)
	}
	if got := names(m, narrow); got != "" {
		t.Errorf("filtered by 07q: %s", got)
	}
	if press(m, narrow, Escape); len(m.Visible(narrow)) < 2 {
		t.Error("Esc does not drop the filter")
	}
	press(m, narrow, "/", Backspace, "\x00", "ab", "7", Enter, "s")
	if m.filter != "7" || m.typing {
		t.Errorf("filter %q, typing %v", m.filter, m.typing)
	}
	if press(m, narrow, Escape); m.filter != "" {
		t.Errorf("Esc outside leaves filter %q", m.filter)
	}
}

func TestQuitting(t *testing.T) {
	for _, c := range []struct {
		keys []string
		quit bool
	}{
		{[]string{"q"}, true}, {[]string{Interrupt}, true}, {[]string{"/", Interrupt}, true}, {[]string{"?", Interrupt}, true},
		{[]string{"/", "q"}, false}, {[]string{"?", "q"}, false}, {[]string{"?", "q", "q"}, true}, {[]string{"x"}, false},
	} {
		if got := press(busy(3, 1), narrow, c.keys...); got != c.quit {
			t.Errorf("%q quits: %v, want %v", c.keys, got, c.quit)
		}
	}
}

// TestRates come from two looks; counters that went back begin anew, devices
// that went away are forgotten.
func TestRates(t *testing.T) {
	var m Model
	m.Status(status(1, 0))
	m.Detail(detail("r000", 1000, 500, 100), now)
	if m.figures["r000"].known {
		t.Error("rates are known after one look")
	}
	m.Detail(detail("r000", 3000, 1500, 100), now.Add(2*time.Second))
	f := m.figures["r000"]
	if !f.known || f.write != 1000*4096 || f.read != 500*4096 || f.ops != 1500 {
		t.Errorf("got %+v", f)
	}
	m.Detail(detail("r000", 10, 0, 100), now.Add(3*time.Second))
	if f := m.figures["r000"]; f.write != 10*4096 || f.read != 0 {
		t.Errorf("after a restart of the daemon: %+v", f)
	}
	m.Detail(detail("r000", 20, 0, 100), now.Add(3*time.Second))
	if m.figures["r000"].known {
		t.Error("two looks at one time make a rate")
	}
	m.Status(status(0, 0))
	if len(m.figures) != 0 {
		t.Error("figures of a device that is gone are kept")
	}
}

func TestKeys(t *testing.T) {
	for _, c := range []struct {
		in   string
		want []string
	}{
		{"q", []string{"q"}}, {"qs/", []string{"q", "s", "/"}}, {"\x1b", []string{Escape}}, {"\x1b[A\x1b[B", []string{Up, Down}},
		{"\x1bOA", []string{Up}}, {"\x1b[5~\x1b[6~", []string{PageUp, PageDown}}, {"\x1b[H\x1b[4~", []string{Home, End}},
		{"\r\n\x7f\b\x03", []string{Enter, Enter, Backspace, Backspace, Interrupt}},
		{"\x1b[1;5Aq", []string{"q"}}, {"\x1b[", nil}, {"\x1b[12", nil}, {"é", []string{"é"}}, {"\xff\x01q", []string{"q"}},
		{"\x1bq", []string{Escape, "q"}}, {"", nil},
	} {
		if diff := cmp.Diff(c.want, Keys(c.in)); diff != "" {
			t.Errorf("%q (-want +got):\n%s", c.in, diff)
		}
	}
}

func FuzzKeys(f *testing.F) {
	f.Add("\x1b[A\x1b[1;5Aq\x1bO\xff")
	f.Fuzz(func(t *testing.T, in string) {
		for _, k := range Keys(in) {
			if k == "" || len(k) > utf8.UTFMax && k != Interrupt && k != Backspace && k != Enter {
				t.Errorf("key %q", k)
			}
			busy(3, 1).Key(k, narrow)
		}
	})
}
