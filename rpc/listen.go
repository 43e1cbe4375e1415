package rpc

import (
	"net"

	"github.com/lockstepd/lockstep/rpc/unixsock"
)

// ErrInUse says that a live process listens on the path of a control socket.
var ErrInUse = unixsock.ErrInUse

// ListenOptions say how a control socket is made.
type ListenOptions = unixsock.Options

// ListenUnix makes the control socket at path, with mode 0770 if nothing else
// is asked for. It replaces what a dead daemon left there and returns ErrInUse
// where one lives. Closing the listener removes the socket if it is still this
// one. Server.Serve takes it, or a listener that was inherited.
func ListenUnix(path string, o ListenOptions) (net.Listener, error) {
	return unixsock.Listen(path, o)
}

// CleanStale removes the sockets PROGRAM.PID.ctl in rundir that dead daemons
// left behind, and returns their names.
func CleanStale(rundir, program string) ([]string, error) {
	return unixsock.CleanStale(rundir, program)
}
