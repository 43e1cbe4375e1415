package daemon

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"slices"
	"strings"
	"time"
)

// overheard takes what a monitored daemon, or something in it that knows
// nothing of the log, writes to standard error. All of it goes on to the
// monitor's own standard error, the terminal if there is one, and to the log.
//
// The Go runtime writes a crash there, too. It is worth keeping though the
// crash report comes over a pipe of its own: the headline of a fatal error
// (concurrent map writes, out of memory, …) is printed before the runtime takes
// itself for dying, hence to standard error alone. So a line that begins as a
// crash does, and what follows it, is held back until the daemon has ended, or
// has gone on for so long that it was no crash.
type overheard struct {
	pipe     *os.File
	terminal io.Writer
	log      *slog.Logger
	patience time.Duration // crashTakes
	done     chan struct{} // closed when all is read

	part     []byte // of a line
	held     []byte // belongs to a crash, perhaps
	crashing bool
}

// Bounds: of one line, of what is held, and of how long a crash takes.
const (
	maxOverheardLine = 4 << 10
	maxHeld          = 16 << 10
	crashTakes       = 10 * time.Second
)

// overhear makes the pipe and reads it until its other end, which is returned
// and becomes the daemon's standard error, is closed.
func overhear(terminal io.Writer, log *slog.Logger) (*overheard, *os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, fmt.Errorf("cannot make a pipe: %w", err)
	}
	o := &overheard{pipe: r, terminal: terminal, log: log, patience: crashTakes, done: make(chan struct{})}
	go o.run() // ends with the last process that has the other end, or by end
	return o, w, nil
}

func (o *overheard) run() {
	defer close(o.done)
	buf := make([]byte, 4<<10)
	for {
		n, err := o.pipe.Read(buf)
		if n > 0 {
			_, _ = o.terminal.Write(buf[:n]) // a terminal that is gone is nobody's loss
			o.take(buf[:n])
		}
		if errors.Is(err, os.ErrDeadlineExceeded) && o.crashing {
			o.release()
			continue
		}
		if err != nil {
			return
		}
	}
}

// take splits what came into lines.
func (o *overheard) take(data []byte) {
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		rest := data[len(data):]
		if i >= 0 {
			data, rest = data[:i+1], data[i+1:]
		}
		o.part = append(o.part, data...)
		if i >= 0 || len(o.part) >= maxOverheardLine {
			o.line(o.part)
			o.part = o.part[:0]
		}
		data = rest
	}
}

func (o *overheard) line(line []byte) {
	if !o.crashing && beginsCrash(string(line)) {
		o.crashing = true
		_ = o.pipe.SetReadDeadline(time.Now().Add(o.patience)) // a pipe of ours has deadlines
	}
	if !o.crashing {
		o.say(line)
		return
	}
	o.held = append(o.held, line[:min(len(line), maxHeld-len(o.held))]...)
}

func (o *overheard) say(line []byte) {
	if text := strings.TrimRight(string(line), "\r\n"); text != "" {
		o.log.Warn(text)
	}
}

// release logs what was held for nothing.
func (o *overheard) release() {
	for line := range bytes.Lines(o.held) {
		o.say(line)
	}
	o.held, o.crashing = nil, false
	_ = o.pipe.SetReadDeadline(time.Time{})
}

// end waits for the rest of what a daemon that has ended wrote, and completes
// its crash report with the headline if it has none. Without a crash report,
// nothing is left unlogged.
func (o *overheard) end(report []byte) []byte {
	wait := time.NewTimer(crashPatience)
	defer wait.Stop()
	select {
	case <-o.done:
	case <-wait.C: // a child of the daemon's holds the other end
		o.pipe.Close()
		<-o.done
	}
	o.pipe.Close()
	if len(o.part) > 0 {
		o.line(o.part)
	}
	if len(report) == 0 {
		o.release()
		return nil
	}
	if missing := headlines(o.held, report); len(missing) > 0 {
		return slices.Concat(missing, []byte("\n\n"), bytes.TrimLeft(report, "\n"))
	}
	return report
}

// headlines are the lines of a crash before the first that the report has, too.
func headlines(held, report []byte) []byte {
	first, _, _ := bytes.Cut(bytes.TrimLeft(report, "\n"), []byte("\n"))
	var missing []byte
	for line := range bytes.Lines(held) {
		if bytes.Equal(bytes.TrimRight(line, "\n"), first) {
			break
		}
		missing = append(missing, line...)
	}
	return bytes.TrimRight(missing, "\n")
}

// beginsCrash reports whether a line is how the runtime begins to tell of a crash.
func beginsCrash(line string) bool {
	for _, s := range []string{"panic: ", "fatal error: ", "runtime: ", "unexpected fault address ", "[signal ", "goroutine ", "runtime stack:", "SIG"} {
		if strings.HasPrefix(line, s) {
			return true
		}
	}
	return false
}
