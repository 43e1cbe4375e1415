package config

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

// Load reads, decodes and validates the file. Its error is Faults where the
// file was read and is wrong.
func Load(path string) (*Config, error) {
	data, err := ReadFile(path)
	if err != nil {
		return nil, err
	}
	return Decode(path, data, OS())
}

// ReadFile reads a configuration file of bounded size.
func ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.IsDir() {
		return nil, fmt.Errorf("cannot read the configuration: %s is a directory; give the file in it", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFileBytes+1))
	if err != nil {
		return nil, fmt.Errorf("cannot read the configuration: %w", err)
	}
	return data, nil
}

// Decode decodes and validates a configuration in memory. Path is its name in
// faults, and the folder that relative paths in it start from. Env gives
// access to the files that it names; with a nil Env they are not looked at.
func Decode(path string, data []byte, env Env) (*Config, error) {
	faults := &faultList{file: path}
	if len(data) > MaxFileBytes {
		faults.add(Pos{}, "", "larger than "+Size(MaxFileBytes).String(), "a configuration that a person can read")
		return nil, faults.err()
	}
	doc := parse(data, faults)
	d := &decoder{faults: faults, cfg: defaultConfig(path), broken: doc.broken}
	d.root(doc.root)
	if !doc.broken && !d.misshapen {
		validate(d.cfg, faults, d.bad, env)
	}
	doc.gate()
	if err := faults.err(); err != nil {
		return nil, err
	}
	return d.cfg, nil
}

// decoder fills a Config from a document by the schema.
type decoder struct {
	faults *faultList
	cfg    *Config
	broken bool // there were syntax faults: what is missing may have been lost to them
	// misshapen is set where a whole table could not be read, so that the
	// rules between tables would find faults that are none.
	misshapen bool
	// bad are the keys that a fault was reported for, so that the validator
	// is silent about them.
	bad badKeys
}

// badKeys is keyed by table and key.
type badKeys map[badKey]bool

type badKey struct {
	src *source
	key string
}

func (b *badKeys) set(src *source, key string) {
	if *b == nil {
		*b = badKeys{}
	}
	(*b)[badKey{src, key}] = true
}

// sub decodes a key that holds tables.
type sub struct {
	key  string
	into func(path string, it *item)
}

func (d *decoder) root(t *table) {
	c := d.cfg
	d.section("", t, &source{}, nil, []sub{
		{"cluster", func(path string, it *item) { d.cluster(path, it) }},
		{"node", func(path string, it *item) { each(d, path, it, d.node) }},
		{"device", func(path string, it *item) { each(d, path, it, d.device) }},
		{"control", func(path string, it *item) { inTable(d, path, it, &c.Control, &c.Control.src, controlFields()) }},
		{"log", func(path string, it *item) { inTable(d, path, it, &c.Log, &c.Log.src, logFields()) }},
		{"metrics", func(path string, it *item) { inTable(d, path, it, &c.Metrics, &c.Metrics.src, metricsFields()) }},
		{"handler", func(path string, it *item) { each(d, path, it, d.handler) }},
	})
	if t.items["cluster"] == nil && !d.broken {
		d.faults.add(Pos{1, 1}, "cluster", "missing", "a table [cluster] with a name and a secret_file")
		c.Cluster.src.pos = Pos{1, 1}
		d.bad.set(&c.Cluster.src, "secret_file")
	}
}

// section decodes one table: its plain keys by slots, its tables by subs.
func (d *decoder) section(path string, t *table, src *source, plain []slot, subs []sub) {
	src.pos, src.end = t.pos, t.end
	for _, key := range t.order {
		it := t.items[key]
		if i := slices.IndexFunc(subs, func(s sub) bool { return s.key == key }); i >= 0 {
			subs[i].into(join(path, key), it)
			continue
		}
		i := slices.IndexFunc(plain, func(s slot) bool { return s.key == key })
		if i < 0 {
			d.unknown(path, key, it, plain, subs)
			continue
		}
		src.note(key, it)
		if it.bad {
			d.bad.set(src, key)
		} else if m := it.assign(plain[i].ptr, plain[i].allow); m != nil {
			d.faults.add(it.pos, plain[i].path, m.found, m.allowed)
			d.bad.set(src, key)
		}
	}
	for _, s := range plain {
		if s.must != "" && !src.has(s.key) && !d.broken {
			d.faults.add(t.pos, s.path, "missing", s.must)
			d.bad.set(src, s.key)
		}
	}
}

