package metrics

import (
	"slices"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/replication"
)

// collector reads the sources. It describes nothing in advance: which devices
// and nodes there are is known when it is asked.
type collector struct{ s Sources }

// Describe implements prometheus.Collector.
func (*collector) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	o := out{ch}
	o.gauge("lockstep_info", "The version that runs.", 1, lv{"version", c.s.Version})
	var counts map[events.Count]uint64
	if c.s.Counts != nil {
		counts = c.s.Counts()
	}
	if c.s.Nodes != nil {
		for _, n := range c.s.Nodes() {
			o.node(&n)
			for _, t := range nodeEvents {
				o.count("lockstep_node_events_total", "Events about the peer, by their type.", counts[events.Count{Type: t, Node: n.Name}], lv{"node", n.Name}, lv{"type", t})
			}
		}
	}
	if c.s.Tick != nil {
		o.gauge("lockstep_tick_time_seconds", "A peer that is silent for this long is down.", c.s.Tick().Seconds())
	}
	if c.s.Devices != nil {
		for _, d := range c.s.Devices() {
			o.device(&d)
			for _, t := range deviceEvents {
				o.count("lockstep_device_events_total", "Events about the device, by their type.", counts[events.Count{Type: t, Device: d.Name}], lv{"device", d.Name}, lv{"type", t})
			}
		}
	}
	if c.s.NBD != nil {
		o.nbd(c.s.NBD())
	}
	if c.s.Commands != nil {
		o.commands(c.s.Commands())
	}
	c.engine(o, counts)
}

// The types of events that are counted for each node and each device, from 0 on.
var (
	nodeEvents   = []string{events.NodeUp, events.NodeDown, events.MissedPing, events.PeerRefused, events.Relinked}
	deviceEvents = []string{
		events.Role, events.Disk, events.QuorumLost, events.QuorumGained, events.Suspended, events.Resumed,
		events.Resync, events.ResyncDone, events.OutOfSync, events.Verify, events.SplitBrain, events.IOError, events.Fence,
	}
)

// lv is one label with its value.
type lv struct{ name, value string }

// out makes metrics.
type out struct{ ch chan<- prometheus.Metric }

func (o out) put(kind prometheus.ValueType, name, help string, v float64, labels []lv) {
	names, values := make([]string, len(labels)), make([]string, len(labels))
	for i, l := range labels {
		names[i], values[i] = l.name, l.value
	}
	o.ch <- prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, v, values...)
}

func (o out) gauge(name, help string, v float64, labels ...lv) {
	o.put(prometheus.GaugeValue, name, help, v, labels)
}

func (o out) count(name, help string, n uint64, labels ...lv) {
	o.put(prometheus.CounterValue, name, help, float64(n), labels)
}

