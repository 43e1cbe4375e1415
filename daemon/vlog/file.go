package vlog

import (
	"errors"
	"fmt"
	"os"
	"time"
)

// fileMode keeps a log, which may name hosts, disks and addresses, from others.
const fileMode = 0o640

// fileWriter appends to the log file. It belongs to the goroutine of its sink.
type fileWriter struct {
	path      string // "" when no file is configured or it was closed
	max       int64
	keep      int
	transient bool

	f     *os.File
	size  int64
	retry time.Time // after a failure: not before
	err   error     // why the file could not be opened or written
}

// retryInterval is the pace of attempts to open a log file that failed.
const retryInterval = 10 * time.Second

func (w *fileWriter) ready() bool { return w.path != "" }

func (w *fileWriter) set(path string) error {
	w.close()
	w.path, w.retry = path, time.Time{}
	return w.open()
}

func (w *fileWriter) open() error {
	if w.f != nil {
		return nil
	}
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, fileMode)
	if err != nil {
		w.fail(err)
		return err
	}
	w.f, w.err, w.size = f, nil, 0
	if st, err := f.Stat(); err == nil {
		w.size = st.Size()
	}
	return nil
}

func (w *fileWriter) fail(err error) {
	w.err = err
	w.retry = time.Now().Add(retryInterval)
}

func (w *fileWriter) write(line []byte, _ *entry) error {
	if w.path == "" {
		return nil // closed between the check and now; nobody wants the line
	}
	if w.f == nil && time.Now().Before(w.retry) {
		return w.err
	}
	if err := w.open(); err != nil {
		return err
	}
	if w.max > 0 && w.size > 0 && w.size+int64(len(line)) > w.max {
		w.rotate()
	}
	n, err := w.f.Write(line)
	w.size += int64(n)
	if err != nil {
		w.err = err
	}
	return err
}

// rotate moves the file aside and starts a new one: FILE.1 is the youngest of
// the old ones. If that can't be done, the file goes on to grow.
func (w *fileWriter) rotate() {
	for i := w.keep - 1; i >= 1; i-- {
		from, to := fmt.Sprintf("%s.%d", w.path, i), fmt.Sprintf("%s.%d", w.path, i+1)
		if err := os.Rename(from, to); err != nil && !errors.Is(err, os.ErrNotExist) {
			return
		}
	}
	if err := os.Rename(w.path, w.path+".1"); err != nil {
		return
	}
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, fileMode)
	if err != nil {
		w.err = err // goes on in the renamed file
		return
	}
	w.f.Close()
	w.f, w.size = f, 0
}

func (w *fileWriter) idle() {
	if w.transient {
		w.close()
	}
}

func (w *fileWriter) close() {
	if w.f != nil {
		w.f.Close()
		w.f = nil
	}
}

// ErrNoFile is the answer of Reopen and CloseFile without a log file, in the words of Open vSwitch.
var ErrNoFile = noFile{}

type noFile struct{}

func (noFile) Error() string { return "Logging to file not configured" }

// OpenFile makes path the log file. A file that can't be opened is an error and
// is tried again later all the same: a log that can't be written stops nothing.
func (v *Vlog) OpenFile(path string) error {
	var err error
	if e := v.sinks[File].call(func() { err = v.file.set(path) }); e != nil {
		return e
	}
	v.tell()
	if err != nil {
		return fmt.Errorf("cannot open log file: %w", err)
	}
	v.Logger("vlog").Info("opened log file " + path)
	return nil
}

// FilePath returns the path of the log file, "" without one.
func (v *Vlog) FilePath() string {
	var path string
	if v.sinks[File].call(func() { path = v.file.path }) != nil {
		return ""
	}
	return path
}

// Reopen closes the log file and opens it again by name, for logrotate.
func (v *Vlog) Reopen() error {
	path := v.FilePath()
	if path == "" {
		return ErrNoFile
	}
	v.Logger("vlog").Info("closing log file")
	return v.OpenFile(path)
}

// CloseFile stops logging to the file.
func (v *Vlog) CloseFile() error {
	if v.FilePath() == "" {
		return ErrNoFile
	}
	v.Logger("vlog").Info("closing log file")
	err := v.sinks[File].call(func() { v.file.close(); v.file.path = "" })
	v.tell()
	return err
}

// Flush waits until everything logged before is written, or its destination proves stuck.
func (v *Vlog) Flush() {
	for _, s := range v.sinks {
		_ = s.call(func() {}) // a stuck destination has lost its lines already
	}
}

// Close flushes and ends the log. Later messages are lost.
func (v *Vlog) Close() {
	v.mu.Lock()
	closed := v.closed
	v.closed = true
	v.mu.Unlock()
	if closed {
		return
	}
	for _, s := range v.sinks {
		s.finish()
	}
}
