package title

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

const childVar = "TITLE_TEST_TEXT"

func TestMain(m *testing.M) {
	if text := os.Getenv(childVar); text != "" {
		child(text)
		return
	}
	os.Exit(m.Run())
}

// child sets its title and prints what the kernel then says, and what its own
// arguments and environment are.
func child(text string) {
	t, args := Take()
	t.Set("something longer that must not shine through afterwards")
	t.Set(text)
	if err := SetComm("a-name-that-is-too-long"); err != nil {
		panic(err)
	}
	for _, name := range []string{"cmdline", "comm"} {
		data, err := os.ReadFile("/proc/self/" + name)
		if err != nil {
			panic(err)
		}
		os.Stdout.WriteString(strings.TrimRight(string(data), "\x00\n") + "\n")
	}
	os.Stdout.WriteString(strings.Join(args, " ") + "\n" + strings.Join(os.Args, " ") + "\n" + os.Getenv("LAST") + "\n")
}

func run(t *testing.T, text string) []string {
	t.Helper()
	cmd := &exec.Cmd{Path: os.Args[0], Args: []string{"x", "arg"}, Env: []string{childVar + "=" + text, "LAST=kept"}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return strings.Split(string(out), "\n")
}

func TestSet(t *testing.T) {
	for _, text := range []string{"monitoring pid 17 (healthy)", "x"} {
		got := run(t, text)
		want := []string{text, "a-name-that-is-", "x arg", "x arg", "kept", ""}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

func TestSetShortens(t *testing.T) {
	text := strings.Repeat("0123456789", 20)
	m := &Title{mem: make([]byte, 50)}
	m.Set(text)
	if got := strings.TrimRight(string(m.mem), "\x00"); got != text[:46]+"..." {
		t.Errorf("%q", got)
	}
	var none *Title
	none.Set("nothing happens")
	(&Title{}).Set("nothing happens")
}

func FuzzLayout(f *testing.F) {
	data, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(data))
	f.Add("1 (a) b) c) S 1")
	f.Fuzz(func(t *testing.T, s string) { layout(s) })
}
