package config

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"
)

// Setting is one key to be set, with its value as text in the form of
// [Config.Keys]: "cluster.tick_time" and "20s".
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// runtimeFile stands in faults for the file where a value came from a command.
const runtimeFile = "set at run time"

// With returns the configuration with some keys changed, validated by the
// same rules as a file. A setting of a device that does not exist makes it;
// its size must then be among the settings. The error is Faults.
func (c *Config) With(env Env, settings ...Setting) (*Config, error) {
	faults := &faultList{file: runtimeFile}
	next := c.clone()
	var bad badKeys
	for _, s := range settings {
		next.set(s, faults, &bad)
	}
	if len(faults.faults) == 0 {
		if !slices.ContainsFunc(settings, namesFile) {
			env = nil // the secret and the certificates stay what they are
		}
		validate(next, faults, bad, env)
	}
	if err := faults.err(); err != nil {
		for i := range faults.faults {
			faults.faults[i].Pos = Pos{}
		}
		return nil, faults.err()
	}
	return next, nil
}

// namesFile reports whether a setting names a file whose content matters.
func namesFile(s Setting) bool {
	return s.Key == "cluster.secret_file" || strings.HasPrefix(s.Key, "cluster.tls.")
}

// Contents is a digest of the files that the configuration names and whose
// content is part of it: the secret and the certificates.
func (c *Config) Contents() []byte {
	h := sha256.New()
	h.Write(c.Cluster.Secret.b)
	h.Write(c.Cluster.TLS.content[:])
	return h.Sum(nil)
}

// set puts one setting into the configuration.
func (c *Config) set(s Setting, faults *faultList, bad *badKeys) {
	sl, ok := c.slotFor(s.Key)
	if !ok {
		faults.add(Pos{}, printable(s.Key), "unknown key", "a key of config show, with the names of this configuration's nodes and devices")
		return
	}
	if sl.key == "name" && sl.path != "cluster.name" {
		faults.add(Pos{}, s.Key, "a name cannot be set", "a name is changed in the file")
		return
	}
	if !utf8.ValidString(s.Value) {
		faults.add(Pos{}, s.Key, quote(s.Value), "text in UTF-8")
		return
	}
	it := itemOf(s.Value, sl.ptr)
	if m := it.assign(sl.ptr, sl.allow); m != nil {
		faults.add(Pos{}, s.Key, m.found, m.allowed)
		bad.set(sl.src, sl.key)
		return
	}
	sl.src.note(sl.key, it)
}

// slotFor finds a key, or makes room for it: an override for a node of a
// device, or a new device.
func (c *Config) slotFor(path string) (slot, bool) {
	find := func(all []slot) (slot, bool) {
		if i := slices.IndexFunc(all, func(s slot) bool { return s.path == path }); i >= 0 {
			return all[i], true
		}
		return slot{}, false
	}
	if s, ok := find(c.slots()); ok {
		return s, true
	}
	rest, ok := strings.CutPrefix(path, "device.")
	if !ok {
		return slot{}, false
	}
	for _, d := range c.Devices {
		on, ok := strings.CutPrefix(rest, d.Name+".on.")
		i := strings.LastIndexByte(on, '.')
		if !ok || i < 0 || c.Node(on[:i]) == nil {
			continue
		}
		if d.On == nil {
			d.On = map[string]*Override{}
		}
		o := d.On[on[:i]]
		if o == nil {
			o = &Override{}
			d.On[on[:i]] = o
		}
		return find(slots(join("device", d.Name+".on."+on[:i]), o, &o.src, overrideFields()))
	}
	i := strings.LastIndexByte(rest, '.')
	if i < 0 || !validName(rest[:i]) || c.Device(rest[:i]) != nil {
		return slot{}, false
	}
	d := defaultDevice()
	d.Name = rest[:i]
	c.Devices = append(c.Devices, d)
	return find(d.slots("device." + d.Name))
}

// itemOf is the text of a setting as a value of the document.
func itemOf(text string, ptr any) *item {
	switch ptr.(type) {
	case *string, *Protocol:
		return &item{kind: kindString, text: text}
	case *Names, *[]string:
		if strings.HasPrefix(strings.TrimSpace(text), "[") {
			return parseValue(text)
		}
	case *bool, *int:
		return parseValue(text)
	}
	return &item{kind: kindString, text: text}
}

// parseValue reads the text as a value of TOML, or as a string where it is none.
func parseValue(text string) *item {
	faults := &faultList{}
	doc := parse([]byte("v = "+text), faults)
	it := doc.root.items["v"]
	if it == nil || len(faults.faults) > 0 || len(doc.root.order) != 1 {
		return &item{kind: kindString, text: text}
	}
	it.pos, it.keyPos, it.at = Pos{}, Pos{}, span{}
	return it
}

