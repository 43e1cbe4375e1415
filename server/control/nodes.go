package control

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/rpc"
	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/server/cluster"
	"github.com/lockstepd/lockstep/server/config"
	"github.com/lockstepd/lockstep/server/messenger"
	"github.com/lockstepd/lockstep/server/reload"
)

func nodeOf(n *messenger.NodeInfo) api.Node {
	return api.Node{
		Name: n.Name, ID: n.ID, State: n.State, Address: n.Address, Data: n.Data.State, Meta: n.Meta.State,
		Since: n.Since, RTTUS: n.RTT.Microseconds(), MissedPings: n.MissedPings, LastError: n.LastError,
	}
}

func (c *Control) nodes() []api.Node {
	all := c.o.Messenger.Nodes()
	out := make([]api.Node, len(all))
	for i := range all {
		out[i] = nodeOf(&all[i])
	}
	return out
}

func (c *Control) nodeList(context.Context, rpc.Actor, none) ([]api.Node, error) {
	return c.nodes(), nil
}

// peer finds a peer or says which there are.
func (c *Control) peer(name string) (messenger.NodeInfo, error) {
	n, err := c.o.Messenger.Node(name)
	if err == nil {
		return n, nil
	}
	if name == c.o.Node {
		return n, api.Errorf(api.CodeNotFound, "%s is this node itself (see: lockstepctl node list)", name)
	}
	return n, api.Errorf(api.CodeNotFound, "no peer %q (see: lockstepctl node list)", name)
}

func (c *Control) nodeShow(_ context.Context, _ rpc.Actor, p api.NodeParams) (api.NodeDetail, error) {
	n, err := c.peer(p.Node)
	if err != nil {
		return api.NodeDetail{}, err
	}
	d := api.NodeDetail{
		Node: nodeOf(&n), Session: n.SessionID, Protocol: int(n.Version), LastFrameMS: -1,
		TickTimeMS: n.Promise.Tick.Milliseconds(), MaxPingCount: n.Promise.Pings,
		SentBytes: n.Data.SentBytes + n.Meta.SentBytes, RecvBytes: n.Data.RecvBytes + n.Meta.RecvBytes,
		SentFrames: n.Data.SentFrames + n.Meta.SentFrames, RecvFrames: n.Data.RecvFrames + n.Meta.RecvFrames,
		QueuedBytes: n.Data.QueuedBytes + n.Meta.QueuedBytes, Connects: n.Connects,
		BackoffMS: n.Dialling.Backoff.Milliseconds(), RetryInMS: -1,
	}
	if n.Incarnation != 0 {
		d.Incarnation = strconv.FormatUint(n.Incarnation, 16)
	}
	if n.LastFrame >= 0 {
		d.LastFrameMS = n.LastFrame.Milliseconds()
	}
	if n.RetryIn >= 0 {
		d.RetryInMS = n.RetryIn.Milliseconds()
	}
	return d, nil
}

func (c *Control) nodeWhy(_ context.Context, _ rpc.Actor, p api.NodeParams) (api.Why, error) {
	if _, err := c.peer(p.Node); err != nil {
		return api.Why{}, err
	}
	w, err := c.o.Messenger.Why(p.Node)
	why := api.Why{Subject: w.Subject, State: w.State, Since: w.Since, Because: w.Because, Next: w.Next}
	if differ := c.configuredOtherwise(p.Node); len(differ) > 0 {
		why.Because = append(why.Because, fmt.Sprintf("its configuration of %s differs in what nodes must agree on (size, nodes, protocol, quorum)", strings.Join(differ, ", ")))
		why.Next = append(why.Next, "have both nodes read the same file: lockstepctl config diff, then lockstepctl config reload, on each")
	}
	return why, err
}

// configuredOtherwise names the devices that a peer in contact has configured
// otherwise than this node.
func (c *Control) configuredOtherwise(node string) (devices []string) {
	for _, d := range c.o.Devices.All() {
		if slices.Contains(d.Status().Differs, node) {
			devices = append(devices, d.Name())
		}
	}
	return devices
}

