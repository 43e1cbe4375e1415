//go:build !mutate

package mutate

// Is reports whether a fault is switched on: never, in this build.
func Is(Fault) bool { return false }
