// Package vlog is Open vSwitch's logging surface over log/slog: a level per
// module and destination that can be changed while the program runs, patterns,
// a log file that can be reopened, and rate limits.
//
// The code that logs sees only *slog.Logger. The three destinations are the
// console (standard error), syslog (the journal where there is one) and a file.
// Each is written by a goroutine of its own behind a bounded queue: a full
// disk, a stopped terminal or a hung file server costs log lines, which are
// counted and reported, and never a caller's time.
package vlog

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// Options says how to log. Program is required.
type Options struct {
	Program    string
	Subprogram string    // "monitor" in a supervisor; shown by %t and %T
	Modules    []string  // known before their first logger is made, so that they can be set
	Console    io.Writer // default os.Stderr
	// SyslogPath and JournalPath are sockets; "" means the system's, "none" means off.
	SyslogPath, JournalPath string
	// MaxSize is the size at which the log file is rotated (default 64 MiB,
	// negative: never), Keep how many old ones stay (default 4).
	MaxSize int64
	Keep    int
	// Transient closes the log file after each burst of messages, for a
	// process that logs rarely and must not hold a rotated file.
	Transient bool
	// Burst and PerMinute limit each place in the code that logs (defaults 100
	// and 600); debug messages are not limited.
	Burst, PerMinute int
	// Now is the clock, time.Now by default.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	if o.Console == nil {
		o.Console = os.Stderr
	}
	if o.MaxSize == 0 {
		o.MaxSize = 64 << 20
	}
	if o.Keep == 0 {
		o.Keep = 4
	}
	if o.Burst == 0 {
		o.Burst = 100
	}
	if o.PerMinute == 0 {
		o.PerMinute = 600
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// module is what is known of one named part of the program.
type module struct {
	name    string
	levels  [numDestinations]atomic.Int32
	limited atomic.Bool // rate limits are honoured
}

func (m *module) level(d Destination) Level { return Level(m.levels[d].Load()) }

// Vlog is the log of one process. It is safe for concurrent use.
type Vlog struct {
	opts  Options
	host  string
	start time.Time
	seq   atomic.Uint64
	limit limiter
	sinks [numDestinations]*sink
	file  *fileWriter

	mu       sync.Mutex // guards all below; no I/O under it
	modules  map[string]*module
	defaults [numDestinations]Level // of modules yet to come
	patterns [numDestinations]string
	json     [numDestinations]bool
	facility int
	changed  func() // told of every change of what Save returns
	closed   bool
}

// New starts a log. Close ends it.
func New(o Options) *Vlog {
	o = o.withDefaults()
	v := &Vlog{
		opts: o, start: o.Now(), facility: facilities["daemon"],
		modules: map[string]*module{}, patterns: defaultPatterns(o.Program),
		defaults: [numDestinations]Level{Info, Info, Info},
		limit:    limiter{perMinute: o.PerMinute, burst: o.Burst},
	}
	v.host, _ = os.Hostname()
	v.file = &fileWriter{max: o.MaxSize, keep: o.Keep, transient: o.Transient}
	v.sinks[Console] = newSink(&plainWriter{o.Console})
	v.sinks[File] = newSink(v.file)
	v.sinks[Syslog] = newSink(newSystemWriter(o))
	for _, name := range append([]string{"vlog"}, o.Modules...) {
		v.module(name)
	}
	return v
}

// module returns the named module, made on first use.
func (v *Vlog) module(name string) *module {
	v.mu.Lock()
	defer v.mu.Unlock()
	if m := v.modules[name]; m != nil {
		return m
	}
	m := &module{name: name}
	m.limited.Store(true)
	for d, l := range v.defaults {
		m.levels[d].Store(int32(l))
	}
	v.modules[name] = m
	return m
}

// Logger returns the logger of a module.
func (v *Vlog) Logger(name string) *slog.Logger {
	return slog.New(&handler{log: v, module: v.module(name)})
}

// LoggerExcept returns a logger of a module that leaves out one destination,
// for what is shown there already.
func (v *Vlog) LoggerExcept(name string, d Destination) *slog.Logger {
	return slog.New(&handler{log: v, module: v.module(name), except: d + 1})
}

// OnChange has f called after every change of levels, patterns, formats or the
// log file: of what Save returns.
func (v *Vlog) OnChange(f func()) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.changed = f
}

func (v *Vlog) tell() {
	v.mu.Lock()
	f := v.changed
	v.mu.Unlock()
	if f != nil {
		f()
	}
}

// Set changes levels, patterns or the facility, each by a specification of
// Open vSwitch's grammar: words separated by ':', ',' or blanks, naming at most
// one module, one destination and one level; or PATTERN:DESTINATION:PATTERN; or
// FACILITY:NAME. No specification at all means everything at DBG.
func (v *Vlog) Set(specs ...string) error {
	if len(specs) == 0 {
		specs = []string{"ANY"}
	}
	for _, spec := range specs {
		if err := v.set(spec); err != nil {
			return err
		}
	}
	v.tell()
	return nil
}

const separators = " ,:\t"

// word cuts the first word off a specification.
func word(s string) (first, rest string) {
	s = strings.TrimLeft(s, separators)
	i := strings.IndexAny(s, separators)
	if i < 0 {
		return s, ""
	}
	return s[:i], s[i+1:]
}

func (v *Vlog) set(spec string) error {
	first, rest := word(spec)
	switch {
	case strings.EqualFold(first, "PATTERN"):
		return v.setPattern(rest)
	case strings.EqualFold(first, "FACILITY"):
		return v.setFacility(rest)
	}
	return v.setLevels(spec)
}

