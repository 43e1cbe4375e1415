package device

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestADiskThatIsServedIsNotBehindWhoWasLeft: a primary without a disk tells a disk that has
// come back that it goes on without it. What that knows then of newer data is no news to a
// disk that the primary goes on with, whether it has said of late that it is in sync or not:
// there would be none left. One that it does not go on with any more is behind.
func TestADiskThatIsServedIsNotBehindWhoWasLeft(t *testing.T) {
	const first, second = replication.Gen(6 << 48), replication.Gen(7 << 48)
	for receives, want := range map[uint64]replication.DiskState{0b001: replication.UpToDate, 0b000: replication.Outdated} {
		synctest.Test(t, func(t *testing.T) {
			const size = 1 << 20
			d := withQuorum(t, t.TempDir(), size, 3, replication.QuorumOff)
			defer d.Abandon()
			d.cfg.FencePeer = []string{"fence"}
			d.opts.Fence = func(context.Context, []string, string) (int, error) { return fencedPrimary, nil }
			primary, left := tap(1), tap(2)
			d.SessionUp(primary)
			facts := freshFacts(size)
			facts.Role, facts.Disk, facts.Stream = uint8(replication.Primary), uint8(replication.Diskless), 99
			d.HelloReceived(primary, facts)
			synctest.Wait()
			handle(d, primary, primary.yes())
			handle(d, primary, announced(5, first))
			handle(d, primary, &wire.Frame{Header: wire.Header{Type: wire.GenCommit, Dev: 1, Arg: [3]uint64{5, 0b001}}})
			handle(d, primary, stateFrame(wire.DeviceState{
				Role: uint8(replication.Primary), Disk: uint8(replication.Diskless), Current: uint64(first), Stream: 99, Primary: 1,
			}))
			handle(d, primary, &wire.Frame{Header: wire.Header{Type: wire.Receivers, Dev: 1, Arg: [3]uint64{receives, 0, 99}}})
			d.mu.Lock()
			d.setDiskLocked(replication.UpToDate, "the test says so")
			d.mu.Unlock()
			d.SessionUp(left)
			facts = freshFacts(size)
			facts.Disk, facts.Current, facts.Base, facts.Seen, facts.Noted = uint8(replication.Outdated), uint64(first), uint64(first), uint64(first), uint64(second)
			d.HelloReceived(left, facts)
			synctest.Wait()
			if st := d.Status(); st.Disk != want {
				t.Errorf("of a primary that goes on with the disks %b, the disk is %v, want %v: %v", receives, st.Disk, want, st.Peers[1].Decision)
			}
		})
	}
}
