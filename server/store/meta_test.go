package store_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
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

func TestUpdatesShareAWrite(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, im := newMeta(t, testOptions())
		slow := im.Inject(storetest.Fault{Ops: storetest.OpSync, Hang: true})
		im.KeepLog()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() { must(t, m.Update(func(s *store.Superblock) { s.History[i] = 1 })) })
		}
		slow.Await(1)
		synctest.Wait()
		if sb := m.Superblock(); sb.History != [store.Peers]uint64{} {
			t.Errorf("in effect before it is durable: %v", sb.History)
		}
		slow.Release()
		wg.Wait()
		writes := 0
		for _, r := range im.Log() {
			if r.Op == storetest.OpWrite {
				writes++
			}
		}
		if writes > 2 {
			t.Errorf("%d writes for updates made at once", writes)
		}
		if sb := m.Superblock(); slices.Contains(sb.History[:10], 0) {
			t.Errorf("updates are lost: %v", sb.History)
		}
	})
}

func TestUpdateThatChangesNothingCostsNothing(t *testing.T) {
	m, im := newMeta(t, testOptions())
	im.KeepLog()
	must(t, m.Update(func(*store.Superblock) {}))
	must(t, m.WriteBitmaps())
	if log := im.Log(); len(log) > 0 {
		t.Errorf("it did %v", log)
	}
}

func TestUpdateLeavesAloneWhatIsNotItsOwn(t *testing.T) {
	m, _ := newMeta(t, testOptions())
	must(t, m.Update(func(s *store.Superblock) {
		s.Device, s.NodeID, s.Size, s.Seq, s.Created = "other", 5, 4096, 99, time.Time{}
		s.Flags = store.ALDisabled | store.Consistent
	}))
	sb := m.Superblock()
	if sb.Device != "r0" || sb.NodeID != 0 || sb.Size != 64*mib || sb.Seq != 2 || sb.Created.IsZero() ||
		sb.Flags != store.ALClean|store.Consistent {
		t.Errorf("it changed to %+v", sb)
	}
	err := m.Update(func(s *store.Superblock) { s.Ext = make([]byte, store.MaxExtension+1) })
	if err == nil || m.Superblock().Seq != 2 {
		t.Errorf("an extension too large: %v", err)
	}
	sb.Ext = append(sb.Ext, "mine"...)
	if len(m.Superblock().Ext) != 0 {
		t.Error("what Superblock returned was not a copy")
	}
}

func TestFailedUpdateIsNotInEffect(t *testing.T) {
	tests := []struct {
		name  string
		fault storetest.Fault
		heals bool
	}{
		{"write", storetest.Fault{Ops: storetest.OpWrite, Err: syscall.EIO, Count: 1, Done: 1000}, true},
		{"sync", storetest.Fault{Ops: storetest.OpSync, Err: syscall.EIO, Count: 1}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, im := newMeta(t, testOptions())
			set := func(n uint64) error { return m.Update(func(s *store.Superblock) { s.Current = n }) }
			must(t, set(1))
			im.Inject(tt.fault)
			err := set(2)
			if !errors.Is(err, syscall.EIO) || !errors.Is(err, block.ErrIO) || !strings.Contains(err.Error(), "r0.meta") {
				t.Errorf("got %v", err)
			}
			if n := m.Superblock().Current; n != 1 {
				t.Errorf("current is %d", n)
			}
			// After a failed sync nothing may look durable again.
			if err := set(3); (err == nil) != tt.heals {
				t.Errorf("the next one: %v", err)
			}
			if err := m.WriteBitmaps(); (err == nil) != tt.heals {
				t.Errorf("the bitmaps: %v", err)
			}
			m.Close()
			if n := openMeta(t, im.CrashClone(storetest.Crash{Lost: 1}), testOptions()).Superblock().Current; n != 1 && n != 3 {
				t.Errorf("on stable storage it is %d", n)
			}
		})
	}
}

