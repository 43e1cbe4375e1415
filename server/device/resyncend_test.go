package device

import (
	"testing"
	"testing/synctest"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestATargetThatHasNotHeardOfItsEndIsInSync: a target has all of its source's, which says
// so to it. A state that it told before it hears that says that it is being resynced. One
// that says so later is of another resync.
func TestATargetThatHasNotHeardOfItsEndIsInSync(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size = 1 << 20
		d := withQuorum(t, t.TempDir(), size, 3, replication.QuorumMajority)
		defer d.Abandon()
		target := tap(1)
		d.SessionUp(target)
		facts := freshFacts(size)
		facts.Dirty = 1
		d.HelloReceived(target, facts)
		synctest.Wait()
		if a := target.told(); a != replication.SourceBits {
			t.Fatalf("the target was told %v", a)
		}
		handle(d, target, target.yes())
		says := func(flags uint16) *wire.Frame {
			return stateFrame(wire.DeviceState{Disk: uint8(replication.Consistent), Current: uint64(replication.DayOne), Primary: wire.NoNode, Flags: flags})
		}
		for _, x := range []struct {
			what string
			f    *wire.Frame
			want bool
		}{
			{"its resync has begun", &wire.Frame{Header: wire.Header{Type: wire.Bits, Dev: 1, Arg: [3]uint64{0: 1, 2: 1 << 1}}}, false},
			{"it has all", &wire.Frame{Header: wire.Header{Type: wire.SyncDone, Dev: 1}}, true},
			{"it told before that it is resynced", says(wire.DevFlagSyncing), true},
			{"it is resynced no longer", says(0), true},
			{"it is resynced again", says(wire.DevFlagSyncing), false},
		} {
			handle(d, target, x.f)
			d.mu.Lock()
			got := d.peers[1].inSync
			d.mu.Unlock()
			if got != x.want {
				t.Fatalf("%s: in sync %t, want %t: %+v", x.what, got, x.want, d.Status().Peers[0])
			}
		}
	})
}
