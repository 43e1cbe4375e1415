package rpc

import (
	"bytes"
	"encoding"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/frame"
)

// shape is what decoding knows of a parameter struct.
type shape struct {
	fields     []field
	positional int  // this many of fields can be given by position
	rest       bool // the last positional field takes all that are left
}

type field struct {
	name  string
	index []int
	typ   reflect.Type
}

var (
	durationType = reflect.TypeFor[time.Duration]()
	stringsType  = reflect.TypeFor[[]string]()
	rawType      = reflect.TypeFor[json.RawMessage]()
	unmarshaler  = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// shapeFor looks at P once, when the command's row is made.
func shapeFor[P any]() (shape, error) {
	t := reflect.TypeFor[P]()
	if t.Kind() != reflect.Struct {
		return shape{}, fmt.Errorf("parameters must be a struct, not %v", t)
	}
	var s shape
	var named []field
	for _, f := range reflect.VisibleFields(t) {
		if f.Anonymous && f.Type.Kind() == reflect.Pointer {
			return shape{}, fmt.Errorf("parameters must not embed %v by pointer", f.Type)
		}
		name, ok := fieldName(f)
		if !ok {
			continue
		}
		entry := field{name, f.Index, f.Type}
		if s.rest || f.Tag.Get("rpc") == "named" || !textual(f.Type) {
			named = append(named, entry)
			continue
		}
		s.rest = f.Type == stringsType
		s.fields = append(s.fields, entry)
	}
	s.positional = len(s.fields)
	s.fields = append(s.fields, named...)
	return s, nil
}

// fieldName returns the JSON name of f, and whether it is a parameter at all.
func fieldName(f reflect.StructField) (string, bool) {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	if !f.IsExported() || f.Anonymous || name == "-" {
		return "", false
	}
	if name == "" {
		name = f.Name
	}
	return name, true
}

// textual reports whether a value of type t can be made from an argument.
func textual(t reflect.Type) bool {
	if t == stringsType || t == rawType || reflect.PointerTo(t).Implements(unmarshaler) {
		return true
	}
	switch t.Kind() {
	case reflect.Pointer:
		return textual(t.Elem())
	case reflect.Slice, reflect.Map, reflect.Struct, reflect.Array, reflect.Func, reflect.Chan:
		return false
	}
	return true
}

func (s *shape) fits(c *Command) error {
	switch {
	case c.MinArgs > s.positional:
		return fmt.Errorf("it requires %d arguments, its parameters take %d", c.MinArgs, s.positional)
	case c.MaxArgs == Unlimited && !s.rest:
		return errors.New("it takes any number of arguments, its parameters have no []string for them")
	case c.MaxArgs > s.positional && !s.rest:
		return fmt.Errorf("it takes %d arguments, its parameters take %d", c.MaxArgs, s.positional)
	}
	return nil
}

func (s *shape) describe(c *Command) []api.Param {
	var list []api.Param
	for i, f := range s.fields {
		list = append(list, api.Param{
			Name: f.name, Type: typeName(f.typ),
			Positional: i < s.positional, Required: i < c.MinArgs,
		})
	}
	return list
}

func typeName(t reflect.Type) string {
	if t.Kind() == reflect.Pointer {
		return typeName(t.Elem())
	}
	if t == durationType {
		return "duration"
	}
	if t != rawType && reflect.PointerTo(t).Implements(unmarshaler) {
		return "string"
	}
	switch k := t.Kind(); {
	case t == rawType, k == reflect.Interface:
		return "any"
	case k == reflect.Slice, k == reflect.Array:
		return "list"
	case k == reflect.Bool:
		return "boolean"
	case k >= reflect.Int && k <= reflect.Uintptr:
		return "integer"
	case k == reflect.Float32, k == reflect.Float64:
		return "number"
	case k == reflect.String:
		return "string"
	}
	return "object"
}

// decode fills the struct that p points to. Its errors are CodeInvalidParams.
func (s *shape) decode(c *Command, in input, p any) error {
	v := reflect.ValueOf(p).Elem()
	if in.named() {
		return s.decodeNamed(c, in.raw, v)
	}
	if err := c.arity(in.count()); err != nil {
		return err
	}
	if in.args != nil {
		return s.decodeArgs(in.args, v)
	}
	return s.decodeElements(in.elements(), v)
}

func badParam(name string, err error) error {
	return api.Errorf(api.CodeInvalidParams, "parameter %q: %v", name, err)
}

func (s *shape) decodeNamed(c *Command, raw []byte, v reflect.Value) error {
	given := make(map[string]bool)
	for key, value := range frame.Members(raw) {
		name, err := frame.Unquote(key)
		if err != nil {
			return badParam(string(key), err)
		}
		f := s.find(name)
		if f == nil {
			return api.Errorf(api.CodeInvalidParams, "%q command has no parameter %q%s", c.Name, name, s.hint())
		}
		if err := setJSON(v.FieldByIndex(f.index), value); err != nil {
			return badParam(name, err)
		}
		given[name] = true
	}
	for _, f := range s.fields[:c.MinArgs] {
		if !given[f.name] {
			return api.Errorf(api.CodeInvalidParams, "%q command requires the parameter %q", c.Name, f.name)
		}
	}
	return nil
}

func (s *shape) find(name string) *field {
	for i := range s.fields {
		if s.fields[i].name == name {
			return &s.fields[i]
		}
	}
	return nil
}

// hint names the parameters that there are.
func (s *shape) hint() string {
	if len(s.fields) == 0 {
		return "; it has none"
	}
	var names []string
	for _, f := range s.fields {
		names = append(names, f.name)
	}
	return "; it has " + strings.Join(names, ", ")
}

func (s *shape) decodeArgs(args []string, v reflect.Value) error {
	for i, f := range s.fields[:s.positional] {
		if i >= len(args) {
			return nil
		}
		target := v.FieldByIndex(f.index)
		if s.rest && i == s.positional-1 {
			target.Set(reflect.ValueOf(args[i:]))
			return nil
		}
		if err := setText(target, args[i]); err != nil {
			return badParam(f.name, err)
		}
	}
	return nil
}

func (s *shape) decodeElements(elements [][]byte, v reflect.Value) error {
	for i, f := range s.fields[:s.positional] {
		if i >= len(elements) {
			return nil
		}
		target := v.FieldByIndex(f.index)
		if s.rest && i == s.positional-1 && (elements[i][0] != '[' || len(elements) > i+1) {
			return setRest(f.name, target, elements[i:])
		}
		if err := setElement(target, elements[i]); err != nil {
			return badParam(f.name, err)
		}
	}
	return nil
}

func setRest(name string, target reflect.Value, elements [][]byte) error {
	for _, e := range elements {
		arg, err := scalarText(e)
		if err != nil {
			return badParam(name, err)
		}
		target.Set(reflect.Append(target, reflect.ValueOf(arg)))
	}
	return nil
}

// setElement sets target from a positional JSON value: one that fits, or a
// string that is converted as an argument would be.
func setElement(target reflect.Value, raw []byte) error {
	if raw[0] != '"' || target.Kind() == reflect.String {
		return setJSON(target, raw)
	}
	arg, err := frame.Unquote(raw)
	if err != nil {
		return err
	}
	return setText(target, arg)
}

// setJSON sets target from a JSON value. A duration is a string such as "1m30s"
// or a number of seconds.
func setJSON(target reflect.Value, raw []byte) error {
	if target.Type() == durationType {
		arg, err := scalarText(raw)
		if err != nil {
			return err
		}
		return setText(target, arg)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	err := dec.Decode(target.Addr().Interface())
	if t, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		where := ""
		if t.Field != "" {
			where = " in " + strconv.Quote(t.Field)
		}
		return fmt.Errorf("expected %s%s, found %s", typeName(t.Type), where, t.Value)
	}
	if err != nil {
		return errors.New(strings.TrimPrefix(err.Error(), "json: "))
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("more than one value")
	}
	return nil
}

// setText sets target from an argument.
func setText(target reflect.Value, arg string) error {
	if target.Kind() == reflect.Pointer {
		target.Set(reflect.New(target.Type().Elem()))
		return setText(target.Elem(), arg)
	}
	switch p := target.Addr().Interface().(type) {
	case *time.Duration:
		return setDuration(p, arg)
	case *json.RawMessage:
		*p, _ = json.Marshal(arg)
		return nil
	case *[]string:
		*p = []string{arg}
		return nil
	case encoding.TextUnmarshaler:
		return p.UnmarshalText([]byte(arg))
	}
	return setScalar(target, arg)
}

func setDuration(p *time.Duration, arg string) error {
	if seconds, err := strconv.ParseFloat(arg, 64); err == nil {
		arg = strconv.FormatFloat(seconds, 'f', -1, 64) + "s"
	}
	d, err := time.ParseDuration(arg)
	if err != nil {
		return fmt.Errorf("expected a time such as 1m30s or a number of seconds, found %q", arg)
	}
	*p = d
	return nil
}

func setScalar(target reflect.Value, arg string) error {
	switch k := target.Kind(); {
	case k == reflect.String:
		target.SetString(arg)
	case k == reflect.Interface:
		target.Set(reflect.ValueOf(arg))
	case k == reflect.Bool:
		b, ok := parseBool(arg)
		if !ok {
			return fmt.Errorf("expected true or false, found %q", arg)
		}
		target.SetBool(b)
	case target.CanInt():
		n, err := strconv.ParseInt(arg, 10, target.Type().Bits())
		if err != nil {
			return badNumber(arg, err)
		}
		target.SetInt(n)
	case target.CanUint():
		n, err := strconv.ParseUint(arg, 10, target.Type().Bits())
		if err != nil {
			return badNumber(arg, err)
		}
		target.SetUint(n)
	case target.CanFloat():
		n, err := strconv.ParseFloat(arg, target.Type().Bits())
		if err != nil {
			return badNumber(arg, err)
		}
		target.SetFloat(n)
	}
	return nil
}

func badNumber(arg string, err error) error {
	if errors.Is(err, strconv.ErrRange) {
		return fmt.Errorf("the number %s is out of range", arg)
	}
	return fmt.Errorf("expected a number, found %q", arg)
}

func parseBool(arg string) (value, ok bool) {
	switch strings.ToLower(arg) {
	case "true", "yes", "on", "1":
		return true, true
	case "false", "no", "off", "0":
		return false, true
	}
	return false, false
}

// kindOf names the kind of a JSON value.
func kindOf(raw []byte) string {
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	}
	return "a number"
}
