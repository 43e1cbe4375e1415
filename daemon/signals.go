package daemon

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"
	"time"

	"github.com/lockstepd/lockstep/daemon/vlog"
)

// The exit status after a second TERM or INT: the stop was not in order.
const exitAtOnce = ExitFailed

// watchSignals obeys signals until the context's tasks end. Signals are
// registered at once; quit leaves the process.
func (e *Env) watchSignals(quit func(status int)) {
	ch := make(chan os.Signal, 16)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2,
		// A log reader that went away must not kill the daemon; a child gets
		// the default back, which it would not if the signal were ignored.
		syscall.SIGPIPE)
	e.finished.Go(func() {
		defer signal.Stop(ch)
		asked := false
		for {
			select {
			case <-e.over:
				return
			case sig := <-ch:
				asked = e.obey(sig, asked, quit)
			}
		}
	})
}

func (e *Env) obey(sig os.Signal, asked bool, quit func(int)) bool {
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT:
		if asked {
			e.log.Error("asked to stop a second time: stopping at once", "signal", sig.String())
			quit(exitAtOnce)
		}
		e.cancel(&SignalError{sig})
		return true
	case syscall.SIGHUP:
		e.requestReload()
	case syscall.SIGUSR1:
		e.dump()
	}
	return asked
}

// requestReload passes a reload on, unless one is waiting already.
func (e *Env) requestReload() {
	e.log.Info("asked to reload (Hangup)")
	if err := e.vlog.Reopen(); err != nil && !errors.Is(err, vlog.ErrNoFile) {
		e.log.Warn("cannot reopen the log file", "error", err)
	}
	e.mu.Lock()
	wanted := e.reloads
	e.reloading = wanted
	e.mu.Unlock()
	if !wanted {
		return
	}
	e.told(e.notifier.Reloading())
	select {
	case e.reload <- struct{}{}:
	default:
	}
}

// maxDump bounds what one USR1 writes to the log.
const maxDump = 4 << 20

// dump writes state and goroutines to the log.
func (e *Env) dump() {
	e.mu.Lock()
	dumps := e.dumps
	e.mu.Unlock()
	var b bytes.Buffer
	b.WriteString("memory: " + e.memory.Text())
	b.WriteString(e.coverage.Text())
	for _, f := range dumps {
		b.Write(written(f))
	}
	if err := pprof.Lookup("goroutine").WriteTo(&b, 2); err != nil {
		e.log.Warn("cannot list the goroutines", "error", err)
	}
	logLines(e.vlog, "dump", b.Bytes(), maxDump)
}

// dumpPatience bounds the wait for a part of a dump: what hangs is what an
// operator wants to see the goroutines of.
const dumpPatience = 2 * time.Second

// written is what f writes, unless that takes too long.
func written(f func(io.Writer)) []byte {
	done := make(chan []byte, 1)
	go func() { // ends with f
		var b bytes.Buffer
		f(&b)
		done <- b.Bytes()
	}()
	t := time.NewTimer(dumpPatience)
	defer t.Stop()
	select {
	case b := <-done:
		return b
	case <-t.C:
		return fmt.Appendf(nil, "(a part of the state is left out, for it did not come within %v)\n", dumpPatience)
	}
}

// flushEvery keeps a long text from overflowing the log's queue.
const flushEvery = 1000

// logLines logs a text line by line, up to limit bytes of it, past the rate limits.
func logLines(v *vlog.Vlog, module string, text []byte, limit int) {
	h := v.Logger(module).Handler()
	line := func(s string) {
		// A record without a place in the code is not limited; a log that fails has said so itself.
		_ = h.Handle(context.Background(), slog.NewRecord(time.Now(), slog.LevelInfo, s, 0))
	}
	cut := len(text) > limit
	if cut {
		text = text[:limit]
	}
	sc := bufio.NewScanner(bytes.NewReader(text))
	sc.Buffer(nil, limit+1)
	for n := 1; sc.Scan(); n++ {
		line(sc.Text())
		if n%flushEvery == 0 {
			v.Flush()
		}
	}
	if cut {
		line("(the rest is left out)")
	}
}
