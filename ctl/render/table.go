package render

import (
	"slices"
	"strings"
)

// column is one column of a table.
type column struct {
	head  string
	right bool // numbers
	// drop says in which order columns go when the terminal is too narrow: the
	// greatest first; a column of 0 stays.
	drop int
	// flex columns are cut when dropping was not enough.
	flex bool
	// min is the least width, for screens that should not jump.
	min int
}

// cell is one piece of a row, with its meaning.
type cell struct {
	text  string
	style Style
}

// table collects rows and writes them aligned.
type table struct {
	cols []column
	rows [][]cell
	// under holds, by row, a line of free text that follows it.
	under map[int][]cell
}

// gap separates columns.
const gap = 2

// What a flex column keeps: flexSoft while other columns could be left out
// instead, flexMin when nothing else helps.
const (
	flexSoft = 24
	flexMin  = 8
)

// text is a cell without judgement.
func text(s string) cell { return cell{text: s} }

// row appends a row; text is cleaned here, once for all.
func (t *table) row(cells ...cell) {
	for i := range cells {
		cells[i].text = Clean(cells[i].text)
	}
	t.rows = append(t.rows, cells)
}

// below appends a line of free text under the last row.
func (t *table) below(c ...cell) {
	if t.under == nil {
		t.under = make(map[int][]cell)
	}
	t.under[len(t.rows)-1] = append(t.under[len(t.rows)-1], c...)
}

// explain appends a sentence under the last row, wrapped and indented.
func (t *table) explain(o Options, c cell) {
	limit := 0
	if o.Width > 0 {
		limit = max(o.Width-2, 20)
	}
	for _, line := range wrap(Clean(c.text), limit) {
		t.below(cell{"  " + line, c.style})
	}
}

// write renders the table. A column whose every cell is empty is left out.
func (t *table) write(b *strings.Builder, o Options) {
	if len(t.rows) == 0 {
		return
	}
	widths := t.fit(o.Width)
	t.line(b, o, widths, t.heads())
	for i, r := range t.rows {
		t.line(b, o, widths, r)
		for _, c := range t.under[i] {
			b.WriteString(o.Paint(c.style, c.text) + "\n")
		}
	}
}

// heads is the header as a row.
func (t *table) heads() []cell {
	cells := make([]cell, len(t.cols))
	for i, c := range t.cols {
		cells[i] = cell{c.head, Dim}
	}
	return cells
}

// fit gives every column its width, -1 for those left out, so that a line is at
// most limit columns where that can be had.
func (t *table) fit(limit int) []int {
	widths := make([]int, len(t.cols))
	for i, c := range t.cols {
		widths[i] = -1
		for _, r := range t.rows {
			if i < len(r) && r[i].text != "" {
				widths[i] = max(widths[i], width(r[i].text), width(c.head), c.min)
			}
		}
	}
	if limit <= 0 {
		return widths
	}
	t.squeeze(widths, total(widths)-limit, flexSoft)
	for total(widths) > limit {
		i := t.dropNext(widths)
		if i < 0 {
			t.squeeze(widths, total(widths)-limit, flexMin)
			break
		}
		widths[i] = -1
	}
	return widths
}

// dropNext is the column to leave out next, -1 when all that is left must stay.
func (t *table) dropNext(widths []int) int {
	next := -1
	for i, c := range t.cols {
		if widths[i] >= 0 && c.drop > 0 && (next < 0 || c.drop > t.cols[next].drop) {
			next = i
		}
	}
	return next
}

// squeeze takes excess from the flexible columns, the widest first, as long as
// they keep a width of least.
func (t *table) squeeze(widths []int, excess, least int) {
	for ; excess > 0; excess-- {
		widest := -1
		for i, c := range t.cols {
			if c.flex && widths[i] > least && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
}

// total is the length of a line.
func total(widths []int) int {
	sum := -gap
	for _, w := range widths {
		if w >= 0 {
			sum += w + gap
		}
	}
	return sum
}

// line writes one row; trailing space is never written.
func (t *table) line(b *strings.Builder, o Options, widths []int, cells []cell) {
	last := lastShown(widths, cells)
	pad := 0
	for i, c := range cells {
		if widths[i] < 0 || i > last {
			continue
		}
		s := Cut(c.text, widths[i])
		room := widths[i] - width(s)
		if t.cols[i].right {
			pad, room = pad+room, 0
		}
		if s != "" {
			b.WriteString(strings.Repeat(" ", pad) + o.Paint(c.style, s))
			pad = 0
		} else {
			pad += width(s)
		}
		pad += room + gap
	}
	b.WriteString("\n")
}

// lastShown is the last column that has anything to show in this row.
func lastShown(widths []int, cells []cell) int {
	for i, c := range slices.Backward(cells) {
		if widths[i] >= 0 && c.text != "" {
			return i
		}
	}
	return -1
}

// pairs is a list of "key  value" lines, values aligned; an empty value is left
// out.
type pairs struct {
	keys   []string
	values []cell
}

// add appends a line.
func (p *pairs) add(key string, c cell) {
	if c.text == "" {
		return
	}
	c.text = Clean(c.text)
	p.keys = append(p.keys, key)
	p.values = append(p.values, c)
}

// addText appends a line without judgement.
func (p *pairs) addText(key, value string) { p.add(key, text(value)) }

// write renders the list; long values are wrapped under themselves.
func (p *pairs) write(b *strings.Builder, o Options) {
	w := 0
	for _, k := range p.keys {
		w = max(w, width(k))
	}
	for i, k := range p.keys {
		lead := k + strings.Repeat(" ", w-width(k)+gap)
		limit := 0
		if o.Width > 0 {
			limit = max(o.Width-w-gap, 20)
		}
		for j, line := range wrap(p.values[i].text, limit) {
			if j > 0 {
				b.WriteString(strings.Repeat(" ", w+gap))
			} else {
				b.WriteString(o.Paint(Dim, lead[:len(k)]) + lead[len(k):])
			}
			b.WriteString(o.Paint(p.values[i].style, line) + "\n")
		}
	}
}
