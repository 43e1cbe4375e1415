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

// stays is a peer that is asked whether it stays complete before it is resynced from.
type stays struct{ *wireTap }

func (stays) Features() uint64 { return wire.FeatureStay }

// TestWhatAVoterSaidBeforeOfAPrimaryIsVoid: a peer said hello while it followed the lost
// primary, and has voted since. The new primary, which turns the direction of a resync
// round by another handshake, does not yield to that hello.
func TestWhatAVoterSaidBeforeOfAPrimaryIsVoid(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1 << 20
		d, peer := withQuorum(t, t.TempDir(), size, 3, replication.QuorumMajority), stays{tap(1)}
		defer d.Abandon()
		d.SessionUp(peer)
		hello := freshFacts(size)
		hello.Disk, hello.Primary = uint8(replication.UpToDate), 2
		hello.Flags = wire.DevFlagQuorate | wire.DevFlagFollowing
		for hello.Dirty = range 2 {
			d.HelloReceived(peer, hello)
			synctest.Wait()
			handle(d, peer, peer.yes())
			hello.No++
		}
		if repl := d.Status().Peers[0].Repl; repl != replication.PausedSyncT {
			t.Fatalf("it is %v to the peer", repl)
		}
		handle(d, peer, stateFrame(wire.DeviceState{Role: uint8(replication.Secondary), Disk: uint8(replication.UpToDate), Primary: wire.NoNode, Current: hello.Current}))
		ctx, cancel := context.WithTimeout(t.Context(), voteTimeout/2)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- d.Promote(ctx, false) }()
		synctest.Wait()
		handle(d, peer, peer.vote())
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if role := d.Status().Role; role != replication.Primary {
			t.Errorf("it is %v: %+v", role, d.Status().Peers[0].Decision)
		}
	})
}
