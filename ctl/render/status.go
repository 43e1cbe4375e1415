package render

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/lockstepd/lockstep/rpc/api"
)

// Status is the answer to "how is it?" in one screen: health, nodes, devices,
// running resyncs, what is wrong and what to do.
func Status(o Options, s api.Status) string {
	var b strings.Builder
	statusHead(&b, o, s)
	if len(s.Nodes) > 0 {
		b.WriteString("\n" + Nodes(o, s.Nodes))
	}
	if len(s.Devices) > 0 {
		b.WriteString("\n")
		statusDevices(&b, o, s)
	}
	problems(&b, o, s)
	return b.String()
}

// statusHead is the line of the local node: who, how, since which change.
func statusHead(b *strings.Builder, o Options, s api.Status) {
	fmt.Fprintf(b, "%s (id %d): %s\n", o.Paint(Bold, Clean(s.Node)), s.ID, o.health(s.Health))
	o.paragraph(b, "", Dim, fmt.Sprintf("lockstep %s, tick time %s with %s, configuration %d, revision %d",
		s.Version, Millis(s.TickTimeMS), plural(s.MaxPingCount, "ping"), s.ConfigRevision, s.Revision))
	for _, set := range s.Overrides {
		o.paragraph(b, "", Dim, "set by command: "+set.String())
	}
}

// health is the health in a word people use.
func (o Options) health(h string) string {
	switch h {
	case "ok":
		return o.Paint(Good, "healthy")
	case "degraded":
		return o.Paint(Warn, "degraded")
	case "":
		return "health unknown"
	}
	return o.Paint(Bad, Clean(h))
}

