package cmap

import (
	"errors"
	"fmt"
	"strings"
)

// The kinds of refusal, found with errors.Is; the errors themselves say more.
var (
	ErrNotExist = errors.New("no such key")
	ErrReadOnly = errors.New("read-only key")
	ErrBadKey   = errors.New("bad key")
	ErrBadValue = errors.New("bad value")
	ErrFull     = errors.New("the object database is full")
	ErrClosed   = errors.New("the object database is closed")
)

// The limits of a key's name.
const (
	MinKeyBytes = 3
	MaxKeyBytes = 255
)

// CheckKey says what is wrong with the name of a key.
func CheckKey(key string) error {
	if len(key) < MinKeyBytes {
		return fmt.Errorf("%w %q: it is shorter than %d characters", ErrBadKey, key, MinKeyBytes)
	}
	if len(key) > MaxKeyBytes {
		return fmt.Errorf("%w %q…: it is longer than %d characters", ErrBadKey, key[:40], MaxKeyBytes)
	}
	if i := strings.IndexFunc(key, badRune); i >= 0 {
		return fmt.Errorf("%w %q: character %d is not allowed; keys have letters, digits and ._-/: only", ErrBadKey, key, i+1)
	}
	return nil
}

func badRune(r rune) bool {
	return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && (r < '0' || r > '9') && !strings.ContainsRune("._-/:", r)
}

// Name makes any text part of a key: what a key must not have becomes "_".
func Name(s string) string {
	return strings.Map(func(r rune) rune {
		if badRune(r) {
			return '_'
		}
		return r
	}, s)
}
