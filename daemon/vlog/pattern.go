package vlog

import (
	"strconv"
	"strings"
	"time"
)

// defaultPatterns are those of Open vSwitch, with our name in the syslog line.
func defaultPatterns(program string) [numDestinations]string {
	return [numDestinations]string{
		Syslog:  program + "|%05N|%c%T|%p|%m",
		Console: "%D{%Y-%m-%dT%H:%M:%SZ}|%05N|%c%T|%p|%m",
		File:    "%D{%Y-%m-%dT%H:%M:%S.###Z}|%05N|%c%T|%p|%m",
	}
}

// entry is one message on its way to a destination.
type entry struct {
	time       time.Time
	level      Level
	module     string
	seq        uint64
	text       string // message and attributes, one line or several
	program    string
	subprogram string
	host       string
	facility   int
	pid        int
	start      time.Time
}

// format renders the entry by a pattern of Open vSwitch's grammar:
// %[-][0][WIDTH]LETTER. Whatever is no escape stands for itself.
func (e *entry) format(buf []byte, pattern string) []byte {
	for i := 0; i < len(pattern); {
		if pattern[i] != '%' || i == len(pattern)-1 {
			buf = append(buf, pattern[i])
			i++
			continue
		}
		var f field
		f, i = parseField(pattern, i+1)
		start := len(buf)
		buf = e.escape(buf, f)
		buf = f.pad(buf, start)
	}
	return buf
}

// field is one escape of a pattern.
type field struct {
	left   bool
	zero   bool
	width  int
	letter byte
	braces string
}

// maxWidth keeps a pattern from asking for a line of any length.
const maxWidth = 1024

func parseField(p string, i int) (field, int) {
	var f field
	if i < len(p) && p[i] == '-' {
		f.left = true
		i++
	}
	if i < len(p) && p[i] == '0' {
		f.zero = true
		i++
	}
	for ; i < len(p) && '0' <= p[i] && p[i] <= '9'; i++ {
		f.width = min(f.width*10+int(p[i]-'0'), maxWidth)
	}
	if i >= len(p) {
		return f, i
	}
	f.letter = p[i]
	i++
	if strings.IndexByte("cdD", f.letter) >= 0 && i < len(p) && p[i] == '{' {
		if end := strings.IndexByte(p[i:], '}'); end >= 0 {
			f.braces = p[i+1 : i+end]
			i += end + 1
		}
	}
	return f, i
}

func (f field) pad(buf []byte, start int) []byte {
	n := f.width - (len(buf) - start)
	if n <= 0 {
		return buf
	}
	fill := byte(' ')
	if f.zero {
		fill = '0'
	}
	for range n {
		buf = append(buf, fill)
	}
	if !f.left {
		copy(buf[start+n:], buf[start:len(buf)-n])
		for i := range n {
			buf[start+i] = fill
		}
	}
	return buf
}

// escape appends what one escape stands for.
func (e *entry) escape(buf []byte, f field) []byte {
	switch f.letter {
	case 'A':
		return append(buf, e.program...)
	case 'B':
		return strconv.AppendInt(buf, int64(e.facility<<3|e.level.syslog()), 10)
	case 'c':
		return append(buf, e.module...)
	case 'd', 'D':
		return e.date(buf, f)
	case 'E':
		return append(buf, e.host...)
	case 'm':
		return append(buf, e.text...)
	case 'N':
		return strconv.AppendUint(buf, e.seq, 10)
	case 'n':
		return append(buf, '\n')
	case 'p':
		return append(buf, e.level.String()...)
	case 'P':
		return strconv.AppendInt(buf, int64(e.pid), 10)
	case 'r':
		return strconv.AppendInt(buf, e.time.Sub(e.start).Milliseconds(), 10)
	case 't':
		if e.subprogram == "" {
			return append(buf, "main"...)
		}
		return append(buf, e.subprogram...)
	case 'T':
		if e.subprogram == "" {
			return buf
		}
		return append(append(append(buf, '('), e.subprogram...), ')')
	case 0:
		return buf
	}
	return append(buf, f.letter)
}

func (e *entry) date(buf []byte, f field) []byte {
	t := e.time.Local()
	if f.letter == 'D' {
		t = e.time.UTC()
	}
	format := f.braces
	if format == "" {
		format = "%Y-%m-%d %H:%M:%S.###"
	}
	return appendTime(buf, format, t)
}

// strftime maps the conversions of strftime to the layouts of package time.
var strftime = map[byte]string{
	'a': "Mon", 'A': "Monday", 'b': "Jan", 'B': "January", 'd': "02", 'e': "_2",
	'F': "2006-01-02", 'H': "15", 'h': "Jan", 'I': "03", 'j': "002", 'm': "01", 'M': "04",
	'p': "PM", 'S': "05", 'T': "15:04:05", 'y': "06", 'Y': "2006", 'z': "-0700", 'Z': "MST",
}

// appendTime renders t by strftime's rules, and ### as milliseconds.
func appendTime(buf []byte, format string, t time.Time) []byte {
	for i := 0; i < len(format); i++ {
		c := format[i]
		switch {
		case strings.HasPrefix(format[i:], "###"):
			buf = t.AppendFormat(buf, ".000")
			buf = append(buf[:len(buf)-4], buf[len(buf)-3:]...)
			i += 2
		case c != '%' || i+1 == len(format):
			buf = append(buf, c)
		default:
			i++
			if layout, ok := strftime[format[i]]; ok {
				buf = t.AppendFormat(buf, layout)
			} else {
				buf = append(buf, format[i])
			}
		}
	}
	return buf
}
