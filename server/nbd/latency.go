package nbd

import (
	"math/bits"
	"time"
)

const (
	// latencySteps is how many buckets there are for each doubling of time: a
	// quantile is found to within an eighth of it.
	latencySteps = 4
	// latencyBits is the width in bits of the longest time, in microseconds,
	// that has a bucket of its own: all from 16.8 s on share the last one.
	latencyBits = 24
	// LatencyBuckets is the number of buckets of a Latency.
	LatencyBuckets = (latencyBits-1)*latencySteps + 1
)

// Latency is a histogram: how many requests took how long. Bucket i counts
// those that took from LatencyFrom(i) to less than LatencyFrom(i+1); the last
// takes the rest.
type Latency [LatencyBuckets]uint64

// latencyBucket is the bucket of a time. Times below four microseconds have a
// bucket for each; longer ones are told apart by their width in bits and the
// two bits after the first.
func latencyBucket(nanos uint64) int {
	us := nanos / 1000
	width := bits.Len64(us)
	switch {
	case width <= 2:
		return int(us)
	case width > latencyBits:
		return LatencyBuckets - 1
	}
	return (width-2)*latencySteps + int(us>>(width-3))%latencySteps
}

// LatencyFrom is the shortest time that bucket i counts.
func LatencyFrom(i int) time.Duration {
	if i < latencySteps {
		return time.Duration(i) * time.Microsecond
	}
	octave, step := i/latencySteps, i%latencySteps
	return time.Duration(latencySteps+step) << (octave - 1) * time.Microsecond
}

// Total is how many requests were counted.
func (l *Latency) Total() (n uint64) {
	for _, c := range l {
		n += c
	}
	return n
}

// Since is what was counted after earlier, a former state of the same
// counters. Where they were begun anew since, it is all that there is.
func (l *Latency) Since(earlier *Latency) Latency {
	rest := *l
	for i, c := range earlier {
		if c > l[i] {
			return *l
		}
		rest[i] -= c
	}
	return rest
}

// Quantile is the time that the share q of the requests, from 0 to 1, took at
// most; 0 where none were counted. Within a bucket, requests are taken to be
// spread evenly.
func (l *Latency) Quantile(q float64) time.Duration {
	left := q * float64(l.Total())
	last := -1
	for i, c := range l {
		if c == 0 {
			continue
		}
		last = i
		if left <= float64(c) {
			from, to := LatencyFrom(i), LatencyFrom(i+1)
			return from + time.Duration(left/float64(c)*float64(to-from))
		}
		left -= float64(c)
	}
	if last < 0 {
		return 0
	}
	return LatencyFrom(last + 1) // a share that rounding has made too large
}
