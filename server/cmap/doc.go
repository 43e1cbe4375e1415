// Package cmap is the object database: flat keys with typed values that say
// what the engine is doing, that scripts read, track and, where they may,
// set. Types, limits and grammar are Corosync's.
//
// The engine writes with [DB.Put], [DB.Remove] and [DB.Commit]; clients with
// [DB.Set], [DB.Delete], [DB.Add] and [DB.Apply], which respect read-only
// prefixes, limits, and the [Guard] of a prefix: what a guard refuses changes
// nothing. A batch is committed as a whole or not at all. Values that are
// cheaper computed than kept come from a [Provider] and are read-only.
//
// Every change has a number; a [Tracker] reads the changes of a key or prefix
// in that order, each with the old and the new value. Changes are kept in one
// log of bounded size, in which a tracker is only a position: one that does
// not read costs nothing and is told how many changes it lost.
package cmap
