// Package messenger keeps this node connected with its peers. A node pair has
// one session of two TCP (or TLS) connections: the data link for bulk and the
// meta link for what is small and urgent. The node with the higher id dials.
//
// # What a session promises
//
// Frames of a link arrive in the order sent, none lost and none twice, also
// across cuts: every frame has a number and is kept until it was acked; after
// a cut the link is dialled anew, both sides say what they have, and the rest
// is sent again. A cut shorter than the tick time with both processes alive is
// invisible but for the pause. A session ends when the peer's process is gone,
// when nothing came for the tick time, when a link did not come back within
// it, or on request; then the Handler is told, with the frames that were not
// acked at hand, before anything of a new session.
//
// A path that drops packets for a while does not cut a TCP connection; but by
// the time that TCP tries again the tick time may have passed. So whoever dials
// makes new connections as soon as the peer has missed a ping, and the links
// move to them when they come about.
//
// When to dial is decided by state machines of rpc/reconnect: one of each peer's
// sessions, whose states and statistics "reconnect/show" prints (it is passive
// where the peer dials), and one of each link, for the quicker tries while a
// session waits to be resumed (backoff.go).
//
// Session.LeaseLeft is for how much longer the peer is certain to take this
// node for alive (see the cluster package).
//
// # Where peers are accepted
//
// Bind takes a fixed port or the first free one of a range, passes over those on
// a list, and tries again for a while. A node moves by Listen, and its sessions
// stay; or by Rebind, as another entity with a new incarnation, and they end. A
// socket that was shut down under the messenger is replaced: at the same address
// nobody notices, at another one the node is another entity, too (rebind.go).
//
// # Policies
//
// What becomes of a frame when a link is cut depends on what it is for; and what
// a side does about the cut, on who dials.
//
//   - Lossless: every device frame, and what the owner sends by Send. It is kept
//     until acked and sent again. What was not acked when the session ends is told
//     to the owner (Session.Unacked) before anything of a new session.
//   - Lossy: hints (Session.SendHint), pings, pongs and acks. They have no number,
//     go ahead of the queue, and are dropped where they cannot be sent at once;
//     SendHint says so. Nothing of them comes after a cut.
//   - The side of the higher id is a peer's client: when a link is cut it dials at
//     once, again and again until the session ends, and between sessions too.
//   - The side of the lower id is its server: it never dials for a session, keeps
//     what it has to send, and sends it when the other comes back. It knocks when
//     it has started and probes when links are cut, which are connections that
//     carry nothing of a session; with Options.Passive it makes none at all.
//   - Standby, a session that is left cut until there is something to send, does
//     not exist: whether a peer is up must be known at all times, so pings are
//     always to be sent, and a cut that nobody's frames notice is mended as fast
//     as any other. What standby saves, connections to nobody's use, is saved where
//     a node was disconnected: the one on which that was asked for makes none
//     until it is told to connect, and then at once.
//   - A session that one side has lost is found by the other, whose owner is told,
//     before anything new is exchanged: by cookies, incarnations and sequences in
//     the handshake. Nothing of an old session is ever given to the owner of a new
//     one.
//
// # Who does what
//
// Each peer has one goroutine that owns its session's state and receives
// everything that happens as functions in a mailbox (peer.go). Each connection
// has a reader, which parses frames in place and calls the Handler inline, and
// a writer, which sleeps unless the socket is full (link.go, stream.go).
// Whoever has something to send and finds nobody writing writes it himself,
// together with what others queue meanwhile.
//
// What a frame asks of a disk is done by the reader too, when it has handled
// what one read brought: for a disk that answers at once a hand-off would cost
// more than the work. A watch (package relief) looks at the readers once a
// millisecond while any does such work. One that is kept by a disk is relieved:
// another goroutine reads on, with what the first had not begun, and the first
// ends when its disk lets it, having sent what followed. So the frames of a
// link are handed to the Handler one at a time and in order, whoever reads; and
// a frame counts as received, for acks and after a cut, when it was handed on,
// as it always does: whether a disk has it is for the Handler's own acks to say.
// At most maxAway goroutines of a peer's link are away so, across connections
// and sessions; then the link is not read until one is back.
//
// Pings come from the cluster
// package's monitor, on a goroutine of their own.
//
// # Trust
//
// A connection holds no slot and changes nothing before it has proved the
// cluster's cookie, both sides to one another, over both nonces and both
// identities (handshake.go). Connections that have proved nothing are bounded
// in number, per address and in all, and in time.
package messenger
