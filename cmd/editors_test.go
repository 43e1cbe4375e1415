package cmd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// save is one way in which a file gets another text.
type save struct {
	name  string
	needs string // a program, "" for none
	do    func(t *testing.T, path, text, pings string)
}

// saves are the ways of the editors and tools that people use. The real
// programs do it where they are there.
func saves() []save {
	return []save{
		{"in place", "", func(t *testing.T, path, text, _ string) { put(t, path, text) }},
		{"atomic rename", "", func(t *testing.T, path, text, _ string) {
			put(t, path+".new", text)
			check(t, os.Rename(path+".new", path))
		}},
		{"backup and write", "", func(t *testing.T, path, text, _ string) {
			check(t, os.Rename(path, path+"~"))
			put(t, path, text)
		}},
		{"gone and back", "", func(t *testing.T, path, text, _ string) {
			check(t, os.Remove(path))
			put(t, path, text)
		}},
		{"two halves", "", func(t *testing.T, path, text, _ string) {
			f, err := os.Create(path)
			check(t, err)
			_, err = f.WriteString(text[:len(text)/2])
			_, err2 := f.WriteString(text[len(text)/2:])
			check(t, errors.Join(err, err2, f.Close()))
		}},
		{"two halves, slowly", "sh", func(t *testing.T, path, text, _ string) {
			// The first half is a valid file by itself, without any device.
			half := strings.Index(text, "\n[[device]]")
			put(t, path+".1", text[:half])
			put(t, path+".2", text[half:])
			command(t, "sh", "-c", `{ cat "$0.1"; sleep 1; cat "$0.2"; } > "$0"`, path)
		}},
		{"sed -i", "sed", func(t *testing.T, path, _, pings string) {
			command(t, "sed", "-i", "s/^max_ping_count = .*/max_ping_count = "+pings+"/", path)
		}},
		{"vim", "vi", func(t *testing.T, path, _, pings string) { vim(t, path, pings, "set nobackup") }},
		{"vim, which writes in place", "vi", func(t *testing.T, path, _, pings string) { vim(t, path, pings, "set backup backupcopy=yes") }},
		{"vim, which renames", "vi", func(t *testing.T, path, _, pings string) { vim(t, path, pings, "set backup backupcopy=no") }},
		{"nano", "nano", func(t *testing.T, path, _, pings string) { nano(t, path, pings) }},
		{"nano with a backup", "nano", func(t *testing.T, path, _, pings string) { nano(t, path, pings, "--backup") }},
		{"ConfigMap", "", func(t *testing.T, path, text, _ string) {
			// What kubelet does: a new folder, and a link that all paths go through is swapped.
			dir := filepath.Join(filepath.Dir(path), "..2")
			check(t, os.Mkdir(dir, 0o755))
			put(t, filepath.Join(dir, filepath.Base(path)), text)
			check(t, os.Symlink("..2", filepath.Join(filepath.Dir(path), "..data_tmp")))
			check(t, os.Rename(filepath.Join(filepath.Dir(path), "..data_tmp"), filepath.Join(filepath.Dir(path), "..data")))
			if _, err := os.Readlink(path); errors.Is(err, syscall.EINVAL) { // the first time it becomes one
				check(t, os.Symlink("..data/"+filepath.Base(path), path+".link"))
				check(t, os.Rename(path+".link", path))
			}
		}},
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, path, text string) {
	t.Helper()
	check(t, os.WriteFile(path, []byte(text), 0o600))
}

func command(t *testing.T, name string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(within(t, patience), name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", name, err, out)
	}
}

// vim changes the number in the file and writes it.
func vim(t *testing.T, path, pings, set string) {
	t.Helper()
	command(t, "vi", "-N", "-u", "NONE", "-i", "NONE", "-es", "-c", set, "-c", `%s/^max_ping_count = .*/max_ping_count = `+pings+`/`, "-c", "wq", path)
	t.Cleanup(func() { _ = os.Remove(path + "~") })
}

// nano types as a person would: replace, all, write out, exit.
func nano(t *testing.T, path, pings string, flags ...string) {
	t.Helper()
	now, err := os.ReadFile(path)
	check(t, err)
	_, old, _ := strings.Cut(string(now), "max_ping_count = ")
	old, _, _ = strings.Cut(old, "\n")
	screen, keys := terminal(t)
	cmd := exec.CommandContext(within(t, patience), "nano", append(append([]string{"--ignorercfiles"}, flags...), path)...)
	cmd.Env = append(os.Environ(), "TERM=xterm", "LC_ALL=C")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = keys, keys, keys
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	check(t, cmd.Start())
	keys.Close()
	seen, buf := &bytes.Buffer{}, make([]byte, 4096)
	for !bytes.Contains(seen.Bytes(), []byte("Exit")) { // it takes keys from now on
		n, err := screen.Read(buf)
		seen.Write(buf[:n])
		if err != nil {
			t.Fatalf("nano shows nothing: %v\n%q", err, seen)
		}
	}
	_, err = io.WriteString(screen, "\x1cmax_ping_count = "+old+"\rmax_ping_count = "+pings+"\rA\x0f\r\x18")
	check(t, err)
	_, _ = io.Copy(io.Discard, screen)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("nano: %v", err)
	}
	t.Cleanup(func() { _ = os.Remove(path + "~") })
}