func TestCloseIsCleanOnlyWhereNothingIsInDoubt(t *testing.T) {
	e := ext(0, 4096)
	tests := []struct {
		name  string
		do    func(l *store.ActivityLog)
		clean bool
	}{
		{"nothing written", func(*store.ActivityLog) {}, true},
		{"written and stable", func(l *store.ActivityLog) { activate(t, l, 0); l.End(e, 4); l.SetStable(4) }, true},
		{"written, not stable", func(l *store.ActivityLog) { activate(t, l, 0); l.End(e, 4); l.SetStable(3) }, false},
		{"a write under way", func(l *store.ActivityLog) { activate(t, l, 0) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, im := newMeta(t, testOptions())
			tt.do(m.AL())
			m.Bitmap(1).Set(ext(mib, 1))
			must(t, m.Close())
			must(t, m.Close())
			if m.AL().TryBegin(e) {
				t.Error("a write was begun after Close")
			}
			if err := m.AL().Activate(t.Context(), []block.Extent{ext(mib, 1)}); !errors.Is(err, store.ErrClosed) {
				t.Errorf("Activate after Close: %v", err)
			}
			if err := m.Update(func(s *store.Superblock) { s.Current = 1 }); !errors.Is(err, store.ErrClosed) {
				t.Errorf("Update after Close: %v", err)
			}
			m = openMeta(t, im, testOptions())
			if m.Unclean() == tt.clean || !m.Bitmap(1).Test(ext(mib, 1)) {
				t.Errorf("reopened: unclean is %v, %d bits", m.Unclean(), m.Bitmap(1).Count())
			}
		})
	}
}

func TestAbandonWritesNothingAndWaitsForNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, im := newMeta(t, testOptions())
		activate(t, m.AL(), 0)
		hang := im.Inject(storetest.Fault{Ops: storetest.OpSync, Hang: true})
		errs := make(chan error)
		for n := range int64(3) {
			go func() { errs <- m.AL().Activate(t.Context(), []block.Extent{extentNo(n + 1)}) }()
			synctest.Wait()
		}
		im.KeepLog()
		must(t, m.Abandon())
		for range 2 { // those that wait for their turn
			if err := <-errs; !errors.Is(err, store.ErrClosed) {
				t.Errorf("got %v", err)
			}
		}
		hang.Release()
		<-errs
		for _, r := range im.Log() {
			if r.Op == storetest.OpWrite {
				t.Errorf("it did %v", r)
			}
		}
		if !openMeta(t, im, testOptions()).Unclean() {
			t.Error("clean after Abandon")
		}
	})
}

