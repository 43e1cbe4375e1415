package server

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// TestALongStopAsksForTime: nothing is asked for while a stop is short, and
// again and again, each time before the last ran out, while it is long.
func TestALongStopAsksForTime(t *testing.T) {
	end := errors.New("the end")
	for _, c := range []struct {
		takes time.Duration
		want  []time.Duration // since the beginning
	}{
		{extendEvery - time.Second, nil},
		{3*extendEvery + time.Second, []time.Duration{extendEvery, 2 * extendEvery, 3 * extendEvery}},
	} {
		synctest.Test(t, func(t *testing.T) {
			began := time.Now()
			var asked []time.Duration
			err := extending(func(d time.Duration) {
				if d <= extendEvery {
					t.Errorf("asked for %v, which ends before the next is asked for", d)
				}
				asked = append(asked, time.Since(began))
			}, func() error {
				<-time.After(c.takes)
				return end
			})
			if err != end || !slices.Equal(asked, c.want) {
				t.Errorf("a stop of %v asked for time after %v, want %v; %v", c.takes, asked, c.want, err)
			}
		})
	}
	if err := extending(nil, func() error { return end }); err != end {
		t.Error(err)
	}
}
