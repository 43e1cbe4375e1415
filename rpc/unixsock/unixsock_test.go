package unixsock

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func mustListen(t *testing.T, path string, o Options) *Listener {
	t.Helper()
	l, err := Listen(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// dead leaves a socket at path that nobody listens on.
func dead(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
}

// answers reports whether l is what a client of path gets to.
func answers(t *testing.T, l *Listener, path string) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		nc, err := l.Accept()
		if err == nil {
			_, err = io.WriteString(nc, "here")
			nc.Close()
		}
		done <- err
	}()
	nc, err := Dial(t.Context(), path)
	if err != nil {
		l.Close()
		<-done
		t.Fatalf("%s: %v", path, err)
	}
	defer nc.Close()
	if got, err := io.ReadAll(nc); string(got) != "here" || err != nil {
		t.Errorf("%s: %q, %v", path, got, err)
	}
	<-done
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func TestModeIsExactWhateverTheUmask(t *testing.T) {
	for _, tt := range []struct {
		umask int
		mode  os.FileMode
		want  os.FileMode
	}{{0o077, 0, 0o770}, {0, 0, 0o770}, {0o777, 0o700, 0o700}, {0, 0o666, 0o666}} {
		path := filepath.Join(t.TempDir(), "s")
		old := syscall.Umask(tt.umask)
		l, err := Listen(path, Options{Mode: tt.mode})
		syscall.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != tt.want {
			t.Errorf("umask %o, mode %o: %v, %v", tt.umask, tt.mode, info.Mode(), err)
		}
		l.Close()
	}
}

// Between bind and chmod the socket must not be open to more than its owner.
func TestSocketIsBornPrivate(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	old := syscall.Umask(0)
	defer syscall.Umask(old)
	l, err := bind(path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
}

func TestGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may give a socket to any group")
	}
	path := filepath.Join(t.TempDir(), "s")
	mustListen(t, path, Options{GID: 1234})
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || st.Gid != 1234 {
		t.Errorf("group %d, %v", st.Gid, err)
	}
}

// TestAdmit: members of the groups that were named last can connect, and nobody
// else whom the mode does not let.
func TestAdmit(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root may try as somebody else")
	}
	dir := t.TempDir()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "s")
	l := mustListen(t, path, Options{})
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			nc.Close()
		}
	}()
	// A thread may be somebody else by itself.
	connects := func(gid int) (ok bool) {
		done := make(chan struct{})
		go func() {
			defer close(done)
			runtime.LockOSThread() // and never unlocked: it ends with the goroutine
			for _, err := range []error{
				setOfThread(unix.SYS_SETGROUPS, 0, 0), setOfThread(unix.SYS_SETGID, uintptr(gid), 0), setOfThread(unix.SYS_SETUID, 4242, 0),
			} {
				if err != nil {
					t.Error(err)
					return
				}
			}
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Close(fd)
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: path})
			if ok = err == nil; !ok && !errors.Is(err, unix.EACCES) {
				t.Error(err)
			}
		}()
		<-done
		return ok
	}
	for _, gids := range [][]uint32{nil, {4001, 4002, 4001}, {4002}, nil} {
		if err := Admit(path, gids); err != nil {
			t.Fatal(err)
		}
		for _, gid := range []uint32{4001, 4002, 4003} {
			if got, want := connects(int(gid)), slices.Contains(gids, gid); got != want {
				t.Errorf("admitted %v: group %d connects: %v", gids, gid, got)
			}
		}
	}
}

// setOfThread changes who this thread is, and no other.
func setOfThread(call, a, b uintptr) error {
	if _, _, errno := unix.RawSyscall(call, a, b, 0); errno != 0 {
		return errno
	}
	return nil
}

func TestPathsOfAnyLength(t *testing.T) {
	for _, n := range []int{1, 80, 107, 108, 250, 1000} {
		dir := t.TempDir()
		for len(dir)+40 < n {
			dir = filepath.Join(dir, strings.Repeat("d", min(30, n-len(dir))))
		}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, strings.Repeat("s", min(60, max(1, n-len(dir)-1))))
		l := mustListen(t, path, Options{})
		answers(t, l, path)
		if err := l.Close(); err != nil || exists(path) {
			t.Errorf("%d bytes: %v, still there: %v", len(path), err, exists(path))
		}
	}
	long := filepath.Join(t.TempDir(), strings.Repeat("x", 200))
	if _, err := Listen(long, Options{}); err == nil || !strings.Contains(err.Error(), "too long") {
		t.Errorf("a name that cannot be shortened: %v", err)
	}
}

func TestNameThatLooksAbstract(t *testing.T) {
	t.Chdir(t.TempDir())
	l := mustListen(t, "@s", Options{})
	answers(t, l, "@s")
	if !exists("./@s") {
		t.Error("it is an abstract socket")
	}
}

func TestSocketOfADeadProcessIsReplaced(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead(t, path)
	answers(t, mustListen(t, path, Options{}), path)
}

func TestSocketOfALiveProcessIsNotStolen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first := mustListen(t, path, Options{})
	if _, err := Listen(path, Options{}); !errors.Is(err, ErrInUse) || err.Error() != "cannot listen on "+path+": a live process listens on it" {
		t.Errorf("%v", err)
	}
	first.Accept() // the probe
	answers(t, first, path)
}

