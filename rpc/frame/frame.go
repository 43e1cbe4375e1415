// Package frame cuts a byte stream into JSON values and looks into them
// without decoding them: the layer below both dialects of the control socket.
//
// A peer may send anything, so limits of size and nesting are enforced while
// bytes arrive, before anything is decoded, and a value that breaks off or
// breaks a rule can still be asked for the members that came whole (an error
// reply wants the request's id). Strings keep their bytes as they are, valid
// UTF-8 or not: arguments are file names as often as not.
package frame

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Limits bound one value of the stream.
type Limits struct {
	Size  int // bytes
	Depth int // objects and arrays within each other
}

// A SyntaxError says that the stream holds something that is not a JSON object
// or array. What follows it cannot be told apart any more.
type SyntaxError struct{ What string }

// Error says what was found.
func (e *SyntaxError) Error() string { return e.What }

// A LimitError says that a value is larger or deeper than allowed.
type LimitError struct {
	What  string // "bytes" or "levels deep"
	Limit int
}

// Error names the limit.
func (e *LimitError) Error() string {
	return fmt.Sprintf("a request may be at most %d %s", e.Limit, e.What)
}

const (
	firstBuffer = 4 << 10  // an idle connection holds this much
	keepBuffer  = 64 << 10 // a buffer that grew beyond is given back
)

// Reader reads one JSON value after another. Any white space between values,
// or none, will do.
type Reader struct {
	src io.Reader
	lim Limits

	// buf[start:pos] is the part of the present value that was looked at,
	// buf[pos:end] what arrived beyond it.
	buf             []byte
	start, pos, end int

	depth    int
	inString bool
	escaped  bool
	err      error // sticky: after a fault the stream is out of step
}

// NewReader returns a Reader of src.
func NewReader(src io.Reader, lim Limits) *Reader {
	return &Reader{src: src, lim: lim}
}

// Next returns the next value, an object or an array that is valid JSON. The
// bytes are good until the next call. It returns io.EOF where the stream ends
// between values, io.ErrUnexpectedEOF where it ends within one, a *SyntaxError,
// a *LimitError, or what src returned. After an error Next returns it again.
func (r *Reader) Next() ([]byte, error) {
	if r.err != nil {
		return nil, r.err
	}
	value, err := r.next()
	if err == nil && !json.Valid(value) {
		err = syntaxError(value)
	}
	if err != nil {
		r.err = err
		return nil, err
	}
	return value, nil
}

func (r *Reader) next() ([]byte, error) {
	r.release()
	for {
		done, err := r.scan()
		if err != nil {
			return nil, err
		}
		if done {
			return r.buf[r.start:r.pos], nil
		}
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
}

// Partial returns what was read of the value at which Next failed.
func (r *Reader) Partial() []byte { return r.buf[r.start:r.end] }

// release forgets the value that was returned last, and a buffer that grew for
// it.
func (r *Reader) release() {
	r.start = r.pos
	if r.start != r.end {
		return
	}
	r.start, r.pos, r.end = 0, 0, 0
	if len(r.buf) > keepBuffer {
		r.buf = nil
	}
}

// scan looks at what has arrived and reports whether a value is complete.
func (r *Reader) scan() (done bool, err error) {
	if r.depth == 0 {
		if r.skipSpace(); r.pos == r.end {
			return false, nil
		}
		if c := r.buf[r.pos]; c != '{' && c != '[' {
			return false, &SyntaxError{fmt.Sprintf("expected a JSON object, found %q", c)}
		}
	}
	for r.pos < r.end {
		c := r.buf[r.pos]
		r.pos++
		if r.pos-r.start > r.lim.Size {
			return false, &LimitError{"bytes", r.lim.Size}
		}
		if r.inString {
			r.scanString(c)
			continue
		}
		switch c {
		case '"':
			r.inString = true
		case '{', '[':
			if r.depth++; r.depth > r.lim.Depth {
				return false, &LimitError{"levels deep", r.lim.Depth}
			}
		case '}', ']':
			if r.depth--; r.depth == 0 {
				return true, nil
			}
		}
	}
	return false, nil
}

func (r *Reader) scanString(c byte) {
	switch {
	case r.escaped:
		r.escaped = false
	case c == '\\':
		r.escaped = true
	case c == '"':
		r.inString = false
	}
}

func (r *Reader) skipSpace() {
	for r.pos < r.end && isSpace(r.buf[r.pos]) {
		r.pos++
	}
	r.start = r.pos
}

func isSpace(c byte) bool { return c == ' ' || c == '\t' || c == '\n' || c == '\r' }

// fill reads more, into room made by moving what is there to the front or by
// doubling the buffer. The buffer never grows beyond twice the size limit.
func (r *Reader) fill() error {
	if r.end == len(r.buf) {
		r.makeRoom()
	}
	n, err := r.src.Read(r.buf[r.end:])
	r.end += n
	if n > 0 {
		return nil
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF) && r.pos > r.start:
		return io.ErrUnexpectedEOF
	}
	return err
}

func (r *Reader) makeRoom() {
	held := r.end - r.start
	to := r.buf
	if held > len(r.buf)/2 || len(r.buf) == 0 {
		to = make([]byte, max(firstBuffer, 2*len(r.buf)))
	}
	copy(to, r.buf[r.start:r.end])
	r.buf, r.pos, r.end, r.start = to, r.pos-r.start, held, 0
}

// syntaxError finds words for what is wrong with value.
func syntaxError(value []byte) error {
	var any json.RawMessage
	err := json.Unmarshal(value, &any)
	if err == nil {
		return &SyntaxError{"not valid JSON"}
	}
	if s, ok := errors.AsType[*json.SyntaxError](err); ok {
		return &SyntaxError{fmt.Sprintf("%v at byte %d", s, s.Offset)}
	}
	return &SyntaxError{err.Error()}
}
