package top

import (
	"strings"
	"unicode/utf8"
)

// sequences are what terminals send for keys that are not characters.
var sequences = []struct{ bytes, key string }{
	{"\x1b[A", Up}, {"\x1bOA", Up}, {"\x1b[B", Down}, {"\x1bOB", Down},
	{"\x1b[5~", PageUp}, {"\x1b[6~", PageDown},
	{"\x1b[H", Home}, {"\x1bOH", Home}, {"\x1b[1~", Home},
	{"\x1b[F", End}, {"\x1bOF", End}, {"\x1b[4~", End},
	{"\r", Enter}, {"\n", Enter}, {"\x7f", Backspace}, {"\b", Backspace}, {"\x03", Interrupt},
}

// Keys cuts what a terminal sent in one piece into keys. A lone escape is
// Escape; unknown sequences are dropped.
func Keys(input string) []string {
	var keys []string
	for input != "" {
		k, n := nextKey(input)
		if k != "" {
			keys = append(keys, k)
		}
		input = input[n:]
	}
	return keys
}

// nextKey is the first key of a non-empty input and its length in bytes.
func nextKey(input string) (key string, n int) {
	for _, s := range sequences {
		if strings.HasPrefix(input, s.bytes) {
			return s.key, len(s.bytes)
		}
	}
	if input[0] == '\x1b' {
		return escape(input)
	}
	r, n := utf8.DecodeRuneInString(input)
	if r < ' ' || r == utf8.RuneError && n <= 1 {
		return "", n
	}
	return input[:n], n
}

// escape is an escape that begins no sequence we know: the key itself, or a
// sequence to skip up to its final byte.
func escape(input string) (key string, n int) {
	if len(input) == 1 || input[1] != '[' && input[1] != 'O' {
		return Escape, 1
	}
	for i := 2; i < len(input); i++ {
		if input[i] >= '@' && input[i] <= '~' {
			return "", i + 1
		}
	}
	return "", len(input)
}
