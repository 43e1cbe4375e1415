package control

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
)

// table lays rows out in columns.
func table(rows ...[]string) string {
	var sb strings.Builder
	w := tabwriter.NewWriter(&sb, 0, 0, 2, ' ', 0)
	for _, r := range rows {
		fmt.Fprintln(w, strings.Join(r, "\t"))
	}
	_ = w.Flush()
	out := strings.Split(strings.TrimRight(sb.String(), "\n"), "\n")
	for i := range out {
		out[i] = strings.TrimRight(out[i], " ")
	}
	return strings.Join(out, "\n")
}

func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// micros is a time that was measured, or none.
func micros(us int64) string {
	if us <= 0 {
		return "-"
	}
	return fmt.Sprintf("%d us", us)
}

func since(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.UTC().Format(time.RFC3339)
}

func statusText(s api.Status) string {
	var sb strings.Builder
	fmt.Fprintf(&sb, "node %s (id %d), %s, revision %d\nhealth %s\n", s.Node, s.ID, s.Version, s.Revision, s.Health)
	for _, p := range s.Problems {
		fmt.Fprintf(&sb, "  %s: %s (%s)\n", p.Subject, p.What, p.Do)
	}
	for _, o := range s.Overrides {
		fmt.Fprintf(&sb, "set by command: %s\n", o)
	}
	if len(s.Nodes) > 0 {
		fmt.Fprintf(&sb, "\n%s\n", nodesText(s.Nodes))
	}
	if len(s.Devices) > 0 {
		fmt.Fprintf(&sb, "\n%s", devicesText(s.Devices))
	}
	return strings.TrimRight(sb.String(), "\n")
}

func nodesText(nodes []api.Node) string {
	rows := [][]string{{"NODE", "ID", "STATE", "DATA", "META", "RTT", "MISSED", "ADDRESS", "SINCE"}}
	for _, n := range nodes {
		rows = append(rows, []string{n.Name, fmt.Sprint(n.ID), n.State, n.Data, n.Meta,
			micros(n.RTTUS), fmt.Sprint(n.MissedPings), n.Address, since(n.Since)})
	}
	return table(rows...)
}

func nodeText(n api.NodeDetail) string {
	return table(
		[]string{"node", n.Name}, []string{"id", fmt.Sprint(n.ID)}, []string{"state", n.State},
		[]string{"since", since(n.Since)}, []string{"address", n.Address},
		[]string{"links", "data " + n.Data + ", meta " + n.Meta}, []string{"session", n.Session},
		[]string{"incarnation", n.Incarnation}, []string{"round trip", micros(n.RTTUS)},
		[]string{"tick time", fmt.Sprintf("%d ms, %d pings", n.TickTimeMS, n.MaxPingCount)},
		[]string{"missed pings", fmt.Sprint(n.MissedPings)}, []string{"last frame", fmt.Sprintf("%d ms ago", n.LastFrameMS)},
		[]string{"sent", fmt.Sprintf("%s in %d frames", block.Amount(int64(n.SentBytes)), n.SentFrames)},
		[]string{"received", fmt.Sprintf("%s in %d frames", block.Amount(int64(n.RecvBytes)), n.RecvFrames)},
		[]string{"queued", block.Amount(n.QueuedBytes)}, []string{"last error", n.LastError},
	)
}

func devicesText(devs []api.Device) string {
	rows := [][]string{{"DEVICE", "SIZE", "ROLE", "DISK", "QUORUM", "OPEN", "PEER", "PEER-ROLE", "PEER-DISK", "REPLICATION", "OUT-OF-SYNC"}}
	for _, d := range devs {
		quorum := yesNo(d.Quorum)
		if d.Suspended {
			quorum = "suspended"
		}
		row := []string{d.Name, block.Amount(d.Size), d.Role, d.Disk, quorum, fmt.Sprint(d.Open)}
		if len(d.Peers) == 0 {
			rows = append(rows, append(row, "-", "-", "-", "-", "-"))
		}
		for _, p := range d.Peers {
			rows = append(rows, append(slices.Clone(row), p.Node, p.Role, p.Disk, p.Replication, block.Amount(p.OutOfSync)+progress(p.Resync)))
			row = make([]string, len(row))
		}
	}
	return table(rows...)
}

func progress(r *api.Resync) string {
	if r == nil || r.Total == 0 {
		return ""
	}
	return fmt.Sprintf(" (%d%%, %s/s)", r.Done*100/r.Total, block.Amount(r.Rate))
}

func deviceText(d api.DeviceDetail) string {
	rows := [][]string{
		{"device", d.Name}, {"size", block.Amount(d.Size)}, {"role", d.Role}, {"disk", d.Disk}, {"backing", d.Backing},
		{"protocol", d.Protocol}, {"quorum", fmt.Sprintf("%s (%s, without: %s)", yesNo(d.Quorum), d.QuorumPolicy, d.OnNoQuorum)},
		{"generation", d.CurrentGen}, {"open", fmt.Sprint(d.Open)}, {"in flight", fmt.Sprint(d.InFlight)},
		{"reads", fmt.Sprintf("%d, %s", d.Reads, block.Amount(int64(d.ReadBytes)))},
		{"writes", fmt.Sprintf("%d, %s", d.Writes, block.Amount(int64(d.WriteBytes)))}, {"flushes", fmt.Sprint(d.Flushes)},
		{"read latency", latencyText(d.ReadP50US, d.ReadP99US)}, {"write latency", latencyText(d.WriteP50US, d.WriteP99US)},
		{"activity log", fmt.Sprintf("%d hot extents of %s: a crash resyncs at most %s", d.ALExtents, block.Amount(d.ALExtentBytes), block.Amount(d.CrashCostBytes))},
	}
	if d.ReadErrors > 0 {
		rows = append(rows, []string{"disk errors", healedText(d)})
	}
	if d.Group != "" {
		rows = append(rows, []string{"group", d.Group})
	}
	for _, u := range d.NBD {
		rows = append(rows, []string{"nbd", u})
	}
	for _, p := range d.Peers {
		rows = append(rows, []string{"peer " + p.Node, fmt.Sprintf("%s, %s, %s, %s out of sync%s", p.Role, p.Disk, p.Replication, block.Amount(p.OutOfSync), progress(p.Resync))})
		if v := p.Verified; v != nil {
			rows = append(rows, []string{"verified with " + p.Node, verifiedText(v)})
		}
	}
	return table(rows...)
}

