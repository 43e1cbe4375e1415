package vlog

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// handler is the slog.Handler of one module.
type handler struct {
	log    *Vlog
	module *module
	except Destination // left out, plus one; 0 for none
	scope  []scope     // attributes and groups, outermost first
}

// scope is one WithGroup (name set) or WithAttrs.
type scope struct {
	group string
	attrs []slog.Attr
}

// Enabled reports whether any destination that exists wants the level.
func (h *handler) Enabled(_ context.Context, level slog.Level) bool {
	l := fromSlog(level)
	for d := range numDestinations {
		if h.wants(d, l) {
			return true
		}
	}
	return false
}

func (h *handler) wants(d Destination, l Level) bool {
	return l <= h.module.level(d) && d+1 != h.except && h.log.sinks[d].open()
}

// WithAttrs implements slog.Handler.
func (h *handler) WithAttrs(attrs []slog.Attr) slog.Handler { return h.with(scope{attrs: attrs}) }

// WithGroup implements slog.Handler.
func (h *handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return h.with(scope{group: name})
}

func (h *handler) with(s scope) *handler {
	c := *h
	c.scope = append(slices.Clip(h.scope), s)
	return &c
}

// Handle passes the record to every destination that wants it, unless the
// place that logged it does so too often.
func (h *handler) Handle(_ context.Context, r slog.Record) error {
	l := fromSlog(r.Level)
	if r.Time.IsZero() {
		r.Time = h.log.opts.Now()
	}
	if l < Debug && h.module.limited.Load() && r.PC != 0 {
		ok, lost := h.log.limit.allow(r.PC, r.Time)
		if !ok {
			return nil
		}
		if lost != "" {
			h.emit(l, slog.NewRecord(r.Time, r.Level, lost, 0))
		}
	}
	h.emit(l, r)
	return nil
}

// emit formats the record for each destination and queues it there.
func (h *handler) emit(l Level, r slog.Record) {
	v := h.log
	v.mu.Lock()
	patterns, json, facility := v.patterns, v.json, v.facility
	v.mu.Unlock()
	attrs := h.attrs(r)
	e := entry{
		time: r.Time, level: l, module: h.module.name, seq: v.seq.Add(1),
		text: text(r.Message, attrs), program: v.opts.Program, subprogram: v.opts.Subprogram,
		host: v.host, facility: facility, pid: os.Getpid(), start: v.start,
	}
	for d := range numDestinations {
		if !h.wants(d, l) {
			continue
		}
		var line []byte
		if json[d] {
			line = e.json(r.Message, attrs)
		} else {
			line = append(e.format(nil, patterns[d]), '\n')
		}
		v.sinks[d].put(line, &e)
	}
}

// attrs returns the record's attributes inside the handler's groups.
func (h *handler) attrs(r slog.Record) []slog.Attr {
	attrs := make([]slog.Attr, 0, r.NumAttrs())
	r.Attrs(func(a slog.Attr) bool {
		attrs = append(attrs, a)
		return true
	})
	for _, s := range slices.Backward(h.scope) {
		if s.group == "" {
			attrs = append(slices.Clone(s.attrs), attrs...)
		} else if len(attrs) > 0 {
			attrs = []slog.Attr{{Key: s.group, Value: slog.GroupValue(attrs...)}}
		}
	}
	return attrs
}

// text is the message with its attributes as key=value. Trailing newlines go,
// and control characters are shown rather than obeyed, so that nothing in a
// message can forge a line of the log.
func text(msg string, attrs []slog.Attr) string {
	var b strings.Builder
	b.WriteString(sanitize(strings.TrimRight(msg, "\n")))
	for _, a := range attrs {
		appendAttr(&b, "", a)
	}
	return b.String()
}

func appendAttr(b *strings.Builder, prefix string, a slog.Attr) {
	val := a.Value.Resolve()
	if a.Key == "" && val.Kind() != slog.KindGroup {
		return
	}
	if val.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, g := range val.Group() {
			appendAttr(b, prefix, g)
		}
		return
	}
	b.WriteByte(' ')
	b.WriteString(quote(prefix + a.Key))
	b.WriteByte('=')
	b.WriteString(quote(valueText(val)))
}

func valueText(v slog.Value) string {
	if v.Kind() == slog.KindTime {
		return v.Time().Format(time.RFC3339Nano)
	}
	return v.String()
}

// quote quotes what would not read as one word.
func quote(s string) string {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool {
		return r == '"' || r == '=' || unicode.IsSpace(r) || !unicode.IsPrint(r) || r == utf8.RuneError
	}) {
		return strconv.Quote(s)
	}
	return s
}

// sanitize escapes control characters but tabs.
func sanitize(s string) string {
	bad := func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }
	if !strings.ContainsFunc(s, bad) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if bad(r) {
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		} else {
			b.WriteRune(r)
		}
	}
	return b.String()
}

// json renders the entry as one JSON object on a line.
func (e *entry) json(msg string, attrs []slog.Attr) []byte {
	var buf bytes.Buffer
	h := slog.NewJSONHandler(&buf, &slog.HandlerOptions{Level: slog.LevelDebug - 100, ReplaceAttr: dropLevel})
	r := slog.NewRecord(e.time.UTC(), 0, strings.TrimRight(msg, "\n"), 0)
	r.AddAttrs(slog.String("severity", e.level.String()), slog.String("module", e.module),
		slog.Uint64("seq", e.seq), slog.Int("pid", e.pid))
	if e.subprogram != "" {
		r.AddAttrs(slog.String("process", e.subprogram))
	}
	if len(attrs) > 0 {
		r.AddAttrs(slog.Attr{Key: "attrs", Value: slog.GroupValue(attrs...)})
	}
	if err := h.Handle(context.Background(), r); err != nil {
		return nil
	}
	return buf.Bytes()
}

// dropLevel leaves out slog's own level: ours has names that slog does not know.
func dropLevel(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.LevelKey {
		return slog.Attr{}
	}
	return a
}
