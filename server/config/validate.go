package config

import (
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/server/events"
)

// validator is every rule of the configuration that is more than the type of
// one key. There is no other: the file, a reload and a value set at run time
// all pass here.
type validator struct {
	cfg    *Config
	faults *faultList
	bad    badKeys
	env    Env
}

func validate(cfg *Config, faults *faultList, bad badKeys, env Env) {
	v := &validator{cfg: cfg, faults: faults, bad: bad, env: env}
	v.cluster(&cfg.Cluster)
	v.nodes()
	v.devices()
	v.control(&cfg.Control)
	v.metrics(&cfg.Metrics)
	v.handlers()
	v.ports()
}

// fault reports a key, unless a fault of it was reported before.
func (v *validator) fault(src *source, path, key, found, allowed string) {
	if v.bad[badKey{src, key}] {
		return
	}
	v.bad.set(src, key)
	v.faults.add(src.where(key), join(path, key), found, allowed)
}

// ok reports whether a key has had no fault so far.
func (v *validator) ok(src *source, key string) bool { return !v.bad[badKey{src, key}] }

const allowName = "1 to 63 of letters, digits, . _ -, beginning with a letter or digit"

// validName is the rule of names of clusters, nodes, devices and groups.
func validName(s string) bool {
	if len(s) == 0 || len(s) > 63 {
		return false
	}
	for i := range len(s) {
		c := s[i]
		alnum := c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if !alnum && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}

func (v *validator) name(src *source, path, key, name string) {
	if !validName(name) {
		v.fault(src, path, key, quote(name), allowName)
	}
}

// duration checks that lo <= d <= hi.
func (v *validator) duration(src *source, path, key string, d, lo, hi time.Duration) {
	if d < lo || d > hi {
		v.fault(src, path, key, formatDuration(d), "from "+formatDuration(lo)+" to "+formatDuration(hi))
	}
}

// number checks that lo <= n <= hi.
func (v *validator) number(src *source, path, key string, n, lo, hi int) {
	if n < lo || n > hi {
		v.fault(src, path, key, strconv.Itoa(n), fmt.Sprintf("from %d to %d", lo, hi))
	}
}

func (v *validator) cluster(c *Cluster) {
	const path = "cluster"
	if v.ok(&c.src, "name") && (c.src.has("name") || c.Name != "") {
		v.name(&c.src, path, "name", c.Name)
	}
	v.duration(&c.src, path, "tick_time", c.TickTime, MinTickTime, MaxTickTime)
	v.number(&c.src, path, "max_ping_count", c.MaxPingCount, MinMaxPingCount, MaxMaxPingCount)
	if c.SecretFile == "" {
		if c.src.has("secret_file") {
			v.fault(&c.src, path, "secret_file", `""`, "a file of at least 16 bytes with mode 0600")
		} else if len(v.cfg.Nodes) > 1 {
			v.fault(&c.src, path, "secret_file", "missing", "with more than one node, a file of at least 16 bytes with mode 0600")
		}
	}
	v.secret(c)
	v.tlsKeys(&c.TLS)
	v.tls(&c.TLS)
}

func (v *validator) tlsKeys(t *TLS) {
	for _, s := range slots("", t, &t.src, tlsFields()) {
		if t.src.has(s.key) && *s.ptr.(*string) == "" {
			v.fault(&t.src, "cluster.tls", s.key, `""`, s.must)
		}
	}
}

func (v *validator) nodes() {
	if len(v.cfg.Nodes) == 0 {
		v.faults.add(Pos{1, 1}, "node", "missing", "at least one [[node]]")
	}
	if len(v.cfg.Nodes) > MaxNodes {
		v.faults.add(v.cfg.Nodes[MaxNodes].src.pos, "node", strconv.Itoa(len(v.cfg.Nodes))+" nodes", "at most 32")
	}
	names, ids, addresses := firsts[string]{}, firsts[int]{}, firsts[string]{}
	for i, n := range v.cfg.Nodes {
		path := v.nodePath(i)
		v.name(&n.src, path, "name", n.Name)
		v.number(&n.src, path, "id", n.ID, 0, MaxNodes-1)
		v.unique(names.again(v, &n.src, "name", n.Name), &n.src, path, "name", quote(n.Name))
		v.unique(ids.again(v, &n.src, "id", n.ID), &n.src, path, "id", strconv.Itoa(n.ID))
		if why := badAddress(n.Address, false); why != "" {
			v.fault(&n.src, path, "address", quote(n.Address)+" "+why, `"HOST:PORT", port 1 to 65535, such as "192.0.2.1:7799"`)
		}
		v.unique(addresses.again(v, &n.src, "address", n.Address), &n.src, path, "address", quote(n.Address))
		if n.src.has("bind") {
			if why := badAddress(n.Bind, true); why != "" {
				v.fault(&n.src, path, "bind", quote(n.Bind)+" "+why, `"HOST:PORT" or ":PORT" of this node`)
			}
		}
	}
}

// firsts remembers where a value came first.
type firsts[K comparable] map[K]Pos

// again returns where the value was given before, and remembers it.
func (f firsts[K]) again(v *validator, src *source, key string, value K) Pos {
	if !v.ok(src, key) {
		return Pos{}
	}
	first, seen := f[value]
	if !seen {
		f[value] = src.where(key)
	}
	return first
}

func (v *validator) unique(first Pos, src *source, path, key, value string) {
	if first.Line > 0 {
		v.fault(src, path, key, value+" is taken in line "+strconv.Itoa(first.Line), "each once")
	}
}

func (v *validator) nodePath(i int) string   { return pathOf("node", i, v.cfg.Nodes[i].Name) }
func (v *validator) devicePath(i int) string { return pathOf("device", i, v.cfg.Devices[i].Name) }

// pathOf is the path of a table of an array: by name, by number without one.
func pathOf(kind string, i int, name string) string {
	if validName(name) {
		return join(kind, name)
	}
	return join(kind, strconv.Itoa(i+1))
}

// badAddress says what is wrong with HOST:PORT, or "".
func badAddress(s string, anyHost bool) string {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return "is not HOST:PORT"
	}
	if host == "" && !anyHost {
		return "has no host"
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "has no such port"
	}
	if strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }) || len(host) > 253 {
		return "has no valid host"
	}
	return ""
}

