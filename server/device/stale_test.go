package device

import (
	"testing"
	"testing/synctest"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAMixtureIsNotInSyncByWhatItWas: a disk that is behind has said yes to being in sync
// with another that is behind as much. Before it hears the other's yes it has begun to be
// resynced: it bears a generation of which it holds nothing yet, and stays a mixture.
func TestAMixtureIsNotInSyncByWhatItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, newer = 1 << 20, replication.Gen(7 << 32)
		d := withQuorum(t, t.TempDir(), size, 3, replication.QuorumMajority)
		defer d.Abandon()
		behind, source := tap(1), tap(2)
		facts := freshFacts(size)
		d.SessionUp(source)
		moved := facts
		moved.Disk, moved.Current, moved.Base, moved.Seen, moved.Noted = uint8(replication.UpToDate), uint64(newer), uint64(newer), uint64(newer), uint64(newer)
		moved.Bitmap[0], moved.Bitmap[1] = uint64(replication.DayOne), uint64(replication.DayOne)
		d.HelloReceived(source, moved)
		synctest.Wait()
		moved.No++ // it has learnt that it is behind; now it has told so
		d.HelloReceived(source, moved)
		d.SessionUp(behind)
		d.HelloReceived(behind, facts)
		synctest.Wait()
		for want, s := range map[replication.Action]*wireTap{replication.TargetBits: source, replication.InSync: behind} {
			if a := s.told(); a != want {
				t.Fatalf("node %d was told %v, not %v: %v", s.peer, a, want, s.sent)
			}
		}
		b := &block.Batch{}
		d.HandleFrame(source, source.yes(), b)
		synctest.Wait()
		state := wire.DeviceState{Role: uint8(replication.Secondary), Disk: uint8(replication.UpToDate), Current: uint64(newer), Primary: wire.NoNode}
		d.HandleFrame(source, stateFrame(state), b)
		d.HandleFrame(behind, behind.yes(), b)
		b.Finish()
		synctest.Wait()
		if st := d.Status(); st.Disk != replication.Inconsistent || st.Gens.Current != newer {
			t.Fatalf("the disk, of which nothing was resynced yet, is %v in generation %v", st.Disk, st.Gens.Current)
		}
	})
}

// TestWhatAnOutdatedDiskAloneHasNobodyLacks: a change whose client is told of an error is on
// a disk that the primary, which has none, has gone on without. What is read is that of the
// others.
func TestWhatAnOutdatedDiskAloneHasNobodyLacks(t *testing.T) {
	for _, x := range []struct {
		has          replication.DiskState
		missed, undo bool
	}{
		{replication.UpToDate, true, false},
		{replication.Outdated, false, true},
		{replication.Inconsistent, false, true},
	} {
		d := &Device{role: replication.Primary, disks: replication.Of(1, 2)}
		d.peers[1], d.peers[2] = &peer{id: 1}, &peer{id: 2, disk: x.has}
		d.gens.Current = 7 << 48
		d.missedFailedLocked(&op{acked: true, miss: replication.Of(1)})
		if missed, undo := d.peers[1].missed, d.peers[2].undo != replication.NoGen; missed != x.missed || undo != x.undo {
			t.Errorf("%v: the other lacks it %t, this one is behind %t", x.has, missed, undo)
		}
	}
}
