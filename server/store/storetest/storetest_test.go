package storetest_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

func TestDiskKeepsThePromises(t *testing.T) {
	storetest.TestDisk(t, 1<<20, true, func(*testing.T) store.Disk { return storetest.NewDisk("mem", 1<<20) })
}

func write(t *testing.T, d *storetest.Disk, off int64, c byte, n int) {
	t.Helper()
	if _, err := d.WriteAt(bytes.Repeat([]byte{c}, n), off); err != nil {
		t.Fatal(err)
	}
}

func TestCrashLosesOnlyWhatWasNotSynced(t *testing.T) {
	d := storetest.NewDisk("mem", 1<<20)
	write(t, d, 0, 'a', 8192)
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	write(t, d, 4096, 'b', 8192)
	content := func(c storetest.Crash) string {
		p := make([]byte, 12288)
		d.Image().CrashClone(c).Peek(p, 0)
		var out []byte
		for i := 0; i < len(p); i += 512 {
			out = append(out, max(p[i], '.'))
		}
		return string(out)
	}
	tests := []struct {
		crash storetest.Crash
		want  string
	}{
		{storetest.Crash{Lost: 1}, "aaaaaaaaaaaaaaaa........"},
		{storetest.Crash{Lost: 0}, "aaaaaaaabbbbbbbbbbbbbbbb"},
		{storetest.Crash{Exact: &storetest.Cut{Bytes: 4608}}, "aaaaaaaabbbbbbbbb......."},
		{storetest.Crash{Exact: &storetest.Cut{Changes: 1}}, "aaaaaaaabbbbbbbbbbbbbbbb"},
	}
	for _, tt := range tests {
		if got := content(tt.crash); got != tt.want {
			t.Errorf("%+v: %s, want %s", tt.crash, got, tt.want)
		}
	}
	half := storetest.Crash{Lost: 0.5, Seed: 3}
	if a, b := content(half), content(half); a != b || a == tests[0].want || a == tests[1].want {
		t.Errorf("half: %s, then %s", a, b)
	}
	wide := content(storetest.Crash{Lost: 0.5, Seed: 5, Sector: 4096})
	for i := 0; i < len(wide); i += 8 {
		if wide[i:i+8] != fmt.Sprintf("%[1]c%[1]c%[1]c%[1]c%[1]c%[1]c%[1]c%[1]c", wide[i]) {
			t.Errorf("4 KiB sectors are torn: %s", wide)
		}
	}
}

func TestSyncCoversWhatWasWrittenBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := storetest.NewDisk("mem", 1<<20)
		write(t, d, 0, 'a', 512)
		hang := d.Image().Inject(storetest.Fault{Ops: storetest.OpSync, Hang: true})
		synced := make(chan error)
		go func() { synced <- d.Sync() }()
		hang.Await(1)
		write(t, d, 512, 'b', 512) // while the sync is under way
		hang.Release()
		if err := <-synced; err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 1024)
		d.Image().CrashClone(storetest.Crash{Lost: 1}).Peek(p, 0)
		if p[0] != 'a' || p[512] != 0 {
			t.Errorf("durable: %q, %q", p[0], p[512])
		}
	})
}

func TestFaultsStrikeWhatTheyName(t *testing.T) {
	d := storetest.NewDisk("mem", 1<<20)
	im := d.Image()
	im.KeepLog()
	f := im.Inject(storetest.Fault{
		Ops: storetest.OpWrite | storetest.OpSync, Range: block.Extent{Off: 4096, Len: 4096},
		Skip: 1, Count: 2, Err: syscall.ENOSPC, Done: 100,
	})
	p := bytes.Repeat([]byte{'x'}, 512)
	var errs []string
	for _, off := range []int64{0, 4096, 8192, 4096, 4608} {
		_, err := d.WriteAt(p, off)
		errs = append(errs, fmt.Sprint(errors.Is(err, block.ErrNoSpace)))
	}
	errs = append(errs, fmt.Sprint(d.Sync() == nil))
	if want := []string{"false", "false", "false", "true", "true", "true"}; !slices.Equal(errs, want) {
		t.Errorf("got %v, want %v", errs, want)
	}
	if f.Hits() != 2 {
		t.Errorf("%d hits", f.Hits())
	}
	got := make([]byte, 512)
	im.Peek(got, 4608)
	if got[99] != 'x' || got[100] != 0 {
		t.Error("a failed write was not cut where it should be")
	}
	if log := im.Log(); len(log) != 6 || log[3].String() != "write 4096+512: no space left on device" || log[5].String() != "sync" {
		t.Errorf("log: %v", log)
	}
	im.Lift(f)
}

func TestDelaysAndHangsTakeVirtualTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := storetest.NewDisk("mem", 1<<20)
		d.Image().Inject(storetest.Fault{
			Ops: storetest.OpRead, Delay: time.Minute,
			DelayFunc: func(r storetest.Record) time.Duration { return time.Duration(r.Off) * time.Second },
		})
		start := time.Now()
		if _, err := d.ReadAt(make([]byte, 1), 30); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 90*time.Second {
			t.Errorf("it took %v", d)
		}
		hang := d.Image().Inject(storetest.Fault{Ops: storetest.OpWrite, Hang: true, Err: syscall.EIO})
		go func() {
			<-time.After(time.Hour)
			hang.Release()
		}()
		if _, err := d.WriteAt(make([]byte, 1), 0); !errors.Is(err, syscall.EIO) || !errors.Is(err, block.ErrIO) {
			t.Errorf("got %v", err)
		}
	})
}

func TestNothingHappensAfterACrash(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := storetest.NewDisk("mem", 1<<20)
		hang := d.Image().Inject(storetest.Fault{Ops: storetest.OpWrite, Hang: true})
		done := make(chan error)
		go func() {
			_, err := d.WriteAt([]byte{1}, 0)
			done <- err
		}()
		hang.Await(1)
		d.Image().Crash()
		if err := <-done; !errors.Is(err, storetest.ErrCrashed) {
			t.Errorf("a write that hung: %v", err)
		}
		if err := d.Sync(); !errors.Is(err, storetest.ErrCrashed) {
			t.Errorf("a sync: %v", err)
		}
		if !bytes.Equal(d.Image().Bytes(), make([]byte, 1<<20)) {
			t.Error("the write came through")
		}
	})
}

func TestEqualFindsTheFirstDifference(t *testing.T) {
	a, b := storetest.NewDisk("a", 1<<20), storetest.NewDisk("b", 1<<20)
	write(t, a, 100, 0, 100) // zeroes are zeroes, written or not
	if at, ok := a.Image().Equal(b.Image()); !ok {
		t.Errorf("they differ at %v", at)
	}
	write(t, b, 9000, 1, 1)
	write(t, a, 90000, 1, 1)
	if at, ok := a.Image().Equal(b.Image()); ok || at.Off != 8192 {
		t.Errorf("they differ at %v", at)
	}
}

// TestABadBlockIsBadUntilItIsWrittenWhole: through a crash, and for who would
// write a part of it, too.
func TestABadBlockIsBadUntilItIsWrittenWhole(t *testing.T) {
	d := storetest.NewDisk("mem", 1<<20)
	write(t, d, 0, 1, 32768)
	d.Image().Spoil(block.Extent{Off: 8192, Len: 4096})
	bad := func(d *storetest.Disk) {
		t.Helper()
		if _, err := d.ReadAt(make([]byte, 16384), 4096); !errors.Is(err, syscall.EIO) || !errors.Is(err, block.ErrIO) {
			t.Fatalf("reading it: %v", err)
		}
	}
	bad(d)
	if _, err := d.ReadAt(make([]byte, 8192), 0); err != nil {
		t.Fatalf("beside it: %v", err)
	}
	if _, err := d.WriteAt(make([]byte, 512), 8192); !errors.Is(err, syscall.EIO) {
		t.Fatalf("writing a part of it: %v", err)
	}
	if err := d.Trim(4096, 4608); !errors.Is(err, syscall.EIO) {
		t.Fatalf("trimming a part of it: %v", err)
	}
	write(t, d, 4096, 2, 12288)
	if _, err := d.ReadAt(make([]byte, 32768), 0); err != nil || len(d.Image().Bad()) > 0 {
		t.Fatalf("written whole: %v, bad are %v", err, d.Image().Bad())
	}
	lost := d.Image().CrashClone(storetest.Crash{Lost: 1}).Disk("crashed")
	bad(lost)
	if err := d.Sync(); err != nil {
		t.Fatal(err)
	}
	if bad := d.Image().CrashClone(storetest.Crash{Lost: 1}).Bad(); len(bad) > 0 {
		t.Fatalf("what was synced is bad: %v", bad)
	}
	if err := lost.Trim(8192, 4096); err != nil || len(lost.Image().Bad()) > 0 {
		t.Fatalf("trimmed whole: %v, bad are %v", err, lost.Image().Bad())
	}
}
