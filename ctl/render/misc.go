package render

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
)

// Services is the table of services.
func Services(o Options, services []api.Service) string {
	if len(services) == 0 {
		return "no services\n"
	}
	t := table{cols: []column{
		{head: "SERVICE", flex: true}, {head: "VERSION", right: true, drop: 3}, {head: "STATE"}, {head: "FOR", right: true},
		{head: "RESTARTS", right: true, drop: 2}, {head: "HEALTH", flex: true}, {head: "NEEDS", flex: true, drop: 1},
	}}
	for _, s := range services {
		t.row(text(s.Name), text(strconv.Itoa(s.Version)), serviceState(s.State), text(o.age(s.Since)),
			restarts(s.Restarts), healthCell(s.Health), text(strings.Join(names(s.Needs), " ")))
	}
	var b strings.Builder
	t.write(&b, o)
	return b.String()
}

// names are services without their versions, which have a column of their own.
func names(services []string) []string {
	out := make([]string, len(services))
	for i, s := range services {
		out[i], _, _ = strings.Cut(s, "@")
	}
	return out
}

func serviceState(state string) cell {
	switch state {
	case "running":
		return cell{state, Good}
	case "failed":
		return cell{state, Bad}
	case "stopped":
		return cell{state, Dim}
	}
	return cell{state, Warn}
}

func restarts(n int) cell {
	if n == 0 {
		return cell{"0", Dim}
	}
	return cell{strconv.Itoa(n), Warn}
}

func healthCell(h string) cell {
	if h == "ok" {
		return cell{h, Good}
	}
	return cell{h, Bad}
}

// Service is one service in full.
func Service(o Options, s api.Service) string {
	var p pairs
	p.addText("service", fmt.Sprintf("%s, version %d", s.Name, s.Version))
	state := serviceState(s.State)
	state.text += " for " + o.age(s.Since)
	p.add("state", state)
	p.add("health", healthCell(s.Health))
	p.add("restarts", restarts(s.Restarts))
	p.addText("needs", strings.Join(s.Needs, ", "))
	var b strings.Builder
	p.write(&b, o)
	return b.String()
}

// Cmap is a dump of the object database, a key a line, sorted by key.
func Cmap(o Options, entries []api.CmapEntry) string {
	var b strings.Builder
	for _, e := range byName(entries, func(e api.CmapEntry) string { return e.Key }) {
		b.WriteString(CmapEntry(o, e))
	}
	return b.String()
}

// CmapEntry is one key of the object database: "key (type) = value", as
// Corosync's users know it.
func CmapEntry(o Options, e api.CmapEntry) string {
	ro := ""
	if e.RO {
		ro = o.Paint(Dim, " [read-only]")
	}
	return fmt.Sprintf("%s %s = %s%s\n", Clean(e.Key), o.Paint(Dim, "("+Clean(e.Type)+")"), CmapValue(e.Value), ro)
}

// CmapValue is a value alone.
func CmapValue(v any) string {
	switch v := v.(type) {
	case string:
		return Clean(v)
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64)
	}
	return Clean(fmt.Sprint(v))
}

// CmapChange is a tracked change in a line.
func CmapChange(o Options, c api.CmapChange) string {
	value := func(e *api.CmapEntry) string {
		if e == nil {
			return "-"
		}
		return CmapValue(e.Value)
	}
	line := fmt.Sprintf("%-8s  %s", Clean(c.Op), Clean(c.Key))
	switch c.Op {
	case "added":
		return o.Paint(Good, line) + " = " + value(c.New) + "\n"
	case "deleted":
		return o.Paint(Bad, line) + " (was " + value(c.Old) + ")\n"
	}
	return o.Paint(Warn, line) + " = " + value(c.New) + " (was " + value(c.Old) + ")\n"
}

// Changes is what a new configuration would change, and how each key applies.
func Changes(o Options, changes []api.ConfigChange) string {
	if len(changes) == 0 {
		return "no differences\n"
	}
	t := table{cols: []column{
		{head: "KEY", flex: true}, {head: "OLD", flex: true}, {head: "NEW", flex: true}, {head: "APPLIES"},
		{head: "WHERE", flex: true, drop: 1},
	}}
	for _, c := range changes {
		t.row(text(c.Key), orDash(c.Old), orDash(c.New), howCell(c.How), text(c.Where))
		if c.Why != "" {
			t.below(cell{"  " + Clean(c.Why), Dim})
		}
	}
	var b strings.Builder
	t.write(&b, o)
	return b.String()
}

func orDash(s string) cell {
	if s == "" {
		return cell{"-", Dim}
	}
	return text(s)
}

func howCell(how string) cell {
	switch how {
	case "live":
		return cell{how, Good}
	case "refused":
		return cell{how, Bad}
	}
	return cell{how, Warn}
}

// Event is one event in a line: when, of what kind, about what.
func Event(o Options, e api.Event) string {
	about := ""
	if words := strings.Join(strings.Fields(Clean(e.Device+" "+e.Node)), " "); words != "" {
		about = o.Paint(Bold, words) + ": "
	}
	return fmt.Sprintf("%s  %s  %s%s\n", o.Paint(Dim, e.Time.In(o.Now.Location()).Format("2006-01-02 15:04:05.000")),
		o.Paint(eventStyle(e.Type), fmt.Sprintf("%-12s", Clean(e.Type))), about, Clean(e.Text))
}

func eventStyle(kind string) Style {
	switch kind {
	case "nodeup":
		return Good
	case "nodedown", "split-brain", "quorum-lost":
		return Bad
	case "out-of-sync", "quorum":
		return Warn
	}
	return Plain
}

// Lost says how much a slow or absent reader has missed.
func Lost(l api.Lost) string {
	if l.Count == 1 {
		return fmt.Sprintf("1 event was missed (%d)", l.From)
	}
	return fmt.Sprintf("%d events were missed (%d to %d)", l.Count, l.From, l.To)
}

// Version is a program's version in a line.
func Version(_ Options, v api.Version) string {
	return fmt.Sprintf("%s %s (%s)\n", Clean(v.Program), Clean(v.Version), Clean(v.Go))
}

// Clock is a time of day, for screens that redraw.
func Clock(t time.Time) string { return t.Format("15:04:05") }
