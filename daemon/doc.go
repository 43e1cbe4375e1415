// Package daemon turns a function into a daemon: in the foreground, detached,
// supervised by a monitor, or all of that at once; under systemd, another
// supervisor or none. It knows nothing of what the function does.
//
// # Stages
//
// Nothing is ever forked: every stage is the same program, executed again,
// with its part (see stage) in a memory file whose descriptor number is in one
// environment variable that is removed at once.
//
//	launcher ──starts──▶ monitor ──starts, restarts──▶ daemon
//	   ▲                    │ ▲                           │
//	   └──── readiness ─────┘ └──────── readiness ────────┘
//	                          └──────── crash report ─────┘
//	                          ◀── link: sockets, levels ──▶
//
// The launcher exists with --detach only, the monitor with --monitor only; in
// the foreground without a monitor the first process is the daemon, and
// nothing is executed again.
//
// Four descriptors join a stage to the one before it. Readiness carries one
// typed message, "serving" or "failed, with this status and text"; its end
// without a message means that the stage died. The crash pipe carries what the
// Go runtime prints of a panic or a fatal error. A monitored daemon's standard
// error is a pipe to the monitor, which passes what comes on to the terminal and
// to the log, and finds the headlines of fatal errors there; the log's console
// is the terminal itself. The link, a sequenced-packet socket, carries listening
// sockets up to the monitor, which keeps them open while the daemon restarts, so
// that clients wait in the backlog instead of being refused; its end tells the
// daemon that the monitor is gone. The daemon then goes on without; a planned
// restart makes it the monitor of another daemon, to which its clients go over.
//
// # Ends
//
// The function ends the daemon by returning. The context it is given is
// cancelled by TERM or INT, by Env.Exit and by Env.Restart; a second TERM or
// INT ends the process at once. See ExitStatus for what the return value means.
package daemon
