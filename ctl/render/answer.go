package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Answer is any result, for commands that this program has no picture of: a
// string as it is, an object's "text" if it has one, else its fields as a list,
// an array of objects as a table.
func Answer(o Options, raw json.RawMessage) string {
	var v any
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	if err := dec.Decode(&v); err != nil {
		return CleanLines(string(raw)) + "\n"
	}
	switch v := v.(type) {
	case nil:
		return ""
	case string:
		return lines(v)
	case map[string]any:
		if s, ok := v["text"].(string); ok {
			return lines(s)
		}
		return object(o, v)
	case []any:
		return array(o, v)
	}
	return scalar(v) + "\n"
}

// lines is text that ends in a newline, or nothing.
func lines(s string) string {
	s = CleanLines(s)
	if s == "" || strings.HasSuffix(s, "\n") {
		return s
	}
	return s + "\n"
}

// object is a list of an object's fields, nested ones by path.
func object(o Options, fields map[string]any) string {
	var p pairs
	flatten(&p, "", fields)
	var b strings.Builder
	p.write(&b, o)
	return b.String()
}

func flatten(p *pairs, prefix string, fields map[string]any) {
	for _, k := range sortedKeys(fields) {
		at := prefix + Clean(k)
		switch inner := fields[k].(type) {
		case map[string]any:
			flatten(p, at+".", inner)
		case []any:
			flattenList(p, at, inner)
		default:
			p.addText(at, scalar(inner))
		}
	}
}

// flattenList is a list of scalars in a line, or the fields of objects by their
// place in the list, from 1 on.
func flattenList(p *pairs, at string, items []any) {
	if len(arrayHeads(items)) == 0 {
		words := make([]string, len(items))
		for i, item := range items {
			words[i] = scalar(item)
		}
		p.add(at, orDash(strings.Join(words, ", ")))
		return
	}
	for i, item := range items {
		fields, _ := item.(map[string]any)
		flatten(p, fmt.Sprintf("%s.%d.", at, i+1), fields)
	}
}

// array is a table when its elements are objects, else a line each.
func array(o Options, items []any) string {
	var b strings.Builder
	heads := arrayHeads(items)
	if len(heads) == 0 {
		for _, item := range items {
			b.WriteString(Clean(scalar(item)) + "\n")
		}
		return b.String()
	}
	t := table{}
	for _, h := range heads {
		t.cols = append(t.cols, column{head: strings.ToUpper(Clean(h)), flex: true})
	}
	for _, item := range items {
		fields, _ := item.(map[string]any)
		cells := make([]cell, len(heads))
		for i, h := range heads {
			if v, ok := fields[h]; ok {
				cells[i] = text(scalar(v))
			}
		}
		t.row(cells...)
	}
	t.write(&b, o)
	return b.String()
}

// arrayHeads are the fields of an array's objects, "name" before all others.
func arrayHeads(items []any) []string {
	seen := make(map[string]any)
	for _, item := range items {
		fields, ok := item.(map[string]any)
		if !ok {
			return nil
		}
		for k := range fields {
			seen[k] = nil
		}
	}
	heads := sortedKeys(seen)
	if i := slices.Index(heads, "name"); i > 0 {
		heads = slices.Insert(slices.Delete(heads, i, i+1), 0, "name")
	}
	return heads
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// scalar is a value in a word; what is not a scalar stays JSON.
func scalar(v any) string {
	switch v := v.(type) {
	case nil:
		return "-"
	case string:
		return v
	case bool:
		return yesNo(v)
	case json.Number:
		return v.String()
	}
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return fmt.Sprint(v)
	}
	return strings.TrimSuffix(b.String(), "\n")
}
