package crash

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

func TestHeadline(t *testing.T) {
	for report, want := range map[string]string{
		"": "",
		"panic: boom\n\ngoroutine 1 [running]:\n":                                               "panic: boom",
		"\nfatal error: all goroutines are asleep - deadlock!\n":                                "fatal error: all goroutines are asleep - deadlock!",
		"SIGSEGV: segmentation violation\nPC=0x1 m=0\n":                                         "SIGSEGV: segmentation violation",
		"runtime: goroutine stack exceeds 1000000000-byte limit\nfatal error: stack overflow\n": "fatal error: stack overflow",
		"something else\nmore\n":                                                                "something else",
		"\ngoroutine 7 [running]:\ninternal/sync.fatal({0x5d1cfa?, 0x0?})\n\t/go/panic.go:1 +0x1\nsync.(*Mutex).Unlock(...)\n\t/go/m.go:2\nmain.main()\n": "fatal error in sync.(*Mutex).Unlock",
		"goroutine 7 [running]:\nmain.f(0x1, {0x2, 0x3})\n": "fatal error in main.f",
		"goroutine 1 [select]:\nruntime.gopark()\n\t/go/p.go:1\ncreated by main.main in goroutine 1\n\t/x.go:1\n\ngoroutine 2 [running]:\nmain.f()\n": "fatal error",
		"runtime stack:\nruntime.throw({0x1, 0x2})\n\ngoroutine 1 [running]:\nmain.f()\n":                                                             "fatal error",
		"x\ngoroutine 1 [running]:\npanic: late\n": "x",
		"panic: " + strings.Repeat("é", 200):       "panic: " + strings.Repeat("é", 96) + "...",
	} {
		if got := Headline([]byte(report)); got != want {
			t.Errorf("%.60q: got %q, want %q", report, got, want)
		}
	}
}

func TestCollectIsBounded(t *testing.T) {
	r := strings.NewReader(strings.Repeat("x", MaxReport+1000))
	if got := Collect(r); len(got) != MaxReport || r.Len() != 0 {
		t.Errorf("%d bytes collected, %d not read", len(got), r.Len())
	}
	if got := string(Collect(iotest.TimeoutReader(iotest.OneByteReader(strings.NewReader("panic"))))); !strings.HasPrefix(got, "p\n(the rest could not be read") {
		t.Errorf("%q", got)
	}
}

func TestSaveKeepsTheYoungest(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "crash")
	if names, err := List(dir); names != nil || err != nil {
		t.Errorf("%v %v", names, err)
	}
	at := time.Unix(1e9, 0)
	var saved []string
	for i := range Keep + 3 {
		path, err := Save(dir, "heading", []byte("report"), 100-i, at.Add(time.Duration(i)*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		saved = append(saved, path)
	}
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	names, err := List(dir)
	if err != nil || strings.Join(names, " ") != strings.Join(saved[3:], " ") {
		t.Errorf("%v %v", names, err)
	}
	data, err := os.ReadFile(names[0])
	if err != nil || string(data) != "heading\n\nreport" {
		t.Errorf("%q %v", data, err)
	}
	if _, err := Save("/dev/null/x", "", nil, 1, at); err == nil {
		t.Error("saved nowhere")
	}
}

func FuzzHeadline(f *testing.F) {
	f.Add([]byte("panic: x\n\ngoroutine 1"))
	f.Fuzz(func(t *testing.T, report []byte) {
		if h := Headline(report); len(h) > 203 || strings.Contains(h, "\n") {
			t.Errorf("%q", h)
		}
	})
}
