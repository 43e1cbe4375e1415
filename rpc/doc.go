// Package rpc is the control plane: a registry of commands, the server that
// answers them on a Unix socket, and the client.
//
// One socket speaks two dialects, told apart by each request. A request with
// the member "jsonrpc":"2.0" is JSON-RPC 2.0: named or positional parameters,
// structured results and errors, batches, notifications, many requests at
// once. Any other is JSON-RPC 1.0 as Open vSwitch speaks it, so that a stock
// ovs-appctl works to the last command: parameters are strings, the result is
// text (or JSON, after "set-options --format json"), requests of a connection
// are answered in order. A command is written once and serves both.
//
// The way of a request:
//
//	frame.Reader   cut from the stream; size and nesting limited
//	conn           dialect, id kept as it came, slot of the connection taken
//	Registry       name → Command; role and arity checked
//	Handler        parameters decoded; answered for if it outlasts its deadline
//	outbox         reply queued, written under a write deadline
//
// Nothing a client does costs anyone but itself: it has a bounded number of
// requests in progress, a bounded queue of replies and notifications, and is
// cut off if it does not read. A client that goes away cancels its commands.
package rpc
