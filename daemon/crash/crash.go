// Package crash receives and keeps crash reports: what the Go runtime prints
// about all goroutines when the program dies of a panic or a fatal error.
package crash

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// MaxReport bounds a report; the rest of a longer one is dropped.
const MaxReport = 4 << 20

// Keep is how many reports stay in a folder.
const Keep = 5

// Collect reads a report until the writer is gone. What exceeds MaxReport is
// read and dropped, so that the dying process is never held up.
func Collect(r io.Reader) []byte {
	report, err := io.ReadAll(io.LimitReader(r, MaxReport))
	if err == nil {
		_, err = io.Copy(io.Discard, r)
	}
	if err != nil && len(report) > 0 {
		report = fmt.Appendf(report, "\n(the rest could not be read: %v)\n", err)
	}
	return report
}

// Headline is the line of a report that says what happened: "panic: …",
// "fatal error: …", "SIGSEGV: segmentation violation"; "" for an empty report.
// The runtime prints that of a fatal error to standard error alone: for a
// report that begins with a goroutine, it is where that was, "fatal error in …".
func Headline(report []byte) string {
	first := ""
	for line := range bytes.Lines(report) {
		s := strings.TrimSpace(string(line))
		if first == "" {
			first = s
		}
		if strings.HasPrefix(s, "panic:") || strings.HasPrefix(s, "fatal error:") || strings.HasPrefix(s, "SIG") {
			first = s
			break
		}
		if strings.HasPrefix(s, "goroutine ") {
			break
		}
	}
	if strings.HasPrefix(first, "goroutine ") || first == "runtime stack:" {
		first = "fatal error" + place(report)
	}
	const max = 200
	if len(first) > max {
		first = strings.ToValidUTF8(first[:max], "") + "..."
	}
	return first
}

// place is the function that the first goroutine of a report was in, past those
// of the runtime: " in sync.(*Mutex).Unlock"; "" if there is none.
func place(report []byte) string {
	for line := range bytes.Lines(bytes.TrimLeft(report, "\n")) {
		s := strings.TrimSpace(string(line))
		if s == "" || strings.HasPrefix(s, "created by ") {
			break
		}
		i := strings.LastIndexByte(s, '(') // of the arguments
		if i < 0 || line[0] == '\t' {
			continue
		}
		if name := s[:i]; !inRuntime(name) {
			return " in " + name
		}
	}
	return ""
}

// inRuntime reports whether a function only serves to end the program.
func inRuntime(name string) bool {
	return strings.HasPrefix(name, "runtime.") || strings.HasPrefix(name, "internal/") || strings.HasSuffix(name, ".fatal") || strings.HasSuffix(name, ".throw")
}

const prefix, suffix = "crash-", ".txt"

// Save writes a report with a heading to a new file in dir, and removes all
// but the youngest few. It returns the file's path.
func Save(dir, heading string, report []byte, pid int, now time.Time) (string, error) {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return "", fmt.Errorf("cannot keep the crash report: %w", err)
	}
	// The time comes first, so that names sort by age.
	path := filepath.Join(dir, fmt.Sprintf("%s%s-%d%s", prefix, now.UTC().Format("20060102T150405.000Z"), pid, suffix))
	if err := os.WriteFile(path, append([]byte(heading+"\n\n"), report...), 0o640); err != nil {
		return "", fmt.Errorf("cannot keep the crash report: %w", err)
	}
	return path, prune(dir)
}

// List returns the reports in dir, the oldest first.
func List(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot list crash reports: %w", err)
	}
	var names []string
	for _, e := range entries {
		if n := e.Name(); e.Type().IsRegular() && strings.HasPrefix(n, prefix) && strings.HasSuffix(n, suffix) {
			names = append(names, filepath.Join(dir, n))
		}
	}
	slices.Sort(names)
	return names, nil
}

func prune(dir string) error {
	names, err := List(dir)
	if err != nil {
		return err
	}
	for len(names) > Keep {
		if err := os.Remove(names[0]); err != nil {
			return fmt.Errorf("cannot remove an old crash report: %w", err)
		}
		names = names[1:]
	}
	return nil
}
