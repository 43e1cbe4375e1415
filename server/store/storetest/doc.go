// Package storetest is the twin of package store's disk and metadata file for
// tests and simulation: in memory, with errors, delays and hangs on demand, a
// log of what was done in which order, and copies of what a crash would have
// left. Everything it does follows from what it is told and from seeds.
//
// An Image is the storage; Disk and File are the two ways of using one. Nothing
// is locked while an operation waits, and waiting is on channels and timers
// only, so that all of it works in virtual time.
package storetest
