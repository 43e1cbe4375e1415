package device

import (
	"testing"
	"testing/synctest"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestWhoWaitsForTwoSourcesToMeetHearsOfIt: a disk is in sync with one of two others, and
// waits until these have met before it fetches what it lacks of the other's. Their word
// for it comes on the data link, behind the state that says that they see each other.
func TestWhoWaitsForTwoSourcesToMeetHearsOfIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1 << 20
		d := ofNode(t, 1, t.TempDir(), size, 3, replication.QuorumMajority)
		defer d.Abandon()
		d.mu.Lock()
		d.meta.Bitmap(2).Set(block.Extent{Len: block.Unit})
		d.mu.Unlock()
		facts := freshFacts(size)
		meet := func(peer int, want replication.Action) *wireTap {
			t.Helper()
			s := tap(peer)
			d.SessionUp(s)
			for facts.No = 1; s.told() != want && facts.No < 4; facts.No++ { // it has heard of what is news
				d.HelloReceived(s, facts)
				synctest.Wait()
			}
			if a := s.told(); a != want {
				t.Fatalf("node %d was told %v, not %v", peer, a, want)
			}
			handle(d, s, s.yes())
			return s
		}
		meet(0, replication.InSync)
		facts.Flags, facts.Stream, facts.Received, facts.Dirty = wire.DevFlagLive, 7, 5, 1
		other := meet(2, replication.TargetBits)
		repl := func() replication.ReplState {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.peers[2].repl
		}
		state := wire.DeviceState{Disk: uint8(replication.Consistent), Current: uint64(replication.DayOne), Primary: wire.NoNode, Sees: 0b011}
		handle(d, other, stateFrame(state))
		if s := repl(); s != replication.PausedSyncT {
			t.Fatalf("replication with the other is %v before it has met the one in sync", s)
		}
		handle(d, other, &wire.Frame{Header: wire.Header{Type: wire.Receivers, Dev: 1, Arg: [3]uint64{0, 0b101}}})
		if s := repl(); s == replication.PausedSyncT {
			t.Fatalf("replication with the other is %v still: %+v", s, d.Status().Peers)
		}
	})
}
