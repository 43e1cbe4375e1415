package store_test

import (
	"errors"
	"testing"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

const (
	kib = int64(1) << 10
	mib = int64(1) << 20
	gib = int64(1) << 30
)

// testOptions are of a device of 64 MiB with a small activity log, whose peers
// are nodes 1 and 2.
func testOptions() store.MetaOptions {
	return store.MetaOptions{
		Device: "r0", NodeID: 0, Create: true, Size: 64 * mib,
		Created:     time.Unix(1700000000, 0).UTC(),
		ExtentBytes: 64 * kib, Extents: 8,
		Init: func(s *store.Superblock) { s.Members = 0b111 },
	}
}

func openMeta(t testing.TB, im *storetest.Image, opts store.MetaOptions) *store.Meta {
	t.Helper()
	m, err := store.OpenMetaFile(im.File(), "r0.meta", opts)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newMeta(t testing.TB, opts store.MetaOptions) (*store.Meta, *storetest.Image) {
	t.Helper()
	im := storetest.NewImage(0)
	return openMeta(t, im, opts), im
}

func ext(off, n int64) block.Extent { return block.Extent{Off: off, Len: n} }

func TestMetaKeepsWhatItWasTold(t *testing.T) {
	m, im := newMeta(t, testOptions())
	err := m.Update(func(s *store.Superblock) {
		s.Current = 42
		s.Bitmap[1] = 41
		s.History[31] = 7
		s.Flags |= store.Consistent | store.PrimaryInd
		s.PeerFlags[2] = store.PeerOutdated
		s.Ext = []byte("mine")
	})
	if err != nil {
		t.Fatal(err)
	}
	m.Bitmap(1).Set(ext(8*kib, 4*kib))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = openMeta(t, im, testOptions())
	sb := m.Superblock()
	if sb.Current != 42 || sb.Bitmap[1] != 41 || sb.History[31] != 7 || string(sb.Ext) != "mine" ||
		sb.PeerFlags[2] != store.PeerOutdated || sb.Flags != store.Consistent|store.PrimaryInd|store.ALClean {
		t.Errorf("read back %+v", sb)
	}
	if n := m.Bitmap(1).Count(); n != 1 || !m.Bitmap(1).Test(ext(8*kib, 1)) {
		t.Errorf("bitmap has %d bits", n)
	}
	if m.Unclean() {
		t.Error("unclean after Close")
	}
}

func TestUncleanStopMarksHotExtents(t *testing.T) {
	m, im := newMeta(t, testOptions())
	e := ext(100*kib, 64*kib)
	if m.AL().TryBegin(e) {
		t.Fatal("a cold extent was begun")
	}
	if err := m.AL().Activate(t.Context(), []block.Extent{e}); err != nil {
		t.Fatal(err)
	}
	if !m.AL().TryBegin(e) {
		t.Fatal("a hot extent was not begun")
	}
	m.AL().End(e, 1)
	m.AL().End(e, 1)
	m = openMeta(t, im.CrashClone(storetest.Crash{Lost: 1}), testOptions())
	if !m.Unclean() {
		t.Fatal("clean after a crash")
	}
	if err := m.AL().Activate(t.Context(), []block.Extent{e}); !errors.Is(err, store.ErrNotRecovered) {
		t.Fatalf("Activate before Recover: %v", err)
	}
	r, err := m.Recover()
	if err != nil {
		t.Fatal(err)
	}
	if r.Extents != 2 || r.Bytes != 128*kib || r.Full || len(r.Peers) != 2 {
		t.Errorf("recovered %+v", r)
	}
	for _, p := range []int{1, 2} {
		if n := m.Bitmap(p).Count(); n != 32 {
			t.Errorf("peer %d has %d bits", p, n)
		}
	}
	if err := m.AL().Activate(t.Context(), []block.Extent{e}); err != nil {
		t.Fatal(err)
	}
}
