package rpc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/frame"
)

// A Handler does the work of a command. Make one with Typed or Text.
type Handler interface {
	// handle decodes in and runs the command.
	handle(ctx context.Context, c *Command, by Actor, in input) (result, error)
	// fits reports whether the handler can serve the arity of c.
	fits(c *Command) error
	// params describes the parameters.
	params(c *Command) []api.Param
}

// input is what a request brought: the strings of a unixctl request, or the
// raw params of a JSON-RPC 2.0 request (nil, an array or an object).
type input struct {
	args []string
	raw  []byte
	bad  error // why one of args is not a usable string
}

// named reports whether the parameters come by name.
func (in input) named() bool { return len(in.raw) > 0 && in.raw[0] == '{' }

// elements returns the raw elements of positional JSON-RPC 2.0 parameters.
func (in input) elements() [][]byte {
	var list [][]byte
	for e := range frame.Elements(in.raw) {
		list = append(list, e)
	}
	return list
}

// count returns the number of positional parameters.
func (in input) count() int {
	if in.args != nil {
		return len(in.args)
	}
	n := 0
	for range frame.Elements(in.raw) {
		n++
	}
	return n
}

// result is what a command answered, to be encoded as the request's dialect
// and format want it.
type result struct {
	value any           // for JSON
	text  func() string // for people
	plain bool          // there is no more structure to value than its text
}

func (r result) json() ([]byte, error) {
	raw, err := json.Marshal(r.value)
	if err != nil {
		return nil, fmt.Errorf("encoding the result: %w", err)
	}
	return raw, nil
}

// Text makes a handler of a command that takes strings and answers text in
// every dialect.
func Text(do func(ctx context.Context, by Actor, args []string) (string, error)) Handler {
	return textHandler(do)
}

type textHandler func(ctx context.Context, by Actor, args []string) (string, error)

func (textHandler) fits(*Command) error { return nil }

func (textHandler) params(*Command) []api.Param { return nil }

func (h textHandler) handle(ctx context.Context, c *Command, by Actor, in input) (result, error) {
	args, err := textArgs(c, in)
	if err != nil {
		return result{}, err
	}
	if err := c.arity(len(args)); err != nil {
		return result{}, err
	}
	text, err := h(ctx, by, args)
	return result{value: text, text: func() string { return text }, plain: true}, err
}

// textArgs returns the arguments of a command that knows only strings.
func textArgs(c *Command, in input) ([]string, error) {
	if in.args != nil {
		return in.args, nil
	}
	if in.named() {
		for key := range frame.Members(in.raw) {
			return nil, api.Errorf(api.CodeInvalidParams,
				"%q command takes its parameters by position, not by name: unexpected %s", c.Name, key)
		}
		return nil, nil
	}
	var args []string
	for _, e := range in.elements() {
		arg, err := scalarText(e)
		if err != nil {
			return nil, api.Errorf(api.CodeInvalidParams, "%q command has non-string argument", c.Name)
		}
		args = append(args, arg)
	}
	return args, nil
}

// scalarText returns the text of a JSON string, or a number or word as it is.
func scalarText(raw []byte) (string, error) {
	switch raw[0] {
	case '"':
		return frame.Unquote(raw)
	case '{', '[', 'n':
		return "", fmt.Errorf("%s is not a string", kindOf(raw))
	}
	return string(raw), nil
}

// Typed makes a handler of a command that takes parameters P and answers R.
//
// P is a struct whose fields, by their JSON names, are the parameters. Named
// parameters are decoded strictly: an unknown name is refused. Positional ones,
// and all of the unixctl dialect, fill the fields in order, converted from text
// as the field's type asks for; a []string field takes all that are left, and
// fields after it can only be named. A field tagged `rpc:"named"` is left out
// of the order. The first MinArgs fields of the command are required.
//
// R is the JSON result. text renders it for unixctl clients; nil means indented
// JSON, or the string itself where R is one.
func Typed[P, R any](do func(ctx context.Context, by Actor, p P) (R, error), text func(R) string) Handler {
	shape, err := shapeFor[P]()
	return &typedHandler[P, R]{do: do, text: text, shape: shape, err: err}
}

type typedHandler[P, R any] struct {
	do    func(context.Context, Actor, P) (R, error)
	text  func(R) string
	shape shape
	err   error // P cannot be used as parameters
}

func (h *typedHandler[P, R]) fits(c *Command) error {
	if h.err != nil {
		return h.err
	}
	return h.shape.fits(c)
}

func (h *typedHandler[P, R]) params(c *Command) []api.Param { return h.shape.describe(c) }

func (h *typedHandler[P, R]) handle(ctx context.Context, c *Command, by Actor, in input) (result, error) {
	p := new(P)
	if err := h.shape.decode(c, in, p); err != nil {
		return result{}, err
	}
	r, err := h.do(ctx, by, *p)
	if err != nil {
		return result{}, err
	}
	return result{value: r, text: func() string { return h.render(r) }}, nil
}

func (h *typedHandler[P, R]) render(r R) string {
	if h.text != nil {
		return h.text(r)
	}
	if s, ok := any(r).(string); ok {
		return s
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(r); err != nil {
		return "cannot show the result: " + err.Error()
	}
	return strings.TrimSuffix(b.String(), "\n")
}
