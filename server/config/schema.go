package config

import "time"

// How says how a change of a key is put into effect.
type How string

// The ways of a change, from the mildest on.
const (
	Live     How = "live"             // while everything runs
	Restarts How = "restarts-service" // one service stops and starts for it
	Daemon   How = "needs-restart"    // only a restart of the daemon takes it
	Refused  How = "refused"          // not at all
)

// source is where a table of the file is, and where its keys are.
type source struct {
	pos  Pos
	keys map[string]keySource
	end  int // where a new key can be written; 0 where there is no place
}

type keySource struct {
	pos Pos  // of the value
	at  span // its bytes
}

// has reports whether the file gives the key.
func (s *source) has(key string) bool {
	_, ok := s.keys[key]
	return ok
}

// where is the position of a key's value, of the table where it has none.
func (s *source) where(key string) Pos {
	if k, ok := s.keys[key]; ok {
		return k.pos
	}
	return s.pos
}

func (s *source) note(key string, it *item) {
	if s.keys == nil {
		s.keys = map[string]keySource{}
	}
	s.keys[key] = keySource{it.pos, it.at}
}

// field is one row of the schema: a key of a table, and all there is to know
// about it besides its value.
type field[T any] struct {
	key   string
	at    func(*T) any // a pointer to the value; its type says how it is read
	allow []string     // the values of an enumeration
	must  string       // it has to be given: what to give
	how   How
	note  string // what restarts, or why it is not live
	agree bool   // nodes must have the same
}

// slot is a field of one table of one configuration.
type slot struct {
	path  string // whole key
	key   string // last part
	ptr   any
	allow []string
	must  string
	how   How
	note  string
	agree bool
	src   *source
}

func slots[T any](path string, x *T, src *source, fields []field[T]) []slot {
	out := make([]slot, len(fields))
	for i, f := range fields {
		out[i] = slot{join(path, f.key), f.key, f.at(x), f.allow, f.must, f.how, f.note, f.agree, src}
	}
	return out
}

const whyCluster = "peers would refuse this node until every one of them has it"

func clusterFields() []field[Cluster] {
	return []field[Cluster]{
		{key: "name", at: func(c *Cluster) any { return &c.Name }, must: `a name such as "demo"`, how: Daemon, note: whyCluster, agree: true},
		{key: "secret_file", at: func(c *Cluster) any { return &c.SecretFile }, how: Live},
		{key: "tick_time", at: func(c *Cluster) any { return &c.TickTime }, how: Live},
		{key: "max_ping_count", at: func(c *Cluster) any { return &c.MaxPingCount }, how: Live},
		{key: "sign", at: func(c *Cluster) any { return &c.Sign }, how: Daemon, note: whyCluster, agree: true},
	}
}

func tlsFields() []field[TLS] {
	return []field[TLS]{
		{key: "ca", at: func(t *TLS) any { return &t.CA }, must: "the file of the certificate authority, PEM", how: Live},
		{key: "cert", at: func(t *TLS) any { return &t.Cert }, must: "the file of this node's certificate, PEM", how: Live},
		{key: "key", at: func(t *TLS) any { return &t.Key }, must: "the file of this node's private key, PEM", how: Live},
	}
}

func nodeFields() []field[Node] {
	return []field[Node]{
		{key: "name", at: func(n *Node) any { return &n.Name }, must: `a name such as "alpha"`, how: Live},
		{key: "id", at: func(n *Node) any { return &n.ID }, must: "a number from 0 to 31 that no other node has", how: Daemon, note: "disks know their peers by id", agree: true},
		{key: "address", at: func(n *Node) any { return &n.Address }, must: `where peers reach it, "HOST:PORT"`, how: Live},
		{key: "bind", at: func(n *Node) any { return &n.Bind }, how: Live},
	}
}

func deviceFields() []field[Device] {
	const restarts = "the device closes and opens again"
	return []field[Device]{
		{key: "name", at: func(d *Device) any { return &d.Name }, must: `a name such as "r0"`, how: Live},
		{key: "size", at: func(d *Device) any { return &d.Size }, must: `a size such as "1GiB"`, how: Live, agree: true},
		{key: "disk", at: func(d *Device) any { return &d.Disk }, how: Restarts, note: restarts},
		{key: "nodes", at: func(d *Device) any { return &d.Nodes }, how: Restarts, note: restarts, agree: true},
		{key: "protocol", at: func(d *Device) any { return &d.Protocol }, allow: []string{"A", "B", "C"}, how: Live, agree: true},
		{key: "quorum", at: func(d *Device) any { return &d.Quorum }, how: Live, agree: true},
		{key: "on_no_quorum", at: func(d *Device) any { return &d.OnNoQuorum }, allow: []string{OnNoQuorumSuspend, OnNoQuorumError}, how: Live},
		{key: "auto_promote", at: func(d *Device) any { return &d.AutoPromote }, how: Live},
		{key: "resync_rate", at: func(d *Device) any { return &d.ResyncRate }, how: Live},
		{key: "nbd", at: func(d *Device) any { return &d.NBD }, how: Live},
		{key: "group", at: func(d *Device) any { return &d.Group }, how: Restarts, note: restarts, agree: true},
		{key: "on_io_error", at: func(d *Device) any { return &d.OnIOError }, allow: []string{OnIOErrorDetach, OnIOErrorPassOn}, how: Live},
		{key: "disk_timeout", at: func(d *Device) any { return &d.DiskTimeout }, how: Live},
		{key: "al_extents", at: func(d *Device) any { return &d.ALExtents }, how: Restarts, note: restarts},
		{key: "al_extent_size", at: func(d *Device) any { return &d.ALExtent }, how: Restarts, note: restarts},
		{key: "after_sb_0pri", at: func(d *Device) any { return &d.AfterSB0Pri }, allow: afterSB0(), how: Live, agree: true},
		{key: "after_sb_1pri", at: func(d *Device) any { return &d.AfterSB1Pri }, allow: afterSB1(), how: Live, agree: true},
		{key: "after_sb_2pri", at: func(d *Device) any { return &d.AfterSB2Pri }, allow: afterSB2(), how: Live, agree: true},
		{key: "fence_peer", at: func(d *Device) any { return &d.FencePeer }, how: Live},
	}
}

