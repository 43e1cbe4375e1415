package render

import (
	"fmt"
	"strings"

	"github.com/lockstepd/lockstep/rpc/api"
)

// DeviceProgress is what is going on with a device in a line of at most width
// columns: its resyncs and verifies as one, or else what is missing.
func DeviceProgress(width int, d api.Device) string {
	sum, with := running(d)
	if len(with) == 0 {
		return Cut(Clean(d.Name+": "+standing(d)), limitOr(width, 1<<20))
	}
	lead := Clean(fmt.Sprintf("%s: %s with %s ", d.Name, resyncKind(d), strings.Join(with, ", ")))
	if width <= 0 {
		width = 120
	}
	lead = Cut(lead, max(width/3, 8))
	return lead + Progress(max(width-len(lead), 20), sum)
}

func limitOr(width, other int) int {
	if width <= 0 {
		return other
	}
	return width
}

// ProgressStep changes whenever a line about the progress is worth printing:
// with the states, and every tenth of the way.
func ProgressStep(d api.Device) string {
	var b strings.Builder
	fmt.Fprint(&b, d.Role, d.Disk, d.Quorum, d.Suspended)
	for _, p := range d.Peers {
		fmt.Fprint(&b, "|", p.Node, p.Disk, p.Replication)
		if p.Resync != nil {
			fmt.Fprint(&b, percent(p.Resync.Done, p.Resync.Total)/10)
		}
	}
	return b.String()
}

// running sums up what runs, and with whom. The time left is the longest.
func running(d api.Device) (sum api.Resync, with []string) {
	for _, p := range d.Peers {
		if p.Resync == nil {
			continue
		}
		with = append(with, p.Node)
		sum.Done += p.Resync.Done
		sum.Total += p.Resync.Total
		sum.Rate += p.Resync.Rate
		sum.ETAS = max(sum.ETAS, p.Resync.ETAS)
	}
	return sum, with
}

func resyncKind(d api.Device) string {
	for _, p := range d.Peers {
		if p.Resync != nil {
			return resyncWord(p.Replication)
		}
	}
	return "resync"
}

// standing is a device's state in words: "primary, UpToDate; beta: Off, unknown".
func standing(d api.Device) string {
	var b strings.Builder
	b.WriteString(d.Role + ", " + d.Disk)
	for _, p := range d.Peers {
		fmt.Fprintf(&b, "; %s: %s, %s", p.Node, linked(p).text, p.Disk)
		if p.OutOfSync > 0 {
			b.WriteString(", " + Bytes(p.OutOfSync) + " out of sync")
		}
	}
	return b.String()
}
