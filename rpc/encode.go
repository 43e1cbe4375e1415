package rpc

import (
	"context"
	"encoding/json"
	"errors"
	"strings"

	"github.com/sourcegraph/jsonrpc2"

	"github.com/lockstepd/lockstep/rpc/api"
	"github.com/lockstepd/lockstep/rpc/frame"
)

// The replies of the unixctl dialect, member by member as ovsdb-server sends
// them: a success has "result" and a null "error", an error no "result".
// Nothing stands between two replies.

// legacyText answers a text. Clients before Open vSwitch 3.4 print it as it
// is, later ones add the newline themselves; it has one for both.
func legacyText(id []byte, text string) []byte {
	msg := append(make([]byte, 0, len(id)+len(text)+len(text)/8+40), `{"id":`...)
	msg = append(append(msg, id...), `,"result":`...)
	return append(frame.AppendQuote(msg, line(text)), `,"error":null}`...)
}

// legacyJSON answers in the format that "set-options --format json" chose.
func legacyJSON(id []byte, r result) ([]byte, error) {
	if !r.plain {
		raw, err := r.json()
		if err != nil {
			return nil, err
		}
		if string(raw) != "null" {
			return legacyReply(id, frame.WithoutNUL(raw)), nil
		}
	}
	reply := frame.AppendQuote([]byte(`{"reply":`), r.text())
	return legacyReply(id, append(reply, `,"reply-format":"plain"}`...)), nil
}

func legacyReply(id, result []byte) []byte {
	msg := append(make([]byte, 0, len(id)+len(result)+32), `{"id":`...)
	msg = append(append(append(msg, id...), `,"result":`...), result...)
	return append(msg, `,"error":null}`...)
}

// legacyError answers an error: always a bare string, in either format, for
// the clients take nothing else.
func legacyError(id []byte, text string, asJSON bool) []byte {
	if !asJSON {
		text = line(text)
	}
	msg := append(append([]byte(`{"id":`), id...), `,"error":`...)
	return append(frame.AppendQuote(msg, text), '}')
}

// line ends text with a newline unless it is empty or has one.
func line(text string) string {
	if text == "" || strings.HasSuffix(text, "\n") {
		return text
	}
	return text + "\n"
}

// modernError encodes an error reply of JSON-RPC 2.0.
func modernError(id []byte, e *api.Error) []byte {
	if id == nil {
		id = []byte("null")
	}
	raw, err := json.Marshal(e)
	if err != nil { // Data that is not JSON
		raw, _ = json.Marshal(api.Error{Code: e.Code, Message: e.Message})
	}
	return modernReply(id, "error", raw)
}

func modernReply(id []byte, member string, value []byte) []byte {
	msg := append(make([]byte, 0, len(id)+len(value)+48), `{"jsonrpc":"2.0","id":`...)
	msg = append(append(append(msg, id...), `,"`...), member...)
	return append(append(append(msg, `":`...), value...), '}')
}

// wireError is the one place where an error becomes an error of the wire.
func wireError(err error) *api.Error {
	if e, ok := errors.AsType[*api.Error](err); ok {
		if error(e) == err {
			return e
		}
		return &api.Error{Code: e.Code, Message: err.Error(), Data: e.Data}
	}
	code := api.CodeFailed
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		code = api.CodeTimeout
	case errors.Is(err, context.Canceled):
		code = api.CodeCancelled
	}
	return &api.Error{Code: code, Message: err.Error()}
}

func libraryError(e *api.Error) *jsonrpc2.Error {
	out := &jsonrpc2.Error{Code: int64(e.Code), Message: e.Message}
	if json.Valid(e.Data) {
		out.Data = &e.Data
	}
	return out
}
