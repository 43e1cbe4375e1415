// Package top is the full-screen view as a model: keys and fresh figures go in,
// screens come out. It knows no terminal, no clock and no daemon.
package top

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lockstepd/lockstep/ctl/render"
	"github.com/lockstepd/lockstep/rpc/api"
)

// Model is the state of the view. The zero value is ready; a Model is used by
// one goroutine.
type Model struct {
	status  api.Status
	figures map[string]figures
	order   order
	reverse bool
	filter  string
	typing  bool
	help    bool
	first   int // of the devices shown
	note    string
}

// figures are what is measured of one device between two looks at it.
type figures struct {
	at     time.Time
	detail api.DeviceDetail
	known  bool // the rates are: there were two looks
	read   float64
	write  float64
	ops    float64
}

// order is what devices are sorted by.
type order int

const (
	byName order = iota
	byState
	byWrites
	byReads
	byLatency
	byOutOfSync
	orders // how many there are
)

var orderNames = [...]string{"name", "state", "writes", "reads", "latency", "out of sync"}

// Status takes a fresh status. Figures of devices that are gone are forgotten.
func (m *Model) Status(s api.Status) {
	m.status, m.note = s, ""
	names := make(map[string]bool, len(s.Devices))
	for _, d := range s.Devices {
		names[d.Name] = true
	}
	for name := range m.figures {
		if !names[name] {
			delete(m.figures, name)
		}
	}
}

// Detail takes a fresh look at one device, taken at a time.
func (m *Model) Detail(d api.DeviceDetail, at time.Time) {
	if m.figures == nil {
		m.figures = make(map[string]figures)
	}
	last, seen := m.figures[d.Name]
	f := figures{at: at, detail: d}
	if span := at.Sub(last.at).Seconds(); seen && span > 0 {
		f.known = true
		f.read = perSecond(last.detail.ReadBytes, d.ReadBytes, span)
		f.write = perSecond(last.detail.WriteBytes, d.WriteBytes, span)
		f.ops = perSecond(last.detail.Reads+last.detail.Writes, d.Reads+d.Writes, span)
	}
	m.figures[d.Name] = f
}

// perSecond is the rate of a counter; one that went back was started anew.
func perSecond(before, after uint64, span float64) float64 {
	if after < before {
		before = 0
	}
	return float64(after-before) / span
}

// Note shows a sentence at the foot until the next status comes.
func (m *Model) Note(s string) { m.note = s }

// Visible are the names of the devices on the screen: those whose details are
// worth asking for.
func (m *Model) Visible(o render.Options) []string {
	shown, _ := m.page(o)
	names := make([]string, len(shown))
	for i, d := range shown {
		names[i] = d.Name
	}
	return names
}

// View is the screen.
func (m *Model) View(o render.Options) string {
	shown, total := m.page(o)
	return render.Top(o, render.TopScreen{
		Status: m.status, Devices: shown, Hidden: m.first, Total: total,
		Sort: orderNames[m.order], Reverse: m.reverse, Filter: m.filter, Typing: m.typing,
		Note: m.note, Help: m.help,
	})
}

// page are the devices that fit the screen, and how many pass the filter.
func (m *Model) page(o render.Options) (shown []render.TopDevice, total int) {
	all := m.sorted()
	rows := render.TopRows(o, m.status)
	m.first = min(m.first, len(all))
	for m.first > 0 && fitting(all[m.first-1:], rows) == len(all)-m.first+1 {
		m.first-- // no empty lines below while there are devices above
	}
	if m.first == len(all) {
		m.first = max(len(all)-1, 0)
	}
	rest := all[m.first:]
	return rest[:max(fitting(rest, rows), min(len(rest), 1))], len(all)
}

// fitting is how many of the devices fit so many rows.
func fitting(devices []render.TopDevice, rows int) int {
	for i, d := range devices {
		if rows -= render.TopLines(d.Device); rows < 0 {
			return i
		}
	}
	return len(devices)
}

