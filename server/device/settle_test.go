package device

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/replication"
	"github.com/lockstepd/lockstep/server/wire"
)

// TestAWordThatCameEarlySettlesLater: the primary says that this disk and another are in
// sync with it while this one does not take itself for up to date yet. When it does, its
// marks against the other, of before, are void all the same.
func TestAWordThatCameEarlySettlesLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, primary := followed(t)
		defer d.Abandon()
		is := func(s replication.DiskState) {
			d.mu.Lock()
			defer d.mu.Unlock()
			d.setDiskLocked(s, "the test says so")
		}
		marked := func() int64 {
			d.mu.Lock()
			defer d.mu.Unlock()
			return d.meta.Bitmap(2).Count()
		}
		is(replication.Consistent)
		d.mu.Lock()
		d.meta.Bitmap(2).Set(block.Extent{Len: block.Unit})
		d.mu.Unlock()
		handle(d, primary, &wire.Frame{Header: wire.Header{Type: wire.Receivers, Dev: 1, Arg: [3]uint64{0b101, 0b101, 99}}})
		if marked() == 0 {
			t.Fatal("a disk that is not up to date took the primary's word")
		}
		is(replication.UpToDate)
		time.Sleep(2 * retell)
		synctest.Wait()
		if n := marked(); n != 0 {
			t.Fatalf("%d marks stand against a disk that is in sync with the primary, as this one is: %+v", n, d.Status().Peers)
		}
	})
}
