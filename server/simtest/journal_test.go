package simtest

import (
	"bytes"
	"flag"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

var logs = flag.String("logs", "", "a directory in which the log of each history that fails is kept")

// journal is what the history under way has logged. Histories run one after the other.
var journal book

// book keeps what is logged by many at a time.
type book struct {
	mu sync.Mutex // guards b
	b  bytes.Buffer
}

func (j *book) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.b.Write(p)
}

// begin opens the journal of one history. If that fails, it is kept in a directory.
func (j *book) begin(t *testing.T, dir string) {
	if dir == "" {
		return
	}
	j.open()
	t.Cleanup(func() {
		if t.Failed() {
			j.keep(t, dir, t.Name())
		}
	})
}

func (j *book) open() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.b.Reset()
}

func (j *book) keep(t *testing.T, dir, history string) {
	name := filepath.Join(dir, strings.ReplaceAll(history, "/", ".")+".log")
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := os.WriteFile(name, j.b.Bytes(), 0o644); err != nil {
		t.Errorf("its log: %v", err)
		return
	}
	t.Logf("its log: %s", name)
}

// testLog is where clusters log to: to standard error, if SIMLOG is set; to the journal, if
// -logs is; else nowhere.
func testLog() *slog.Logger {
	switch o := (&slog.HandlerOptions{Level: slog.LevelDebug}); {
	case os.Getenv("SIMLOG") != "":
		return slog.New(slog.NewTextHandler(os.Stderr, o))
	case *logs != "":
		return slog.New(slog.NewTextHandler(&journal, o))
	}
	return nil
}
