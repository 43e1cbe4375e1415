// Package config reads lockstep's configuration: one TOML file, the same on
// every node, strict to the last key.
//
// The way of a file is: [Load] (or [Decode], for bytes in memory) parses it
// into a document with the position of every key and value, decodes that by
// the schema, lets one validator look at the whole, and returns either a
// [Config] that is good in every respect or [Faults], which name everything
// that is wrong at once: file, line, column, key, what was found, what is
// allowed. There is no half-valid Config.
//
// The schema (schema.go) is the one table of all keys. Decoding, defaults,
// the flat view [Config.Keys], the comparison [Diff], the agreement between
// nodes [Config.Agreement] and the editing of a file in place [Edit] all read
// it, so a key exists everywhere or nowhere.
//
// A Config is immutable once returned; a change makes a new one.
package config
