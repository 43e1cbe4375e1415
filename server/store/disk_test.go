package store_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/lockstepd/lockstep/server/block"
	"github.com/lockstepd/lockstep/server/store"
	"github.com/lockstepd/lockstep/server/store/storetest"
)

func TestFileDiskKeepsThePromises(t *testing.T) {
	dirs := map[string]string{"temporary": t.TempDir()}
	if _, err := os.Stat("/dev/shm"); err == nil {
		dir, err := os.MkdirTemp("/dev/shm", "lockstep-test")
		must(t, err)
		t.Cleanup(func() { os.RemoveAll(dir) })
		dirs["tmpfs"] = dir
	}
	for name, dir := range dirs {
		t.Run(name, func(t *testing.T) {
			storetest.TestDisk(t, mib, true, func(t *testing.T) store.Disk {
				path := filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-"))
				d, created, err := store.OpenDisk(path, mib, store.DiskOptions{Create: true})
				must(t, err)
				if !created {
					t.Error("it says that it did not create the file")
				}
				return d
			})
		})
	}
}

// loopDevice returns a block device of size bytes.
func loopDevice(t *testing.T, size int64) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a block device can be made by root only")
	}
	file := filepath.Join(t.TempDir(), "loop")
	must(t, os.WriteFile(file, nil, 0o600))
	must(t, os.Truncate(file, size))
	out, err := exec.Command("losetup", "--find", "--show", file).Output()
	if err != nil {
		t.Skipf("no loop device can be had: %v", err)
	}
	dev := strings.TrimSpace(string(out))
	t.Cleanup(func() {
		if err := exec.Command("losetup", "--detach", dev).Run(); err != nil {
			t.Errorf("losetup --detach %s: %v", dev, err)
		}
	})
	return dev
}

func TestBlockDeviceKeepsThePromises(t *testing.T) {
	dev := loopDevice(t, mib)
	zeroes := make([]byte, mib)
	storetest.TestDisk(t, mib, false, func(t *testing.T) store.Disk {
		d, created, err := store.OpenDisk(dev, mib, store.DiskOptions{Create: true})
		must(t, err)
		if created {
			t.Error("it says that it created the device")
		}
		_, err = d.WriteAt(zeroes, 0)
		must(t, err)
		return d
	})
	d, _, err := store.OpenDisk(dev, mib, store.DiskOptions{})
	must(t, err)
	defer d.Close()
	if _, _, err := store.OpenDisk(dev, mib, store.DiskOptions{}); !errors.Is(err, store.ErrInUse) {
		t.Errorf("a second user: %v", err)
	}
}

func TestDiskIsRefusedWithWhatToDo(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.WriteFile(path("small"), make([]byte, 8192), 0o600))
	must(t, os.WriteFile(path("empty"), nil, 0o600))
	must(t, syscall.Mkfifo(path("fifo"), 0o600))
	used, _, err := store.OpenDisk(path("used"), mib, store.DiskOptions{Create: true})
	must(t, err)
	defer used.Close()
	tests := []struct {
		name, path string
		size       int64
		opts       store.DiskOptions
		is         error
		want       []string
	}{
		{"directory", dir, mib, store.DiskOptions{Create: true}, store.ErrWrongType, []string{"directory", "name a file in it"}},
		{"fifo", path("fifo"), mib, store.DiskOptions{}, store.ErrWrongType, []string{"neither a regular file nor a block device"}},
		{"character device", "/dev/null", mib, store.DiskOptions{}, store.ErrWrongType, []string{"block device"}},
		{"too small", path("small"), mib, store.DiskOptions{Create: true}, store.ErrTooSmall, []string{"8192 bytes", "1048576", "truncate -s 1048576"}},
		{"empty, not to be created", path("empty"), mib, store.DiskOptions{}, store.ErrTooSmall, []string{"0 bytes"}},
		{"absent", path("absent"), mib, store.DiskOptions{}, fs.ErrNotExist, []string{"no such file", "create it, or correct the path"}},
		{"absent directory", path("no/such"), mib, store.DiskOptions{Create: true}, fs.ErrNotExist, []string{"correct the path"}},
		{"below a file", path("small/disk"), mib, store.DiskOptions{Create: true}, syscall.ENOTDIR, []string{"not a directory"}},
		{"in use", path("used"), mib, store.DiskOptions{}, store.ErrInUse, []string{"another process has locked it"}},
		{"odd size", path("odd"), 4097, store.DiskOptions{Create: true}, block.ErrInvalid, []string{"multiples of 4096"}},
		{"no size", path("odd"), 0, store.DiskOptions{Create: true}, block.ErrInvalid, []string{"multiples of 4096"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d, created, err := store.OpenDisk(tt.path, tt.size, tt.opts)
			if d != nil || created || !errors.Is(err, tt.is) {
				t.Fatalf("got %v, %v, %v", d, created, err)
			}
			for _, want := range append(tt.want, "cannot use disk "+tt.path) {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("%q does not say %q", err, want)
				}
			}
		})
	}
}

func TestDiskWithoutPermissionIsRefused(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	must(t, os.WriteFile(path, make([]byte, 4096), 0o400))
	if os.Getuid() == 0 {
		t.Skip("root may open everything")
	}
	_, _, err := store.OpenDisk(path, 4096, store.DiskOptions{})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "permission") {
		t.Errorf("got %v", err)
	}
}