// each runs a verb on one peer, or on all.
func (c *Control) each(name, did string, verb func(node string) error) (api.Done, error) {
	if name == "" {
		all := c.o.Messenger.Nodes()
		for i := range all {
			if err := verb(all[i].Name); err != nil {
				return api.Done{}, err
			}
		}
		return text("%s %d peers", did, len(all))
	}
	if _, err := c.peer(name); err != nil {
		return api.Done{}, err
	}
	if err := verb(name); err != nil {
		return api.Done{}, err
	}
	return text("%s %s", did, name)
}

func (c *Control) nodeConnect(ctx context.Context, _ rpc.Actor, p api.NodeParams) (api.Done, error) {
	before, _ := c.o.Messenger.Node(p.Node)
	done, err := c.each(p.Node, "connecting", func(n string) error { return c.o.Messenger.Connect(ctx, n) })
	if err == nil && before.State == "up" {
		return text("%s is up", p.Node)
	}
	return done, err
}

type disconnectParams struct {
	Node    string `json:"node,omitempty"`
	Persist bool   `json:"persist,omitempty"`
}

func (c *Control) nodeDisconnect(ctx context.Context, _ rpc.Actor, p disconnectParams) (api.Done, error) {
	return c.each(p.Node, "disconnected", func(n string) error { return c.o.Messenger.Disconnect(ctx, n, p.Persist) })
}

func (c *Control) nodeReconnect(ctx context.Context, _ rpc.Actor, p api.NodeParams) (api.Done, error) {
	return c.each(p.Node, "reconnecting", func(n string) error { return c.o.Messenger.Reconnect(ctx, n) })
}

