// Command guest is the first and only program of a machine that tortures a
// device: it attaches the device, checks the file system on it, and writes
// until the machine dies. It reports on the console.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/lockstepd/lockstep/cmd/internal/torture"
)

const (
	device = "/dev/nbd0"
	mount  = "/tmp/mnt"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "guest is the init of a machine of its own")
		os.Exit(2)
	}
	if err := run(); err != nil {
		say("failed %s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	unix.Sync()
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

// console is one line at a time: a report is said as a whole or not at all.
var console sync.Mutex

func say(format string, args ...any) {
	console.Lock()
	defer console.Unlock()
	fmt.Print(torture.Mark + fmt.Sprintf(format, args...) + "\n")
}

func run() error {
	o, err := torture.Read(os.Getenv("TORTURE_ORDER"))
	if err != nil {
		return err
	}
	if err := setUp(o); err != nil {
		return err
	}
	at := attach
	if o.Again {
		at = attachAgain
	}
	if err := at(o); err != nil {
		return err
	}
	if o.Format {
		if err := command("mkfs.ext4", "-q", "-F", device); err != nil {
			return err
		}
	} else if err := check(o); err != nil {
		return err
	}
	if o.Halt {
		say("halted")
		return command("nbd-client", "-d", device)
	}
	if err := mounted(o.Options); err != nil {
		return err
	}
	return write(o)
}

// setUp makes a bare machine one that has devices, modules and a network.
func setUp(o *torture.Order) error {
	for _, m := range []struct{ fs, at string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"tmpfs", "/tmp"}, {"tmpfs", "/run"}} {
		if err := unix.Mount(m.fs, m.at, m.fs, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.at, err)
		}
	}
	if err := unix.Mount("devtmpfs", "/dev", "devtmpfs", 0, ""); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("mount /dev: %w", err)
	}
	f, err := os.Open(o.Module)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FinitModule(int(f.Fd()), "", 0); err != nil {
		return fmt.Errorf("load %s: %w", o.Module, err)
	}
	for _, argv := range [][]string{{"link", "set", "lo", "up"}, {"addr", "add", o.Net, "dev", "vec0"}, {"link", "set", "vec0", "up"}} {
		if err := command("ip", argv...); err != nil {
			return err
		}
	}
	return os.Mkdir(mount, 0o755)
}

func command(name string, args ...string) error {
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %q: %w: %s", name, args, err, out)
	}
	return nil
}

// attach opens the device, as soon as the node lets it be opened. Not over
// netlink: the client then ends with the connection, and what is in flight gets
// its error at once.
func attach(o *torture.Order) error {
	var err error
	for range 300 {
		if err = command("nbd-client", o.Host, o.Port, device, "-N", o.Export, "-b", "4096", "-C", "1", "-nonetlink"); err == nil {
			break
		}
		time.Sleep(100 * time.Millisecond)
	}
	for range 300 { // the client goes on in the background
		if err != nil {
			return err
		}
		var size []byte
		if size, err = os.ReadFile("/sys/block/nbd0/size"); err == nil && strings.TrimSpace(string(size)) != "0" {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return errors.Join(errors.New("the device has no size"), err)
}

func mounted(options string) error {
	if err := unix.Mount(device, mount, "ext4", 0, options); err != nil {
		return fmt.Errorf("mount the device (%s): %w", options, err)
	}
	return nil
}

// check has the kernel recover the file system as after any crash, reads all
// that was promised, and has e2fsck look for faults: there must be none.
func check(o *torture.Order) error {
	if err := mounted(o.Options); err != nil {
		return err
	}
	whole, err := o.Check(mount)
	if err != nil {
		return err
	}
	if err := unix.Unmount(mount, 0); err != nil {
		return fmt.Errorf("unmount: %w", err)
	}
	if err := command("e2fsck", "-f", "-n", device); err != nil {
		return err
	}
	say("checked %d", whole)
	return nil
}

// write lets the writers work until the machine dies, or none of them can.
func write(o *torture.Order) error {
	say("writing")
	var all sync.WaitGroup
	for w, k := range o.Expect {
		all.Go(func() {
			// What an earlier life wrote and did not live to promise must not pass
			// for what this one will.
			wr := &writer{o: o, n: w, next: k.Next, gen: k.Gen + 1000, have: k.Files}
			err := wr.run()
			say("error writer %d: %v", w, err)
		})
	}
	all.Wait()
	select {} // a dead disk is reported; the machine is ended from outside
}

// writer makes files, fsyncs each, and says so.
type writer struct {
	o    *torture.Order
	n    int
	next int
	gen  int
	have []int
}

// most is how many files a writer keeps.
const most = 24

func (w *writer) run() error {
	dir := torture.Dir(mount, w.n)
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	for {
		n := w.next
		say("begins %d %d", w.n, n)
		if err := save(torture.File(mount, w.n, n), torture.Content(w.o.Seed, w.n, n)); err != nil {
			return err
		}
		if err := syncDir(dir); err != nil {
			return err
		}
		say("synced %d %d", w.n, n)
		w.next++
		w.have = append(w.have, n)
		if n%3 == 0 {
			if err := w.replace(dir); err != nil {
				return err
			}
		}
		if len(w.have) > most {
			say("removing %d %d", w.n, w.have[0])
			if err := os.Remove(torture.File(mount, w.n, w.have[0])); err != nil {
				return err
			}
			w.have = w.have[1:]
		}
	}
}

// replace puts a new generation in the place of the old: after a crash it is
// one or the other.
func (w *writer) replace(dir string) error {
	path := torture.Current(mount, w.n)
	if err := save(path+".new", torture.Generation(w.o.Seed, w.n, w.gen+1)); err != nil {
		return err
	}
	if err := os.Rename(path+".new", path); err != nil {
		return err
	}
	if err := syncDir(dir); err != nil {
		return err
	}
	w.gen++
	say("replaced %d %d", w.n, w.gen)
	return nil
}

// save writes a file in pieces, as programs do, and fsyncs it.
func save(path string, content []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	for len(content) > 0 {
		n := min(len(content), 10_000)
		if _, err := f.Write(content[:n]); err != nil {
			return err
		}
		content = content[n:]
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return f.Close()
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	return syscall.Fsync(int(d.Fd()))
}
