package rpc

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/lockstepd/lockstep/rpc/frame"
)

// message is a request that was looked at and not decoded yet. All of it are
// slices of the bytes that came.
type message struct {
	version        []byte // of the member "jsonrpc"; nil where there is none
	id             []byte // nil where there is none
	method, params []byte
	extra          []byte // the first member that no unixctl message has

	result, failure []byte // of a reply; nil where null
}

func (m *message) isReply() bool { return m.result != nil || m.failure != nil }

// clone returns a copy of the reply that outlasts the bytes it was read from.
func (m message) clone() message {
	return message{result: bytes.Clone(m.result), failure: bytes.Clone(m.failure)}
}

// unlessNull returns value, or nil for null.
func unlessNull(value []byte) []byte {
	if string(value) == "null" {
		return nil
	}
	return value
}

// look takes obj apart. Where a member comes twice the last one counts. Of a
// broken obj it returns what came whole.
func look(obj []byte) message {
	var m message
	for key, value := range frame.Members(obj) {
		switch string(plainKey(key)) {
		case `"jsonrpc"`:
			m.version = value
		case `"id"`:
			m.id = value
		case `"method"`:
			m.method = value
		case `"params"`:
			m.params = value
		case `"result"`:
			m.result = unlessNull(value)
		case `"error"`:
			m.failure = unlessNull(value)
		default:
			if m.extra == nil {
				m.extra = key
			}
		}
	}
	return m
}

// plainKey returns a quoted key without escapes that it need not have.
func plainKey(key []byte) []byte {
	if bytes.IndexByte(key, '\\') < 0 {
		return key
	}
	name, err := frame.Unquote(key)
	if err != nil {
		return key
	}
	return frame.AppendQuote(nil, name)
}

// modern reports whether the message claims to be JSON-RPC 2.0 or later: the
// unixctl dialect knows no member "jsonrpc".
func (m *message) modern() bool { return m.version != nil }

// fault says what keeps a modern message from being a JSON-RPC 2.0 request.
func (m *message) fault() string {
	switch {
	case string(m.version) != `"2.0"`:
		return fmt.Sprintf(`"jsonrpc" must be "2.0", found %s`, clip(m.version))
	case m.isReply():
		return "the message is a reply, and nothing was asked"
	case m.method == nil:
		return `the request has no "method"`
	case m.method[0] != '"':
		return fmt.Sprintf(`"method" must be a string, found %s`, kindOf(m.method))
	case m.params != nil && m.params[0] != '{' && m.params[0] != '[' && m.params[0] != 'n':
		return fmt.Sprintf(`"params" must be an object or a list, found %s`, kindOf(m.params))
	case m.id != nil && !goodID(m.id):
		return fmt.Sprintf(`"id" must be a string or a number, found %s`, kindOf(m.id))
	}
	return ""
}

// goodID reports whether JSON-RPC 2.0 allows the id: a string, a number, null.
func goodID(id []byte) bool {
	return len(id) > 0 && strings.IndexByte(`{[tf`, id[0]) < 0
}

// clip shortens what is shown of a client's bytes.
func clip(b []byte) string {
	const most = 40
	if len(b) <= most {
		return string(b)
	}
	return string(b[:most]) + "…"
}

// legacyRequest is a request of the unixctl dialect.
type legacyRequest struct {
	id     []byte // as it came; "null" where it cannot be answered otherwise
	method string
	args   []string
	count  int    // of params, strings or not
	fault  string // what keeps it from being a request
	bad    error  // why one of params is not a usable string
}

// legacy decodes a message of the unixctl dialect. Nothing of the result
// refers to the message's bytes.
func (m *message) legacy() *legacyRequest {
	req := &legacyRequest{id: []byte("null"), fault: m.legacyFault(), args: []string{}}
	if m.id != nil {
		req.id = append([]byte(nil), m.id...)
	}
	if req.fault != "" {
		return req
	}
	var err error
	if req.method, err = frame.Unquote(m.method); err != nil {
		req.fault = "method: " + err.Error()
		return req
	}
	for raw := range frame.Elements(m.params) {
		req.count++
		arg, err := frame.Unquote(raw)
		if err != nil && req.bad == nil {
			req.bad = err
		}
		req.args = append(req.args, arg)
	}
	return req
}

// legacyFault says what keeps a message from being a unixctl request, in Open
// vSwitch's words where it has some.
func (m *message) legacyFault() string {
	switch {
	case m.extra != nil:
		return fmt.Sprintf("message has unexpected member %s", clip(m.extra))
	case m.isReply():
		return "the message is a reply, and nothing was asked"
	case m.method == nil:
		return `request must have "method"`
	case m.method[0] != '"':
		return "method is not a JSON string"
	case m.params == nil:
		return `request must have "params"`
	case m.params[0] != '[':
		return "params must be JSON array"
	case m.id == nil || string(m.id) == "null":
		return `request must have "id"`
	}
	return ""
}