func yes(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (o out) node(n *messenger.NodeInfo) {
	node := lv{"node", n.Name}
	o.gauge("lockstep_node_up", "Whether both links to the peer are established (1) or not (0).", yes(n.State == "up"), node)
	o.gauge("lockstep_node_rtt_seconds", "The last measured round trip to the peer.", n.RTT.Seconds(), node)
	o.gauge("lockstep_node_missed_pings", "Pings in a row that the peer has not answered.", float64(n.MissedPings), node)
	o.count("lockstep_node_connects_total", "Sessions with the peer that came about.", n.Connects, node)
	o.gauge("lockstep_node_connect_failures", "Attempts to connect that failed, in a row.", float64(n.Attempts), node)
	o.link(node, "data", &n.Data)
	o.link(node, "meta", &n.Meta)
}

func (o out) link(node lv, name string, l *messenger.LinkInfo) {
	link := lv{"link", name}
	o.count("lockstep_link_sent_bytes_total", "Bytes sent over the link in the present session.", l.SentBytes, node, link)
	o.count("lockstep_link_received_bytes_total", "Bytes received over the link in the present session.", l.RecvBytes, node, link)
	o.count("lockstep_link_sent_frames_total", "Frames sent over the link in the present session.", l.SentFrames, node, link)
	o.count("lockstep_link_received_frames_total", "Frames received over the link in the present session.", l.RecvFrames, node, link)
	o.count("lockstep_link_throttled_total", "Times that the link was not read because handlers held too much.", l.Throttled, node, link)
	o.count("lockstep_link_relieved_total", "Times that a disk kept the link's reader, and another went on.", l.Relieved, node, link)
	o.gauge("lockstep_link_readers_away", "Readers of the link that disks keep now.", float64(l.Away), node, link)
	o.count("lockstep_link_connections_total", "Connections of the link in the present session.", l.Connections, node, link)
	o.gauge("lockstep_link_queue_bytes", "Bytes not sent, or not acknowledged yet.", float64(l.QueuedBytes), node, link)
	o.gauge("lockstep_link_queue_frames", "Frames not sent, or not acknowledged yet.", float64(l.QueuedFrames), node, link)
	o.gauge("lockstep_link_queue_limit_bytes", "What the queue may reach before the peer is cut.", float64(l.LimitBytes), node, link)
	o.gauge("lockstep_link_held_bytes", "Memory that handlers hold of what the peer sent.", float64(l.HeldBytes), node, link)
}

func (o out) device(d *device.Status) {
	dev := lv{"device", d.Name}
	o.gauge("lockstep_device_size_bytes", "The device's size.", float64(d.Size), dev)
	o.gauge("lockstep_device_primary", "Whether this node is the device's primary.", yes(d.Role == replication.Primary), dev)
	o.gauge("lockstep_device_quorum", "Whether the device has quorum.", yes(d.Quorum.Quorate), dev)
	o.gauge("lockstep_device_suspended", "Whether requests wait: for quorum, or for a lost peer to be fenced.", yes(d.Suspended), dev)
	o.gauge("lockstep_device_up_to_date", "Whether this node's disk is UpToDate.", yes(d.Disk == replication.UpToDate), dev)
	o.gauge("lockstep_device_disk_state", "1 for the state that this node's disk is in.", 1, dev, lv{"state", d.Disk.String()})
	o.gauge("lockstep_device_open", "Clients that have the device open.", float64(d.Open), dev)
	o.gauge("lockstep_device_in_flight", "Requests in progress.", float64(d.InFlight), dev)
	o.gauge("lockstep_device_hot_extents", "Extents in the activity log.", float64(d.HotExtents), dev)
	o.gauge("lockstep_device_crash_cost_bytes", "What a crash now would resync, at most.", float64(int64(d.HotExtents)*d.ExtentBytes), dev)
	s := &d.Stats
	o.count("lockstep_device_reads_total", "Reads of local clients.", s.Reads, dev)
	o.count("lockstep_device_writes_total", "Writes of local clients.", s.Writes, dev)
	o.count("lockstep_device_flushes_total", "Flushes of local clients.", s.Flushes, dev)
	o.count("lockstep_device_trims_total", "Trims of local clients.", s.Trims, dev)
	o.count("lockstep_device_read_bytes_total", "Bytes read by local clients.", s.ReadBytes, dev)
	o.count("lockstep_device_write_bytes_total", "Bytes written by local clients.", s.WriteBytes, dev)
	o.count("lockstep_device_remote_reads_total", "Reads that a peer served.", s.RemoteReads, dev)
	o.count("lockstep_device_peer_writes_total", "Writes of the primary that were applied here.", s.PeerWrites, dev)
	o.count("lockstep_device_resync_bytes_total", "Bytes that resyncs have brought here.", s.ResyncBytes, dev)
	o.count("lockstep_device_resync_zero_bytes_total", "Of them, bytes that came as zeroes.", s.ResyncZeroBytes, dev)
	o.count("lockstep_device_generations_total", "New generations of the data begun here.", s.Generations, dev)
	o.count("lockstep_device_disk_read_errors_total", "Reads that this node's disk failed.", s.ReadErrors, dev)
	o.count("lockstep_device_healed_total", "Ranges that the disk could not read and that were rewritten with a peer's copy.", s.Mended, dev)
	o.count("lockstep_device_healed_bytes_total", "Their bytes.", s.MendedBytes, dev)
	o.count("lockstep_device_unhealed_total", "Ranges that the disk could not read and for which no peer had a good copy.", s.Unmended, dev)
	for i := range d.Peers {
		o.devicePeer(dev, &d.Peers[i])
	}
}

func (o out) devicePeer(dev lv, p *device.PeerStatus) {
	node := lv{"node", p.Node}
	o.gauge("lockstep_device_peer_connected", "Whether the device is connected with the peer.", yes(p.Connected), dev, node)
	o.gauge("lockstep_device_peer_up_to_date", "Whether the peer's disk is UpToDate.", yes(p.Disk == replication.UpToDate), dev, node)
	o.gauge("lockstep_device_peer_out_of_sync_bytes", "Bytes that differ, or may, from the peer's.", float64(p.OutOfSync), dev, node)
	var g device.Progress
	if p.Resync != nil {
		g = *p.Resync
	}
	o.gauge("lockstep_resync_running", "Whether a resync with the peer is under way.", yes(p.Resync != nil), dev, node)
	o.gauge("lockstep_resync_done_bytes", "How far the resync with the peer has come.", float64(g.Done), dev, node)
	o.gauge("lockstep_resync_total_bytes", "How far the resync with the peer has to go.", float64(g.Total), dev, node)
	o.gauge("lockstep_resync_rate_bytes", "Bytes a second of the resync with the peer.", float64(g.Rate), dev, node)
}

func (o out) nbd(s nbd.ServerStats) {
	o.gauge("lockstep_nbd_connections", "NBD clients past the handshake.", float64(len(s.Connections)))
	o.gauge("lockstep_nbd_handshaking", "NBD clients in the handshake.", float64(s.Handshaking))
	o.count("lockstep_nbd_accepted_total", "NBD connections accepted.", s.Accepted)
	o.count("lockstep_nbd_refused_total", "Of them, those over the limit.", s.Refused)
	o.gauge("lockstep_nbd_buffers", "Buffers that hold requests' data.", float64(s.Buffers))
	inflight := map[string]int{}
	for _, c := range s.Connections {
		inflight[c.Export] += c.Inflight
	}
	for i := range s.Exports {
		o.export(&s.Exports[i], inflight[s.Exports[i].Export])
	}
}

func (o out) export(x *nbd.ExportStats, inflight int) {
	dev := lv{"device", x.Export}
	o.gauge("lockstep_nbd_export_open", "NBD connections to the device.", float64(x.Open), dev)
	o.gauge("lockstep_nbd_in_flight", "NBD requests read and not yet answered.", float64(inflight), dev)
	o.count("lockstep_nbd_received_bytes_total", "Bytes received from NBD clients.", x.Stats.BytesIn, dev)
	o.count("lockstep_nbd_sent_bytes_total", "Bytes sent to NBD clients.", x.Stats.BytesOut, dev)
	for _, c := range []struct {
		name string
		s    *nbd.CommandStats
	}{
		{"read", &x.Stats.Read}, {"write", &x.Stats.Write}, {"flush", &x.Stats.Flush}, {"trim", &x.Stats.Trim},
		{"cache", &x.Stats.Cache}, {"write_zeroes", &x.Stats.WriteZeroes}, {"block_status", &x.Stats.BlockStatus},
	} {
		o.nbdCommand(dev, lv{"command", c.name}, c.s)
	}
}

func (o out) nbdCommand(dev, cmd lv, s *nbd.CommandStats) {
	o.count("lockstep_nbd_errors_total", "NBD requests that were answered with an error.", s.Errors, dev, cmd)
	o.count("lockstep_nbd_request_bytes_total", "Bytes that NBD requests spoke of.", s.Bytes, dev, cmd)
	buckets := map[float64]uint64{}
	var sum uint64
	for i, n := range s.Latency {
		sum += n
		// A bucket for each doubling is enough of a query's labels.
		if us := nbd.LatencyFrom(i + 1).Microseconds(); us&(us-1) == 0 && i+1 < nbd.LatencyBuckets {
			buckets[float64(us)/1e6] = sum
		}
	}
	desc := prometheus.NewDesc("lockstep_nbd_request_seconds", "Time from reading an NBD request to its reply.", []string{dev.name, cmd.name}, nil)
	o.ch <- prometheus.MustNewConstHistogram(desc, sum, time.Duration(s.Nanos).Seconds(), buckets, dev.value, cmd.value)
}

func (o out) commands(c Commands) {
	o.gauge("lockstep_control_connections", "Connections to the control socket.", float64(c.Connections))
	o.gauge("lockstep_control_in_progress", "Commands in progress.", float64(c.InProgress))
	for _, n := range []struct {
		name, help string
		n          uint64
	}{
		{"accepted", "Connections to the control socket accepted.", c.Accepted},
		{"refused", "Connections to the control socket refused: too many.", c.Refused},
		{"cut_off", "Connections cut off because the client did not read.", c.CutOff},
		{"requests", "Commands received.", c.Requests},
		{"failures", "Commands that were answered with an error.", c.Failures},
		{"timeouts", "Of them, because the deadline passed.", c.Timeouts},
		{"faults", "Of them, because of a fault of the daemon.", c.Panics},
		{"malformed", "Messages that were no commands.", c.Malformed},
		{"notifications", "Notifications queued for subscribers.", c.Notifications},
		{"dropped", "Notifications that found a full queue.", c.Dropped},
	} {
		o.count("lockstep_control_"+n.name+"_total", n.help, n.n)
	}
	for name, one := range c.Each {
		command := lv{"command", name}
		o.count("lockstep_control_command_requests_total", "Times that the command was run.", one.Requests, command)
		o.count("lockstep_control_command_failures_total", "Of them, those that ended in an error.", one.Failures, command)
		o.put(prometheus.CounterValue, "lockstep_control_command_seconds_total", "Time that running the command took.", one.Took.Seconds(), []lv{command})
	}
}

// engine is what is of no single part.
func (c *collector) engine(o out, counts map[events.Count]uint64) {
	if c.s.Services != nil {
		for _, i := range c.s.Services() {
			name := lv{"service", i.Name}
			o.gauge("lockstep_service_running", "Whether the service runs.", yes(i.State == "running"), name)
			o.gauge("lockstep_service_healthy", "Whether the service says that it is well.", yes(i.Health == "ok"), name)
			o.count("lockstep_service_restarts_total", "Restarts of the service after failures.", uint64(i.Restarts), name)
		}
	}
	if c.s.Handlers != nil {
		for i, h := range c.s.Handlers() {
			o.handler([]lv{{"handler", strconv.Itoa(i + 1)}, {"event", h.Event}, {"command", first(h.Command)}}, h.Running, h.Queued, map[string]uint64{
				"succeeded": h.Succeeded, "failed": h.Failed, "retried": h.Retried, "dropped": h.Dropped,
			})
		}
	}
	if c.s.Events != nil {
		o.count("lockstep_events_total", "Events published.", c.s.Events())
	}
	if c.s.Config != nil {
		cfg := c.s.Config()
		o.gauge("lockstep_config_revision", "The revision of the configuration that holds.", float64(cfg.Revision))
		o.gauge("lockstep_config_applied", "Whether the configuration file as it is now holds.", yes(cfg.Applied))
		o.count("lockstep_config_revisions_total", "Configurations that were applied.", counts[events.Count{Type: events.Config}])
		o.count("lockstep_config_refusals_total", "Configurations that were not applied.", counts[events.Count{Type: events.ConfigRefused}])
		o.gauge("lockstep_config_pending", "Changes of the configuration that wait for a restart.", float64(cfg.Pending))
	}
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

func (o out) handler(labels []lv, running, queued int, results map[string]uint64) {
	o.gauge("lockstep_handler_running", "Commands of the handler that run.", float64(running), labels...)
	o.gauge("lockstep_handler_queue", "Events that wait for the handler.", float64(queued), labels...)
	for result, n := range results {
		o.count("lockstep_handler_results_total", "How the handler's commands ended.", n, append(slices.Clone(labels), lv{"result", result})...)
	}
}