func TestMetaOfSomethingElseIsRefused(t *testing.T) {
	_, im := newMeta(t, testOptions())
	tests := []struct {
		name string
		opts func(*store.MetaOptions)
		want string
	}{
		{"another device", func(o *store.MetaOptions) { o.Device = "r1" }, `belongs to device "r0", not "r1"`},
		{"another node", func(o *store.MetaOptions) { o.NodeID = 3 }, "written by node id 0, this node is 3"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			opts := testOptions()
			tt.opts(&opts)
			_, err := store.OpenMetaFile(im.File(), "r0.meta", opts)
			if !errors.Is(err, store.ErrMismatch) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestImpossibleOptionsAreRefused(t *testing.T) {
	tests := map[string]func(*store.MetaOptions){
		"no name":          func(o *store.MetaOptions) { o.Device = "" },
		"a long name":      func(o *store.MetaOptions) { o.Device = strings.Repeat("x", store.MaxDevice+1) },
		"a node id":        func(o *store.MetaOptions) { o.NodeID = store.Peers },
		"an odd size":      func(o *store.MetaOptions) { o.Size = 4097 },
		"a large size":     func(o *store.MetaOptions) { o.Size = store.MaxSize + block.Unit },
		"an odd extent":    func(o *store.MetaOptions) { o.ExtentBytes = 100000 },
		"a small extent":   func(o *store.MetaOptions) { o.ExtentBytes = 4096 },
		"too many extents": func(o *store.MetaOptions) { o.Extents = 1 << 20 },
		"more extents than numbers for them": func(o *store.MetaOptions) {
			o.Size, o.ExtentBytes = store.MaxSize, 64*kib
		},
	}
	for name, spoil := range tests {
		t.Run(name, func(t *testing.T) {
			opts := testOptions()
			spoil(&opts)
			if _, err := store.OpenMetaFile(storetest.NewImage(0).File(), "r0.meta", opts); err == nil {
				t.Error("it was taken")
			}
		})
	}
}

func TestLogOptionsTakeEffectAtTheNextSession(t *testing.T) {
	m, im := newMeta(t, testOptions())
	activate(t, m.AL(), 0, 5)
	left := im.CrashClone(storetest.Crash{})
	opts := testOptions()
	opts.ExtentBytes, opts.Extents = 4*mib, 100
	m = openMeta(t, left, opts)
	r, err := m.Recover()
	must(t, err)
	if r.Extents != 2 || r.Bytes != 128*kib { // counted in the old extents
		t.Errorf("recovered %+v", r)
	}
	must(t, m.AL().Activate(t.Context(), []block.Extent{ext(0, 1)}))
	r, err = openMeta(t, left.CrashClone(storetest.Crash{}), opts).Recover()
	must(t, err)
	if r.Extents != 1 || r.Bytes != 4*mib {
		t.Errorf("recovered %+v", r)
	}
}

// metaPath is where a test keeps a metadata file.
func metaPath(t *testing.T) string { return filepath.Join(t.TempDir(), "r0.meta") }

func TestMetaFileOnDisk(t *testing.T) {
	path := metaPath(t)
	opts := testOptions()
	opts.Create = false
	if _, err := store.OpenMeta(path, opts); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), path) {
		t.Fatalf("absent: %v", err)
	}
	opts = optionsOf(1 << 40)
	must(t, os.WriteFile(path+".new", []byte("half a file that a crash left"), 0o600))
	m, err := store.OpenMeta(path, opts)
	must(t, err)
	if _, err := store.OpenMeta(path, opts); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a second user: %v", err)
	}
	must(t, m.AL().Activate(t.Context(), []block.Extent{ext(0, 1)}))
	m.AL().End(ext(0, 1), 0)
	m.Bitmap(1).Set(ext(512*gib, 100*gib))
	m.Bitmap(31).SetAll()
	must(t, m.Close())
	m, err = store.OpenMeta(path, opts)
	must(t, err)
	if m.Unclean() || m.Bitmap(1).Count() != 100*gib/block.Unit || m.Bitmap(31).Count() != 1<<40/block.Unit {
		t.Errorf("unclean is %v, %d and %d bits", m.Unclean(), m.Bitmap(1).Count(), m.Bitmap(31).Count())
	}
	m.Bitmap(31).ClearAll()
	must(t, m.Close())
	info, err := os.Stat(path)
	must(t, err)
	if blocks := info.Sys().(*syscall.Stat_t).Blocks; blocks*512 > 8*mib {
		t.Errorf("it takes %d bytes", blocks*512)
	}
	if problems, err := store.Check(path); err != nil || len(problems) > 0 {
		t.Errorf("check: %v, %v", problems, err)
	}
}

func TestFullFileSystemFailsMetadataWhereItCannotHelp(t *testing.T) {
	im := storetest.NewImage(0)
	im.Inject(storetest.Fault{Ops: storetest.OpWrite, Err: syscall.ENOSPC})
	_, err := store.OpenMetaFile(im.File(), "r0.meta", testOptions())
	if err == nil || !strings.Contains(err.Error(), "cannot create metadata r0.meta: no space left") {
		t.Errorf("got %v", err)
	}
}

func TestStateDirectoryHasOneUser(t *testing.T) {
	dir := t.TempDir()
	lock, err := store.LockStateDir(dir)
	must(t, err)
	_, err = store.LockStateDir(dir)
	locked, ok := errors.AsType[*store.LockedError](err)
	if !ok || locked.PID != os.Getpid() || locked.Dir != dir || !errors.Is(err, store.ErrInUse) {
		t.Errorf("a second user: %v", err)
	}
	if want := fmt.Sprintf("state directory %s is in use by process %d; stop it, or use another directory (--state-dir)",
		dir, os.Getpid()); err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	must(t, lock.Unlock())
	lock, err = store.LockStateDir(dir)
	must(t, err)
	must(t, lock.Unlock())
	if _, err := store.LockStateDir(filepath.Join(dir, "absent")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an absent directory: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "lock"), []byte("garbage that is no number of a process at all"), 0o600))
	lock, err = store.LockStateDir(dir)
	must(t, err)
	must(t, lock.Unlock())
}