// sorted are the devices that pass the filter, in the order chosen; names
// decide between equals.
func (m *Model) sorted() []render.TopDevice {
	var list []render.TopDevice
	for _, d := range m.status.Devices {
		if strings.Contains(d.Name, m.filter) {
			list = append(list, m.device(d))
		}
	}
	slices.SortStableFunc(list, func(a, b render.TopDevice) int {
		c := cmp.Or(m.compare(a, b), strings.Compare(a.Name, b.Name))
		if m.reverse {
			return -c
		}
		return c
	})
	return list
}

// device joins a device with its figures.
func (m *Model) device(d api.Device) render.TopDevice {
	f := m.figures[d.Name]
	return render.TopDevice{
		Device: d, Known: f.known, ReadRate: f.read, WriteRate: f.write, Ops: f.ops,
		ReadP50US: f.detail.ReadP50US, ReadP99US: f.detail.ReadP99US,
		WriteP50US: f.detail.WriteP50US, WriteP99US: f.detail.WriteP99US, InFlight: f.detail.InFlight,
	}
}

// compare puts first what is most worth a look.
func (m *Model) compare(a, b render.TopDevice) int {
	switch m.order {
	case byState:
		return cmp.Compare(trouble(b.Device), trouble(a.Device))
	case byWrites:
		return cmp.Compare(b.WriteRate, a.WriteRate)
	case byReads:
		return cmp.Compare(b.ReadRate, a.ReadRate)
	case byLatency:
		return cmp.Compare(max(b.ReadP99US, b.WriteP99US), max(a.ReadP99US, a.WriteP99US))
	case byOutOfSync:
		return cmp.Compare(outOfSync(b.Device), outOfSync(a.Device))
	}
	return 0
}

// trouble weighs a device's state.
func trouble(d api.Device) int {
	n := 0
	if d.Suspended || !d.Quorum {
		n += 1000
	}
	if d.Disk != "UpToDate" {
		n += 100
	}
	for _, p := range d.Peers {
		if p.Replication != "Established" {
			n++
		}
	}
	return n
}

func outOfSync(d api.Device) (n int64) {
	for _, p := range d.Peers {
		n += p.OutOfSync
	}
	return n
}

// Keys that are not one character.
const (
	Up        = "up"
	Down      = "down"
	PageUp    = "pgup"
	PageDown  = "pgdn"
	Home      = "home"
	End       = "end"
	Enter     = "enter"
	Escape    = "esc"
	Backspace = "backspace"
	Interrupt = "ctrl-c"
)

// Key takes a key, and reports whether it was the one to quit. o is the screen
// that the user sees.
func (m *Model) Key(k string, o render.Options) (quit bool) {
	switch {
	case k == Interrupt:
		return true
	case m.typing:
		m.typed(k)
	case m.help:
		m.help = false
	case k == "q" || k == "Q":
		return true
	default:
		m.command(k, render.TopRows(o, m.status))
	}
	return false
}

// command is a key outside the filter and the help; page is a page's height.
func (m *Model) command(k string, page int) {
	switch k {
	case "s":
		m.order = (m.order + 1) % orders
		m.first = 0
	case "r":
		m.reverse = !m.reverse
	case "/":
		m.typing, m.filter, m.first = true, "", 0
	case Escape:
		m.filter = ""
	case "?", "h":
		m.help = true
	case Up, "k":
		m.first = max(m.first-1, 0)
	case Down, "j":
		m.first++
	case PageUp:
		m.first = max(m.first-page, 0)
	case PageDown:
		m.first += page
	case Home, "g":
		m.first = 0
	case End, "G":
		m.first = len(m.status.Devices)
	}
}

// filterMax is longer than any device's name.
const filterMax = 64

// typed is a key while the filter is typed.
func (m *Model) typed(k string) {
	switch k {
	case Enter:
		m.typing = false
	case Escape:
		m.typing, m.filter = false, ""
	case Backspace:
		_, n := utf8.DecodeLastRuneInString(m.filter)
		m.filter = m.filter[:len(m.filter)-n]
	default:
		if r, n := utf8.DecodeRuneInString(k); n == len(k) && unicode.IsPrint(r) && len(m.filter) < filterMax {
			m.filter += k
		}
	}
	m.first = 0
}
