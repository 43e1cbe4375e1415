package render

import (
	"math"
	"strings"
	"testing"
	"time"
)

func TestBytes(t *testing.T) {
	for n, want := range map[int64]string{
		-1: "0", 0: "0", 1: "1 B", 1023: "1023 B", 1024: "1.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 1<<20 - 1: "1.0 MiB", 1<<20 - 51: "1.0 MiB", 1<<20 - 52: "1023.9 KiB",
		1<<20 - 1024: "1023.0 KiB", 1 << 30: "1.0 GiB", 20 << 40: "20.0 TiB", 3 << 50: "3.0 PiB", math.MaxInt64: "8.0 EiB", math.MinInt64: "0",
	} {
		if got := Bytes(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestRates(t *testing.T) {
	for n, want := range map[int64]string{
		-1: "-", 0: "-", 1: "1 B/s", 1023: "1023 B/s", 1024: "1.0 KiB/s", 99 << 20: "99.0 MiB/s", 123_456_789: "117 MiB/s", 1<<30 - 1: "1.0 GiB/s",
	} {
		if got := Rate(n); got != want {
			t.Errorf("%d: %q, want %q", n, got, want)
		}
	}
}

func TestFill(t *testing.T) {
	for s, want := range map[string]string{
		"": "", "short": "short", "one two three": "one two\nthree", "one two three\nfour": "one two\nthree\nfour", "averylongword and": "averylongword\nand",
	} {
		if got := Fill(8, s); got != want {
			t.Errorf("%q: %q, want %q", s, got, want)
		}
	}
	if got := Fill(0, "one two three"); got != "one two three" {
		t.Errorf("without a width: %q", got)
	}
}

func TestTimes(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Second: "0 s", 0: "0 s", 999 * time.Millisecond: "0 s", 12 * time.Second: "12 s", 60 * time.Second: "1 m", 200 * time.Second: "3 m 20 s",
		time.Hour: "1 h", 2*time.Hour + 5*time.Minute + 7*time.Second: "2 h 5 m", 3605 * time.Second: "1 h", 97 * time.Hour: "4 d 1 h", math.MaxInt64: "106751 d 23 h",
	} {
		if got := Duration(d); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
	for us, want := range map[int64]string{-5: "-", 0: "-", 180: "180 µs", 1240: "1.2 ms", 999_999: "1000.0 ms", 2_500_000: "2.50 s"} {
		if got := Micros(us); got != want {
			t.Errorf("%d µs: %q, want %q", us, got, want)
		}
	}
	for ms, want := range map[int64]string{0: "0 ms", 250: "250 ms", 8000: "8 s", 1500: "1.5 s", 200_000: "3 m 20 s"} {
		if got := Millis(ms); got != want {
			t.Errorf("%d ms: %q, want %q", ms, got, want)
		}
	}
	if got := Seconds(math.MaxInt64); got != "106751 d 23 h" {
		t.Errorf("the longest time: %q", got)
	}
}

func TestCounts(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 7: "7", 9999: "9999", 10000: "10.0 k", 999_949: "999.9 k", 999_950: "1.0 M", 3.4e6: "3.4 M"} {
		if got := Count(v); got != want {
			t.Errorf("%v: %q, want %q", v, got, want)
		}
	}
}

// TestPercent is never 100 before all is done, nor outside 0 to 100.
func TestPercent(t *testing.T) {
	for _, c := range []struct{ done, total, want int64 }{
		{0, 0, 100}, {0, 5, 0}, {-3, 5, 0}, {4, 5, 80}, {5, 5, 100}, {9, 5, 100}, {99999, 100000, 99}, {math.MaxInt64 - 1024, math.MaxInt64, 99}, {5, -5, 100},
	} {
		if got := percent(c.done, c.total); got != c.want {
			t.Errorf("%d of %d: %d, want %d", c.done, c.total, got, c.want)
		}
	}
}

func TestCut(t *testing.T) {
	for _, c := range []struct {
		s    string
		n    int
		want string
	}{{"abc", 3, "abc"}, {"abcd", 3, "ab…"}, {"µµµµ", 3, "µµ…"}, {"abc", 1, "…"}, {"abc", 0, ""}, {"abc", -1, ""}, {"", 0, ""}} {
		if got := Cut(c.s, c.n); got != c.want {
			t.Errorf("%q to %d: %q, want %q", c.s, c.n, got, c.want)
		}
	}
}

// TestClean leaves nothing that steers a terminal.
func TestClean(t *testing.T) {
	const evil = "a\x1b[2J\r\x07\u009b\u202eb\nc\td\x7f\xff"
	if got, want := Clean(evil), "a\uFFFD[2J\uFFFD\uFFFD\uFFFD\uFFFDb c d\uFFFD\uFFFD"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if got, want := CleanLines(evil), "a\uFFFD[2J\uFFFD\uFFFD\uFFFD\uFFFDb\nc\td\uFFFD\uFFFD"; got != want {
		t.Errorf("lines: got %q, want %q", got, want)
	}
}

func TestWrap(t *testing.T) {
	for _, c := range []struct {
		s    string
		n    int
		want string
	}{
		{"a bb ccc", 0, "a bb ccc"}, {"a bb ccc", 4, "a bb|ccc"}, {"a bb ccc", 5, "a bb|ccc"}, {"toolongword b", 4, "toolongword|b"},
		{"a  b", 3, "a b"}, {"", 5, ""}, {"µµ µµ", 2, "µµ|µµ"},
	} {
		if got := strings.Join(wrap(c.s, c.n), "|"); got != c.want {
			t.Errorf("%q to %d: %q, want %q", c.s, c.n, got, c.want)
		}
	}
}

// TestColumnsGoInTheirOrder: the least important first, then what can be cut.
func TestColumnsGoInTheirOrder(t *testing.T) {
	table := func() *table {
		t := &table{cols: []column{{head: "A", flex: true}, {head: "B", drop: 1}, {head: "C", drop: 2}, {head: "EMPTY"}}}
		t.row(text("aaaaaaaaaaaa"), text("bbbbbbbb"), text("cccccccc"), text(""))
		return t
	}
	for width, want := range map[int]string{
		0:  "A             B         C|aaaaaaaaaaaa  bbbbbbbb  cccccccc",
		32: "A             B         C|aaaaaaaaaaaa  bbbbbbbb  cccccccc",
		31: "A             B|aaaaaaaaaaaa  bbbbbbbb",
		21: "A|aaaaaaaaaaaa",
		10: "A|aaaaaaaaa…",
		3:  "A|aaaaaaa…",
	} {
		var b strings.Builder
		table().write(&b, Options{Width: width})
		if got := strings.ReplaceAll(strings.TrimSuffix(b.String(), "\n"), "\n", "|"); got != want {
			t.Errorf("%d columns: %q, want %q", width, got, want)
		}
	}
}

// TestAValueIsNotChanged: renderers sort and shorten copies.
func TestAValueIsNotChanged(t *testing.T) {
	s := status()
	Status(Options{Width: 80, Height: 10, Now: now}, s)
	if len(s.Problems) != 4 || s.Problems[3].Subject != "configuration" || s.Devices[0].Name != "r0" || len(s.Devices) != 3 {
		t.Error("the status was changed")
	}
	c := cmapEntries()
	Cmap(Options{}, c)
	if c[0].Key != "user.site" {
		t.Error("the entries were sorted in place")
	}
}