// healedText is what became of what the disk could not read.
func healedText(d api.DeviceDetail) string {
	s := fmt.Sprintf("%d reads failed; %s healed from peers", d.ReadErrors, block.Amount(int64(d.HealedBytes)))
	if d.Unhealed > 0 {
		s += fmt.Sprintf(", %d times there was no good copy", d.Unhealed)
	}
	return s
}

// latencyText is of the last minute.
func latencyText(p50, p99 int64) string {
	if p50 == 0 {
		return "-"
	}
	return fmt.Sprintf("%d us median, %d us at the 99th percentile, in the last minute", p50, p99)
}

func dumpText(r store.Report) string {
	log := "clean"
	if !r.Clean {
		log = fmt.Sprintf("in use: %d ranges are hot", len(r.Hot))
	}
	rows := [][]string{
		{"metadata", r.Path}, {"device", r.Device}, {"node id", fmt.Sprint(r.NodeID)}, {"size", block.Amount(r.Size)}, {"created", since(r.Created)},
		{"superblock 0", r.Superblocks[0]}, {"superblock 1", r.Superblocks[1]}, {"flags", r.Flags}, {"members", r.Members},
		{"generation", r.Generation}, {"history", r.History}, {"activity log", fmt.Sprintf("%d extents of %s, %s", r.Extents, block.Amount(r.ExtentBytes), log)},
	}
	for _, p := range r.Peers {
		rows = append(rows, []string{fmt.Sprintf("peer %d", p.ID), fmt.Sprintf("%s out of sync in %d runs, since generation %s, %s", block.Amount(p.OutOfSync), p.Runs, p.Generation, p.Flags)})
	}
	for _, p := range r.Problems {
		rows = append(rows, []string{"problem", p})
	}
	return table(rows...)
}

func handshakeText(h api.Handshake) string {
	return fmt.Sprintf("%s with %s: %s (%s): %s\nmarked here %s, there %s", h.Device, h.Node, h.Action, h.Rule, h.Text, block.Amount(h.Mine), block.Amount(h.Theirs))
}

func verifiedText(v *api.Verified) string {
	s := fmt.Sprintf("%s: %s differ", since(v.At), block.Amount(v.Differ))
	if v.Skipped > 0 {
		s += ", " + block.Amount(v.Skipped) + " not compared"
	}
	if v.Stopped != "" {
		s += "; stopped: " + v.Stopped
	}
	return s
}

func whyText(w api.Why) string {
	var sb strings.Builder
	fmt.Fprintf(&sb, "%s: %s", w.Subject, w.State)
	if !w.Since.IsZero() {
		fmt.Fprintf(&sb, " since %s", since(w.Since))
	}
	for _, l := range w.Because {
		fmt.Fprintf(&sb, "\n  because %s", l)
	}
	for _, l := range w.Next {
		fmt.Fprintf(&sb, "\n  next    %s", l)
	}
	return sb.String()
}

func sortLinks(rows []LinkRow) {
	slices.SortFunc(rows, func(a, b LinkRow) int {
		return cmp.Or(strings.Compare(a.Node, b.Node), strings.Compare(a.Link, b.Link))
	})
}

func messengerText(links []LinkRow) string {
	rows := [][]string{{"NODE", "LINK", "STATE", "SENT", "RECEIVED", "QUEUED", "HELD", "THROTTLED", "KEPT BY DISKS", "CONNECTIONS"}}
	for _, l := range links {
		rows = append(rows, []string{l.Node, l.Link, l.State, block.Amount(int64(l.SentBytes)), block.Amount(int64(l.RecvBytes)),
			fmt.Sprintf("%s (%d)", block.Amount(l.QueuedBytes), l.QueuedFrames), block.Amount(l.HeldBytes), fmt.Sprint(l.Throttled), fmt.Sprintf("%d (%d now)", l.Relieved, l.Away), fmt.Sprint(l.Connections)})
	}
	return table(rows...)
}

func reconnectText(peers []ReconnectRow) string {
	rows := [][]string{{"NODE", "STATE", "FOR", "DIALS", "ATTEMPTS", "CONNECTS", "FAILURES", "CONNECTED", "BACKOFF", "NEXT-TRY", "LAST-ERROR"}}
	for _, p := range peers {
		next := "-"
		if p.RetryInMS >= 0 {
			next = fmt.Sprintf("%d ms", p.RetryInMS)
		}
		rows = append(rows, []string{p.Node, p.State, (time.Duration(p.StateForMS) * time.Millisecond).String(), fmt.Sprint(p.Dials), fmt.Sprint(p.Attempts), fmt.Sprint(p.Connects),
			fmt.Sprint(p.Failures), (time.Duration(p.ConnectedMS) * time.Millisecond).String(), fmt.Sprintf("%d ms", p.BackoffMS), next, p.LastError})
	}
	return table(rows...)
}
