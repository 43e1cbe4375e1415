package render

import (
	"fmt"
	"strings"

	"github.com/lockstepd/lockstep/rpc/api"
)

// TopScreen is what the full-screen view shows: chosen, sorted and scrolled
// already.
type TopScreen struct {
	Status  api.Status // its Nodes are shown; its Devices are not
	Devices []TopDevice
	Hidden  int // devices above the first one shown
	Total   int // devices that pass the filter
	Sort    string
	Reverse bool
	Filter  string
	Typing  bool   // the filter is being typed
	Note    string // what is wrong with the connection
	Help    bool
}

// TopDevice is a device with its figures; Known is false until
// there are rates, for which it takes two looks.
type TopDevice struct {
	api.Device
	Known      bool
	ReadRate   float64 // bytes per second
	WriteRate  float64
	Ops        float64 // reads and writes per second
	ReadP50US  int64
	ReadP99US  int64
	WriteP50US int64
	WriteP99US int64
	InFlight   int
}

// topHelp are the keys.
var topHelp = []string{
	"q, Ctrl-C   quit",
	"s           sort by the next of name, state, writes, reads, latency, out of sync",
	"r           reverse the order",
	"/           filter devices by name; Enter keeps it, Esc drops it",
	"up, k       scroll up          PgUp   a page up      Home, g   to the first",
	"down, j     scroll down        PgDn   a page down    End, G    to the last",
	"?, h        this help; any key leaves it",
	"",
	"OPS/S       reads and writes of this node's NBD clients",
	"RD, WR P50  half of the reads, or writes, of the last minute took no longer",
	"RD, WR P99  99 of 100 of them took no longer",
}

// TopRows is how many lines there are for devices, at least one: what the head,
// the nodes, the table's own head and the foot leave.
func TopRows(o Options, s api.Status) int {
	return max(o.Height-len(topTop(o, TopScreen{Status: s}))-2, 1)
}

// TopLines is how many lines a device takes.
func TopLines(d api.Device) int {
	n := 1
	for _, p := range d.Peers {
		if p.Resync != nil {
			n++
		}
	}
	return n
}

// Top is a full screen: exactly o.Height lines, none wider than o.Width, no
// newline after the last.
func Top(o Options, s TopScreen) string {
	lines := topTop(o, s)
	if s.Help {
		for _, l := range topHelp {
			lines = append(lines, Cut(l, o.Width))
		}
	} else {
		lines = append(lines, topDevices(o, s, o.Height-len(lines)-1)...)
	}
	foot := topFoot(o, s)
	if room := max(o.Height-1, 0); len(lines) > room {
		lines = lines[:room]
	}
	for len(lines) < o.Height-1 {
		lines = append(lines, "")
	}
	return strings.Join(append(lines, foot), "\n")
}

// topTop is everything above the devices: health, the first problem, the nodes
// that fit a third of the screen.
func topTop(o Options, s TopScreen) []string {
	var b strings.Builder
	who := fmt.Sprintf("%s (id %d): ", Clean(s.Status.Node), s.Status.ID)
	b.WriteString(o.Paint(Bold, who) + o.health(s.Status.Health))
	rest := fmt.Sprintf("   %s   lockstep %s   tick time %s", Clock(o.Now), Clean(s.Status.Version), Millis(s.Status.TickTimeMS))
	b.WriteString(o.Paint(Dim, Cut(rest, o.Width-width(who)-len("health unknown"))) + "\n")
	b.WriteString(topProblem(o, s.Status) + "\n")
	if len(s.Status.Nodes) > 0 {
		b.WriteString(topNodes(o, s.Status.Nodes) + "\n")
	}
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

// topProblem is the first problem, and how many more there are.
func topProblem(o Options, s api.Status) string {
	if len(s.Problems) == 0 {
		return ""
	}
	p, more := s.Problems[0], ""
	if n := len(s.Problems) - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more: lockstepctl status)", n)
	}
	line := Cut(Clean(fmt.Sprintf("! %s: %s", p.Subject, p.What)), max(o.Width-len(more), 10))
	return o.Paint(problemStyle(p), line) + Cut(more, max(o.Width-width(line), 0)) + "\n"
}

