package device

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAVoteIsAskedForAnewInANewAgreement: a peer agrees anew while its vote is awaited,
// which is lost with the old agreement. It is asked for again at once.
func TestAVoteIsAskedForAnewInANewAgreement(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1 << 20
		d, peer := withQuorum(t, t.TempDir(), size, 2, replication.QuorumMajority), tap(1)
		defer d.Abandon()
		d.SessionUp(peer)
		hello := freshFacts(size)
		d.HelloReceived(peer, hello)
		synctest.Wait()
		handle(d, peer, peer.yes())

		ctx, cancel := context.WithTimeout(t.Context(), voteTimeout/2)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- d.Promote(ctx, false) }()
		synctest.Wait()
		if n := peer.count(wire.Prepare); n != 1 {
			t.Fatalf("%d votes were asked for, want 1: %+v", n, d.Status())
		}
		hello.No++
		d.HelloReceived(peer, hello)
		synctest.Wait()
		handle(d, peer, peer.yes())
		time.Sleep(100 * time.Millisecond)
		synctest.Wait()
		if n := peer.count(wire.Prepare); n != 2 {
			t.Fatalf("%d votes were asked for, want another in the new agreement: %+v", n, d.Status())
		}
		handle(d, peer, peer.vote())
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}
