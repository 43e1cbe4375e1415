package render

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/lockstepd/lockstep/rpc/api"
)

// Devices is the table of devices, one line each.
func Devices(o Options, devices []api.Device) string {
	if len(devices) == 0 {
		return "no devices are configured\n"
	}
	t := table{cols: []column{
		{head: "DEVICE", flex: true}, {head: "SIZE", right: true, drop: 2}, {head: "ROLE"}, {head: "DISK"},
		{head: "STATE"}, {head: "QUORUM", drop: 3}, {head: "CLIENTS", right: true, drop: 4},
		{head: "OUT OF SYNC", right: true, drop: 1}, {head: "PEERS", flex: true, drop: 5},
	}}
	for _, d := range devices {
		t.row(text(d.Name), text(Bytes(d.Size)), roleCell(d.Role), diskCell(d.Disk), worst(d),
			quorumCell(d.Quorum), text(strconv.Itoa(d.Open)), outOfSync(sumOutOfSync(d)), text(peerWords(d.Peers)))
	}
	var b strings.Builder
	t.write(&b, o)
	return b.String()
}

func quorumCell(has bool) cell {
	if has {
		return cell{"yes", Good}
	}
	return cell{"no", Bad}
}

func sumOutOfSync(d api.Device) int64 {
	var n int64
	for _, p := range d.Peers {
		n += p.OutOfSync
	}
	return n
}

// peerWords is "beta UpToDate, gamma Outdated".
func peerWords(peers []api.DevicePeer) string {
	words := make([]string, len(peers))
	for i, p := range peers {
		words[i] = p.Node + " " + p.Disk
	}
	return strings.Join(words, ", ")
}

// Device is one device in full.
func Device(o Options, d api.DeviceDetail) string {
	var p pairs
	p.addText("device", d.Name)
	p.addText("size", Bytes(d.Size))
	p.add("role", roleCell(d.Role))
	p.add("disk", diskCell(d.Disk))
	p.addText("backing", d.Backing)
	p.addText("protocol", d.Protocol)
	p.add("quorum", deviceQuorum(d))
	if d.Group != "" {
		p.addText("group", d.Group)
	}
	if d.Suspended {
		p.add("I/O", cell{"suspended", Bad})
	}
	p.addText("clients", fmt.Sprintf("%d open, %s in flight", d.Open, plural(d.InFlight, "request")))
	for i, uri := range d.NBD {
		p.addText(first(i, "NBD"), uri)
	}
	p.addText("reads", requests(d.Reads, d.ReadBytes))
	p.addText("writes", requests(d.Writes, d.WriteBytes))
	p.addText("flushes", Count(float64(d.Flushes)))
	p.addText("read latency", latency(d.ReadP50US, d.ReadP99US))
	p.addText("write latency", latency(d.WriteP50US, d.WriteP99US))
	p.addText("activity log", activityLog(d))
	p.add("disk errors", diskErrors(d))
	p.addText("generation", d.CurrentGen)
	for _, g := range d.BitmapGens {
		p.addText("  for "+g.Node, g.Gen)
	}
	var b strings.Builder
	p.write(&b, o)
	devicePeers(&b, o, d.Peers)
	return b.String()
}

// first is the key on the first of several lines, nothing after it.
func first(i int, key string) string {
	if i == 0 {
		return key
	}
	return ""
}

func deviceQuorum(d api.DeviceDetail) cell {
	c := quorumCell(d.Quorum)
	switch d.QuorumPolicy {
	case "":
	case "off":
		return text("off")
	default:
		c.text += " (" + d.QuorumPolicy + ", without: " + d.OnNoQuorum + ")"
	}
	return c
}

// requests is how many there were, and of how much.
func requests(n, bytes uint64) string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprintf("%s, %s", Count(float64(n)), Bytes(clamp(bytes)))
}

// latency is of the last minute, nothing where nothing was measured.
func latency(p50, p99 int64) string {
	if p50 <= 0 {
		return ""
	}
	return fmt.Sprintf("%s median, %s at the 99th percentile, in the last minute", Micros(p50), Micros(p99))
}

// diskErrors is what became of what the disk could not read, nothing where it
// could read everything.
func diskErrors(d api.DeviceDetail) cell {
	if d.ReadErrors == 0 {
		return cell{}
	}
	s := plural(int(clamp(d.ReadErrors)), "read") + " failed; " + Bytes(clamp(d.HealedBytes)) + " rewritten with a peer's copy"
	if d.Unhealed > 0 {
		return cell{s + fmt.Sprintf(", %d times there was no good copy", d.Unhealed), Bad}
	}
	return cell{s, Warn}
}