// topNodes is the nodes' table, those that are not up first where not all fit.
func topNodes(o Options, nodes []api.Node) string {
	room := max(o.Height/3, 3)
	if len(nodes) <= room {
		return Nodes(o, nodes)
	}
	var shown, up []api.Node
	for _, n := range nodes {
		if n.State == "up" {
			up = append(up, n)
		} else {
			shown = append(shown, n)
		}
	}
	shown = append(shown, up...)[:room-1]
	return Nodes(o, shown) + o.Paint(Dim, Cut(fmt.Sprintf("and %d more nodes", len(nodes)-len(shown)), o.Width)) + "\n"
}

// topDevices is the devices' table in at most room lines.
func topDevices(o Options, s TopScreen, room int) []string {
	if len(s.Devices) == 0 {
		if s.Filter != "" {
			return []string{Cut("no device's name contains "+Clean(s.Filter), o.Width)}
		}
		return []string{"no devices"}
	}
	t := table{cols: []column{
		{head: "DEVICE", flex: true}, {head: "ROLE", drop: 4}, {head: "DISK", drop: 5}, {head: "STATE"},
		{head: "READ", right: true, min: 10}, {head: "WRITE", right: true, min: 10}, {head: "OPS/S", right: true, drop: 3, min: 6},
		{head: "RD P50", right: true, drop: 14, min: 6}, {head: "RD P99", right: true, drop: 9, min: 6},
		{head: "WR P50", right: true, drop: 7, min: 6}, {head: "WR P99", right: true, drop: 2, min: 6},
		{head: "OUT OF SYNC", right: true, drop: 6}, {head: "SIZE", right: true, drop: 11},
		{head: "CLIENTS", right: true, drop: 10}, {head: "IN FLIGHT", right: true, drop: 12}, {head: "PEERS", flex: true, drop: 13},
	}}
	for _, d := range s.Devices {
		t.row(topRow(d)...)
		for _, p := range d.Peers {
			if p.Resync != nil {
				lead := "  " + p.Node + " "
				t.below(cell{Clean(lead) + Progress(o.Width-width(lead), *p.Resync), Warn})
			}
		}
	}
	var b strings.Builder
	t.write(&b, o)
	lines := strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
	return lines[:min(len(lines), max(room, 0))]
}

// topRow is one device's line; rates that aren't known yet are dashes.
func topRow(d TopDevice) []cell {
	state := worst(d.Device)
	row := []cell{text(d.Name), roleCell(d.Role), diskCell(d.Disk), state}
	if d.Known {
		row = append(row, text(Rate(int64(d.ReadRate))), text(Rate(int64(d.WriteRate))), text(Count(d.Ops)))
	} else {
		row = append(row, text("-"), text("-"), text("-"))
	}
	row = append(row, text(Micros(d.ReadP50US)), text(Micros(d.ReadP99US)), text(Micros(d.WriteP50US)), text(Micros(d.WriteP99US)))
	return append(row, outOfSync(sumOutOfSync(d.Device)), text(Bytes(d.Size)), text(fmt.Sprint(d.Open)),
		text(fmt.Sprint(d.InFlight)), text(peerWords(d.Peers)))
}

// topFoot is the last line: what the keys do, or the filter being typed.
func topFoot(o Options, s TopScreen) string {
	var foot string
	switch {
	case s.Typing:
		foot = "filter: " + Clean(s.Filter) + "_"
	case s.Note != "":
		foot = Clean(s.Note)
	default:
		order := s.Sort
		if s.Reverse {
			order += ", reversed"
		}
		foot = fmt.Sprintf("q quit  s sort (%s)  r reverse  / filter  ? help   %s", order, topPlace(s))
	}
	foot = Cut(foot, o.Width)
	return o.Paint(Invert, foot+strings.Repeat(" ", max(o.Width-width(foot), 0)))
}

// topPlace is which devices of how many are shown.
func topPlace(s TopScreen) string {
	if s.Total == 0 {
		return ""
	}
	place := fmt.Sprintf("%d-%d of %d", s.Hidden+1, s.Hidden+len(s.Devices), s.Total)
	if s.Filter != "" {
		place += " with " + Clean(s.Filter)
	}
	return place
}
