package nbd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lockstepd/lockstep/server/nbd"
	"github.com/lockstepd/lockstep/server/nbd/nbdtest"
)

// need skips the test if a real client is not installed; never in CI.
func need(t *testing.T, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err == nil {
			continue
		}
		if os.Getenv("CI") == "true" {
			t.Fatalf("%s is not installed", p)
		}
		t.Skipf("%s is not installed", p)
	}
}

// run runs a program to its end, in a folder of its own because some leave
// files there, and returns what it printed.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(t.Context(), name, args...)
	cmd.Dir = t.TempDir()
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out.Bytes(), errs.Bytes())
	}
	return out.String()
}

const clientDisk = 64 << 20

// serveFile exports a file and returns its path and the export's URI.
func serveFile(t *testing.T) (path, uri string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "disk.img")
	d, err := nbdtest.CreateFile("disk", path, clientDisk)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	s := start(t, nbdtest.NewBackend(d), nbd.Limits{})
	return path, "nbd+unix:///disk?socket=" + s.addr
}

// image makes a file with data and holes.
func image(t *testing.T) string {
	t.Helper()
	b := make([]byte, clientDisk)
	for off := 0; off < len(b); off += 8 << 20 {
		copy(b[off:], pattern(1<<20+12345, byte(off>>20)))
	}
	path := filepath.Join(t.TempDir(), "source.img")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func same(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(x, y) {
		t.Errorf("%s and %s differ", a, b)
	}
}

func TestNbdinfo(t *testing.T) {
	need(t, "nbdinfo")
	path, uri := serveFile(t)
	var info struct {
		Protocol string
		Exports  []struct {
			Name           string   `json:"export-name"`
			Description    string   `json:"description"`
			Size           int64    `json:"export-size"`
			Contexts       []string `json:"contexts"`
			Flush          bool     `json:"can_flush"`
			FUA            bool     `json:"can_fua"`
			Multi          bool     `json:"can_multi_conn"`
			Trim           bool     `json:"can_trim"`
			Zero           bool     `json:"can_zero"`
			DF             bool     `json:"can_df"`
			Cache          bool     `json:"can_cache"`
			BlockMin       int      `json:"block_size_minimum"`
			BlockPreferred int      `json:"block_size_preferred"`
			BlockMax       int      `json:"block_size_maximum"`
		} `json:"exports"`
	}
	for _, args := range [][]string{{"--json", uri}, {"--json", "--list", uri}} {
		if err := json.Unmarshal([]byte(run(t, "nbdinfo", args...)), &info); err != nil {
			t.Fatal(err)
		}
		if len(info.Exports) != 1 {
			t.Fatalf("%+v", info)
		}
		e := info.Exports[0]
		if e.Name != "disk" || e.Description != path || e.Size != clientDisk || len(e.Contexts) != 1 || e.Contexts[0] != "base:allocation" ||
			!e.Flush || !e.FUA || !e.Multi || !e.Trim || !e.Zero || !e.DF || !e.Cache ||
			e.BlockMin != 512 || e.BlockPreferred != 4096 || e.BlockMax != 32<<20 {
			t.Errorf("%v: %+v", args, e)
		}
	}
}

func TestNbdcopyBothWays(t *testing.T) {
	need(t, "nbdcopy")
	path, uri := serveFile(t)
	src, out := image(t), filepath.Join(t.TempDir(), "out.img")
	run(t, "nbdcopy", "--flush", "--connections=4", "--requests=64", src, uri)
	same(t, src, path)
	run(t, "nbdcopy", uri, out)
	same(t, src, out)
}

func TestQemuImg(t *testing.T) {
	need(t, "qemu-img")
	path, uri := serveFile(t)
	src, out := image(t), filepath.Join(t.TempDir(), "out.img")
	run(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", src, uri)
	run(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", src, uri)
	run(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", uri, out)
	same(t, path, out)
	run(t, "qemu-img", "bench", "-f", "raw", "-w", "-c", "2000", "-d", "16", "-s", "4096", "--flush-interval=64", uri)

	var runs []struct {
		Start, Length int64
		Data, Zero    bool
	}
	if err := json.Unmarshal([]byte(run(t, "qemu-img", "map", "--output=json", "-f", "raw", uri)), &runs); err != nil {
		t.Fatal(err)
	}
	var data, holes, at int64
	for _, r := range runs {
		if r.Start != at {
			t.Errorf("the map has a gap at %d", at)
		}
		at += r.Length
		if r.Data {
			data += r.Length
		} else {
			holes += r.Length
		}
	}
	if at != clientDisk || data == 0 || holes == 0 {
		t.Errorf("map: %d bytes of data, %d of holes", data, holes)
	}
}

func TestQemuIO(t *testing.T) {
	need(t, "qemu-io")
	_, uri := serveFile(t)
	args := []string{"-f", "raw"}
	for _, c := range []string{
		"write -P 0xaa 0 1M", "write -P 0xbb -f 4k 8k", "write -z -u 64k 64k", "discard 128k 128k", "flush",
		"read -P 0xaa 0 4k", "read -P 0xbb 4k 8k", "read -P 0 64k 192k", "read -P 0xaa 256k 768k", "read -P 0 1M 8M",
		"write -P 0xdd 1000 3", "read -P 0xdd 1000 3", "read -P 0xaa 1003 97",
		"aio_write -P 0xcc 2M 512k", "aio_write -P 0xee 4M 12M", "aio_flush", "read -P 0xcc 2M 512k", "read -P 0xee 4M 12M",
	} {
		args = append(args, "-c", c)
	}
	out := run(t, "qemu-io", append(args, uri)...)
	if strings.Contains(out, "failed") || strings.Contains(out, "error") {
		t.Error(out)
	}
}

func TestFioVerifies(t *testing.T) {
	need(t, "fio")
	_, uri := serveFile(t)
	run(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+uri, "--rw=randrw", "--bsrange=512-128k", "--iodepth=32",
		fmt.Sprintf("--size=%d", clientDisk), "--verify=crc32c", "--verify_fatal=1", "--verify_backlog=512", "--fsync=32")
	run(t, "fio", "--name=large", "--ioengine=nbd", "--uri="+uri, "--rw=write", "--bs=1M", "--iodepth=8",
		fmt.Sprintf("--size=%d", clientDisk), "--verify=crc32c", "--verify_fatal=1")
}
