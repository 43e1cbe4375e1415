// Package cluster knows who is there. Table holds the nodes, their states and
// the reasons for them; Ticks decides when to ping whom, who missed pings and
// who has been silent for too long, and carries out changes of the tick time.
// Both are pure state machines which are told the time. Lease is for how long a
// peer is bound to take us for alive. Monitor is the one
// goroutine that runs Ticks: it shares no lock with dials, disks or queues, so
// that nothing can delay it.
//
// # Ticks
//
// With a tick time T and a maximum ping count I, a node pings a peer when it
// has sent it nothing on the meta link for T/I; every byte received counts as
// a sign of life. A peer that is silent for T is down, found at most T/I later.
// A node promises its T and I in the handshake and in every ping, and a peer
// is judged by the longer of our T and the T it promised: so a change on one
// node drops nobody.
//
// # Leases
//
// What a peer has certainly heard of us binds it: it does not give us up for
// the tick time that we promised, from when we sent that. Lease keeps account
// of it per session, by the answers to pings and by acks. Whoever may answer
// something only as long as no other node can have taken over asks the leases
// of those peers on which that depends, after the fact and before the answer.
// A process that was paused finds them run out with its first instruction. A
// lease rests on the peer's process living on and on the peer giving up nobody
// but for silence: an administrator who disconnects a node by hand, or a path
// that forges the end of a live node's connections, is not covered until the
// news has arrived.
//
// Time in which this process did not run (SIGSTOP, a frozen virtual machine)
// is not counted as a peer's silence: the monitor sees that it woke late.
package cluster
