package cmd_test

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

// badDisk is a disk with bad blocks: reading one fails until it is written
// whole. Their offsets are the lines of the file "bad" beside the image.
func badDisk(t *testing.T, host *proc.Host, dir string, size int64) *cachedDisk {
	in := "cd " + dir + "; "
	read := in + `while read b; do
	if [ $b -lt $(($4+$3)) ] && [ $4 -lt $((b+4096)) ]; then echo "EIO a bad block" >&2; exit 1; fi
done <bad
dd if=img iflag=skip_bytes,count_bytes skip=$4 count=$3 status=none`
	write := in + `dd of=img oflag=seek_bytes seek=$4 conv=notrunc status=none
while read b; do
	if [ $b -lt $4 ] || [ $((b+4096)) -gt $(($4+$3)) ]; then echo $b; fi
done <bad >left
mv left bad`
	d := newDisk(t, host, dir, size, "eval", "thread_model=echo serialize_all_requests", "can_write=exit 0", "can_flush=exit 0", "flush=exit 0",
		fmt.Sprintf("get_size=echo %d", size), "pread="+read, "pwrite="+write)
	d.spoil(t)
	return d
}

// spoil makes blocks bad, and none if there are none given: what they held is
// gone.
func (d *cachedDisk) spoil(t *testing.T, blocks ...int64) {
	t.Helper()
	var list strings.Builder
	for _, b := range blocks {
		fmt.Fprintln(&list, b)
		f, err := os.OpenFile(d.path("img"), os.O_WRONLY, 0)
		if err == nil {
			_, err = f.WriteAt(bytes.Repeat([]byte("rot!"), 1024), b)
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(d.path("bad"), []byte(list.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(d.file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil { // the kernel has read them before
		t.Fatal(err)
	}
}

// bad is how many blocks are bad.
func (d *cachedDisk) bad(t *testing.T) int {
	t.Helper()
	list, err := os.ReadFile(d.path("bad"))
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(list, []byte("\n"))
}

// TestScenario45ADiskWithBadBlocks: real disks that cannot read some blocks, the
// primary's and a secondary's. What a client reads and what a verify comes upon
// is healed, on either, and the disks stay.
func TestScenario45ADiskWithBadBlocks(t *testing.T) {
	need(t, "nbdkit", "nbdfuse", "fusermount3")
	needRoot(t, "nbdfuse")
	t.Parallel()
	const size = 2 << 20
	host := proc.NewHost()
	t.Cleanup(host.Close)
	base := t.TempDir()
	cfg := quick()
	cfg.Devices[0].Size = "2MiB"
	disks := map[string]*cachedDisk{}
	for _, n := range []string{"alpha", "beta"} {
		disks[n] = badDisk(t, host, filepath.Join(base, n), size)
		cfg.Devices[0].Extra += fmt.Sprintf("[device.on.%s]\ndisk = %q\n", n, disks[n].file)
	}
	c := layOut(t, cfg, nil)
	if err := c.Start(within(t, patience)); err != nil {
		t.Fatal(err)
	}
	alpha, beta := c.Nodes[0], c.Nodes[1]
	ctl := func(args ...string) string {
		t.Helper()
		out, err := alpha.Lockstepctl(within(t, patience), args...)
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return out
	}
	ctl("device", "create", "r0", "--from-existing")
	inSync(t, c, "r0")
	conn := open(t, alpha)
	want := make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range want {
		want[i] = byte(rng.Uint32())
	}
	write := func() {
		t.Helper()
		for at := 0; at < size; at += 256 << 10 {
			if _, err := conn.WriteAt(want[at:at+256<<10], int64(at)); err != nil {
				t.Fatal(err)
			}
		}
		if err := conn.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	write()

	disks["alpha"].spoil(t, 8192, 12288, 1<<20)
	got := make([]byte, 256<<10)
	for at := 0; at < size; at += len(got) {
		if _, err := conn.ReadAt(got, int64(at)); err != nil || !bytes.Equal(got, want[at:at+len(got)]) {
			t.Fatalf("reading %d: %v", at, err)
		}
	}
	disks["beta"].spoil(t, 4096, 300<<10, size-4096)
	if out := ctl("-T", "60", "device", "verify", "r0"); strings.Contains(out, "could not be compared") {
		t.Errorf("verify: %s", out)
	}
	for name, d := range disks {
		if n := d.bad(t); n > 0 {
			t.Errorf("%d blocks of %s are bad still", n, name)
		}
		if img, err := os.ReadFile(d.path("img")); err != nil || !bytes.Equal(img, want) {
			t.Errorf("%s holds something else: %v", name, err)
		}
	}
	for _, n := range c.Nodes[:2] {
		out, err := n.Lockstepctl(within(t, patience), "device", "show", "r0")
		if err != nil || !strings.Contains(out, "UpToDate") || !strings.Contains(out, "rewritten with a peer's copy") {
			t.Errorf("%s: %v: %s", n.Name, err, out)
		}
	}
	if out, err := beta.Lockstepctl(within(t, patience), "device", "why", "r0"); err != nil || !strings.Contains(out, "12.0 KiB were healed") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := beta.Lockstepctl(within(t, patience), "metrics"); err != nil || !strings.Contains(out, `lockstep_device_healed_bytes_total{device="r0"} 12288`) {
		t.Errorf("%v: %s", err, out)
	}
	if out := ctl("status", "--check"); strings.Contains(out, "input/output") {
		t.Errorf("it is well by now: %s", out)
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	for _, n := range c.Nodes { // before their disks go
		if err := n.Term(within(t, patience)); err != nil {
			t.Error(err)
		}
	}
}