// clone is a deep copy, but for the positions, which are copied when they
// change.
func (c *Config) clone() *Config {
	n := *c
	n.Cluster.src.keys = maps.Clone(c.Cluster.src.keys)
	n.Cluster.TLS.src.keys = maps.Clone(c.Cluster.TLS.src.keys)
	n.Control.src.keys = maps.Clone(c.Control.src.keys)
	n.Log.src.keys = maps.Clone(c.Log.src.keys)
	n.Metrics.src.keys = maps.Clone(c.Metrics.src.keys)
	n.Nodes = make([]*Node, len(c.Nodes))
	for i, node := range c.Nodes {
		n.Nodes[i] = new(*node)
		n.Nodes[i].src.keys = maps.Clone(node.src.keys)
	}
	n.Devices = make([]*Device, len(c.Devices))
	for i, d := range c.Devices {
		n.Devices[i] = d.clone()
	}
	n.Handlers = make([]*Handler, len(c.Handlers))
	for i, h := range c.Handlers {
		n.Handlers[i] = new(*h)
		n.Handlers[i].src.keys = maps.Clone(h.src.keys)
	}
	return &n
}

func (d *Device) clone() *Device {
	n := *d
	n.src.keys = maps.Clone(d.src.keys)
	n.On = maps.Clone(d.On)
	for name, o := range n.On {
		copied := *o
		copied.src.keys = maps.Clone(o.src.keys)
		n.On[name] = &copied
	}
	return &n
}

// Edit writes settings into the text of a configuration file and leaves all
// else as it is: comments, layout, order. A key that the file has gets its
// value replaced; one that it has not is added at the end of its table; a
// table that is missing is added at the end of the file. The result is
// checked: it decodes, and means what it did with the settings.
func Edit(path string, data []byte, env Env, settings ...Setting) ([]byte, error) {
	old, err := Decode(path, data, env)
	if err != nil {
		return nil, err
	}
	want, err := old.With(env, settings...)
	if err != nil {
		return nil, err
	}
	e := &editor{data: data, eol: "\n", old: old, want: want, fresh: map[string][]string{}}
	if bytes.Contains(data, []byte("\r\n")) {
		e.eol = "\r\n"
	}
	done := map[string]bool{}
	for _, s := range settings {
		if done[s.Key] {
			continue // want has the last value of it
		}
		done[s.Key] = true
		if err := e.setting(s.Key); err != nil {
			return nil, err
		}
	}
	out := e.result()
	got, err := Decode(path, out, env)
	if err != nil {
		return nil, fmt.Errorf("cannot edit %s: the result is not valid: %w", path, err)
	}
	if d := Diff(want, got); len(d) > 0 {
		return nil, fmt.Errorf("cannot edit %s: the result would not mean the same (%s); change it by hand", path, d[0])
	}
	return out, nil
}

// editor collects the edits of one file.
type editor struct {
	data      []byte
	eol       string // of the file's lines
	old, want *Config
	edits     []edit
	order     []string            // headers of tables to add, in order
	fresh     map[string][]string // their lines
}

// edit replaces the bytes of a span.
type edit struct {
	span
	text string
}

func (e *editor) setting(key string) error {
	val, ok := e.want.slotFor(key)
	if !ok {
		return fmt.Errorf("cannot edit %s: it has no key %s", e.old.Path, key)
	}
	text := literal(val.ptr)
	cur, known := e.old.clone().slotFor(key)
	if known && cur.src.has(val.key) && cur.src.keys[val.key].at.to > 0 {
		e.edits = append(e.edits, edit{cur.src.keys[val.key].at, text})
		return nil
	}
	line := val.key + " = " + text
	switch {
	case known && cur.src.end > 0:
		e.edits = append(e.edits, edit{span{cur.src.end, cur.src.end}, e.eol + line})
		return nil
	case known && cur.src.pos.Line > 0:
		return fmt.Errorf("cannot edit %s: the table of %s has no place for a new key; add it by hand", e.old.Path, key)
	}
	header, err := e.header(val)
	if err != nil {
		return err
	}
	if !slices.Contains(e.order, header) {
		e.order = append(e.order, header)
	}
	e.fresh[header] = append(e.fresh[header], line)
	return nil
}

// header is the header of the table that a key needs and the file has not.
func (e *editor) header(s slot) (string, error) {
	table := strings.TrimSuffix(s.path, "."+s.key)
	if table == "control" || table == "log" || table == "metrics" {
		return "[" + table + "]", nil
	}
	if name, ok := strings.CutPrefix(table, "device."); ok && e.old.Device(name) == nil && e.want.Device(name) != nil {
		return "[[device]]\nname = " + tomlString(name), nil
	}
	return "", fmt.Errorf("cannot edit %s: it has no table for %s; add it by hand", e.old.Path, s.path)
}

// result is the text with all edits made.
func (e *editor) result() []byte {
	slices.SortStableFunc(e.edits, func(a, b edit) int { return a.from - b.from })
	var out []byte
	at := 0
	for _, ed := range e.edits {
		out = append(out, e.data[at:ed.from]...)
		out = append(out, ed.text...)
		at = ed.to
	}
	out = append(out, e.data[at:]...)
	for _, header := range e.order {
		if len(out) > 0 && out[len(out)-1] != '\n' {
			out = append(out, e.eol...)
		}
		out = append(out, e.eol+strings.ReplaceAll(header, "\n", e.eol)+e.eol+strings.Join(e.fresh[header], e.eol)+e.eol...)
	}
	return out
}

// literal is a value as it is written in the file.
func literal(ptr any) string {
	switch p := ptr.(type) {
	case *bool, *int, *Names, *[]string:
		return format(ptr)
	case *Quorum:
		if *p > 0 {
			return p.String()
		}
	}
	return tomlString(format(ptr))
}