// afterSB0 and its like are DRBD's policies by DRBD's names. "disconnect"
// leaves a split brain to a person.
func afterSB0() []string {
	return []string{"disconnect", "discard-younger-primary", "discard-older-primary", "discard-zero-changes", "discard-least-changes"}
}

func afterSB1() []string {
	return []string{"disconnect", "consensus", "discard-secondary", "call-pri-lost-after-sb", "violently-as0p"}
}

func afterSB2() []string {
	return []string{"disconnect", "call-pri-lost-after-sb", "violently-as0p"}
}

func overrideFields() []field[Override] {
	const restarts = "the device closes and opens again"
	return []field[Override]{
		{key: "disk", at: func(o *Override) any { return &o.Disk }, how: Restarts, note: restarts},
		{key: "diskless", at: func(o *Override) any { return &o.Diskless }, how: Restarts, note: restarts, agree: true},
		{key: "nbd", at: func(o *Override) any { return &o.NBD }, how: Live},
	}
}

func controlFields() []field[Control] {
	return []field[Control]{
		{key: "admin_groups", at: func(c *Control) any { return &c.AdminGroups }, how: Live},
		{key: "read_groups", at: func(c *Control) any { return &c.ReadGroups }, how: Live},
		{key: "admin_names", at: func(c *Control) any { return &c.AdminNames }, how: Live},
		{key: "read_names", at: func(c *Control) any { return &c.ReadNames }, how: Live},
		{key: "listen", at: func(c *Control) any { return &c.Listen }, how: Restarts, note: "control: remote sessions end"},
	}
}

func logFields() []field[Log] {
	return []field[Log]{
		{key: "file", at: func(l *Log) any { return &l.File }, how: Live},
		{key: "level", at: func(l *Log) any { return &l.Level }, allow: []string{"debug", "info", "warn", "error"}, how: Live},
		{key: "format", at: func(l *Log) any { return &l.Format }, allow: []string{"text", "json"}, how: Live},
	}
}

func metricsFields() []field[Metrics] {
	return []field[Metrics]{
		{key: "listen", at: func(m *Metrics) any { return &m.Listen }, how: Restarts, note: "metrics"},
	}
}

func handlerFields() []field[Handler] {
	return []field[Handler]{
		{key: "event", at: func(h *Handler) any { return &h.Event }, must: `a type of event, such as "nodedown"`, how: Live},
		{key: "command", at: func(h *Handler) any { return &h.Command }, must: `a program and its arguments, ["/usr/local/bin/page-me"]`, how: Live},
		{key: "device", at: func(h *Handler) any { return &h.Device }, how: Live},
		{key: "node", at: func(h *Handler) any { return &h.Node }, how: Live},
		{key: "timeout", at: func(h *Handler) any { return &h.Timeout }, how: Live},
		{key: "max_parallel", at: func(h *Handler) any { return &h.MaxParallel }, how: Live},
		{key: "retries", at: func(h *Handler) any { return &h.Retries }, how: Live},
	}
}

// The defaults: what holds where the file is silent.

func defaultConfig(path string) *Config {
	return &Config{
		Path:    path,
		Cluster: Cluster{TickTime: 8 * time.Second, MaxPingCount: 4},
		Log:     Log{Level: "info", Format: "text"},
	}
}

func defaultNode() *Node { return &Node{ID: -1} }

func defaultDevice() *Device {
	return &Device{
		Protocol:    ProtocolC,
		Quorum:      QuorumMajority,
		OnNoQuorum:  OnNoQuorumSuspend,
		AutoPromote: true,
		ResyncRate:  RateAuto,
		NBD:         Names{"unix"},
		OnIOError:   OnIOErrorDetach,
		ALExtents:   1237,
		ALExtent:    4 << 20,
		AfterSB0Pri: "disconnect",
		AfterSB1Pri: "disconnect",
		AfterSB2Pri: "disconnect",
	}
}

func defaultHandler() *Handler {
	return &Handler{Timeout: 30 * time.Second, MaxParallel: 4}
}

// defaultDisk is the disk of a device whose table names none.
func defaultDisk(device string) string { return device + ".img" }