func (c *Control) tickGet(context.Context, rpc.Actor, none) (api.Tick, error) {
	t := c.o.Messenger.GetTick()
	return api.Tick{TickTimeMS: t.Tick.Milliseconds(), MaxPingCount: t.Pings,
		TargetMS: t.Target.Milliseconds(), RemainingMS: t.Remaining.Milliseconds()}, nil
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// tickSet begins a change of the tick time and keeps it, over the file's, as
// what the configuration says from now on.
func (c *Control) tickSet(ctx context.Context, by rpc.Actor, p api.TickSetParams) (api.TickSet, error) {
	transition := cluster.DefaultTransition
	if p.Transition != 0 {
		transition = seconds(p.Transition)
	}
	kept := config.Setting{Key: "cluster.tick_time", Value: seconds(p.Seconds).String()}
	if _, err := c.o.Reload.Current().With(nil, kept); err != nil {
		return api.TickSet{}, api.Errorf(api.CodeInvalidParams, "cannot change the tick time: %v", err)
	}
	res, target, err := c.o.Messenger.SetTick(seconds(p.Seconds), transition, p.Local)
	if err != nil {
		return api.TickSet{}, api.Errorf(api.CodeInvalidParams, "cannot change the tick time: %v", err)
	}
	if target == seconds(p.Seconds) {
		if _, err := c.o.Reload.Set(ctx, reload.Request{Who: by.String()}, kept); err != nil {
			c.o.Log.Warn("the tick time changes, and will be as the file says after a restart", "err", err)
		}
	}
	return api.TickSet{Result: res.String(), TargetMS: target.Milliseconds()}, nil
}

func tickSetText(t api.TickSet) string {
	if t.Result == cluster.OngoingChangeTo.String() {
		return fmt.Sprintf("%s %g", t.Result, float64(t.TargetMS)/1000)
	}
	return t.Result
}

func tickText(t api.Tick) string {
	s := fmt.Sprintf("%g s, %d pings", float64(t.TickTimeMS)/1000, t.MaxPingCount)
	if t.TargetMS != 0 {
		s += fmt.Sprintf(", changing to %g s (%g s left)", float64(t.TargetMS)/1000, float64(t.RemainingMS)/1000)
	}
	return s
}

// LinkRow is one link of "messenger/show".
type LinkRow struct {
	Node         string `json:"node"`
	Link         string `json:"link"`
	State        string `json:"state"`
	SentBytes    uint64 `json:"sent_bytes"`
	RecvBytes    uint64 `json:"recv_bytes"`
	SentFrames   uint64 `json:"sent_frames"`
	RecvFrames   uint64 `json:"recv_frames"`
	QueuedBytes  int64  `json:"queued_bytes"`
	QueuedFrames int    `json:"queued_frames"`
	LimitBytes   int64  `json:"limit_bytes"`
	HeldBytes    int64  `json:"held_bytes"`
	Throttled    uint64 `json:"throttled"`
	Relieved     uint64 `json:"relieved"`
	Away         int    `json:"away"`
	Connections  uint64 `json:"connections"`
}

func (c *Control) chosen(name string) ([]messenger.NodeInfo, error) {
	if name == "" {
		return c.o.Messenger.Nodes(), nil
	}
	n, err := c.peer(name)
	return []messenger.NodeInfo{n}, err
}

func (c *Control) messengerShow(_ context.Context, _ rpc.Actor, p api.NodeParams) ([]LinkRow, error) {
	nodes, err := c.chosen(p.Node)
	if err != nil {
		return nil, err
	}
	rows := []LinkRow{}
	for i := range nodes {
		for name, l := range map[string]*messenger.LinkInfo{"data": &nodes[i].Data, "meta": &nodes[i].Meta} {
			rows = append(rows, LinkRow{
				Node: nodes[i].Name, Link: name, State: l.State, SentBytes: l.SentBytes, RecvBytes: l.RecvBytes,
				SentFrames: l.SentFrames, RecvFrames: l.RecvFrames, QueuedBytes: l.QueuedBytes, QueuedFrames: l.QueuedFrames,
				LimitBytes: l.LimitBytes, HeldBytes: l.HeldBytes, Throttled: l.Throttled, Relieved: l.Relieved, Away: l.Away, Connections: l.Connections,
			})
		}
	}
	sortLinks(rows)
	return rows, nil
}

// ReconnectRow is one peer of "reconnect/show".
type ReconnectRow struct {
	Node        string `json:"node"`
	State       string `json:"state"` // of the state machine: VOID, BACKOFF, CONNECTING, ACTIVE or LISTENING
	StateForMS  int64  `json:"state_for_ms"`
	Dials       bool   `json:"dials"` // this node dials; else it waits for the peer
	Attempts    uint64 `json:"attempts"`
	Connects    uint64 `json:"connects"`
	Failures    int    `json:"failures"`     // attempts since it was connected last
	ConnectedMS int64  `json:"connected_ms"` // in all
	BackoffMS   int64  `json:"backoff_ms"`
	RetryInMS   int64  `json:"retry_in_ms"`
	LastError   string `json:"last_error"`
}

func (c *Control) reconnectShow(_ context.Context, _ rpc.Actor, p api.NodeParams) ([]ReconnectRow, error) {
	nodes, err := c.chosen(p.Node)
	if err != nil {
		return nil, err
	}
	rows := make([]ReconnectRow, len(nodes))
	for i := range nodes {
		n, s := &nodes[i], &nodes[i].Dialling
		rows[i] = ReconnectRow{Node: n.Name, State: s.State.String(), StateForMS: s.StateFor.Milliseconds(), Dials: n.Dials,
			Attempts: s.AttemptedConnections, Connects: s.SuccessfulConns, Failures: n.Attempts, ConnectedMS: s.TotalConnected.Milliseconds(),
			BackoffMS: s.Backoff.Milliseconds(), RetryInMS: -1, LastError: n.LastError}
		if n.RetryIn >= 0 {
			rows[i].RetryInMS = n.RetryIn.Milliseconds()
		}
	}
	return rows, nil
}
