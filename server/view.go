package server

import (
	"fmt"
	"iter"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/server/cmap"
	"github.com/lockstepd/lockstep/server/device"
	"github.com/lockstepd/lockstep/server/events"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/replication"
)

// pair is a key below some prefix, with its value.
type pair struct {
	key   string
	value cmap.Value
}

// view shows things of one kind in the object database: for each of its names,
// keys that are computed when they are read.
type view struct {
	prefix string
	names  func() []string
	of     func(name string) []pair
}

// Get computes one key; only the thing that it belongs to is asked.
func (v *view) Get(key string) (cmap.Value, bool) {
	for _, name := range v.names() {
		rest, ok := strings.CutPrefix(key, v.at(name))
		if !ok {
			continue
		}
		for _, p := range v.of(name) {
			if p.key == rest {
				return p.value, true
			}
		}
	}
	return cmap.Value{}, false
}

func (v *view) at(name string) string {
	if name == "" {
		return v.prefix
	}
	return v.prefix + cmap.Name(name) + "."
}

// All yields every key.
func (v *view) All() iter.Seq2[string, cmap.Value] {
	return func(yield func(string, cmap.Value) bool) {
		for _, name := range v.names() {
			for _, p := range v.of(name) {
				if !yield(v.at(name)+p.key, p.value) {
					return
				}
			}
		}
	}
}

// provideKeys shows in the object database all that "status" shows.
func (e *engine) provideKeys() error {
	views := []*view{
		{"nodes.", e.nodeNames, e.nodeKeys},
		{"devices.", e.deviceNames, e.deviceKeys},
		{"services.", e.services.Names, e.serviceKeys},
		{"cluster.", one, e.clusterKeys},
		{"runtime.status.", one, e.statusKeys},
		{"stats.nodes.", e.nodeNames, e.nodeStats},
		{"stats.devices.", e.deviceNames, e.deviceStats},
		{"stats.nbd.", one, e.nbdStats},
		{"stats.config.", one, e.configStats},
	}
	for _, v := range views {
		if _, err := e.cmap.Provide(v.prefix, v); err != nil {
			return fmt.Errorf("cannot show %s* in the object database: %w", v.prefix, err)
		}
	}
	return e.cmap.Commit(
		cmap.SetOp("runtime.node", cmap.String(e.opts.Node)),
		cmap.SetOp("runtime.version", cmap.String(e.opts.Version)),
		cmap.SetOp("runtime.pid", cmap.Int(int64(os.Getpid()))),
		cmap.SetOp("runtime.started", cmap.String(e.began.UTC().Format(time.RFC3339))),
	)
}

// one is the names of a view of one thing.
func one() []string { return []string{""} }

func (e *engine) nodeNames() []string {
	if e.msgr == nil {
		return nil
	}
	var out []string
	for _, n := range e.msgr.Nodes() {
		out = append(out, n.Name)
	}
	return out
}

func (e *engine) nodeKeys(name string) []pair {
	n, err := e.msgr.Node(name)
	if err != nil {
		return nil
	}
	return []pair{
		{"id", cmap.Int(int64(n.ID))},
		{"state", cmap.String(n.State)},
		{"address", cmap.String(n.Address)},
		{"data", cmap.String(n.Data.State)},
		{"meta", cmap.String(n.Meta.State)},
		{"since", cmap.String(stamp(n.Since))},
		{"rtt_us", cmap.Int(n.RTT.Microseconds())},
		{"missed_pings", cmap.Int(int64(n.MissedPings))},
		{"last_error", cmap.String(n.LastError)},
	}
}

// stamp is a time as text; "" for none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

func (e *engine) nodeStats(name string) []pair {
	n, err := e.msgr.Node(name)
	if err != nil {
		return nil
	}
	out := []pair{{"connects", cmap.Uint(n.Connects)}, {"attempts", cmap.Int(int64(n.Attempts))}}
	for _, l := range []struct {
		name string
		info *messenger.LinkInfo
	}{{"data.", &n.Data}, {"meta.", &n.Meta}} {
		out = append(out,
			pair{l.name + "sent_bytes", cmap.Uint(l.info.SentBytes)},
			pair{l.name + "recv_bytes", cmap.Uint(l.info.RecvBytes)},
			pair{l.name + "sent_frames", cmap.Uint(l.info.SentFrames)},
			pair{l.name + "recv_frames", cmap.Uint(l.info.RecvFrames)},
			pair{l.name + "queued_bytes", cmap.Int(l.info.QueuedBytes)},
			pair{l.name + "throttled", cmap.Uint(l.info.Throttled)},
		)
	}
	return out
}

func (e *engine) deviceNames() []string {
	var out []string
	for _, d := range e.devices.All() {
		out = append(out, d.Name())
	}
	return out
}

func (e *engine) deviceKeys(name string) []pair {
	d, ok := e.devices.Get(name)
	if !ok {
		return nil
	}
	st := d.Status()
	out := []pair{
		{"size", cmap.Int(st.Size)},
		{"role", cmap.String(st.Role.String())},
		{"disk", cmap.String(st.Disk.String())},
		{"quorum", cmap.Bool(st.Quorum.Quorate)},
		{"suspended", cmap.Bool(st.Suspended)},
		{"open", cmap.Int(int64(st.Open))},
		{"protocol", cmap.String(st.Protocol.String())},
		{"backing", cmap.String(st.Backing)},
		{"last_error", cmap.String(st.LastError)},
		{"group", cmap.String(st.Group)},
		{"quorum_why", cmap.String(st.Quorum.Why)},
	}
	for i := range st.Peers {
		out = append(out, peerKeys(&st.Peers[i])...)
	}
	return out
}