func (v *validator) control(c *Control) {
	v.names(&c.src, "control", "admin_groups", c.AdminGroups, "names of groups")
	v.names(&c.src, "control", "read_groups", c.ReadGroups, "names of groups")
	v.names(&c.src, "control", "admin_names", c.AdminNames, "common names of certificates")
	v.names(&c.src, "control", "read_names", c.ReadNames, "common names of certificates")
	for _, s := range c.Listen {
		switch _, why := parseRemote(s); {
		case why != "":
			v.fault(&c.src, "control", "listen", quote(s)+" "+why, `"pssl:PORT" or "pssl:PORT:IP"; only TLS is served to other hosts`)
		case !v.cfg.Cluster.TLS.Enabled():
			v.fault(&c.src, "control", "listen", quote(s)+" without certificates", "with [cluster] tls only")
		case len(c.AdminNames)+len(c.ReadNames) == 0:
			v.fault(&c.src, "control", "listen", quote(s)+" for nobody", "with admin_names or read_names, the names in certificates of those who may come in")
		}
	}
}

// parseRemote takes "pssl:PORT[:IP]" apart, or says what is wrong with it.
func parseRemote(s string) (address, why string) {
	rest, ok := strings.CutPrefix(s, "pssl:")
	if !ok {
		return "", "is no TLS stream"
	}
	port, host, _ := strings.Cut(rest, ":")
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if _, err := netip.ParseAddr(host); host != "" && err != nil {
		return "", "has no valid IP address"
	}
	address = net.JoinHostPort(host, port)
	return address, badAddress(address, true)
}

// names checks a list of names for empty ones and duplicates.
func (v *validator) names(src *source, path, key string, list Names, allowed string) {
	for i, s := range list {
		if s == "" {
			v.fault(src, path, key, `""`, allowed)
		} else if slices.Contains(list[:i], s) {
			v.fault(src, path, key, quote(s)+" twice", "each once")
		}
	}
}

func (v *validator) metrics(m *Metrics) {
	if !m.src.has("listen") && m.Listen == "" {
		return
	}
	if why := badAddress(m.Listen, true); why != "" {
		v.fault(&m.src, "metrics", "listen", quote(m.Listen)+" "+why, `"HOST:PORT", such as "127.0.0.1:9799"`)
	}
}

func (v *validator) handlers() {
	if len(v.cfg.Handlers) > MaxHandlers {
		v.faults.add(v.cfg.Handlers[MaxHandlers].src.pos, "handler", strconv.Itoa(len(v.cfg.Handlers))+" handlers", "at most 256")
	}
	for i, h := range v.cfg.Handlers {
		v.handler("handler."+strconv.Itoa(i+1), h)
	}
}

func (v *validator) handler(path string, h *Handler) {
	if !events.Known(h.Event) {
		allowed := "one of " + strings.Join(events.Types(), ", ") + `, or "*" for all`
		if near := nearest(h.Event, events.Types()); near != "" {
			allowed = "did you mean " + quote(near) + "? " + allowed
		}
		v.fault(&h.src, path, "event", quote(h.Event), allowed)
	}
	v.command(&h.src, path, "command", h.Command, true)
	v.duration(&h.src, path, "timeout", h.Timeout, 100*time.Millisecond, time.Hour)
	v.number(&h.src, path, "max_parallel", h.MaxParallel, 1, 64)
	v.number(&h.src, path, "retries", h.Retries, 0, 10)
	for _, name := range h.Device {
		if v.cfg.Device(name) == nil {
			v.fault(&h.src, path, "device", quote(name), "names of devices of this file")
		}
	}
	for _, name := range h.Node {
		if v.cfg.Node(name) == nil {
			v.fault(&h.src, path, "node", quote(name), "names of nodes of this file")
		}
	}
}

// command checks an argv.
func (v *validator) command(src *source, path, key string, argv []string, must bool) {
	const allowed = "an absolute path of a program, then its arguments"
	switch {
	case len(argv) == 0:
		if must {
			v.fault(src, path, key, "[]", allowed)
		}
	case !filepath.IsAbs(argv[0]):
		v.fault(src, path, key, quote(argv[0]), allowed)
	case slices.ContainsFunc(argv, func(s string) bool { return strings.ContainsRune(s, 0) }):
		v.fault(src, path, key, "a NUL character", allowed)
	}
}
