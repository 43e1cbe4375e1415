package frame

import "iter"

// Members yields the members of an object in order: the key still quoted and
// the value as it stands. Of an object that breaks off or goes wrong it yields
// the members that came whole before that. Anything else has no members.
func Members(obj []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		i := open(obj, '{')
		for i >= 0 && i < len(obj) && obj[i] == '"' {
			key, next := cut(obj, i)
			i = skipSpaces(obj, next)
			if next < 0 || i >= len(obj) || obj[i] != ':' {
				return
			}
			value, next := cut(obj, skipSpaces(obj, i+1))
			if next < 0 || !yield(key, value) {
				return
			}
			i = comma(obj, next)
		}
	}
}

// Elements yields the elements of an array in order, as they stand.
func Elements(arr []byte) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		i := open(arr, '[')
		for i >= 0 && i < len(arr) && arr[i] != ']' {
			value, next := cut(arr, i)
			if next < 0 || !yield(value) {
				return
			}
			i = comma(arr, next)
		}
	}
}

// open returns the index of what follows the opening bracket, or -1.
func open(b []byte, bracket byte) int {
	i := skipSpaces(b, 0)
	if i >= len(b) || b[i] != bracket {
		return -1
	}
	return skipSpaces(b, i+1)
}

// comma returns the index of what follows the comma at or after i, or -1.
func comma(b []byte, i int) int {
	i = skipSpaces(b, i)
	if i >= len(b) || b[i] != ',' {
		return -1
	}
	return skipSpaces(b, i+1)
}

func skipSpaces(b []byte, i int) int {
	for i >= 0 && i < len(b) && isSpace(b[i]) {
		i++
	}
	return i
}

// cut returns the value that begins at i and the index after it, which is -1
// where the value does not end within b.
func cut(b []byte, i int) (value []byte, next int) {
	if i < 0 || i >= len(b) {
		return nil, -1
	}
	switch b[i] {
	case '"':
		next = stringEnd(b, i)
	case '{', '[':
		next = bracketEnd(b, i)
	default:
		next = scalarEnd(b, i)
	}
	if next < 0 {
		return nil, -1
	}
	return b[i:next], next
}

// stringEnd returns the index after the string whose quote is at i, or -1.
func stringEnd(b []byte, i int) int {
	for i++; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return -1
}

// bracketEnd returns the index after the object or array that begins at i, or -1.
func bracketEnd(b []byte, i int) int {
	for depth := 0; i < len(b); i++ {
		switch b[i] {
		case '"':
			end := stringEnd(b, i)
			if end < 0 {
				return -1
			}
			i = end - 1
		case '{', '[':
			depth++
		case '}', ']':
			if depth--; depth == 0 {
				return i + 1
			}
		}
	}
	return -1
}

// scalarEnd returns the index after the number or word at i, or -1 where it
// may go on beyond b or is none.
func scalarEnd(b []byte, i int) int {
	for j := i; j < len(b); j++ {
		switch c := b[j]; {
		case isSpace(c), c == ',', c == '}', c == ']':
			if j == i {
				return -1
			}
			return j
		}
	}
	return -1
}
