package messenger

import (
	"fmt"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/wire"
)

// Handler owns what sessions carry. For each session its methods are called in
// this order: SessionUp, HandleFrame for every frame, SessionDown. SessionDown
// of a session returns before SessionUp of its successor is called.
//
// All methods may call Send and Session.End. None may wait for Messenger's
// Connect, Disconnect, Reconnect or Close, which wait for them.
type Handler interface {
	// SessionUp tells of a new session, before its first frame.
	SessionUp(s *Session)
	// HandleFrame is given each device frame and each NodeMsg in order (hints,
	// which have no Seq, come ahead of it), on the
	// goroutine that reads the link; those of the data and the meta link of one
	// session are concurrent with one another. It must not block; what may it
	// defers in b. What it sends it sends into b. f and its payload are valid until it returns,
	// unless it retains f.Buf.
	HandleFrame(s *Session, f *wire.Frame, b *block.Batch)
	// SessionDown tells that the session is over: HandleFrame is not called
	// for it any more, and Send drops what it is given. What frames deferred
	// may still be under way, kept by a disk.
	SessionDown(s *Session, r Reason)
}

// Code is the kind of a Reason.
type Code uint8

// Why a session ended.
const (
	ReasonClosed     Code = iota + 1 // the peer's process is gone: its connections were closed or refused
	ReasonTimeout                    // nothing came for the tick time, or a link did not come back within it
	ReasonDisconnect                 // one of the two nodes was told to disconnect
	ReasonShutdown                   // one of the two processes ends in good order
	ReasonRestarted                  // a new process answers in the peer's name
	ReasonReset                      // the peer ended the session, or does not know it any more
	ReasonOverflow                   // the peer takes less than it is sent: its queue is over the limit
	ReasonProtocol                   // the peer broke the protocol
	ReasonRemoved                    // the node was removed from, or changed in, the configuration
	ReasonEnded                      // the Handler ended it
	ReasonRebound                    // this node has moved to another port, as another entity
)

func (c Code) String() string {
	switch c {
	case ReasonClosed:
		return "connection-closed"
	case ReasonTimeout:
		return "tick-timeout"
	case ReasonDisconnect:
		return "disconnect"
	case ReasonShutdown:
		return "shutdown"
	case ReasonRestarted:
		return "restarted"
	case ReasonReset:
		return "reset"
	case ReasonOverflow:
		return "queue-overflow"
	case ReasonProtocol:
		return "protocol-error"
	case ReasonRemoved:
		return "removed"
	case ReasonEnded:
		return "ended"
	case ReasonRebound:
		return "rebound"
	}
	return fmt.Sprintf("reason(%d)", uint8(c))
}

// Reason is why a session ended: a kind for programs, a sentence for people.
type Reason struct {
	Code Code
	Text string
}

func (r Reason) String() string {
	if r.Text == "" {
		return r.Code.String()
	}
	return r.Code.String() + ": " + r.Text
}
