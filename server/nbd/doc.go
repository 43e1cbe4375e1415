// Package nbd is the local handler: it serves devices to clients on this host
// by the Network Block Device protocol, over Unix and TCP sockets.
//
// A connection has one reader goroutine. It reads many requests with one
// system call into a refcounted slab, decodes them in place, and submits each
// to the backend with a shared batch; a write's payload is a slice of the slab
// and is never copied. Completions come from anywhere. Each appends its op to
// the connection's outbox, and whoever flushes first sends everything there
// with one non-blocking writev: see outbox. A receiver that is slow costs the
// connection's own writer goroutine, nothing else.
//
//	socket ─read─▶ inbox (slabs) ─parse─▶ op ─Submit─▶ backend
//	socket ◀─writev─ outbox ◀──────────── op ◀─Complete┘
//
// To the kernel and to QEMU an error reply is final, and only a lost
// connection makes them ask again. So a request whose outcome is unknown is
// never answered: the connection is closed. And since clients that lost a
// connection send their requests once more over its successor, a successor is
// served only when everything of connections to the export that died is
// finished or fenced: see exports.
//
// A connection can be stopped between two requests, passed to another process
// as a descriptor with a State, and resumed there: see HandOver and Resume.
package nbd