// Check is status in a sentence, for `status --check`: what is wrong, or that
// nothing is.
func Check(o Options, s api.Status) string {
	if s.Health == "ok" {
		return fmt.Sprintf("%s: %s, %s, %s\n", Clean(s.Node), o.health(s.Health),
			plural(len(s.Nodes), "peer"), plural(len(s.Devices), "device"))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", Clean(s.Node), o.health(s.Health))
	problems(&b, o, s)
	return b.String()
}

// problems lists what is wrong, and under each what to do.
func problems(b *strings.Builder, o Options, s api.Status) {
	if len(s.Problems) > 0 {
		b.WriteString("\n")
	}
	for _, p := range s.Problems {
		o.paragraph(b, "! ", problemStyle(p), p.Subject+": "+p.What)
		if p.Do != "" {
			o.paragraph(b, "  -> ", Plain, p.Do)
		}
	}
}

func problemStyle(p api.Problem) Style {
	if p.Failed {
		return Bad
	}
	return Warn
}

// statusDevices writes devices and, below each, its peers. Where the terminal
// is too low for all, the devices that need no attention become one line.
func statusDevices(b *strings.Builder, o Options, s api.Status) {
	shown, calm := s.Devices, 0
	if lines := deviceLines(s.Devices); o.Height > 0 && lines > max(o.Height-len(s.Nodes)-8, 8) {
		shown = slices.DeleteFunc(slices.Clone(s.Devices), wellOff)
		calm = len(s.Devices) - len(shown)
	}
	t := table{cols: []column{
		{head: "DEVICE", flex: true}, {head: "ROLE"}, {head: "DISK"}, {head: "STATE", drop: 1},
		{head: "OUT OF SYNC", right: true, drop: 2}, {head: "NOTES", drop: 3},
	}}
	for _, d := range shown {
		addDevice(&t, o, d)
	}
	t.write(b, o)
	if calm > 0 {
		o.paragraph(b, "", Dim, fmt.Sprintf("and %s in perfect order (lockstepctl device list shows all)", plural(calm, "device")))
	}
}

// deviceLines is how many lines the devices take.
func deviceLines(devices []api.Device) int {
	n := 0
	for _, d := range devices {
		n += 1 + len(d.Peers)
		for _, p := range d.Peers {
			if p.Resync != nil {
				n++
			}
		}
	}
	return n
}

// wellOff reports whether nothing about d needs attention.
func wellOff(d api.Device) bool {
	if d.Suspended || !d.Quorum || diskStyle(d.Disk) != Good {
		return false
	}
	return !slices.ContainsFunc(d.Peers, func(p api.DevicePeer) bool {
		return p.OutOfSync > 0 || p.Resync != nil || replicationStyle(p.Replication) != Good
	})
}

// addDevice appends a device's row and its peers' rows.
func addDevice(t *table, o Options, d api.Device) {
	t.row(text(d.Name), roleCell(d.Role), diskCell(d.Disk), held(d), text(""), deviceNotes(d))
	for _, p := range d.Peers {
		t.row(text("  "+p.Node), roleCell(p.Role), diskCell(p.Disk), linked(p), outOfSync(p.OutOfSync))
		if p.Resync != nil {
			t.below(text("    " + Progress(o.Width-4, *p.Resync)))
		}
	}
}

// held is, in a word, why a device serves nobody.
func held(d api.Device) cell {
	switch {
	case d.Suspended:
		return cell{"suspended", Bad}
	case !d.Quorum:
		return cell{"no quorum", Bad}
	}
	return text("")
}

// deviceNotes is what a device's row says at its end.
func deviceNotes(d api.Device) cell {
	notes := Bytes(d.Size)
	if d.Open > 0 {
		notes += ", " + plural(d.Open, "client")
	}
	return text(notes)
}

// refused is, in a word, why nothing is replicated with a peer that is up.
func refused(p api.DevicePeer) cell {
	switch {
	case p.SplitBrain:
		return cell{"split brain", Bad}
	case p.Refused != "":
		return cell{"refused", Bad}
	}
	return text("")
}

// linked is how a device is replicated with a peer, or why it is not.
func linked(p api.DevicePeer) cell {
	if c := refused(p); c.text != "" {
		return c
	}
	return replicationCell(p.Replication)
}

// Progress is one line about a running resync or verify, in at most width
// columns: a bar, how far, how fast, how long still. Where it is narrow, the
// bytes go first, then the bar.
func Progress(width int, r api.Resync) string {
	if width <= 0 {
		width = 80
	}
	far := fmt.Sprintf("%3d %%", percent(r.Done, r.Total))
	bytes := fmt.Sprintf("  %s of %s", Bytes(min(r.Done, r.Total)), Bytes(r.Total))
	speed := progressSpeed(r)
	tail := far + bytes + speed
	if width-len(tail)-1 < barMin {
		tail = far + speed
	}
	room := min(width-len(tail)-1, barMax)
	if room < barMin {
		return Cut(strings.TrimSpace(tail), width)
	}
	return bar(r.Done, r.Total, room) + " " + tail
}

// A bar's columns.
const (
	barMin = 12
	barMax = 40
)

// progressSpeed is how fast and how long still.
func progressSpeed(r api.Resync) string {
	switch {
	case r.Rate > 0 && r.ETAS > 0:
		return fmt.Sprintf("  %s  %s left", Rate(r.Rate), Seconds(r.ETAS))
	case r.Rate > 0:
		return "  " + Rate(r.Rate)
	case r.Done < r.Total:
		return "  stalled"
	}
	return ""
}

// roleCell colours nothing: neither role is better.
func roleCell(role string) cell {
	if role == "primary" {
		return cell{role, Bold}
	}
	return text(role)
}

func diskCell(disk string) cell { return cell{disk, diskStyle(disk)} }

func diskStyle(disk string) Style {
	switch disk {
	case "UpToDate":
		return Good
	case "Failed":
		return Bad
	case "Diskless":
		return Plain
	}
	return Warn
}

func replicationCell(state string) cell { return cell{state, replicationStyle(state)} }

func replicationStyle(state string) Style {
	switch state {
	case "Established":
		return Good
	case "Off", "":
		return Bad
	}
	return Warn
}

func outOfSync(n int64) cell {
	if n == 0 {
		return cell{"0", Dim}
	}
	return cell{Bytes(n), Warn}
}

// worst is the state of a device in a word for lists: what most needs a look.
func worst(d api.Device) cell {
	if c := held(d); c.text != "" {
		return c
	}
	if diskStyle(d.Disk) == Bad {
		return diskCell(d.Disk)
	}
	for _, p := range d.Peers {
		if c := refused(p); c.text != "" {
			return c
		}
	}
	for _, p := range d.Peers {
		if p.Resync != nil {
			return cell{fmt.Sprintf("%s %d %%", resyncWord(p.Replication), percent(p.Resync.Done, p.Resync.Total)), Warn}
		}
	}
	off := 0
	for _, p := range d.Peers {
		if replicationStyle(p.Replication) == Bad {
			off++
		}
	}
	if off > 0 {
		return cell{plural(off, "peer") + " away", Warn}
	}
	if diskStyle(d.Disk) == Warn {
		return diskCell(d.Disk)
	}
	return cell{"ok", Good}
}

// resyncWord tells a verify from a resync.
func resyncWord(replication string) string {
	if strings.HasPrefix(replication, "Verify") {
		return "verify"
	}
	return "resync"
}

// byName sorts by name without touching the value it was given.
func byName[T any](list []T, name func(T) string) []T {
	return slices.SortedFunc(slices.Values(list), func(a, b T) int { return cmp.Compare(name(a), name(b)) })
}
