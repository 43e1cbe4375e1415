package process

import (
	"bytes"
	"strings"
)

// maxLine bounds a line of output; a longer one is cut into several.
const maxLine = 8 << 10

// lineWriter cuts a stream into lines. One goroutine uses it at a time.
type lineWriter struct {
	emit func(line string)
	rest []byte
}

func (p *Process) lines(stream string) *lineWriter {
	return &lineWriter{emit: func(line string) { p.spec.Output(stream, line) }}
}

// Write implements io.Writer.
func (w *lineWriter) Write(data []byte) (int, error) {
	n := len(data)
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		room := maxLine - len(w.rest)
		switch {
		case i >= 0 && i <= room:
			w.rest = append(w.rest, data[:i]...)
			w.put()
			data = data[i+1:]
		case len(data) > room:
			w.rest = append(w.rest, data[:room]...)
			w.put()
			data = data[room:]
		default:
			w.rest = append(w.rest, data...)
			data = nil
		}
	}
	return n, nil
}

// put passes the line on, whatever bytes the program wrote made valid text.
func (w *lineWriter) put() {
	w.emit(strings.ToValidUTF8(strings.TrimSuffix(string(w.rest), "\r"), "\uFFFD"))
	w.rest = w.rest[:0]
}

// flush passes on a last line without an end.
func (w *lineWriter) flush() {
	if len(w.rest) > 0 {
		w.put()
	}
}