// inTable decodes a table that has plain keys only.
func inTable[T any](d *decoder, path string, it *item, x *T, src *source, fields []field[T]) {
	if t := d.wantTable(path, it); t != nil {
		d.section(path, t, src, slots(path, x, src, fields), nil)
	}
}

func (d *decoder) wantTable(path string, it *item) *table {
	if it.kind == kindTable {
		return it.table
	}
	d.misshapen = true
	found, allowed := it.showKind(), "a table ["+path+"]"
	if it.tables {
		found = "[[" + path + "]]"
		allowed += ", once"
	}
	d.faults.add(it.keyPos, path, found, allowed)
	return nil
}

// each decodes every table of an array of tables.
func each(d *decoder, path string, it *item, one func(path string, nr int, t *table)) {
	allowed := "tables [[" + path + "]]"
	if it.kind != kindArray {
		found := it.showKind()
		if it.kind == kindTable {
			found = "[" + path + "]"
		}
		d.faults.add(it.keyPos, path, found, allowed)
		d.misshapen = true
		return
	}
	for i, e := range it.list {
		if e.kind != kindTable {
			d.faults.add(e.pos, path, e.showKind(), allowed)
			d.misshapen = true
			continue
		}
		one(path, i+1, e.table)
	}
}

// named is the path of a table in an array: by name, by number without one.
func named(path string, nr int, t *table) string {
	if it := t.items["name"]; it != nil && it.kind == kindString && validName(it.text) {
		return join(path, it.text)
	}
	return join(path, strconv.Itoa(nr))
}

func (d *decoder) cluster(path string, it *item) {
	t := d.wantTable(path, it)
	if t == nil {
		return
	}
	c := &d.cfg.Cluster
	d.section(path, t, &c.src, slots(path, c, &c.src, clusterFields()), []sub{
		{"tls", func(path string, it *item) { inTable(d, path, it, &c.TLS, &c.TLS.src, tlsFields()) }},
	})
}

func (d *decoder) node(path string, nr int, t *table) {
	n := defaultNode()
	path = named(path, nr, t)
	d.section(path, t, &n.src, slots(path, n, &n.src, nodeFields()), nil)
	d.cfg.Nodes = append(d.cfg.Nodes, n)
}

func (d *decoder) device(path string, nr int, t *table) {
	dev := defaultDevice()
	path = named(path, nr, t)
	d.section(path, t, &dev.src, slots(path, dev, &dev.src, deviceFields()), []sub{
		{"on", func(path string, it *item) { d.overrides(path, it, dev) }},
	})
	d.cfg.Devices = append(d.cfg.Devices, dev)
}

func (d *decoder) overrides(path string, it *item, dev *Device) {
	if it.kind != kindTable {
		d.faults.add(it.keyPos, path, it.showKind(), "tables [device.on.NODE]")
		return
	}
	dev.On = map[string]*Override{}
	for _, node := range it.table.order {
		o := &Override{src: source{pos: it.table.items[node].keyPos}}
		dev.On[node] = o
		inTable(d, join(path, node), it.table.items[node], o, &o.src, overrideFields())
	}
}

func (d *decoder) handler(path string, nr int, t *table) {
	h := defaultHandler()
	path = join(path, strconv.Itoa(nr))
	d.section(path, t, &h.src, slots(path, h, &h.src, handlerFields()), nil)
	d.cfg.Handlers = append(d.cfg.Handlers, h)
}

// unknown reports a key that the schema does not have.
func (d *decoder) unknown(path, key string, it *item, plain []slot, subs []sub) {
	if d.faults.full() {
		d.faults.more++
		return
	}
	var known []string
	for _, s := range plain {
		known = append(known, s.key)
	}
	for _, s := range subs {
		known = append(known, s.key)
	}
	allowed := "known here: " + strings.Join(known, ", ")
	if near := nearest(key, known); near != "" {
		allowed = "did you mean " + near + "? " + allowed
	}
	d.faults.add(it.keyPos, join(path, printable(key)), "unknown key", allowed)
}

// printable keeps what a fault says on one line.
func printable(key string) string {
	if q := quote(key); q != `"`+key+`"` || key == "" {
		return q
	}
	return key
}

// nearest is the known key that a slip of the fingers away from key, or "".
func nearest(key string, known []string) string {
	best, near := 3, ""
	if len(key) > 64 {
		return ""
	}
	for _, k := range known {
		if d := distance(strings.ToLower(key), k); d < best && d < len(k)-1 {
			best, near = d, k
		}
	}
	return near
}

// distance is how many letters to insert, delete or replace between a and b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diag := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diag
			if a[i] != b[j] {
				cost++
			}
			diag = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
