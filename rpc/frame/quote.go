package frame

import (
	"errors"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// ErrNUL says that a string holds a zero byte, which no argument may.
var ErrNUL = errors.New("null bytes not supported in quoted strings")

var errNotString = errors.New("not a JSON string")

// Unquote returns the text of a JSON string. Bytes that are not UTF-8 stay as
// they are; half a surrogate pair becomes U+FFFD; \u0000 is ErrNUL.
func Unquote(raw []byte) (string, error) {
	if len(raw) < 2 || raw[0] != '"' || raw[len(raw)-1] != '"' {
		return "", errNotString
	}
	raw = raw[1 : len(raw)-1]
	plain := 0
	for plain < len(raw) && raw[plain] != '\\' && raw[plain] != '"' {
		plain++
	}
	if plain == len(raw) {
		return string(raw), nil
	}
	return unescape(raw, plain)
}

func unescape(raw []byte, i int) (string, error) {
	out := append(make([]byte, 0, len(raw)), raw[:i]...)
	for i < len(raw) {
		c := raw[i]
		switch {
		case c == '"':
			return "", errNotString
		case c != '\\':
			out = append(out, c)
			i++
			continue
		case i+1 >= len(raw):
			return "", errNotString
		case raw[i+1] == 'u':
			r, n := unicodeEscape(raw[i:])
			if n == 0 {
				return "", errNotString
			}
			if r == 0 {
				return "", ErrNUL
			}
			out = utf8.AppendRune(out, r)
			i += n
			continue
		}
		plain, ok := simpleEscape(raw[i+1])
		if !ok {
			return "", errNotString
		}
		out = append(out, plain)
		i += 2
	}
	return string(out), nil
}

func simpleEscape(c byte) (byte, bool) {
	switch c {
	case '"', '\\', '/':
		return c, true
	case 'b':
		return '\b', true
	case 'f':
		return '\f', true
	case 'n':
		return '\n', true
	case 'r':
		return '\r', true
	case 't':
		return '\t', true
	}
	return 0, false
}

// unicodeEscape decodes the \uXXXX at the start of b, or the pair of them, and
// returns how many bytes it took; 0 if it is malformed.
func unicodeEscape(b []byte) (rune, int) {
	hi, ok := hex4(b)
	if !ok {
		return 0, 0
	}
	if !utf16.IsSurrogate(hi) {
		return hi, 6
	}
	if lo, ok := hex4(b[6:]); ok {
		if r := utf16.DecodeRune(hi, lo); r != utf8.RuneError {
			return r, 12
		}
	}
	return utf8.RuneError, 6
}

func hex4(b []byte) (rune, bool) {
	if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
		return 0, false
	}
	n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
	return rune(n), err == nil
}

const hexDigits = "0123456789abcdef"

// AppendQuote appends s as a JSON string in the way Open vSwitch does: only
// quote, backslash and control bytes are escaped, all else goes as it is. A
// zero byte, which its clients refuse, becomes U+FFFD.
func AppendQuote(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := range len(s) {
		c := s[i]
		if c >= 0x20 && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[from:i]...)
		dst = appendEscape(dst, c)
		from = i + 1
	}
	dst = append(dst, s[from:]...)
	return append(dst, '"')
}

func appendEscape(dst []byte, c byte) []byte {
	switch c {
	case '"', '\\':
		return append(dst, '\\', c)
	case '\b':
		return append(dst, `\b`...)
	case '\f':
		return append(dst, `\f`...)
	case '\n':
		return append(dst, `\n`...)
	case '\r':
		return append(dst, `\r`...)
	case '\t':
		return append(dst, `\t`...)
	case 0:
		return append(dst, "\uFFFD"...)
	}
	return append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
}

// WithoutNUL returns valid JSON with every \u0000 in its strings replaced by
// \ufffd. It returns raw itself where there is none.
func WithoutNUL(raw []byte) []byte {
	var out []byte
	from := 0
	for i := 0; i+1 < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		if i+6 <= len(raw) && string(raw[i:i+6]) == `\u0000` {
			out = append(append(out, raw[from:i]...), `\ufffd`...)
			from = i + 6
		}
		i++ // whatever is escaped, a backslash above all, is not looked at
	}
	if from == 0 {
		return raw
	}
	return append(out, raw[from:]...)
}
