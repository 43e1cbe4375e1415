package render

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/lockstepd/lockstep/rpc/api"
)

// Nodes is the table of peers, every line in the terminal's width: what has no
// room is left out.
func Nodes(o Options, nodes []api.Node) string {
	return nodesText(o, nodesTable(o, nodes, nil))
}

// NodeList is Nodes with every last error in full: where the column has no room
// for it, below the node.
func NodeList(o Options, nodes []api.Node) string {
	t := nodesTable(o, nodes, nil)
	widths := t.fit(o.Width)
	room := widths[len(widths)-1]
	if slices.ContainsFunc(nodes, func(n api.Node) bool { return width(Clean(lastError(n).text)) > room }) {
		t = nodesTable(o, nodes, func(t *table, c cell) { t.explain(o, c) })
	}
	return nodesText(o, t)
}

func nodesText(o Options, t *table) string {
	if len(t.rows) == 0 {
		return "no peers are configured\n"
	}
	var b strings.Builder
	t.write(&b, o)
	return b.String()
}

// nodesTable is a row for each peer; its last error is in a column, or written
// below the row by explain.
func nodesTable(o Options, nodes []api.Node, explain func(*table, cell)) *table {
	t := table{cols: []column{
		{head: "NODE", flex: true}, {head: "ID", right: true, drop: 5}, {head: "STATE"}, {head: "FOR", right: true},
		{head: "RTT", right: true}, {head: "DATA", drop: 3}, {head: "META", drop: 4},
		{head: "MISSED", right: true, drop: 2}, {head: "ADDRESS", flex: true, drop: 1}, {head: "LAST ERROR", flex: true, drop: 6},
	}}
	for _, n := range nodes {
		problem := lastError(n)
		if explain != nil {
			problem = text("")
		}
		t.row(text(n.Name), text(strconv.Itoa(n.ID)), nodeState(n.State), text(o.age(n.Since)), text(Micros(n.RTTUS)),
			linkCell(n.Data), linkCell(n.Meta), missed(n.MissedPings), text(n.Address), problem)
		if explain != nil && lastError(n).text != "" {
			explain(&t, lastError(n))
		}
	}
	return &t
}

// nodeState is a peer's state with its judgement.
func nodeState(state string) cell {
	switch state {
	case "up":
		return cell{state, Good}
	case "down":
		return cell{state, Bad}
	}
	return cell{state, Warn}
}

// linkCell is a link's state with its judgement.
func linkCell(state string) cell {
	if state == "connected" {
		return cell{state, Good}
	}
	return cell{state, Warn}
}

// missed shows missed pings only where there are any.
func missed(n int) cell {
	if n == 0 {
		return text("")
	}
	return cell{strconv.Itoa(n), Warn}
}

// lastError is of interest only while the peer isn't up.
func lastError(n api.Node) cell {
	if n.State == "up" {
		return text("")
	}
	return text(n.LastError)
}

// Node is one peer in full.
func Node(o Options, n api.NodeDetail) string {
	var p pairs
	p.addText("node", fmt.Sprintf("%s (id %d)", n.Name, n.ID))
	state := nodeState(n.State)
	state.text += " for " + o.age(n.Since)
	p.add("state", state)
	p.addText("address", n.Address)
	p.add("data link", linkCell(n.Data))
	p.add("meta link", linkCell(n.Meta))
	p.addText("ticks", ticks(n))
	if n.LastFrameMS >= 0 {
		p.addText("round trip", Micros(n.RTTUS))
		p.addText("last heard", Millis(n.LastFrameMS)+" ago")
	}
	p.addText("incarnation", n.Incarnation)
	p.addText("session", n.Session)
	p.addText("protocol", positive(int64(n.Protocol)))
	if n.LastFrameMS >= 0 {
		p.addText("sent", traffic(n.SentBytes, n.SentFrames))
		p.addText("received", traffic(n.RecvBytes, n.RecvFrames))
		p.addText("queued", Bytes(n.QueuedBytes))
	}
	p.addText("connects", strconv.FormatUint(n.Connects, 10))
	p.addText("next dial", nextDial(n))
	if n.LastError != "" {
		p.add("last error", cell{n.LastError, Warn})
	}
	var b strings.Builder
	p.write(&b, o)
	return b.String()
}

// ticks is what the peer has promised, once it has.
func ticks(n api.NodeDetail) string {
	if n.TickTimeMS <= 0 {
		return ""
	}
	return fmt.Sprintf("%s with %s, %d missed", Millis(n.TickTimeMS), plural(n.MaxPingCount, "ping"), n.MissedPings)
}

func traffic(bytes, frames uint64) string {
	return fmt.Sprintf("%s in %s frames", Bytes(clamp(bytes)), Count(float64(frames)))
}

// clamp makes a counter fit what Bytes takes.
func clamp(n uint64) int64 { return int64(min(n, 1<<63-1)) }

// positive is n, or nothing for 0.
func positive(n int64) string {
	if n <= 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

// nextDial is when the next attempt to connect comes, if one is planned.
func nextDial(n api.NodeDetail) string {
	if n.RetryInMS < 0 || n.State == "up" {
		return ""
	}
	return fmt.Sprintf("in %s (backoff %s)", Millis(n.RetryInMS), Millis(n.BackoffMS))
}

// Why is an explanation: what is so, since when, because of what, and what
// would change it.
func Why(o Options, w api.Why) string {
	var b strings.Builder
	since := ""
	if !w.Since.IsZero() {
		since = " for " + o.age(w.Since)
	}
	o.paragraph(&b, "", Bold, fmt.Sprintf("%s is %s%s", w.Subject, w.State, since))
	list(&b, o, "because", w.Because)
	list(&b, o, "what would change it", w.Next)
	return b.String()
}

// list is a titled list of sentences; an empty one is left out.
func list(b *strings.Builder, o Options, title string, items []string) {
	if len(items) == 0 {
		return
	}
	b.WriteString(o.Paint(Dim, title+":") + "\n")
	for _, item := range items {
		o.paragraph(b, "  - ", Plain, item)
	}
}

// Tick is the tick time, and the change under way if there is one.
func Tick(o Options, t api.Tick) string {
	var p pairs
	p.addText("tick time", Millis(t.TickTimeMS))
	p.addText("pings", fmt.Sprintf("%d per tick time, one every %s", t.MaxPingCount, Millis(t.TickTimeMS/int64(max(t.MaxPingCount, 1)))))
	if t.TargetMS > 0 && t.TargetMS != t.TickTimeMS {
		p.add("changing to", cell{fmt.Sprintf("%s, done in %s", Millis(t.TargetMS), Millis(t.RemainingMS)), Warn})
	}
	var b strings.Builder
	p.write(&b, o)
	return b.String()
}

// TickSet is the answer to a change of the tick time.
func TickSet(_ Options, t api.TickSet) string {
	switch t.Result {
	case "unchanged":
		return "unchanged: the tick time is " + Millis(t.TargetMS) + " already\n"
	case "change_initiated":
		return "change_initiated: the tick time becomes " + Millis(t.TargetMS) + "\n"
	case "ongoing_change_to":
		return "ongoing_change_to: the change to " + Millis(t.TargetMS) + " is still under way; nothing was changed\n"
	}
	return Clean(t.Result) + "\n"
}