func activityLog(d api.DeviceDetail) string {
	switch {
	case d.ALExtentBytes <= 0:
		return ""
	case d.ALExtents == 0:
		return "no extent is hot; a crash now would resync nothing"
	}
	return fmt.Sprintf("%s hot, %s each; a crash now would resync at most %s",
		plural(d.ALExtents, "extent"), Bytes(d.ALExtentBytes), Bytes(d.CrashCostBytes))
}

// devicePeers is the table of what is known of a device on its peers.
func devicePeers(b *strings.Builder, o Options, peers []api.DevicePeer) {
	if len(peers) == 0 {
		return
	}
	b.WriteString("\n")
	t := table{cols: []column{
		{head: "PEER", flex: true}, {head: "ROLE"}, {head: "DISK"}, {head: "REPLICATION"}, {head: "OUT OF SYNC", right: true, drop: 1},
	}}
	for _, p := range peers {
		t.row(text(p.Node), roleCell(p.Role), diskCell(p.Disk), replicationCell(p.Replication), outOfSync(p.OutOfSync))
		if c := refused(p); c.text != "" {
			t.explain(o, cell{c.text + ": " + p.Refused, c.style})
		}
		if p.Resync != nil {
			t.below(text("  " + Progress(o.Width-2, *p.Resync)))
		}
		if p.Verified != nil {
			t.below(text("  " + verified(p.Verified)))
		}
	}
	t.write(b, o)
}

// Metadata is what a device's metadata says.
func Metadata(o Options, m api.Metadata) string {
	log := "clean"
	if !m.Clean {
		hot := int64(0)
		for _, e := range m.Hot {
			hot += e.Len
		}
		log = "not stopped in order: " + Bytes(hot) + " are hot"
	}
	rows := [][2]string{
		{"metadata", m.Path}, {"device", m.Device}, {"node id", strconv.Itoa(m.NodeID)}, {"size", Bytes(m.Size)},
		{"created", m.Created.UTC().Format("2006-01-02 15:04 UTC")}, {"flags", m.Flags}, {"members", m.Members},
		{"generation", m.Generation}, {"history", m.History},
		{"activity log", fmt.Sprintf("%d extents of %s, %s", m.Extents, Bytes(m.ExtentBytes), log)},
	}
	for i, s := range m.Superblocks {
		rows = append(rows, [2]string{fmt.Sprintf("superblock %d", i), s})
	}
	for _, p := range m.Peers {
		rows = append(rows, [2]string{fmt.Sprintf("peer %d", p.ID), fmt.Sprintf("%s out of sync in %d runs, since generation %s", Bytes(p.OutOfSync), p.Runs, p.Generation)})
	}
	for _, p := range m.Problems {
		rows = append(rows, [2]string{"problem", p})
	}
	if m.InUse {
		rows = append(rows, [2]string{"in use", "yes: this may be changing"})
	}
	var b strings.Builder
	for _, r := range rows {
		o.paragraph(&b, "", Plain, fmt.Sprintf("%-13s %s", r[0], Clean(r[1])))
	}
	return b.String()
}

// verified is a verify's outcome in words.
func verified(v *api.Verified) string {
	s := "verified " + v.At.UTC().Format("2006-01-02 15:04 UTC") + ": "
	if v.Differ == 0 {
		s += "nothing differs"
	} else {
		s += Bytes(v.Differ) + " differ"
	}
	if v.Skipped > 0 {
		s += ", " + Bytes(v.Skipped) + " not compared"
	}
	if v.Stopped != "" {
		s += "; stopped: " + v.Stopped
	}
	return s
}

// Handshake is what a handshake with a peer would decide.
func Handshake(o Options, h api.Handshake) string {
	var b strings.Builder
	o.paragraph(&b, "", Bold, fmt.Sprintf("device %s with %s: %s", h.Device, h.Node, h.Action))
	if h.Text != "" {
		o.paragraph(&b, "  ", Plain, h.Text)
	}
	if h.Mine+h.Theirs > 0 {
		o.paragraph(&b, "  ", Plain, fmt.Sprintf("%s are marked out of sync here, %s there", Bytes(h.Mine), Bytes(h.Theirs)))
	}
	if h.Agreed {
		o.paragraph(&b, "  ", Plain, "the two have agreed before; nothing was changed by asking")
	}
	return b.String()
}
