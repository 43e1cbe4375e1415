// Package reload changes the configuration of a running engine, as a
// transaction: a new configuration is decoded, validated, compared with the
// one that holds, planned with those who put it into effect, applied in their
// order, and committed as a new revision; or nothing changes at all, and the
// error names the key, why, and where in the file.
//
// An [Engine] has one configuration that holds. It comes from the file and
// from an overlay of settings made by command ([Engine.Set]), which win over
// the file until the file changes the same key. [Engine.Save] writes them
// into the file. What puts changes into effect is an [Applier]; the engine
// knows of none itself. A [Watcher] says when the file may have changed.
package reload
