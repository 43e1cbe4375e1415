package cmd_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/cmd/internal/cluster"
	"github.com/lockstepd/lockstep/cmd/internal/proc"
)

const clientSize = 128 << 20

// bed is where the real clients are driven: a three-node device, and a folder for files.
type bed struct {
	*testing.T
	c    *cluster.Cluster
	host *proc.Host
	uri  string
	dir  string
}

// run runs a client, which must succeed, and returns its standard output.
func (b *bed) run(argv ...string) string {
	b.Helper()
	out, err := b.host.Run(within(b.T, patience), argv...)
	if err != nil {
		b.Fatal(err)
	}
	return string(out)
}

// image makes a file as large as the device, half of it noise, the rest holes.
func (b *bed) image(name string) string {
	b.Helper()
	path := filepath.Join(b.dir, name)
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	rng := rand.NewChaCha8([32]byte{byte(len(name))})
	buf := make([]byte, 1<<20)
	for off := int64(0); off < clientSize; off += 2 << 20 {
		_, _ = rng.Read(buf) // never fails
		if _, err := f.WriteAt(buf, off); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Truncate(clientSize); err != nil {
		b.Fatal(err)
	}
	return path
}

// TestRealClients drives the NBD clients that people use against a device on
// three nodes, one after the other, and compares the three disks after each.
func TestRealClients(t *testing.T) {
	t.Parallel()
	c := start(t, cluster.Three("128MiB"))
	for _, s := range []struct {
		name  string
		needs []string
		do    func(b *bed)
	}{
		{"nbdinfo", []string{"nbdinfo"}, nbdinfo},
		{"nbdcopy", []string{"nbdcopy"}, nbdcopy},
		{"qemu-img", []string{"qemu-img"}, qemuImg},
		{"qemu-io", []string{"qemu-io"}, qemuIO},
		{"fio", []string{"fio"}, fio},
		{"ext4", []string{"nbdfuse", "losetup", "mkfs.ext4", "e2fsck", "fusermount3"}, ext4},
	} {
		t.Run(s.name, func(t *testing.T) {
			need(t, s.needs...)
			b := &bed{T: t, c: c, host: proc.NewHost(), uri: c.Node("alpha").URI("r0"), dir: t.TempDir()}
			t.Cleanup(b.host.Close)
			s.do(b)
			converged(t, c)
		})
	}
}

func nbdinfo(b *bed) {
	var info struct {
		Exports []struct {
			Name     string   `json:"export-name"`
			Size     int64    `json:"export-size"`
			ReadOnly bool     `json:"is_read_only"`
			Contexts []string `json:"contexts"`
		} `json:"exports"`
	}
	if err := json.Unmarshal([]byte(b.run("nbdinfo", "--json", b.uri)), &info); err != nil {
		b.Fatal(err)
	}
	if len(info.Exports) != 1 || info.Exports[0].Size != clientSize || info.Exports[0].ReadOnly {
		b.Errorf("nbdinfo says %+v", info)
	}
	if !strings.Contains(b.run("nbdinfo", "--list", b.uri), `export="r0"`) {
		b.Error("r0 is not in the list of exports")
	}
	for _, can := range []string{"connect", "structured-reply", "flush", "fua", "multi-conn", "trim", "zero", "cache", "df"} {
		b.run("nbdinfo", "--can", can, b.uri)
	}
	b.run("nbdinfo", "--map", b.uri)
	b.run("nbdinfo", "--map", "--totals", b.uri)
}

func nbdcopy(b *bed) {
	src, back := b.image("src"), filepath.Join(b.dir, "back")
	b.run("nbdcopy", src, b.uri)
	b.run("nbdcopy", b.uri, back)
	b.sameFiles(src, back)
	other := b.image("other.src")
	b.run("nbdcopy", "--flush", "-C", "4", "-R", "64", "--allocated", other, b.uri)
	b.run("nbdcopy", b.uri, back)
	b.sameFiles(other, back)
}

func (b *bed) sameFiles(x, y string) {
	b.Helper()
	bx, err := os.ReadFile(x)
	if err != nil {
		b.Fatal(err)
	}
	by, err := os.ReadFile(y)
	if err != nil {
		b.Fatal(err)
	}
	if !bytes.Equal(bx, by) {
		b.Fatalf("%s and %s differ", filepath.Base(x), filepath.Base(y))
	}
}

func qemuImg(b *bed) {
	src := b.image("qemu.src")
	b.run("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", src, b.uri)
	b.run("qemu-img", "compare", "-f", "raw", "-F", "raw", src, b.uri)
	var extents []struct {
		Start, Length int64
	}
	if err := json.Unmarshal([]byte(b.run("qemu-img", "map", "--output=json", "-f", "raw", b.uri)), &extents); err != nil {
		b.Fatal(err)
	}
	end := int64(0)
	for _, e := range extents {
		if e.Start != end {
			b.Errorf("the map has a gap or an overlap at %d", end)
		}
		end = e.Start + e.Length
	}
	if end != clientSize {
		b.Errorf("the map ends at %d", end)
	}
	b.run("qemu-img", "bench", "-f", "raw", "-w", "-c", "5000", "-d", "16", "-s", "4096", "--flush-interval=64", b.uri)
	b.run("qemu-img", "bench", "-f", "raw", "-c", "5000", "-d", "32", "-s", "4096", b.uri)
}

func qemuIO(b *bed) {
	b.qemuIO("write -P 0xaa 0 1M", "write -P 0xbb -f 4k 8k", "write -z -u 64k 64k", "discard 128k 128k", "flush",
		"read -P 0xaa 0 4k", "read -P 0xbb 4k 8k", "read -P 0xaa 12k 52k", "read -P 0 64k 64k", "read -P 0xaa 256k 768k",
		"aio_write -P 0xcc 2M 512k", "aio_write -P 0xdd 3M 512k", "aio_flush", "read -P 0xcc 2M 512k", "read -P 0xdd 3M 512k")
	b.qemuIO("write -P 0x11 -q 4095k 512", "read -P 0x11 4095k 512", "write -z 1M 1M", "read -P 0 1M 1M") // and again on a connection of its own
	for _, n := range b.c.Nodes[1:] {
		// The other nodes serve the same data, each as soon as the one before is closed.
		for _, m := range b.c.Nodes {
			until(b.T, m, "r0 is secondary", func(s cluster.Status) bool { return s.Device("r0").Role == "secondary" })
		}
		argv := []string{"qemu-io", "-r", "-f", "raw", "-c", "read -P 0xcc 2M 512k", n.URI("r0")}
		if out := b.run(argv...); strings.Contains(out, "failed") {
			b.Errorf("on %s: %s", n.Name, out)
		}
	}
}

// qemuIO runs qemu-io's commands on one connection; qemu-io exits with 0 even when a pattern does not match.
func (b *bed) qemuIO(commands ...string) {
	b.Helper()
	argv := []string{"qemu-io", "-f", "raw"}
	for _, c := range commands {
		argv = append(argv, "-c", c)
	}
	if out := b.run(append(argv, b.uri)...); strings.Contains(out, "failed") {
		b.Errorf("qemu-io: %s", out)
	}
}

func fio(b *bed) {
	if err := fioVerify(within(b.T, patience), b.host, b.uri, "64M"); err != nil {
		b.Error(err)
	}
	b.run("fio", "--name=t", "--ioengine=nbd", "--uri="+b.uri, "--rw=randtrim", "--bs=64k", "--size=32M", "--iodepth=8")
	b.run("fio", "--name=s", "--ioengine=nbd", "--uri="+b.uri, "--rw=write", "--bs=1M", "--size=64M", "--iodepth=8", "--fsync=4",
		"--verify=crc32c", "--do_verify=1", "--verify_state_save=0")
}

// ext4 puts a file system on the device, by a file of nbdfuse's and a loop device.
func ext4(b *bed) {
	needRoot(b.T, "a loop device")
	mnt, fuse := filepath.Join(b.dir, "mnt"), filepath.Join(b.dir, "fuse")
	for _, d := range []string{mnt, fuse} {
		if err := os.Mkdir(d, 0o700); err != nil {
			b.Fatal(err)
		}
	}
	disk := filepath.Join(fuse, "nbd")
	if _, err := b.host.Start(proc.Spec{Argv: []string{"nbdfuse", disk, b.uri}, Log: filepath.Join(b.dir, "nbdfuse.log")}); err != nil {
		b.Fatal(err)
	}
	undo := b.undo()
	undo("fusermount3", "-u", fuse)
	if !poll(within(b.T, patience), func() bool { _, err := os.Stat(disk); return err == nil }) {
		b.Fatal("nbdfuse shows no disk")
	}
	loop := strings.TrimSpace(b.run("losetup", "--show", "-f", disk))
	undo("losetup", "-d", loop)
	b.run("mkfs.ext4", "-q", loop)
	b.run("mount", loop, mnt)
	undo("umount", mnt)
	for i := range 20 {
		name := filepath.Join(mnt, fmt.Sprintf("file%d", i))
		b.run("sh", "-c", `head -c 1M /dev/urandom >"$0" && sync "$0" && sha256sum "$0" >>"$1"/sums`, name, mnt)
	}
	b.run("rm", filepath.Join(mnt, "file7"))
	b.run("sed", "-i", "/file7$/d", filepath.Join(mnt, "sums"))
	b.run("fstrim", mnt)
	b.run("umount", mnt)
	b.run("e2fsck", "-fn", loop)
	b.run("mount", loop, mnt)
	b.run("sha256sum", "--quiet", "-c", filepath.Join(mnt, "sums"))
	b.run("umount", mnt)
	b.run("losetup", "-d", loop)
	b.run("fusermount3", "-u", fuse)
}

// undo returns a function that registers commands to clean up with, last first;
// they fail where the test came far enough to have done it itself.
func (b *bed) undo() func(argv ...string) {
	var commands [][]string
	b.Cleanup(func() {
		for i := len(commands) - 1; i >= 0; i-- {
			if b.Failed() {
				_, _ = b.host.Run(context.Background(), commands[i]...)
			}
		}
	})
	return func(argv ...string) { commands = append(commands, argv) }
}
