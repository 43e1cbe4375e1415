package config

import (
	"bytes"
	"errors"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// itemKind is what a value in the document is.
type itemKind uint8

const (
	kindString itemKind = iota
	kindInteger
	kindFloat
	kindBool
	kindTime // any of TOML's dates and times
	kindArray
	kindTable
)

// span is the bytes [from, to) of the document.
type span struct{ from, to int }

// item is one value of the document.
type item struct {
	kind   itemKind
	keyPos Pos  // of the key that it has; of the header for a table
	pos    Pos  // of the value
	at     span // the value's bytes, where it has a key of its own
	text   string
	num    int64
	flag   bool
	bad    bool // a fault of it is reported already
	list   []*item
	tables bool // an array made by [[headers]]
	table  *table
}

// table is a set of keys, in the order of the file.
type table struct {
	pos    Pos
	order  []string
	items  map[string]*item
	header bool // it has a [header] of its own, so a second one is a duplicate
	inline bool // written in braces, and so complete
	// end is where a new key can be written: behind the last key's value,
	// or behind the header. It is 0 where there is no such place.
	end int
}

func newTable(pos Pos) *table { return &table{pos: pos, items: map[string]*item{}} }

func (t *table) put(key string, it *item) {
	t.order = append(t.order, key)
	t.items[key] = it
}

// document builds the tree of one file. Syntax faults and duplicates are
// collected; the tree holds what could be read around them.
type document struct {
	data   []byte
	lines  []int // offset of the start of each line
	faults *faultList
	root   *table
	now    *table // the table that keys go to; nil after a bad header
	path   string // of now, for faults
	broken bool   // there was a syntax fault, so absence proves nothing
}

// maxSyntaxFaults bounds the attempts to read on behind a syntax fault.
const maxSyntaxFaults = 20

func parse(data []byte, faults *faultList) *document {
	d := &document{data: data, faults: faults, root: newTable(Pos{1, 1}), lines: []int{0}}
	for i, b := range data {
		if b == '\n' {
			d.lines = append(d.lines, i+1)
		}
	}
	d.now = d.root
	for base, tries := 0, 0; base < len(data) && tries < maxSyntaxFaults; tries++ {
		base = d.run(base)
	}
	return d
}

// run parses from base on and returns where to go on after a syntax fault.
func (d *document) run(base int) int {
	var p unstable.Parser
	p.Reset(d.data[base:])
	for p.NextExpression() {
		d.expression(base, p.Expression())
	}
	perr, ok := errors.AsType[*unstable.ParserError](p.Error())
	if !ok {
		return len(d.data)
	}
	d.broken = true
	off := base + int(p.Range(perr.Highlight).Offset)
	d.faults.add(d.pos(off), "", perr.Message, "see https://toml.io for the syntax")
	return d.resume(off)
}

// resume finds the next line that starts something: a header or, unless the
// fault was in a header and so the table is unknown, a key.
func (d *document) resume(off int) int {
	line := d.pos(off).Line
	bad := bytes.TrimLeft(d.data[d.lines[line-1]:], " \t")
	inHeader := len(bad) > 0 && bad[0] == '['
	if inHeader {
		d.now = nil
	}
	for ; line < len(d.lines); line++ {
		text := bytes.TrimLeft(d.data[d.lines[line]:], " \t")
		if len(text) > 0 && (text[0] == '[' || !inHeader && startsKey(text)) {
			return d.lines[line]
		}
	}
	return len(d.data)
}

// startsKey reports whether a line looks like `key = …`.
func startsKey(line []byte) bool {
	n := 0
	for n < len(line) && (line[n] == '_' || line[n] == '-' || line[n] == '.' ||
		line[n] >= '0' && line[n] <= '9' || line[n]|0x20 >= 'a' && line[n]|0x20 <= 'z') {
		n++
	}
	rest := bytes.TrimLeft(line[n:], " \t")
	return n > 0 && len(rest) > 0 && rest[0] == '='
}

// gate lets the library's own reading, which knows every rule of TOML, find
// what the tree did not. It comes last, for files without any other fault:
// its time grows with the square of the keys of a table, which only the
// schema bounds.
func (d *document) gate() {
	if len(d.faults.faults) > 0 {
		return
	}
	var all map[string]any
	err := toml.Unmarshal(d.data, &all)
	if err == nil {
		return
	}
	de, ok := errors.AsType[*toml.DecodeError](err)
	if !ok {
		d.faults.add(Pos{}, "", strings.TrimPrefix(err.Error(), "toml: "), "")
		return
	}
	line, col := de.Position()
	key := strings.Join(de.Key(), ".")
	if key != "" {
		key = printable(key)
	}
	d.faults.add(Pos{line, col}, key, strings.TrimPrefix(de.Error(), "toml: "), "see https://toml.io for the syntax")
}

// pos turns an offset into line and column.
func (d *document) pos(off int) Pos {
	lo, hi := 0, len(d.lines)
	for lo+1 < hi {
		if mid := (lo + hi) / 2; d.lines[mid] <= off {
			lo = mid
		} else {
			hi = mid
		}
	}
	return Pos{lo + 1, off - d.lines[lo] + 1}
}

func (d *document) expression(base int, n *unstable.Node) {
	switch n.Kind {
	case unstable.Table:
		d.enter(base, n, false)
	case unstable.ArrayTable:
		d.enter(base, n, true)
	case unstable.KeyValue:
		if d.now == nil {
			return
		}
		if end := d.lineEnd(d.keyValue(base, n, d.now, d.path)); end > d.now.end {
			d.now.end = end
		}
	}
}

// keyPart is one part of a dotted key.
type keyPart struct {
	name string
	pos  Pos
	end  int
}

func (d *document) key(base int, it unstable.Iterator) []keyPart {
	var parts []keyPart
	for it.Next() {
		n := it.Node()
		from := base + int(n.Raw.Offset)
		parts = append(parts, keyPart{string(n.Data), d.pos(from), from + int(n.Raw.Length)})
	}
	return parts
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// enter makes the table of a [header] or [[header]] the current one.
func (d *document) enter(base int, n *unstable.Node, array bool) {
	parts := d.key(base, n.Key())
	t, path := d.root, ""
	for _, part := range parts[:len(parts)-1] {
		path = join(path, part.name)
		if t = d.descend(t, part, path); t == nil {
			d.now = nil
			return
		}
	}
	last := parts[len(parts)-1]
	d.path = join(path, last.name)
	if array {
		d.now = d.appendTable(t, last)
	} else {
		d.now = d.openTable(t, last)
	}
	if d.now != nil {
		d.now.end = d.lineEnd(last.end)
	}
}

// lineEnd is the end of the line that off is in: behind a comment, before the
// line end's characters.
func (d *document) lineEnd(off int) int {
	end := len(d.data)
	if i := bytes.IndexByte(d.data[off:], '\n'); i >= 0 {
		end = off + i
	}
	if end > off && d.data[end-1] == '\r' {
		end--
	}
	return end
}

// descend goes into a table by name, making it where it does not exist.
func (d *document) descend(t *table, part keyPart, path string) *table {
	it := t.items[part.name]
	if it == nil {
		next := newTable(part.pos)
		t.put(part.name, &item{kind: kindTable, keyPos: part.pos, pos: part.pos, table: next})
		return next
	}
	switch {
	case it.kind == kindTable && !it.table.inline:
		return it.table
	case it.kind == kindArray && it.tables:
		return it.list[len(it.list)-1].table
	}
	d.duplicate(part.pos, path, it)
	return nil
}

func (d *document) openTable(t *table, part keyPart) *table {
	it := t.items[part.name]
	if it == nil {
		next := newTable(part.pos)
		next.header = true
		t.put(part.name, &item{kind: kindTable, keyPos: part.pos, pos: part.pos, table: next})
		return next
	}
	if it.kind == kindTable && !it.table.header && !it.table.inline {
		it.table.header = true
		return it.table
	}
	d.duplicate(part.pos, d.path, it)
	return nil
}

func (d *document) appendTable(t *table, part keyPart) *table {
	next := newTable(part.pos)
	next.header = true
	elem := &item{kind: kindTable, keyPos: part.pos, pos: part.pos, table: next}
	it := t.items[part.name]
	switch {
	case it == nil:
		t.put(part.name, &item{kind: kindArray, keyPos: part.pos, pos: part.pos, tables: true, list: []*item{elem}})
	case it.kind == kindArray && it.tables:
		it.list = append(it.list, elem)
	default:
		d.duplicate(part.pos, d.path, it)
		return nil
	}
	return next
}

func (d *document) duplicate(pos Pos, path string, first *item) {
	found := "given twice"
	if first.keyPos.Line > 0 {
		found += ", first in line " + strconv.Itoa(first.keyPos.Line)
	}
	d.faults.add(pos, path, found, "once is allowed")
}

// keyValue puts one `key = value` into t and returns where it ends.
func (d *document) keyValue(base int, n *unstable.Node, t *table, path string) int {
	parts := d.key(base, n.Key())
	end := base + int(n.Raw.Offset) + int(n.Raw.Length)
	for _, part := range parts[:len(parts)-1] {
		path = join(path, part.name)
		if t = d.descend(t, part, path); t == nil {
			return end
		}
	}
	last := parts[len(parts)-1]
	path = join(path, last.name)
	from := last.end
	for from < end && (d.data[from] == ' ' || d.data[from] == '\t' || d.data[from] == '=') {
		from++
	}
	// The node's range takes in the blanks behind the value.
	to := from + len(bytes.TrimRight(d.data[from:end], " \t\r\n"))
	it := d.value(base, n.Value(), d.pos(from), path)
	it.keyPos, it.at = last.pos, span{from, to}
	if first := t.items[last.name]; first != nil {
		d.duplicate(last.pos, path, first)
		return to
	}
	t.put(last.name, it)
	return to
}

func (d *document) value(base int, n *unstable.Node, pos Pos, path string) *item {
	it := &item{pos: pos}
	switch n.Kind {
	case unstable.String:
		it.kind, it.text = kindString, string(n.Data)
	case unstable.Bool:
		it.kind, it.flag, it.text = kindBool, n.Data[0] == 't', string(n.Data)
	case unstable.Integer:
		it.kind, it.text = kindInteger, string(n.Data)
		num, err := strconv.ParseInt(strings.TrimPrefix(strings.ReplaceAll(it.text, "_", ""), "+"), 0, 64)
		if err != nil {
			d.faults.add(pos, path, it.text, "a whole number of 64 bits")
			it.bad = true
		}
		it.num = num
	case unstable.Float:
		it.kind, it.text = kindFloat, string(n.Data)
	case unstable.Array:
		it.kind = kindArray
		for c := n.Children(); c.Next(); {
			it.list = append(it.list, d.value(base, c.Node(), d.childPos(base, c.Node(), pos), path))
		}
	case unstable.InlineTable:
		it.kind, it.table = kindTable, newTable(pos)
		for c := n.Children(); c.Next(); {
			d.keyValue(base, c.Node(), it.table, path)
		}
		it.table.inline = true
	default:
		it.kind, it.text = kindTime, string(n.Data)
	}
	return it
}

// childPos is where an array's element is; arrays in arrays have no place of
// their own and take their parent's.
func (d *document) childPos(base int, n *unstable.Node, parent Pos) Pos {
	if n.Raw.Length == 0 {
		return parent
	}
	return d.pos(base + int(n.Raw.Offset))
}

// show is the value as a person would name it.
func (it *item) show() string {
	switch it.kind {
	case kindString:
		return quote(it.text)
	case kindArray:
		if it.tables {
			return "tables"
		}
		return "an array"
	case kindTable:
		return "a table"
	}
	return it.text
}

// showKind is the value with its type.
func (it *item) showKind() string {
	switch it.kind {
	case kindString:
		return "the string " + it.show()
	case kindInteger, kindFloat:
		return "the number " + it.show()
	case kindTime:
		return "the date or time " + it.show()
	}
	return it.show()
}

// quote quotes s, shortened where it is long.
func quote(s string) string {
	const most = 80
	if len(s) > most {
		return strconv.Quote(strings.ToValidUTF8(s[:most], "")) + "…"
	}
	return strconv.Quote(s)
}