func peerKeys(p *device.PeerStatus) []pair {
	at := "peers." + cmap.Name(p.Node) + "."
	out := []pair{
		{at + "role", cmap.String(p.Role.String())},
		{at + "disk", cmap.String(p.Disk.String())},
		{at + "replication", cmap.String(p.Repl.String())},
		{at + "out_of_sync", cmap.Int(p.OutOfSync)},
		{at + "refused", cmap.String(p.Refused)},
		{at + "split_brain", cmap.Bool(p.Refused != "" && p.Decision.Action == replication.SplitBrain)},
	}
	if r := p.Resync; r != nil {
		out = append(out,
			pair{at + "resync.done", cmap.Int(r.Done)}, pair{at + "resync.total", cmap.Int(r.Total)},
			pair{at + "resync.rate", cmap.Int(r.Rate)}, pair{at + "resync.eta_s", cmap.Int(int64(r.Left / time.Second))},
		)
	}
	if v := p.Verified; v != nil {
		out = append(out,
			pair{at + "verified.at", cmap.String(stamp(v.At))}, pair{at + "verified.differ", cmap.Int(v.Differ)},
			pair{at + "verified.skipped", cmap.Int(v.Skipped)}, pair{at + "verified.stopped", cmap.String(v.Stopped)},
		)
	}
	return out
}

func (e *engine) deviceStats(name string) []pair {
	d, ok := e.devices.Get(name)
	if !ok {
		return nil
	}
	st := d.Status()
	s := &st.Stats
	out := []pair{{"in_flight", cmap.Int(int64(st.InFlight))}, {"hot_extents", cmap.Int(int64(st.HotExtents))}}
	for _, c := range []struct {
		key string
		n   uint64
	}{
		{"reads", s.Reads}, {"writes", s.Writes}, {"flushes", s.Flushes}, {"trims", s.Trims},
		{"read_bytes", s.ReadBytes}, {"write_bytes", s.WriteBytes}, {"remote_reads", s.RemoteReads},
		{"peer_writes", s.PeerWrites}, {"resync_bytes", s.ResyncBytes}, {"resync_zero_bytes", s.ResyncZeroBytes}, {"generations", s.Generations},
		{"disk_read_errors", s.ReadErrors}, {"healed", s.Mended}, {"healed_bytes", s.MendedBytes}, {"unhealed", s.Unmended},
	} {
		out = append(out, pair{c.key, cmap.Uint(c.n)})
	}
	return out
}

func (e *engine) configStats(string) []pair {
	n := e.events.Counts()
	return []pair{
		{"applied", cmap.Uint(n[events.Count{Type: events.Config}])},
		{"refused", cmap.Uint(n[events.Count{Type: events.ConfigRefused}])},
	}
}

func (e *engine) nbdStats(string) []pair {
	if e.nbd == nil {
		return nil
	}
	s := e.nbd.Stats()
	return []pair{
		{"connections", cmap.Int(int64(len(s.Connections)))}, {"handshaking", cmap.Int(int64(s.Handshaking))},
		{"accepted", cmap.Uint(s.Accepted)}, {"refused", cmap.Uint(s.Refused)}, {"buffers", cmap.Int(s.Buffers)},
	}
}

func (e *engine) serviceKeys(name string) []pair {
	i, err := e.services.Show(name)
	if err != nil {
		return nil
	}
	return []pair{
		{"state", cmap.String(string(i.State))}, {"since", cmap.String(stamp(i.Since))}, {"health", cmap.String(i.Health)},
		{"restarts", cmap.Int(int64(i.Restarts))}, {"version", cmap.Int(int64(i.Version))},
	}
}

// statusKeys are what the status says of the node as a whole.
func (e *engine) statusKeys(string) []pair {
	c := e.control
	if c == nil || e.msgr == nil {
		return nil
	}
	health, problems := c.Summary()
	out := []pair{{"health", cmap.String(health)}, {"id", cmap.Int(int64(e.local().Node.ID))}}
	for i, p := range problems {
		at := "problems." + strconv.Itoa(i+1) + "."
		out = append(out, pair{at + "subject", cmap.String(p.Subject)}, pair{at + "what", cmap.String(p.What)}, pair{at + "do", cmap.String(p.Do)}, pair{at + "failed", cmap.Bool(p.Failed)})
	}
	for _, o := range e.conf.Overrides() {
		out = append(out, pair{"overrides." + o.Path + ".value", cmap.String(o.Value)}, pair{"overrides." + o.Path + ".file", cmap.String(o.File)})
	}
	return out
}

func (e *engine) clusterKeys(string) []pair {
	if e.msgr == nil {
		return nil
	}
	t := e.msgr.GetTick()
	return []pair{
		{"name", cmap.String(e.conf.Current().Cluster.Name)},
		{"revision", cmap.Uint(e.rev.Current())},
		{"tick_time_ms", cmap.Int(t.Tick.Milliseconds())},
		{"max_ping_count", cmap.Int(int64(t.Pings))},
		{"tick_target_ms", cmap.Int(t.Target.Milliseconds())},
		{"tick_remaining_ms", cmap.Int(t.Remaining.Milliseconds())},
	}
}
