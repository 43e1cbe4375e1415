package vlog

import (
	"fmt"
	"sync"
	"time"
)

// limiter is a token bucket for every place in the code that logs. Their
// number is bounded by the size of the program.
type limiter struct {
	perMinute, burst int

	mu      sync.Mutex // guards buckets
	buckets map[uintptr]*bucket
}

type bucket struct {
	tokens  float64
	filled  time.Time
	dropped int
	first   time.Time // first and latest drop since the last message that passed
	latest  time.Time
}

// allow takes a token for a message logged at pc. When messages were dropped
// there before, it returns a text that says so.
func (l *limiter) allow(pc uintptr, now time.Time) (ok bool, lost string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	b := l.buckets[pc]
	if b == nil {
		if l.buckets == nil {
			l.buckets = map[uintptr]*bucket{}
		}
		b = &bucket{tokens: float64(l.burst), filled: now}
		l.buckets[pc] = b
	}
	if passed := now.Sub(b.filled); passed > 0 {
		b.tokens = min(float64(l.burst), b.tokens+passed.Minutes()*float64(l.perMinute))
		b.filled = now
	}
	if b.tokens < 1 {
		b.drop(now)
		return false, ""
	}
	b.tokens--
	return true, b.report(now)
}

func (b *bucket) drop(now time.Time) {
	if b.dropped == 0 {
		b.first = now
	}
	b.dropped++
	b.latest = now
}

func (b *bucket) report(now time.Time) string {
	if b.dropped == 0 {
		return ""
	}
	text := fmt.Sprintf("Dropped %d log messages in last %d seconds (most recently, %d seconds ago) due to excessive rate",
		b.dropped, int(now.Sub(b.first).Seconds()), int(now.Sub(b.latest).Seconds()))
	b.dropped = 0
	return text
}