func (v *Vlog) setPattern(spec string) error {
	name, pattern := word(spec)
	if name == "" {
		return errors.New("missing destination")
	}
	d, ok := parseDestination(name)
	all := strings.EqualFold(name, "ANY")
	if !ok && !all {
		return fmt.Errorf("unknown destination %q", name)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for i := range v.patterns {
		if all || Destination(i) == d {
			v.patterns[i] = pattern
		}
	}
	return nil
}

func (v *Vlog) setFacility(spec string) error {
	name, _ := word(spec)
	f, ok := facilities[strings.ToLower(name)]
	if !ok {
		return errors.New("invalid facility")
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.facility = f
	return nil
}

func (v *Vlog) setLevels(spec string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	d, level, m := anyDestination, Level(-1), (*module)(nil)
	for w, rest := word(spec); w != ""; w, rest = word(rest) {
		if strings.EqualFold(w, "ANY") {
			continue
		}
		if dest, ok := parseDestination(w); ok {
			if d != anyDestination {
				return errors.New("cannot specify multiple destinations")
			}
			d = dest
		} else if l, ok := ParseLevel(w); ok {
			if level >= 0 {
				return errors.New("cannot specify multiple levels")
			}
			level = l
		} else if mod := v.modules[strings.ToLower(w)]; mod != nil {
			if m != nil {
				return errors.New("cannot specify multiple modules")
			}
			m = mod
		} else {
			return fmt.Errorf("no destination, level, or module %q", w)
		}
	}
	if level < 0 {
		level = Debug
	}
	v.assign(m, d, level)
	return nil
}

// assign sets the levels that a specification selects. v.mu is held.
func (v *Vlog) assign(m *module, d Destination, level Level) {
	for i := range v.defaults {
		if d != anyDestination && Destination(i) != d {
			continue
		}
		if m != nil {
			m.levels[i].Store(int32(level))
			continue
		}
		v.defaults[i] = level
		for _, each := range v.modules {
			each.levels[i].Store(int32(level))
		}
	}
}

// SetRateLimit turns rate limits on or off, for all modules if none is named.
func (v *Vlog) SetRateLimit(on bool, names ...string) error {
	v.mu.Lock()
	mods := slices.Collect(maps.Values(v.modules))
	if len(names) > 0 {
		mods = mods[:0]
	}
	for _, name := range names {
		m := v.modules[strings.ToLower(name)]
		if m == nil {
			v.mu.Unlock()
			return errors.New("unknown module")
		}
		mods = append(mods, m)
	}
	v.mu.Unlock()
	for _, m := range mods {
		m.limited.Store(on)
	}
	v.tell()
	return nil
}

// ModuleLevels is one row of List.
type ModuleLevels struct {
	Module      string `json:"module"`
	Console     string `json:"console"`
	Syslog      string `json:"syslog"`
	File        string `json:"file"`
	RateLimited bool   `json:"rate_limited"`
}

// List returns the levels of all modules, sorted by name.
func (v *Vlog) List() []ModuleLevels {
	v.mu.Lock()
	defer v.mu.Unlock()
	rows := make([]ModuleLevels, 0, len(v.modules))
	for _, name := range slices.Sorted(maps.Keys(v.modules)) {
		m := v.modules[name]
		rows = append(rows, ModuleLevels{
			name, m.level(Console).String(), m.level(Syslog).String(), m.level(File).String(), m.limited.Load(),
		})
	}
	return rows
}

// ListText renders List as vlog/list does.
func (v *Vlog) ListText() string {
	var b strings.Builder
	b.WriteString("                 console    syslog    file\n")
	b.WriteString("                 -------    ------    ------\n")
	for _, r := range v.List() {
		fmt.Fprintf(&b, "%-16s  %4s       %4s       %4s", r.Module, r.Console, r.Syslog, r.File)
		if !r.RateLimited {
			b.WriteString("    (rate limiting disabled)")
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// DestinationPattern is one row of ListPatterns.
type DestinationPattern struct {
	Destination string `json:"destination"`
	Prefix      string `json:"prefix"`
	Format      string `json:"format"` // the pattern, or "json"
}

// ListPatterns returns the pattern of each destination.
func (v *Vlog) ListPatterns() []DestinationPattern {
	v.mu.Lock()
	defer v.mu.Unlock()
	var rows []DestinationPattern
	for d := range numDestinations {
		row := DestinationPattern{d.String(), "none", v.patterns[d]}
		if d == Syslog {
			row.Prefix = syslogPrefix
		}
		if v.json[d] {
			row.Format = "json"
		}
		rows = append(rows, row)
	}
	return rows
}

// ListPatternText renders ListPatterns as vlog/list-pattern does.
func (v *Vlog) ListPatternText() string {
	var b strings.Builder
	b.WriteString("         prefix                            format\n")
	b.WriteString("         ------                            ------\n")
	for _, r := range v.ListPatterns() {
		fmt.Fprintf(&b, "%-7s  %-32s  %s\n", r.Destination, r.Prefix, r.Format)
	}
	return b.String()
}

// SetFormat chooses "text" (the pattern) or "json" for the file and the console.
func (v *Vlog) SetFormat(format string) error {
	if format != "text" && format != "json" {
		return fmt.Errorf("unknown log format %q; use text or json", format)
	}
	v.mu.Lock()
	v.json[File], v.json[Console] = format == "json", format == "json"
	v.mu.Unlock()
	v.tell()
	return nil
}
