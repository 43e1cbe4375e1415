// Package cluster runs real lockstepd processes on loopback, one per node,
// with their state in one temporary folder: what the demo shows, what the
// suites with real binaries test and what the benchmark measures. It knows the
// daemon as a user does, by its flags, its configuration file and its control
// socket, and shares no code with it.
//
// Every cluster has loopback addresses of its own, 127.A.B.1 for the first
// node, 127.A.B.2 for the second, so that clusters running side by side never
// contend for a port and a packet filter can tell the nodes apart.
package cluster
