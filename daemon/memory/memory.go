// Package memory shows what a program's memory is used for, and writes to the
// log when its peak grows, as Open vSwitch's memory/show and its periodic check do.
package memory

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime/metrics"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Usage is one line of the account.
type Usage struct {
	Name  string `json:"name"`
	Value uint64 `json:"value"`
}

// Account collects usage from those who know theirs.
type Account struct {
	mu      sync.Mutex // guards readers; not held while they are called
	readers map[string]func() uint64
}

// NewAccount returns an account of what the Go runtime and the kernel know:
// goroutines, heap and resident set.
func NewAccount() *Account {
	a := &Account{readers: map[string]func() uint64{}}
	a.Attach("goroutines", runtimeMetric("/sched/goroutines:goroutines"))
	a.Attach("heap-kB", inKB(runtimeMetric("/memory/classes/heap/objects:bytes")))
	a.Attach("runtime-kB", inKB(runtimeMetric("/memory/classes/total:bytes")))
	a.Attach("rss-kB", func() uint64 { return statusKB("VmRSS") })
	a.Attach("peak-rss-kB", func() uint64 { return statusKB("VmHWM") })
	return a
}

// Attach adds a reader under the given name; it must be quick and safe for concurrent use.
func (a *Account) Attach(name string, read func() uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.readers[name] = read
}

// Show returns the account, sorted by name.
func (a *Account) Show() []Usage {
	a.mu.Lock()
	readers := make(map[string]func() uint64, len(a.readers))
	maps.Copy(readers, a.readers)
	a.mu.Unlock()
	usage := make([]Usage, 0, len(readers))
	for name, read := range readers {
		usage = append(usage, Usage{name, read()})
	}
	slices.SortFunc(usage, func(x, y Usage) int { return strings.Compare(x.Name, y.Name) })
	return usage
}

// Text renders the account as memory/show does: "cells:20 monitors:0".
func (a *Account) Text() string { return Render(a.Show()) + "\n" }

// Render writes usage in one line.
func Render(usage []Usage) string {
	words := make([]string, len(usage))
	for i, u := range usage {
		words[i] = u.Name + ":" + strconv.FormatUint(u.Value, 10)
	}
	return strings.Join(words, " ")
}

// CheckInterval is the time between two looks at the peak.
const CheckInterval = 10 * time.Second

// Run writes to log whenever the peak of the resident set has grown by half.
func (a *Account) Run(ctx context.Context, log *slog.Logger) {
	t := time.NewTicker(CheckInterval)
	defer t.Stop()
	start := time.Now()
	last, lastAt := uint64(0), start
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-t.C:
			peak := statusKB("VmHWM")
			if text, grown := growth(last, peak, now.Sub(lastAt), now.Sub(start)); grown {
				log.Info(text)
				log.Info(Render(a.Show()))
				last, lastAt = peak, now
			}
		}
	}
}

// growth says whether the peak is worth a line, and writes it.
func growth(last, peak uint64, since, up time.Duration) (string, bool) {
	switch {
	case peak == 0:
		return "", false
	case last == 0:
		return fmt.Sprintf("%d kB peak resident set size after %.1f seconds", peak, up.Seconds()), true
	case peak < last+last/2:
		return "", false
	}
	return fmt.Sprintf("peak resident set size grew %.0f%% in last %.1f seconds, from %d kB to %d kB",
		(float64(peak)/float64(last)-1)*100, since.Seconds(), last, peak), true
}

func runtimeMetric(name string) func() uint64 {
	return func() uint64 {
		s := []metrics.Sample{{Name: name}}
		metrics.Read(s)
		if s[0].Value.Kind() != metrics.KindUint64 {
			return 0
		}
		return s[0].Value.Uint64()
	}
}

func inKB(read func() uint64) func() uint64 { return func() uint64 { return read() / 1024 } }

// statusKB reads one "Name:  123 kB" line of /proc/self/status, 0 if it can't.
func statusKB(name string) uint64 {
	data, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	return parseKB(string(data), name)
}

func parseKB(status, name string) uint64 {
	for line := range strings.Lines(status) {
		if rest, ok := strings.CutPrefix(line, name+":"); ok {
			kb, _ := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			return kb
		}
	}
	return 0
}
