package memory

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestShow(t *testing.T) {
	a := NewAccount()
	a.Attach("cells", func() uint64 { return 20 })
	got := map[string]uint64{}
	for _, u := range a.Show() {
		got[u.Name] = u.Value
	}
	if got["cells"] != 20 || got["goroutines"] == 0 || got["heap-kB"] == 0 || got["rss-kB"] == 0 || got["peak-rss-kB"] < got["rss-kB"]/2 {
		t.Errorf("%v", got)
	}
	if text := a.Text(); !strings.HasPrefix(text, "cells:20 goroutines:") || !strings.HasSuffix(text, "\n") {
		t.Errorf("%q", text)
	}
}

func TestGrowth(t *testing.T) {
	for _, tc := range []struct {
		last, peak uint64
		want       string
	}{
		{0, 1000, "1000 kB peak resident set size after 60.0 seconds"},
		{0, 0, ""},
		{1000, 1499, ""},
		{1000, 1500, "peak resident set size grew 50% in last 20.0 seconds, from 1000 kB to 1500 kB"},
	} {
		got, grown := growth(tc.last, tc.peak, 20*time.Second, time.Minute)
		if got != tc.want || grown != (tc.want != "") {
			t.Errorf("%d to %d: %q %v", tc.last, tc.peak, got, grown)
		}
	}
}

func TestRunLogsTheFirstPeak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { NewAccount().Run(ctx, slog.New(slog.NewTextHandler(&b, nil))) })
		time.Sleep(CheckInterval + 1) // virtual
		cancel()
		wg.Wait()
		if !strings.Contains(b.String(), "peak resident set size after 10.0 seconds") || !strings.Contains(b.String(), "heap-kB:") {
			t.Error(b.String())
		}
	})
}

func FuzzParseKB(f *testing.F) {
	f.Add("VmHWM:\t  7284 kB\nVmRSS: 5 kB\n")
	f.Fuzz(func(t *testing.T, s string) { parseKB(s, "VmHWM") })
}
