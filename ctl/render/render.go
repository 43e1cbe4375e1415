// Package render turns the values of rpc/api into text for people: tables that
// fit the terminal, units, colour that means something. Its functions are pure:
// the same value and Options give the same bytes, which golden files hold fast.
//
// Text that came from elsewhere (a peer's error, a key's value) is shown with
// its control characters replaced, so that nobody's name can move the cursor.
package render

import (
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Options say what the text is rendered for.
type Options struct {
	Width  int       // columns of the terminal; 0: no limit
	Height int       // lines of the terminal; 0: no limit
	Color  bool      // colour may be used
	Now    time.Time // what ages are counted to
}

// Style is what a piece of text means; the colour follows from it.
type Style uint8

// The meanings. Good, Warn and Bad are a judgement; the others are typography.
const (
	Plain Style = iota
	Good
	Warn
	Bad
	Dim
	Bold
	Invert
)

// codes are the SGR parameters of each style.
var codes = [...]string{Plain: "", Good: "32", Warn: "33", Bad: "31", Dim: "2", Bold: "1", Invert: "7"}

// Paint wraps s in the colour of its style, if there is colour at all.
func (o Options) Paint(st Style, s string) string {
	if !o.Color || st == Plain || s == "" {
		return s
	}
	return "\x1b[" + codes[st] + "m" + s + "\x1b[0m"
}

// Clean replaces what could steer a terminal by a visible mark. Newlines and
// tabs become spaces.
func Clean(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case hidden(r):
			return '\uFFFD'
		}
		return r
	}, s)
}

// CleanLines is Clean for text of several lines: newlines and tabs stay.
func CleanLines(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && hidden(r) {
			return '\uFFFD'
		}
		return r
	}, s)
}

// hidden reports whether r is a control or a direction override.
func hidden(r rune) bool {
	return unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r)
}

// width is the number of columns that s takes. Names are ASCII by rule; other
// text counts a column a rune, and none for marks that combine.
func width(s string) int {
	n := 0
	for _, r := range s {
		if !unicode.Is(unicode.Mn, r) {
			n++
		}
	}
	return n
}

// Cut shortens s to at most n columns, with an ellipsis where it was cut.
func Cut(s string, n int) string {
	if width(s) <= n {
		return s
	}
	if n < 1 {
		return ""
	}
	var b strings.Builder
	for _, r := range s {
		if n == 1 {
			break
		}
		b.WriteRune(r)
		n--
	}
	return b.String() + "…"
}

// wrap breaks s at spaces into lines of at most n columns; a longer word gets a
// line of its own. n of 0 or less does not break.
func wrap(s string, n int) []string {
	if n <= 0 || utf8.RuneCountInString(s) <= n {
		return []string{s}
	}
	var lines []string
	line := ""
	for word := range strings.FieldsSeq(s) {
		switch {
		case line == "":
			line = word
		case width(line)+1+width(word) <= n:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}

// Fill breaks the lines of s between words where they are longer than n columns.
func Fill(n int, s string) string {
	var lines []string
	for line := range strings.SplitSeq(s, "\n") {
		lines = append(lines, wrap(line, n)...)
	}
	return strings.Join(lines, "\n")
}

// paragraph writes s wrapped to the terminal, every line but the first indented
// as deep as the first one's lead.
func (o Options) paragraph(b *strings.Builder, lead string, st Style, s string) {
	limit := 0
	if o.Width > 0 {
		limit = max(o.Width-width(lead), 20)
	}
	var lines []string
	for line := range strings.SplitSeq(strings.TrimRight(s, "\n"), "\n") {
		lines = append(lines, wrap(Clean(line), limit)...)
	}
	for i, line := range lines {
		if i > 0 {
			lead = strings.Repeat(" ", width(lead))
		}
		b.WriteString(lead + o.Paint(st, line) + "\n")
	}
}
