package cmap

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Type is the type of a value, by Corosync's name.
type Type string

// The types.
const (
	I8  Type = "i8"
	U8  Type = "u8"
	I16 Type = "i16"
	U16 Type = "u16"
	I32 Type = "i32"
	U32 Type = "u32"
	I64 Type = "i64"
	U64 Type = "u64"
	Flt Type = "flt"
	Dbl Type = "dbl"
	Str Type = "str"
	Bin Type = "bin"
)

// Types lists the types.
func Types() []Type { return []Type{I8, U8, I16, U16, I32, U32, I64, U64, Flt, Dbl, Str, Bin} }

// bits is the width of an integer type and whether it has a sign; 0 for
// other types.
func (t Type) bits() (width int, signed bool) {
	switch t {
	case I8, I16, I32, I64:
		signed = true
	case U8, U16, U32, U64:
	default:
		return 0, false
	}
	width, _ = strconv.Atoi(string(t[1:]))
	return width, signed
}

// MaxValueBytes bounds a str or bin value.
const MaxValueBytes = 16384

// Value is a typed value. Values are compared with ==. The zero Value is none.
type Value struct {
	typ Type
	num uint64 // integers in two's complement, floats by their bits
	str string // str and bin
}

// String makes a str.
func String(s string) Value { return Value{typ: Str, str: s} }

// Bytes makes a bin.
func Bytes(b []byte) Value { return Value{typ: Bin, str: string(b)} }

// Int makes an i64.
func Int(n int64) Value { return Value{typ: I64, num: uint64(n)} }

// Uint makes a u64.
func Uint(n uint64) Value { return Value{typ: U64, num: n} }

// Uint32 makes a u32.
func Uint32(n uint32) Value { return Value{typ: U32, num: uint64(n)} }

// Bool makes a u8 of 0 or 1, as Corosync writes flags.
func Bool(b bool) Value {
	if b {
		return Value{typ: U8, num: 1}
	}
	return Value{typ: U8}
}

// Float makes a dbl.
func Float(f float64) Value { return Value{typ: Dbl, num: math.Float64bits(f)} }

// Type is the value's type; "" of the zero Value.
func (v Value) Type() Type { return v.typ }

// IsZero reports whether there is no value.
func (v Value) IsZero() bool { return v.typ == "" }

// Text is the value as it is printed and parsed: bin in hexadecimal.
func (v Value) Text() string {
	switch v.typ {
	case Str:
		return v.str
	case Bin:
		return hex.EncodeToString([]byte(v.str))
	case Flt:
		return strconv.FormatFloat(v.float(), 'g', -1, 32)
	case Dbl:
		return strconv.FormatFloat(v.float(), 'g', -1, 64)
	}
	if _, signed := v.typ.bits(); signed {
		return strconv.FormatInt(int64(v.num), 10)
	}
	return strconv.FormatUint(v.num, 10)
}

// Any is the value for JSON: a number, a string, base64 for bin. Floats that
// JSON has no number for are strings.
func (v Value) Any() any {
	switch v.typ {
	case "":
		return nil
	case Str:
		return v.str
	case Bin:
		return base64.StdEncoding.EncodeToString([]byte(v.str))
	case Flt, Dbl:
		if f := v.float(); math.IsNaN(f) || math.IsInf(f, 0) {
			return v.Text()
		}
		return json.Number(v.Text())
	}
	return json.Number(v.Text())
}

func (v Value) float() float64 {
	if v.typ == Flt {
		return float64(math.Float32frombits(uint32(v.num)))
	}
	return math.Float64frombits(v.num)
}

// size is what the value takes in memory, roughly.
func (v Value) size() int { return 64 + len(v.str) }

// ParseValue reads the text of a value of the named type.
func ParseValue(typ, text string) (Value, error) {
	t := Type(typ)
	switch t {
	case Str:
		return checkLen(Value{t, 0, text}, utf8.ValidString(text))
	case Bin:
		b, err := hex.DecodeString(text)
		return checkLen(Value{t, 0, string(b)}, err == nil)
	case Flt:
		f, err := strconv.ParseFloat(text, 32)
		return Value{t, uint64(math.Float32bits(float32(f))), ""}, numErr(t, text, err)
	case Dbl:
		f, err := strconv.ParseFloat(text, 64)
		return Value{t, math.Float64bits(f), ""}, numErr(t, text, err)
	}
	width, signed := t.bits()
	switch {
	case width == 0:
		names := make([]string, 0, len(Types()))
		for _, t := range Types() {
			names = append(names, string(t))
		}
		return Value{}, fmt.Errorf("%w: there is no type %q; types are %s", ErrBadValue, typ, strings.Join(names, " "))
	case signed:
		n, err := strconv.ParseInt(text, 10, width)
		return Value{t, uint64(n), ""}, numErr(t, text, err)
	}
	n, err := strconv.ParseUint(text, 10, width)
	return Value{t, n, ""}, numErr(t, text, err)
}

// checkLen finishes the parsing of a str or bin.
func checkLen(v Value, ok bool) (Value, error) {
	if !ok {
		if v.typ == Bin {
			return Value{}, fmt.Errorf("%w: a bin is written in hexadecimal", ErrBadValue)
		}
		return Value{}, fmt.Errorf("%w: a str is UTF-8 text", ErrBadValue)
	}
	if len(v.str) > MaxValueBytes {
		return Value{}, fmt.Errorf("%w: %d bytes; a value has at most %d", ErrBadValue, len(v.str), MaxValueBytes)
	}
	return v, nil
}

// numErr puts an error of strconv into our words.
func numErr(t Type, text string, err error) error {
	if err == nil {
		return nil
	}
	if len(text) > 40 {
		text = text[:40] + "…"
	}
	width, signed := t.bits()
	if !errors.Is(err, strconv.ErrRange) || width == 0 {
		what := "a whole number"
		if width == 0 {
			what = "a number in range"
		}
		return fmt.Errorf("%w: %q is not %s of type %s", ErrBadValue, text, what, t)
	}
	if signed {
		limit := int64(1) << (width - 1)
		return fmt.Errorf("%w: %q is out of range; %s is from %d to %d", ErrBadValue, text, t, -limit, limit-1)
	}
	return fmt.Errorf("%w: %q is out of range; %s is from 0 to %d", ErrBadValue, text, t, uint64(math.MaxUint64)>>(64-width))
}

// add is v plus delta, or an error where that leaves the type.
func (v Value) add(delta int64) (Value, error) {
	width, signed := v.typ.bits()
	if width == 0 {
		return Value{}, fmt.Errorf("%w: only integers count up and down, and this is %s", ErrBadValue, v.typ)
	}
	if signed {
		n := int64(v.num)
		sum := n + delta
		limit := int64(1)<<(width-1) - 1
		if (delta > 0) != (sum > n) && delta != 0 || sum > limit || sum < -limit-1 {
			return Value{}, fmt.Errorf("%w: %d %+d leaves the range of %s", ErrBadValue, n, delta, v.typ)
		}
		return Value{v.typ, uint64(sum), ""}, nil
	}
	sum := v.num + uint64(delta)
	if delta > 0 && sum < v.num || delta < 0 && sum > v.num || sum > uint64(math.MaxUint64)>>(64-width) {
		return Value{}, fmt.Errorf("%w: %d %+d leaves the range of %s", ErrBadValue, v.num, delta, v.typ)
	}
	return Value{v.typ, sum, ""}, nil
}