func TestCreatedDiskIsSparseAndSaysSoOnce(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"absent", "empty"} {
		path := filepath.Join(dir, name)
		if name == "empty" { // as a crash during creation leaves it
			must(t, os.WriteFile(path, nil, 0o600))
		}
		for i := range 2 {
			d, created, err := store.OpenDisk(path, gib, store.DiskOptions{Create: true})
			must(t, err)
			if created != (i == 0) {
				t.Errorf("%s, open %d: created is %v", name, i, created)
			}
			must(t, d.Close())
		}
		var st syscall.Stat_t
		must(t, syscall.Stat(path, &st))
		if st.Size != gib || st.Blocks*512 > mib {
			t.Errorf("%s: %d bytes take %d", name, st.Size, st.Blocks*512)
		}
	}
}

func TestDiskResize(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	d, _, err := store.OpenDisk(path, mib, store.DiskOptions{Create: true})
	must(t, err)
	defer d.Close()
	r := d.(store.Resizer)
	must(t, r.Resize(2*mib))
	if _, err := d.WriteAt([]byte{1}, 2*mib-1); err != nil || d.Size() != 2*mib {
		t.Errorf("after growing to %d: %v", d.Size(), err)
	}
	must(t, r.Resize(mib))
	if _, err := d.WriteAt([]byte{1}, mib); !errors.Is(err, block.ErrRange) {
		t.Errorf("after shrinking: %v", err)
	}
	if err := r.Resize(4097); !errors.Is(err, block.ErrInvalid) {
		t.Errorf("odd size: %v", err)
	}
}

func TestDiskErrorsAreOnesThatAConsumerKnows(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "disk")
	d, _, err := store.OpenDisk(path, mib, store.DiskOptions{Create: true})
	must(t, err)
	defer d.Close()
	must(t, os.Truncate(path, 4096)) // behind its back
	_, err = d.ReadAt(make([]byte, 8192), 0)
	if !errors.Is(err, block.ErrIO) || !strings.Contains(err.Error(), "shorter") || !strings.Contains(err.Error(), path) {
		t.Errorf("got %v", err)
	}
	for _, tt := range []struct {
		err  error
		kind error
	}{
		{syscall.ENOSPC, block.ErrNoSpace}, {syscall.EDQUOT, block.ErrNoSpace}, {syscall.EFBIG, block.ErrNoSpace},
		{syscall.EIO, block.ErrIO}, {syscall.EROFS, block.ErrIO}, {syscall.EOPNOTSUPP, block.ErrNotSupported},
		{block.ErrRange, block.ErrRange},
	} {
		err := store.WrapIO("write", "/disk", 4096, 512, &fs.PathError{Op: "pwrite", Path: "x", Err: tt.err})
		if !errors.Is(err, tt.kind) || !errors.Is(err, tt.err) {
			t.Errorf("%v became %v", tt.err, err)
		}
	}
	err = store.WrapIO("write", "/disk", 4096, 512, &fs.PathError{Op: "pwrite", Path: "x", Err: syscall.EIO})
	if want := "write /disk: 512 bytes at 4096: input/output error"; err.Error() != want {
		t.Errorf("%q, want %q", err, want)
	}
	if store.WrapIO("write", "/disk", 0, 0, nil) != nil {
		t.Error("no error became one")
	}
}

func TestFullFileSystemIsNoSpace(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("a small file system can be mounted by root only")
	}
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("no small file system can be had: %v", err)
	}
	defer syscall.Unmount(dir, 0)
	d, created, err := store.OpenDisk(filepath.Join(dir, "disk"), mib, store.DiskOptions{Create: true})
	must(t, err)
	defer d.Close()
	if !created {
		t.Error("a disk larger than the file system has room was not created sparse")
	}
	if _, err := d.WriteAt(make([]byte, 512*kib), 0); !errors.Is(err, block.ErrNoSpace) {
		t.Errorf("got %v", err)
	}
	must(t, d.Trim(0, mib))
	if _, err := d.WriteAt(make([]byte, 64*kib), 0); err != nil {
		t.Errorf("after a trim: %v", err)
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	d, _, err := store.OpenDisk(filepath.Join(t.TempDir(), "disk"), mib, store.DiskOptions{Create: true})
	must(t, err)
	defer d.Close()
	p := make([]byte, 4096)
	_, err = d.WriteAt(p, 0)
	must(t, err)
	for name, do := range map[string]func(){
		"read":  func() { _, err = d.ReadAt(p, 0) },
		"write": func() { _, err = d.WriteAt(p, 0) },
		"sync":  func() { err = d.Sync() },
	} {
		if n := testing.AllocsPerRun(20, do); n != 0 || err != nil {
			t.Errorf("%s: %v allocations, %v", name, n, err)
		}
	}
}

func TestConcurrentSyncsAndClose(t *testing.T) {
	d, _, err := store.OpenDisk(filepath.Join(t.TempDir(), "disk"), mib, store.DiskOptions{Create: true})
	must(t, err)
	var wg sync.WaitGroup
	for i := range int64(4) {
		wg.Go(func() {
			for {
				if _, err := d.WriteAt([]byte{1}, i*4096); err != nil {
					return
				}
				if err := d.Sync(); err != nil {
					if !errors.Is(err, store.ErrClosed) {
						t.Error(err)
					}
					return
				}
				if i == 0 {
					must(t, d.Close())
				}
			}
		})
	}
	wg.Wait()
}
