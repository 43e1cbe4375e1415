// Package events is the engine's one numbered stream of typed events, and the
// revision that "status" long-polls wait for.
//
// Publishing never waits: events go into a bounded ring, and a reader that
// falls behind by more than the ring holds is told how many it lost. A
// [Subscription] is only a position in that ring, so one that nobody reads
// costs no memory and nobody any time.
//
// [Handlers] runs configured commands on events, through a [Runner] that the
// daemon provides.
package events
