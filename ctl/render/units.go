package render

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Bytes is a byte count in the largest binary unit that leaves at least one:
// "0", "512 B", "1.0 GiB".
func Bytes(n int64) string {
	if n <= 0 {
		return "0"
	}
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, unit := float64(n), -1
	for v >= 1023.95 && unit < len("KMGTPE")-1 {
		v /= 1024
		unit++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTPE"[unit])
}

// Rate is a number of bytes per second, of which nobody needs a fourth digit:
// "9.5 MiB/s", "117 MiB/s".
func Rate(n int64) string {
	if n <= 0 {
		return "-"
	}
	number, unit, _ := strings.Cut(Bytes(n), " ")
	if whole, _, ok := strings.Cut(number, "."); ok && len(whole) > 2 {
		number = whole
	}
	return number + " " + unit + "/s"
}

// Count is a number with a letter for thousands where it gets long.
func Count(v float64) string {
	switch {
	case v < 10000:
		return strconv.FormatFloat(v, 'f', 0, 64)
	case v < 999950:
		return strconv.FormatFloat(v/1e3, 'f', 1, 64) + " k"
	}
	return strconv.FormatFloat(v/1e6, 'f', 1, 64) + " M"
}

// Micros is a short time in microseconds: "180 µs", "1.2 ms", "2.50 s"; "-" for
// none measured.
func Micros(us int64) string {
	switch {
	case us <= 0:
		return "-"
	case us < 1000:
		return fmt.Sprintf("%d µs", us)
	case us < 1000_000:
		return fmt.Sprintf("%.1f ms", float64(us)/1e3)
	}
	return fmt.Sprintf("%.2f s", float64(us)/1e6)
}

// Millis is a configured time: "250 ms", "8 s", "1.5 s", "3 m 20 s".
func Millis(ms int64) string {
	switch {
	case ms < 1000:
		return fmt.Sprintf("%d ms", ms)
	case ms < 60_000:
		return strconv.FormatFloat(float64(ms)/1e3, 'f', -1, 64) + " s"
	}
	return Duration(time.Duration(ms) * time.Millisecond)
}

// Duration is a span in its two largest units: "12 s", "3 m 20 s", "2 h 5 m",
// "4 d 1 h".
func Duration(d time.Duration) string {
	s := int64(max(d, 0) / time.Second)
	units := []struct {
		name string
		size int64
	}{{"d", 86400}, {"h", 3600}, {"m", 60}, {"s", 1}}
	for i, u := range units {
		if s < u.size {
			continue
		}
		text := fmt.Sprintf("%d %s", s/u.size, u.name)
		if rest := s % u.size; i+1 < len(units) && rest/units[i+1].size > 0 {
			text += fmt.Sprintf(" %d %s", rest/units[i+1].size, units[i+1].name)
		}
		return text
	}
	return "0 s"
}

// age is how long ago t was, "-" for never.
func (o Options) age(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return Duration(o.Now.Sub(t))
}

// percent is done of total, never 100 before all is done.
func percent(done, total int64) int64 {
	switch {
	case total <= 0 || done >= total:
		return 100
	case done <= 0:
		return 0
	}
	return int64(float64(done) / float64(total) * 100)
}

// bar is a progress bar of n columns, brackets included.
func bar(done, total int64, n int) string {
	n = max(n-2, 1)
	full := int(percent(done, total)) * n / 100
	return "[" + strings.Repeat("#", full) + strings.Repeat("-", n-full) + "]"
}

// plural is "1 node", "2 nodes".
func plural(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// yesNo is a bool in words.
func yesNo(v bool) string {
	if v {
		return "yes"
	}
	return "no"
}

// Seconds is Duration of a number of seconds.
func Seconds(s int64) string {
	const most = int64(1<<63-1) / int64(time.Second)
	return Duration(time.Duration(min(s, most)) * time.Second)
}
