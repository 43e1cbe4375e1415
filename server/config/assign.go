package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// mismatch is a value that its key does not take.
type mismatch struct{ found, allowed string }

const (
	allowDuration = `a duration such as "8s" or "500ms"`
	allowSize     = `a size such as "1GiB" or a number of bytes`
	allowRate     = `"auto" or a rate such as "200MiB/s"`
	allowQuorum   = `"off", "majority", "all" or a number of nodes`
)

// maxList bounds every list of the file.
const maxList = 256

// oneOf lists the values of an enumeration.
func oneOf(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = strconv.Quote(v)
	}
	return "one of " + strings.Join(quoted, ", ")
}

// assign puts the value of the document into *ptr, or says why not.
func (it *item) assign(ptr any, allow []string) *mismatch {
	switch p := ptr.(type) {
	case *string:
		return it.text1(p, allow)
	case *Protocol:
		return it.text1((*string)(p), allow)
	case *bool:
		if it.kind != kindBool {
			return &mismatch{it.showKind(), "true or false"}
		}
		*p = it.flag
	case *int:
		if it.kind != kindInteger || int64(int(it.num)) != it.num {
			return &mismatch{it.showKind(), "a whole number"}
		}
		*p = int(it.num)
	case *Quorum:
		return it.quorum(p)
	case *Size:
		if it.kind == kindInteger {
			*p = Size(it.num)
			return nil
		}
		return parsed(it, p, ParseSize, allowSize)
	case *Rate:
		return parsed(it, p, ParseRate, allowRate)
	case *time.Duration:
		return parsed(it, p, time.ParseDuration, allowDuration)
	case *Names:
		if it.kind == kindString {
			*p = Names{it.text}
			return nil
		}
		return it.strings((*[]string)(p), "a string or an array of strings")
	case *[]string:
		return it.strings(p, "an array of strings: the program, then its arguments; there is no shell")
	default:
		panic(fmt.Sprintf("config: the schema has a field of type %T", ptr))
	}
	return nil
}

func (it *item) text1(p *string, allow []string) *mismatch {
	want := "a string"
	if allow != nil {
		want = oneOf(allow)
	}
	if it.kind != kindString {
		return &mismatch{it.showKind(), want}
	}
	if allow != nil && !slices.Contains(allow, it.text) {
		return &mismatch{it.show(), want}
	}
	*p = it.text
	return nil
}

func (it *item) quorum(p *Quorum) *mismatch {
	if it.kind != kindString && it.kind != kindInteger {
		return &mismatch{it.showKind(), allowQuorum}
	}
	q, err := ParseQuorum(it.text)
	if err != nil {
		return &mismatch{it.show(), allowQuorum}
	}
	*p = q
	return nil
}

func parsed[T any](it *item, p *T, parse func(string) (T, error), want string) *mismatch {
	if it.kind != kindString {
		return &mismatch{it.showKind(), want}
	}
	v, err := parse(it.text)
	if err != nil {
		return &mismatch{it.show(), want}
	}
	*p = v
	return nil
}

func (it *item) strings(p *[]string, want string) *mismatch {
	if it.kind != kindArray || it.tables {
		return &mismatch{it.showKind(), want}
	}
	if len(it.list) > maxList {
		return &mismatch{fmt.Sprintf("an array of %d", len(it.list)), fmt.Sprintf("at most %d", maxList)}
	}
	out := make([]string, 0, len(it.list))
	for _, e := range it.list {
		if e.kind != kindString {
			return &mismatch{"an array with " + e.showKind(), want}
		}
		out = append(out, e.text)
	}
	*p = out
	return nil
}

// format is a value as text for people and for comparing: strings bare, lists
// in TOML's brackets.
func format(ptr any) string {
	switch p := ptr.(type) {
	case *string:
		return *p
	case *Protocol:
		return string(*p)
	case *bool:
		return strconv.FormatBool(*p)
	case *int:
		return strconv.Itoa(*p)
	case *time.Duration:
		return formatDuration(*p)
	case *Names:
		return formatList(*p)
	case *[]string:
		return formatList(*p)
	case fmt.Stringer:
		return p.String()
	}
	panic(fmt.Sprintf("config: the schema has a field of type %T", ptr))
}

func formatList(list []string) string {
	quoted := make([]string, len(list))
	for i, s := range list {
		quoted[i] = tomlString(s)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// formatDuration is the duration without empty parts: "1h", not "1h0m0s".
func formatDuration(d time.Duration) string {
	s := d.String()
	if strings.HasSuffix(s, "m0s") {
		s = strings.TrimSuffix(s, "0s")
	}
	if strings.HasSuffix(s, "h0m") {
		s = strings.TrimSuffix(s, "0m")
	}
	return s
}

// tomlString is s as a basic string of TOML.
func tomlString(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\r':
			b.WriteString(`\r`)
		case r < 0x20 || r == 0x7f:
			fmt.Fprintf(&b, `\u%04X`, r)
		default:
			b.WriteRune(r)
		}
	}
	b.WriteByte('"')
	return b.String()
}