// A live process whose backlog is full does not answer, and is alive.
func TestSocketOfAHungProcessIsNotStolen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrUnix{Name: path}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	waiting, err := Dial(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	if _, err := Listen(path, Options{}); !errors.Is(err, ErrInUse) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Dial(ctx, path); !errors.Is(err, context.DeadlineExceeded) || !strings.HasPrefix(err.Error(), "its queue of connections is full") {
		t.Errorf("Dial: %v", err)
	}
}

func TestWhatIsNoSocketIsLeftAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, Options{}); !errors.Is(err, ErrNotSocket) {
		t.Errorf("%v", err)
	}
	if text, err := os.ReadFile(path); string(text) != "precious" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

func TestNoFolder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "none", "s")
	if _, err := Listen(path, Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := Dial(t.Context(), path); !errors.Is(err, unix.ENOENT) {
		t.Errorf("%v", err)
	}
}

func TestCloseRemovesOnlyItsOwn(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	first := mustListen(t, path, Options{})
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	second := mustListen(t, path, Options{})
	if err := first.Close(); err != nil {
		t.Error(err)
	}
	answers(t, second, path)
	if err := errors.Join(second.Close(), second.Close()); err != nil || exists(path) {
		t.Errorf("%v, still there: %v", err, exists(path))
	}
}

// Many that start at once on one path: one gets it, and it works.
func TestRaceForOnePath(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	dead(t, path)
	var mu sync.Mutex
	var won []*Listener
	var racers sync.WaitGroup
	for range 20 {
		racers.Go(func() {
			l, err := Listen(path, Options{})
			if err == nil {
				mu.Lock()
				defer mu.Unlock()
				won = append(won, l)
			} else if !errors.Is(err, ErrInUse) {
				t.Error(err)
			}
		})
	}
	racers.Wait()
	if len(won) != 1 {
		t.Fatalf("%d won", len(won))
	}
	defer won[0].Close()
	if id, err := inodeOf(path); err != nil || id != won[0].id {
		t.Errorf("the path leads elsewhere: %v", err)
	}
}

func TestLink(t *testing.T) {
	dir := t.TempDir()
	link := filepath.Join(dir, "testd.ctl")
	path := func(n int) string { return filepath.Join(dir, fmt.Sprintf("testd.%d.ctl", n)) }
	leadsTo := func(want string) {
		t.Helper()
		if got, err := os.Readlink(link); got != want || err != nil {
			t.Errorf("the link leads to %q (%v), not to %q", got, err, want)
		}
	}

	first := mustListen(t, path(1), Options{Link: link})
	leadsTo("testd.1.ctl")
	answers(t, first, link)

	second := mustListen(t, path(2), Options{Link: link}) // while the first lives
	leadsTo("testd.1.ctl")
	if first.Link() != link || second.Link() != "" || second.Path() != path(2) {
		t.Errorf("%q, %q", first.Link(), second.Link())
	}
	second.Close()
	leadsTo("testd.1.ctl")
	first.Close()
	if exists(link) {
		t.Error("the link outlives its socket")
	}

	dead(t, path(3))
	if err := os.Symlink("testd.3.ctl", link); err != nil {
		t.Fatal(err)
	}
	fourth := mustListen(t, path(4), Options{Link: link}) // after one that died
	leadsTo("testd.4.ctl")
	answers(t, fourth, link)
	os.Remove(link)
	if err := os.Symlink("elsewhere", link); err != nil {
		t.Fatal(err)
	}
	fourth.Close()
	leadsTo("elsewhere") // it was not ours any more

	os.Remove(link)
	dead(t, link) // a socket of an older version in the link's place
	fifth := mustListen(t, path(5), Options{Link: link})
	leadsTo("testd.5.ctl")
	answers(t, fifth, link)

	elsewhere := mustListen(t, filepath.Join(t.TempDir(), "s"), Options{Link: filepath.Join(dir, "other.ctl")})
	answers(t, elsewhere, filepath.Join(dir, "other.ctl"))
}

func TestCleanStale(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, name := range []string{"testd.1.ctl", "testd.999999.ctl", "other.1.ctl", "testd.x.ctl", "testd.ctl", "testd.1.ctl.bak",
		fmt.Sprintf("testd.%d.ctl", os.Getpid())} {
		dead(t, at(name))
	}
	if err := os.WriteFile(at("testd.5.ctl"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	live := mustListen(t, at("testd.7.ctl"), Options{})
	removed, err := CleanStale(dir, "testd")
	if err != nil || fmt.Sprint(removed) != "[testd.1.ctl testd.999999.ctl]" {
		t.Errorf("removed %v, %v", removed, err)
	}
	for _, name := range []string{"other.1.ctl", "testd.x.ctl", "testd.ctl", "testd.1.ctl.bak", "testd.5.ctl", "testd.7.ctl"} {
		if !exists(at(name)) {
			t.Errorf("%s is gone", name)
		}
	}
	live.Accept() // the probe
	answers(t, live, at("testd.7.ctl"))
	if _, err := CleanStale(at("none"), "testd"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
}
