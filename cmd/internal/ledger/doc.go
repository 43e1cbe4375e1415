// Package ledger writes to a device and remembers what the device has
// acknowledged, so that it can say later whether any of it was lost. Every
// block that it writes carries its own number, a generation and a checksum: a
// block that reads back must be whole, in its place, of no older generation
// than the last one acknowledged and of no newer one than the last one tried.
// A write whose answer never came may have happened or not, but once a block
// was seen, it must not change by itself.
package ledger
