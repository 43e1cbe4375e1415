package nbd

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

func TestLatencyBucketsFollowEachOther(t *testing.T) {
	for i := range LatencyBuckets {
		from, to := uint64(LatencyFrom(i)), uint64(LatencyFrom(i+1))
		if from >= to {
			t.Fatalf("bucket %d is from %d to %d", i, from, to)
		}
		for _, nanos := range []uint64{from, from + 1, (from + to) / 2, to - 1} {
			if b := latencyBucket(nanos); b != i {
				t.Errorf("%d ns are in bucket %d, not in %d", nanos, b, i)
			}
		}
		if i >= latencySteps && float64(to-from) > float64(from)/latencySteps {
			t.Errorf("bucket %d, from %d to %d, is too wide", i, from, to)
		}
	}
	for _, nanos := range []uint64{uint64(LatencyFrom(LatencyBuckets)), uint64(time.Hour), 1<<64 - 1} {
		if b := latencyBucket(nanos); b != LatencyBuckets-1 {
			t.Errorf("%d ns are in bucket %d", nanos, b)
		}
	}
}

// TestQuantilesAreThoseOfTheTimes compares what the histogram tells with what
// sorting all times tells.
func TestQuantilesAreThoseOfTheTimes(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	var l Latency
	times := make([]time.Duration, 100_000)
	for i := range times {
		// From 20 µs on, with a long tail.
		times[i] = time.Duration(20_000 * (1 + rng.ExpFloat64()*rng.ExpFloat64()*4))
		l[latencyBucket(uint64(times[i]))]++
	}
	slices.Sort(times)
	for _, q := range []float64{0, 0.01, 0.5, 0.9, 0.99, 0.999, 1} {
		want := times[min(int(q*float64(len(times))), len(times)-1)]
		if got := l.Quantile(q); got < want*7/8 || got > want*9/8 {
			t.Errorf("quantile %v is %v, not %v", q, got, want)
		}
	}
	if n := l.Total(); n != uint64(len(times)) {
		t.Errorf("%d were counted", n)
	}
}

func TestQuantileOfFew(t *testing.T) {
	var none Latency
	if q := none.Quantile(0.5); q != 0 {
		t.Errorf("without any request: %v", q)
	}
	var long Latency
	long[LatencyBuckets-1] = 1
	if q := long.Quantile(0.99); q < LatencyFrom(LatencyBuckets-1) {
		t.Errorf("a request of more than %v took %v", LatencyFrom(LatencyBuckets-1), q)
	}
}

func TestLatencySinceAnEarlierOne(t *testing.T) {
	earlier, later := Latency{1: 5, 2: 3}, Latency{1: 7, 2: 3, 9: 4}
	if got, want := later.Since(&earlier), (Latency{1: 2, 9: 4}); got != want {
		t.Errorf("got %v", got)
	}
	if anew := (Latency{1: 1}); anew.Since(&earlier) != anew {
		t.Errorf("counters that were begun anew: %v", anew.Since(&earlier))
	}
}

func BenchmarkLatency(b *testing.B) {
	var c counters
	o := &op{cmd: 1}
	for n := int64(0); b.Loop(); n++ {
		c.done(o, n<<8&0xffffff)
	}
}
