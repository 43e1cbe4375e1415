//go:build mutate

package mutate

// on is the fault that is switched on, of the whole process.
var on Fault

// Set switches a fault on, and the one that was on off; "" switches all off. It
// is called before any device is made.
func Set(f Fault) { on = f }

// Is reports whether a fault is switched on.
func Is(f Fault) bool { return f == on }
