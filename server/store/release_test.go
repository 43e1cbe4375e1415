package store_test

import (
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/server/store"
)

// TestAClosedDiskCanBeOpenedAtOnce, though the open file lives on for a moment: in a
// child that was forked and is not another program yet, or in a read under way.
func TestAClosedDiskCanBeOpenedAtOnce(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	d, _, err := store.OpenDisk(path, 1<<20, store.DiskOptions{Create: true})
	if err != nil {
		t.Fatal(err)
	}
	other, err := syscall.Dup(descriptorOf(t, path))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(other)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	d, _, err = store.OpenDisk(path, 1<<20, store.DiskOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
}

// descriptorOf is the number of this process's open file of that name.
func descriptorOf(t *testing.T, path string) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range all {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && to == path {
			n, err := strconv.Atoi(e.Name())
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("%s is not open", path)
	return -1
}
