package nbdtest

import (
	"bytes"
	"path/filepath"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
)

// Both disks must do the same, since tests rely on either.
func TestDisksDoWhatTheyAreAsked(t *testing.T) {
	file, err := CreateFile("file", filepath.Join(t.TempDir(), "f"), 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	for _, d := range []Disk{NewMemory("memory", 1<<20), file} {
		t.Run(d.Info().Name, func(t *testing.T) {
			do := func(op block.Op, f block.Flags, off, n int64, data []byte) {
				t.Helper()
				if err := d.Do(&block.Request{Op: op, Flags: f, Off: off, Len: n, Data: data}); err != nil {
					t.Fatalf("%v: %v", op, err)
				}
			}
			read := func(off, n int64) []byte {
				t.Helper()
				p := bytes.Repeat([]byte{9}, int(n))
				do(block.Read, 0, off, n, p)
				return p
			}
			ones := bytes.Repeat([]byte{1}, 256<<10)
			do(block.Write, block.FUA, 64<<10, 256<<10, ones)
			do(block.Trim, 0, 128<<10, 64<<10, nil)
			do(block.WriteZeroes, block.NoHole, 256<<10, 4096, nil)
			do(block.Flush, 0, 0, 0, nil)
			do(block.Cache, 0, 0, 4096, nil)
			want := make([]byte, 1<<20)
			copy(want[64<<10:], ones)
			clear(want[128<<10 : 192<<10])
			clear(want[256<<10 : 260<<10])
			if !bytes.Equal(read(0, 1<<20), want) {
				t.Error("the content is not what was written")
			}
			found, err := d.Extents(0, 1<<20, 100)
			if err != nil {
				t.Fatal(err)
			}
			at := int64(0)
			for _, e := range found {
				if e.Off != at || e.Len <= 0 {
					t.Errorf("extents with a gap at %d: %+v", at, found)
				}
				if e.Hole && !bytes.Equal(want[e.Off:e.Off+e.Len], make([]byte, e.Len)) {
					t.Errorf("a hole with data: %+v", e)
				}
				at += e.Len
			}
			if at != 1<<20 {
				t.Errorf("extents end at %d", at)
			}
			if one, err := d.Extents(4096, 8192, 1); err != nil || len(one) != 1 || one[0].Off != 4096 {
				t.Errorf("one extent: %+v, %v", one, err)
			}
		})
	}
}

func TestAFileThatIsNotThere(t *testing.T) {
	if _, err := OpenFile("x", filepath.Join(t.TempDir(), "x")); err == nil {
		t.Error("was opened")
	}
}
