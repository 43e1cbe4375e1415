package store_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew; a changed format needs a new level and a migration")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		must(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	must(t, err)
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// example fills a metadata file with one of everything, the same every time.
// The last stop is not a clean one.
func example(t *testing.T) *storetest.Image {
	t.Helper()
	opts := testOptions()
	opts.NodeID = 2
	m, im := newMeta(t, opts)
	must(t, m.Update(func(s *store.Superblock) {
		s.Current = 0x1111222233334444
		s.Bitmap[0] = 0xAAAABBBBCCCCDDDD
		s.History[0], s.History[1] = 0x5555, 0x6666
		s.Flags |= store.Consistent | store.WasUpToDate | store.PrimaryInd
		s.PeerFlags[0] = store.PeerOutdated | store.PeerSeen
		s.PeerFlags[1] = store.PeerConnected | store.PeerSeen
		s.Ext = []byte{0xCA, 0xFE}
	}))
	activate(t, m.AL(), 0, 1, 900)
	m.AL().End(extentNo(1), 0)
	must(t, m.AL().Cool(t.Context()))
	m.Bitmap(0).Set(ext(0, 64*kib))
	m.Bitmap(0).Set(ext(20*mib, 4*kib))
	m.Bitmap(0).Set(ext(64*mib-4*kib, 4*kib))
	must(t, m.WriteBitmaps())
	return im.CrashClone(storetest.Crash{Lost: 1})
}

// hexdump shows what is not zero, sixteen bytes a line.
func hexdump(im *storetest.Image) string {
	var out strings.Builder
	f := im.File()
	var line, zero [16]byte
	for off := int64(0); ; {
		start, end, err := f.NextData(off)
		if err != nil {
			size, _ := f.Size()
			fmt.Fprintf(&out, "%08x end\n", size)
			return out.String()
		}
		for ; start < end; start += 16 {
			if im.Peek(line[:], start); line != zero {
				fmt.Fprintf(&out, "%08x % x\n", start, line)
			}
		}
		off = end
	}
}

func TestFormat(t *testing.T) {
	golden(t, "format.golden", hexdump(example(t)))
}

// TestFormatIsStillRead builds a file from the golden dump, as it would be found
// on a disk that was written long ago.
func TestFormatIsStillRead(t *testing.T) {
	text, err := os.ReadFile("testdata/format.golden")
	must(t, err)
	im := storetest.NewImage(0)
	for line := range strings.Lines(string(text)) {
		var off int64
		var b [16]byte
		args := []any{&off}
		for i := range b {
			args = append(args, &b[i])
		}
		if strings.Contains(line, "end") {
			_, err := fmt.Sscanf(line, "%x", &off)
			must(t, err)
			must(t, im.File().Truncate(off))
			continue
		}
		_, err := fmt.Sscanf(line, "%x"+strings.Repeat(" %x", 16), args...)
		must(t, err)
		im.Poke(b[:], off)
	}
	opts := testOptions()
	opts.NodeID = 2
	m := openMeta(t, im, opts)
	sb := m.Superblock()
	if sb.Current != 0x1111222233334444 || sb.Created != time.Unix(1700000000, 0).UTC() || len(m.Problems()) > 0 {
		t.Errorf("read %+v, %v", sb, m.Problems())
	}
	r, err := m.Recover()
	must(t, err)
	if r.Extents != 2 || r.Full || m.Bitmap(0).Count() != 16+16+1+1 || !m.Bitmap(1).Test(extentNo(900)) {
		t.Errorf("recovered %+v, %d bits", r, m.Bitmap(0).Count())
	}
}

func TestDump(t *testing.T) {
	im := example(t)
	im.Poke([]byte{1}, 100) // tear a superblock
	var out bytes.Buffer
	in, err := store.InspectFile(im.File(), "/state/r0.meta")
	must(t, err)
	must(t, in.Write(&out))
	golden(t, "dump.golden", out.String())
}

func TestDumpAndCheckOffline(t *testing.T) {
	path := metaPath(t)
	m, err := store.OpenMeta(path, testOptions())
	must(t, err)
	var online, offline bytes.Buffer
	must(t, m.Dump(&online))
	must(t, store.Dump(&offline, path))
	if online.String() != offline.String() || !strings.Contains(online.String(), "in use") {
		t.Errorf("online:\n%s\noffline:\n%s", &online, &offline)
	}
	must(t, m.Close())
	offline.Reset()
	must(t, store.Dump(&offline, path))
	if strings.Contains(offline.String(), "in use:") || !strings.Contains(offline.String(), "clean") {
		t.Errorf("after Close:\n%s", &offline)
	}
	must(t, os.WriteFile(path, []byte("not metadata"), 0o600))
	if _, err := store.Check(path); err == nil || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("check of something else: %v", err)
	}
	if err := store.Dump(&offline, path+".absent"); err == nil {
		t.Error("what is not there was dumped")
	}
}

// FuzzOpenMeta opens metadata with two patches anywhere: it must be refused or
// become metadata that works, and never panic.
func FuzzOpenMeta(f *testing.F) {
	im := storetest.NewImage(0)
	m, err := store.OpenMetaFile(im.File(), "r0.meta", testOptions())
	must(f, err)
	must(f, m.AL().Activate(f.Context(), []block.Extent{ext(0, mib/4)}))
	must(f, m.AL().Activate(f.Context(), []block.Extent{ext(mib, 1)}))
	m.Bitmap(1).Set(ext(0, mib))
	must(f, m.WriteBitmaps())
	f.Add(uint32(100), []byte("superblock"), uint32(4196), []byte("superblock"))
	f.Add(uint32(20*kib), []byte("log"), uint32(24*kib), []byte("log"))
	f.Add(uint32(mib+256*kib), []byte("bitmap"), uint32(7*mib), []byte("bitmap"))
	f.Fuzz(func(t *testing.T, off1 uint32, patch1 []byte, off2 uint32, patch2 []byte) {
		left := im.Fork()
		left.Poke(patch1, int64(off1)%(9*mib))
		left.Poke(patch2, int64(off2)%(9*mib))
		m, err := store.OpenMetaFile(left.File(), "r0.meta", testOptions())
		if err != nil {
			if _, ok := errors.AsType[*store.ErrCorrupt](err); !ok {
				t.Fatal(err)
			}
			return
		}
		if _, err := m.Recover(); err != nil {
			t.Fatal(err)
		}
		must(t, m.AL().Activate(t.Context(), []block.Extent{ext(0, 1)}))
		if _, err := store.InspectFile(left.File(), "r0.meta"); err != nil {
			t.Fatal(err)
		}
	})
}