// terminal is a new pseudoterminal: the end of the person, and that of the program.
func terminal(t *testing.T) (ours, theirs *os.File) {
	t.Helper()
	ours, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY, 0)
	check(t, err)
	t.Cleanup(func() { ours.Close() })
	check(t, unix.IoctlSetPointerInt(int(ours.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(ours.Fd()), unix.TIOCGPTN)
	check(t, err)
	theirs, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|syscall.O_NOCTTY, 0)
	check(t, err)
	check(t, unix.IoctlSetWinsize(int(theirs.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: 120}))
	return ours, theirs
}

// TestEditorsSaves: each way in which programs replace a file ends in exactly
// one new revision and no error, or in one clear error and no revision. It is
// the daemon's own count of its attempts that is looked at.
func TestEditorsSaves(t *testing.T) {
	t.Parallel()
	n := startConfigured(t, "")
	path := n.c.Config
	attempts := func() string {
		return n.key(t, "stats.config.applied") + " revisions, " + n.key(t, "stats.config.refused") + " refusals"
	}
	revision := 1
	for i, s := range saves() {
		if s.needs != "" && !there(t, s.needs) {
			continue
		}
		pings := fmt.Sprint(10 + i)
		text := strings.Replace(n.text, "max_ping_count = 4", "max_ping_count = "+pings, 1)
		s.do(t, path, text, pings)
		revision++
		n.untilKey(t, "cluster.max_ping_count", pings)
		n.untilKey(t, "runtime.config.revision", fmt.Sprint(revision))
		revision++
		settle(t, n, revision)
		if got, want := attempts(), fmt.Sprintf("%d revisions, 0 refusals", revision-1); got != want {
			t.Fatalf("%s: %s, not %s", s.name, got, want)
		}
	}
	put(t, path+".v3", "nonsense")
	check(t, os.Rename(path+".v3", path))
	n.untilSaid(t, "lockstep.toml:1:")
	put(t, filepath.Join(n.c.Dir, "secret"), "another cookie, and yet nonsense") // the watcher looks again
	n.untilSaid(t, "lockstep.toml:1:")
	if got, want := attempts(), fmt.Sprintf("%d revisions, 1 refusals", revision-1); got != want {
		t.Errorf("%s, not %s", got, want)
	}
}

// there reports whether a program is there; in CI it has to be.
func there(t *testing.T, program string) bool {
	_, err := exec.LookPath(program)
	if err != nil && os.Getenv("CI") != "" {
		t.Error(err)
	}
	return err == nil
}

// untilSaid waits until the file as it is now is not applied, for a reason.
func (n *configured) untilSaid(t *testing.T, why string) {
	t.Helper()
	if !poll(within(t, patience), func() bool { return strings.Contains(n.key(t, "runtime.config.error"), why) }) {
		t.Fatalf("nobody says %q", why)
	}
}

// settle returns when whatever else comes of a save has come: the watcher has
// looked once more, because of another file, which makes a revision of its own.
func settle(t *testing.T, n *configured, revision int) {
	t.Helper()
	put(t, filepath.Join(n.c.Dir, "secret"), fmt.Sprintf("cookie number %d of one run\n", revision))
	n.untilKey(t, "runtime.config.revision", fmt.Sprint(revision))
}
