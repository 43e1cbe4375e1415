package api

import (
	"encoding/json"
	"fmt"
)

// The error codes of JSON-RPC 2.0, and ours below them in the range that the
// specification leaves to implementations. Codes are never reused.
const (
	CodeParse          = -32700 // not JSON
	CodeInvalidRequest = -32600 // JSON, but not a request
	CodeMethodNotFound = -32601 // no such command
	CodeInvalidParams  = -32602 // the command's arguments are wrong in number, name or type
	CodeInternal       = -32603 // a fault of the daemon's own, logged there

	CodeFailed       = -32000 // the command was tried and failed
	CodeForbidden    = -32001 // the caller's role does not allow the command
	CodeTimeout      = -32002 // the command's deadline passed
	CodeBusy         = -32003 // a limit was reached: connections, requests in progress
	CodeNotFound     = -32004 // no such node, device, service, key, …
	CodeInvalidState = -32005 // refused in the present state; the message says what would change it
	CodeCancelled    = -32006 // the caller or the daemon went away before the command was done
	CodeTooLarge     = -32007 // the request is larger or deeper than allowed
	CodeUnavailable  = -32008 // the daemon is starting or stopping
	CodeConflict     = -32009 // it exists already, or was changed meanwhile
	CodeBadConfig    = -32010 // the configuration has faults; Data lists them
)

// Error is what the daemon answers instead of a result. The message is made
// for people and ends with what to do; scripts look at the code.
type Error struct {
	Code    int             `json:"code"`
	Message string          `json:"message"`
	Data    json.RawMessage `json:"data,omitempty"`
}

// Error returns the message alone: it was written to be shown.
func (e *Error) Error() string { return e.Message }

// Is makes errors.Is(err, &Error{Code: c}) ask for the code c.
func (e *Error) Is(target error) bool {
	t, ok := target.(*Error)
	return ok && t.Message == "" && t.Code == e.Code
}

// Errorf makes an Error with a formatted message.
func Errorf(code int, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// WithData returns a copy of the error that carries data as structured detail.
// Data that cannot be encoded is left out: the message must stand on its own.
func (e *Error) WithData(data any) *Error {
	c := *e
	if raw, err := json.Marshal(data); err == nil {
		c.Data = raw
	}
	return &c
}

// Detail is the usual structured data of an error: what it is about, the state
// it is in, and what would change that.
type Detail struct {
	Command string   `json:"command,omitempty"`
	Subject string   `json:"subject,omitempty"` // "node beta", "device r0"
	State   string   `json:"state,omitempty"`
	Next    []string `json:"next,omitempty"`
}

// LimitDetail is the data of CodeBusy, CodeTooLarge and CodeTimeout errors.
type LimitDetail struct {
	Limit string `json:"limit"` // "connections", "requests", "request_bytes", "deadline_ms", …
	Value int64  `json:"value"`
}

// AccessDetail is the data of CodeForbidden errors.
type AccessDetail struct {
	Command string `json:"command"`
	User    string `json:"user"`
	Role    string `json:"role"`  // what the caller has
	Needs   string `json:"needs"` // what the command asks for
}

// Command describes one command of the daemon: the result of "help" is a list
// of them.
type Command struct {
	Name       string  `json:"name"`
	Usage      string  `json:"usage"`
	Doc        string  `json:"doc"`
	Access     string  `json:"access"` // read, admin
	MinArgs    int     `json:"min_args"`
	MaxArgs    int     `json:"max_args"` // -1: any number
	DeadlineMS int64   `json:"deadline_ms,omitempty"`
	Params     []Param `json:"params,omitempty"`
}

// Param is one named parameter of a command.
type Param struct {
	Name       string `json:"name"`
	Type       string `json:"type"` // string, integer, number, boolean, duration, list, object, any
	Positional bool   `json:"positional"`
	Required   bool   `json:"required"`
}
